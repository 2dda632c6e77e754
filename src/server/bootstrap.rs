//! Bootstrap: how a node finds its cluster, or founds one with its seeds, and becomes part of it.
//!
//! See [`Door`] for the rules by which a cluster is founded once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::ports::Readiness;
use crate::cluster::command::{Node, RegisterNode, Verb};
use crate::cluster::{FOUNDING_INCARNATION, Founder, Founding, Identity, Metadata, Refusal};
use crate::raft::{Membership, create_replica};
use crate::rpc::peer::{self, Door, Introduction, ProposeError};
use crate::storage::{self, DataDir};
use crate::types::{NodeId, ReplicaId};

/// Voters that the metadata has at most.
pub(super) const VOTERS_MAX: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// How often a node that waits says for whom.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// How long a node with an empty directory waits for its predecessor to be taken for dead.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(60);

/// Why a node cannot become part of a cluster.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// What storage said.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The seeds belong to more than one cluster.
    #[error("the seeds belong to different clusters, {0} and {1}; correct --seeds")]
    TwoClusters(Uuid, Uuid),
    /// The node at a seed's address is another one.
    #[error("the seed {expected}@{address} says that it is node {found}; correct --seeds")]
    OtherSeed {
        /// The id in the list.
        expected: u64,
        /// The address in the list.
        address: String,
        /// The id that the node has.
        found: u64,
    },
    /// The cluster does not want the node.
    #[error("the cluster refuses this node: {0}")]
    Refused(Refusal),
}

/// Another node to ask at the beginning.
pub type Seed = (NodeId, String);

/// What a node needs to become part of a cluster that it has found.
pub(super) struct Joining<'a> {
    pub(super) founding: &'a Founding,
    pub(super) registration: &'a Node,
    pub(super) seeds: &'a [Seed],
}

/// Waits until the node behind `door` knows its cluster, founding one if that is its part.
///
/// # Errors
/// [`BootstrapError`].
pub(super) async fn find_cluster(
    door: &Arc<Door>,
    seeds: &[Seed],
    is_joining: bool,
    readiness: &Readiness,
) -> Result<Founding, BootstrapError> {
    let identity = door.identity();
    let mut said = Instant::now();
    loop {
        if let Some(founding) = door.founding() {
            return Ok(founding);
        }
        let mut told = Vec::new();
        let mut silent = Vec::new();
        for (node, address) in seeds.iter().filter(|(node, _)| *node != identity.node_id()) {
            match peer::introduce(address, &identity).await {
                Ok(introduction) => told.push(check(introduction, *node, address)?),
                Err(error) => silent.push(format!("{node}@{address} ({error})")),
            }
        }
        if let Some(founding) = common(&told)? {
            return Ok(door.adopt(&founding)?);
        }
        let is_first = told.iter().all(|seed| identity.node_id() < seed.node);
        if silent.is_empty() && is_first && !is_joining {
            return found(door, &identity, seeds, &told).await;
        }
        let reason = match silent.is_empty() {
            true => "waiting for the seeds to be in a cluster".to_owned(),
            false => format!("waiting for the seeds {}", silent.join(", ")),
        };
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            tracing::info!("{reason}");
        }
        readiness.wait_for(reason);
        sleep(PAUSE).await;
    }
}

fn check(
    introduction: Introduction,
    expected: NodeId,
    address: &str,
) -> Result<Introduction, BootstrapError> {
    if introduction.node == expected {
        return Ok(introduction);
    }
    let (expected, found) = (expected.0, introduction.node.0);
    Err(BootstrapError::OtherSeed { expected, address: address.to_owned(), found })
}

/// The cluster that those of the seeds are in that are in one.
fn common(told: &[Introduction]) -> Result<Option<Founding>, BootstrapError> {
    let mut found: Option<&Founding> = None;
    for founding in told.iter().filter_map(|seed| seed.founding.as_ref()) {
        let other = found.filter(|found| found.cluster != founding.cluster);
        if let Some(other) = other {
            let (one, two) = (other.cluster.uuid(), founding.cluster.uuid());
            return Err(BootstrapError::TwoClusters(one, two));
        }
        found = Some(founding);
    }
    Ok(found.cloned())
}

