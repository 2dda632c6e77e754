//! Holdings: the assignments of a member as its stream has them, compared with what the metadata
//! says. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::super::super::context::Target;
use super::super::places;
use crate::cluster::State;
use crate::cluster::command::Id;
use crate::cluster::group::{Assignment, Group, Released};
use crate::group::session_timeout;
use crate::proto::server::LostReason;

/// How far an assignment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The partition's log does not know of it yet.
    Claiming,
    /// The member has it.
    Active,
    /// The member was asked to let go of it, until then.
    Revoked(Instant),
    /// The member has let go of it, or has lost it. The metadata is told.
    Releasing,
}

/// An assignment of a stream.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) topic: String,
    pub(super) target: Target,
    pub(super) generation: u64,
    pub(super) stage: Stage,
}

impl Held {
    fn place(&self) -> (Id, u32) {
        (self.target.topic_id.into(), self.target.partition)
    }

    fn released(&self) -> Released {
        let (topic, partition) = self.place();
        Released { topic, partition, generation: self.generation }
    }
}

/// What is to be done about an assignment, by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Have the partition's log know of it.
    Claim(u64),
    /// Ask the member to let go of it.
    Revoke(u64),
    /// Tell the member that it is lost.
    Lose(u64, LostReason),
    /// Tell the metadata that the member has let go of it.
    Release(Released),
}

/// The assignments of a stream.
///
/// * A number is given once.
/// * A partition has one number at a time.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    by_number: BTreeMap<u64, Held>,
    last_number: u64,
}

impl Holdings {
    /// The assignment of this number.
    pub(super) fn get(&self, number: u64) -> Option<&Held> {
        self.by_number.get(&number)
    }

    /// An assignment that the member can commit to.
    pub(super) fn committable(&self, number: u64) -> Option<&Held> {
        let held = self.by_number.get(&number)?;
        matches!(held.stage, Stage::Active | Stage::Revoked(_)).then_some(held)
    }

    /// Takes note that a partition's log knows of an assignment. False if it is wanted no more.
    pub(super) fn activate(&mut self, number: u64) -> bool {
        let held = self.by_number.get_mut(&number).filter(|held| held.stage == Stage::Claiming);
        held.map(|held| held.stage = Stage::Active).is_some()
    }

    /// When the first one has to be let go of.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let revoked = self.by_number.values().filter_map(|held| match held.stage {
            Stage::Revoked(until) => Some(until),
            Stage::Claiming | Stage::Active | Stage::Releasing => None,
        });
        revoked.min()
    }

    /// Takes note that the member has let go of what it was asked to.
    pub(super) fn release(&mut self, numbers: &[u64]) -> Vec<Action> {
        let mut actions = Vec::new();
        for number in numbers {
            let held = self.by_number.get_mut(number);
            if let Some(held) = held.filter(|held| matches!(held.stage, Stage::Revoked(_))) {
                held.stage = Stage::Releasing;
                actions.push(Action::Release(held.released()));
            }
        }
        actions
    }

    /// Takes away what was not let go of in time.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (number, held) in &mut self.by_number {
            if matches!(held.stage, Stage::Revoked(until) if until <= now) {
                held.stage = Stage::Releasing;
                actions.push(Action::Lose(*number, LostReason::Timeout));
                actions.push(Action::Release(held.released()));
            }
        }
        actions
    }

    /// Follows the metadata.
    pub(super) fn follow(
        &mut self,
        state: &State,
        group: &Group,
        member: Id,
        now: Instant,
    ) -> Vec<Action> {
        let mut actions = self.drop_lost(state, group, member);
        for (number, held) in &mut self.by_number {
            let (topic, partition) = held.place();
            let assignment = group.assignment(topic, partition);
            if assignment.is_some_and(Assignment::is_revoked) {
                actions.extend(revoke(*number, held, now + session_timeout(group)));
            }
        }
        let known: BTreeSet<_> = self.by_number.values().map(Held::place).collect();
        for new in group.assignments_of(member).filter(|new| !known.contains(&new.place())) {
            let Some(topic) = state.topic(new.topic) else { continue };
            self.last_number += 1;
            let number = self.last_number;
            let (generation, stage) = (new.generation, Stage::Claiming);
            let target = places::target(topic, new.partition);
            let mut held = Held { topic: topic.name.clone(), target, generation, stage };
            match new.is_revoked() {
                true => actions.extend(revoke(number, &mut held, now)),
                false => actions.push(Action::Claim(number)),
            }
            self.by_number.insert(number, held);
        }
        actions
    }

    /// Drops what is the member's no more, or is so in another generation.
    fn drop_lost(&mut self, state: &State, group: &Group, member: Id) -> Vec<Action> {
        let mut actions = Vec::new();
        self.by_number.retain(|number, held| {
            let (topic, partition) = held.place();
            let now = group.assignment(topic, partition).filter(|now| now.member == member);
            if now.is_some_and(|now| now.generation == held.generation) {
                return true;
            }
            let reason = match now {
                Some(_) => LostReason::Reset,
                None if state.topic(topic).is_none() => LostReason::TopicDeleted,
                None => LostReason::Moved,
            };
            if matches!(held.stage, Stage::Active | Stage::Revoked(_)) {
                actions.push(Action::Lose(*number, reason));
            }
            false
        });
        actions
    }
}

/// What the metadata's wish that a member lets go of an assignment comes to.
fn revoke(number: u64, held: &mut Held, until: Instant) -> Option<Action> {
    match held.stage {
        Stage::Active => {
            held.stage = Stage::Revoked(until);
            Some(Action::Revoke(number))
        }
        // The member has never heard of it.
        Stage::Claiming => {
            held.stage = Stage::Releasing;
            Some(Action::Release(held.released()))
        }
        Stage::Revoked(_) | Stage::Releasing => None,
    }
}

