//! The registry: the replicas that run on this node, kept as the metadata wants them.
//!
//! # Rules
//! * **Nothing unknown is deleted.** A log goes only if the metadata says that its topic was
//!   deleted, or that the group's replicas are others by now. What the metadata does not know stays
//!   where it is.
//! * **A replica exists once it is written down.** Its log and its hard state are on disk before
//!   the journal says which replica is here. A log without such a fact was never used, and is made
//!   anew; a fact without a log is a replica that is lost, and is never made anew under its id.
//! * **Only who knows the present makes and deletes.** A node that has just started may know a past
//!   in which a replica was here that it has deleted since. Made anew, that replica would have
//!   forgotten its votes.
//! * **One at a time.** Only [`Registry::reconcile`] opens, makes and deletes logs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, RwLock};

use super::command::{Partition, Topic, topic_of};
use super::identity::{note_replica, replica_here};
use super::state::State;
use crate::partition::{Handle, Replica, Room};
use crate::raft::{Durability, Host, Membership, OpenError, Refused, create_replica, open_replica};
use crate::storage::{self, DataDir, Log, SyncRequest};
use crate::types::{LogId, NodeId, ReplicaId};

/// Replicas that are made with one round of syncs.
const CREATED_TOGETHER_MAX: usize = 256;

/// A replica that the metadata wants here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    replica: ReplicaId,
    durability: Durability,
    /// The group's first members, if this replica is one of them.
    founders: Option<Membership>,
    /// What its log may take.
    kept_bytes: Option<u64>,
}

/// A replica that cannot be brought back: it needs a successor with another id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostReplica {
    /// Its log.
    pub log: LogId,
    /// The replica.
    pub replica: ReplicaId,
    /// Why.
    pub reason: String,
}

/// Why reconciling ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// What storage said. Without space the same may succeed later; all else is final.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The node is stopping.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// A replica that runs here.
#[derive(Debug, Clone)]
struct Running {
    replica: ReplicaId,
    handle: Handle,
    /// What its log may take, as it was told.
    kept_bytes: Option<u64>,
}

/// The replicas that run on this node.
#[derive(Debug)]
pub struct Registry {
    node: NodeId,
    dir: Arc<DataDir>,
    host: Arc<Host<Replica>>,
    room: Room,
    running: RwLock<HashMap<LogId, Running>>,
}

impl Registry {
    /// A registry without replicas. Appends of all partitions share `room`.
    pub fn new(node: NodeId, dir: Arc<DataDir>, host: Arc<Host<Replica>>, room: Room) -> Self {
        Self { node, dir, host, room, running: RwLock::default() }
    }

    /// The replica of a log, if it runs here.
    pub fn get(&self, log: LogId) -> Option<Handle> {
        let running = self.running.read().expect("nobody panics with the lock");
        running.get(&log).map(|running| running.handle.clone())
    }

    /// The id of the replica that runs here.
    pub fn replica(&self, log: LogId) -> Option<ReplicaId> {
        let running = self.running.read().expect("nobody panics with the lock");
        running.get(&log).map(|running| running.replica)
    }

    /// All replicas that run here.
    pub fn handles(&self) -> Vec<Handle> {
        let running = self.running.read().expect("nobody panics with the lock");
        running.values().map(|running| running.handle.clone()).collect()
    }

    /// The room that appends of all of them share.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// How many run here.
    pub fn len(&self) -> usize {
        self.running.read().expect("nobody panics with the lock").len()
    }

    /// True if none runs here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all replicas: they are about to stop with their host.
    pub(super) fn clear(&self) {
        self.running.write().expect("nobody panics with the lock").clear();
    }

    /// Brings what runs here to what `state` wants, and returns the replicas that are lost.
    ///
    /// Unless `is_current`, the state may be one of the past: replicas that are here are opened,
    /// and nothing else is done. Waits for disks: not to be called where others wait.
    ///
    /// # Errors
    /// [`ReconcileError`]; what was done until then stays.
    pub fn reconcile(
        &self,
        state: &State,
        is_current: bool,
    ) -> Result<Vec<LostReplica>, ReconcileError> {
        let wanted = self.wanted(state);
        if is_current {
            self.remove_outdated(state, &wanted)?;
        }
        let mut lost = Vec::new();
        let mut missing = Vec::new();
        let there: BTreeSet<LogId> = self.dir.logs()?.into_iter().collect();
        for (log, wanted) in &wanted {
            if self.replica(*log).is_some() {
                continue;
            }
            match (replica_here(&self.dir, *log), there.contains(log)) {
                (Some(_), true) => self.open(*log, wanted, &mut lost)?,
                _ if !is_current => {}
                (Some(replica), false) if replica == wanted.replica => {
                    let reason = "its files are gone".to_owned();
                    lost.push(LostReplica { log: *log, replica, reason });
                }
                (Some(replica), false) => {
                    tracing::warn!(%log, %replica, "a lost replica has a successor");
                    // DURABILITY: what the lost one promised is nothing to its successor, which
                    // has another id; and it must not be taken for it.
                    self.dir.journal().forget(*log)?;
                    self.dir.journal().sync()?;
                    missing.push((*log, wanted));
                }
                (None, is_there) => {
                    if is_there {
                        // It was being made when the process ended.
                        self.dir.delete_log(*log)?;
                    }
                    missing.push((*log, wanted));
                }
            }
        }
        for some in missing.chunks(CREATED_TOGETHER_MAX) {
            self.create(some)?;
            for (log, wanted) in some {
                self.open(*log, wanted, &mut lost)?;
            }
        }
        if is_current {
            self.bound(&wanted)?;
        }
        Ok(lost)
    }

