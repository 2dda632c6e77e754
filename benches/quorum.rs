//! The bare quorum loop: what three disks and two connections allow.
//!
//! The leader is the bench itself, its two followers are processes. A batch goes to both of them
//! over TCP and into a file here; each of the three writes it with `pwrite` into a file that was
//! written before, syncs with `fdatasync` what has come so far, and says how far it is. A batch is
//! committed when two of the three have it. There are no checksums, no terms and no clients.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::processes::Process;

/// The role of a process that is a follower.
pub(crate) const ROLE: &str = "bare-follower";

const FILE_BYTES: usize = 64 << 20;
/// What a follower reads at a time.
const READ_BYTES: usize = 1 << 20;
/// A batch is sent behind its length.
const LENGTH_BYTES: usize = 4;
const REPLICAS: usize = 3;

/// A file that was written before, and where in it to write next.
struct Place {
    file: File,
    position: usize,
}

impl Place {
    fn new(path: &Path) -> Self {
        let file = File::options().create_new(true).read(true).write(true).open(path);
        let file = file.expect("a floor's file can be made");
        file.write_all_at(&vec![0; FILE_BYTES], 0).expect("a floor's file can be written");
        file.sync_all().expect("a floor's file can be synced");
        Self { file, position: 0 }
    }

    fn write(&mut self, batch: &[u8]) {
        if self.position + batch.len() > FILE_BYTES {
            self.position = 0;
        }
        self.file.write_all_at(batch, self.position as u64).expect("a floor writes");
        self.position += batch.len();
    }
}

/// Follows the leader that connects, until it has gone.
pub(crate) fn play(arguments: &[String]) {
    let mut place = Place::new(Path::new(&arguments[0]));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    println!("{}", listener.local_addr().expect("it listens"));
    let (mut leader, _) = listener.accept().expect("the leader comes");
    leader.set_nodelay(true).expect("the system has the option");
    let (mut buffer, mut filled) = (vec![0; READ_BYTES], 0);
    let mut batches: u64 = 0;
    loop {
        let read = leader.read(&mut buffer[filled..]).unwrap_or(0);
        if read == 0 {
            return;
        }
        filled += read;
        let (taken, used) = take_batches(&mut place, &buffer[..filled]);
        if taken > 0 {
            buffer.copy_within(used..filled, 0);
            filled -= used;
            place.file.sync_data().expect("a floor syncs");
            batches += taken;
            leader.write_all(&batches.to_le_bytes()).expect("the leader listens");
        }
    }
}

/// Writes the batches that are there as a whole. Returns how many, and the bytes of them.
fn take_batches(place: &mut Place, bytes: &[u8]) -> (u64, usize) {
    let (mut taken, mut rest) = (0, bytes);
    while let Some((length, after)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let Some((batch, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize)
        else {
            break;
        };
        place.write(batch);
        (taken, rest) = (taken + 1, after);
    }
    (taken, bytes.len() - rest.len())
}

/// How many batches each replica has on disk, the leader first; how many the leader has written.
#[derive(Default)]
struct Progress {
    synced: [u64; REPLICAS],
    written: u64,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress.lock().expect("no thread of the floor panics"));
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&Progress) -> bool) {
        let progress = self.progress.lock().expect("no thread of the floor panics");
        drop(self.changed.wait_while(progress, |progress| !until(progress)));
    }
}

impl Progress {
    /// How many batches two of the three have.
    fn committed(&self) -> u64 {
        let mut synced = self.synced;
        synced.sort_unstable();
        synced[REPLICAS / 2]
    }
}

/// The leader of the bare loop.
pub(crate) struct Quorum {
    place: Place,
    connections: Vec<TcpStream>,
    shared: Arc<Shared>,
    sent: u64,
    frame: Vec<u8>,
    _followers: Vec<Process>,
}

impl Quorum {
    /// Starts the followers, with files below `root`.
    pub(crate) fn start(root: &Path) -> Self {
        let place = Place::new(&root.join("bare-leader"));
        let shared = Arc::new(Shared::default());
        let file = place.file.try_clone().expect("a file has a second handle");
        sync_along(file, shared.clone());
        let (mut connections, mut followers) = (Vec::new(), Vec::new());
        for n in 1..REPLICAS {
            let path = root.join(format!("bare-follower-{n}"));
            let file = path.to_str().expect("the path is text");
            let (process, mut conversation) = Process::play(ROLE, &[file], &root.join("bare.log"));
            let connection = TcpStream::connect(conversation.hear()).expect("a follower listens");
            connection.set_nodelay(true).expect("the system has the option");
            listen_to(connection.try_clone().expect("a second handle"), n, shared.clone());
            connections.push(connection);
            followers.push(process);
        }
        Self { place, connections, shared, sent: 0, frame: Vec::new(), _followers: followers }
    }

    /// Commits the same batch `count` times, at most `in_flight` at a time, and then lets all
    /// replicas get as far. Returns how long the commits took.
    pub(crate) fn commit(&mut self, batch: &[u8], count: usize, in_flight: u64) -> Duration {
        self.frame = (batch.len() as u32).to_le_bytes().to_vec();
        self.frame.extend(batch);
        let started = Instant::now();
        for _ in 0..count {
            let due = (self.sent + 1).saturating_sub(in_flight);
            self.shared.wait(|progress| progress.committed() >= due);
            self.send();
        }
        let sent = self.sent;
        self.shared.wait(|progress| progress.committed() >= sent);
        let took = started.elapsed();
        self.shared.wait(|progress| progress.synced.iter().all(|synced| *synced >= sent));
        took
    }

    fn send(&mut self) {
        for connection in &mut self.connections {
            connection.write_all(&self.frame).expect("a follower reads");
        }
        self.place.write(&self.frame[LENGTH_BYTES..]);
        self.sent += 1;
        let sent = self.sent;
        self.shared.change(|progress| progress.written = sent);
    }
}

impl Drop for Quorum {
    fn drop(&mut self) {
        self.shared.change(|progress| progress.is_over = true);
    }
}

/// Syncs the leader's file whenever something was written since, on a thread of its own.
fn sync_along(file: File, shared: Arc<Shared>) {
    thread::spawn(move || {
        loop {
            shared.wait(|progress| progress.is_over || progress.written > progress.synced[0]);
            let (written, is_over) = {
                let progress = shared.progress.lock().expect("no thread of the floor panics");
                (progress.written, progress.is_over)
            };
            if is_over {
                return;
            }
            file.sync_data().expect("a floor syncs");
            shared.change(|progress| progress.synced[0] = written);
        }
    });
}

/// Notes what a follower says, until it has gone.
fn listen_to(mut connection: TcpStream, n: usize, shared: Arc<Shared>) {
    thread::spawn(move || {
        let mut batches = [0; 8];
        while connection.read_exact(&mut batches).is_ok() {
            shared.change(|progress| progress.synced[n] = u64::from_le_bytes(batches));
        }
    });
}
