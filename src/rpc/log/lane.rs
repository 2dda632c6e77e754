//! Lanes: the requests of a produce stream that wait for an answer, in the order of each partition.
//! Pure bookkeeping.
//!
//! A lane has a head, which is awaited outside of it, and a queue behind that. Only when the head
//! is answered does the next one become it, so that answers keep the order of requests.

use std::collections::{HashMap, VecDeque};

use crate::types::{LogId, NodeId};

/// Whether a request is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// It waits.
    Not,
    /// It needs no sending: its outcome is known.
    Nowhere,
    /// To a node, which may be this one.
    To(NodeId),
}

/// Where a request may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// It has to wait for others of its partition.
    Nowhere,
    /// To this node only: others of its partition are on their way there.
    Only(NodeId),
    /// To any node.
    Anywhere,
}

impl Allowed {
    pub(super) fn allows(self, node: NodeId) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Only(other) => other == node,
            Self::Anywhere => true,
        }
    }
}

/// The lanes of one stream.
///
/// * A lane that is there has a head outside, and what it lacks is behind that.
/// * In a lane, what waits to be sent stands behind everything that was sent.
/// * All of a lane that is on its way goes to one node. Were leadership to move to another one and
///   back, a request sent there could arrive before one that is still on its way here, and be
///   refused for that.
#[derive(Debug)]
pub(super) struct Lanes<T> {
    by_log: HashMap<LogId, Lane<T>>,
}

#[derive(Debug)]
struct Lane<T> {
    queue: VecDeque<T>,
    /// How many at the end of the queue wait to be sent.
    unsent: usize,
    /// The head is being sent once more: what comes after it has to wait.
    is_head_unsent: bool,
    /// Where all goes that is on its way, if anything is.
    to: Option<NodeId>,
    /// The leader that a failure named, or that was found the slow way.
    leader: Option<NodeId>,
}

impl<T> Lane<T> {
    fn allowed(&self) -> Allowed {
        match self.to {
            _ if self.is_head_unsent => Allowed::Nowhere,
            Some(node) => Allowed::Only(node),
            None => Allowed::Anywhere,
        }
    }

    fn note(&mut self, sent: Sent) {
        if let Sent::To(node) = sent {
            self.to = Some(node);
        }
    }
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { by_log: HashMap::new() }
    }
}

impl<T> Lanes<T> {
    /// Where a new request may be sent, so that it overtakes none of its partition.
    pub(super) fn allowed(&self, log: LogId) -> Allowed {
        match self.by_log.get(&log) {
            None => Allowed::Anywhere,
            Some(lane) if lane.unsent > 0 => Allowed::Nowhere,
            Some(lane) => lane.allowed(),
        }
    }

    /// Puts a request at the end of its lane. Gives it back if it is the head.
    pub(super) fn push(&mut self, log: LogId, item: T, sent: Sent) -> Option<T> {
        let is_sent = sent != Sent::Not;
        let has_overtaken = match (sent, self.allowed(log)) {
            (Sent::Not, _) => false,
            (Sent::Nowhere, allowed) => allowed == Allowed::Nowhere,
            (Sent::To(node), allowed) => !allowed.allows(node),
        };
        assert!(!has_overtaken, "{log}: a request has overtaken another one");
        if let Some(lane) = self.by_log.get_mut(&log) {
            lane.unsent += usize::from(!is_sent);
            lane.queue.push_back(item);
            lane.note(sent);
            return None;
        }
        let (queue, is_head_unsent) = (VecDeque::new(), !is_sent);
        let mut lane = Lane { queue, unsent: 0, is_head_unsent, to: None, leader: None };
        lane.note(sent);
        self.by_log.insert(log, lane);
        Some(item)
    }

    /// Notes that the head is sent once more.
    pub(super) fn send_head_again(&mut self, log: LogId) {
        self.lane(log).is_head_unsent = true;
    }

