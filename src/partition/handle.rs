//! Handles: what the rest of a server holds of a partition.
//!
//! An append takes room for its bytes first, and only then a place in a queue, so that what waits
//! is bounded in bytes as well as in number. Reads do not pass through the shard at all: they go to
//! the log, below the high watermark that the replica has shown.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::control::{Command, GroupId};
use super::error::Refusal;
use super::progress::Group;
use super::replica::{Acks, Ask, Batch, Replica, Response};
use super::state::Reply as Followed;
use crate::raft::{Durability, Host, Hosted, Published, Refused, Reply, Role};
use crate::storage::{self, Access, Entry, Kind, LogReader};
use crate::types::{LogId, ReplicaId};

/// A partition's replica on this node; a cheap clone.
#[derive(Debug, Clone)]
pub struct Handle {
    group: LogId,
    host: Arc<Host<Replica>>,
    hosted: Hosted,
    room: Room,
}

/// Room for the bytes of appends that wait; a cheap clone that shares it.
#[derive(Debug, Clone)]
pub struct Room {
    permits: Arc<Semaphore>,
    bytes: u32,
}

impl Room {
    /// Room for `bytes`, of all partitions that share it. A batch larger than that takes all of it.
    pub fn new(bytes: u32) -> Self {
        assert!(bytes > 0, "without room nothing can be appended");
        Self { permits: Arc::new(Semaphore::new(bytes as usize)), bytes }
    }

    /// How much of it is taken, and how much there is.
    pub fn used_bytes(&self) -> (u64, u64) {
        let free = self.permits.available_permits() as u64;
        (u64::from(self.bytes).saturating_sub(free), self.bytes.into())
    }

    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.bytes);
        self.permits.clone().acquire_many_owned(bytes).await.ok()
    }

    /// Takes room if there is some at once.
    fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).clamp(1, self.bytes);
        self.permits.clone().try_acquire_many_owned(bytes).ok()
    }
}

/// Where a batch was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: u64,
    /// What "stored" means in this partition.
    pub durability: Durability,
    /// An earlier attempt has stored it.
    pub is_duplicate: bool,
}

/// A batch that is on its way into the log: resolves to where it is stored. Submissions that were
/// taken one after another are appended in that order. If it is dropped, the outcome is unknown.
#[derive(Debug)]
pub struct Submitted {
    receiver: oneshot::Receiver<Response>,
}

impl Submitted {
    /// The outcome, if it is known already. To be asked no more once it was.
    pub fn try_outcome(&mut self) -> Option<Result<Appended, AskError>> {
        match self.receiver.try_recv() {
            Ok(response) => Some(appended(response)),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(AskError::Unknown)),
        }
    }
}

impl Future for Submitted {
    type Output = Result<Appended, AskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(Pin::new(&mut self.receiver).poll(cx));
        // A shard that ends without an answer may have written the batch.
        Poll::Ready(response.map_or(Err(AskError::Unknown), appended))
    }
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Record batches, in order. The first may begin below what was asked for.
    pub batches: Vec<Entry>,
    /// Where to go on.
    pub next_offset: u64,
    /// First offset that was not committed at the time. Everything read is below.
    pub high_watermark: u64,
    /// First offset that can be read.
    pub log_start: u64,
}

/// Why a partition did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing was changed: ask the leader.
    #[error("this replica does not lead the partition")]
    NotLeader {
        /// The leader, if known.
        leader: Option<ReplicaId>,
    },
    /// Nothing was changed: leadership is changing hands, try again.
    #[error("leadership is changing hands; try again")]
    Transferring,
    /// Nothing was changed, for this reason.
    #[error(transparent)]
    Refused(Refusal),
    /// Nothing was changed: what the partition was asked before waits for space on the disk.
    #[error("the disk of the partition's leader is full")]
    DiskFull,
    /// Nothing was changed: the node has too much to do, or is stopping.
    #[error(transparent)]
    NotTaken(#[from] Refused),
    /// It may be stored or not, now or later.
    #[error("the outcome is unknown: it may be stored or not; retry with the same sequence number")]
    Unknown,
}

