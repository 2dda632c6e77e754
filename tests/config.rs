//! Tests of the configuration from outside: `quipu config`, and defaults that are the library's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use assert_cmd::Command;
use quipu::config::ServerConfig;
use quipu::{batch, raft, storage};

/// `quipu` without whatever is in this environment.
fn quipu(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("quipu"));
    command.env_clear().args(args);
    command
}

fn output(mut command: Command, code: i32) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}{err}");
    (out, err)
}

#[test]
fn defaults_are_those_of_the_library() {
    let config = ServerConfig::default();
    let (found, expected) = (config.storage, storage::Config::default());
    let found = storage::Config {
        segment_bytes: found.segment_bytes,
        index_interval_bytes: found.index_interval_bytes,
        allocation_bytes_first: found.allocation_bytes_first,
        allocation_bytes_max: found.allocation_bytes_max,
        spares_max: found.spares_max,
        open_segments_max: found.open_segments_max,
        low_water_bytes: found.low_water_bytes,
        reserve_bytes: found.reserve_bytes,
        sync_threads: found.sync_threads,
        sync_filesystem_from: found.sync_filesystem_from,
        journal_rewrite_bytes: found.journal_rewrite_bytes,
    };
    assert_eq!(found, expected);
    let (found, expected) = (config.raft, raft::Config::default());
    let found = raft::Config {
        tick_ms: found.tick_ms,
        election_ticks: found.election_ticks,
        heartbeat_ticks: found.heartbeat_ticks,
        append_bytes_max: found.append_bytes_max,
        appends_in_flight_max: found.appends_in_flight_max,
        tail_bytes_max: found.tail_bytes_max,
        slow_disk_ticks: found.slow_disk_ticks,
        cold_reads_max: found.cold_reads_max,
        ..expected.clone()
    };
    assert_eq!(found, expected);
    assert_eq!(config.limits.batch, batch::Limits::default());
}

#[test]
fn show_says_what_holds_and_where_from() {
    let mut command = quipu(&["config", "show", "--dev", "--rack", "r1", "--origin"]);
    command.env("QUIPU_RAFT_TICK_MS", "50");
    let (out, _) = output(command, 0);
    let line = |key: &str| {
        let found = out.lines().find(|line| line.split_whitespace().next() == Some(key));
        found.unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("rack"), "r1 --rack");
    assert_eq!(line("raft.tick_ms"), "50 QUIPU_RAFT_TICK_MS");
    assert_eq!(line("storage.segment_bytes"), "64MiB default");
    assert_eq!(line("data_dir"), "- default");
}

#[test]
fn show_prints_json() {
    let (out, _) = output(quipu(&["-o", "json", "config", "show", "--dev"]), 0);
    let rows: serde_json::Value = serde_json::from_str(&out).unwrap();
    let row = |key: &str| {
        let rows = rows.as_array().unwrap();
        rows.iter().find(|row| row["key"] == key).unwrap().clone()
    };
    let expected = serde_json::json!(
        { "key": "dev", "value": true, "source": "flag", "place": "--dev" }
    );
    assert_eq!(row("dev"), expected);
    let expected = serde_json::json!(
        { "key": "append_room_bytes", "value": 256 << 20, "source": "default" }
    );
    assert_eq!(row("append_room_bytes"), expected);
    assert_eq!(row("data_dir")["value"], serde_json::Value::Null);
    assert_eq!(row("seeds")["value"], serde_json::json!(["1@127.0.0.1:7501"]));
}

#[test]
fn what_is_wrong_is_said_on_standard_error_and_the_code_is_2() {
    let mut command = quipu(&["config", "show", "--dev", "--listen", "localhost"]);
    command.env("QUIPU_LISTN", "x");
    let (out, err) = output(command, 2);
    assert_eq!(out, "");
    let expected = "error: the configuration is refused\n  \
         environment: there is no variable `QUIPU_LISTN`; did you mean `QUIPU_LISTEN`?\n  \
         --listen: listen is `localhost`; allowed: an IP address with a port, like \
         127.0.0.1:7401\n";
    assert_eq!(err, expected);
    output(quipu(&["config", "show", "--no-such-flag"]), 2);
}

#[test]
fn the_sample_is_accepted() {
    let (sample, _) = output(quipu(&["config", "sample"]), 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), sample).unwrap();
    let path = file.path().to_str().unwrap();
    let (out, _) = output(quipu(&["config", "show", "--config", path, "--origin"]), 0);
    assert!(out.contains(&format!("{path}:")), "{out}");
}