    fn wanted(&self, state: &State) -> BTreeMap<LogId, Wanted> {
        let here = |topic: &Topic, partition: &Partition| {
            let replica = partition.replica_on(self.node)?;
            let is_founder = partition.founders.contains(&replica.0);
            let founders = partition.founders.iter().copied().map(ReplicaId);
            let durability = match topic.config.is_memory {
                true => Durability::Memory,
                false => Durability::Fsync,
            };
            let founders = is_founder.then(|| Membership::of_voters(founders));
            let kept_bytes = topic.config.retention_bytes;
            Some(Wanted { replica, durability, founders, kept_bytes })
        };
        let mut wanted = BTreeMap::new();
        for topic in state.topics() {
            for (n, partition) in topic.partitions.iter().enumerate() {
                if let Some(replica) = here(topic, partition) {
                    wanted.insert(topic.log_id(n as u32), replica);
                }
            }
        }
        wanted
    }

    /// Removes replicas of deleted topics, and those that their groups do not know any more.
    fn remove_outdated(
        &self,
        state: &State,
        wanted: &BTreeMap<LogId, Wanted>,
    ) -> Result<(), ReconcileError> {
        for log in self.dir.logs()? {
            let Some((topic, partition)) = topic_of(log) else { continue };
            if state.is_deleted(topic) {
                tracing::info!(%log, "the topic was deleted, so the log goes");
                self.close(log)?;
                self.dir.delete_log(log)?;
                continue;
            }
            let known = state.topic(topic).and_then(|t| t.partitions.get(partition as usize));
            let (Some(known), Some(here)) = (known, replica_here(&self.dir, log)) else { continue };
            let is_wanted = wanted.get(&log).is_some_and(|wanted| wanted.replica == here);
            if is_wanted {
                continue;
            }
            if !known.all_replicas().any(|replica| replica == here) {
                tracing::info!(%log, replica = %here, "the replica was moved away, so it goes");
                self.close(log)?;
                self.dir.delete_log(log)?;
            } else if self.replica(log).is_none() {
                tracing::warn!(%log, replica = %here, "a lost replica is set aside");
                self.dir.quarantine_log(log)?;
                self.dir.journal().forget(log)?;
                self.dir.journal().sync()?;
            }
        }
        Ok(())
    }

    /// Tells replicas what their logs may take, where that has changed.
    ///
    /// DURABILITY: not by a state of the past: what a smaller bound drops is gone.
    fn bound(&self, wanted: &BTreeMap<LogId, Wanted>) -> Result<(), ReconcileError> {
        let mut running = self.running.write().expect("nobody panics with the lock");
        for (log, running) in running.iter_mut() {
            let Some(wanted) = wanted.get(log) else { continue };
            if running.kept_bytes != wanted.kept_bytes {
                self.host.keep_within(*log, wanted.kept_bytes)?;
                running.kept_bytes = wanted.kept_bytes;
            }
        }
        Ok(())
    }

    fn close(&self, log: LogId) -> Result<(), ReconcileError> {
        let removed = self.running.write().expect("nobody panics with the lock").remove(&log);
        if removed.is_none() {
            return Ok(());
        }
        let closed = self.host.close(log)?;
        closed.blocking_recv().map_err(|_| Refused::Stopped)??;
        Ok(())
    }

    /// Makes replicas, and writes down that they are here once they are on disk.
    fn create(&self, missing: &[(LogId, &Wanted)]) -> Result<(), ReconcileError> {
        let mut logs = Vec::with_capacity(missing.len());
        for (log, wanted) in missing {
            logs.push(create_replica::<Replica>(&self.dir, *log, wanted.founders.as_ref())?);
        }
        // DURABILITY: files and hard states first, the facts that rest on them second.
        self.sync(&logs)?;
        for (log, wanted) in missing {
            note_replica(&self.dir, *log, wanted.replica)?;
        }
        self.dir.journal().sync()?;
        Ok(())
    }

    fn sync(&self, logs: &[Log]) -> storage::Result<()> {
        let (done, rounds) = sync_channel(logs.len().max(1));
        let on_round = move |round: storage::Result<&[u64]>| {
            // Whoever waits has gone only if a round failed.
            let _ = done.send(round.map(<[u64]>::len));
        };
        let syncer = self.dir.start_syncer(Box::new(on_round));
        for log in logs {
            syncer.submit(SyncRequest { log: Some(log.syncer_handle()), token: 0 });
        }
        let mut synced = 0;
        while synced < logs.len() {
            synced += rounds.recv().expect("the syncer reports every round")?;
        }
        self.dir.journal().sync().map(drop)
    }

    fn open(
        &self,
        log: LogId,
        wanted: &Wanted,
        lost: &mut Vec<LostReplica>,
    ) -> Result<(), ReconcileError> {
        let Some(replica) = replica_here(&self.dir, log).filter(|here| *here == wanted.replica)
        else {
            // An older replica that is still counted, and runs or is lost: see `remove_outdated`.
            return Ok(());
        };
        match open_replica::<Replica>(&self.dir, log, replica, wanted.durability) {
            Ok(opened) => {
                let hosted = self.host.open(opened)?;
                let handle = Handle::new(log, self.host.clone(), hosted, self.room.clone());
                let mut running = self.running.write().expect("nobody panics with the lock");
                running.insert(log, Running { replica, handle, kept_bytes: None });
                Ok(())
            }
            Err(OpenError::Storage(error @ storage::Error::Failed { .. })) => Err(error.into()),
            Err(OpenError::Fault { fault, .. }) => {
                // Another version may be able to follow it: see `Fault`.
                tracing::error!(%log, %replica, %fault, "a replica cannot be opened");
                Ok(())
            }
            Err(error) => {
                tracing::error!(%log, %replica, %error, "a replica is lost");
                lost.push(LostReplica { log, replica, reason: error.to_string() });
                Ok(())
            }
        }
    }
}
