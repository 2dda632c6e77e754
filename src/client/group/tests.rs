//! The member as a whole: whatever happens, only what is finished is committed, nothing is left
//! out, and nothing is handed out twice by one member that kept its partition.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::config::{Commit, GroupConsumerConfig};
use super::event::GroupEvent;
use super::member::Member;
use super::wire::{Data, Told};
use crate::client::{Event, Failure, Record};
use crate::proto::client::assignment_commit_outcome::Outcome;
use crate::proto::client::consume_request::Message;
use crate::proto::client::{
    Assignment, AssignmentCommitOutcome, ConsumeAssigned, ConsumeCommit, ConsumeCommitted,
    ConsumeJoin, ConsumeJoined, ConsumeLost, ConsumeRevoke,
};

const PARTITIONS: u32 = 3;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Records of a partition arrive.
    Send(u32, u64),
    /// The application asks for an event.
    Next,
    /// Time passes.
    Wait(u64),
    /// The server answers commits, or does not yet.
    Answer,
    Revoke(u32),
    Lose(u32),
    /// The stream breaks, and the member joins again; with whether partitions are resumed.
    Cut(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..PARTITIONS, 0..5_u64).prop_map(|(at, count)| Step::Send(at, count)),
        8 => Just(Step::Next),
        3 => (0..2_000_u64).prop_map(Step::Wait),
        3 => Just(Step::Answer),
        1 => (0..PARTITIONS).prop_map(Step::Revoke),
        1 => (0..PARTITIONS).prop_map(Step::Lose),
        1 => any::<bool>().prop_map(Step::Cut),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the server and the application know of a partition.
#[derive(Debug, Default, Clone)]
struct Known {
    /// Its number in the stream, while it is the member's.
    assignment: Option<u64>,
    /// What was sent up to.
    sent: u64,
    /// What was committed up to.
    committed: u64,
    /// What was handed out up to, in this assignment.
    handed: u64,
    /// What the application has finished up to.
    finished: u64,
    /// When the member has to have let go of it.
    revoked: Option<Instant>,
}

/// A server, an application, and the member between them.
struct World {
    member: Member,
    now: Instant,
    known: Vec<Known>,
    last_assignment: u64,
    unanswered: VecDeque<ConsumeCommit>,
    /// What the application has at hand: the partition and the offset after it.
    in_hand: Option<(u32, u64)>,
}

impl World {
    fn new() -> Self {
        let commit = Commit::Auto(Duration::from_millis(500));
        let config = GroupConsumerConfig { commit, ..GroupConsumerConfig::new("g") };
        let now = Instant::now();
        let member = Member::new(config, Duration::from_secs(30), now);
        let known = vec![Known::default(); PARTITIONS as usize];
        let (last_assignment, unanswered, in_hand) = (0, VecDeque::new(), None);
        let mut world = Self { member, now, known, last_assignment, unanswered, in_hand };
        world.join(true);
        world
    }

    fn tell(&mut self, told: Told) -> Result<(), Failure> {
        self.member.on_heard(self.now);
        self.member.on_told(self.now, told)
    }

    fn join(&mut self, resumes: bool) {
        let ConsumeJoin { positions, .. } = self.member.begin(self.now);
        let (session_timeout_ms, heartbeat_interval_ms) = (60_000, 20_000);
        self.tell(Told::Joined(ConsumeJoined {
            member_id: "m".into(),
            session_timeout_ms,
            heartbeat_interval_ms,
            ..Default::default()
        }))
        .unwrap();
        for partition in 0..PARTITIONS {
            let position = positions.iter().find(|position| position.partition == partition);
            let position = position.map(|position| position.next_offset);
            self.assign(partition, position.filter(|_| resumes)).unwrap();
        }
    }

