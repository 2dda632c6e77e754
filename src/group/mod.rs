//! Consumer groups: which topics they read, who is to have which partition, who is still there.
//!
//! What the cluster has agreed on about groups is [`crate::cluster::group`]'s; positions are in the
//! partitions' logs. It knows no network.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | subscription | `subscription` | topics and patterns of a group; pure |
//! | assignor | `assignor` | shares partitions out: balanced, sticky, by rack; pure |
//! | plan | `plan` | the changes that a group needs; pure |
//! | sessions | `sessions` | the members that this node serves, and who was silent for too long |

pub mod assignor;
mod plan;
mod sessions;
pub mod subscription;

pub use self::plan::plan;
pub use self::sessions::{AWAY_MAX, Session, Sessions, away_max, session_timeout};
