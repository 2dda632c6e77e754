//! Groups: what each command does to them, and what it leaves alone.

use super::*;
use crate::cluster::command::{Command, Id, Verb};
use crate::cluster::error::Refusal;
use crate::cluster::state::{Given, State};

const TOPIC: Id = Id { high: 7, low: 1 << 32 };
const GROUP: Id = id(1);

const fn id(n: u64) -> Id {
    Id { high: 0, low: n }
}

/// A state with one group, and members by number.
struct Log(State);

impl Log {
    fn new() -> Self {
        let mut log = Self(State::starting_after(1));
        log.create("g", GROUP).unwrap();
        log
    }

    fn follow(&mut self, verb: Verb) -> Result<Given, Refusal> {
        let index = self.0.applied_index() + 1;
        self.0.apply(index, &Command::from(verb)).expect("a known verb")
    }

    fn create(&mut self, name: &str, id: Id) -> Result<Given, Refusal> {
        let starts = vec![TopicStart { topic: TOPIC, offsets: vec![5, 6] }];
        let (name, topics) = (name.to_owned(), vec!["t".to_owned()]);
        let group = Group { id, name, topics, starts, ..Group::default() };
        self.follow(Verb::CreateGroup(CreateGroup { group }))
    }

    fn join(&mut self, member: u64, instance: &str, is_returning: bool) -> Result<Given, Refusal> {
        let joining = id(1_000 + self.group().generation);
        self.join_once(member, instance, is_returning, joining)
    }

    fn join_once(
        &mut self,
        member: u64,
        instance: &str,
        is_returning: bool,
        joining: Id,
    ) -> Result<Given, Refusal> {
        let (id, instance) = (id(member), instance.to_owned());
        let member = Member { id, instance, joining, ..Member::default() };
        self.follow(Verb::JoinGroup(JoinGroup { group: GROUP, member, is_returning }))
    }

    fn leave(&mut self, member: u64, session: u64) {
        let leaving = vec![Leaving { group: GROUP, member: id(member), session }];
        self.follow(Verb::LeaveGroups(LeaveGroups { leaving, now_ms: 99 })).unwrap();
    }

    fn plan(&mut self, planned: &[(u32, Option<u64>)]) -> Result<Given, Refusal> {
        let generation = self.group().generation;
        let planned = planned.iter().map(|(partition, member)| Planned {
            topic: TOPIC,
            partition: *partition,
            member: member.map(id),
        });
        let planned = planned.collect();
        self.follow(Verb::PlanGroup(PlanGroup { group: GROUP, generation, planned }))
    }

    fn release(&mut self, member: u64, partition: u32, generation: u64) {
        let released = vec![Released { topic: TOPIC, partition, generation }];
        let release = ReleaseAssignments { group: GROUP, member: id(member), released };
        self.follow(Verb::ReleaseAssignments(release)).unwrap();
    }

    fn group(&self) -> &Group {
        self.0.groups().get(GROUP).unwrap()
    }

    /// Partition, member, next member.
    fn held(&self) -> Vec<(u32, u64, Option<u64>)> {
        let held = |a: &Assignment| (a.partition, a.member.low, a.next.map(|next| next.low));
        self.group().assignments.iter().map(held).collect()
    }

    fn generation_of(&self, partition: u32) -> u64 {
        self.group().assignment(TOPIC, partition).unwrap().generation
    }
}

#[test]
fn names_and_ids_are_given_once_and_are_free_again_after_a_deletion() {
    let mut log = Log::new();
    assert_eq!(log.create("g", id(2)), Err(Refusal::GroupExists("g".into())));
    assert_eq!(log.create("h", GROUP), Err(Refusal::GroupExists("h".into())));
    log.follow(Verb::DeleteGroup(DeleteGroup { id: GROUP, force: false })).unwrap();
    assert!(log.0.groups().named("g").is_none());
    log.create("g", id(2)).unwrap();
    assert_eq!(log.0.groups().named("g").unwrap().id, id(2));
}

#[test]
fn a_group_with_members_is_deleted_by_force_only() {
    let mut log = Log::new();
    log.join(1, "", false).unwrap();
    let delete = |force| Verb::DeleteGroup(DeleteGroup { id: GROUP, force });
    let refused = Refusal::GroupNotEmpty { group: "g".into(), members: 1 };
    assert_eq!(log.follow(delete(false)), Err(refused));
    log.follow(delete(true)).unwrap();
    assert_eq!(log.follow(delete(true)), Err(unknown()));
    assert_eq!(log.join_once(1, "", false, id(9)), Err(unknown()));
}

fn unknown() -> Refusal {
    Refusal::UnknownGroup(GROUP.uuid().to_string())
}

#[test]
fn a_partition_moves_when_the_one_that_has_it_lets_go() {
    let mut log = Log::new();
    for member in [1, 2] {
        log.join(member, "", false).unwrap();
    }
    log.plan(&[(0, Some(1)), (1, Some(1))]).unwrap();
    let before = log.generation_of(1);
    assert_ne!(log.generation_of(0), before, "each has a generation of its own");
    log.plan(&[(1, Some(2))]).unwrap();
    assert_eq!(log.held(), [(0, 1, None), (1, 1, Some(2))]);
    assert_eq!(log.generation_of(1), before, "it is still the first one's");
    log.release(1, 1, before - 1);
    log.release(2, 1, before);
    assert_eq!(log.held(), [(0, 1, None), (1, 1, Some(2))], "neither of these had it");
    log.release(1, 1, before);
    assert_eq!(log.held(), [(0, 1, None), (1, 2, None)]);
    assert!(log.generation_of(1) > before);
}

