//! The checker: judges a history. Pure.
//!
//! A reset opens another era of its partition: positions may go back there, and what was delivered
//! before counts no more. It takes effect somewhere between its call and its answer, so that what
//! happens between the two may belong to either era, and is given the benefit of the doubt.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::history::{Event, Held, Last, What};

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A13: a record is left out inside one generation.
    Skip,
    /// A14: a record comes again inside one generation.
    Order,
    /// A16: what was committed is not there any more.
    Regress,
    /// A17: a commit is taken after a later generation was told to somebody.
    Zombie,
    /// A18: two members have a partition in one generation.
    TwoOwners,
    /// A18: a partition is taken from a member that was not asked to let go.
    Unasked,
    /// A19: a partition has no owner for too long.
    Orphan,
    /// A20: the group is past a record that nobody was sent.
    GroupSkip,
    /// A member goes on where it was although the partition was somebody else's, or was reset.
    WrongResume,
    /// A record reached nobody.
    Undelivered,
    /// The group does not come to the end.
    NotDrained,
}

/// A rule broken, by which event.
#[derive(Debug, Clone)]
pub struct Breach {
    pub rule: Rule,
    pub event: usize,
    pub why: String,
}

/// What a history comes to.
#[derive(Debug, Default)]
pub struct Verdict {
    pub breaches: Vec<Breach>,
    pub assigned: u64,
    pub resumed: u64,
    pub taken: u64,
    pub refused: u64,
    pub resets: u64,
    pub faults: u64,
    pub delivered: u64,
    /// A21: records that were delivered once more, resets included.
    pub redelivered: u64,
    /// The longest that a partition had no owner: since it lost it, and since the last fault.
    pub free_max: Duration,
    pub orphan_max: Duration,
}

impl Verdict {
    pub fn broken(&self) -> Vec<Rule> {
        let mut rules: Vec<_> = self.breaches.iter().map(|breach| breach.rule).collect();
        rules.sort();
        rules.dedup();
        rules
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { assigned, resumed, taken, refused, resets, faults, .. } = self;
        write!(f, "{assigned} assignments ({resumed} resumed), {taken} commits taken, ")?;
        write!(f, "{refused} refused, {resets} resets, {faults} faults, ")?;
        write!(f, "{} deliveries ({} again), ", self.delivered, self.redelivered)?;
        write!(f, "longest without owner {:?}, ", self.free_max)?;
        write!(f, "{:?} after the last fault", self.orphan_max)?;
        let shown = self.breaches.iter().take(20);
        shown.into_iter().try_for_each(|Breach { rule, event, why }| {
            write!(f, "\nevent {event} breaks {rule:?}: {why}")
        })
    }
}

/// Offsets, as ranges that do not touch.
#[derive(Debug, Clone, Default)]
struct Spans(BTreeMap<u64, u64>);

impl Spans {
    /// Adds a range. Returns how many offsets of it were there already.
    fn add(&mut self, from: u64, to: u64) -> u64 {
        let (mut low, mut high, mut known) = (from, to, 0);
        let touching = self.0.range(..=to).rev().take_while(|(_, end)| **end >= from);
        let touching: Vec<_> = touching.map(|(start, end)| (*start, *end)).collect();
        for (start, end) in touching {
            known += end.min(to).saturating_sub(start.max(from));
            (low, high) = (low.min(start), high.max(end));
            self.0.remove(&start);
        }
        self.0.insert(low, high);
        known
    }

    fn covers(&self, from: u64, to: u64) -> bool {
        let before = self.0.range(..=from).next_back();
        from >= to || before.is_some_and(|(_, end)| *end >= to)
    }
}

/// The eras that something may belong to, inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Eras {
    first: usize,
    last: usize,
}

impl Eras {
    fn is_sure(self) -> bool {
        self.first == self.last
    }
}

#[derive(Debug, Clone, Copy)]
struct Told {
    member: u64,
    event: usize,
    next_offset: u64,
    eras: Eras,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    held: Held,
    offset: u64,
    eras: Eras,
    /// What was told and taken before it was sent.
    generation_told: u64,
    committed: u64,
}

