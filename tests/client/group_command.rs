//! The commands for groups.

use std::process::{Output, Stdio};

use quipu::proto::client as api;
use quipu::proto::client::consume_request::Message as Asked;
use quipu::proto::client::group_place::Place;
use tokio::io::AsyncReadExt as _;

use crate::command::{json, out, quipu, text};
use crate::fake::{Fake, TOPIC};
use crate::groups::{GROUP, Stage, assignment};

#[track_caller]
fn usage(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    text(&output.stderr)
}

#[tokio::test]
async fn a_group_is_made_where_it_is_said_to_start() {
    let fake = Fake::start(1).await;
    let create = ["group", "create", GROUP, "--topic", TOPIC, "--topic", "pay-*"];
    let output = quipu(&fake, &create, "").await;
    assert!(usage(&output).contains("--start earliest"), "{output:?}");

    let start = ["--start", "group:audit", "--session-timeout", "10s", "-o", "json"];
    let group = json(&quipu(&fake, &[&create[..], &start].concat(), "").await);
    assert_eq!((&group["name"], &group["members"][0]["node"]), (&GROUP.into(), &1.into()));
    let created = fake.state().groups.created.remove(0);
    assert_eq!(created.topics, [TOPIC, "pay-*"]);
    assert_eq!((created.session_timeout_ms, created.expire_after_idle_ms), (10_000, 0));
    assert_eq!(created.start.unwrap().place, Some(Place::Group("audit".into())));
}

#[tokio::test]
async fn groups_are_listed_and_described() {
    let fake = Fake::start(1).await;
    let listed = json(&quipu(&fake, &["group", "list", "-o", "json"], "").await);
    assert_eq!((&listed[0]["name"], &listed[1]["name"]), (&GROUP.into(), &"shipping".into()));
    let output = quipu(&fake, &["group", "describe", GROUP], "").await;
    assert!(out(&output).contains("MEMBER  INSTANCE  CLIENT"), "{output:?}");
    assert!(out(&output).contains("session timeout = 30s"), "{output:?}");
}

#[tokio::test]
async fn lag_tells_what_was_committed_from_what_was_not() {
    let fake = Fake::start(1).await;
    let lag = json(&quipu(&fake, &["group", "lag", GROUP, "-o", "json"], "").await);
    assert_eq!(lag["group"], GROUP);
    let [first, second] = lag["partitions"].as_array().unwrap().as_slice() else { panic!("{lag}") };
    assert_eq!((&first["committed"], &first["lag"]), (&40.into(), &60.into()));
    assert_eq!((&first["lag_ms"], &first["member_id"]), (&61_500.into(), &"m1".into()));
    assert!(second["committed"].is_null(), "{lag}");
    assert_eq!(second["next_offset"], 0);
    let table = quipu(&fake, &["group", "lag", GROUP], "").await;
    assert!(out(&table).contains("1m 1s"), "{table:?}");
}

#[tokio::test]
async fn a_reset_says_what_it_moves_and_what_it_cannot() {
    let fake = Fake::start(1).await;
    let args = ["group", "reset", GROUP, "--to", "earliest", "--topic", "orders:0,1", "--dry-run"];
    let output = quipu(&fake, &args, "").await;
    assert_eq!(output.status.code(), Some(1), "one partition failed: {output:?}");
    assert!(text(&output.stdout).contains("orders          0      40      0"), "{output:?}");
    assert!(text(&output.stderr).contains("orders/1: scripted NO_LEADER"), "{output:?}");
    assert!(text(&output.stderr).contains("dry run"), "{output:?}");
    let reset = fake.state().groups.resets.remove(0);
    assert!(reset.dry_run);
    assert_eq!(reset.to.unwrap().place, Some(Place::Earliest(true)));
    let partitions = vec![0, 1];
    assert_eq!(reset.topics, [api::TopicPartitions { topic: TOPIC.into(), partitions }]);
    let output = quipu(&fake, &["group", "reset", GROUP], "").await;
    assert!(usage(&output).contains("--to"), "there is no default: {output:?}");
}

