//! Raft: replicas of one log that agree.
//!
//! It owns elections, replication and the replica set of each group. It knows what an entry's
//! header says and nothing of payloads; it reads no file, opens no socket and asks no clock: what
//! happens comes in, what is to be done goes out, and the same inputs give the same outputs.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | group | `group` | one replica of one group: raft-rs, and the rules for driving it |
//! | log view | `log_view` | the log as raft-rs sees it: terms, and the tail in memory |
//! | shard | `shard`, `input`, `outputs`, `peers` | many groups, stepped together |
//! | machine | `machine` | what the shard asks of a state machine |
//! | effects | `effects` | what is to be written, sent and read |
//! | disk | `disk`, `open` | effects on a data directory; replicas made and brought back |
//! | mender | `shard/repair` | getting from others what is damaged here, and giving them theirs |
//! | host | `host` | the shards of a node, each on a thread of its own |
//! | planted bug | `planted` | breaches of single rules, for tests |
//! | membership | `membership` | the replicas of a group, and how they change |
//! | hard state, checkpoint | `hard_state` | what must not be forgotten, as bytes |
//! | envelope, frame | `envelope`, `wire` | what replicas say to each other, and its bytes |
//!
//! # The life of an entry
//! A leader links an entry to its log and hands it to raft-rs. With the same step the entry goes to
//! the disk and to the followers. Each of them, once it is on its own disk, says so; with a
//! majority it is committed. Nobody waits for a disk in between: what is done comes back as input.

mod config;
mod disk;
mod effects;
mod envelope;
mod error;
mod group;
mod hard_state;
mod host;
mod input;
mod log_view;
mod machine;
mod membership;
mod open;
mod outputs;
mod peers;
pub mod planted;
mod shard;
mod wire;

pub use self::config::Config;
pub use self::disk::{CheckpointOf, Disk, read_base, read_cold, read_supply};
pub use self::effects::{ColdRead, Cure, Damaged, Effects, Fault, Mend, Persist, Step, Supply};
pub use self::envelope::{Envelope, Lane, MessageKind};
pub use self::error::{Dropped, NotProposed};
pub use self::group::{
    Boot, Draft, Durability, Follower, Group, Incidents, Inspection, Look, Role,
};
pub use self::hard_state::{Checkpoint, HardState, Promise};
pub use self::host::{Counts, Host, HostConfig, Hosted, OnFatal, Refused, Reply, SendFrame};
pub use self::input::Input;
pub use self::log_view::{Base, Divergence, TermStart};
pub use self::machine::{Answers, Machine, Now, Ticket};
pub use self::membership::{Change, Membership, Operation, REPLICAS_MAX};
pub use self::open::{OpenError, Opened, Start, create_replica, open_replica};
pub use self::outputs::{Outputs, Published};
pub use self::shard::Shard;
pub use self::wire::{Frame, FrameError, Route};