#[derive(Debug)]
struct Partition {
    /// Where each era began, and what was delivered in it.
    eras: Vec<(u64, Spans)>,
    /// The last era that surely began.
    settled: usize,
    /// The events of resets: called and answered.
    resets: Vec<(usize, Option<usize>)>,
    ever: Spans,
    told: BTreeMap<u64, Told>,
    /// Where the next record of a generation is expected, and whether one has come.
    expected: BTreeMap<u64, (u64, bool)>,
    taken: Vec<Commit>,
    /// The furthest that was surely committed in each era.
    committed: BTreeMap<usize, u64>,
    owner: Option<Held>,
    asked: Option<Held>,
    free_since: Option<Duration>,
}

impl Partition {
    fn new() -> Self {
        Self {
            eras: vec![(0, Spans::default())],
            settled: 0,
            resets: Vec::new(),
            ever: Spans::default(),
            told: BTreeMap::new(),
            expected: BTreeMap::new(),
            taken: Vec::new(),
            committed: BTreeMap::new(),
            owner: None,
            asked: None,
            free_since: None,
        }
    }

    fn eras(&self) -> Eras {
        Eras { first: self.settled, last: self.eras.len() - 1 }
    }

    fn generation_told(&self) -> u64 {
        self.told.last_key_value().map_or(0, |(generation, _)| *generation)
    }

    /// What was committed for sure, if it is sure which era it is.
    fn committed(&self) -> u64 {
        let eras = self.eras();
        let known = self.committed.get(&eras.last).copied().unwrap_or(0);
        if eras.is_sure() { known } else { 0 }
    }
}

/// How long a partition may be without an owner.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub partitions: u32,
    pub orphan_max: Duration,
}

/// Judges a history; `last` is where it ended, if the group was given the time to come to the end.
pub fn judge(events: &[Event], last: &[Last], rules: Rules) -> Verdict {
    let mut checker = Checker {
        rules,
        verdict: Verdict::default(),
        partitions: (0..rules.partitions).map(|_| Partition::new()).collect(),
        commits: BTreeMap::new(),
        looks: BTreeMap::new(),
        joined: BTreeMap::new(),
        fault: Duration::ZERO,
        event: 0,
        at: Duration::ZERO,
    };
    for (n, event) in events.iter().enumerate() {
        (checker.event, checker.at) = (n, event.at);
        checker.take(&event.what);
    }
    checker.finish(last);
    checker.verdict
}

struct Checker {
    rules: Rules,
    verdict: Verdict,
    partitions: Vec<Partition>,
    commits: BTreeMap<u64, Commit>,
    /// What was committed in which eras when somebody began to look.
    looks: BTreeMap<u64, Vec<(Eras, u64)>>,
    /// The members that are there, and the event by which they joined.
    joined: BTreeMap<u64, (usize, bool)>,
    fault: Duration,
    event: usize,
    at: Duration,
}

impl Checker {
    fn blame(&mut self, rule: Rule, why: String) {
        self.verdict.breaches.push(Breach { rule, event: self.event, why });
    }

    fn of(&mut self, partition: u32) -> &mut Partition {
        &mut self.partitions[partition as usize]
    }

    fn take(&mut self, what: &What) {
        match *what {
            What::Joined { member } => self.join(member),
            What::Gone { member } => self.go(member),
            What::Assigned { held, next_offset, resumed } => {
                self.assign(held, next_offset, resumed);
            }
            What::Delivered { held, from, to } => self.deliver(held, from, to),
            What::Revoked(held) => self.of(held.partition).asked = Some(held),
            What::Released(held) => self.let_go(held),
            What::Lost { held, is_moved } => {
                if is_moved && self.of(held.partition).asked != Some(held) {
                    self.blame(Rule::Unasked, format!("{held:?} is lost without being asked for"));
                }
                self.let_go(held);
            }
            What::CommitSent { id, held, offset } => self.send(id, held, offset),
            What::CommitTaken { id } => self.accept(id),
            What::CommitRefused { .. } => self.verdict.refused += 1,
            What::LookSent { id } => {
                let now = self.partitions.iter().map(|p| (p.eras(), p.committed())).collect();
                self.looks.insert(id, now);
            }
            What::Seen { id, partition, offset } => self.see(id, partition, offset),
            What::ResetSent { partition, to } => {
                let event = self.event;
                let known = self.of(partition);
                known.eras.push((to, Spans::default()));
                known.resets.push((event, None));
            }
            What::ResetDone { partition } => {
                let event = self.event;
                let known = self.of(partition);
                known.settled = known.eras.len() - 1;
                known.resets.last_mut().expect("it was called").1 = Some(event);
                self.verdict.resets += 1;
            }
            What::Fault(_) => {
                self.fault = self.at;
                self.verdict.faults += 1;
            }
        }
    }

