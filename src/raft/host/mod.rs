//! A host: the shards of a node, each on a thread of its own.
//!
//! ```text
//! callers ──mail──▶ shard 0..n ──requests──▶ sync threads ──tokens──▶ shard
//! peers  ──frames─▶ (one thread   ──frames──▶ the network
//!                    each)        ──reads───▶ reading threads ──entries─▶ shard
//! ```
//!
//! A shard's thread never waits for a disk or for the network: it writes into the page cache, and
//! hands everything else on. While it sleeps, others may take its turns (see `desk`). All mailboxes
//! are bounded. Whoever asks finds a full one and is told so; what a peer sends is dropped, because
//! Raft repeats it; what must not be lost, the news of what is durable, waits for room, which the
//! shard always makes.

mod counts;
mod desk;
mod inbox;
mod turn;

use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use bytes::Buf;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use self::counts::Counters;
pub use self::counts::Counts;
use self::desk::{Desk, Guests};
use self::inbox::NotTaken;
use self::turn::{ColdJob, Turn};
use super::config::Config;
use super::envelope::{Envelope, Lane, MessageKind};
use super::error::NotProposed;
use super::group::{Look, mix};
use super::input::Input;
use super::machine::Machine;
use super::membership::Operation;
use super::open::Opened;
use super::outputs::Published;
use super::wire::{Frame, FrameError, Route};
use crate::storage::{self, DataDir, LogReader, Policy, Syncer};
use crate::types::{ClusterId, LogId, NodeId, ReplicaId};

/// Mails that wait for one shard.
const INBOX_MAX: usize = 4096;
/// Bits of a token that count; those above name the shard.
const TOKEN_BITS: u32 = 48;

/// Sends a frame to a node. False if it was not taken; it then counts as lost.
pub type SendFrame = Arc<dyn Fn(NodeId, Lane, Frame) -> bool + Send + Sync>;
/// Told of the error that ends all writing on this node. The process should end.
pub type OnFatal = Arc<dyn Fn(&storage::Error) + Send + Sync>;

/// Who a host is, and how large.
#[derive(Clone)]
pub struct HostConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Times and bounds of its groups.
    pub raft: Config,
    /// Shards; one thread each.
    pub shards: usize,
    /// Whoever asks, delivers a frame or reports a sync may take the turn of a shard that sleeps.
    /// It may then have to wait for the disk for a while, though never two at once of those who ask
    /// and deliver: tasks may do so if at least two threads run them.
    pub lets_guests_in: bool,
    /// Threads that read from disk for followers far behind.
    pub readers: usize,
    /// Decides the election timeouts. Nodes have different ones.
    pub seed: u64,
    /// The way out.
    pub send: SendFrame,
    /// What happens when the disk failed.
    pub on_fatal: OnFatal,
}

/// An answer's way back, and what is held until it is given: the room that the ask takes.
#[derive(Debug)]
pub struct Reply<A> {
    /// Takes the answer.
    pub sender: oneshot::Sender<A>,
    /// Given back with the answer, also if nobody waits for it any more.
    pub hold: Option<OwnedSemaphorePermit>,
}

/// Why a host did not take an ask. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too much waits already: try again in a moment.
    #[error("the node has too much to do; try again in a moment")]
    Overloaded,
    /// The host is stopping, or its disk failed.
    #[error("the node is stopping")]
    Stopped,
}

/// A replica on this host, as others see it.
#[derive(Debug, Clone)]
pub struct Hosted {
    /// What the replica says of itself. Closed when the replica stops.
    pub published: watch::Receiver<Published>,
    /// Its log.
    pub reader: LogReader,
}