#[test]
fn a_plan_for_another_generation_or_for_strangers_is_refused() {
    let mut log = Log::new();
    log.join(1, "", false).unwrap();
    let (group, planned) = (GROUP, Vec::new());
    let generation = log.group().generation - 1;
    let late = Verb::PlanGroup(PlanGroup { group, generation, planned });
    assert_eq!(log.follow(late), Err(Refusal::Stale));
    assert_eq!(log.plan(&[(0, Some(9))]), Err(Refusal::Stale));
}

#[test]
fn what_a_member_had_goes_on_to_who_was_to_have_it_next_or_to_nobody() {
    let mut log = Log::new();
    let session = log.join(1, "", false).unwrap();
    log.join(2, "", false).unwrap();
    log.plan(&[(0, Some(1)), (1, Some(1)), (2, Some(2))]).unwrap();
    log.plan(&[(1, Some(2)), (2, Some(1))]).unwrap();
    log.leave(1, session);
    assert_eq!(log.held(), [(1, 2, None), (2, 2, None)]);
    assert_eq!(log.group().members.len(), 1);
}

#[test]
fn a_member_that_joined_again_is_not_taken_out_for_its_past() {
    let mut log = Log::new();
    let first = log.join(1, "", false).unwrap();
    log.plan(&[(0, Some(1))]).unwrap();
    let before = log.generation_of(0);
    let second = log.join(1, "", true).unwrap();
    assert!(second > first);
    assert!(log.generation_of(0) > before, "on a new stream it begins anew");
    log.leave(1, first);
    assert_eq!(log.held(), [(0, 1, None)]);
    log.leave(1, second);
    assert!(log.held().is_empty());
    assert_eq!(log.group().idle_since_ms, 99);
    let unknown = Refusal::UnknownMember(id(1).uuid().to_string());
    assert_eq!(log.join(1, "", true), Err(unknown));
}

#[test]
fn a_join_that_was_asked_twice_is_one() {
    let mut log = Log::new();
    let session = log.join_once(1, "", false, id(77)).unwrap();
    log.plan(&[(0, Some(1))]).unwrap();
    let before = log.group().clone();
    assert_eq!(log.join_once(1, "", false, id(77)), Ok(session));
    assert_eq!(log.group(), &before);
    assert!(log.join_once(1, "", true, id(78)).unwrap() > session);
}

#[test]
fn who_joins_under_a_lasting_name_takes_the_place_of_the_one_before() {
    let mut log = Log::new();
    log.join(1, "a", false).unwrap();
    log.join(2, "b", false).unwrap();
    log.plan(&[(0, Some(1)), (1, Some(2))]).unwrap();
    log.plan(&[(1, Some(1))]).unwrap();
    let before = log.generation_of(0);
    log.join(3, "a", false).unwrap();
    assert_eq!(log.held(), [(0, 3, None), (1, 2, Some(3))]);
    assert!(log.generation_of(0) > before);
    assert_eq!(log.join(1, "a", true), Err(Refusal::FencedInstance("a".into())));
}

#[test]
fn renewed_assignments_are_above_what_the_log_has() {
    let mut log = Log::new();
    log.join(1, "", false).unwrap();
    log.plan(&[(0, Some(1)), (1, Some(1))]).unwrap();
    let (kept, above) = (log.generation_of(1), 500);
    let renewed = [0, 7].map(|partition| Renewed { topic: TOPIC, partition, above }).to_vec();
    log.follow(Verb::RenewAssignments(RenewAssignments { group: GROUP, renewed })).unwrap();
    assert!(log.generation_of(0) > above);
    assert_eq!(log.generation_of(1), kept);
    let again = log.generation_of(0);
    let renewed = vec![Renewed { topic: TOPIC, partition: 0, above }];
    log.follow(Verb::RenewAssignments(RenewAssignments { group: GROUP, renewed })).unwrap();
    assert_eq!(log.generation_of(0), again, "it is above already");
    // Its owner has claimed it, and somebody before was refused for that.
    let renewed = vec![Renewed { topic: TOPIC, partition: 0, above: again }];
    log.follow(Verb::RenewAssignments(RenewAssignments { group: GROUP, renewed })).unwrap();
    assert_eq!(log.generation_of(0), again, "who is too late takes nothing from the owner");
}

#[test]
fn a_partition_that_is_no_longer_the_groups_goes_when_it_is_let_go_of() {
    let mut log = Log::new();
    log.join(1, "", false).unwrap();
    log.plan(&[(0, Some(1))]).unwrap();
    log.plan(&[(0, None)]).unwrap();
    assert!(log.group().assignment(TOPIC, 0).unwrap().is_revoked());
    log.release(1, 0, log.generation_of(0));
    assert!(log.held().is_empty());
}

#[test]
fn a_deleted_topic_is_forgotten() {
    let mut log = Log::new();
    log.join(1, "", false).unwrap();
    log.plan(&[(0, Some(1))]).unwrap();
    assert_eq!(log.group().start_offset(TOPIC, 1), 6);
    assert_eq!(log.group().start_offset(TOPIC, 2), 0, "it came later");
    let mut groups = log.0.groups().clone();
    groups.forget_topic(TOPIC);
    let group = groups.get(GROUP).unwrap();
    assert!(group.assignments.is_empty() && group.starts.is_empty());
    assert!(group.generation > log.group().generation);
}

#[test]
fn groups_come_back_from_a_checkpoint() {
    let mut log = Log::new();
    log.join(1, "a", false).unwrap();
    log.join(2, "", false).unwrap();
    log.plan(&[(0, Some(1)), (1, Some(2))]).unwrap();
    log.plan(&[(1, Some(1))]).unwrap();
    let back = State::from_checkpoint(&log.0.checkpoint()).unwrap();
    assert_eq!(back, log.0);
    assert!(back.groups().named("g").is_some());
}