    fn join(&mut self, member: u64) {
        let at = self.at;
        if !self.joined.values().any(|(_, is_here)| *is_here) {
            self.fault = at;
            let free = self.partitions.iter_mut().filter(|p| p.owner.is_none());
            free.for_each(|partition| partition.free_since = Some(at));
        }
        self.joined.insert(member, (self.event, true));
    }

    fn go(&mut self, member: u64) {
        let at = self.at;
        self.fault = at;
        if let Some((_, is_here)) = self.joined.get_mut(&member) {
            *is_here = false;
        }
        for partition in &mut self.partitions {
            if partition.owner.is_some_and(|owner| owner.member == member) {
                (partition.owner, partition.free_since) = (None, Some(at));
            }
        }
    }

    fn let_go(&mut self, held: Held) {
        let at = self.at;
        let known = self.of(held.partition);
        if known.owner == Some(held) {
            (known.owner, known.free_since) = (None, Some(at));
        }
    }

    fn assign(&mut self, held: Held, next_offset: u64, resumed: Option<u64>) {
        let Held { member, partition, generation } = held;
        self.verdict.assigned += 1;
        self.end_of_wait(partition);
        if let Some(before) = self.of(partition).told.get(&generation) {
            let other = before.member;
            self.blame(Rule::TwoOwners, format!("{held:?} was {other}'s in that generation"));
        }
        if let Some(before) = resumed {
            self.verdict.resumed += 1;
            self.check_resume(held, before);
        }
        let event = self.event;
        let known = self.of(partition);
        let eras = known.eras();
        (known.owner, known.free_since) = (Some(held), None);
        known.expected.insert(generation, (next_offset, false));
        let told = Told { member, event, next_offset, eras };
        known.told.insert(generation, told);
        let beyond = known.taken.iter().find(|commit| is_behind(generation, &told, commit));
        if let Some(Commit { held: by, offset, .. }) = beyond.copied() {
            let why = format!("{held:?} begins at {next_offset}, {by:?} had committed {offset}");
            self.blame(Rule::Regress, why);
        }
    }

    fn end_of_wait(&mut self, partition: u32) {
        let (at, fault) = (self.at, self.fault);
        let Some(since) = self.of(partition).free_since.take() else { return };
        let wait = at - since.max(fault).min(at);
        self.verdict.free_max = self.verdict.free_max.max(at - since);
        self.verdict.orphan_max = self.verdict.orphan_max.max(wait);
        if wait > self.rules.orphan_max {
            self.blame(Rule::Orphan, format!("partition {partition} has no owner for {wait:?}"));
        }
    }

    fn check_resume(&mut self, held: Held, before: u64) {
        let Held { member, partition, generation } = held;
        let joined = self.joined.get(&member).map_or(0, |(event, _)| *event);
        let known = self.of(partition);
        let between = known.told.range(before + 1..generation.max(before + 1)).next();
        let had = known.told.get(&before).map_or(0, |told| told.event);
        let is_reset = |(sent, done): &&(usize, Option<usize>)| {
            *sent > had && done.is_some_and(|done| done < joined)
        };
        let why = match (between, known.resets.iter().find(is_reset)) {
            (Some((other, _)), _) => format!("somebody had it in generation {other}"),
            (None, Some((reset, _))) => format!("it was reset by event {reset}"),
            (None, None) => return,
        };
        self.blame(Rule::WrongResume, format!("{held:?} goes on after {before}, but {why}"));
    }

