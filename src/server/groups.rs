//! Consumer groups: what a node does for them, and what the metadata's leader does.
//!
//! * Every node tells the streams of members what has changed, takes out members that it serves and
//!   that were silent for too long, and forgets the progress of deleted groups where it leads.
//! * The metadata's leader is the coordinator of all groups: it says who is to have which
//!   partition, takes out the members of nodes that are gone, and deletes groups that were idle for
//!   too long.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::cluster::command::{self, Id, Verb};
use crate::cluster::group::{DeleteGroup, Group, LeaveGroups, Leaving, Member};
use crate::cluster::{Node, Refusal, State};
use crate::group::{away_max, plan};
use crate::rpc::peer::ProposeError;
use crate::rpc::{Context, forget_deleted};
use crate::types::NodeId;

/// A node that was not heard for so long counts as gone.
const ALIVE_WITHIN: Duration = Duration::from_millis(2_500);
const WATCH_EVERY: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FORGET_EVERY: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(5);
/// Changes that come one upon the other are answered with one plan.
const BREATH: Duration = Duration::from_millis(20);

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Tells the streams of members what has changed, for ever.
pub(super) async fn tell(context: Context) {
    let mut states = context.node().watch_state();
    loop {
        let state = states.borrow_and_update().clone();
        context.sessions().follow(&state);
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Takes out members that this node serves and that were silent for too long, for ever.
pub(super) async fn watch_over(context: Context) {
    let mut ticks = interval(WATCH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let node = context.node();
        let overdue =
            context.sessions().overdue(|| node.state(), node.id(), std::time::Instant::now());
        take_out(&context, overdue).await;
    }
}

async fn take_out(context: &Context, leaving: Vec<Leaving>) {
    if leaving.is_empty() {
        return;
    }
    for Leaving { group, member, .. } in &leaving {
        let (group, member) = (group.uuid(), member.uuid());
        tracing::info!(%group, %member, "a member was silent for too long");
    }
    let count = leaving.len() as u64;
    let leave = Verb::LeaveGroups(LeaveGroups { leaving, now_ms: now_ms() });
    match context.proposer().propose(leave, Instant::now() + DEADLINE).await {
        Ok(_) => context.counters().count_expired(count),
        Err(error) => tracing::warn!(%error, "members that were silent are not out yet"),
    }
}

/// Forgets the progress of deleted groups in partitions that this node leads, for ever.
pub(super) async fn forget(context: Context) {
    loop {
        sleep(FORGET_EVERY).await;
        if let Err(error) = forget_deleted(&context).await {
            tracing::debug!(%error, "deleted groups are looked for again later");
        }
    }
}

/// Coordinates all groups whenever this node leads the metadata, for ever.
pub(super) async fn coordinate(context: Context) {
    let mut states = context.node().watch_state();
    let mut coordinator = Coordinator::new(context.clone());
    let mut looked = Instant::now();
    loop {
        if !context.node().leads_metadata() {
            // Another one may have planned meanwhile.
            coordinator.seen.clear();
            sleep(WATCH_EVERY).await;
            continue;
        }
        let state = states.borrow_and_update().clone();
        coordinator.plan(&state).await;
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            coordinator.look_after(&state).await;
        }
        sleep(BREATH).await;
        // Without news it looks again all the same.
        let _ = timeout(WATCH_EVERY, changed(&mut states)).await;
    }
}

async fn changed(states: &mut watch::Receiver<Arc<State>>) {
    if states.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What the coordinator remembers.
struct Coordinator {
    context: Context,
    /// For each group what it was last planned for.
    seen: HashMap<Id, (u64, u64)>,
    /// Since when nodes are silent, or have said that they stop.
    gone: HashMap<u64, Instant>,
}

impl Coordinator {
    fn new(context: Context) -> Self {
        Self { context, seen: HashMap::new(), gone: HashMap::new() }
    }

    /// Plans for the groups that have changed, or whose topics may have.
    async fn plan(&mut self, state: &State) {
        let topics = digest_of_topics(state);
        self.seen.retain(|id, _| state.groups().get(*id).is_some());
        for group in state.groups().iter() {
            let now = (group.generation, topics);
            if self.seen.get(&group.id) == Some(&now) {
                continue;
            }
            self.seen.insert(group.id, now);
            let Some(planned) = plan(state, group) else { continue };
            let deadline = Instant::now() + DEADLINE;
            match self.context.proposer().propose(Verb::PlanGroup(planned), deadline).await {
                // The group has changed meanwhile, and is planned for again with the news of that.
                Ok(_) | Err(ProposeError::Refused(_)) => {}
                Err(error) => {
                    tracing::warn!(%error, group = %group.name, "a group is not planned for yet");
                    self.seen.remove(&group.id);
                }
            }
        }
    }

    /// Takes out the members of nodes that are gone, and deletes groups that were idle too long.
    async fn look_after(&mut self, state: &State) {
        self.look_at_nodes(state);
        let orphans = state.groups().iter().flat_map(|group| self.orphans(state, group));
        take_out(&self.context, orphans.collect()).await;
        self.delete_expired(state).await;
    }

    fn look_at_nodes(&mut self, state: &State) {
        let node = self.context.node();
        let before = std::mem::take(&mut self.gone);
        for other in state.nodes() {
            if let Some(since) = gone_since(node, other) {
                self.gone.insert(other.id, before.get(&other.id).copied().unwrap_or(since));
            }
        }
    }

    /// The members of a group whose nodes have left the cluster, or are gone for too long.
    fn orphans(&self, state: &State, group: &Group) -> Vec<Leaving> {
        let is_orphan = |member: &&Member| {
            let has_left = state.node(NodeId(member.node)).is_none();
            let since = self.gone.get(&member.node);
            has_left || since.is_some_and(|since| since.elapsed() > away_max(group, member))
        };
        let leaving = |member: &Member| Leaving {
            group: group.id,
            member: member.id,
            session: member.session,
        };
        group.members.iter().filter(is_orphan).map(leaving).collect()
    }

    async fn delete_expired(&self, state: &State) {
        let now_ms = now_ms();
        for group in state.groups().iter().filter(|group| is_expired(group, now_ms)) {
            tracing::info!(group = %group.name, "a group without members expires");
            let delete = Verb::DeleteGroup(DeleteGroup { id: group.id, force: false });
            let deleted = self.context.proposer().propose(delete, Instant::now() + DEADLINE).await;
            match deleted {
                Ok(_) | Err(ProposeError::Refused(Refusal::GroupNotEmpty { .. })) => {}
                Err(error) => tracing::warn!(%error, "a group does not expire yet"),
            }
        }
    }
}

/// Since when a node is gone, if it is. One that has said that it stops is so from now on.
fn gone_since(node: &Node, other: &command::Node) -> Option<Instant> {
    let (id, now) = (other.node_id(), Instant::now());
    if id == node.id() || node.heard().is_alive(id, ALIVE_WITHIN) {
        return None;
    }
    let silence = node.heard().silence(id, other.incarnation);
    let was_heard = silence < ALIVE_WITHIN * 2;
    Some(if was_heard { now.checked_sub(silence).unwrap_or(now) } else { now })
}

/// Changes when a topic is made, deleted or gets partitions.
fn digest_of_topics(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for topic in state.topics() {
        (topic.id, topic.partitions.len()).hash(&mut hasher);
    }
    hasher.finish()
}

fn is_expired(group: &Group, now_ms: i64) -> bool {
    let idle_ms = now_ms.saturating_sub(group.idle_since_ms);
    let max_ms = i64::try_from(group.expire_after_idle_ms).unwrap_or(i64::MAX);
    group.members.is_empty() && max_ms > 0 && idle_ms > max_ms
}
