//! What is worked out from other keys, and whether the keys fit each other.

use std::net::SocketAddr;
use std::thread::available_parallelism;

use super::error::Problem;
use super::key::{Fallback, Key, Value, seeds_value};
use super::load::{Layers, Origin, find};
use super::table::KEYS;
use crate::types::NodeId;

/// What a message has beside its batch, at most.
const MESSAGE_OVERHEAD_BYTES: u64 = 64 << 10;

/// Works out what nobody set, and checks the whole. Problems are added to those of the layers.
pub(super) fn complete(layers: &mut Layers) {
    derive_addresses(layers);
    derive_shards(layers);
    if layers.config.dev {
        derive_dev(layers);
    } else {
        require(layers);
    }
    // A comparison with a value that was refused would say nothing new.
    if layers.problems.is_empty() {
        check_cluster(layers);
        check_addresses(layers);
        check_sizes(layers);
    }
}

fn derive_addresses(layers: &mut Layers) {
    let config = &mut layers.config;
    let advertise = config.advertise.is_empty().then(|| config.listen.to_string());
    let peer_advertise = config.peer_advertise.is_empty().then(|| config.peer_listen.to_string());
    if let Some(address) = advertise {
        config.advertise.clone_from(&address);
        layers.derive("advertise", Value::Text(address));
    }
    if let Some(address) = peer_advertise {
        layers.config.peer_advertise.clone_from(&address);
        layers.derive("peer_advertise", Value::Text(address));
    }
}

fn derive_shards(layers: &mut Layers) {
    if layers.config.shards == 0 {
        let shards = available_parallelism().map_or(1, |cores| cores.get().min(256));
        layers.config.shards = shards;
        layers.derive("shards", Value::Number(shards as u64));
    }
}

fn derive_dev(layers: &mut Layers) {
    if layers.config.node_id == NodeId(0) {
        layers.config.node_id = NodeId(1);
        layers.derive("node_id", Value::Number(1));
    }
    for name in ["seeds", "join"] {
        let setting = layers.setting(name);
        if setting.origin != Origin::Default {
            conflict(layers, name, "with dev a node founds a cluster of its own".to_owned());
        }
    }
    if layers.config.seeds.is_empty() {
        let seeds = vec![(layers.config.node_id, layers.config.peer_advertise.clone())];
        layers.derive("seeds", seeds_value(&seeds));
        layers.config.seeds = seeds;
    }
}

fn require(layers: &mut Layers) {
    let is_required = |key: &&Key| matches!(key.fallback, Fallback::Required(_));
    for key in KEYS.iter().filter(is_required) {
        let was_refused = |problem: &Problem| match problem {
            Problem::BadValue { key: refused, .. } => *refused == key.name,
            _ => false,
        };
        let is_set = layers.setting(key.name).value.is_some();
        if !is_set && !layers.problems.iter().any(was_refused) {
            let (flag, variable) = (key.flag(), key.variable());
            layers.problems.push(Problem::Missing { key: key.name, flag, variable });
        }
    }
}

fn check_cluster(layers: &mut Layers) {
    let own = layers.config.node_id;
    let is_own = |(node, _): &(NodeId, String)| *node == own;
    if layers.config.join {
        if layers.config.seeds.iter().all(is_own) {
            let why = format!("a node that joins needs seeds other than itself, node {own}");
            conflict(layers, "seeds", why);
        }
    } else if !layers.config.seeds.iter().any(is_own) {
        let why = format!(
            "node {own} is not in there: the nodes that found a cluster list all of them (to add \
             a node to a cluster, use join)"
        );
        conflict(layers, "seeds", why);
    }
}

fn check_addresses(layers: &mut Layers) {
    let config = &layers.config;
    let of = [
        ("listen", config.listen),
        ("peer_listen", config.peer_listen),
        ("http_listen", config.http_listen),
    ];
    for (n, (name, address)) in of.iter().enumerate() {
        let same = of[..n].iter().find(|(_, other)| collide(*address, *other));
        if let Some((other, other_address)) = same {
            conflict(layers, name, format!("{other} is {other_address} already"));
        }
    }
    let advertised = [
        ("advertise", layers.config.advertise.clone()),
        ("peer_advertise", layers.config.peer_advertise.clone()),
    ];
    for (name, text) in advertised {
        let address = text.parse::<SocketAddr>().ok();
        if address.is_some_and(|address| address.ip().is_unspecified()) {
            let why = "nobody can call that: set it to an address that the others can reach";
            conflict(layers, name, why.to_owned());
        }
    }
}

fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let is_any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && a.port() != 0 && (is_any || a.ip() == b.ip())
}

/// A key that must not be above what another one allows.
struct AtMost {
    name: &'static str,
    number: u64,
    max: u64,
    why: &'static str,
}

fn check_sizes(layers: &mut Layers) {
    let config = &layers.config;
    let (raft, storage, limits) = (&config.raft, &config.storage, &config.limits);
    let batch_bytes_max = u64::from(limits.batch.batch_bytes_max);
    let message_bytes_max = limits.message_bytes_max as u64;
    let rules = [
        AtMost {
            name: "raft.heartbeat_ticks",
            number: raft.heartbeat_ticks as u64,
            max: raft.election_ticks as u64 / 2,
            why: "half of raft.election_ticks",
        },
        AtMost {
            name: "storage.allocation_bytes_first",
            number: storage.allocation_bytes_first,
            max: storage.segment_bytes,
            why: "storage.segment_bytes",
        },
        AtMost {
            name: "limits.connections_per_ip_max",
            number: limits.connections_per_ip_max as u64,
            max: limits.connections_max as u64,
            why: "limits.connections_max",
        },
        AtMost {
            name: "limits.record_bytes_max",
            number: limits.batch.record_bytes_max.into(),
            max: batch_bytes_max,
            why: "limits.batch_bytes_max",
        },
        AtMost {
            name: "limits.batch_bytes_max",
            number: batch_bytes_max,
            max: message_bytes_max.saturating_sub(MESSAGE_OVERHEAD_BYTES),
            why: "limits.message_bytes_max less 64KiB for what comes with a batch",
        },
        AtMost {
            name: "limits.message_bytes_max",
            number: message_bytes_max,
            max: config.append_room_bytes.into(),
            why: "append_room_bytes",
        },
    ];
    for AtMost { name, max, why, .. } in rules.into_iter().filter(|rule| rule.number > rule.max) {
        let key = find(name).expect("checks name keys of the table");
        let max = key.show(&Value::Number(max));
        conflict(layers, name, format!("it can be at most {max}: {why}"));
    }
}

fn conflict(layers: &mut Layers, name: &str, why: String) {
    let key = find(name).expect("checks name keys of the table");
    let setting = layers.setting(name);
    let value = setting.value.as_ref().map_or("not set".to_owned(), |value| key.show(value));
    let origin = setting.origin.clone();
    layers.problems.push(Problem::Conflict { key: key.name, value, origin, why });
}