/// The shards of a node.
pub struct Host<M: Machine> {
    config: HostConfig,
    dir: Arc<DataDir>,
    desks: Vec<Arc<Desk<M>>>,
    counters: Arc<Counters>,
    /// Shards and readers; none once the host has stopped.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a shard's thread is told.
enum Mail<M: Machine> {
    Open(Box<Opened<M>>, watch::Sender<Published>),
    Close(LogId, oneshot::Sender<storage::Result<()>>),
    Envelopes(Vec<Envelope>),
    Ask {
        group: LogId,
        ask: M::Ask,
        reply: Reply<M::Answer>,
    },
    Transfer {
        group: LogId,
        to: ReplicaId,
        reply: oneshot::Sender<Result<u64, NotProposed>>,
    },
    Change {
        group: LogId,
        operations: Vec<Operation>,
        reply: oneshot::Sender<Result<u64, NotProposed>>,
    },
    Inspect(LogId, oneshot::Sender<Look>),
    Synced(storage::Result<Vec<u64>>),
    Read(Input<M>),
    /// What a log may take.
    KeepWithin(LogId, Option<u64>),
    /// A policy, or what the last one says of the size.
    Retain(LogId, Option<Policy>),
    Stop,
}

impl<M> Host<M>
where
    M: Machine + Send + 'static,
    M::Ask: Send,
    M::Answer: Send,
{
    /// Starts the threads of a host without replicas.
    ///
    /// # Panics
    /// If there are no shards or no readers, or the system starts no thread.
    pub fn start(config: HostConfig, dir: Arc<DataDir>) -> Self {
        assert!(config.shards > 0 && config.readers > 0, "a host has shards and readers");
        let guests = Guests::new(config.lets_guests_in);
        let desks: Vec<_> = (0..config.shards).map(|_| Desk::new(INBOX_MAX, &guests)).collect();
        let counters = Arc::new(Counters::default());
        let syncer = Arc::new(dir.start_syncer(Box::new(report_to(desks.clone()))));
        let (cold, jobs) = sync_channel(config.raft.cold_reads_max);
        let readers = start_readers(config.readers, jobs, &desks);
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let life = mix(config.seed ^ since_1970.map_or(0, |elapsed| elapsed.as_nanos() as u64));
        let start = |(n, desk): (usize, &Arc<Desk<M>>)| {
            let turn = Turn::new((n, life), &config, &dir, &syncer, &counters, cold.clone());
            let (name, desk) = (format!("quipu-shard-{n}"), desk.clone());
            let spawned = thread::Builder::new().name(name).spawn(move || desk.work(turn));
            spawned.expect("the system starts a thread")
        };
        let shards = desks.iter().enumerate().map(start);
        let threads = Mutex::new(shards.chain(readers).collect());
        Self { config, dir, desks, counters, threads }
    }

    /// The data directory.
    pub fn dir(&self) -> &Arc<DataDir> {
        &self.dir
    }

    /// What was dropped, lost and refused so far.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// How often a replica here has had another role, term or leader than before. Replicas that
    /// are new or gone do not count.
    pub fn role_changes(&self) -> u64 {
        self.counters.role_changes()
    }

    /// Starts a replica that was opened or made.
    ///
    /// # Errors
    /// [`Refused::Stopped`].
    pub fn open(&self, opened: Opened<M>) -> Result<Hosted, Refused> {
        let (group, reader) = (opened.log.id(), opened.log.reader());
        let (sender, published) = watch::channel(Published::unknown(group));
        let mail = Mail::Open(Box::new(opened), sender);
        self.desk(group).leave_surely(mail).map_err(|_| Refused::Stopped)?;
        Ok(Hosted { published, reader })
    }

    /// Stops a replica and closes its log in order. Whoever waits for an answer of it is told that
    /// the outcome is unknown.
    ///
    /// # Errors
    /// [`Refused::Stopped`]; the receiver tells what closing the log came to.
    pub fn close(&self, group: LogId) -> Result<oneshot::Receiver<storage::Result<()>>, Refused> {
        let (sender, receiver) = oneshot::channel();
        let mail = Mail::Close(group, sender);
        self.desk(group).leave_surely(mail).map_err(|_| Refused::Stopped)?;
        Ok(receiver)
    }

    /// True if entries of a group wait for space on the disk, as of a moment ago: what is asked of
    /// it now would wait as well.
    pub fn is_stalled(&self, group: LogId) -> bool {
        self.counters.is_stalled(group)
    }

    /// Asks a group something.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn ask(&self, group: LogId, ask: M::Ask, reply: Reply<M::Answer>) -> Result<(), Refused> {
        self.post(group, Mail::Ask { group, ask, reply })
    }

