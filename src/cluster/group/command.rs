//! What the metadata log says of groups, and how it is encoded: see [`crate::cluster::command`].

use prost::Message;

use crate::cluster::command::Id;

/// How a group shares out records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// Each partition is read in order by one member at a time.
    Stream = 0,
}

/// The place that a group was told to start at, for people. Where that is stands in
/// [`Group::starts`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Start {
    /// The place.
    #[prost(oneof = "StartPlace", tags = "1, 2, 3, 4, 5")]
    pub place: Option<StartPlace>,
}

/// See [`Start`].
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum StartPlace {
    /// The first record that was kept.
    #[prost(bool, tag = "1")]
    Earliest(bool),
    /// After the last record that there was.
    #[prost(bool, tag = "2")]
    Latest(bool),
    /// An offset.
    #[prost(uint64, tag = "3")]
    Offset(u64),
    /// A time in milliseconds since the Unix epoch.
    #[prost(int64, tag = "4")]
    TimeMs(i64),
    /// Where the group of this name was.
    #[prost(string, tag = "5")]
    Group(String),
}

/// Where a group starts in the partitions of a topic.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct TopicStart {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// The offsets by partition. Partitions that came later are read from offset 0.
    #[prost(uint64, repeated, tag = "2")]
    pub offsets: Vec<u64>,
}

/// A member of a group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Member {
    /// Its id, chosen at random when it first joined.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// Its lasting name, or nothing.
    #[prost(string, tag = "2")]
    pub instance: String,
    /// What its client calls itself.
    #[prost(string, tag = "3")]
    pub client_id: String,
    /// Its rack, or nothing.
    #[prost(string, tag = "4")]
    pub rack: String,
    /// The node that serves it.
    #[prost(uint64, tag = "5")]
    pub node: u64,
    /// The generation in which it last joined: its session.
    #[prost(uint64, tag = "6")]
    pub session: u64,
    /// Chosen at random when it last joined: the same again is the same join, only asked twice.
    #[prost(message, required, tag = "7")]
    pub joining: Id,
}

/// A partition that a member has.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Assignment {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The member.
    #[prost(message, required, tag = "3")]
    pub member: Id,
    /// The generation in which it got it.
    #[prost(uint64, tag = "4")]
    pub generation: u64,
    /// The member that gets it next: the one that has it is to let go.
    #[prost(message, optional, tag = "5")]
    pub next: Option<Id>,
    /// The one that has it is to let go, and nobody gets it next.
    #[prost(bool, tag = "6")]
    pub is_ending: bool,
}

impl Assignment {
    /// The partition: its topic and its number.
    pub fn place(&self) -> (Id, u32) {
        (self.topic, self.partition)
    }

    /// True if the member is to let go of it.
    pub fn is_revoked(&self) -> bool {
        self.next.is_some() || self.is_ending
    }
}

/// A consumer group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Group {
    /// Its id, chosen at random; names its progress in partitions.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// How it shares out records.
    #[prost(enumeration = "Mode", tag = "3")]
    pub mode: i32,
    /// Its topics' names, and patterns of them.
    #[prost(string, repeated, tag = "4")]
    pub topics: Vec<String>,
    /// Where it was told to start.
    #[prost(message, required, tag = "5")]
    pub start: Start,
    /// Where that was, by topic.
    #[prost(message, repeated, tag = "6")]
    pub starts: Vec<TopicStart>,
    /// How long a member may be silent, in milliseconds.
    #[prost(uint32, tag = "7")]
    pub session_timeout_ms: u32,
    /// After how long without members it goes, in milliseconds; 0 stands for never.
    #[prost(uint64, tag = "8")]
    pub expire_after_idle_ms: u64,
    /// Counts what changes in its members and assignments.
    #[prost(uint64, tag = "9")]
    pub generation: u64,
    /// Its members by id.
    #[prost(message, repeated, tag = "10")]
    pub members: Vec<Member>,
    /// Its assignments by topic and partition.
    #[prost(message, repeated, tag = "11")]
    pub assignments: Vec<Assignment>,
    /// Since when it has no members, in milliseconds since the Unix epoch.
    #[prost(int64, tag = "12")]
    pub idle_since_ms: i64,
}

impl Group {
    /// The member with this id.
    pub fn member(&self, id: Id) -> Option<&Member> {
        self.members.binary_search_by_key(&id, |member| member.id).ok().map(|at| &self.members[at])
    }

    /// The assignment of a partition.
    pub fn assignment(&self, topic: Id, partition: u32) -> Option<&Assignment> {
        let found = self.assignments.binary_search_by_key(&(topic, partition), Assignment::place);
        found.ok().map(|at| &self.assignments[at])
    }

    /// The assignments of a member.
    pub fn assignments_of(&self, member: Id) -> impl Iterator<Item = &Assignment> {
        self.assignments.iter().filter(move |assignment| assignment.member == member)
    }

    /// Where the group starts in a partition.
    pub fn start_offset(&self, topic: Id, partition: u32) -> u64 {
        let start = self.starts.iter().find(|start| start.topic == topic);
        start.and_then(|start| start.offsets.get(partition as usize)).copied().unwrap_or(0)
    }
}

/// A group is made. It has no members, no assignments and generation 0.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CreateGroup {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Group,
}

/// A group is deleted.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct DeleteGroup {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub id: Id,
    /// Also if it has members.
    #[prost(bool, tag = "2")]
    pub force: bool,
}

/// A member joins, or comes back on another stream. Gives its session.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JoinGroup {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Id,
    /// The member; its session is not taken from here.
    #[prost(message, required, tag = "2")]
    pub member: Member,
    /// It was a member before.
    #[prost(bool, tag = "3")]
    pub is_returning: bool,
}

/// A member that leaves.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Leaving {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Id,
    /// The member.
    #[prost(message, required, tag = "2")]
    pub member: Id,
    /// Its session: one that has joined again meanwhile stays.
    #[prost(uint64, tag = "3")]
    pub session: u64,
}

/// Members leave, or are out because they were silent.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeaveGroups {
    /// The members.
    #[prost(message, repeated, tag = "1")]
    pub leaving: Vec<Leaving>,
    /// The time, in milliseconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub now_ms: i64,
}

/// Who is to have a partition.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Planned {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The member. Absent: nobody, it is not the group's any more.
    #[prost(message, optional, tag = "3")]
    pub member: Option<Id>,
}

/// The coordinator says who is to have which partitions, where that is not as it is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct PlanGroup {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Id,
    /// The generation that the plan is for.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The partitions.
    #[prost(message, repeated, tag = "3")]
    pub planned: Vec<Planned>,
}

/// A partition that its member has let go of.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Released {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The generation in which the member got it.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
}

/// A member lets go of partitions.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReleaseAssignments {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Id,
    /// The member.
    #[prost(message, required, tag = "2")]
    pub member: Id,
    /// The partitions.
    #[prost(message, repeated, tag = "3")]
    pub released: Vec<Released>,
}

/// A partition whose log has a later generation than the metadata gave.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Renewed {
    /// The topic.
    #[prost(message, required, tag = "1")]
    pub topic: Id,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The log's generation.
    #[prost(uint64, tag = "3")]
    pub above: u64,
}

/// Positions were reset: who has the partitions has them anew, in a generation above the log's.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RenewAssignments {
    /// The group.
    #[prost(message, required, tag = "1")]
    pub group: Id,
    /// The partitions.
    #[prost(message, repeated, tag = "2")]
    pub renewed: Vec<Renewed>,
}