    fn deliver(&mut self, held: Held, from: u64, to: u64) {
        let known = self.of(held.partition);
        let eras = known.eras();
        let expected = known.expected.get(&held.generation).copied().unwrap_or((from, true));
        known.expected.insert(held.generation, (to, true));
        for (_, spans) in &mut known.eras[eras.first..] {
            spans.add(from, to);
        }
        let again = known.ever.add(from, to);
        self.verdict.delivered += to - from;
        self.verdict.redelivered += again;
        let (next, has_begun) = expected;
        if from > next {
            self.blame(Rule::Skip, format!("{held:?} gets {from} where {next} is next"));
        } else if to <= next || (has_begun && from < next) {
            self.blame(Rule::Order, format!("{held:?} gets {from}..{to} where {next} is next"));
        }
    }

    fn send(&mut self, id: u64, held: Held, offset: u64) {
        let known = self.of(held.partition);
        let (eras, committed) = (known.eras(), known.committed());
        let generation_told = known.generation_told();
        self.commits.insert(id, Commit { held, offset, eras, generation_told, committed });
    }

    fn accept(&mut self, id: u64) {
        self.verdict.taken += 1;
        let mut commit = self.commits[&id];
        let Commit { held, offset, generation_told, committed, .. } = commit;
        let known = self.of(held.partition);
        commit.eras.last = known.eras().last;
        let eras = commit.eras;
        if eras.is_sure() {
            let furthest = known.committed.entry(eras.last).or_default();
            *furthest = offset.max(*furthest);
        }
        known.taken.push(commit);
        let is_read = known.eras[eras.first..=eras.last]
            .iter()
            .any(|(begin, spans)| spans.covers((*begin).min(offset), offset));
        let mut told = known.told.iter();
        let later = told.find(|(generation, told)| is_behind(**generation, told, &commit));
        let later = later.map(|(generation, told)| (*generation, told.next_offset));
        if generation_told > held.generation {
            let why = format!("{held:?} commits {offset} after {generation_told} was told");
            self.blame(Rule::Zombie, why);
        }
        if let Some((generation, next)) = later {
            let why = format!("{held:?} commits {offset}, but {generation} begins at {next}");
            self.blame(Rule::Regress, why);
        }
        if eras.is_sure() && offset < committed {
            let why = format!("{held:?} commits {offset} after {committed} was committed");
            self.blame(Rule::Regress, why);
        }
        if !is_read {
            let why = format!("{held:?} commits {offset}, not all before it was delivered");
            self.blame(Rule::GroupSkip, why);
        }
    }

    fn see(&mut self, id: u64, partition: u32, offset: u64) {
        let (eras, committed) = self.looks[&id][partition as usize];
        let is_same = eras.is_sure() && eras == self.of(partition).eras();
        if is_same && offset < committed {
            let why = format!("partition {partition} is at {offset}, {committed} was committed");
            self.blame(Rule::Regress, why);
        }
    }

    fn finish(&mut self, last: &[Last]) {
        for partition in 0..self.rules.partitions {
            if self.joined.values().any(|(_, is_here)| *is_here) {
                self.end_of_wait(partition);
            }
        }
        for Last { partition, committed, high_watermark } in last.iter().copied() {
            if !self.of(partition).ever.covers(0, high_watermark) {
                let spans = &self.of(partition).ever;
                let why = format!("partition {partition} up to {high_watermark}: only {spans:?}");
                self.blame(Rule::Undelivered, why);
            }
            if committed != high_watermark {
                let why = format!("partition {partition} is at {committed} of {high_watermark}");
                self.blame(Rule::NotDrained, why);
            }
        }
    }
}

/// True if a generation began behind what an earlier one has committed.
fn is_behind(generation: u64, told: &Told, commit: &Commit) -> bool {
    let is_same_era = told.eras.is_sure() && told.eras == commit.eras;
    let is_earlier = commit.held.generation < generation;
    is_same_era && is_earlier && told.next_offset < commit.offset
}
