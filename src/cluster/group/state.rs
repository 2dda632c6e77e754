//! What each command does to the groups. Pure: a function of the log.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::command::{
    Assignment, CreateGroup, DeleteGroup, Group, JoinGroup, LeaveGroups, Leaving, Member,
    PlanGroup, Planned, ReleaseAssignments, RenewAssignments,
};
use crate::cluster::command::Id;
use crate::cluster::error::Refusal;
use crate::raft::planted::{Bug, planted};

/// Groups that a cluster may have.
pub const GROUPS_MAX: usize = 10_000;
/// Members that a group may have.
pub const MEMBERS_MAX: usize = 1_000;
/// Topics and patterns that a group may name.
pub const TOPICS_MAX: usize = 100;

/// All groups. A clone shares them until they change.
///
/// * Names are unique, and so are ids.
/// * A group's members and assignments are sorted, and its assignments are of members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    by_id: BTreeMap<Id, Arc<Group>>,
    by_name: BTreeMap<String, Id>,
}

impl Groups {
    /// The group with this id.
    pub fn get(&self, id: Id) -> Option<&Arc<Group>> {
        self.by_id.get(&id)
    }

    /// The group with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Group>> {
        self.by_name.get(name).map(|id| &self.by_id[id])
    }

    /// The groups by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Group>> {
        self.by_id.values()
    }

    /// The groups whose names are `from` or come after it, by name.
    pub fn named_from(&self, from: &str) -> impl Iterator<Item = &Arc<Group>> {
        let names = self.by_name.range::<str, _>((Bound::Included(from), Bound::Unbounded));
        names.map(|(_, id)| &self.by_id[id])
    }

    /// The groups that a checkpoint lists.
    pub(in crate::cluster) fn of(groups: Vec<Group>) -> Self {
        let by_name = groups.iter().map(|group| (group.name.clone(), group.id)).collect();
        let by_id = groups.into_iter().map(|group| (group.id, Arc::new(group))).collect();
        Self { by_id, by_name }
    }

    pub(in crate::cluster) fn create(&mut self, create: &CreateGroup) -> Result<u64, Refusal> {
        let group = &create.group;
        if self.by_name.contains_key(&group.name) || self.by_id.contains_key(&group.id) {
            return Err(Refusal::GroupExists(group.name.clone()));
        }
        if self.by_id.len() >= GROUPS_MAX {
            return Err(Refusal::LimitReached(GROUPS_MAX as u64));
        }
        if !(1..=TOPICS_MAX).contains(&group.topics.len()) {
            return Err(Refusal::Invalid(format!("a group has 1 to {TOPICS_MAX} topics")));
        }
        let (members, assignments, generation) = (Vec::new(), Vec::new(), 0);
        let group = Group { members, assignments, generation, ..group.clone() };
        self.by_name.insert(group.name.clone(), group.id);
        self.by_id.insert(group.id, Arc::new(group));
        Ok(0)
    }

    pub(in crate::cluster) fn delete(&mut self, delete: DeleteGroup) -> Result<u64, Refusal> {
        let group = self.by_id.get(&delete.id).ok_or_else(|| unknown(delete.id))?;
        let members = group.members.len() as u64;
        if members > 0 && !delete.force {
            return Err(Refusal::GroupNotEmpty { group: group.name.clone(), members });
        }
        self.by_name.remove(&group.name);
        self.by_id.remove(&delete.id);
        Ok(0)
    }

    fn group_mut(&mut self, id: Id) -> Result<&mut Group, Refusal> {
        self.by_id.get_mut(&id).map(Arc::make_mut).ok_or_else(|| unknown(id))
    }

    pub(in crate::cluster) fn join(&mut self, join: &JoinGroup) -> Result<u64, Refusal> {
        let known = self.by_id.get(&join.group).ok_or_else(|| unknown(join.group))?;
        check_join(known, join)?;
        let same = known.member(join.member.id).filter(|m| m.joining == join.member.joining);
        if let Some(member) = same {
            return Ok(member.session);
        }
        let group = self.group_mut(join.group)?;
        let replaced = namesake(group, &join.member).map(|namesake| namesake.id);
        group.generation += 1;
        let member = Member { session: group.generation, ..join.member.clone() };
        if let Some(replaced) = replaced {
            group.members.retain(|member| member.id != replaced);
            hand_on(group, replaced, member.id);
        }
        let session = member.session;
        match group.members.binary_search_by_key(&member.id, |member| member.id) {
            Ok(at) => group.members[at] = member,
            Err(at) => group.members.insert(at, member),
        }
        begin_anew(group, join.member.id);
        Ok(session)
    }

    /// Takes members out. Those that have joined again meanwhile stay.
    pub(in crate::cluster) fn leave(&mut self, leave: &LeaveGroups) -> Result<u64, Refusal> {
        for leaving in &leave.leaving {
            let group = self.by_id.get_mut(&leaving.group);
            if let Some(group) = group.filter(|group| is_meant(group, leaving)) {
                take_out(Arc::make_mut(group), leaving.member, leave.now_ms);
            }
        }
        Ok(0)
    }

    pub(in crate::cluster) fn plan(&mut self, plan: &PlanGroup) -> Result<u64, Refusal> {
        let known = self.by_id.get(&plan.group).ok_or_else(|| unknown(plan.group))?;
        let is_member =
            |planned: &Planned| planned.member.is_none_or(|id| known.member(id).is_some());
        if known.generation != plan.generation || !plan.planned.iter().all(is_member) {
            return Err(Refusal::Stale);
        }
        let group = self.group_mut(plan.group)?;
        for planned in &plan.planned {
            follow_plan(group, planned);
        }
        Ok(group.generation)
    }

    pub(in crate::cluster) fn release(
        &mut self,
        release: &ReleaseAssignments,
    ) -> Result<u64, Refusal> {
        let group = self.group_mut(release.group)?;
        for released in &release.released {
            let place = (released.topic, released.partition);
            let found = group.assignments.binary_search_by_key(&place, Assignment::place);
            let Ok(at) = found else { continue };
            let held = group.assignments[at];
            if held.member == release.member && held.generation == released.generation {
                move_on(group, at);
            }
        }
        Ok(group.generation)
    }

    pub(in crate::cluster) fn renew(&mut self, renew: &RenewAssignments) -> Result<u64, Refusal> {
        let group = self.group_mut(renew.group)?;
        let above = renew.renewed.iter().map(|renewed| renewed.above).max().unwrap_or(0);
        group.generation = group.generation.max(above);
        for renewed in &renew.renewed {
            let place = (renewed.topic, renewed.partition);
            let found = group.assignments.binary_search_by_key(&place, Assignment::place);
            let Ok(at) = found else { continue };
            // One that is equal came from here, and its owner reads what the log says by now.
            if group.assignments[at].generation < renewed.above {
                group.generation += 1;
                group.assignments[at].generation = group.generation;
            }
        }
        Ok(group.generation)
    }

    /// Forgets a topic that is deleted.
    pub(in crate::cluster) fn forget_topic(&mut self, topic: Id) {
        let is_concerned = |group: &Group| {
            let mut assigned = group.assignments.iter();
            assigned.any(|assignment| assignment.topic == topic)
                || group.starts.iter().any(|start| start.topic == topic)
        };
        for group in self.by_id.values_mut().filter(|group| is_concerned(group)) {
            let group = Arc::make_mut(group);
            group.assignments.retain(|assignment| assignment.topic != topic);
            group.starts.retain(|start| start.topic != topic);
            group.generation += 1;
        }
    }
}

