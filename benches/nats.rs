//! NATS JetStream, where `benches/peers/setup.sh` has put it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::peers::{Driver, Load, installed};
use crate::processes::{Process, free_addresses};

const SERVERS: usize = 3;

/// How servers are set up: defaults but for this.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// Replicas of each stream, on as many servers.
    pub(crate) replicas: usize,
    /// Whether an acknowledged record is one that is on disk. By default it is in memory, and on
    /// disk two minutes later.
    pub(crate) is_synced: bool,
}

/// Starts servers with directories below `root`, and a driver that publishes to them. `None` if
/// they are not installed.
pub(crate) fn start(root: &Path, setup: Setup, load: Load) -> Option<Driver> {
    let [server, driver] = installed("NATS", ["python/bin/nats-server", "release/quipu-peers"])?;
    let Setup { replicas, is_synced } = setup;
    assert!(replicas == 1 || replicas == SERVERS, "{replicas} replicas are not compared");
    let root = root.join(format!("nats-r{replicas}-{}", if is_synced { "synced" } else { "lazy" }));
    fs::create_dir_all(&root).expect("a directory can be made");
    let clients: [String; SERVERS] = free_addresses();
    let routes: [String; SERVERS] = free_addresses();
    let all_routes = routes.each_ref().map(|route| format!("nats://{route}")).join(", ");
    let sync = if is_synced { ", sync_interval: always" } else { "" };
    let mut processes = Vec::new();
    for (n, (client, route)) in (1..=replicas).zip(clients.iter().zip(&routes)) {
        let dir = root.join(n.to_string());
        let dir = dir.display();
        let mut config = format!(
            "server_name: \"{n}\"\nlisten: \"{client}\"\n\
             jetstream {{ store_dir: \"{dir}\"{sync} }}\n"
        );
        if replicas > 1 {
            config += &format!(
                "cluster {{ name: bench, listen: \"{route}\", routes: [{all_routes}] }}\n"
            );
        }
        processes.push(start_server(&server, &root.join(format!("{n}.conf")), &config));
    }
    let servers: Vec<_> = clients[..replicas].iter().map(|at| format!("nats://{at}")).collect();
    let numbers = [load.streams, replicas, load.connections, load.record_bytes, load.in_flight];
    Some(Driver::start(&driver, "nats", &numbers, &servers.join(","), processes, &root))
}

fn start_server(server: &Path, path: &PathBuf, config: &str) -> Process {
    fs::write(path, config).expect("a configuration can be written");
    Process::start(server, &["-c".as_ref(), path.as_os_str()], &path.with_extension("log"))
}
