//! Tests of the configuration: the layers, what is refused and how, and the table itself.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file;
use super::key::{Fallback, Kind};
use super::server::ServerConfig;
use super::*;
use crate::types::NodeId;

/// Flags that make a configuration complete, with `more` of them.
fn args(more: &[(&'static str, &str)]) -> Args {
    let needed = [("node_id", "1"), ("data_dir", "/d"), ("seeds", "1@a:7501")];
    let given = needed.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let given = given.chain(more).map(|(name, text)| (*name, (*text).to_owned()));
    Args { config: None, given: given.collect() }
}

fn variables(of: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    of.iter().map(|(name, text)| (name.into(), text.into())).collect()
}

#[track_caller]
fn loaded(more: &[(&'static str, &str)]) -> ServerConfig {
    load(&args(more), []).unwrap().config
}

/// The lines of the refusal.
#[track_caller]
fn refused(args: &Args, environment: &[(&str, &str)]) -> Vec<String> {
    let error = load(args, variables(environment)).unwrap_err();
    error.to_string().lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

#[track_caller]
fn refuses(more: &[(&'static str, &str)], expected: &[&str]) {
    assert_eq!(refused(&args(more), &[]), expected);
}

fn written(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quipu.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn names_are_unique_and_well_formed() {
    let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
    let variables: BTreeSet<_> = KEYS.iter().map(Key::variable).collect();
    let flags: BTreeSet<_> = KEYS.iter().map(Key::flag).collect();
    assert_eq!((names.len(), variables.len(), flags.len()), (KEYS.len(), KEYS.len(), KEYS.len()));
    for key in KEYS {
        let is_name_char = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '.');
        assert!(key.name.chars().all(is_name_char), "{}", key.name);
        assert!(key.name.matches('.').count() <= 1, "{}", key.name);
        assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{}", key.name);
        let has_bytes = key.name.split(['_', '.']).any(|word| word == "bytes");
        let shows_bytes = key.allowed().contains("KiB");
        assert_eq!(has_bytes, shows_bytes, "{}: bytes are in the name", key.name);
        assert!(!matches!(key.kind, Kind::Time { .. }) || key.name.ends_with("_ms"));
    }
}

#[test]
fn sections_stand_together() {
    let mut sections: Vec<_> = KEYS.iter().map(Key::section).collect();
    sections.dedup();
    let unique: BTreeSet<_> = sections.iter().collect();
    assert_eq!(sections.len(), unique.len(), "{sections:?}");
    assert_eq!(sections[0], "", "keys without a section come first in a file");
}

#[test]
fn defaults_and_examples_are_allowed() {
    for key in KEYS {
        let (Fallback::Text(text) | Fallback::Derived(_, text) | Fallback::Required(text)) =
            key.fallback;
        assert!(key.apply(text, &mut ServerConfig::blank()).is_some(), "{}", key.name);
    }
}

#[test]
fn every_key_sets_a_field_of_its_own() {
    let mut outcomes = BTreeSet::new();
    for key in KEYS {
        let other = match key.kind {
            Kind::Number { max, .. } => max.to_string(),
            Kind::Time { max_ms, .. } => max_ms.to_string(),
            Kind::Switch(_) => "true".to_owned(),
            Kind::Word { allowed, .. } => (*allowed.last().unwrap()).to_owned(),
            Kind::Address(_) => "9.9.9.9:9".to_owned(),
            Kind::Endpoint(_) => "nine:9".to_owned(),
            Kind::Seeds(_) => "9@nine:9".to_owned(),
            Kind::Directory(_) | Kind::Label(_) => "nine".to_owned(),
            Kind::Filter(_) => "trace".to_owned(),
        };
        let mut config = ServerConfig::blank();
        assert!(key.apply(&other, &mut config).is_some(), "{} = {other}", key.name);
        assert_ne!(config, ServerConfig::blank(), "{} sets nothing", key.name);
        assert!(outcomes.insert(format!("{config:?}")), "{} sets another's field", key.name);
    }
}

#[test]
fn the_last_layer_wins_and_is_named() {
    let (_dir, path) = written(
        "rack = \"file\"\nlisten = \"127.0.0.1:1\"\n\n[storage]\nspares_max = 7\n\
         segment_bytes = \"1MiB\"\n",
    );
    let mut args = args(&[("rack", "flag")]);
    args.config = Some(path.clone());
    let environment = [("QUIPU_RACK", "env"), ("QUIPU_LISTEN", "127.0.0.1:2"), ("HOME", "/")];
    let loaded = load(&args, variables(&environment)).unwrap();
    let config = &loaded.config;
    assert_eq!(config.rack, "flag");
    assert_eq!(config.listen, SocketAddr::from(([127, 0, 0, 1], 2)));
    assert_eq!((config.storage.spares_max, config.storage.segment_bytes), (7, 1 << 20));
    assert_eq!(config.raft.tick_ms, 100);
    let origin = |name| {
        let setting = loaded.settings.iter().find(|setting| setting.name == name);
        setting.unwrap().origin.clone()
    };
    assert_eq!(origin("rack"), Origin::Flag("--rack".to_owned()));
    assert_eq!(origin("listen"), Origin::Variable("QUIPU_LISTEN".to_owned()));
    assert_eq!(origin("storage.spares_max"), Origin::File(path.clone(), 5));
    assert_eq!(origin("storage.spares_max").to_string(), format!("{}:5", path.display()));
    assert_eq!(origin("raft.tick_ms"), Origin::Default);
}

#[test]
fn the_file_can_be_named_in_the_environment() {
    let (_dir, path) = written("rack = \"r1\"");
    let environment = [("QUIPU_CONFIG", path.to_str().unwrap())];
    assert_eq!(load(&args(&[]), variables(&environment)).unwrap().config.rack, "r1");
}

#[test]
fn values_have_units() {
    let of = |text| loaded(&[("storage.segment_bytes", text)]).storage.segment_bytes;
    assert_eq!((of("2097152"), of("2MiB"), of("2048 KiB")), (2 << 20, 2 << 20, 2 << 20));
    let of = |text| loaded(&[("drain_timeout_ms", text)]).drain_timeout;
    assert_eq!((of("1500"), of("1s 500ms")), (Duration::from_millis(1500), of("1500ms")));
}

#[test]
fn what_is_not_set_is_worked_out() {
    let config = loaded(&[("listen", "127.0.0.1:9")]);
    assert_eq!((config.advertise.as_str(), config.shards > 0), ("127.0.0.1:9", true));
    assert_eq!(config.peer_advertise, "127.0.0.1:7501");
    let config = loaded(&[("listen", "0.0.0.0:9"), ("advertise", "log-1:9")]);
    assert_eq!(config.advertise, "log-1:9");
}

#[test]
fn dev_needs_nothing_else() {
    let config = ServerConfig::default();
    assert_eq!((config.node_id, config.data_dir.clone(), config.dev), (NodeId(1), None, true));
    assert_eq!(config.seeds, [(NodeId(1), "127.0.0.1:7501".to_owned())]);
    let args = Args { given: vec![("dev", "true".into()), ("join", "true".into())], config: None };
    let why = "join is true (--join), but with dev a node founds a cluster of its own";
    assert_eq!(refused(&args, &[]), [why]);
}

#[test]
fn what_must_be_set_is_asked_for_all_at_once() {
    let refused = refused(&Args::default(), &[]);
    assert_eq!(refused.len(), 3);
    let first = "node_id is not set: use --node-id, QUIPU_NODE_ID or the file \
                 (or try out with --dev)";
    assert_eq!(refused[0], first);
}

#[test]
fn a_bad_value_is_told_with_its_source_and_what_is_allowed() {
    let number = "--node-id: node_id is `0`; allowed: a whole number from 1 to 1048575";
    refuses(&[("node_id", "0")], &[number]);
    let environment = [("QUIPU_STORAGE_SEGMENT_BYTES", "64MB")];
    let bytes = "QUIPU_STORAGE_SEGMENT_BYTES: storage.segment_bytes is `64MB`; allowed: a number \
                 of bytes, or of KiB, MiB or GiB like 64MiB, from 1MiB to 1GiB";
    assert_eq!(refused(&args(&[]), &environment), [bytes]);
    let (_dir, path) = written("\njoin = 1.5\nraft.tick_ms = 0x10\n");
    let mut args = args(&[]);
    args.config = Some(path.clone());
    let expected = [
        format!("{}:2: join is `a TOML float`; allowed: true or false", path.display()),
        format!(
            "{}:3: raft.tick_ms is `a TOML integer`; allowed: a whole number from 10 to 10000",
            path.display()
        ),
    ];
    assert_eq!(refused(&args, &[]), expected);
}

#[test]
fn each_kind_refuses_what_it_does_not_take() {
    for (name, texts) in [
        ("node_id", &["", "-1", "1.0", "1048576", "18446744073709551616", "+1", "1MiB"][..]),
        ("listen", &["", "localhost:1", "1.2.3.4", "1.2.3.4:65536", "1.2.3.4:x"]),
        ("advertise", &["", "a", ":1", "a:", "a:65536", "a b:1", "[::1:1", "a@b:1", "a:+1"]),
        ("seeds", &["", "1", "1@", "@a:1", "0@a:1", "1@a:1,", "1@a:1,1@b:1", "1@a:1,2@a:1"]),
        ("join", &["", "yes", "1", "TRUE"]),
        ("rack", &["a b", "ä", &"x".repeat(65)]),
        ("log.level", &["", "inof", "info,debug", "quipu=debug", "info,=debug", "info,a=loud"]),
        ("log.format", &["", "xml", "JSON"]),
        ("drain_timeout_ms", &["", "1.5", "-1s", "2h", "1us", "soon"]),
        ("append_room_bytes", &["", "1", "4GiB", "MiB", "1.5MiB", "99999999999999999999MiB"]),
    ] {
        for text in texts {
            let lines = refused(&args(&[(name, text)]), &[]);
            assert!(lines[0].contains(&format!("{name} is `{text}`; allowed: ")), "{lines:?}");
        }
    }
    for (name, text) in [
        ("advertise", "[::1]:1"),
        ("listen", "[::1]:1"),
        ("log.level", "warn,quipu::raft=debug,h2=off"),
        ("seeds", "1@a:1, 2@b.c-d:2"),
        ("rack", ""),
    ] {
        loaded(&[(name, text)]);
    }
}

#[test]
fn what_is_unknown_is_refused_with_a_suggestion() {
    let (_dir, path) = written("segment_bytes = 1\n[storage]\nsegment_byts = 1\n[peers]\nx = 1\n");
    let mut args = args(&[]);
    args.config = Some(path.clone());
    let at = |line: usize| format!("{}:{line}: there is no key", path.display());
    let mut expected = [
        format!("{} `segment_bytes`; did you mean `storage.segment_bytes`?", at(1)),
        format!("{} `storage.segment_byts`; did you mean `storage.segment_bytes`?", at(3)),
        format!("{} `peers.x`", at(5)),
    ];
    let mut found = refused(&args, &[]);
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn unknown_variables_are_refused_but_those_of_clients_are_not() {
    let lines = refused(&args(&[]), &[("QUIPU_LISTN", "x"), ("QUIPU_SERVER", "x")]);
    let typo = "environment: there is no variable `QUIPU_LISTN`; did you mean `QUIPU_LISTEN`?";
    assert_eq!(lines, [typo]);
    let lines = refused(&args(&[]), &[("QUIPU_PORT_7401_TCP", "tcp://10.0.0.1:7401")]);
    assert!(lines[0].contains("enableServiceLinks: false"), "{lines:?}");
    load(&args(&[]), variables(&[("QUIPU_SERVER", "a:1"), ("QUIPUX", "1")])).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let mut args = args(&[]);
    args.config = Some("/no/such/quipu.toml".into());
    let lines = refused(&args, &[]);
    assert!(lines[0].starts_with("/no/such/quipu.toml: the configuration file"), "{lines:?}");
    let (_dir, path) = written("rack = \"a\"\nrack = \"b\"\n");
    args.config = Some(path.clone());
    let lines = refused(&args, &[]);
    assert!(lines[0].starts_with(&format!("{}:2: ", path.display())), "{lines:?}");
    let (_dir, path) = written(&"#".repeat((1 << 20) + 1));
    args.config = Some(path);
    assert!(refused(&args, &[])[0].contains("longer than 1048576 bytes"));
}

#[test]
fn keys_must_fit_each_other() {
    refuses(
        &[("raft.heartbeat_ticks", "8")],
        &["raft.heartbeat_ticks is 8 (--raft-heartbeat-ticks), but it can be at most 5: half of \
           raft.election_ticks"],
    );
    refuses(
        &[("limits.message_bytes_max", "4MiB")],
        &["limits.batch_bytes_max is 4MiB (default), but it can be at most 4032KiB: \
           limits.message_bytes_max less 64KiB for what comes with a batch"],
    );
    refuses(
        &[("peer_listen", "0.0.0.0:7401"), ("peer_advertise", "a:1")],
        &["peer_listen is 0.0.0.0:7401 (--peer-listen), but listen is 127.0.0.1:7401 already"],
    );
    refuses(
        &[("listen", "0.0.0.0:7401")],
        &["advertise is 0.0.0.0:7401 (default), but nobody can call that: set it to an address \
           that the others can reach"],
    );
}

#[test]
fn seeds_fit_what_they_are_for() {
    refuses(
        &[("seeds", "2@b:1,3@c:1")],
        &["seeds is 2@b:1,3@c:1 (--seeds), but node 1 is not in there: the nodes that found a \
           cluster list all of them (to add a node to a cluster, use join)"],
    );
    refuses(
        &[("seeds", "1@a:1"), ("join", "true")],
        &["seeds is 1@a:1 (--seeds), but a node that joins needs seeds other than itself, node 1"],
    );
    loaded(&[("seeds", "2@b:1"), ("join", "true")]);
}

#[test]
fn the_sample_names_every_key_and_is_good() {
    let sample = sample();
    assert!(sample.lines().all(|line| line.chars().count() <= 100), "{sample}");
    let path = Path::new("sample");
    let names = |text: &str| {
        let entries = file::parse(path, text).unwrap();
        entries.into_iter().map(|entry| entry.name).collect::<BTreeSet<_>>()
    };
    let (_dir, written_path) = written(&sample);
    let args = Args { config: Some(written_path), given: Vec::new() };
    let loaded = load(&args, []).unwrap().config;
    let dev = ServerConfig::default();
    assert_eq!((loaded.storage, loaded.raft, loaded.limits), (dev.storage, dev.raft, dev.limits));
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => rest.to_owned(),
        _ => line.to_owned(),
    };
    let all: Vec<_> = sample.lines().map(uncommented).collect();
    let known: BTreeSet<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    assert_eq!(names(&all.join("\n")), known);
}

#[test]
fn flags_come_from_the_table() {
    use clap::{Args as _, FromArgMatches as _};
    let command = Args::augment_args(clap::Command::new("serve"));
    command.clone().debug_assert();
    let line = ["serve", "--dev", "--rack", "a", "--storage-segment-bytes=2MiB", "--join=false"];
    let matches = command.clone().try_get_matches_from(line).unwrap();
    let args = Args::from_arg_matches(&matches).unwrap();
    let given = |name| args.given.iter().find(|(n, _)| *n == name).map(|(_, t)| t.as_str());
    assert_eq!(
        (given("dev"), given("rack"), given("join")),
        (Some("true"), Some("a"), Some("false"))
    );
    assert_eq!((given("storage.segment_bytes"), given("listen")), (Some("2MiB"), None));
    let help = command.clone().render_long_help().to_string();
    for key in KEYS {
        assert!(help.contains(&format!("--{}", key.flag())), "{}", key.name);
        assert!(help.contains(&key.variable()), "{}", key.name);
    }
}
