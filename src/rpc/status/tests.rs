//! Every error finds its row, and every row is what `error.proto` says.

use std::collections::BTreeSet;

use super::*;
use crate::cluster::placement::TooFewNodes;
use crate::partition::CommandError;
use crate::raft;
use crate::storage::Damage;
use crate::types::ReplicaId;

const CONTRACT: &str = include_str!("../../../proto/quipu/v1/error.proto");

/// The reasons of the contract with the codes that their comments begin with.
fn contract() -> Vec<(Reason, String)> {
    let mut comment = String::new();
    let mut rows = Vec::new();
    for line in CONTRACT.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("// ") {
            comment.push_str(text);
        } else if let Some((name, _)) = line
            .split_once(" = ")
            .filter(|(name, _)| name.starts_with(NAME_PREFIX) && !name.ends_with("UNSPECIFIED"))
        {
            let code = comment.split([':', ',']).next().unwrap_or_default();
            rows.push((Reason::from_str_name(name).unwrap(), code.to_owned()));
        }
        if !line.starts_with("//") {
            comment.clear();
        }
    }
    rows
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Unavailable => "UNAVAILABLE",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::DataLoss => "DATA_LOSS",
        Code::Aborted => "ABORTED",
        Code::Internal => "INTERNAL",
        other => panic!("no reason has the code {other:?}"),
    }
}

#[test]
fn each_reason_has_the_code_that_the_contract_says() {
    let contract = contract();
    assert_eq!(contract.len(), 42, "a reason of the contract was passed over");
    for (reason, code) in contract {
        assert_eq!(code_name(row(reason).0), code, "{}", name(reason));
    }
}

/// One error of each kind.
fn all_errors() -> Vec<Error> {
    let damage = Damage { file: "f".into(), position: 1, what: "w".into() };
    let path = || std::path::PathBuf::from("p");
    let mut errors = vec![
        Error::field("f", "e"),
        Error::BadName("..".into()),
        Error::InvalidConfig { key: "k".into(), expected: "e".into() },
        Error::UnknownTopic("t".into()),
        Error::UnknownTopicId("i".into()),
        Error::UnknownPartition { topic: "t".into(), partition: 9, partitions: 3 },
        Error::UnknownNode(4),
        Error::NotLeader { leader: Some(NodeId(3)), address: Some("h:1".into()) },
        Error::NoLeader,
        Error::Draining,
        Error::Starting,
        Error::OutcomeUnknown,
        Error::Overloaded,
        Error::LimitReached { limit: "topics", max: 7 },
        Error::SlowConsumer,
        Error::ClusterMismatch { cluster_id: "c".into() },
        Error::Precondition("p".into()),
        Error::Unexpected("u"),
        MetadataRefusal::TopicExists("t".into()).into(),
        MetadataRefusal::GroupExists("g".into()).into(),
        MetadataRefusal::UnknownGroup("g".into()).into(),
        MetadataRefusal::GroupNotEmpty { group: "g".into(), members: 2 }.into(),
        MetadataRefusal::UnknownMember("m".into()).into(),
        MetadataRefusal::FencedInstance("i".into()).into(),
        Error::NotOwner,
        TooFewNodes { replicas: 3, nodes: 1 }.into(),
        storage::Error::Corrupt(damage).into(),
        storage::Error::NoSpace { path: path(), free: 1, wanted: 2 }.into(),
        storage::Error::Failed { reason: "r".into() }.into(),
        storage::Error::Cold.into(),
        FetchError::OutOfRange { requested: 5, log_start: 6, high_watermark: 7 }.into(),
        AskError::NotLeader { leader: Some(ReplicaId::new(NodeId(3), 1)) }.into(),
        AskError::Transferring.into(),
        AskError::DiskFull.into(),
        AskError::NotTaken(raft::Refused::Stopped).into(),
        AskError::Unknown.into(),
    ];
    errors.extend(batch_errors().map(Error::from));
    errors.extend(refusals().map(|refusal| AskError::Refused(refusal).into()));
    errors
}

