//! Histories: what happened to a group, in the order in which the test saw it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A partition that a member has. Each stream of a member counts as a member of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub member: u64,
    pub partition: u32,
    pub generation: u64,
}

/// Something that happened. Offsets `to` are exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Joined {
        member: u64,
    },
    /// The member left, died or fell silent.
    Gone {
        member: u64,
    },
    /// `resumed` is the generation in which the member says it had the partition, if it was
    /// believed.
    Assigned {
        held: Held,
        next_offset: u64,
        resumed: Option<u64>,
    },
    Delivered {
        held: Held,
        from: u64,
        to: u64,
    },
    /// The member is asked to let go.
    Revoked(Held),
    Released(Held),
    /// `is_moved` if the reason is that somebody else has it.
    Lost {
        held: Held,
        is_moved: bool,
    },
    /// Commits have numbers of their own. One that is neither taken nor refused is unknown.
    CommitSent {
        id: u64,
        held: Held,
        offset: u64,
    },
    CommitTaken {
        id: u64,
    },
    CommitRefused {
        id: u64,
    },
    /// Somebody asks where the group is.
    LookSent {
        id: u64,
    },
    Seen {
        id: u64,
        partition: u32,
        offset: u64,
    },
    ResetSent {
        partition: u32,
        to: u64,
    },
    ResetDone {
        partition: u32,
    },
    /// A server goes or comes.
    Fault(String),
}

#[derive(Debug, Clone)]
pub struct Event {
    pub at: Duration,
    pub what: What,
}

/// Where a partition is at the end.
#[derive(Debug, Clone, Copy)]
pub struct Last {
    pub partition: u32,
    pub committed: u64,
    pub high_watermark: u64,
}

/// Takes note of what happens.
#[derive(Debug)]
pub struct History {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

impl History {
    pub fn new() -> Self {
        Self { began: Instant::now(), events: Mutex::default() }
    }

    /// The clock is read with the lock, so that times ascend.
    pub fn note(&self, what: What) {
        let mut events = self.events.lock().unwrap();
        events.push(Event { at: self.began.elapsed(), what });
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}
