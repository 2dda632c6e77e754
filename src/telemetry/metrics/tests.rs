//! Tests of the metrics: what a scrape says, and the conventions that names keep.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

/// Metrics of which every one has been counted.
fn touched() -> Arc<Metrics> {
    let metrics = Metrics::new();
    metrics.rpc.requests.of(["LogService/Produce", "OK"]).inc();
    metrics.rpc.request_duration.of(["LogService/Produce"]).observe(Duration::from_millis(3));
    metrics.rpc.forwarded.of(["LogService/Produce"]).inc();
    metrics.rpc.rejected.of(["CORRUPT_BATCH"]).inc();
    metrics.rpc.connections_refused.of(["per_ip"]).inc();
    metrics.rpc.streams.of(["LogService/Subscribe"]).inc();
    metrics.topic(Uuid::from_u128(7)).produced_records.inc_by(5);
    metrics.read_replication(|| Replication {
        leaders: 4,
        messages_dropped: vec![("unknown_group", 2), ("busy", 1)],
        ..Replication::default()
    });
    metrics.read_storage(|| Storage { disk_free_bytes: 99, ..Storage::default() });
    metrics.read_cluster(|| Cluster { is_ready: true, ..Cluster::default() });
    metrics.read_groups(|| Groups { groups: 2, ..Groups::default() });
    metrics
}

/// The families of a scrape with their types and units.
fn families(text: &str) -> BTreeMap<String, (String, Option<String>)> {
    let mut families = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            families.insert(name.to_owned(), (kind.to_owned(), None));
        }
        if let Some((name, unit)) = line.strip_prefix("# UNIT ").and_then(|l| l.split_once(' ')) {
            families.get_mut(name).unwrap().1 = Some(unit.to_owned());
        }
    }
    families
}

#[test]
fn a_scrape_holds_what_the_catalog_promises() {
    let metrics = touched();
    let text = metrics.text();
    let mut found = families(&text);
    for described in metrics.catalog() {
        let (kind, unit) = found.remove(&described.name).expect(&described.name);
        assert_eq!(kind, format!("{:?}", described.kind).to_lowercase(), "{}", described.name);
        assert_eq!(unit.as_deref(), described.unit, "{}", described.name);
        for sample in described.samples() {
            let is_sample = |line: &str| line.split(['{', ' ']).next() == Some(&sample);
            let line = text.lines().find(|line| is_sample(line)).expect(&sample);
            for label in &described.labels {
                assert!(line.contains(&format!("{label}=\"")), "{line}");
            }
        }
    }
    assert!(found.is_empty(), "not in the catalog: {found:?}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn names_keep_the_conventions() {
    let allowed_labels = ["method", "code", "reason", "limit", "topic", "version"];
    for described in Metrics::new().catalog() {
        let name = &described.name;
        assert!(name.starts_with("quipu_"), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
        assert!(!name.contains("__") && !name.ends_with('_'), "{name}");
        assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name}: added on a scrape");
        assert_eq!(name.ends_with("_seconds"), described.unit == Some("seconds"), "{name}");
        assert_eq!(name.ends_with("_bytes"), described.unit == Some("bytes"), "{name}");
        assert!(described.help.len() > 5 && !described.help.ends_with('.'), "{name}");
        for label in &described.labels {
            assert!(allowed_labels.contains(label), "{name}: is `{label}` text of a user?");
        }
    }
}

#[test]
fn counts_and_states_are_in_the_text() {
    let text = touched().text();
    for line in [
        "quipu_rpc_requests_total{method=\"LogService/Produce\",code=\"OK\"} 1",
        "quipu_rpc_request_duration_seconds_count{method=\"LogService/Produce\"} 1",
        "quipu_replication_leaders 4",
        "quipu_replication_messages_dropped_total{reason=\"unknown_group\"} 2",
        "quipu_replication_messages_dropped_total{reason=\"busy\"} 1",
        "quipu_storage_disk_free_bytes 99",
        "quipu_node_ready 1",
        "quipu_topic_produced_records_total{topic=\"00000000-0000-0000-0000-000000000007\"} 5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
    }
}

#[test]
fn servers_in_one_process_count_apart() {
    let (one, other) = (Metrics::new(), Metrics::new());
    one.produced_batches.inc_by(3);
    assert!(one.text().contains("quipu_produced_batches_total 3"));
    assert!(other.text().contains("quipu_produced_batches_total 0"));
}

#[test]
fn what_nobody_reads_yet_is_not_shown_as_zero() {
    let text = Metrics::new().text();
    assert!(!text.contains("quipu_cluster_partitions_leaderless"), "{text}");
    assert!(text.contains("quipu_process_resident_memory_bytes "), "{text}");
}

#[test]
fn a_deleted_topic_is_forgotten() {
    let metrics = touched();
    metrics.forget_topic(Uuid::from_u128(7));
    assert!(!metrics.text().contains("topic=\""));
}
