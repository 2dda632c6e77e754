//! Why a batch, a command or a checkpoint was refused.

/// Why a batch or a command changed nothing.
///
/// All but one kind is a function of the log: every replica refuses alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The log never heard of the producer id, or forgot it: take a new id. Whether an earlier
    /// attempt at this batch was stored cannot be told any more.
    #[error("the producer id is unknown to this partition")]
    UnknownProducer,
    /// Another incarnation of the producer took over.
    #[error("fenced: the producer epoch is {current}")]
    ProducerFenced {
        /// The producer epoch that holds.
        current: u16,
    },
    /// Batches before this one are missing, or it is a retry of one too old to be recognized.
    #[error("out of order: expected sequence {expected}, found {found}")]
    OutOfOrderSequence {
        /// The sequence number that comes next.
        expected: u32,
        /// The batch's base sequence.
        found: u32,
    },
    /// The sequence number was used for another batch. Never a duplicate: this one is not stored.
    #[error("sequence {base_sequence} was used for another batch, stored at {base_offset}")]
    SequenceReused {
        /// The base sequence of the batch that was refused.
        base_sequence: u32,
        /// Where the batch stands that has this sequence number.
        base_offset: u64,
    },
    /// A batch without records, which no producer can number.
    #[error("a batch of a producer holds no records")]
    EmptyBatch,
    /// Producer id 0 stands for none.
    #[error("producer id 0 stands for no producer")]
    ReservedProducerId,
    /// The id was to be new but is in use: take another.
    #[error("the producer id is taken")]
    ProducerIdTaken,
    /// The producer id has no producer epoch left: take a new id.
    #[error("the producer id has used up its producer epochs")]
    ProducerEpochExhausted,
    /// The group has no state here: never created, deleted or expired.
    #[error("the group is unknown to this partition")]
    UnknownGroup,
    /// The group has moved on; whoever sent this no longer speaks for it.
    #[error("illegal generation: the group's generation is {current}")]
    IllegalGeneration {
        /// The generation that holds.
        current: u64,
    },
    /// The commit is below what was committed: only a reset moves a position back.
    #[error("offset {committed} is committed already, only a reset goes back")]
    OffsetRegressed {
        /// The position that stays.
        committed: u64,
    },
    /// The offset is one that the log has not assigned yet.
    #[error("the offset is beyond the log end offset {log_end}")]
    OffsetBeyondEnd {
        /// The log end offset at the entry, exclusive.
        log_end: u64,
    },
    /// No more groups fit: delete one.
    #[error("the partition keeps {max} groups already")]
    TooManyGroups {
        /// How many there may be.
        max: usize,
    },
    /// The group's generations are used up: delete it.
    #[error("the group has used up its generations")]
    GenerationExhausted,
    /// The payload is not what the entry's kind says.
    #[error("undecodable entry: {0}")]
    Undecodable(#[from] CommandError),
}

impl Refusal {
    /// True if every replica refuses this entry, whatever its version.
    ///
    /// On `false` the replica must stop before it applies more: another version may have followed
    /// the command.
    pub fn is_deterministic(&self) -> bool {
        match self {
            Self::Undecodable(error) => error.is_deterministic(),
            Self::UnknownProducer
            | Self::ProducerFenced { .. }
            | Self::OutOfOrderSequence { .. }
            | Self::SequenceReused { .. }
            | Self::EmptyBatch
            | Self::ReservedProducerId
            | Self::ProducerIdTaken
            | Self::ProducerEpochExhausted
            | Self::UnknownGroup
            | Self::IllegalGeneration { .. }
            | Self::OffsetRegressed { .. }
            | Self::OffsetBeyondEnd { .. }
            | Self::TooManyGroups { .. }
            | Self::GenerationExhausted => true,
        }
    }

    /// True if the same request may be accepted later without a change by the client.
    ///
    /// A batch that is out of order may have overtaken others on its way.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::OutOfOrderSequence { .. } => true,
            Self::UnknownProducer
            | Self::ProducerFenced { .. }
            | Self::SequenceReused { .. }
            | Self::EmptyBatch
            | Self::ReservedProducerId
            | Self::ProducerIdTaken
            | Self::ProducerEpochExhausted
            | Self::UnknownGroup
            | Self::IllegalGeneration { .. }
            | Self::OffsetRegressed { .. }
            | Self::OffsetBeyondEnd { .. }
            | Self::TooManyGroups { .. }
            | Self::GenerationExhausted
            | Self::Undecodable(_) => false,
        }
    }
}

/// Why the payload of an entry is not a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// A later version wrote it.
    #[error("command format {found} is unknown to this version")]
    UnknownFormat {
        /// The byte found.
        found: u8,
    },
    /// A later version wrote it.
    #[error("command {found} is unknown to this version")]
    UnknownCommand {
        /// The byte found.
        found: u8,
    },
    /// No version writes this.
    #[error("malformed command at byte {position}: {fault}")]
    Malformed {
        /// The byte at which the faulty field begins.
        position: usize,
        /// What is wrong there.
        fault: &'static str,
    },
}

impl CommandError {
    /// True if no version can follow the command.
    pub fn is_deterministic(&self) -> bool {
        match self {
            Self::Malformed { .. } => true,
            Self::UnknownFormat { .. } | Self::UnknownCommand { .. } => false,
        }
    }
}

/// Why bytes are not a checkpoint of a partition's state. Nothing was taken from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes begin with something else.
    #[error("this is not a checkpoint of a partition")]
    Magic,
    /// A later version wrote it.
    #[error("checkpoint version {found} is unknown to this version")]
    Version {
        /// The version found.
        found: u32,
    },
    /// The checksum does not fit: torn or damaged.
    #[error("checkpoint checksum is {found:#010x}, the checkpoint says {expected:#010x}")]
    Checksum {
        /// What the checkpoint says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The checksum fits, but no state has this checkpoint.
    #[error("malformed checkpoint at byte {position}: {fault}")]
    Malformed {
        /// The byte after which the fault was noticed.
        position: usize,
        /// What is wrong there.
        fault: &'static str,
    },
}
