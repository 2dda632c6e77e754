//! NATS JetStream, three servers that sync each write, where `benches/peers/setup.sh` has put it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::processes::{Conversation, Process, free_addresses};

const SERVERS: usize = 3;

/// Three servers, and the driver that publishes to them.
pub(crate) struct Nats {
    driver: Conversation,
    _processes: Vec<Process>,
}

impl Nats {
    /// Starts the servers with directories below `root`, and a driver that publishes records of
    /// `record_bytes` with `in_flight` of them unacknowledged. `None` if they are not installed.
    pub(crate) fn start(root: &Path, record_bytes: usize, in_flight: usize) -> Option<Self> {
        let (server, driver) = installed()?;
        let clients: [String; SERVERS] = free_addresses();
        let routes: [String; SERVERS] = free_addresses();
        let all_routes = routes.each_ref().map(|route| format!("nats://{route}")).join(", ");
        let mut processes = Vec::new();
        for (n, (client, route)) in (1..).zip(clients.iter().zip(&routes)) {
            let dir = root.join(format!("nats-{n}"));
            let config = configuration(n, client, route, &all_routes, &dir);
            let path = root.join(format!("nats-{n}.conf"));
            fs::write(&path, config).expect("a configuration can be written");
            let arguments = ["-c".as_ref(), path.as_os_str()];
            processes.push(Process::start(&server, &arguments, &root.join("nats.log")));
        }
        let servers = clients.map(|client| format!("nats://{client}")).join(",");
        let arguments = [record_bytes.to_string(), in_flight.to_string(), servers];
        let log = root.join("nats-driver.log");
        let (process, mut driver) = Process::converse(&driver, &arguments, &log);
        let said = driver.hear();
        assert_eq!(said, "ready", "the driver of NATS: {}", process.said());
        processes.push(process);
        Some(Self { driver, _processes: processes })
    }

    /// Publishes so many records, and returns how long it took until all were acknowledged.
    pub(crate) fn publish(&mut self, count: usize) -> Duration {
        self.driver.say(&count.to_string());
        Duration::from_nanos(self.driver.hear().parse().expect("the driver says nanoseconds"))
    }
}

/// The server and the driver; says what to do if one is missing.
fn installed() -> Option<(PathBuf, PathBuf)> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let found = (peers.join("python/bin/nats-server"), peers.join("release/quipu-peers"));
    let missing = [&found.0, &found.1].into_iter().find(|path| !path.exists());
    if let Some(missing) = missing {
        println!("NOT compared with NATS: {} is missing.", missing.display());
        println!("`bash benches/peers/setup.sh` fetches and builds it; it needs the network.");
        return None;
    }
    Some(found)
}

/// Defaults but for `sync_interval`, which makes an acknowledged record one that is on disk.
fn configuration(n: usize, client: &str, route: &str, routes: &str, dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "server_name: \"{n}\"\nlisten: \"{client}\"\n\
         jetstream {{ store_dir: \"{dir}\", sync_interval: always }}\n\
         cluster {{ name: bench, listen: \"{route}\", routes: [{routes}] }}\n"
    )
}
