//! Progress: how far each consumer group has come, guarded by the group's generation.
//!
//! * A group is created by [`FenceGeneration`] or [`ResetOffsets`], never by a commit: the late
//!   commit of a deleted group's member must not bring its position back.
//! * A commit of an older generation is refused. One of a newer generation is taken, and fences all
//!   older ones from there on.
//! * A position goes back by a reset only. A commit below it is refused, in the same generation and
//!   in a newer one alike: its sender has read from a place that nobody chose. The same offset
//!   again is taken, with its metadata.
//! * An offset above the log end is refused. One below the log start is kept: the group is told of
//!   the gap when it fetches.
//! * Nothing expires unless the group says so: see [`FenceGeneration::expire_after_idle_ms`].
//! * There are at most [`GROUPS_MAX`]; one more is refused, none is pushed out.
//!
//! In a checkpoint a group takes 26 bytes and its id, and with a position 34 bytes and the metadata
//! more: 4.4 KB at most, about 100 bytes usually.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut as _, BytesMut};
use uuid::Uuid;

use super::control::{Command, FenceGeneration, GroupId, Metadata, OffsetCommit, ResetOffsets};
use super::error::Refusal;
use super::state::Reply;
use super::wire::Reader;
use crate::raft::planted::{Bug, planted};

/// Groups that one partition keeps.
pub const GROUPS_MAX: usize = 4096;

/// Encoded length of the shortest group: an id of one byte and no position.
pub(super) const GROUP_BYTES_MIN: usize = 27;

/// How far a group has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Next offset to read.
    pub offset: u64,
    /// Leader epoch of the last record read; 0 at the start and after a reset.
    pub leader_epoch: u64,
    /// Who committed it; nil at the start and after a reset.
    pub member: Uuid,
    /// What the member wants back with it.
    pub metadata: Metadata,
}

impl Position {
    /// A position that nobody committed.
    fn at(offset: u64) -> Self {
        Self { offset, leader_epoch: 0, member: Uuid::nil(), metadata: Metadata::default() }
    }
}

/// One consumer group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Commits of older generations are refused.
    pub generation: u64,
    /// `None` until the group is fenced or reset for the first time.
    pub position: Option<Position>,
    /// How long it is kept after its last command, in milliseconds; 0 stands for ever.
    pub expire_after_idle_ms: u64,
    /// The log's time of the last command that changed it.
    pub active_ms: i64,
}

impl Group {
    fn new(generation: u64) -> Self {
        Self { generation, position: None, expire_after_idle_ms: 0, active_ms: i64::MIN }
    }

    /// When it goes, in the log's time.
    fn deadline_ms(&self) -> Option<i64> {
        let idle_ms = self.expire_after_idle_ms;
        (idle_ms > 0).then(|| self.active_ms.saturating_add_unsigned(idle_ms))
    }
}

/// Where and when a command stands in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Log end offset before the entry, exclusive.
    pub(super) log_end: u64,
    /// The log's time.
    pub(super) now_ms: i64,
}

/// All groups that a partition knows.
///
/// * At most [`GROUPS_MAX`].
/// * `by_deadline` holds exactly (deadline, id) of each group that has a deadline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    by_id: BTreeMap<GroupId, Group>,
    by_deadline: BTreeSet<(i64, GroupId)>,
}

impl Progress {
    /// The group, if it is known.
    pub fn get(&self, group: &GroupId) -> Option<&Group> {
        self.by_id.get(group)
    }

