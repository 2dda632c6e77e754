//! The checker: judges a history. Pure, and linear in it but for a sort.
//!
//! What is read anywhere at an offset is what is there: two readers that see two records at one
//! offset see a breach, whichever is right. Topics keep all their records, so that all that was
//! promised has to be there at the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use crate::history::{Append, Event, Outcome, Poll, Promise, Tail};
use crate::value::Value;

/// What must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// An acknowledged record is not there at the end.
    Lost,
    /// A record is at another offset than was acknowledged.
    Moved,
    /// A record is there twice.
    Duplicate,
    /// Two records were read at one offset.
    Inconsistent,
    /// Records of one producer are not in the order in which it sent them.
    Reordered,
    /// A record was acknowledged, and one that was sent later is before it.
    RealTime,
    /// There is no record at an offset below the end.
    Gap,
    /// A record was refused, and is there.
    Refused,
    /// A record that nobody sent, or not to this partition, or not like this.
    Phantom,
    /// A record was read that was not committed.
    Dirty,
    /// A leader did not know of what had been acknowledged.
    Stale,
    /// A reader was told of less than before.
    Regress,
    /// A reader was sent something else than what came next.
    Skip,
    /// Replicas differ at the end.
    Diverged,
    /// No progress after the faults were over.
    Stuck,
    /// Whoever saw it says what.
    Other,
}

/// A rule broken.
#[derive(Debug, Clone)]
pub(crate) struct Breach {
    pub(crate) rule: Rule,
    pub(crate) why: String,
}

/// A batch, as a replica has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) base_offset: u64,
    pub(crate) records: u32,
    pub(crate) append_time_ms: i64,
    pub(crate) leader_epoch: u64,
    pub(crate) crc: u32,
}

/// The end of a run, after everything was healed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Last {
    /// The end of each partition.
    pub(crate) ends: Vec<u64>,
    /// What each replica has, by node and partition.
    pub(crate) replicas: BTreeMap<(u64, u32), Vec<Mark>>,
}

/// What a history comes to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) breaches: Vec<Breach>,
    pub(crate) operations: u64,
    /// Records acknowledged by a quorum, by less, and refused or unknown.
    pub(crate) acknowledged: u64,
    pub(crate) weakly_acknowledged: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) read: u64,
    /// Records of unknown outcome that are there, and that are there twice, sent without numbers.
    pub(crate) found: u64,
    pub(crate) repeated: u64,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) heals: u64,
    pub(crate) slowest_heal: Duration,
}

impl Verdict {
    fn blame(&mut self, rule: Rule, why: String) {
        self.breaches.push(Breach { rule, why });
    }

    /// Adds what another run came to.
    pub(crate) fn add(&mut self, other: Self) {
        self.breaches.extend(other.breaches);
        self.operations += other.operations;
        self.acknowledged += other.acknowledged;
        self.weakly_acknowledged += other.weakly_acknowledged;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.read += other.read;
        self.found += other.found;
        self.repeated += other.repeated;
        for (fault, count) in other.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        self.heals += other.heals;
        self.slowest_heal = self.slowest_heal.max(other.slowest_heal);
    }

    /// How many breaches there are of each rule.
    pub(crate) fn broken(&self) -> BTreeMap<Rule, u64> {
        let mut rules = BTreeMap::new();
        self.breaches.iter().for_each(|breach| *rules.entry(breach.rule).or_default() += 1);
        rules
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, acknowledged, weakly_acknowledged, refused, unknown, .. } = self;
        writeln!(f, "{operations} operations, {acknowledged} records acknowledged by a quorum, ")?;
        writeln!(f, "{weakly_acknowledged} by less, {refused} refused, {unknown} unknown ")?;
        writeln!(f, "({} of them stored), {} read", self.found, self.read)?;
        writeln!(f, "{} heals, the slowest after {:?}", self.heals, self.slowest_heal)?;
        for (fault, count) in &self.faults {
            writeln!(f, "{count:>8}  {fault}")?;
        }
        write!(f, "{} breaches {:?}", self.breaches.len(), self.broken())?;
        let shown = self.breaches.iter().take(20);
        shown.into_iter().try_for_each(|breach| write!(f, "\n  {:?}: {}", breach.rule, breach.why))
    }
}

