//! What can go wrong for a user of the API, and what the user can do about it.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

use super::reasons::explain;
use crate::batch;
use crate::proto::client::{self as api, ErrorReason};

const REASON_PREFIX: &str = "ERROR_REASON_";

/// Why a call, a record or a subscription failed. A variant is something to be done differently.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request is wrong: repeating it unchanged is of no use.
    #[error("{0}")]
    InvalidRequest(Arc<Failure>),
    /// What the request names does not exist.
    #[error("{0}")]
    NotFound(Arc<Failure>),
    /// What was to be made exists.
    #[error("{0}")]
    AlreadyExists(Arc<Failure>),
    /// The cluster, the topic, the group or the producer is not in a state in which this can be
    /// done.
    #[error("{0}")]
    Precondition(Arc<Failure>),
    /// Another member of the group has taken this one's instance name: stop this one.
    #[error("{0}")]
    Fenced(Arc<Failure>),
    /// The offset is outside of what the partition holds: choose another one.
    #[error("{0}")]
    OffsetOutOfRange(Arc<Failure>),
    /// Nothing was done: the cluster could not be reached, or has no leader. Try again later.
    #[error("{0}")]
    Unavailable(Arc<Failure>),
    /// Nothing was done: a limit, memory or a disk is used up.
    #[error("{0}")]
    Exhausted(Arc<Failure>),
    /// It may have been done or not. Whoever repeats it may do it twice.
    #[error("the outcome is unknown: {0}")]
    OutcomeUnknown(Arc<Failure>),
    /// Stored records are damaged on all replicas that could be reached.
    #[error("{0}")]
    DataLoss(Arc<Failure>),
    /// The server did something wrong.
    #[error("{0}")]
    Internal(Arc<Failure>),
    /// The record is over a limit and was not taken.
    #[error(transparent)]
    Record(#[from] batch::Error),
    /// A batch did not arrive as it was stored. Nothing of it was handed on.
    #[error("partition {partition}: the batch at offset {base_offset} arrived damaged: {source}")]
    DamagedBatch {
        /// The partition that was read.
        partition: u32,
        /// Offset of the batch's first record.
        base_offset: u64,
        /// What is wrong with it.
        source: batch::Error,
    },
    /// The producer was closed before the record was taken.
    #[error("the producer is closed")]
    Closed,
}

impl Error {
    /// Returns the reason in the API's list; `Unspecified` for what the server did not say.
    pub fn reason(&self) -> ErrorReason {
        self.failure().map_or(ErrorReason::Unspecified, |failure| failure.reason)
    }

    /// Returns whether the same may succeed later and cannot be done twice by trying.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Exhausted(failure) => failure.repeat() == Repeat::Harmless,
            Self::DamagedBatch { .. } => true,
            Self::InvalidRequest(_)
            | Self::NotFound(_)
            | Self::AlreadyExists(_)
            | Self::Precondition(_)
            | Self::Fenced(_)
            | Self::OffsetOutOfRange(_)
            | Self::OutcomeUnknown(_)
            | Self::DataLoss(_)
            | Self::Internal(_)
            | Self::Record(_)
            | Self::Closed => false,
        }
    }

    /// Returns the next step for a person, if there is a good one.
    pub fn hint(&self) -> Option<&'static str> {
        let failure = self.failure()?;
        match failure.reason {
            ErrorReason::Unspecified if failure.origin != Origin::Server => {
                Some("check the address, and that the server runs and can be reached from here")
            }
            ErrorReason::Unspecified => None,
            reason => Some(explain(reason).remedy),
        }
    }

    /// Returns what the server or the connection said, for errors that come from there.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::InvalidRequest(failure)
            | Self::NotFound(failure)
            | Self::AlreadyExists(failure)
            | Self::Precondition(failure)
            | Self::Fenced(failure)
            | Self::OffsetOutOfRange(failure)
            | Self::Unavailable(failure)
            | Self::Exhausted(failure)
            | Self::OutcomeUnknown(failure)
            | Self::DataLoss(failure)
            | Self::Internal(failure) => Some(failure),
            Self::Record(_) | Self::DamagedBatch { .. } | Self::Closed => None,
        }
    }
}

impl Error {
    /// Sorts a failure of a call that changes nothing and is not going to be repeated.
    pub(super) fn of_read(failure: Failure) -> Self {
        match failure.repeat() {
            Repeat::Risky => Self::Unavailable(Arc::new(failure)),
            Repeat::Harmless | Repeat::Useless => Self::from(failure),
        }
    }
}