    /// All that were sent behind the head, in order.
    pub(super) fn sent(&mut self, log: LogId) -> impl Iterator<Item = &mut T> {
        let lane = self.lane(log);
        let sent = lane.queue.len() - lane.unsent;
        lane.queue.iter_mut().take(sent)
    }

    /// Notes who leads, if that is not what this node knows.
    pub(super) fn hear_of_leader(&mut self, log: LogId, leader: Option<NodeId>) {
        self.lane(log).leader = leader;
    }

    /// What was heard last of who leads, if there is a lane.
    pub(super) fn leader(&self, log: LogId) -> Option<NodeId> {
        self.by_log.get(&log)?.leader
    }

    /// True if sending to `node` sends elsewhere than before.
    pub(super) fn leaves(&self, log: LogId, node: NodeId) -> bool {
        self.by_log.get(&log).is_some_and(|lane| lane.to != Some(node))
    }

    /// Notes that nothing of a lane is on its way any more, and that its head and all behind it
    /// wait to be sent again. Shows those that were sent behind the head.
    pub(super) fn rewind(&mut self, log: LogId) -> impl Iterator<Item = &mut T> {
        let lane = self.lane(log);
        let sent = lane.queue.len() - lane.unsent;
        lane.unsent = lane.queue.len();
        (lane.is_head_unsent, lane.to) = (true, None);
        lane.queue.iter_mut().take(sent)
    }

    /// Takes the next head once the one before is answered, and says whether it was sent; if not,
    /// nothing of the lane is waited for. Without one the lane ends.
    pub(super) fn next_head(&mut self, log: LogId) -> Option<(T, bool)> {
        let lane = self.by_log.get_mut(&log)?;
        let Some(head) = lane.queue.pop_front() else {
            self.by_log.remove(&log);
            return None;
        };
        let is_sent = lane.unsent <= lane.queue.len();
        lane.unsent -= usize::from(!is_sent);
        lane.is_head_unsent = !is_sent;
        if !is_sent {
            lane.to = None;
        }
        Some((head, is_sent))
    }

    /// Notes that the head, which was not, is sent now, unless it is not.
    pub(super) fn note_head(&mut self, log: LogId, sent: Sent) {
        let lane = self.lane(log);
        lane.is_head_unsent = sent == Sent::Not;
        lane.note(sent);
    }

    /// Sends those that wait, in order, until `send` refuses one. Does nothing while the head is
    /// not sent itself.
    pub(super) fn send_waiting(
        &mut self,
        log: LogId,
        mut send: impl FnMut(&mut T, Allowed) -> Sent,
    ) {
        let Some(lane) = self.by_log.get_mut(&log).filter(|lane| !lane.is_head_unsent) else {
            return;
        };
        while lane.unsent > 0 {
            let (next, allowed) = (lane.queue.len() - lane.unsent, lane.allowed());
            let sent = send(&mut lane.queue[next], allowed);
            if sent == Sent::Not {
                return;
            }
            lane.note(sent);
            lane.unsent -= 1;
        }
    }