    /// Asks a group something that is to be worked on at once, if the shard has nothing else to do:
    /// not for one of many things that come together, which are done together.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn ask_at_once(
        &self,
        group: LogId,
        ask: M::Ask,
        reply: Reply<M::Answer>,
    ) -> Result<(), Refused> {
        self.desk(group).bring(Mail::Ask { group, ask, reply }).map_err(refused)
    }

    /// Moves leadership of a group to `to`.
    ///
    /// # Errors
    /// [`Refused`]; the receiver tells whether the leader began.
    pub fn transfer(
        &self,
        group: LogId,
        to: ReplicaId,
    ) -> Result<oneshot::Receiver<Result<u64, NotProposed>>, Refused> {
        let (reply, receiver) = oneshot::channel();
        self.post(group, Mail::Transfer { group, to, reply })?;
        Ok(receiver)
    }

    /// Changes the replicas of a group.
    ///
    /// # Errors
    /// [`Refused`]; the receiver tells whether the leader began, and the index of the first step.
    pub fn change(
        &self,
        group: LogId,
        operations: Vec<Operation>,
    ) -> Result<oneshot::Receiver<Result<u64, NotProposed>>, Refused> {
        let (reply, receiver) = oneshot::channel();
        self.post(group, Mail::Change { group, operations, reply })?;
        Ok(receiver)
    }

    /// Looks at a group.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn inspect(&self, group: LogId) -> Result<oneshot::Receiver<Look>, Refused> {
        let (reply, receiver) = oneshot::channel();
        self.post(group, Mail::Inspect(group, reply))?;
        Ok(receiver)
    }

    /// Applies a retention policy to a group's log, soon. From then on the log keeps to the size
    /// that the policy allows by itself.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn retain(&self, group: LogId, policy: Policy) -> Result<(), Refused> {
        self.post(group, Mail::Retain(group, Some(policy)))
    }

    /// Sets what a group's log may take; `None` for no bound.
    ///
    /// # Errors
    /// [`Refused::Stopped`].
    pub fn keep_within(&self, group: LogId, kept_bytes: Option<u64>) -> Result<(), Refused> {
        let mail = Mail::KeepWithin(group, kept_bytes);
        self.desk(group).leave_surely(mail).map_err(|_| Refused::Stopped)
    }

    /// Keeps a group's log to its size, and removes the files of what it gave up before, soon.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn reclaim(&self, group: LogId) -> Result<(), Refused> {
        self.post(group, Mail::Retain(group, None))
    }

    /// Takes a frame that came from `from`. What the shards have no room for is dropped.
    ///
    /// # Errors
    /// [`FrameError`]: it was counted, and nothing of it was used.
    pub fn deliver(&self, from: NodeId, bytes: impl Buf) -> Result<(), FrameError> {
        let route = Route { cluster: self.config.cluster, from, to: self.config.node };
        let envelopes = Frame::decode(&route, bytes);
        let envelopes = envelopes.inspect_err(|_| self.counters.frame_refused())?;
        let mut bundles: Vec<Vec<Envelope>> = self.desks.iter().map(|_| Vec::new()).collect();
        for envelope in envelopes {
            if envelope.kind == MessageKind::Alive {
                bundles.iter_mut().for_each(|bundle| bundle.push(envelope.clone()));
                continue;
            }
            bundles[shard_of(envelope.group, self.desks.len())].push(envelope);
        }
        // Where several shards have news, none of them waits for the turn of another.
        let is_for_one = bundles.iter().filter(|bundle| !bundle.is_empty()).count() == 1;
        for (desk, bundle) in self.desks.iter().zip(bundles) {
            if bundle.is_empty() {
                continue;
            }
            let mail = Mail::Envelopes(bundle);
            let brought = if is_for_one { desk.bring(mail) } else { desk.leave(mail) };
            if brought.is_err() {
                self.counters.bundle_dropped();
            }
        }
        Ok(())
    }

    /// Stops all replicas, closes their logs in order and ends the threads.
    /// Asked for anything later, it is stopped.
    pub fn stop(&self) {
        self.end();
    }
}

