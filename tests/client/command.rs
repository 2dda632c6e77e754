//! The commands that talk to a server.

use std::process::Output;

use serde_json::Value;

use crate::fake::{Fake, TOPIC};

/// Runs `quipu` against the fake cluster.
pub(crate) async fn quipu(fake: &Fake, args: &[&str], input: &str) -> Output {
    let server = fake.addresses.map(|address| address.to_string()).join(",");
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let input = input.to_owned();
    let run = move || {
        let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
        command.env("QUIPU_SERVER", server).args(args).write_stdin(input).output().unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
pub(crate) fn out(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

pub(crate) fn json(output: &Output) -> Value {
    serde_json::from_str(out(output)).unwrap()
}

#[tokio::test]
async fn lines_are_produced_and_consumed() {
    let fake = Fake::start(1).await;
    let input = "k1:first\nk2:second\nk3:third";
    let args = ["produce", TOPIC, "--key-separator", ":", "--header", "h=1", "-o", "json"];
    let summary = json(&quipu(&fake, &args, input).await);
    assert_eq!((&summary["records"], &summary["bytes"]), (&3.into(), &25.into()));

    let raw = quipu(&fake, &["consume", TOPIC, "--to-end"], "").await;
    assert_eq!(out(&raw), "first\nsecond\nthird\n");
    assert_eq!(text(&raw.stderr), "reading orders from partition 0 at 0\n");

    let template = "%t/%p %o %k=%v %h %T\\n";
    let args = ["consume", TOPIC, "--from", "1", "--to-end", "-o", template];
    assert_eq!(
        out(&quipu(&fake, &args, "").await),
        "orders/0 1 k2=second h=1 2023-11-14T22:13:20.000Z\n\
         orders/0 2 k3=third h=1 2023-11-14T22:13:20.000Z\n"
    );

    let args = ["consume", TOPIC, "--from", "earliest", "--max", "1", "-o", "json"];
    let line = json(&quipu(&fake, &args, "").await);
    assert_eq!(line["value"], "first");
    assert_eq!(line["headers"][0]["name"], "h");
}

#[tokio::test]
async fn a_line_that_cannot_be_a_record_is_named() {
    let fake = Fake::start(1).await;
    let args = ["produce", TOPIC, "--key-separator", ":"];
    let output = quipu(&fake, &args, "a:1\nb\nc:3\n").await;
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("stored before it: 1 record\n"), "{error}");
    assert!(error.contains("line 2: the separator"), "{error}");
    assert_eq!(fake.stored(0), ["1"]);
}

#[tokio::test]
async fn topics_are_described() {
    let fake = Fake::start(2).await;
    let described = json(&quipu(&fake, &["topic", "describe", TOPIC, "-o", "json"], "").await);
    assert_eq!(described["name"], TOPIC);
    assert_eq!(described["config"]["durability"], "fsync");
    assert_eq!(described["partitions"][1]["partition"], 1);
    assert_eq!(described["partitions"][1]["leader"], 1);
    assert_eq!(described["partitions"][1]["high_watermark"], 0);
    let listed = json(&quipu(&fake, &["-o", "json", "topic", "list"], "").await);
    assert_eq!(listed[1]["name"], "payments", "{listed}");
}

#[tokio::test]
async fn an_unknown_topic_suggests_the_nearest() {
    let fake = Fake::start(1).await;
    for args in [&["topic", "describe", "oders"][..], &["produce", "oders"], &["consume", "oders"]]
    {
        let output = quipu(&fake, args, "").await;
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let error = text(&output.stderr);
        assert!(error.ends_with("hint: did you mean `orders`?\n"), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_unavailable() {
    let fake = Fake::start(1).await;
    let args = ["--server", "127.0.0.1:1", "--timeout", "300ms", "cluster", "status"];
    let output = quipu(&fake, &args, "").await;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(text(&output.stderr).contains("hint: check the address"), "{output:?}");
}

#[tokio::test]
async fn a_cluster_is_described() {
    let fake = Fake::start(1).await;
    let status = json(&quipu(&fake, &["cluster", "status", "-o", "json"], "").await);
    assert_eq!((&status["ok"], &status["nodes"][1]["node"]), (&true.into(), &2.into()));
    let nodes = quipu(&fake, &["cluster", "nodes"], "").await;
    assert!(out(&nodes).starts_with("NODE  ALIVE  STATE"), "{nodes:?}");
}

#[tokio::test]
async fn only_records_are_printed_raw() {
    let fake = Fake::start(1).await;
    for output in ["raw", "%v"] {
        let output = quipu(&fake, &["topic", "list", "-o", output], "").await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[tokio::test]
async fn reasons_are_explained() {
    let fake = Fake::start(1).await;
    let one = quipu(&fake, &["errors", "no-leader"], "").await;
    assert!(out(&one).contains("election"), "{one:?}");
    let all = json(&quipu(&fake, &["errors", "-o", "json"], "").await);
    assert!(all.as_array().unwrap().len() > 30);
    let output = quipu(&fake, &["errors", "NO_SUCH"], "").await;
    assert_eq!(output.status.code(), Some(3));
}

#[tokio::test]
async fn shells_get_their_completions() {
    let fake = Fake::start(1).await;
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&quipu(&fake, &["completions", shell], "").await).contains("quipu"));
    }
}
