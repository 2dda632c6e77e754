//! How a member of a group works.

use std::time::Duration;

pub(super) const CREDIT_BYTES_MIN: u32 = 64 << 10;
const CREDIT_BYTES_MAX: u32 = 64 << 20;
const AUTO_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// When offsets are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// By the consumer, so often, before partitions are handed over, and at the end: always and
    /// only what the application has finished. A record is finished when the next one is asked for.
    Auto(Duration),
    /// By the application only.
    Manual,
}

/// How a member of a group works.
#[derive(Debug, Clone)]
pub struct GroupConsumerConfig {
    /// The group. It has to exist: making it says where it starts.
    pub group: String,
    /// A lasting name for this member. Under it the member may be away for its session, be it for a
    /// restart, without losing its partitions; whoever joins under it takes its place. Default:
    /// none.
    pub instance: Option<String>,
    /// What the member calls itself, for people. Default: `quipu-rust`.
    pub client_id: String,
    /// Where it runs, so that it gets partitions that have a replica there. Default: not said.
    pub rack: String,
    /// Bytes that the server may send ahead, 64 KiB to 64 MiB. Default: 8 MiB.
    pub credit_bytes: u32,
    /// When offsets are committed. Default: automatically, every second.
    pub commit: Commit,
    /// How long the application may take for a record before it counts as stuck: the member then
    /// leaves, and joins anew when the application comes back. Default: for ever. The consumer
    /// keeps the member alive by itself, so a slow application loses nothing; one that may hang
    /// should say here how long is too long.
    pub processing_timeout: Option<Duration>,
}

impl GroupConsumerConfig {
    /// The default configuration for a group.
    pub fn new(group: impl Into<String>) -> Self {
        Self {
            group: group.into(),
            instance: None,
            client_id: "quipu-rust".to_owned(),
            rack: String::new(),
            credit_bytes: 8 << 20,
            commit: Commit::Auto(Duration::from_secs(1)),
            processing_timeout: None,
        }
    }

    pub(super) fn bounded(self) -> Self {
        let commit = match self.commit {
            Commit::Auto(interval) => Commit::Auto(interval.max(AUTO_INTERVAL_MIN)),
            Commit::Manual => Commit::Manual,
        };
        let credit_bytes = self.credit_bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX);
        Self { commit, credit_bytes, ..self }
    }
}
