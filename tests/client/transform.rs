//! From one topic into another, each record once, whoever dies when.

use std::time::Duration;

use quipu::client::{Error, Output, Record, SOURCE_HEADER, Transform, TransformConfig};
use quipu::proto::client as api;
use quipu::proto::client::ErrorReason;
use quipu::proto::client::consume_request::Message as Asked;
use tokio::task::JoinHandle;

use crate::fake::{Fault, TOPIC};
use crate::groups::{GROUP, Session, Stage, assignment};

const RECORDS: u64 = 60;
/// What was committed of the source.
#[derive(Debug, Clone, Default)]
struct Committed {
    next_offset: u64,
    metadata: String,
}

/// Small batches, so that there are many.
async fn transform(stage: &Stage) -> Transform {
    let config = TransformConfig { batch_bytes: 1500, ..TransformConfig::new(GROUP, TOPIC) };
    stage.client().transform(config).await.unwrap()
}

/// Two records of each, but for every fifth, of which comes nothing.
fn make(record: &Record) -> Vec<Output> {
    let output = |half: &str| Output {
        value: Some(format!("{}{half}", record.offset).into()),
        ..Output::default()
    };
    if record.offset % 5 == 4 { Vec::new() } else { vec![output("a"), output("b")] }
}

fn expected(records: u64) -> Vec<String> {
    let made = |n: u64| [format!("{n}a"), format!("{n}b")];
    (0..records).filter(|n| n % 5 != 4).flat_map(made).collect()
}

fn run(mut transform: Transform) -> JoinHandle<Error> {
    tokio::spawn(async move {
        loop {
            if let Err(error) = transform.step(make).await {
                return error;
            }
        }
    })
}

/// Gives the member the source partition where the group is.
async fn assign(session: &Session, number: u64, committed: &Committed) {
    let Committed { next_offset, metadata } = committed.clone();
    let assigned = assignment(number, 0, next_offset);
    session.join(vec![api::Assignment { topic: "source".into(), metadata, ..assigned }]).await;
}

fn of(commit: &api::ConsumeCommit) -> Committed {
    let [offset] = commit.offsets.as_slice() else { panic!("{commit:?} is not of one") };
    Committed { next_offset: offset.next_offset, metadata: offset.metadata.clone() }
}

#[tokio::test]
async fn what_was_stored_before_a_crash_is_not_stored_again() {
    let mut stage = Stage::start().await;
    let first = run(transform(&stage).await);
    let mut session = stage.session().await;
    assign(&session, 1, &Committed::default()).await;
    let commit = session.hear_commit().await;
    let begun = of(&commit);
    assert_eq!((begun.next_offset, &*begun.metadata), (0, "producer=1 output=0"));
    assert!(stage.fake.stored(0).is_empty(), "the producer is committed before it writes");
    session.answer(&commit, &[]).await;
    session.send(1, 0..10).await;
    assert_eq!(of(&session.hear_commit().await).next_offset, 10);
    assert_eq!(stage.fake.stored(0), expected(10));
    // It is killed between storing and committing.
    first.abort();
    drop(session);

    let second = run(transform(&stage).await);
    let mut session = stage.session().await;
    assign(&session, 2, &begun).await;
    let commit = session.hear_commit().await;
    session.answer(&commit, &[]).await;
    session.send(2, 0..15).await;
    let commit = of(&session.hear_commit().await);
    assert_eq!((commit.next_offset, &*commit.metadata), (15, "producer=1 output=24"));
    assert_eq!(stage.fake.stored(0), expected(15));
    let state = stage.fake.state();
    let header = &state.partitions[0].batches[0].batch.as_ref().unwrap().records[1].headers[0];
    assert_eq!((&*header.name, &*header.value), (SOURCE_HEADER, &b"source/0/0"[..]));
    second.abort();
}

#[tokio::test]
async fn a_member_that_was_away_writes_nothing_more() {
    let mut stage = Stage::start().await;
    let first = run(transform(&stage).await);
    let mut away = stage.session().await;
    assign(&away, 1, &Committed::default()).await;
    let commit = away.hear_commit().await;
    away.answer(&commit, &[]).await;
    stage.fake.state().always = Some(Fault::Refuse(ErrorReason::NoLeader));
    away.send(1, 0..10).await;
    let has_tried = async {
        while stage.fake.state().seen.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), has_tried).await.unwrap();

    let second = run(transform(&stage).await);
    let mut session = stage.session().await;
    assign(&session, 2, &of(&commit)).await;
    let commit = session.hear_commit().await;
    session.answer(&commit, &[]).await;
    // The first one has no chance before the second one has taken over.
    session.send(2, 0..7).await;
    let taken = async {
        while stage.fake.state().seen.iter().all(|seen| seen.stamp.unwrap().producer_epoch == 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.unwrap();
    stage.fake.state().always = None;
    assert_eq!(of(&session.hear_commit().await).next_offset, 7);
    // The first one asks whether it may go on, and may not.
    let commit = away.hear_commit().await;
    away.answer(&commit, &[(1, ErrorReason::IllegalGeneration)]).await;
    away.hear_nothing().await;
    assert_eq!(stage.fake.stored(0), expected(7));
    assert!(!first.is_finished() && !second.is_finished());
    first.abort();
    second.abort();
}

/// Plays the server for one member, and has it die after so many commits; `loses_last` if the last
/// one does not stand. Returns whether the member came to the end.
async fn play(
    stage: &mut Stage,
    number: u64,
    committed: &mut Committed,
    commits: u64,
    loses_last: bool,
) -> bool {
    let member = run(transform(stage).await);
    let mut session = stage.session().await;
    assign(&session, number, committed).await;
    for first in (committed.next_offset..RECORDS).step_by(7) {
        session.send(number, first..(first + 7).min(RECORDS)).await;
    }
    for n in 1..=commits {
        if committed.next_offset == RECORDS {
            member.abort();
            return true;
        }
        let Some(Asked::Commit(commit)) = session.hear().await else { panic!("no commit") };
        if n < commits || !loses_last {
            *committed = of(&commit);
            session.answer(&commit, &[]).await;
        }
    }
    member.abort();
    false
}

#[tokio::test]
async fn members_that_die_anywhere_leave_no_gap_and_nothing_twice() {
    for seed in 0..6_u64 {
        let mut stage = Stage::start().await;
        let mut committed = Committed::default();
        for round in 0.. {
            assert!(round < 200, "it never comes to the end");
            let dice = (seed * 7919 + round * 104_729) % 97;
            let faults = [Fault::None, Fault::CutBefore, Fault::CutAfter, Fault::Forget];
            stage.fake.state().faults.push_back(faults[(dice % 4) as usize].clone());
            let (commits, loses_last) = (1 + dice % 5, dice % 2 == 0);
            if play(&mut stage, round + 1, &mut committed, commits, loses_last).await {
                break;
            }
        }
        assert_eq!(stage.fake.stored(0), expected(RECORDS), "seed {seed}");
    }
}

#[tokio::test]
async fn what_something_else_has_committed_is_not_taken_for_progress() {
    let mut stage = Stage::start().await;
    let member = run(transform(&stage).await);
    let session = stage.session().await;
    let metadata = "by hand".to_owned();
    assign(&session, 1, &Committed { next_offset: 5, metadata }).await;
    let error = tokio::time::timeout(Duration::from_secs(10), member).await.unwrap().unwrap();
    assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
    assert!(error.to_string().contains("a group of its own"), "{error}");
}
