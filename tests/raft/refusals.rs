//! Refusals: a leader that was replaced and does not know it must not say what it cannot know.

use quipu::partition::{Acks, Ask, Batch, Command, InitProducer, Response};
use quipu::raft::Ticket;

use crate::support::{Cluster, batch};

const INIT: u64 = 1;
const FIRST: u64 = 2;
const NEXT: u64 = 3;

fn append(base_sequence: u32) -> Ask {
    let batch = Batch { producer_id: 7, base_sequence, ..batch(b"of a producer") };
    Ask::Append { batch, acks: Acks::Quorum }
}

#[test]
fn a_leader_that_was_replaced_refuses_no_producer_that_it_has_not_heard_of() {
    let mut cluster = Cluster::new(3);
    cluster.put(b"before");
    let old = cluster.await_leader();
    cluster.cut.insert(old);
    cluster.paused.insert(old);
    cluster.run(2_000);
    let others = cluster.nodes.values().filter(|node| node.id.0 != old);
    let new = others.max_by_key(|node| node.group().term()).unwrap().id.0;
    let new = if cluster.node(new).group().is_writable() { new } else { 6 - old - new };
    let init = InitProducer { producer_id: 7, take_over: false };
    cluster.node(new).ask(INIT, Ask::Command(Command::InitProducer(init)));
    cluster.run(300);
    cluster.node(new).ask(FIRST, append(0));
    cluster.run(300);
    let first = cluster.node(new).answers.get(&Ticket(FIRST)).cloned();
    assert!(matches!(first, Some(Response::Appended { .. })), "{first:?}");

    cluster.paused.remove(&old);
    assert!(cluster.node(old).group().is_writable(), "the old leader knows of nothing");
    cluster.node(old).ask(NEXT, append(1));
    cluster.run(2_000);
    let next = cluster.node(old).answers.get(&Ticket(NEXT)).cloned();
    let is_open = matches!(next, Some(Response::NotLeader { .. } | Response::Unknown));
    assert!(is_open, "the old leader answers {next:?}");
}
