//! How clusters begin, and who is let in.

use std::net::TcpListener;

use quipu::types::NodeId;

use crate::support::{Cluster, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_with_the_same_seeds_make_one_cluster() {
    let mut cluster = Cluster::start(3).await;
    let id = cluster.server(0).node().cluster();
    for n in 0..3 {
        let node = cluster.server(n).node().clone();
        assert_eq!(node.cluster(), id);
        wait_for("all nodes", async || (node.state().nodes().len() == 3).then_some(())).await;
    }
    for n in 0..3 {
        cluster.stop(n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_as_who_it_was() {
    let mut cluster = Cluster::start(3).await;
    let incarnation = cluster.server(1).node().identity().incarnation;
    cluster.stop(1).await;
    cluster.restart(1).await;
    assert_eq!(cluster.server(1).node().identity().incarnation, incarnation);
}

/// A test whose port somebody else has ends, instead of waiting for ever for that server.
#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "all servers start")]
async fn servers_do_not_wait_for_one_that_cannot_start() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    Cluster::start_with(3, |settings| {
        if settings.node == NodeId(3) {
            settings.listen = address;
        }
    })
    .await;
}
