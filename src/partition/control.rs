//! Control commands: what a control entry tells the state machine, and its bytes.
//!
//! ```text
//! 0 u8 format, 1    1 u8 command    2.. fields: u8 tag, u16 length, value
//! ```
//!
//! All numbers are little-endian. A command has exactly the fields of the table, in this order, so
//! each command has one form. Tags are never given to anything else.
//!
//! | command | fields |
//! |---|---|
//! | 1 init producer | producer id, take over |
//! | 2 offset commit | group, generation, member, offset, leader epoch, metadata |
//! | 3 reset offsets | group, offset |
//! | 4 delete group | group |
//! | 5 fence generation | group, generation, expire after idle, start |
//!
//! | field | value | field | value |
//! |---|---|---|---|
//! | 1 producer id | `u64` | 6 offset | `u64` |
//! | 2 take over | `u8`, 0 or 1 | 7 leader epoch | `u64` |
//! | 3 group | 1 to 249 bytes | 8 metadata | UTF-8, up to 4096 bytes |
//! | 4 generation | `u64` | 9 expire after idle | `u64`, milliseconds |
//! | 5 member | `[u8; 16]` | 10 start | `u64`, an offset |

use bytes::{BufMut as _, Bytes, BytesMut};
use uuid::Uuid;

use super::error::CommandError;
use super::wire::Reader;

/// Longest group id in bytes.
pub const GROUP_ID_BYTES_MAX: usize = 249;
/// Longest metadata of an offset commit in bytes.
pub const METADATA_BYTES_MAX: usize = 4096;

const FORMAT: u8 = 1;

mod command {
    pub(super) const INIT_PRODUCER: u8 = 1;
    pub(super) const OFFSET_COMMIT: u8 = 2;
    pub(super) const RESET_OFFSETS: u8 = 3;
    pub(super) const DELETE_GROUP: u8 = 4;
    pub(super) const FENCE_GENERATION: u8 = 5;
}

mod field {
    pub(super) const PRODUCER_ID: u8 = 1;
    pub(super) const TAKE_OVER: u8 = 2;
    pub(super) const GROUP: u8 = 3;
    pub(super) const GENERATION: u8 = 4;
    pub(super) const MEMBER: u8 = 5;
    pub(super) const OFFSET: u8 = 6;
    pub(super) const LEADER_EPOCH: u8 = 7;
    pub(super) const METADATA: u8 = 8;
    pub(super) const EXPIRE_AFTER_IDLE: u8 = 9;
    pub(super) const START: u8 = 10;
}

/// Identity of a consumer group: the bytes of a UUID or of a name.
///
/// * 1 to [`GROUP_ID_BYTES_MAX`] bytes.
/// * An id that is given to another group after the first was deleted must go on with higher
///   generations, or commits of the first group's members pass for the second's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(Box<[u8]>);

impl GroupId {
    /// Takes a copy of `bytes`; `None` if they are empty or too many.
    pub fn try_new(bytes: &[u8]) -> Option<Self> {
        let is_good = (1..=GROUP_ID_BYTES_MAX).contains(&bytes.len());
        is_good.then(|| Self(bytes.into()))
    }

    /// The id's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a member keeps beside its position; at most [`METADATA_BYTES_MAX`] bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(Box<str>);

impl Metadata {
    /// Takes a copy of `text`; `None` if it is too long.
    pub fn try_new(text: &str) -> Option<Self> {
        (text.len() <= METADATA_BYTES_MAX).then(|| Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Makes a producer known, or gives it its next producer epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitProducer {
    /// The producer. Whoever issues ids never issues one twice.
    pub producer_id: u64,
    /// False: the id is new and starts at producer epoch 0. True: the id was given out before; all
    /// incarnations so far are fenced.
    pub take_over: bool,
}

/// A group's member says how far the group has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    /// The group.
    pub group: GroupId,
    /// The generation in which the member was given this partition.
    pub generation: u64,
    /// The member.
    pub member: Uuid,
    /// Next offset to read.
    pub offset: u64,
    /// Leader epoch of the last record read.
    pub leader_epoch: u64,
    /// What the member wants back with the position.
    pub metadata: Metadata,
}

/// An operator moves a group's position, forwards or back, and fences all its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResetOffsets {
    /// The group; created if it is unknown.
    pub group: GroupId,
    /// Next offset to read.
    pub offset: u64,
}

/// The coordinator announces a generation: commits of older ones are refused from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceGeneration {
    /// The group; created if it is unknown.
    pub group: GroupId,
    /// The generation, not below the one that holds.
    pub generation: u64,
    /// How long the group is kept after its last command, in milliseconds of the log's time; 0
    /// stands for ever.
    pub expire_after_idle_ms: u64,
    /// The position of a group that has none yet.
    pub start: u64,
}

/// What a control entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// See [`InitProducer`].
    InitProducer(InitProducer),
    /// See [`OffsetCommit`].
    OffsetCommit(OffsetCommit),
    /// See [`ResetOffsets`].
    ResetOffsets(ResetOffsets),
    /// Forgets a group and its position.
    DeleteGroup(GroupId),
    /// See [`FenceGeneration`].
    FenceGeneration(FenceGeneration),
}

