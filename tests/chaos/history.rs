//! The history: what clients asked for and were told, in the order in which they saw it.
//!
//! Times are read before a call is made and after its answer came, so that what the checker takes
//! for one after the other was.

use std::fmt;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::value::Value;

/// What an acknowledgment stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// It stays.
    Quorum,
    /// It may go with the leader.
    Weak,
}

/// What became of records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Stored, by value and offset.
    Acknowledged(Vec<(Value, u64)>),
    /// Nothing was done, and why.
    Refused(String),
    /// They may be stored or not, and why.
    Unknown(String),
}

/// Records that were sent together.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    pub(crate) invoked: Duration,
    pub(crate) ended: Duration,
    pub(crate) partition: u32,
    pub(crate) promise: Promise,
    /// Whether each is stored once whatever is retried.
    pub(crate) is_idempotent: bool,
    pub(crate) values: Vec<Value>,
    pub(crate) outcome: Outcome,
}

impl Append {
    /// One record of a producer with numbers, of which a quorum is to acknowledge that it is at
    /// `offset`; `None` if it did not.
    pub(crate) fn of_one(
        (invoked, ended): (Duration, Duration),
        partition: u32,
        value: Value,
        offset: Option<u64>,
    ) -> Self {
        let outcome = match offset {
            Some(offset) => Outcome::Acknowledged(vec![(value, offset)]),
            None => Outcome::Unknown("it was not stored, or no answer came".to_owned()),
        };
        let (promise, is_idempotent, values) = (Promise::Quorum, true, vec![value]);
        Self { invoked, ended, partition, promise, is_idempotent, values, outcome }
    }
}

/// Records that were read together.
#[derive(Debug, Clone)]
pub(crate) struct Poll {
    pub(crate) invoked: Duration,
    pub(crate) ended: Duration,
    /// The reader, and how often it had to begin anew.
    pub(crate) reader: u32,
    pub(crate) session: u32,
    /// The place whose own replica answered; `None` if it may have been any.
    pub(crate) place: Option<usize>,
    pub(crate) partition: u32,
    /// The offset that was asked for, and the one to read at next.
    pub(crate) from: u64,
    pub(crate) next: u64,
    /// As far as the reader was told.
    pub(crate) high_watermark: Option<u64>,
    pub(crate) log_start: Option<u64>,
    /// Offsets in the order in which they came; `None` for bytes that nobody wrote.
    pub(crate) records: Vec<(u64, Option<Value>)>,
}

/// The end of a partition, as its leader said after making sure that it still led.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    pub(crate) invoked: Duration,
    pub(crate) ended: Duration,
    pub(crate) partition: u32,
    pub(crate) end: u64,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Append(Append),
    Poll(Poll),
    Tail(Tail),
    /// What was done to the cluster.
    Fault {
        at: Duration,
        what: String,
    },
    /// The faults are over: the time by which every partition acknowledged something, and
    /// what did not.
    Healed {
        at: Duration,
        took: Duration,
        stuck: Vec<u32>,
    },
    /// Something that must not be, seen by whoever did it.
    Breach {
        at: Duration,
        what: String,
    },
}

/// Takes note of what happens.
pub(crate) struct History {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), events: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub(crate) fn note(&self, event: Event) {
        self.events.lock().expect("no holder panics").push(event);
    }

    pub(crate) fn breach(&self, what: impl Into<String>) {
        let (at, what) = (self.now(), what.into());
        println!("{:>9.3} BREACH: {what}", at.as_secs_f64());
        self.note(Event::Breach { at, what });
    }

    /// Takes all that happened.
    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().expect("no holder panics"))
    }
}

/// Writes a history down, an event a line, for people who look for the cause of a breach.
pub(crate) fn write(events: &[Event], to: &mut dyn Write) -> io::Result<()> {
    events.iter().try_for_each(|event| writeln!(to, "{event}"))
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = Duration::as_secs_f64;
        match self {
            Self::Append(Append {
                invoked, ended, partition, promise, values, outcome, ..
            }) => {
                let (Some(first), Some(last)) = (values.first(), values.last()) else {
                    return write!(f, "nothing sent");
                };
                write!(f, "{:.6} {:.6} append p{partition} ", seconds(invoked), seconds(ended))?;
                write!(f, "{}:{}..={} {promise:?} ", first.producer, first.counter, last.counter)?;
                match outcome {
                    Outcome::Acknowledged(at) => {
                        let offsets: Vec<_> = at.iter().map(|(_, offset)| offset).collect();
                        write!(f, "at {}", ranges(&offsets))
                    }
                    other => write!(f, "{other:?}"),
                }
            }
            Self::Poll(poll) => {
                let Poll { invoked, ended, reader, session, place, partition, from, .. } = poll;
                write!(f, "{:.6} {:.6} poll p{partition} ", seconds(invoked), seconds(ended))?;
                write!(f, "reader {reader}.{session} place {place:?} from {from} ")?;
                write!(f, "next {} hw {:?} ", poll.next, poll.high_watermark)?;
                let values: Vec<_> = poll.records.iter().map(|(at, _)| at).collect();
                write!(f, "start {:?} records {}", poll.log_start, ranges(&values))
            }
            Self::Tail(Tail { invoked, ended, partition, end }) => {
                write!(f, "{:.6} {:.6} tail p{partition} {end}", seconds(invoked), seconds(ended))
            }
            Self::Fault { at, what } => write!(f, "{:.6} fault: {what}", seconds(at)),
            Self::Healed { at, took, stuck } => {
                write!(f, "{:.6} healed in {took:?}, stuck {stuck:?}", seconds(at))
            }
            Self::Breach { at, what } => write!(f, "{:.6} BREACH: {what}", seconds(at)),
        }
    }
}

/// Numbers, those in a row together.
fn ranges(numbers: &[&u64]) -> String {
    let mut told: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match told.last_mut() {
            Some((_, last)) if *last + 1 == **number => *last = **number,
            _ => told.push((**number, **number)),
        }
    }
    let told: Vec<_> = told.iter().map(|(first, last)| format!("{first}..={last}")).collect();
    if told.is_empty() { "none".to_owned() } else { told.join(",") }
}
