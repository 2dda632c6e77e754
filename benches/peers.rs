//! Other servers, and the driver that publishes to them through their own clients.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::processes::{Conversation, Process};

/// What is published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Streams, the others' word for partitions.
    pub(crate) streams: usize,
    pub(crate) connections: usize,
    pub(crate) record_bytes: usize,
    /// Records that are not acknowledged, of all connections together.
    pub(crate) in_flight: usize,
}

/// Servers, and the driver that publishes to them.
pub(crate) struct Driver {
    driver: Conversation,
    _processes: Vec<Process>,
}

impl Driver {
    /// Starts the driver of a kind of servers.
    pub(crate) fn start(
        program: &Path,
        kind: &str,
        numbers: &[usize],
        servers: &str,
        mut processes: Vec<Process>,
        root: &Path,
    ) -> Self {
        let mut arguments = vec![kind.to_owned()];
        arguments.extend(numbers.iter().map(usize::to_string));
        arguments.push(servers.to_owned());
        let log = root.join("driver.log");
        let (process, mut driver) = Process::converse(program, &arguments, &log);
        let said = driver.hear();
        assert_eq!(said, "ready", "the driver of {kind}: {}", process.said());
        processes.push(process);
        Self { driver, _processes: processes }
    }

    /// Publishes so many records, and returns how long it took until all were acknowledged.
    pub(crate) fn publish(&mut self, count: usize) -> Duration {
        self.driver.say(&count.to_string());
        Duration::from_nanos(self.driver.hear().parse().expect("the driver says nanoseconds"))
    }
}

/// Where the programs of another server are; says what to do if one is missing.
pub(crate) fn installed<const N: usize>(name: &str, programs: [&str; N]) -> Option<[PathBuf; N]> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let found = programs.map(|program| peers.join(program));
    let missing = found.iter().find(|path| !path.exists());
    if let Some(missing) = missing {
        println!("NOT compared with {name}: {} is missing.", missing.display());
        println!("`bash benches/peers/setup.sh` fetches and builds it; it needs the network.");
        return None;
    }
    Some(found)
}
