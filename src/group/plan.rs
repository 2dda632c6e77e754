//! Plans: who is to have which partitions of a group. Pure: what the coordinator proposes.

use std::collections::{BTreeMap, BTreeSet};

use super::assignor::{self, Share};
use super::subscription;
use crate::cluster::State;
use crate::cluster::command::{Id, Partition};
use crate::cluster::group::{Group, PlanGroup, Planned};
use crate::types::ReplicaId;

/// A partition of a topic.
type Place = (Id, u32);

/// The changes that bring a group's assignments to what they should be; `None` if they are.
///
/// A partition that is on its way to a member counts as that member's, so that a plan that is
/// being carried out is not made anew.
pub fn plan(state: &State, group: &Group) -> Option<PlanGroup> {
    let shares = shares(state, group);
    let owners = owners(group);
    let members: Vec<_> = group
        .members
        .iter()
        .map(|member| assignor::Member { id: member.id, rack: member.rack.clone() })
        .collect();
    let target = assignor::assign(&members, &shares, &owners);
    let moved = target.iter().filter(|(place, member)| owners.get(place) != Some(member));
    let mut planned: Vec<_> = moved
        .map(|(&(topic, partition), &member)| Planned { topic, partition, member: Some(member) })
        .collect();
    let wanted: BTreeSet<Place> = shares.iter().map(|share| share.partition).collect();
    let foreign = group
        .assignments
        .iter()
        .filter(|held| !held.is_ending && !wanted.contains(&held.place()))
        .map(|held| Planned { topic: held.topic, partition: held.partition, member: None });
    planned.extend(foreign);
    let is_needed = !planned.is_empty();
    is_needed.then_some(PlanGroup { group: group.id, generation: group.generation, planned })
}

/// Who has each partition, or is to have it next.
fn owners(group: &Group) -> BTreeMap<Place, Id> {
    let held = group.assignments.iter().filter(|held| !held.is_ending);
    held.map(|held| (held.place(), held.next.unwrap_or(held.member))).collect()
}

/// The partitions that a group reads.
fn shares(state: &State, group: &Group) -> Vec<Share<Place>> {
    let mut shares = Vec::new();
    for topic in subscription::topics(state, group) {
        for (n, partition) in topic.partitions.iter().enumerate() {
            let place = (topic.id, n as u32);
            shares.push(Share { partition: place, racks: racks(state, partition) });
        }
    }
    shares
}

fn racks(state: &State, partition: &Partition) -> Vec<String> {
    let nodes = partition.replicas.iter().map(|id| ReplicaId(*id).node());
    let racks = nodes.filter_map(|node| state.node(node)).map(|node| node.rack.clone());
    racks.filter(|rack| !rack.is_empty()).collect()
}
