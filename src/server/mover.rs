//! The mover: brings the partitions that this node leads to where the metadata wants them.
//!
//! Only a partition's leader changes its replicas, one step at a time: new replicas come as
//! learners, vote once they have what is committed, and those that go leave with the same joint
//! change. The metadata hears of it when the new set is on the disks of its majority; before that,
//! the replicas that left may be the only ones who know that they did.
//!
//! It hands leadership over as well: to the preferred leader, and away from a node that drains.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::cluster::command::{self, FinishMove, Id, NodeState, Partition, Verb, topic_of};
use crate::cluster::{Node, State};
use crate::partition::Handle;
use crate::raft::{Inspection, Operation, Role};
use crate::rpc::Context;
use crate::rpc::peer::{self, ReplicaStatus};
use crate::types::{LogId, NodeId, ReplicaId};

const STEP_EVERY: Duration = Duration::from_millis(200);
/// How often all partitions are looked at when nothing is to be done and nothing has changed. With
/// a thousand partitions that take all a node has, five times a second was one percent of it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a leader leads before it gives way to the preferred one.
const SETTLE: Duration = Duration::from_secs(5);
/// Silence after which a node is not given anything to lead.
const SILENT: Duration = Duration::from_secs(3);
/// Entries that a replica may lack when it begins to vote.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Leaderships given to preferred leaders in one step.
const BALANCED_AT_ONCE_MAX: usize = 32;
const FINISH_DEADLINE: Duration = Duration::from_secs(5);

/// What the mover needs.
#[derive(Debug, Clone)]
pub(super) struct Mover {
    node: Arc<Node>,
    context: Context,
}

impl Mover {
    pub(super) fn new(context: Context) -> Self {
        Self { node: context.node().clone(), context }
    }

