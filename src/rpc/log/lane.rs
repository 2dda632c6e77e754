//! Lanes: the requests of a produce stream that wait for an answer, in the order of each partition.
//! Pure bookkeeping.
//!
//! A lane has a head, which is awaited outside of it, and a queue behind that. Only when the head
//! is answered does the next one become it, so that answers keep the order of requests.

use std::collections::{HashMap, VecDeque};

use crate::types::LogId;

/// The lanes of one stream.
///
/// * A lane that is there has a head outside, and what it lacks is behind that.
/// * In a lane, what waits to be sent stands behind everything that was sent: see
///   [`Lanes::must_wait`].
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
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { by_log: HashMap::new() }
    }
}

impl<T> Lanes<T> {
    /// True if a new request must not be sent yet, lest it overtake others of its partition.
    pub(super) fn must_wait(&self, log: LogId) -> bool {
        self.by_log.get(&log).is_some_and(|lane| lane.unsent > 0 || lane.is_head_unsent)
    }

    /// Puts a request at the end of its lane. Gives it back if it is the head.
    pub(super) fn push(&mut self, log: LogId, item: T, is_sent: bool) -> Option<T> {
        assert!(!is_sent || !self.must_wait(log), "{log}: a request has overtaken another one");
        let Some(lane) = self.by_log.get_mut(&log) else {
            let lane = Lane { queue: VecDeque::new(), unsent: 0, is_head_unsent: !is_sent };
            self.by_log.insert(log, lane);
            return Some(item);
        };
        lane.unsent += usize::from(!is_sent);
        lane.queue.push_back(item);
        None
    }

    /// Notes that the head is sent once more, and shows all that were sent behind it.
    pub(super) fn send_head_again(&mut self, log: LogId) -> impl Iterator<Item = &mut T> {
        let lane = self.by_log.get_mut(&log).expect("a lane with a head is there");
        lane.is_head_unsent = true;
        let sent = lane.queue.len() - lane.unsent;
        lane.queue.iter_mut().take(sent)
    }

    /// Takes the next head once the one before is answered, and says whether it was sent. Without
    /// one the lane ends.
    pub(super) fn next_head(&mut self, log: LogId) -> Option<(T, bool)> {
        let lane = self.by_log.get_mut(&log)?;
        let Some(head) = lane.queue.pop_front() else {
            self.by_log.remove(&log);
            return None;
        };
        let is_sent = lane.unsent <= lane.queue.len();
        lane.unsent -= usize::from(!is_sent);
        lane.is_head_unsent = !is_sent;
        Some((head, is_sent))
    }

    /// Notes that the head, which was not, is sent now.
    pub(super) fn head_is_sent(&mut self, log: LogId) {
        self.by_log.get_mut(&log).expect("a lane with a head is there").is_head_unsent = false;
    }

    /// Sends those that wait, in order, until `send` refuses one. Does nothing while the head is
    /// not sent itself.
    pub(super) fn send_waiting(&mut self, log: LogId, mut send: impl FnMut(&mut T) -> bool) {
        let Some(lane) = self.by_log.get_mut(&log).filter(|lane| !lane.is_head_unsent) else {
            return;
        };
        let sent = lane.queue.len() - lane.unsent;
        for item in lane.queue.iter_mut().skip(sent) {
            if !send(item) {
                return;
            }
            lane.unsent -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const A: LogId = LogId(Uuid::from_u128(1));
    const B: LogId = LogId(Uuid::from_u128(2));

    #[test]
    fn the_first_of_a_partition_is_its_head() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.push(A, 1, true), Some(1));
        assert_eq!(lanes.push(A, 2, true), None);
        assert_eq!(lanes.push(B, 3, true), Some(3));
        assert_eq!(lanes.next_head(A), Some((2, true)));
        assert_eq!(lanes.next_head(A), None);
        assert_eq!(lanes.push(A, 4, true), Some(4), "the lane began anew");
        assert_eq!(lanes.next_head(B), None);
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, true);
        assert!(!lanes.must_wait(A));
        lanes.push(A, 2, false);
        assert!(lanes.must_wait(A) && !lanes.must_wait(B));
        lanes.push(A, 3, false);
        let mut sent = Vec::new();
        lanes.send_waiting(A, |item| {
            sent.push(*item);
            *item < 3
        });
        assert_eq!(sent, [2, 3]);
        assert!(lanes.must_wait(A));
        assert_eq!(lanes.next_head(A), Some((2, true)));
        assert_eq!(lanes.next_head(A), Some((3, false)));
        assert!(lanes.must_wait(A), "the head itself is not sent");
        lanes.head_is_sent(A);
        assert!(!lanes.must_wait(A));
    }

    #[test]
    fn while_a_head_is_sent_again_nothing_else_is() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, true);
        lanes.push(A, 2, true);
        lanes.push(A, 3, false);
        let behind: Vec<i32> = lanes.send_head_again(A).map(|item| *item).collect();
        assert_eq!(behind, [2], "only those that were sent");
        lanes.send_waiting(A, |_| panic!("the head is not sent"));
        assert_eq!(lanes.next_head(A), Some((2, true)));
        lanes.send_waiting(A, |_| true);
        assert!(!lanes.must_wait(A));
        assert_eq!(lanes.next_head(A), Some((3, true)));
    }

    #[test]
    #[should_panic(expected = "has overtaken")]
    fn overtaking_is_noticed() {
        let mut lanes = Lanes::default();
        lanes.push(A, 1, false);
        lanes.push(A, 2, true);
    }
}