fn batch_errors() -> impl Iterator<Item = batch::Error> {
    use batch::{Fault, Measure};
    let measure = Measure::Bytes;
    [
        batch::Error::Corrupt { position: 3, fault: Fault::PastEnd },
        batch::Error::BadChecksum { expected: 1, found: 2 },
        batch::Error::RecordTooLarge { ordinal: 1, measure, found: 9, max: 8 },
        batch::Error::BatchTooLarge { measure, found: 9, max: 8 },
        batch::Error::CompressionLimit {
            compressed_bytes: 1,
            uncompressed_bytes: 101,
            uncompressed_bytes_max: 100,
        },
        batch::Error::UnsupportedCodec { codec: 9 },
    ]
    .into_iter()
}

fn refusals() -> impl Iterator<Item = Refusal> {
    [
        Refusal::UnknownProducer,
        Refusal::ProducerFenced { current: 4 },
        Refusal::OutOfOrderSequence { expected: 1, found: 2 },
        Refusal::SequenceReused { base_sequence: 1, base_offset: 2 },
        Refusal::ReservedProducerId,
        Refusal::TooManyGroups { max: 3 },
        Refusal::IllegalGeneration { current: 3 },
        Refusal::OffsetRegressed { committed: 3 },
        Refusal::Undecodable(CommandError::UnknownCommand { found: 99 }),
    ]
    .into_iter()
}

#[test]
fn every_reason_has_an_error_that_gives_it() {
    let given: BTreeSet<Reason> = all_errors().iter().filter_map(Error::reason).collect();
    let missing: Vec<_> =
        contract().into_iter().filter(|(reason, _)| !given.contains(reason)).collect();
    assert!(missing.is_empty(), "nothing gives {missing:?}");
}

#[test]
fn a_status_says_what_the_error_says() {
    for error in all_errors() {
        let (reason, message) = (error.reason().unwrap(), error.to_string());
        let in_stream = to_in_stream(&error);
        let (leader, effect) = (error.leader(), error.effect());
        let status = to_status(error);
        assert_eq!(reason_of(&status), Some(reason));
        assert_eq!((status.code(), status.message()), (row(reason).0, message.as_str()));
        let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry.map(|delay| delay.as_millis()), row(reason).1.map(u128::from));
        assert_eq!(status.get_details_error_info().unwrap().domain, DOMAIN);
        assert_eq!(in_stream_of(&status), in_stream, "{}", name(reason));
        let passed = Error::from(status);
        assert_eq!(passed.leader(), leader, "{}", name(reason));
        if reason != Reason::Draining {
            assert_eq!(passed.effect(), effect, "{}", name(reason));
        }
    }
}

#[test]
fn what_another_node_answered_passes_through_unchanged() {
    for error in all_errors() {
        let told = to_in_stream(&error);
        let status = to_status(error);
        let passed = to_status(Error::from(status.clone()));
        assert_eq!(passed.code(), status.code());
        assert_eq!((passed.message(), passed.details()), (status.message(), status.details()));
        assert_eq!(to_in_stream(&of_in_stream(told.clone())), told);
    }
}

#[test]
fn the_values_of_the_contract_are_there() {
    let metadata = |error: Error| to_in_stream(&error).metadata;
    let range = FetchError::OutOfRange { requested: 5, log_start: 6, high_watermark: 7 };
    let range = metadata(range.into());
    assert_eq!(range["requested"], "5");
    assert_eq!(range["log_start_offset"], "6");
    assert_eq!(range["high_watermark"], "7");
    let leader = Error::NotLeader { leader: Some(NodeId(3)), address: Some("h:1".into()) };
    let leader = metadata(leader);
    assert_eq!((leader["leader_node"].as_str(), leader["leader_address"].as_str()), ("3", "h:1"));
}

#[test]
fn a_draining_node_is_not_asked_again_but_another_one_may_be() {
    use super::super::error::Effect;
    assert_eq!(Error::Draining.effect(), Effect::Final);
    assert_eq!(Error::from(to_status(Error::Draining)).effect(), Effect::NotDone);
}

#[test]
fn a_status_without_our_details_has_no_reason() {
    let status = Status::unavailable("broken pipe");
    assert_eq!(reason_of(&status), None);
    assert_eq!(Error::from(status).effect(), super::super::error::Effect::Unknown);
    let foreign = ErrorDetails::with_error_info("NOT_LEADER", "another.domain", HashMap::new());
    let status = Status::with_error_details(Code::Unavailable, "m", foreign);
    assert_eq!(reason_of(&status), None);
}