/// The time from now until a deadline, in whole milliseconds.
pub(super) fn left_ms(until: Instant, now: Instant) -> u32 {
    let left: Duration = until.saturating_duration_since(now);
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::command::{
        Command, CreateTopic, DeleteTopic, Node, Placement, RegisterNode, TopicConfig, Verb,
    };

    const TOPIC: Id = Id { high: 7, low: 1 << 32 };
    const ME: Id = Id { high: 0, low: 1 };
    const OTHER: Id = Id { high: 0, low: 2 };

    fn state() -> State {
        let mut state = State::starting_after(0);
        let node = Node { id: 1, ..Node::default() };
        let register = RegisterNode { node, is_founder: true, replaces: None };
        let partitions = vec![Placement { nodes: vec![1] }; 4];
        let (name, config) = ("t".to_owned(), TopicConfig::default());
        let topic = CreateTopic { id: TOPIC, name, config, partitions };
        for verb in [Verb::RegisterNode(register), Verb::CreateTopic(topic)] {
            let index = state.applied_index() + 1;
            state.apply(index, &Command::from(verb)).unwrap().unwrap();
        }
        state
    }

    fn assignment(partition: u32, member: Id, generation: u64, next: Option<Id>) -> Assignment {
        Assignment { topic: TOPIC, partition, member, generation, next, is_ending: false }
    }

    fn group(assignments: &[Assignment]) -> Group {
        let assignments = assignments.to_vec();
        Group { session_timeout_ms: 1_000, assignments, ..Group::default() }
    }

    fn released(partition: u32, generation: u64) -> Action {
        Action::Release(Released { topic: TOPIC, partition, generation })
    }

    /// A stream that has partition 0 in generation 5.
    fn with_one() -> (State, Holdings, Instant) {
        let (state, mut holdings, now) = (state(), Holdings::default(), Instant::now());
        let actions = holdings.follow(&state, &group(&[assignment(0, ME, 5, None)]), ME, now);
        assert_eq!(actions, [Action::Claim(1)]);
        assert!(holdings.activate(1) && !holdings.activate(1));
        (state, holdings, now)
    }

    #[test]
    fn what_stays_as_it_is_needs_nothing() {
        let (state, mut holdings, now) = with_one();
        let group = group(&[assignment(0, ME, 5, None), assignment(1, OTHER, 6, None)]);
        assert!(holdings.follow(&state, &group, ME, now).is_empty());
    }

    #[test]
    fn a_member_is_asked_once_and_lets_go_once() {
        let (state, mut holdings, now) = with_one();
        let group = group(&[assignment(0, ME, 5, Some(OTHER))]);
        assert_eq!(holdings.follow(&state, &group, ME, now), [Action::Revoke(1)]);
        assert!(holdings.follow(&state, &group, ME, now).is_empty());
        assert!(holdings.committable(1).is_some(), "it commits before it lets go");
        assert_eq!(holdings.release(&[1, 9]), [released(0, 5)]);
        assert!(holdings.release(&[1]).is_empty() && holdings.committable(1).is_none());
    }

    #[test]
    fn who_does_not_let_go_in_time_loses_it() {
        let (state, mut holdings, now) = with_one();
        holdings.follow(&state, &group(&[assignment(0, ME, 5, Some(OTHER))]), ME, now);
        let until = holdings.deadline().unwrap();
        assert_eq!(until, now + Duration::from_secs(1));
        assert!(holdings.take_overdue(now).is_empty());
        let lost = Action::Lose(1, LostReason::Timeout);
        assert_eq!(holdings.take_overdue(until), [lost, released(0, 5)]);
        assert!(holdings.take_overdue(until).is_empty() && holdings.deadline().is_none());
    }

    #[test]
    fn another_generation_is_another_assignment() {
        let (state, mut holdings, now) = with_one();
        let actions = holdings.follow(&state, &group(&[assignment(0, ME, 8, None)]), ME, now);
        assert_eq!(actions, [Action::Lose(1, LostReason::Reset), Action::Claim(2)]);
        assert!(holdings.get(1).is_none());
    }

    #[test]
    fn what_the_member_never_heard_of_goes_without_it() {
        let (state, mut holdings, now) = (state(), Holdings::default(), Instant::now());
        let revoked = group(&[assignment(0, ME, 5, Some(OTHER))]);
        assert_eq!(holdings.follow(&state, &revoked, ME, now), [released(0, 5)]);
        assert!(!holdings.activate(1), "it is wanted no more");
        assert!(holdings.follow(&state, &group(&[]), ME, now).is_empty());
    }

    #[test]
    fn what_is_lost_is_said_with_the_reason() {
        let (mut state, mut holdings, now) = with_one();
        let moved = holdings.follow(&state, &group(&[assignment(0, OTHER, 9, None)]), ME, now);
        assert_eq!(moved, [Action::Lose(1, LostReason::Moved)]);
        holdings.follow(&state, &group(&[assignment(0, ME, 10, None)]), ME, now);
        holdings.activate(2);
        let delete = Command::from(Verb::DeleteTopic(DeleteTopic { id: TOPIC }));
        state.apply(state.applied_index() + 1, &delete).unwrap().unwrap();
        let deleted = holdings.follow(&state, &group(&[]), ME, now);
        assert_eq!(deleted, [Action::Lose(2, LostReason::TopicDeleted)]);
    }
}
