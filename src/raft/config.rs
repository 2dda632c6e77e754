//! Times and bounds of the Raft groups of a node.

/// How groups behave. Alike on all nodes of a cluster, or elections take turns badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Length of a tick in milliseconds. All times below are counted in ticks.
    pub tick_ms: u64,
    /// A follower that hears nothing for this many ticks, up to twice as many, seeks election; a
    /// leader that no quorum answered for this long steps down.
    pub election_ticks: usize,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: usize,
    /// Payload bytes of one append message, unless a single entry is larger.
    pub append_bytes_max: u64,
    /// Append messages on their way to one follower.
    pub appends_in_flight_max: usize,
    /// Payload bytes of entries that a leader keeps in memory, after they are on disk and applied,
    /// for followers that lack them; an idle one keeps none.
    pub tail_bytes_max: usize,
    /// A leader whose oldest write waits this many ticks for its disk hands over.
    pub slow_disk_ticks: u64,
    /// Reads from disk for followers far behind that wait for a reading thread of the node. What is
    /// more than that is put off until the follower's next heartbeat.
    pub cold_reads_max: usize,
    /// A message of a term this far ahead of what a replica knows is not believed.
    pub term_jump_max: u64,
    /// The groups of a shard tick in turn, in this many slices of a tick.
    pub tick_slices: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_ms: 100,
            election_ticks: 10,
            heartbeat_ticks: 2,
            append_bytes_max: 256 * 1024,
            appends_in_flight_max: 32,
            tail_bytes_max: 256 * 1024,
            slow_disk_ticks: 20,
            cold_reads_max: 64,
            term_jump_max: 1_000_000,
            tick_slices: 10,
        }
    }
}

impl Config {
    pub(super) fn to_raft(&self, id: u64, applied: u64) -> ::raft::Config {
        ::raft::Config {
            id,
            applied,
            election_tick: self.election_ticks,
            heartbeat_tick: self.heartbeat_ticks,
            max_size_per_msg: self.append_bytes_max,
            max_inflight_msgs: self.appends_in_flight_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // The commit goes with the next append or heartbeat.
            skip_bcast_commit: true,
            // Bytes are bounded before they get here, and stubs would be counted wrongly.
            max_uncommitted_size: ::raft::NO_LIMIT,
            max_committed_size_per_ready: 64 * 1024,
            ..::raft::Config::default()
        }
    }
}
