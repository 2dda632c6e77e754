//! Layers: which module may name which, and who owns which crate.
//!
//! A module may name the modules below its own layer, its neighbors in the layer, the utilities and
//! the leaves. Two neighbors may not name each other both ways.

use std::collections::BTreeMap;

use crate::paths::{NamedPath, named_paths};
use crate::scan::Token;
use crate::source::{Breach, Source};

/// The layers, the highest first.
const LAYERS: [&[&str]; 8] = [
    &["main"],
    &["cli"],
    &["server"],
    &["rpc"],
    &["cluster", "group", "federation"],
    &["partition"],
    &["raft"],
    &["storage"],
];
/// Usable by all layers; they know only each other and the leaves.
const UTILITIES: [&str; 3] = ["config", "telemetry", "shutdown"];
/// Usable by all; they know only each other.
const LEAVES: [&str; 3] = ["batch", "proto", "types"];
/// A user of the public API only: it knows nothing but the leaves.
const CLIENT: &str = "client";
/// The modules that talk to clusters from outside.
const CLIENT_USERS: [&str; 3] = ["main", "cli", "federation"];

/// Crates and modules from outside, each with the modules that may name it.
const OWNERS: [(&str, &[&str]); 8] = [
    ("tonic", &["rpc", "client", "proto"]),
    ("raft", &["raft"]),
    ("std::fs", &["storage::fs", "config::file", "telemetry::process"]),
    ("std::os::unix::fs", &["storage::fs"]),
    ("tokio::fs", &["storage::fs"]),
    ("rustix", &["storage::fs"]),
    ("libc", &["storage::fs"]),
    ("memmap2", &["storage::fs"]),
];
/// Tests may make, damage and inspect files behind the back of their owner. The others that may
/// name `std::fs` only read what is none of the log's: the configuration file and `/proc`.
const FILE_OWNER: &str = "storage::fs";

/// Storage is synchronous and knows no network.
const STRANGERS_TO_STORAGE: [&str; 4] = ["tokio", "tonic", "prost", "raft"];

pub(crate) fn every_module_has_a_layer(source: &Source) -> Vec<Breach> {
    let module = source.module();
    let is_known = module.first().is_none_or(|top| is_module(top));
    if !source.in_crate() || is_known {
        return Vec::new();
    }
    vec![source.breach(1, format!("module `{}` has no layer in the tidy test", module[0]))]
}

pub(crate) fn dependencies_point_down(source: &Source) -> Vec<Breach> {
    let dependencies = dependencies(source).into_iter();
    let upward = dependencies.filter(|(from, to, _)| !may_name(from, to));
    upward
        .map(|(from, to, line)| source.breach(line, format!("`{from}` must not name `{to}`")))
        .collect()
}

pub(crate) fn neighbors_depend_one_way(sources: &[Source]) -> Vec<Breach> {
    let mut seen: BTreeMap<(String, String), Breach> = BTreeMap::new();
    for source in sources {
        for (from, to, line) in dependencies(source) {
            let message = format!("`{from}` and `{to}` name each other");
            seen.entry((from, to)).or_insert_with(|| source.breach(line, message));
        }
    }
    let both_ways = |from: &String, to: &String| {
        from != to && seen.contains_key(&(to.clone(), from.clone())) && may_name(from, to)
    };
    let found = seen.keys().filter(|(from, to)| both_ways(from, to) && may_name(to, from));
    let found: Vec<_> = found.cloned().collect();
    found.into_iter().filter_map(|pair| seen.remove(&pair)).collect()
}

pub(crate) fn crates_have_owners(source: &Source) -> Vec<Breach> {
    if !source.in_crate() {
        return Vec::new();
    }
    let paths = named_paths(source);
    paths.iter().filter_map(|path| owner_breach(source, path)).collect()
}

fn owner_breach(source: &Source, path: &NamedPath) -> Option<Breach> {
    let (outer, owners) = OWNERS.iter().find(|(outer, _)| path.is_within(outer))?;
    let is_owner = owners.iter().any(|owner| source.is_within(owner));
    let is_file_in_test = owners.contains(&FILE_OWNER) && source.is_test_line(path.line);
    let message = format!("only {} may name `{outer}`", owners.join(", "));
    (!is_owner && !is_file_in_test).then(|| source.breach(path.line, message))
}

pub(crate) fn storage_is_synchronous(source: &Source) -> Vec<Breach> {
    if !source.in_crate() || !source.is_within("storage") {
        return Vec::new();
    }
    let is_async = |_, token: &Token| {
        (token.is("async") || token.is("await")).then(|| format!("`{}` in storage", token.text))
    };
    let mut breaches = source.breaches_at_tokens(is_async);
    for path in named_paths(source) {
        let stranger = STRANGERS_TO_STORAGE.iter().find(|stranger| path.is_within(stranger));
        breaches.extend(stranger.map(|s| source.breach(path.line, format!("`{s}` in storage"))));
    }
    breaches
}

/// The top modules that a file of the crate names, with its own: (from, to, line).
fn dependencies(source: &Source) -> Vec<(String, String, usize)> {
    let module = source.module();
    let Some(from) = module.first().filter(|_| source.in_crate()) else {
        return Vec::new();
    };
    let edge = |path: NamedPath| {
        let to = path.top_module().filter(|top| is_module(top))?;
        Some((from.clone(), to.to_owned(), path.line))
    };
    named_paths(source).into_iter().filter_map(edge).collect()
}

