//! The cluster: which nodes there are, which topics, and who has which replica.
//!
//! All of it is one Raft group, the metadata, with a replica on every node. Each node follows the
//! metadata and brings what runs on it to what the metadata says. It knows no network.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | command, checkpoint | `command` | what the metadata log holds |
//! | state | `state` | what the cluster has agreed on; pure |
//! | placement | `placement` | which node gets which replica; pure |
//! | groups | `group` | their members, and who has which partition; pure |
//! | metadata | `machine` | the state on a Raft group |
//! | identity, founding | `identity` | who a node is, and how a cluster began |
//! | leaders | `leaders` | who leads what, as far as a node has heard |
//! | registry | `registry` | the replicas that run on this node |
//! | node | `node` | all of it together: what the server holds |

pub mod command;
mod error;
pub mod group;
mod identity;
mod leaders;
mod machine;
mod node;
pub mod placement;
mod registry;
mod state;
#[cfg(test)]
mod tests;

pub use self::error::Refusal;
pub use self::identity::{Founder, Founding, Identity, IdentityError};
pub use self::leaders::{Heard, Leader, Leaders};
pub use self::machine::{Answer, Ask, COMMAND_BYTES_MAX, Metadata};
pub use self::node::{Node, StartError};
pub use self::registry::{LostReplica, ReconcileError, Registry};
pub use self::state::{
    FOUNDING_INCARNATION, Given, NODES_MAX, PARTITIONS_MAX, REPLICAS_MAX, State,
    TOPIC_PARTITIONS_MAX,
};