/// How a record was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Weakly,
    Refused,
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    partition: u32,
    fate: Fate,
    is_idempotent: bool,
}

/// Judges a history of `partitions` that ended like `last`, if it came to an end. After a heal
/// every partition has to acknowledge something within `heal_max`.
pub(crate) fn judge(
    events: &[Event],
    partitions: u32,
    last: Option<&Last>,
    heal_max: Duration,
) -> Verdict {
    let logs = vec![Vec::new(); partitions as usize];
    let (verdict, sent) = (Verdict::default(), HashMap::new());
    let mut checker = Checker { verdict, logs, sent, heal_max };
    for event in events {
        checker.count(event);
    }
    for event in events {
        if let Event::Poll(poll) = event {
            checker.read(poll);
        }
    }
    checker.check_real_time(events);
    checker.check_sessions(events);
    if let Some(last) = last {
        for (partition, end) in (0..).zip(&last.ends) {
            checker.finish(partition, *end);
        }
        checker.check_promises(events);
        checker.check_replicas(last);
    }
    checker.verdict
}

struct Checker {
    verdict: Verdict,
    /// What is at each offset of each partition, as a number; 0 where nothing was read.
    logs: Vec<Vec<u64>>,
    sent: HashMap<u64, Sent>,
    heal_max: Duration,
}