impl From<Failure> for Error {
    /// Sorts a failure of a call that is not going to be repeated.
    fn from(failure: Failure) -> Self {
        let (repeat, code) = (failure.repeat(), failure.code);
        let failure = Arc::new(failure);
        match failure.reason {
            ErrorReason::OffsetOutOfRange => return Self::OffsetOutOfRange(failure),
            ErrorReason::FencedInstance => return Self::Fenced(failure),
            _ => {}
        }
        match code {
            _ if repeat == Repeat::Risky => Self::OutcomeUnknown(failure),
            Code::InvalidArgument | Code::Unimplemented => Self::InvalidRequest(failure),
            Code::OutOfRange | Code::PermissionDenied => Self::InvalidRequest(failure),
            Code::NotFound => Self::NotFound(failure),
            Code::AlreadyExists => Self::AlreadyExists(failure),
            Code::FailedPrecondition | Code::Unauthenticated => Self::Precondition(failure),
            Code::ResourceExhausted => Self::Exhausted(failure),
            Code::Unavailable | Code::Aborted | Code::Cancelled => Self::Unavailable(failure),
            Code::DeadlineExceeded => Self::Unavailable(failure),
            Code::DataLoss => Self::DataLoss(failure),
            Code::Internal | Code::Unknown | Code::Ok => Self::Internal(failure),
        }
    }
}

/// What the server, or the connection to it, said when something failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", at(.server))]
pub struct Failure {
    /// The reason in the API's list.
    pub reason: ErrorReason,
    /// What happened, for people.
    pub message: String,
    /// The values that belong to the reason.
    pub metadata: HashMap<String, String>,
    /// When the same may be tried again, if the server said that.
    pub retry_after: Option<Duration>,
    /// Where the failure came about.
    pub origin: Origin,
    /// The server that was asked; empty if none was.
    pub server: String,
    pub(super) code: Code,
}

/// Where a failure came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The server answered so.
    Server,
    /// There was no connection; nothing was sent.
    NotSent,
    /// The connection broke or was silent for too long; what was sent may have arrived.
    Connection,
}

/// What repeating a failed request may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Nothing was done and it may succeed.
    Harmless,
    /// It may have been done: only what can be done twice may be repeated.
    Risky,
    /// It fails again.
    Useless,
}

impl Failure {
    /// A failure that this side found, before anything was sent.
    pub(super) fn local(code: Code, reason: ErrorReason, message: String) -> Self {
        let (metadata, server) = (HashMap::new(), String::new());
        let origin = Origin::NotSent;
        Self { reason, message, metadata, retry_after: None, origin, server, code }
    }

    /// The request is wrong, as this side can tell.
    pub(super) fn invalid(message: String) -> Self {
        Self::local(Code::InvalidArgument, ErrorReason::InvalidField, message)
    }

    /// No answer came in time.
    pub(super) fn silent(waited: Duration) -> Self {
        let message = format!("no answer within {} ms", waited.as_millis());
        let code = Code::DeadlineExceeded;
        Self { origin: Origin::Connection, ..Self::local(code, ErrorReason::Unspecified, message) }
    }

    /// The connection or a stream ended where it should not.
    pub(super) fn cut(message: &str) -> Self {
        let local = Self::local(Code::Unavailable, ErrorReason::Unspecified, message.to_owned());
        Self { origin: Origin::Connection, ..local }
    }

    pub(super) fn unknown_topic(topic: &str) -> Self {
        let message = format!("there is no topic `{topic}`");
        let failure = Self::local(Code::NotFound, ErrorReason::UnknownTopic, message);
        let metadata = HashMap::from([("topic".to_owned(), topic.to_owned())]);
        Self { metadata, origin: Origin::Server, ..failure }
    }

    /// Says which server was asked.
    pub(super) fn asked_of(mut self, server: &str) -> Self {
        server.clone_into(&mut self.server);
        self
    }

    /// Returns what repeating the request may do.
    pub(super) fn repeat(&self) -> Repeat {
        match self.origin {
            Origin::NotSent if self.code == Code::Unavailable => Repeat::Harmless,
            Origin::NotSent => Repeat::Useless,
            Origin::Connection => Repeat::Risky,
            Origin::Server => self.repeat_of_answer(),
        }
    }

    fn repeat_of_answer(&self) -> Repeat {
        use ErrorReason as R;
        match self.reason {
            R::OutcomeUnknown => Repeat::Risky,
            R::NotLeader | R::NoLeader | R::Draining | R::Starting | R::Overloaded => {
                Repeat::Harmless
            }
            R::StorageFailed | R::SlowConsumer | R::BadChecksum => Repeat::Harmless,
            R::Unspecified => self.repeat_by_code(),
            _ if self.retry_after.is_some() => Repeat::Harmless,
            R::InvalidField | R::BadName | R::InvalidConfig | R::CorruptBatch => Repeat::Useless,
            R::RecordTooLarge | R::BatchTooLarge | R::CompressionLimit => Repeat::Useless,
            R::UnsupportedCodec | R::UnknownTopic | R::UnknownTopicId => Repeat::Useless,
            R::UnknownPartition | R::UnknownNode | R::TopicExists => Repeat::Useless,
            R::OffsetOutOfRange | R::UnknownProducer | R::ProducerFenced => Repeat::Useless,
            R::OutOfOrderSequence | R::SequenceReused | R::Precondition => Repeat::Useless,
            R::NotEnoughNodes | R::ClusterMismatch | R::DiskFull => Repeat::Useless,
            R::LimitReached | R::DataLoss | R::Internal => Repeat::Useless,
            R::UnknownGroup | R::GroupExists | R::GroupNotEmpty => Repeat::Useless,
            R::UnknownMember | R::NotOwner | R::IllegalGeneration => Repeat::Useless,
            R::FencedInstance | R::OffsetRegressed => Repeat::Useless,
        }
    }