async fn found(
    door: &Arc<Door>,
    identity: &Identity,
    seeds: &[Seed],
    told: &[Introduction],
) -> Result<Founding, BootstrapError> {
    let directory_of = |node: NodeId| match node == identity.node_id() {
        true => Some(identity.directory),
        false => told.iter().find(|seed| seed.node == node).map(|seed| seed.directory),
    };
    let founder = |(node, address): &Seed| {
        let (node, peer_address) = (*node, address.clone());
        directory_of(node).map(|directory| Founder { node: node.0, directory, peer_address })
    };
    let mut founders: Vec<Founder> = seeds.iter().filter_map(founder).collect();
    founders.sort_by_key(|founder| founder.node);
    let founding = Founding { cluster: Uuid::new_v4().into(), founders };
    let founding = door.adopt(&founding)?;
    tracing::info!(cluster = %founding.cluster.uuid(), nodes = founding.founders.len(), "founded");
    for (_, address) in seeds.iter().filter(|(node, _)| *node != identity.node_id()) {
        if let Err(error) = peer::found(address, &founding).await {
            // It asks by itself soon.
            tracing::info!(%address, %error, "a seed does not know of the cluster yet");
        }
    }
    Ok(founding)
}

/// Gets the node its incarnation and its replica of the metadata, if it has none yet.
///
/// # Errors
/// [`BootstrapError`].
pub(super) async fn take_part(
    door: &Arc<Door>,
    dir: &Arc<DataDir>,
    joining: &Joining<'_>,
    readiness: &Readiness,
) -> Result<Identity, BootstrapError> {
    let (founding, identity) = (joining.founding, door.identity());
    if identity.incarnation != 0 {
        return Ok(identity);
    }
    let is_founder = founding.is_founder(identity.node_id(), identity.directory);
    let (members, incarnation) = if is_founder {
        (Some(first_members(founding)), FOUNDING_INCARNATION)
    } else {
        (None, join(joining, readiness).await?)
    };
    let log = founding.metadata_log();
    let (door, dir) = (door.clone(), dir.clone());
    let made = tokio::task::spawn_blocking(move || {
        if dir.logs()?.contains(&log) {
            // It was being made when the process ended, and was never used.
            dir.delete_log(log)?;
        }
        // DURABILITY: the replica is on disk before the identity says that there is one.
        create_replica::<Metadata>(&dir, log, members.as_ref())?.sync()?;
        dir.journal().sync()?;
        door.become_incarnation(incarnation)
    });
    Ok(made.await.expect("making the metadata's replica does not panic")?)
}

/// The metadata's first replicas: alike on all founders.
fn first_members(founding: &Founding) -> Membership {
    let replicas = founding.founders.iter();
    let replicas = replicas.map(|f| ReplicaId::new(NodeId(f.node), FOUNDING_INCARNATION));
    let mut members = Membership::of_voters(replicas);
    members.learners = members.voters.split_off(members.voters.len().min(VOTERS_MAX));
    members
}

/// Registers a node that is not among the founders, and returns its incarnation.
async fn join(joining: &Joining<'_>, readiness: &Readiness) -> Result<u64, BootstrapError> {
    let Joining { founding, registration, seeds } = *joining;
    let founders = founding.founders.iter().map(|founder| &founder.peer_address);
    let mut addresses: Vec<_> = founders.chain(seeds.iter().map(|seed| &seed.1)).collect();
    addresses.retain(|address| **address != registration.peer_address);
    addresses.dedup();
    let node = registration.clone();
    let verb = Verb::RegisterNode(RegisterNode { node, is_founder: false, replaces: None });
    let started = Instant::now();
    let mut has_said = false;
    loop {
        for address in &addresses {
            match peer::propose_at(address, founding.cluster_id(), verb.clone()).await {
                Ok(proposed) => return Ok(proposed.given),
                Err(ProposeError::Refused(refusal)) => {
                    let is_waiting = matches!(refusal, Refusal::NodeInUse(_));
                    if !is_waiting || started.elapsed() > PREDECESSOR_PATIENCE {
                        return Err(BootstrapError::Refused(refusal));
                    }
                    if !has_said {
                        tracing::info!(%refusal, "waiting until the other directory is silent");
                        has_said = true;
                    }
                    readiness.wait_for(format!("waiting to be registered: {refusal}"));
                }
                Err(error) => {
                    tracing::debug!(%address, %error, "cannot join yet");
                    readiness.wait_for(format!("waiting to be registered: {error}"));
                }
            }
        }
        sleep(PAUSE).await;
    }
}
