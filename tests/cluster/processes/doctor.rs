//! `quipu doctor` beside a cluster that is well, and one that is not.

use serde_json::Value;

use super::nodes::{Cluster, TOPIC};

/// What the doctor says, with its exit code.
async fn diagnosis(cluster: &mut Cluster, more: &[&str]) -> (Option<i32>, Value) {
    let run = cluster.try_run(&[&["-o", "json", "doctor", "--timeout", "5s"], more].concat()).await;
    let said = serde_json::from_slice(&run.stdout).unwrap_or(Value::Null);
    println!("{said:#}\n{}", String::from_utf8_lossy(&run.stderr));
    (run.status.code(), said)
}

fn findings<'a>(said: &'a Value, severity: &str) -> Vec<&'a str> {
    let all = said["findings"].as_array().unwrap().iter();
    let of = all.filter(|finding| finding["severity"] == severity);
    of.map(|finding| finding["about"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_a_cluster_that_is_well_from_one_that_is_not() {
    let mut cluster = Cluster::start(3).await;
    cluster.create_topic(2, 3).await;
    let (code, said) = diagnosis(&mut cluster, &[]).await;
    assert_eq!(
        (code, said["nodes"].as_u64(), said["partitions"].as_u64()),
        (Some(0), Some(3), Some(2))
    );
    assert_eq!(findings(&said, "problem"), [""; 0]);
    let dir = cluster.node(1).data_dir.to_str().unwrap().to_owned();
    let (code, said) = diagnosis(&mut cluster, &["--offline", "--data-dir", &dir]).await;
    assert_eq!((code, said["data_dir"].as_str()), (Some(0), Some(dir.as_str())));

    cluster.run(&["cluster", "drain", "2"]).await;
    let (code, said) = diagnosis(&mut cluster, &[]).await;
    assert_eq!((code, findings(&said, "note")), (Some(0), vec!["node 2"]));

    cluster.node(3).kill().await;
    let (code, said) = diagnosis(&mut cluster, &[]).await;
    let problems = findings(&said, "problem");
    assert_eq!((code, said["ok"].as_bool()), (Some(1), Some(false)));
    assert!(problems.contains(&"node 3"), "{problems:?}");
    let partition = format!("{TOPIC}/0");
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let (_, said) = diagnosis(&mut cluster, &[]).await;
    assert!(findings(&said, "problem").contains(&partition.as_str()), "{said}");

    for id in [1, 2] {
        cluster.node(id).kill().await;
    }
    assert_eq!(diagnosis(&mut cluster, &[]).await.0, Some(4));
    let (code, _) = diagnosis(&mut cluster, &["--offline", "--data-dir", &dir]).await;
    assert_eq!(code, Some(0), "a directory that was not closed in order is no problem");
}
