//! Quipu: a partitioned, replicated, append-only log server.
//!
//! A *topic* is split into *partitions*; each partition is one log, and everything about it lives
//! in that log: its records, the sequence numbers of its producers, the progress of its consumer
//! groups. One order, one durability argument, one recovery.
//!
//! # Layers
//! Dependencies point downwards only; `tests/tidy.rs` holds the code to it.
//!
//! | module | what it owns | what it must not know |
//! |---|---|---|
//! | `cli` | the command line | how bytes are stored |
//! | [`server`] | a node from start to stop: its ports and tasks | how calls are encoded |
//! | [`rpc`] | the API: calls in, answers out, calls passed on | how bytes are stored |
//! | [`client`] | the Rust client: producer, consumer, administration | all but the public API |
//! | [`cluster`] | nodes, topics, placement; what runs on a node | networks |
//! | [`group`] | consumer groups: what they read, who is to have what, who is there | networks |
//! | [`partition`] | what a log says of producers and groups; who waits for it | files, networks |
//! | [`raft`] | elections, replication, replica sets; a node's threads | payloads, networks |
//! | [`storage`] | everything on disk, recovery, retention | runtimes, networks, payloads |
//! | [`batch`] | the record batch: check, count, find, build | where a batch is kept |
//! | [`config`] | what a server can be told, and where each value came from | everything else |
//! | [`telemetry`] | metrics, the HTTP port, how the process logs | what it is told numbers of |
//! | [`shutdown`] | how far the end of a server has come | what ends |
//! | [`proto`] | types from `proto/`, for clients and for the server | everything else |
//! | [`types`] | names that all share | everything else |
//!
//! # Decisions that are not obvious
//! * **A topic's partitions are numbered in its id.** The low 32 bits of a topic's id are 0; the
//!   log of a partition is the id with the partition's number in them. So a directory of logs says
//!   which belong together, and a deleted topic is one tombstone.
//! * **A replica's id is given out once, by the metadata.** It is a counter beside the node's id. A
//!   replica that left a node and comes back, or whose disk was lost, is another one to its group.
//! * **The leader of a partition changes its replicas**, because it knows who has caught up; the
//!   metadata says what is wanted and is told when it is reached, once the disks of a majority
//!   know it. Until then replicas that have left are kept.
//! * **A cluster is founded when every seed answers and none knows a cluster.** With a seed missing
//!   nobody founds anything: it might know one. So a wiped node never founds a second cluster.
//! * **A node that has just started makes and deletes nothing** until a majority has told it how
//!   far the metadata is: what it remembers may be a past in which it had replicas that it gave up.
//! * **The server never re-encodes a batch.** In protobuf a message field and a `bytes` field look
//!   the same on the wire, so the server's types are generated with [`proto`]'s `RecordBatch` as
//!   bytes: what a client sent is what is stored, replicated and served, under one checksum.
//! * **Streams go past the codec.** What is large in a message goes from where it is to the socket,
//!   and comes as a slice of what was read from it: [`proto::stream`]. Copying it at both ends took
//!   an eighth of all time of three nodes and their clients, and twice the memory. Frames of the
//!   Raft groups are gRPC messages as they are, without protobuf around them.
//! * **A segment has no name until it is durable.** New segments are written among the spare files
//!   and renamed by the sync thread after their first sync, so that no append waits for a
//!   directory, and a name proves that all entries before the segment are on disk. The price: what
//!   was appended to a new segment and not yet synced does not survive a mere kill of the process.
//! * **A partition that is bounded in size has short segments**, a quarter of the bound or somewhat
//!   less, gives up the oldest as soon as one is over, and writes the next one into its file. So it
//!   takes what it was allowed to take, and its pages stay in memory from one life of a file to the
//!   next: with segments of 64 MiB a node wrote through five times as much, and on a machine that
//!   lets go of idle memory a quarter of all time went into getting it back.
//! * **The durable watermark decides recovery**, not the presence of intact entries behind a bad
//!   spot: see `storage/recovery.rs`.
//! * **A cut is a new segment.** Truncating a suffix and cutting a torn tail leave the old file
//!   alone and continue in a new one with a new salt and a higher generation. Slices that readers
//!   hold stay true, stale frames never link up again, and the new file's name is the one durable
//!   record of the cut.
//! * **Seals are not recorded.** The next segment's header holds the chain value, and with it the
//!   digest of the whole log before it, so the journal need not repeat it.
//! * **The meta journal is kept twice**, written and synced alike: votes must survive a bad sector.
//! * **A checkpoint is of the state right before its segment**, so a log can begin at any segment
//!   that has one. After a cut that recovery made there is none; state is replayed from an older.
//!   The replica set stands in it too, so that a snapshot becomes durable with one name.
//! * **The Raft library never sees a file.** It reads terms and a tail of entries from memory; what
//!   a follower far behind needs is read elsewhere and handed in. So the same code runs in a
//!   simulation, a whole cluster on one thread.
//! * **Entries stay in memory only for followers that lack them.** Who is far behind is served from
//!   the log, which is in the page cache anyway. When each group kept its last MiB for whoever
//!   might ask, a thousand busy ones took a gigabyte of a node, and each batch new memory.
//! * **An append is acknowledged when it is committed, not when it is applied.** Its offset is
//!   known when the leader lets it in, and the leader's own disk may be the slower one. What a
//!   command came to is known when it is applied, which waits for the leader's disk: segments that
//!   are still to be begun need the state at their start.
//! * **Idle groups sleep.** A leader whose followers have everything lets all of them stop ticking;
//!   nodes tell each other that they are alive, once for all groups. Ten thousand idle groups then
//!   cost less than half a percent of a core instead of eleven. They fall asleep after a tick
//!   without work, or at once if they had slept for long, and the word for it says what is
//!   committed: with a thousand partitions that get a batch now and then, ticks and heartbeats took
//!   more time than the batches.
//! * **A shard that sleeps is run by whoever has news for it.** Waking its thread for a frame, for
//!   a sync and for an append made half of the switches of threads that a lone record costs, and
//!   they were most of its time: 2.6 times the bare loop became 2.2. Under load its own thread
//!   works.
//! * **Damage is never a shorter log.** A replica that lost the end of its log keeps on record how
//!   far it went and votes only for who is as far, until a leader has brought it there again. One
//!   that is damaged where it has to read does not run before others have given it those entries;
//!   it gives them what it has, so that replicas damaged in different places mend each other. A
//!   leader that has lost an entry which nobody is known to have, and did not commit it, makes way.
//! * **A leader that is to leave hands over before the change of voters ends.** Otherwise those who
//!   stay may not know that it has ended, and the only one who does has gone.
//! * **Who has which partition of a group is metadata; how far the group is stands in the
//!   partition's log.** So a join is one command of the cluster, and a commit none: ten thousand
//!   commits a second touch only the partitions that they are of.
//! * **Each assignment has a generation of its own**, out of one counter of its group. Only what
//!   moves gets a new one, so that nobody else has to stop. Whoever gets a partition first has the
//!   partition's log refuse all earlier generations, and is told by that same entry where the group
//!   stands: nothing committed before it is missed, nothing committed after it is late. The entry
//!   also says which generation was fenced; a member that comes back over another node goes on
//!   exactly where it was if that was its own.
//! * **Where a group starts is looked up when it is made** and kept as offsets. So "latest" means
//!   the end at that moment, also in a partition that the group first reads a week later.
//! * **The node that serves a member watches over it; the coordinator watches over nodes.** Signs
//!   of life are never metadata, and idle members cost only their own node.
//! * **A replica that lost what it acknowledged in memory moves to a later term.** With
//!   [`raft::Durability::Memory`] a leader counts on entries that a power cut took from a follower;
//!   in a later term it asks again. One that kept what a majority lost takes it back.

pub mod batch;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod config;
pub mod group;
pub mod partition;
pub mod proto;
pub mod raft;
pub mod rpc;
pub mod server;
pub mod shutdown;
pub mod storage;
pub mod telemetry;
pub mod types;

const _: () = assert!(usize::BITS == 64, "whole segments are mapped: Quipu needs 64-bit addresses");
