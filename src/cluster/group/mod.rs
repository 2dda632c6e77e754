//! Consumer groups, as the metadata has them: who is a member, and who has which partition.
//!
//! Positions are not here: they are in the partitions' own logs.
//!
//! * Every change of a group's members or assignments takes the next number of its generation.
//! * A partition has one member at a time. It moves in two steps: the next member is named, and
//!   gets it when the one that has it lets go, or is gone.
//! * Whoever gets a partition does so in a generation of its own, later than all before. The
//!   partition's log refuses what is committed in earlier ones.

mod command;
mod state;
#[cfg(test)]
mod tests;

pub use self::command::{
    Assignment, CreateGroup, DeleteGroup, Group, JoinGroup, LeaveGroups, Leaving, Member, Mode,
    PlanGroup, Planned, ReleaseAssignments, Released, RenewAssignments, Renewed, Start, StartPlace,
    TopicStart,
};
pub use self::state::{GROUPS_MAX, Groups, MEMBERS_MAX, TOPICS_MAX};