#[tokio::test]
async fn a_group_with_members_is_deleted_by_force_only() {
    let fake = Fake::start(1).await;
    let output = quipu(&fake, &["group", "delete", GROUP], "").await;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert!(text(&output.stderr).contains("--force"), "{output:?}");
    let output = quipu(&fake, &["group", "delete", GROUP, "--force"], "").await;
    assert!(out(&output).starts_with("deleted billing"), "{output:?}");
}

#[tokio::test]
async fn an_unknown_group_is_to_be_made_first() {
    let fake = Fake::start(1).await;
    for args in [&["consume", "--group", "biling"][..], &["group", "lag", "biling"]] {
        let output = quipu(&fake, args, "").await;
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.contains("did you mean `billing`?"), "{error}");
        assert!(error.contains("quipu group create biling --topic"), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_go_with_a_group_is_refused() {
    let fake = Fake::start(1).await;
    let from = ["consume", TOPIC, "--group", GROUP, "--from", "earliest"];
    let output = quipu(&fake, &from, "").await;
    assert!(usage(&output).contains("quipu group reset billing --to"), "{output:?}");
    for args in [
        &["consume"][..],
        &["consume", TOPIC, "payments"],
        &["consume", TOPIC, "--no-commit"],
        &["consume", TOPIC, "--instance", "i"],
        &["consume", TOPIC, "--group", GROUP, "--partition", "0"],
        &["consume", "--group", GROUP, "--no-commit", "--auto-commit", "1s"],
    ] {
        let output = quipu(&fake, args, "").await;
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
    let output = quipu(&fake, &["consume", "payments", "--group", GROUP], "").await;
    assert!(text(&output.stderr).contains("it reads orders"), "{output:?}");
}

#[tokio::test]
async fn a_group_is_read_to_its_end_and_committed() {
    let mut stage = Stage::start().await;
    let server = stage.fake.addresses.map(|address| address.to_string()).join(",");
    let reading = tokio::task::spawn_blocking(move || {
        let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
        command.env("QUIPU_SERVER", server).args(["consume", "--group", GROUP, "--to-end"]);
        command.args(["-o", "%t/%p %o\\n", "--instance", "till-1"]).output().unwrap()
    });
    let mut session = stage.session().await;
    assert_eq!(session.join.instance, "till-1");
    let at = |number, partition| api::Assignment {
        high_watermark: 12,
        ..assignment(number, partition, 10)
    };
    session.join(vec![at(1, 0), at(2, 1)]).await;
    session.send(1, 10..12).await;
    session.send(2, 10..12).await;
    let mut committed = std::collections::BTreeMap::new();
    while committed.values().ne(&[12, 12]) {
        let commit = session.hear_commit().await;
        session.answer(&commit, &[]).await;
        let offsets = commit.offsets.iter();
        committed.extend(offsets.map(|offset| (offset.assignment, offset.next_offset)));
    }
    assert_eq!(session.hear().await, None, "a member with a name keeps its partitions");
    drop(session);
    let output = reading.await.unwrap();
    assert_eq!(out(&output), "orders/0 10\norders/0 11\norders/1 10\norders/1 11\n");
    assert!(text(&output.stderr).contains("reading orders/0 at 10"), "{output:?}");
}

#[tokio::test]
async fn an_interrupted_reader_commits_and_leaves() {
    let mut stage = Stage::start().await;
    let server = stage.fake.addresses.map(|address| address.to_string()).join(",");
    let mut command = tokio::process::Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
    command.env("QUIPU_SERVER", server).args(["consume", "--group", GROUP]);
    command.args(["--auto-commit", "1h"]).stdout(Stdio::piped()).kill_on_drop(true);
    let mut reader = command.spawn().unwrap();
    let mut session = stage.session().await;
    session.join(vec![assignment(1, 0, 0)]).await;
    session.send(1, 0..1).await;
    let mut line = [0; 101];
    reader.stdout.as_mut().unwrap().read_exact(&mut line).await.unwrap();
    assert!(line.ends_with(b"0\n"));
    let pid = reader.id().unwrap().to_string();
    let killed = tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await;
    assert!(killed.unwrap().success());
    assert_eq!(session.take_commit().await, (1, 1));
    assert_eq!(session.hear().await, Some(Asked::Leave(api::ConsumeLeave {})));
    drop(session);
    assert!(reader.wait().await.unwrap().success());
}