    /// The lane of a head.
    fn lane(&mut self, log: LogId) -> &mut Lane<T> {
        self.by_log.get_mut(&log).expect("a lane with a head is there")
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: LogId = LogId(Uuid::from_u128(1));
    const B: LogId = LogId(Uuid::from_u128(2));
    const HERE: Sent = Sent::To(NodeId(1));
    const THERE: Sent = Sent::To(NodeId(2));

    #[test]
    fn the_first_of_a_partition_is_its_head() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.push(A, 1, HERE), Some(1));
        assert_eq!(lanes.push(A, 2, HERE), None);
        assert_eq!(lanes.push(B, 3, HERE), Some(3));
        assert_eq!(lanes.next_head(A), Some((2, true)));
        assert_eq!(lanes.next_head(A), None);
        assert_eq!(lanes.push(A, 4, HERE), Some(4), "the lane began anew");
        assert_eq!(lanes.next_head(B), None);
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, HERE);
        assert_eq!(lanes.allowed(A), Allowed::Only(NodeId(1)));
        lanes.push(A, 2, Sent::Not);
        assert_eq!((lanes.allowed(A), lanes.allowed(B)), (Allowed::Nowhere, Allowed::Anywhere));
        lanes.push(A, 3, Sent::Not);
        let mut sent = Vec::new();
        lanes.send_waiting(A, |item, _| {
            sent.push(*item);
            if *item < 3 { HERE } else { Sent::Not }
        });
        assert_eq!(sent, [2, 3]);
        assert_eq!(lanes.allowed(A), Allowed::Nowhere);
        assert_eq!(lanes.next_head(A), Some((2, true)));
        assert_eq!(lanes.next_head(A), Some((3, false)));
        assert_eq!(lanes.allowed(A), Allowed::Nowhere, "the head itself is not sent");
        lanes.note_head(A, HERE);
        assert_eq!(lanes.allowed(A), Allowed::Only(NodeId(1)));
    }

    #[test]
    fn nothing_goes_to_another_node_before_all_is_answered_that_is_on_its_way_to_one() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, HERE);
        lanes.push(A, 2, HERE);
        assert!(!lanes.allowed(A).allows(NodeId(2)));
        lanes.push(A, 3, Sent::Not);
        assert_eq!(lanes.next_head(A), Some((2, true)));
        lanes.send_waiting(A, |_, allowed| {
            assert_eq!(allowed, Allowed::Only(NodeId(1)), "the second one is still on its way");
            Sent::Not
        });
        assert_eq!(lanes.next_head(A), Some((3, false)), "nothing is on its way any more");
        lanes.note_head(A, THERE);
        assert_eq!(lanes.allowed(A), Allowed::Only(NodeId(2)));
    }

    #[test]
    fn what_needs_no_sending_binds_nobody() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, Sent::Nowhere);
        assert_eq!(lanes.allowed(A), Allowed::Anywhere);
        lanes.push(A, 2, THERE);
        lanes.push(A, 3, Sent::Nowhere);
        assert_eq!(lanes.allowed(A), Allowed::Only(NodeId(2)));
    }

    #[test]
    fn what_was_sent_can_wait_again_before_all_that_waits_already() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, HERE);
        lanes.push(A, 2, HERE);
        lanes.push(A, 3, HERE);
        lanes.push(A, 4, Sent::Not);
        assert_eq!(lanes.next_head(A), Some((2, true)));
        let sent: Vec<i32> = lanes.rewind(A).map(|item| *item).collect();
        assert_eq!((sent, lanes.allowed(A)), (vec![3], Allowed::Nowhere));
        lanes.send_waiting(A, |_, _| panic!("the head is not sent"));
        lanes.note_head(A, THERE);
        let mut sent = Vec::new();
        lanes.send_waiting(A, |item, allowed| {
            assert_eq!(allowed, Allowed::Only(NodeId(2)));
            sent.push(*item);
            THERE
        });
        assert_eq!(sent, [3, 4]);
        assert_eq!(lanes.next_head(A), Some((3, true)));
    }

    #[test]
    fn while_a_head_is_sent_again_nothing_else_is() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, HERE);
        lanes.push(A, 2, HERE);
        lanes.push(A, 3, Sent::Not);
        lanes.send_head_again(A);
        let behind: Vec<i32> = lanes.sent(A).map(|item| *item).collect();
        assert_eq!(behind, [2], "only those that were sent");
        lanes.send_waiting(A, |_, _| panic!("the head is not sent"));
        assert_eq!(lanes.next_head(A), Some((2, true)));
        lanes.send_waiting(A, |_, _| HERE);
        assert_eq!(lanes.allowed(A), Allowed::Only(NodeId(1)));
        assert_eq!(lanes.next_head(A), Some((3, true)));
    }

    #[test]
    #[should_panic(expected = "has overtaken")]
    fn overtaking_is_noticed() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, Sent::Not);
        lanes.push(A, 2, HERE);
    }

    #[test]
    #[should_panic(expected = "has overtaken")]
    fn so_is_another_way() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, HERE);
        lanes.push(A, 2, THERE);
    }
}
