//! Redis Streams, where `benches/peers/setup.sh` has put it: one server that logs its commands.

use std::fs;
use std::path::Path;

use crate::peers::{Driver, Load, installed};
use crate::processes::{Process, free_addresses};

/// Starts a server with a directory below `root`, and a driver that adds to its streams. What is
/// acknowledged is on disk if `is_synced`, and within a second otherwise. `None` if it is not
/// installed.
pub(crate) fn start(root: &Path, is_synced: bool, load: Load) -> Option<Driver> {
    let [server, driver] = installed("Redis", ["redis/redis-server", "release/quipu-peers"])?;
    let sync = if is_synced { "always" } else { "everysec" };
    let root = root.join(format!("redis-{sync}"));
    fs::create_dir_all(&root).expect("a directory can be made");
    let [address]: [String; 1] = free_addresses();
    let (host, port) = address.split_once(':').expect("an address has a port");
    let dir = root.to_str().expect("the directory's name is text");
    let arguments = [
        ["--bind", host],
        ["--port", port],
        ["--dir", dir],
        ["--appendonly", "yes"],
        ["--appendfsync", sync],
        ["--save", ""],
    ];
    let process = Process::start(&server, arguments.as_flattened(), &root.join("server.log"));
    let numbers = [load.streams, load.connections, load.record_bytes, load.in_flight];
    let url = format!("redis://{address}");
    Some(Driver::start(&driver, "redis", &numbers, &url, vec![process], &root))
}
