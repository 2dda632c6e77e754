//! How clusters begin, and who is let in.

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