impl Checker {
    fn blame(&mut self, rule: Rule, why: String) {
        self.verdict.blame(rule, why);
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Append(append) => self.count_append(append),
            Event::Poll(_) | Event::Tail(_) => self.verdict.operations += 1,
            Event::Fault { what, .. } => {
                let kind = what.split(':').next().unwrap_or_default().to_owned();
                *self.verdict.faults.entry(kind).or_default() += 1;
            }
            Event::Healed { took, stuck, at } => {
                self.verdict.heals += 1;
                self.verdict.slowest_heal = self.verdict.slowest_heal.max(*took);
                if *took > self.heal_max || !stuck.is_empty() {
                    let why =
                        format!("healed at {at:?}: progress after {took:?}, not in {stuck:?}");
                    self.blame(Rule::Stuck, why);
                }
            }
            Event::Breach { what, at } => self.blame(Rule::Other, format!("{at:?}: {what}")),
        }
    }

    fn count_append(&mut self, append: &Append) {
        let Append { partition, is_idempotent, .. } = *append;
        let verdict = &mut self.verdict;
        verdict.operations += 1;
        let (counter, fate) = match (&append.outcome, append.promise) {
            (Outcome::Acknowledged(_), Promise::Quorum) => {
                (&mut verdict.acknowledged, Fate::Acknowledged)
            }
            (Outcome::Acknowledged(_), Promise::Weak) => {
                (&mut verdict.weakly_acknowledged, Fate::Weakly)
            }
            (Outcome::Refused(_), _) => (&mut verdict.refused, Fate::Refused),
            (Outcome::Unknown(_), _) => (&mut verdict.unknown, Fate::Unknown),
        };
        *counter += append.values.len() as u64;
        for value in &append.values {
            self.sent.insert(value.number(), Sent { partition, fate, is_idempotent });
        }
    }

    /// A4, A9, A10, A13 to A15.
    fn read(&mut self, poll: &Poll) {
        let Poll { reader, place, partition, from, next, .. } = poll;
        let who = || format!("reader {reader} at {place:?}, partition {partition}");
        self.verdict.read += poll.records.len() as u64;
        let offsets = poll.records.iter().map(|(offset, _)| *offset);
        if !offsets.eq(*from..*next) {
            let got: Vec<_> = poll.records.iter().map(|(offset, _)| *offset).take(3).collect();
            let why = format!("{} asked for {from}, got {got:?}.., next {next}", who());
            self.blame(Rule::Skip, why);
        }
        let end = poll.high_watermark.unwrap_or(u64::MAX);
        for (offset, value) in &poll.records {
            if *offset >= end {
                self.blame(Rule::Dirty, format!("{}: {offset} of {end}", who()));
            }
            let Some(value) = value else {
                self.blame(Rule::Phantom, format!("{}: bytes of nobody at {offset}", who()));
                continue;
            };
            let log = &mut self.logs[*partition as usize];
            let at = usize::try_from(*offset).expect("a log of a test is short");
            if log.len() <= at {
                log.resize(at + 1, 0);
            }
            let known = std::mem::replace(&mut log[at], value.number());
            if known != 0 && known != value.number() {
                let known = Value::of_number(known);
                let why = format!("{}: {value:?} at {offset}, {known:?} before", who());
                self.blame(Rule::Inconsistent, why);
            }
        }
    }

    /// A3, A5, A7, A8, A9: a pass over a log.
    fn finish(&mut self, partition: u32, end: u64) {
        let log = std::mem::take(&mut self.logs[partition as usize]);
        if log.len() as u64 > end {
            let why = format!("partition {partition} ends at {end}, {} was read", log.len() - 1);
            self.blame(Rule::Dirty, why);
        }
        let mut offsets: HashMap<u64, usize> = HashMap::new();
        let mut latest: HashMap<u32, u64> = HashMap::new();
        for (offset, number) in log.iter().enumerate() {
            if *number == 0 {
                self.blame(Rule::Gap, format!("partition {partition} has nothing at {offset}"));
                continue;
            }
            let value = Value::of_number(*number);
            let Some(sent) = self.sent.get(number).copied() else {
                self.blame(Rule::Phantom, format!("{value:?} at {offset} was never sent"));
                continue;
            };
            if sent.partition != partition {
                let why = format!("{value:?} of {} is in {partition}", sent.partition);
                self.blame(Rule::Phantom, why);
            }
            match sent.fate {
                Fate::Refused => {
                    self.blame(Rule::Refused, format!("{value:?} is at {partition}/{offset}"));
                }
                Fate::Unknown => self.verdict.found += 1,
                Fate::Acknowledged | Fate::Weakly => {}
            }
            if let Some(before) = offsets.insert(*number, offset) {
                if sent.is_idempotent || sent.fate != Fate::Unknown {
                    let why = format!("{value:?} is at {partition}/{before} and {offset}");
                    self.blame(Rule::Duplicate, why);
                } else {
                    self.verdict.repeated += 1;
                }
            }
            let before = latest.insert(value.producer, value.counter);
            if sent.is_idempotent && before.is_some_and(|before| before >= value.counter) {
                let why = format!("{value:?} at {partition}/{offset} is after {before:?}");
                self.blame(Rule::Reordered, why);
            }
        }
        if (log.len() as u64) < end {
            let why = format!("partition {partition} ends at {end}, nobody read {}", log.len());
            self.blame(Rule::Gap, why);
        }
        self.logs[partition as usize] = log;
    }

    /// A1, A2, A23: what was acknowledged is where it was said to be.
    fn check_promises(&mut self, events: &[Event]) {
        let mut places: HashMap<u64, (usize, usize)> = HashMap::new();
        for (partition, log) in self.logs.iter().enumerate() {
            places.extend(log.iter().enumerate().map(|(at, number)| (*number, (partition, at))));
        }
        for (append, stored) in acknowledged(events) {
            for (value, offset) in stored {
                let wanted = (append.partition as usize, *offset as usize);
                match places.get(&value.number()) {
                    Some(found) if *found == wanted => {}
                    Some(found) => {
                        let why = format!("{value:?} was acknowledged at {wanted:?}, is {found:?}");
                        self.blame(Rule::Moved, why);
                    }
                    None => {
                        let at = append.ended;
                        let why = format!("{value:?}, acknowledged at {wanted:?} by {at:?}");
                        self.blame(Rule::Lost, why);
                    }
                }
            }
        }
    }

    /// A6, A11, A12: what ended before something began comes before it.
    fn check_real_time(&mut self, events: &[Event]) {
        let mut ends: Vec<Furthest> = vec![Furthest::default(); self.logs.len()];
        let mut tails = ends.clone();
        for (append, stored) in acknowledged(events) {
            let last = stored.iter().map(|(_, offset)| *offset + 1).max().unwrap_or(0);
            ends[append.partition as usize].add(append.ended, last);
        }
        let told = events.iter().filter_map(|event| match event {
            Event::Tail(tail) => Some(*tail),
            _ => None,
        });
        let told: Vec<Tail> = told.collect();
        for tail in &told {
            tails[tail.partition as usize].add(tail.ended, tail.end);
        }
        ends.iter_mut().chain(&mut tails).for_each(Furthest::settle);
        for (append, stored) in acknowledged(events) {
            let first = stored.iter().map(|(_, offset)| *offset).min().unwrap_or(u64::MAX);
            let known = ends[append.partition as usize].before(append.invoked);
            if first < known {
                let Append { partition, invoked, .. } = append;
                let why = format!("{partition}/{first}, sent {invoked:?}, {known} was taken");
                self.blame(Rule::RealTime, why);
            }
        }
        for Tail { invoked, partition, end, .. } in told {
            let known = ends[partition as usize].before(invoked);
            if end < known {
                let why =
                    format!("partition {partition} ended at {end} at {invoked:?}, at {known}");
                self.blame(Rule::Stale, why);
            }
            let known = tails[partition as usize].before(invoked);
            if end < known {
                let why =
                    format!("partition {partition} ended at {end} at {invoked:?}, at {known}");
                self.blame(Rule::Regress, why);
            }
        }
    }

    /// A12, A13: a reader goes on where it was, and is not told of less than before.
    fn check_sessions(&mut self, events: &[Event]) {
        let mut sessions: HashMap<(u32, u32, u32), (u64, u64, u64)> = HashMap::new();
        for event in events {
            let Event::Poll(poll) = event else { continue };
            let key = (poll.reader, poll.session, poll.partition);
            let (next, end, start) = sessions.entry(key).or_insert((poll.from, 0, 0));
            let (found_end, found_start) =
                (poll.high_watermark.unwrap_or(*end), poll.log_start.unwrap_or(*start));
            // Of two replicas one may know less than the other.
            let is_less = poll.place.is_some() && (found_end < *end || found_start < *start);
            if poll.from != *next || is_less {
                let why = format!(
                    "{key:?} was at {next}, end {end}, start {start}; now {}, {found_end}, \
                     {found_start}",
                    poll.from
                );
                self.verdict.blame(Rule::Regress, why);
            }
            (*next, *end, *start) = (poll.next, found_end, found_start);
        }
    }

    /// A24, A32: all replicas have the same batches.
    fn check_replicas(&mut self, last: &Last) {
        for (partition, _) in last.ends.iter().enumerate() {
            let of_it = |((_, p), _): &(&(u64, u32), &Vec<Mark>)| *p as usize == partition;
            let mut replicas = last.replicas.iter().filter(of_it);
            let Some(((first, _), expected)) = replicas.next() else {
                self.blame(Rule::Diverged, format!("partition {partition} has no replica"));
                continue;
            };
            for ((node, _), found) in replicas {
                let differs =
                    expected.iter().zip(found).find(|(expected, found)| expected != found);
                if differs.is_some() || expected.len() != found.len() {
                    let (a, b) = (expected.len(), found.len());
                    let why = format!(
                        "partition {partition}: nodes {first} and {node} have {a} and {b} batches; \
                         {differs:?}"
                    );
                    self.verdict.blame(Rule::Diverged, why);
                }
            }
        }
    }
}

/// What a quorum has acknowledged.
fn acknowledged(events: &[Event]) -> impl Iterator<Item = (&Append, &[(Value, u64)])> {
    events.iter().filter_map(|event| match event {
        Event::Append(append) if append.promise == Promise::Quorum => match &append.outcome {
            Outcome::Acknowledged(stored) => Some((append, stored.as_slice())),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        },
        _ => None,
    })
}

/// The furthest that something was at each time.
#[derive(Debug, Clone, Default)]
struct Furthest(Vec<(Duration, u64)>);

impl Furthest {
    fn add(&mut self, at: Duration, end: u64) {
        self.0.push((at, end));
    }

    fn settle(&mut self) {
        self.0.sort_unstable();
        let mut furthest = 0;
        for (_, end) in &mut self.0 {
            furthest = furthest.max(*end);
            *end = furthest;
        }
    }

    /// The furthest that it was before a time.
    fn before(&self, time: Duration) -> u64 {
        let count = self.0.partition_point(|(at, _)| *at < time);
        count.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}