fn may_name(from: &str, to: &str) -> bool {
    let is_utility = |module| UTILITIES.contains(&module);
    match (layer(from), layer(to)) {
        _ if from == to || LEAVES.contains(&to) => true,
        _ if to == CLIENT => CLIENT_USERS.contains(&from),
        (Some(from), Some(to)) => from <= to,
        (Some(_), None) => is_utility(to),
        (None, _) => is_utility(from) && is_utility(to),
    }
}

/// The place of a module's layer, counted from the top.
fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn is_module(name: &str) -> bool {
    let is_listed = UTILITIES.contains(&name) || LEAVES.contains(&name);
    is_listed || name == CLIENT || layer(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: impl Fn(&Source) -> Vec<Breach>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn an_unknown_module_is_refused() {
        assert_eq!(count(every_module_has_a_layer, "src/plumbing/a.rs", ""), 1);
        for path in ["src/lib.rs", "src/main.rs", "src/storage/log.rs", "src/types.rs"] {
            assert_eq!(count(every_module_has_a_layer, path, ""), 0, "{path}");
        }
    }

    #[test]
    fn dependencies_down_are_allowed() {
        for (path, text) in [
            ("src/main.rs", "use quipu::cli;"),
            ("src/lib.rs", "pub use crate::rpc::Server;"),
            ("src/cli/serve.rs", "use crate::{client::Producer, server, storage::Log};"),
            ("src/federation/link.rs", "use crate::client::Consumer;"),
            ("src/group/session.rs", "use crate::cluster::Controller;"),
            ("src/storage/log.rs", "use super::entry; use crate::{telemetry, types::Offset};"),
            ("src/config.rs", "use crate::types::NodeId;"),
        ] {
            assert_eq!(count(dependencies_point_down, path, text), 0, "{path}");
        }
    }

    #[test]
    fn dependencies_up_are_refused() {
        for (path, text) in [
            ("src/storage/log.rs", "use crate::{raft::Node, types};"),
            ("src/storage/mod.rs", "use super::partition::Replica;"),
            ("src/raft/shard.rs", "fn f() { crate::rpc::peer::send() }"),
            ("src/client/producer.rs", "use crate::config::Client;"),
            ("src/rpc/log.rs", "use crate::client::Producer;"),
            ("src/types.rs", "use crate::config;"),
            ("src/telemetry/http.rs", "use crate::storage;"),
        ] {
            assert_eq!(count(dependencies_point_down, path, text), 1, "{path}");
        }
    }

    #[test]
    fn neighbors_may_not_name_each_other() {
        let one = Source::new("src/group/a.rs", "use crate::cluster::X;");
        let other = Source::new("src/cluster/b.rs", "use crate::group::Y;");
        let below = Source::new("src/raft/c.rs", "use crate::storage::Z;");
        assert_eq!(neighbors_depend_one_way(&[one, other]).len(), 2);
        assert!(neighbors_depend_one_way(&[below]).is_empty());
    }

    #[test]
    fn a_crate_is_named_by_its_owners_only() {
        for (path, text) in [
            ("src/cluster/a.rs", "use tonic_types::Status;"),
            ("src/partition/a.rs", "fn f(n: raft::RawNode) {}"),
            ("src/cli/log.rs", "use std::{fs, io};"),
            ("src/storage/segment.rs", "fn f() { rustix::fs::fsync() }"),
            ("src/storage/fsync.rs", "use memmap2::Mmap;"),
            ("src/telemetry/a.rs", "use libc;"),
            ("src/config/load.rs", "use std::fs::File;"),
        ] {
            assert_eq!(count(crates_have_owners, path, text), 1, "{path}");
        }
    }

    #[test]
    fn owners_and_tests_may_name_their_crates() {
        for (path, text) in [
            ("src/rpc/log.rs", "use tonic::Status;"),
            ("src/config/file.rs", "use std::fs::File;"),
            ("src/proto.rs", "use tonic::include_proto;"),
            ("src/raft/shard.rs", "use raft::RawNode;"),
            ("src/partition/a.rs", "use crate::raft; fn f() { raft::start() }"),
            ("src/storage/fs/map.rs", "use {memmap2::Mmap, std::fs::File};"),
            ("src/storage/log/tests.rs", "use std::fs;"),
            ("tests/crash.rs", "use std::fs; use rustix::process;"),
        ] {
            assert_eq!(count(crates_have_owners, path, text), 0, "{path}");
        }
        let tonic_in_test = "#[cfg(test)] mod tests { use tonic::Status; }";
        assert_eq!(count(crates_have_owners, "src/group/a.rs", tonic_in_test), 1);
    }

    #[test]
    fn storage_stays_synchronous() {
        let path = "src/storage/sync.rs";
        assert_eq!(count(storage_is_synchronous, path, "async fn f() { g().await }"), 2);
        assert_eq!(count(storage_is_synchronous, path, "use tokio_util::Bytes; use prost::A;"), 2);
        assert_eq!(count(storage_is_synchronous, path, "use raft::Storage;"), 1);
        assert_eq!(count(storage_is_synchronous, path, "use std::sync::mpsc; // async"), 0);
        assert_eq!(count(storage_is_synchronous, "src/raft/a.rs", "async fn f() {}"), 0);
    }
}