    /// For answers without a reason of ours: from what stands between, or from a newer server.
    fn repeat_by_code(&self) -> Repeat {
        match self.code {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Repeat::Risky,
            // A connection that has too many calls at a time refuses more.
            Code::Unknown | Code::Aborted | Code::ResourceExhausted => Repeat::Risky,
            _ if self.retry_after.is_some() => Repeat::Harmless,
            _ => Repeat::Useless,
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let reason = info.as_ref().and_then(|info| reason_of(&info.reason));
        let retry = status.get_details_retry_info();
        let message = match (status.message(), innermost(&status)) {
            ("", None) => format!("the server answered {:?}", status.code()),
            ("", Some(cause)) => cause,
            (message, Some(cause)) if !message.contains(&cause) => format!("{message}: {cause}"),
            (message, _) => message.to_owned(),
        };
        Self {
            reason: reason.unwrap_or(ErrorReason::Unspecified),
            message,
            metadata: info.map(|info| info.metadata).unwrap_or_default(),
            retry_after: retry.and_then(|retry| retry.retry_delay),
            origin: origin_of(&status),
            server: String::new(),
            code: status.code(),
        }
    }
}

impl From<api::Error> for Failure {
    fn from(error: api::Error) -> Self {
        Self {
            reason: error.reason(),
            message: error.message,
            metadata: error.metadata,
            retry_after: error.retry_after_ms.map(|ms| Duration::from_millis(ms.into())),
            origin: Origin::Server,
            server: String::new(),
            code: Code::from_i32(error.code),
        }
    }
}

fn at(server: &str) -> String {
    if server.is_empty() { String::new() } else { format!(" (asked {server})") }
}

fn reason_of(name: &str) -> Option<ErrorReason> {
    ErrorReason::from_str_name(&format!("{REASON_PREFIX}{name}"))
}

/// The name of a reason as it stands in `ErrorInfo`.
pub(super) fn reason_name(reason: ErrorReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix(REASON_PREFIX).unwrap_or(name)
}

/// A status that this side made up has the cause as its source; one from the wire has none.
fn origin_of(status: &Status) -> Origin {
    let mut source = status.source();
    let is_local = source.is_some();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Origin::NotSent;
        }
        source = error.source();
    }
    if is_local { Origin::Connection } else { Origin::Server }
}

fn innermost(status: &Status) -> Option<String> {
    let mut error = status.source()?;
    while let Some(source) = error.source() {
        error = source;
    }
    Some(error.to_string())
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn status(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "quipu.v1", HashMap::from([("k".into(), "v".into())]));
        details.set_retry_info(Some(Duration::from_millis(250)));
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn details_of_a_status_are_kept() {
        let failure = Failure::from(status(Code::Unavailable, "NO_LEADER"));
        assert_eq!(failure.reason, ErrorReason::NoLeader);
        assert_eq!(failure.metadata["k"], "v");
        assert_eq!(failure.retry_after, Some(Duration::from_millis(250)));
        assert_eq!(failure.repeat(), Repeat::Harmless);
        let error = Error::from(failure);
        assert!(matches!(error, Error::Unavailable(_)) && error.is_retriable());
    }

    #[test]
    fn an_unknown_outcome_is_never_called_unavailable() {
        for failure in [
            Failure::from(status(Code::Unavailable, "OUTCOME_UNKNOWN")),
            Failure::cut("the stream ended"),
            Failure::silent(Duration::from_secs(1)),
            Failure::from(Status::unavailable("a proxy said so")),
        ] {
            assert_eq!(failure.repeat(), Repeat::Risky, "{failure:?}");
            let error = Error::from(failure);
            assert!(matches!(error, Error::OutcomeUnknown(_)) && !error.is_retriable());
        }
    }

    #[test]
    fn who_lost_its_name_to_another_does_not_come_back() {
        let failure = Failure::from(Status::aborted(""));
        let failure = Failure { reason: ErrorReason::FencedInstance, ..failure };
        let error = Error::from(failure);
        assert!(matches!(error, Error::Fenced(_)) && !error.is_retriable(), "{error:?}");
    }

    #[test]
    fn a_reason_from_a_newer_server_is_taken_by_its_code() {
        let failure = Failure::from(status(Code::NotFound, "NO_SUCH_LINK"));
        assert_eq!(failure.reason, ErrorReason::Unspecified);
        assert!(matches!(Error::from(failure), Error::NotFound(_)));
    }
}