impl<M: Machine> Host<M> {
    fn desk(&self, group: LogId) -> &Desk<M> {
        &self.desks[shard_of(group, self.desks.len())]
    }

    fn post(&self, group: LogId, mail: Mail<M>) -> Result<(), Refused> {
        self.desk(group).leave(mail).map_err(refused)
    }

    fn end(&self) {
        let mut threads = self.threads.lock().expect("nobody panics with the lock");
        assert!(
            threads.is_empty() || self.desks.len() < threads.len(),
            "{} shards and their readers have {} threads",
            self.desks.len(),
            threads.len()
        );
        for desk in &self.desks {
            // A shard that is gone already needs no telling.
            let _ = desk.leave_surely(Mail::Stop);
        }
        for thread in threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the host panicked");
            }
        }
    }
}

impl<M: Machine> Drop for Host<M> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<M: Machine> std::fmt::Debug for Host<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("node", &self.config.node).finish_non_exhaustive()
    }
}

fn refused(error: NotTaken) -> Refused {
    match error {
        NotTaken::Full => Refused::Overloaded,
        NotTaken::Gone => Refused::Stopped,
    }
}

/// Which shard a group is in. Ids are random.
fn shard_of(group: LogId, shards: usize) -> usize {
    (mix(group.0.as_u64_pair().1) % shards as u64) as usize
}

/// Tells each shard which of its tokens are done.
fn report_to<M: Machine>(desks: Vec<Arc<Desk<M>>>) -> impl Fn(storage::Result<&[u64]>) {
    move |round| {
        let of_shard = |n: usize| {
            round.clone().map(|tokens| {
                let is_own = |token: &&u64| *token >> TOKEN_BITS == n as u64;
                tokens.iter().filter(is_own).copied().collect::<Vec<_>>()
            })
        };
        let is_news =
            |own: &storage::Result<Vec<u64>>| own.as_ref().map_or(true, |t| !t.is_empty());
        let news = desks.iter().enumerate().map(|(n, desk)| (desk, of_shard(n)));
        let news: Vec<_> = news.filter(|(_, own)| is_news(own)).collect();
        // Where several shards have news, none of them waits for the turn of another.
        let is_for_one = news.len() == 1;
        for (desk, own) in news {
            let mail = Mail::Synced(own);
            let brought =
                if is_for_one { desk.bring_surely(mail) } else { desk.leave_surely(mail) };
            // A shard that is gone waits for nothing.
            let _ = brought;
        }
    }
}

fn start_readers<M>(
    count: usize,
    jobs: Receiver<ColdJob>,
    desks: &[Arc<Desk<M>>],
) -> Vec<JoinHandle<()>>
where
    M: Machine + Send + 'static,
    M::Ask: Send,
    M::Answer: Send,
{
    let jobs = Arc::new(std::sync::Mutex::new(jobs));
    let start = |n| {
        let (jobs, desks) = (jobs.clone(), desks.to_vec());
        let work = move || {
            loop {
                let job = jobs.lock().expect("no reading thread panics with the lock").recv();
                let Ok(job) = job else { return };
                // A shard that is gone waits for nothing.
                if let Some(input) = job.read() {
                    let _ = desks[job.shard].leave_surely(Mail::Read(input));
                }
            }
        };
        let spawned = thread::Builder::new().name(format!("quipu-read-{n}")).spawn(work);
        spawned.expect("the system starts a thread")
    };
    (0..count).map(start).collect()
}

/// The syncer that the shards share.
type SharedSyncer = Arc<Syncer>;
