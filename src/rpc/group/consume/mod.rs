//! Consume: a member of a group, on one stream.
//!
//! | noun | file | what it is |
//! |---|---|---|
//! | join | `join` | how a stream becomes a member's |
//! | holdings | `holdings` | what the member has, and what is to be done about it; pure |
//! | claim | `claim` | making a partition's log know who has it |
//! | errands | `errands` | what is done elsewhere: commits and releases |
//! | stream | `stream` | all of it together |
//!
//! # How a partition moves
//! The metadata names the next member. The one that has the partition is asked to let go: it is
//! sent no more, finishes, commits, and says so. The metadata then gives the partition to the next
//! one, in a later generation. That one's stream fences the earlier ones in the partition's log,
//! reads the position there, and only then sends records. A member that does not answer, or is
//! gone, is passed over after its session; the fence makes sure that it cannot commit any more.

mod claim;
mod errands;
mod holdings;
mod join;
mod stream;

pub(super) use self::stream::{MESSAGES_MAX, consume};
