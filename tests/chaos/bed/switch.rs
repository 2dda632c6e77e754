//! A switch in user space: every packet between the nodes, and between them and the clients, passes
//! through one thread, which loses, delays and doubles what it is told to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::sys;
use crate::rng::Rng;

/// The largest packet that an interface hands out.
pub(super) const PACKET_BYTES: usize = 9_000;
/// Packets on their way; more are lost.
const DELAYED_MAX: usize = 20_000;
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Packets taken from an interface before the others have their turn.
const AT_ONCE: usize = 64;

/// What becomes of packets from one place to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Of a thousand packets, how many are lost, and how many come twice.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// The least and the most that a packet takes. They overtake one another.
    pub(crate) delay_us: (u64, u64),
}

impl Weather {
    /// Nothing arrives.
    pub(crate) const CUT: Self = Self { lost: 1000, doubled: 0, delay_us: (0, 0) };
}

/// What the thread reads at every packet: by where it comes from and where it goes.
type Table = Vec<Vec<Weather>>;

/// The thread, until it is dropped.
pub(super) struct Switch {
    table: Arc<Mutex<Table>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Joins interfaces. `place_of` says which of them an address is behind.
    pub(super) fn start(
        ports: Vec<File>,
        place_of: impl Fn([u8; 4]) -> Option<usize> + Send + 'static,
        seed: u64,
    ) -> Self {
        let fair = vec![vec![Weather::default(); ports.len()]; ports.len()];
        let (table, is_over) = (Arc::new(Mutex::new(fair)), Arc::new(AtomicBool::new(false)));
        let (shared, ending) = (table.clone(), is_over.clone());
        let thread = thread::spawn(move || {
            let (delayed, order, rng) = (BinaryHeap::new(), 0, Rng::new(seed));
            let mut loop_ = Loop { ports, place_of, table: shared, delayed, order, rng };
            while !ending.load(Ordering::Relaxed) {
                loop_.turn();
            }
        });
        Self { table, is_over, thread: Some(thread) }
    }

    /// Sets what becomes of packets from one place to another.
    pub(super) fn set(&self, from: usize, to: usize, weather: Weather) {
        self.table.lock().expect("no holder panics")[from][to] = weather;
    }

    /// Lets everything pass at once.
    pub(super) fn clear(&self) {
        let mut table = self.table.lock().expect("no holder panics");
        table.iter_mut().flatten().for_each(|weather| *weather = Weather::default());
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet that waits: when it is due, its number, to where, and its bytes.
type Waiting = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Loop<F> {
    ports: Vec<File>,
    place_of: F,
    table: Arc<Mutex<Table>>,
    delayed: BinaryHeap<Waiting>,
    order: u64,
    rng: Rng,
}

impl<F: Fn([u8; 4]) -> Option<usize>> Loop<F> {
    fn turn(&mut self) {
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Reverse((_, _, to, packet)) = self.delayed.pop().expect("it was just seen");
            self.hand_over(to, &packet);
        }
        let next = self.delayed.peek().map(|Reverse((due, ..))| due.saturating_duration_since(now));
        let wait = next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        let wait_ms = i32::try_from(wait.as_micros().div_ceil(1000)).expect("it is short");
        let ready = sys::wait_for_any(&self.ports, wait_ms).expect("interfaces can be waited for");
        for (from, _) in ready.iter().enumerate().filter(|(_, is_ready)| **is_ready) {
            self.empty(from);
        }
    }

    fn empty(&mut self, from: usize) {
        let mut buffer = [0; PACKET_BYTES];
        for _ in 0..AT_ONCE {
            let Ok(len) = (&self.ports[from]).read(&mut buffer) else { return };
            self.pass(from, &buffer[..len]);
        }
    }

    fn pass(&mut self, from: usize, packet: &[u8]) {
        // Whatever is not IPv4 is the kernel's own chatter.
        let Some([a, b, c, d]) = packet.get(16..20).filter(|_| packet[0] >> 4 == 4) else { return };
        let Some(to) = (self.place_of)([*a, *b, *c, *d]) else { return };
        let weather = self.table.lock().expect("no holder panics")[from][to];
        let times = 1 + u64::from(self.rng.chance(weather.doubled));
        for _ in 0..times {
            if self.rng.chance(weather.lost) {
                continue;
            }
            let (least, most) = weather.delay_us;
            if most == 0 {
                self.hand_over(to, packet);
            } else if self.delayed.len() < DELAYED_MAX {
                let delay = Duration::from_micros(self.rng.between(least, most));
                self.order += 1;
                let due = Instant::now() + delay;
                self.delayed.push(Reverse((due, self.order, to, packet.to_vec())));
            }
        }
    }

    /// An interface that cannot take a packet loses it, as real ones do.
    fn hand_over(&self, to: usize, packet: &[u8]) {
        let _ = (&self.ports[to]).write(packet);
    }
}