    /// Moves for ever.
    pub(super) async fn run(self) {
        let mut ticks = interval(STEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut led_since: HashMap<LogId, (u64, Instant)> = HashMap::new();
        let mut news = self.node.watch_state();
        let (mut has_work, mut changes, mut looked) = (true, 0, Instant::now());
        loop {
            ticks.tick().await;
            let changes_now = self.node.partition_host().role_changes();
            let has_news = changes_now != changes || news.has_changed().unwrap_or(false);
            if !has_work && !has_news && looked.elapsed() < LOOK_EVERY {
                continue;
            }
            let state = news.borrow_and_update().clone();
            (has_work, changes, looked) = (false, changes_now, Instant::now());
            let mut balanced = 0;
            let mut seen = HashMap::with_capacity(led_since.len());
            for handle in self.node.registry().handles() {
                let status = handle.status();
                if status.role != Role::Leader || !status.is_writable {
                    continue;
                }
                let log = status.group;
                let known = led_since.get(&log).filter(|(term, _)| *term == status.term);
                let since = known.copied().unwrap_or((status.term, Instant::now()));
                seen.insert(log, since);
                let is_settled = since.1.elapsed() >= SETTLE && balanced < BALANCED_AT_ONCE_MAX;
                if !self.is_content(&state, log, is_settled) {
                    has_work = true;
                    balanced += usize::from(self.step(log, is_settled).await);
                }
            }
            led_since = seen;
        }
    }

    /// True if a partition that this node leads is as the metadata wants it.
    fn is_content(&self, state: &State, log: LogId, is_settled: bool) -> bool {
        let Some((partition, ..)) = partition_of(state, log) else { return true };
        let is_preferred = preferred(partition).is_some_and(|id| id.node() == self.node.id());
        partition.target.is_empty() && !self.is_draining(state) && (is_preferred || !is_settled)
    }

    fn is_draining(&self, state: &State) -> bool {
        let own = state.node(self.node.id()).map(command::Node::state);
        own.is_none_or(|state| state != NodeState::Active)
    }

    /// Brings one partition a step further. True if its leadership was given away.
    async fn step(&self, log: LogId, is_settled: bool) -> bool {
        // Steps before this one may have taken long.
        let state = self.node.state();
        if self.is_content(&state, log, is_settled) {
            return false;
        }
        let Some((partition, id, n)) = partition_of(&state, log) else { return false };
        let Some(group) = self.node.inspect(log).await else { return false };
        if group.role != Role::Leader || group.membership.is_joint() {
            return false;
        }
        if !partition.target.is_empty() {
            let target: BTreeSet<_> = partition.target.iter().copied().map(ReplicaId).collect();
            match next_operations(&group, &target) {
                Some(operations) => self.change(log, operations).await,
                None if is_reached(&group, &target) && self.is_on_disks(log, &group).await => {
                    let target = partition.target.clone();
                    self.finish(FinishMove { id, partition: n, target }).await;
                }
                None => {}
            }
            return false;
        }
        let to = match self.is_draining(&state) {
            true => self.best_follower(&group),
            false => preferred(partition).filter(|to| self.is_able(&group, *to)),
        };
        let Some(to) = to else { return false };
        tracing::info!(%log, %to, "leadership is handed over");
        self.node.partition_host().transfer(log, to).is_ok()
    }

    async fn change(&self, log: LogId, operations: Vec<Operation>) {
        tracing::info!(%log, ?operations, "the replicas change");
        let Ok(begun) = self.node.partition_host().change(log, operations) else { return };
        if let Ok(Err(error)) = begun.await {
            tracing::debug!(%log, %error, "the replicas cannot change yet");
        }
    }

    /// True if a majority of the voters has the membership on disk.
    async fn is_on_disks(&self, log: LogId, group: &Inspection) -> bool {
        let index = group.membership.index;
        let mut have = BTreeSet::new();
        for voter in &group.membership.voters {
            let Ok(channel) = self.context.channel(voter.node()) else { continue };
            let status = peer::inspect_replica(channel, self.node.cluster(), log).await;
            let has_it = |status: &ReplicaStatus| {
                let is_known = status.membership_index >= index;
                status.replica == *voter && is_known && !status.waits_for_repair
            };
            if status.is_ok_and(|status| status.as_ref().is_some_and(has_it)) {
                have.insert(*voter);
            }
        }
        group.membership.is_quorum(|voter| have.contains(&voter))
    }

    async fn finish(&self, finish: FinishMove) {
        let deadline = Instant::now() + FINISH_DEADLINE;
        if let Err(error) =
            self.context.proposer().propose(Verb::FinishMove(finish), deadline).await
        {
            tracing::debug!(%error, "the end of a move is not known yet");
        }
    }

    /// The voter that can take over best, on a node that may lead.
    pub(super) fn best_follower(&self, group: &Inspection) -> Option<ReplicaId> {
        let able = group.followers.iter().filter(|follower| self.is_able(group, follower.replica));
        able.max_by_key(|follower| follower.matched).map(|follower| follower.replica)
    }

    fn is_able(&self, group: &Inspection, replica: ReplicaId) -> bool {
        let state = self.node.state();
        let node = state.node(replica.node());
        let is_active = node.is_some_and(|node| node.state() == NodeState::Active);
        let is_alive = self.node.heard().is_alive(replica.node(), SILENT);
        let follower = group.followers.iter().find(|follower| follower.replica == replica);
        let has_all = follower.is_some_and(|f| f.matched + CAUGHT_UP_ENTRIES >= group.committed);
        let is_voter = group.membership.voters.contains(&replica);
        is_active && is_alive && has_all && is_voter
    }

    /// Hands over everything that this node leads, and waits until that is done or `deadline`.
    pub(super) async fn hand_over_all(&self, deadline: Instant) {
        loop {
            let led: Vec<_> = self.node.registry().handles();
            let led: Vec<_> = led.into_iter().filter(Handle::is_leader).collect();
            let mut waiting = 0;
            for handle in &led {
                let Some(group) = self.node.inspect(handle.group()).await else { continue };
                if let Some(to) = self.best_follower(&group) {
                    waiting += 1;
                    // Asked again in a moment.
                    let _ = self.node.partition_host().transfer(handle.group(), to);
                }
            }
            if waiting == 0 || Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep(STEP_EVERY).await;
        }
    }
}

/// A partition by its log, with its topic's id and its number there.
fn partition_of(state: &State, log: LogId) -> Option<(&Partition, Id, u32)> {
    let (id, n) = topic_of(log)?;
    let topic = state.topic(id)?;
    Some((topic.partitions.get(n as usize)?, id, n))
}

fn preferred(partition: &Partition) -> Option<ReplicaId> {
    partition.replicas.first().copied().map(ReplicaId)
}

fn is_reached(group: &Inspection, target: &BTreeSet<ReplicaId>) -> bool {
    let voters: BTreeSet<_> = group.membership.voters.iter().copied().collect();
    voters == *target && group.membership.learners.is_empty()
}

/// The change that brings a group nearer to `target`; `None` if it has to be waited for something.
fn next_operations(group: &Inspection, target: &BTreeSet<ReplicaId>) -> Option<Vec<Operation>> {
    let membership = &group.membership;
    let voters: BTreeSet<_> = membership.voters.iter().copied().collect();
    if let Some(new) = target.iter().find(|id| !membership.contains(**id)) {
        return Some(vec![Operation::Learner(*new)]);
    }
    let has_all = |id: &&ReplicaId| {
        let follower = group.followers.iter().find(|follower| follower.replica == **id);
        follower.is_some_and(|f| f.matched + CAUGHT_UP_ENTRIES >= group.committed)
    };
    let coming: Vec<_> = target.difference(&voters).collect();
    let ready = coming.iter().copied().filter(has_all).count();
    if ready < coming.len() {
        return None;
    }
    let come = coming.into_iter().map(|id| Operation::Voter(*id));
    let go = voters.difference(target).map(|id| Operation::Remove(*id));
    let operations: Vec<_> = come.chain(go).collect();
    if !operations.is_empty() {
        return Some(operations);
    }
    let stray = membership.learners.iter().find(|id| !target.contains(id));
    stray.map(|id| vec![Operation::Remove(*id)])
}

/// The node that a replica is on may be given something to lead.
pub(super) fn may_lead(node: &Node, id: NodeId) -> bool {
    let state = node.state();
    let is_active = state.node(id).is_some_and(|node| node.state() == NodeState::Active);
    is_active && node.heard().is_alive(id, SILENT)
}