impl Command {
    /// Encodes the command as the payload of a control entry.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::InitProducer(init) => Writer::new(command::INIT_PRODUCER)
                .u64(field::PRODUCER_ID, init.producer_id)
                .bytes(field::TAKE_OVER, &[u8::from(init.take_over)]),
            Self::OffsetCommit(commit) => Writer::new(command::OFFSET_COMMIT)
                .bytes(field::GROUP, &commit.group.0)
                .u64(field::GENERATION, commit.generation)
                .bytes(field::MEMBER, commit.member.as_bytes())
                .u64(field::OFFSET, commit.offset)
                .u64(field::LEADER_EPOCH, commit.leader_epoch)
                .bytes(field::METADATA, commit.metadata.0.as_bytes()),
            Self::ResetOffsets(reset) => Writer::new(command::RESET_OFFSETS)
                .bytes(field::GROUP, &reset.group.0)
                .u64(field::OFFSET, reset.offset),
            Self::DeleteGroup(group) => {
                Writer::new(command::DELETE_GROUP).bytes(field::GROUP, &group.0)
            }
            Self::FenceGeneration(fence) => Writer::new(command::FENCE_GENERATION)
                .bytes(field::GROUP, &fence.group.0)
                .u64(field::GENERATION, fence.generation)
                .u64(field::EXPIRE_AFTER_IDLE, fence.expire_after_idle_ms)
                .u64(field::START, fence.start),
        }
        .0
        .freeze()
    }

    /// Decodes the payload of a control entry. Takes only what [`Command::encode`] writes.
    ///
    /// # Errors
    /// Whether a later version or no version wrote it, and where it is wrong.
    pub fn decode(payload: &[u8]) -> Result<Self, CommandError> {
        let mut fields = Fields(Reader::new(payload));
        let command = fields.head()?;
        let command = match command {
            command::INIT_PRODUCER => Self::InitProducer(InitProducer {
                producer_id: fields.u64(field::PRODUCER_ID)?,
                take_over: fields.bool(field::TAKE_OVER)?,
            }),
            command::OFFSET_COMMIT => Self::OffsetCommit(OffsetCommit {
                group: fields.group()?,
                generation: fields.u64(field::GENERATION)?,
                member: fields.member()?,
                offset: fields.u64(field::OFFSET)?,
                leader_epoch: fields.u64(field::LEADER_EPOCH)?,
                metadata: fields.metadata()?,
            }),
            command::RESET_OFFSETS => Self::ResetOffsets(ResetOffsets {
                group: fields.group()?,
                offset: fields.u64(field::OFFSET)?,
            }),
            command::DELETE_GROUP => Self::DeleteGroup(fields.group()?),
            command::FENCE_GENERATION => Self::FenceGeneration(FenceGeneration {
                group: fields.group()?,
                generation: fields.u64(field::GENERATION)?,
                expire_after_idle_ms: fields.u64(field::EXPIRE_AFTER_IDLE)?,
                start: fields.u64(field::START)?,
            }),
            found => return Err(CommandError::UnknownCommand { found }),
        };
        fields.finish()?;
        Ok(command)
    }
}

/// Decodes the payload of a log-start entry: one offset, `u64`.
pub(super) fn decode_log_start(payload: &[u8]) -> Result<u64, CommandError> {
    let bytes = payload.try_into();
    let fault = "a log start is eight bytes";
    bytes.map(u64::from_le_bytes).map_err(|_| CommandError::Malformed { position: 0, fault })
}

struct Writer(BytesMut);

impl Writer {
    fn new(command: u8) -> Self {
        Self(BytesMut::from(&[FORMAT, command][..]))
    }

    fn bytes(mut self, tag: u8, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).expect("all fields are bounded below 64 KiB");
        self.0.put_u8(tag);
        self.0.put_u16_le(length);
        self.0.put_slice(value);
        self
    }

    fn u64(self, tag: u8, value: u64) -> Self {
        self.bytes(tag, &value.to_le_bytes())
    }
}

struct Fields<'a>(Reader<'a>);

impl<'a> Fields<'a> {
    /// Takes format and command.
    fn head(&mut self) -> Result<u8, CommandError> {
        let short = CommandError::Malformed { position: 0, fault: "the command is cut short" };
        match self.0.u8().ok_or(short)? {
            FORMAT => self.0.u8().ok_or(short),
            found => Err(CommandError::UnknownFormat { found }),
        }
    }

    /// Takes the next field, which has to have this tag, and makes a value of it.
    fn field<T>(
        &mut self,
        tag: u8,
        fault: &'static str,
        parse: impl FnOnce(&'a [u8]) -> Option<T>,
    ) -> Result<T, CommandError> {
        let position = self.0.position();
        let value = self.value(tag).and_then(parse);
        value.ok_or(CommandError::Malformed { position, fault })
    }

    fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        let found = self.0.u8()?;
        let length = self.0.u16()?;
        let value = self.0.take(usize::from(length))?;
        (found == tag).then_some(value)
    }

    fn u64(&mut self, tag: u8) -> Result<u64, CommandError> {
        let parse = |value: &[u8]| Some(u64::from_le_bytes(value.try_into().ok()?));
        self.field(tag, "expected a number of eight bytes", parse)
    }

    fn bool(&mut self, tag: u8) -> Result<bool, CommandError> {
        self.field(tag, "expected a byte that is 0 or 1", |value| match value {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        })
    }

    fn group(&mut self) -> Result<GroupId, CommandError> {
        self.field(field::GROUP, "expected a group id", GroupId::try_new)
    }

    fn member(&mut self) -> Result<Uuid, CommandError> {
        self.field(field::MEMBER, "expected a member id", |value| Uuid::from_slice(value).ok())
    }

    fn metadata(&mut self) -> Result<Metadata, CommandError> {
        let parse = |value| Metadata::try_new(std::str::from_utf8(value).ok()?);
        self.field(field::METADATA, "expected metadata in UTF-8", parse)
    }

    fn finish(self) -> Result<(), CommandError> {
        let position = self.0.position();
        let fault = "bytes follow the last field";
        let is_done = self.0.remaining() == 0;
        is_done.then_some(()).ok_or(CommandError::Malformed { position, fault })
    }
}