    /// All groups, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&GroupId, &Group)> {
        self.by_id.iter()
    }

    /// Where each group stands, by id.
    pub fn positions(&self) -> Vec<(GroupId, Option<u64>)> {
        let offset = |group: &Group| group.position.as_ref().map(|position| position.offset);
        self.by_id.iter().map(|(id, group)| (id.clone(), offset(group))).collect()
    }

    /// Lowest position of all groups; a group without one counts with `log_start`.
    pub fn lowest_position(&self, log_start: u64) -> Option<u64> {
        let offset = |group: &Group| group.position.as_ref().map(|position| position.offset);
        self.by_id.values().map(|group| offset(group).unwrap_or(log_start)).min()
    }

    /// Follows a command to a group; `None` if it is to something else.
    pub(super) fn follow(
        &mut self,
        command: &Command,
        moment: Moment,
    ) -> Option<Result<Reply, Refusal>> {
        match command {
            Command::OffsetCommit(commit) => Some(self.commit(commit, moment)),
            Command::ResetOffsets(reset) => Some(self.reset(reset, moment)),
            Command::DeleteGroup(group) => Some(self.delete(group)),
            Command::FenceGeneration(fence) => Some(self.fence(fence, moment)),
            Command::InitProducer(_) => None,
        }
    }

    fn commit(&mut self, commit: &OffsetCommit, moment: Moment) -> Result<Reply, Refusal> {
        let OffsetCommit { generation, offset, .. } = *commit;
        let group = self.by_id.get(&commit.group).ok_or(Refusal::UnknownGroup)?;
        let generation = match planted(Bug::LateCommitApplied) {
            true => generation.max(group.generation),
            false => generation,
        };
        check_generation(group, generation)?;
        check_end(offset, moment)?;
        match &group.position {
            Some(Position { offset: committed, .. }) if offset < *committed => {
                return Err(Refusal::OffsetRegressed { committed: *committed });
            }
            _ => {}
        }
        let position = Position {
            offset,
            leader_epoch: commit.leader_epoch,
            member: commit.member,
            metadata: commit.metadata.clone(),
        };
        let group = Group { generation, position: Some(position), ..group.clone() };
        self.put(commit.group.clone(), group, moment.now_ms);
        Ok(Reply::OffsetCommitted { offset, generation })
    }

    fn reset(&mut self, reset: &ResetOffsets, moment: Moment) -> Result<Reply, Refusal> {
        let offset = reset.offset;
        check_end(offset, moment)?;
        let group = self.get_or_new(&reset.group, 0)?;
        let generation = group.generation.checked_add(1).ok_or(Refusal::GenerationExhausted)?;
        let group = Group { generation, position: Some(Position::at(offset)), ..group };
        self.put(reset.group.clone(), group, moment.now_ms);
        Ok(Reply::OffsetsReset { offset, generation })
    }

    fn delete(&mut self, id: &GroupId) -> Result<Reply, Refusal> {
        let group = self.take(id).ok_or(Refusal::UnknownGroup)?;
        Ok(Reply::GroupDeleted { generation: group.generation })
    }

    /// Fences older generations, and says where the group stands: nobody can move that any more
    /// who was fenced.
    fn fence(&mut self, fence: &FenceGeneration, moment: Moment) -> Result<Reply, Refusal> {
        let FenceGeneration { generation, expire_after_idle_ms, .. } = *fence;
        let group = self.get_or_new(&fence.group, 0)?;
        check_generation(&group, generation)?;
        let previous = group.generation;
        assert!(previous <= generation, "{generation} would fence {previous}, which is later");
        // Records that were acknowledged from memory may be gone, and the start beyond the end.
        let start = Position::at(fence.start.min(moment.log_end));
        let position = group.position.clone().unwrap_or(start);
        let offset = position.offset;
        let group = Group { generation, expire_after_idle_ms, position: Some(position), ..group };
        self.put(fence.group.clone(), group, moment.now_ms);
        Ok(Reply::GenerationFenced { generation, previous, offset })
    }

    fn get_or_new(&self, id: &GroupId, generation: u64) -> Result<Group, Refusal> {
        match self.by_id.get(id) {
            Some(group) => Ok(group.clone()),
            None if self.by_id.len() >= GROUPS_MAX => {
                Err(Refusal::TooManyGroups { max: GROUPS_MAX })
            }
            None => Ok(Group::new(generation)),
        }
    }

    /// Stores a group that was active right now.
    fn put(&mut self, id: GroupId, group: Group, now_ms: i64) {
        let before = self.take(&id).map_or(0, |before| before.generation);
        let generation = group.generation;
        assert!(generation >= before, "a generation goes back from {before} to {generation}");
        self.insert(id, Group { active_ms: now_ms, ..group });
    }

    fn insert(&mut self, id: GroupId, group: Group) {
        if let Some(deadline) = group.deadline_ms() {
            self.by_deadline.insert((deadline, id.clone()));
        }
        let before = self.by_id.insert(id, group);
        assert!(before.is_none(), "a group is taken out before it is put back");
        let count = self.by_id.len();
        assert!(count <= GROUPS_MAX, "{count} groups are over the bound of {GROUPS_MAX}");
    }

    fn take(&mut self, id: &GroupId) -> Option<Group> {
        let group = self.by_id.remove(id)?;
        if let Some(deadline) = group.deadline_ms() {
            let was_there = self.by_deadline.remove(&(deadline, id.clone()));
            assert!(was_there, "a group that expires has its deadline {deadline}");
        }
        Some(group)
    }

    /// Forgets groups whose deadline has passed.
    pub(super) fn forget_idle(&mut self, now_ms: i64) {
        while self.by_deadline.first().is_some_and(|(deadline, _)| *deadline <= now_ms) {
            let (_, id) = self.by_deadline.pop_first().expect("the first deadline was looked at");
            let group = self.by_id.remove(&id);
            assert!(group.is_some(), "a deadline belongs to a group");
        }
        let (deadlines, groups) = (self.by_deadline.len(), self.by_id.len());
        assert!(deadlines <= groups, "{groups} groups have {deadlines} deadlines");
    }

    /// Writes the section of a checkpoint: the count, then the groups by id.
    pub(super) fn encode(&self, bytes: &mut BytesMut) {
        bytes.put_u32_le(u32::try_from(self.by_id.len()).expect("groups are bounded"));
        for (id, group) in &self.by_id {
            let id = id.as_bytes();
            bytes.put_u8(u8::try_from(id.len()).expect("a group id is bounded"));
            bytes.put_slice(id);
            bytes.put_u64_le(group.generation);
            bytes.put_u64_le(group.expire_after_idle_ms);
            bytes.put_i64_le(group.active_ms);
            bytes.put_u8(u8::from(group.position.is_some()));
            if let Some(position) = &group.position {
                encode_position(position, bytes);
            }
        }
    }

    /// Reads what [`Progress::encode`] writes, of a state at `now_ms`; otherwise says what is
    /// wrong.
    pub(super) fn decode(reader: &mut Reader<'_>, now_ms: i64) -> Result<Self, &'static str> {
        let count = reader.u32().ok_or("the count of groups is cut short")? as usize;
        if count > GROUPS_MAX || count * GROUP_BYTES_MIN > reader.remaining() {
            return Err("there are fewer groups than it says, or too many");
        }
        let mut progress = Self::default();
        for _ in 0..count {
            let (id, group) = decode_group(reader)?;
            if progress.by_id.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err("group ids are not ascending");
            }
            if group.active_ms > now_ms {
                return Err("a group was active after the last entry");
            }
            progress.insert(id, group);
        }
        Ok(progress)
    }
}

