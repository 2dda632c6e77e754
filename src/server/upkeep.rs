//! Upkeep: a node's replicas as the metadata wants them, and the node's own entry in the
//! metadata.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::ports::Readiness;
use crate::cluster::command::{self, RegisterNode, ReplaceReplica, Verb, topic_of};
use crate::cluster::{LostReplica, Node, ReconcileError, Refusal};
use crate::rpc::peer::{ProposeError, Proposer};
use crate::storage;

const DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait before what failed is tried again without news.
const RETRY: Duration = Duration::from_secs(5);

/// Asks, until somebody answers, how far the metadata is: a state at or beyond that is the present.
pub(super) async fn find_present(proposer: Proposer, present: watch::Sender<Option<u64>>) {
    loop {
        match proposer.committed(Instant::now() + DEADLINE).await {
            Ok(index) => {
                present.send_replace(Some(index));
                return;
            }
            Err(error) => tracing::info!(%error, "waiting for the metadata"),
        }
        sleep(PAUSE).await;
    }
}

/// Keeps replicas as the metadata wants them, for ever. Says so once they are.
pub(super) async fn reconcile(
    node: Arc<Node>,
    proposer: Proposer,
    mut present: watch::Receiver<Option<u64>>,
    readiness: Readiness,
    on_fatal: impl Fn(&str),
) {
    let mut states = node.watch_state();
    loop {
        let state = states.borrow_and_update().clone();
        let known = *present.borrow_and_update();
        let is_current = known.is_some_and(|index| state.applied_index() >= index);
        let (at, wanted) = (node.clone(), state.clone());
        let done =
            tokio::task::spawn_blocking(move || at.registry().reconcile(&wanted, is_current));
        let mut is_whole = false;
        match done.await.expect("reconciling does not panic") {
            Ok(lost) => {
                is_whole = lost.is_empty();
                for replica in lost.into_iter().filter(|_| is_current) {
                    replace(&proposer, &replica).await;
                }
            }
            Err(ReconcileError::Storage(error @ storage::Error::NoSpace { .. })) => {
                tracing::error!(%error, "replicas cannot be made");
            }
            Err(ReconcileError::Refused(_)) => return,
            Err(ReconcileError::Storage(error)) => {
                on_fatal(&error.to_string());
                return;
            }
        }
        // Others may tell of leaders before this node has heard of their topics, and do not tell
        // again soon: only what is known to be gone is forgotten.
        node.leaders()
            .retain(|log| topic_of(log).is_some_and(|(topic, _)| !state.is_deleted(topic)));
        if is_current && state.node(node.id()).is_some() {
            readiness.reach();
        }
        let news = async {
            tokio::select! {
                changed = states.changed() => changed.is_ok(),
                changed = present.changed(), if !is_current => changed.is_ok(),
            }
        };
        let patience = if is_whole { RETRY * 12 } else { RETRY };
        // Whatever failed is tried again after a while.
        let _ = timeout(patience, news).await;
    }
}

/// Has a lost replica replaced by one with another id.
async fn replace(proposer: &Proposer, lost: &LostReplica) {
    let Some((id, partition)) = topic_of(lost.log) else { return };
    tracing::warn!(log = %lost.log, replica = %lost.replica, reason = %lost.reason,
        "a lost replica is replaced");
    let verb = Verb::ReplaceReplica(ReplaceReplica { id, partition, replica: lost.replica.0 });
    if let Err(error) = proposer.propose(verb, Instant::now() + DEADLINE).await {
        tracing::warn!(%error, "a lost replica is not replaced yet");
    }
}

/// Sees to it that the metadata has this node as it is now.
///
/// # Errors
/// Another directory has taken this node's place.
pub(super) async fn register(
    node: Arc<Node>,
    proposer: Proposer,
    registration: command::Node,
    mut present: watch::Receiver<Option<u64>>,
) -> Result<(), Refusal> {
    let index = present.wait_for(Option::is_some).await.map_or(None, |index| *index);
    let state = node.wait_for_state(index.unwrap_or(0)).await;
    let founding = node.identity().founding.as_ref();
    let is_founder = founding.is_some_and(|f| f.is_founder(node.id(), node.identity().directory));
    let is_known = state.node(node.id()).is_some_and(|known| {
        let told = command::Node {
            incarnation: known.incarnation,
            state: known.state,
            ..registration.clone()
        };
        *known == told && known.incarnation == node.identity().incarnation
    });
    if is_known {
        return Ok(());
    }
    loop {
        let register = RegisterNode { node: registration.clone(), is_founder, replaces: None };
        let deadline = Instant::now() + DEADLINE;
        match proposer.propose(Verb::RegisterNode(register), deadline).await {
            Ok(_) => return Ok(()),
            Err(ProposeError::Refused(refusal)) => return Err(refusal),
            Err(error) => tracing::info!(%error, "the node is not registered yet"),
        }
        sleep(PAUSE).await;
    }
}