fn unknown(id: Id) -> Refusal {
    Refusal::UnknownGroup(id.uuid().to_string())
}

/// Another member of the same lasting name.
fn namesake<'a>(group: &'a Group, new: &Member) -> Option<&'a Member> {
    let is_namesake = |member: &&Member| member.instance == new.instance && member.id != new.id;
    group.members.iter().find(is_namesake).filter(|_| !new.instance.is_empty())
}

fn check_join(group: &Group, join: &JoinGroup) -> Result<(), Refusal> {
    let new = &join.member;
    let is_known = group.member(new.id).is_some();
    let namesake = namesake(group, new);
    if join.is_returning && !is_known {
        return Err(match namesake {
            Some(_) => Refusal::FencedInstance(new.instance.clone()),
            None => Refusal::UnknownMember(new.id.uuid().to_string()),
        });
    }
    if !is_known && namesake.is_none() && group.members.len() >= MEMBERS_MAX {
        return Err(Refusal::LimitReached(MEMBERS_MAX as u64));
    }
    Ok(())
}

/// Gives all that one member has, or is to have, to another.
fn hand_on(group: &mut Group, from: Id, to: Id) {
    for assignment in &mut group.assignments {
        if assignment.member == from {
            assignment.member = to;
        }
        if assignment.next == Some(from) {
            assignment.next = Some(to);
        }
    }
}

/// Has a member get all that it has in a new generation: on its new stream nothing is as it was.
fn begin_anew(group: &mut Group, member: Id) {
    for assignment in group.assignments.iter_mut().filter(|held| held.member == member) {
        group.generation += 1;
        assignment.generation = group.generation;
    }
}

fn is_meant(group: &Group, leaving: &Leaving) -> bool {
    group.member(leaving.member).is_some_and(|member| member.session == leaving.session)
}

fn take_out(group: &mut Group, member: Id, now_ms: i64) {
    group.generation += 1;
    group.members.retain(|known| known.id != member);
    for assignment in group.assignments.iter_mut().filter(|held| held.next == Some(member)) {
        assignment.next = None;
    }
    for at in (0..group.assignments.len()).rev() {
        if group.assignments[at].member == member {
            move_on(group, at);
        }
    }
    if group.members.is_empty() {
        group.idle_since_ms = now_ms;
    }
}

/// Gives the partition to its next member, or to nobody.
fn move_on(group: &mut Group, at: usize) {
    group.generation += 1;
    let assignment = &mut group.assignments[at];
    match assignment.next.take() {
        Some(next) => {
            assignment.member = next;
            assignment.generation = group.generation;
        }
        None => drop(group.assignments.remove(at)),
    }
}

fn follow_plan(group: &mut Group, planned: &Planned) {
    group.generation += 1;
    let generation = group.generation;
    let place = (planned.topic, planned.partition);
    match group.assignments.binary_search_by_key(&place, Assignment::place) {
        Ok(at) => {
            let held = &mut group.assignments[at];
            if let Some(member) = planned.member.filter(|_| planted(Bug::AssignedBeforeRelease)) {
                (held.member, held.generation) = (member, generation);
            }
            held.is_ending = planned.member.is_none();
            held.next = planned.member.filter(|member| *member != held.member);
        }
        Err(at) => {
            let Some(member) = planned.member else { return };
            let (topic, partition) = place;
            let (next, is_ending) = (None, false);
            let new = Assignment { topic, partition, member, generation, next, is_ending };
            group.assignments.insert(at, new);
        }
    }
}