fn check_generation(group: &Group, generation: u64) -> Result<(), Refusal> {
    let current = group.generation;
    let is_late = generation < current && !planted(Bug::GenerationCheckedEarly);
    if is_late { Err(Refusal::IllegalGeneration { current }) } else { Ok(()) }
}

fn check_end(offset: u64, moment: Moment) -> Result<(), Refusal> {
    let log_end = moment.log_end;
    if offset > log_end { Err(Refusal::OffsetBeyondEnd { log_end }) } else { Ok(()) }
}

fn encode_position(position: &Position, bytes: &mut BytesMut) {
    let metadata = position.metadata.as_str().as_bytes();
    bytes.put_u64_le(position.offset);
    bytes.put_u64_le(position.leader_epoch);
    bytes.put_slice(position.member.as_bytes());
    bytes.put_u16_le(u16::try_from(metadata.len()).expect("metadata is bounded"));
    bytes.put_slice(metadata);
}

fn decode_group(reader: &mut Reader<'_>) -> Result<(GroupId, Group), &'static str> {
    const CUT: &str = "a group is cut short";
    let length = reader.u8().ok_or(CUT)?;
    let id = reader.take(usize::from(length)).ok_or(CUT)?;
    let id = GroupId::try_new(id).ok_or("a group id has a wrong length")?;
    let generation = reader.u64().ok_or(CUT)?;
    let expire_after_idle_ms = reader.u64().ok_or(CUT)?;
    let active_ms = reader.i64().ok_or(CUT)?;
    let position = match reader.u8().ok_or(CUT)? {
        0 => None,
        1 => Some(decode_position(reader).ok_or("a position is cut short or its text is bad")?),
        _ => return Err("a group has a position or has none"),
    };
    Ok((id, Group { generation, position, expire_after_idle_ms, active_ms }))
}

fn decode_position(reader: &mut Reader<'_>) -> Option<Position> {
    let offset = reader.u64()?;
    let leader_epoch = reader.u64()?;
    let member = Uuid::from_bytes(reader.bytes16()?);
    let length = reader.u16()?;
    let text = std::str::from_utf8(reader.take(usize::from(length))?).ok()?;
    Some(Position { offset, leader_epoch, member, metadata: Metadata::try_new(text)? })
}