impl AskError {
    /// True if the same request may succeed later, without a change by whoever sent it.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::Transferring
            | Self::DiskFull
            | Self::NotTaken(_)
            | Self::Unknown => true,
            Self::Refused(refusal) => refusal.is_retriable(),
        }
    }
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The offset is not in the log.
    #[error("offset {requested} cannot be read: the log has {log_start} up to {high_watermark}")]
    OutOfRange {
        /// What was asked for.
        requested: u64,
        /// First offset that can be read.
        log_start: u64,
        /// First offset that is not committed.
        high_watermark: u64,
    },
    /// What storage said. [`storage::Error::Cold`]: read again where waiting is allowed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Handle {
    /// A handle of a replica on `host`, whose appends share `room` with others.
    pub fn new(group: LogId, host: Arc<Host<Replica>>, hosted: Hosted, room: Room) -> Self {
        Self { group, host, hosted, room }
    }

    /// The partition.
    pub fn group(&self) -> LogId {
        self.group
    }

    /// Stores a batch, and waits for what `acks` asks for. The leader's answer only.
    ///
    /// Waits for room first. If the future is dropped after that, the outcome is unknown.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn append(&self, batch: Batch, acks: Acks) -> Result<Appended, AskError> {
        self.submit(batch, acks).await?.await
    }

    /// Sends a batch on its way once there is room for it. Until then the future can be dropped,
    /// and nothing has happened.
    ///
    /// # Errors
    /// [`AskError::NotTaken`], [`AskError::DiskFull`]: nothing has changed.
    pub async fn submit(&self, batch: Batch, acks: Acks) -> Result<Submitted, AskError> {
        self.check_disk()?;
        let hold = self.room.take(batch.payload.len()).await;
        self.send(Ask::Append { batch, acks }, hold)
    }

    /// Sends a batch on its way if there is room for it at once.
    ///
    /// # Errors
    /// [`AskError::NotTaken`], [`AskError::DiskFull`]: nothing has changed. Without room, the node
    /// is overloaded.
    pub fn try_submit(&self, batch: Batch, acks: Acks) -> Result<Submitted, AskError> {
        self.check_disk()?;
        let hold = self.room.try_take(batch.payload.len()).ok_or(Refused::Overloaded)?;
        self.send(Ask::Append { batch, acks }, Some(hold))
    }

    /// Lets nothing in that would wait for space behind what does already: it is better refused,
    /// as long as that is sure.
    fn check_disk(&self) -> Result<(), AskError> {
        if self.host.is_stalled(self.group) { Err(AskError::DiskFull) } else { Ok(()) }
    }

    fn send(&self, ask: Ask, hold: Option<OwnedSemaphorePermit>) -> Result<Submitted, AskError> {
        let (sender, receiver) = oneshot::channel();
        self.host.ask_at_once(self.group, ask, Reply { sender, hold })?;
        Ok(Submitted { receiver })
    }

    /// Has a command followed.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn command(&self, command: Command) -> Result<Followed, AskError> {
        let hold = self.room.take(1).await;
        match self.ask(Ask::Command(command), hold).await? {
            Response::Followed(reply) => Ok(reply),
            other => Err(error_of(&other)),
        }
    }

    /// Moves the log start to `offset` on all replicas, and returns where it is.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn delete_records(&self, offset: u64) -> Result<u64, AskError> {
        let hold = self.room.take(1).await;
        match self.ask(Ask::DeleteRecords(offset), hold).await? {
            Response::LogStart(offset) => Ok(offset),
            other => Err(error_of(&other)),
        }
    }

    /// The high watermark, as it surely was at some time after the question was asked.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn barrier(&self) -> Result<u64, AskError> {
        match self.ask(Ask::Barrier, None).await? {
            Response::Barrier { high_watermark } => Ok(high_watermark),
            other => Err(error_of(&other)),
        }
    }

    /// How far a consumer group has come, as far as this replica knows. `None` if it knows no such
    /// group. After a [`Self::barrier`] that is all that was acknowledged before.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn group_progress(&self, group: GroupId) -> Result<Option<Group>, AskError> {
        match self.ask(Ask::Group(group), None).await? {
            Response::Group(known) => Ok(known.map(|known| *known)),
            other => Err(error_of(&other)),
        }
    }

    /// Where all consumer groups stand, as far as this replica knows: the next offset to read, if
    /// that is set.
    ///
    /// Cancel safe: it changes nothing.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn group_positions(&self) -> Result<Vec<(GroupId, Option<u64>)>, AskError> {
        match self.ask(Ask::Groups, None).await? {
            Response::Groups(positions) => Ok(positions),
            other => Err(error_of(&other)),
        }
    }

    async fn ask(
        &self,
        ask: Ask,
        hold: Option<OwnedSemaphorePermit>,
    ) -> Result<Response, AskError> {
        let (sender, receiver) = oneshot::channel();
        self.host.ask(self.group, ask, Reply { sender, hold })?;
        // A shard that ends without an answer may have written what was asked.
        receiver.await.map_err(|_| AskError::Unknown)
    }

    /// What the replica last said of itself.
    pub fn status(&self) -> Published {
        *self.hosted.published.borrow()
    }

    /// True if the replica leads and takes appends.
    pub fn is_leader(&self) -> bool {
        let status = self.status();
        status.role == Role::Leader && status.is_writable
    }

    /// Watches what the replica says of itself. Closed when it stops.
    pub fn watch(&self) -> watch::Receiver<Published> {
        self.hosted.published.clone()
    }

    /// Waits until something beyond `offset` can be read, and returns the high watermark. Returns
    /// it as it is when the replica stops.
    ///
    /// Cancel safe: it changes nothing.
    pub async fn wait_beyond(&self, offset: u64) -> u64 {
        let mut published = self.hosted.published.clone();
        let waited = published.wait_for(|now| now.high_watermark > offset).await;
        waited.map_or_else(|_| self.status().high_watermark, |now| now.high_watermark)
    }

    /// The log, for look-ups by time and by index. Bound what it returns by the high watermark.
    pub fn reader(&self) -> &LogReader {
        &self.hosted.reader
    }

    /// Reads committed record batches from `offset` on, up to about `bytes_max` bytes but at least
    /// one batch, if there is any. At the high watermark it returns none.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn fetch(
        &self,
        offset: u64,
        bytes_max: usize,
        access: Access,
    ) -> Result<Fetched, FetchError> {
        let Published { committed_index, high_watermark, log_start, .. } = self.status();
        let log_start = log_start.max(self.reader().log_start_offset());
        if offset < log_start || offset > high_watermark {
            return Err(FetchError::OutOfRange { requested: offset, log_start, high_watermark });
        }
        let mut fetched =
            Fetched { batches: Vec::new(), next_offset: offset, high_watermark, log_start };
        // While its disk is full, a leader knows entries to be committed that it has yet to write.
        let committed_index = committed_index.min(self.reader().last_index());
        if offset >= high_watermark.min(self.reader().log_end_offset()) {
            return Ok(fetched);
        }
        let mut index = self.reader().index_of_offset(offset, access)?;
        while fetched.batches.is_empty() && index <= committed_index {
            let batches = &mut fetched.batches;
            let read = self.reader().read(index, committed_index, bytes_max, access, batches);
            // What comes before pages that are not in memory or damaged is good to be read.
            if let Err(error) = read
                && batches.is_empty()
            {
                return Err(error.into());
            }
            let last = batches.last().expect("a read returns an entry or fails").header;
            (index, fetched.next_offset) = (last.index + 1, last.end_offset());
            batches.retain(|entry| entry.header.kind == Kind::Records);
        }
        assert!(
            fetched.next_offset <= high_watermark,
            "read up to {}, {high_watermark} is committed",
            fetched.next_offset
        );
        Ok(fetched)
    }
}

fn appended(response: Response) -> Result<Appended, AskError> {
    match response {
        Response::Appended { base_offset, durability, is_duplicate } => {
            Ok(Appended { base_offset, durability, is_duplicate })
        }
        other => Err(error_of(&other)),
    }
}

fn error_of(response: &Response) -> AskError {
    match *response {
        Response::NotLeader { leader } => AskError::NotLeader { leader },
        Response::Transferring => AskError::Transferring,
        Response::Refused(refusal) => AskError::Refused(refusal),
        Response::Unknown
        | Response::Appended { .. }
        | Response::Followed(_)
        | Response::LogStart(_)
        | Response::Barrier { .. }
        | Response::Group(_)
        | Response::Groups(_) => AskError::Unknown,
    }
}