    fn assign(&mut self, partition: u32, resumed: Option<u64>) -> Result<(), Failure> {
        self.last_assignment += 1;
        let known = &mut self.known[partition as usize];
        known.assignment = Some(self.last_assignment);
        known.revoked = None;
        let next_offset = resumed.unwrap_or(known.committed);
        known.sent = next_offset;
        if resumed.is_none() {
            (known.handed, known.finished) = (next_offset, next_offset);
        }
        self.tell(Told::Assigned(ConsumeAssigned {
            assignments: vec![Assignment {
                assignment: self.last_assignment,
                topic: "t".into(),
                topic_id: "id".into(),
                partition,
                next_offset,
                is_resumed: resumed.is_some(),
                ..Default::default()
            }],
        }))
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send(partition, count) => self.send(partition, count),
            Step::Next => self.next(),
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.member.on_heard(self.now);
                self.member.on_time(self.now).unwrap();
            }
            Step::Answer => self.answer(),
            Step::Revoke(partition) => {
                let known = &mut self.known[partition as usize];
                if known.revoked.is_some() {
                    return;
                }
                known.revoked = Some(self.now + Duration::from_millis(900));
                let (assignments, deadline_ms) = (known.assignment.into_iter().collect(), 1_000);
                self.tell(Told::Revoke(ConsumeRevoke { assignments, deadline_ms })).unwrap();
            }
            Step::Lose(partition) => {
                let known = &mut self.known[partition as usize];
                let assignments = known.assignment.take().into_iter().collect();
                self.tell(Told::Lost(ConsumeLost { assignments, reason: 1 })).unwrap();
                self.assign(partition, None).unwrap();
            }
            Step::Cut(resumes) => {
                self.unanswered.clear();
                self.member.on_cut();
                self.join(resumes);
            }
        }
        while let Some(message) = self.member.next_request(self.now) {
            self.hear(message);
        }
    }

    fn send(&mut self, partition: u32, count: u64) {
        let known = &mut self.known[partition as usize];
        let Some(assignment) = known.assignment else { return };
        let first = known.sent;
        known.sent += count;
        let next_offset = known.sent;
        let Some(source) = self.member.source(assignment) else { return };
        assert_eq!(source.from, first, "what arrives follows what has arrived");
        let record = |offset| {
            Event::Record(Record { topic: "t".into(), partition, offset, ..Record::default() })
        };
        let events = (first..next_offset).map(record).collect();
        let data = Data { assignment, next_offset, cost_bytes: 10, ..Data::default() };
        self.member.on_data(&source, &data, events);
    }

    fn next(&mut self) {
        self.member.finish(self.now);
        if let Some((partition, next_offset)) = self.in_hand.take() {
            let known = &mut self.known[partition as usize];
            if known.handed >= next_offset {
                known.finished = known.finished.max(next_offset);
            }
        }
        match self.member.next_event(self.now) {
            Some(GroupEvent::Record(record)) => {
                let known = &mut self.known[record.partition as usize];
                assert_eq!(record.offset, known.handed, "partition {}", record.partition);
                known.handed = record.offset + 1;
                self.in_hand = Some((record.partition, known.handed));
            }
            Some(GroupEvent::Gap(gap)) => panic!("{gap:?} was never told"),
            Some(GroupEvent::Assigned(_) | GroupEvent::Revoked(_) | GroupEvent::Lost(_)) | None => {
            }
        }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::Commit(commit) => {
                for offset in &commit.offsets {
                    let is_it = |known: &&Known| known.assignment == Some(offset.assignment);
                    let known = self.known.iter().find(is_it).expect("what is committed is held");
                    let (next, finished) = (offset.next_offset, known.finished);
                    assert!(next <= finished, "{next} was committed, {finished} is finished");
                }
                self.unanswered.push_back(commit);
            }
            Message::Released(released) => {
                for assignment in released.assignments {
                    let of = |known: &Known| known.assignment == Some(assignment);
                    let waits = |offset: &ConsumeCommit| {
                        offset.offsets.iter().any(|offset| offset.assignment == assignment)
                    };
                    let partition = self.known.iter().position(of).expect("it was held");
                    let is_overdue = self.known[partition].revoked <= Some(self.now);
                    let is_unanswered = self.unanswered.iter().any(waits);
                    assert!(is_overdue || !is_unanswered, "it was let go of before its commit");
                    self.assign(partition as u32, None).unwrap();
                }
            }
            _ => {}
        }
    }

    fn answer(&mut self) {
        let Some(commit) = self.unanswered.pop_front() else { return };
        let mut outcomes = Vec::new();
        for offset in &commit.offsets {
            let is_it = |known: &&mut Known| known.assignment == Some(offset.assignment);
            if let Some(known) = self.known.iter_mut().find(is_it) {
                known.committed = known.committed.max(offset.next_offset);
            }
            let (assignment, outcome) =
                (offset.assignment, Outcome::NextOffset(offset.next_offset));
            outcomes.push(AssignmentCommitOutcome { assignment, outcome: Some(outcome) });
        }
        let request_id = commit.request_id;
        self.tell(Told::Committed(ConsumeCommitted { request_id, outcomes })).unwrap();
    }
}

proptest! {
    #[test]
    fn only_what_is_finished_is_committed_and_nothing_is_left_out(steps in steps()) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
    }
}

#[test]
fn a_partition_that_goes_on_where_nothing_is_kept_is_refused() {
    let mut world = World::new();
    world.member.on_cut();
    world.member.begin(world.now);
    world.member.on_expelled();
    let failure = world.assign(0, Some(5)).unwrap_err();
    assert!(failure.message.contains("where this member is no more"), "{failure}");
}
