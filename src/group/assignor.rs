//! The assignor: shares partitions out among members. Pure.
//!
//! * Every partition has one owner, unless there are no members.
//! * No member has two more than another.
//! * No more partitions move than that asks for: those that have the most keep one more than the
//!   others, and nobody gives up anything while it has no more than it should.
//! * What has to move goes to a member in whose rack there is a replica, if one of them has room;
//!   and a member that has too much gives up what is not in its rack first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<M> {
    /// Its id.
    pub id: M,
    /// Its rack, or nothing.
    pub rack: String,
}

/// What is shared out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share<P> {
    /// The partition.
    pub partition: P,
    /// The racks in which it has replicas.
    pub racks: Vec<String>,
}

impl<P> Share<P> {
    fn is_near(&self, rack: &str) -> bool {
        self.racks.iter().any(|near| near == rack)
    }
}

/// Assigns each partition to a member, as far as possible to the one that owns it.
///
/// Takes O((members + partitions) log members). The order of what goes in does not matter.
pub fn assign<M: Copy + Ord, P: Copy + Ord>(
    members: &[Member<M>],
    shares: &[Share<P>],
    owners: &BTreeMap<P, M>,
) -> BTreeMap<P, M> {
    if members.is_empty() {
        return BTreeMap::new();
    }
    let racks: BTreeMap<M, &str> =
        members.iter().map(|member| (member.id, member.rack.as_str())).collect();
    let shares: BTreeMap<P, &Share<P>> =
        shares.iter().map(|share| (share.partition, share)).collect();
    let mut held: BTreeMap<M, Vec<P>> = racks.keys().map(|member| (*member, Vec::new())).collect();
    let mut loose = Vec::new();
    for partition in shares.keys() {
        match owners.get(partition).and_then(|owner| held.get_mut(owner)) {
            Some(held) => held.push(*partition),
            None => loose.push(*partition),
        }
    }
    let mut assigned = BTreeMap::new();
    let mut room = Room::default();
    for (member, quota) in quotas(&held, shares.len()) {
        let (rack, mut held) = (racks[&member], held.remove(&member).unwrap_or_default());
        if held.len() > quota {
            // Stable: of equally near ones the first are kept.
            held.sort_by_key(|partition| !shares[partition].is_near(rack));
            loose.extend(held.drain(quota..));
        }
        room.add(member, rack, quota - held.len());
        assigned.extend(held.into_iter().map(|partition| (partition, member)));
    }
    loose.sort();
    // Those that can be near choose first, or others would take the room that they need.
    let (near, far): (Vec<P>, Vec<P>) =
        loose.into_iter().partition(|partition| room.has_near(shares[partition]));
    for partition in near.into_iter().chain(far) {
        assigned.insert(partition, room.take(shares[&partition]));
    }
    assigned
}

/// How many partitions each member is to have: those that have the most get what is left over.
fn quotas<M: Copy + Ord, P>(held: &BTreeMap<M, Vec<P>>, shares: usize) -> Vec<(M, usize)> {
    let (each, left_over) = (shares / held.len(), shares % held.len());
    let mut members: Vec<_> =
        held.iter().map(|(member, held)| (Reverse(held.len()), *member)).collect();
    members.sort();
    let quota = |n: usize| each + usize::from(n < left_over);
    members.into_iter().enumerate().map(|(n, (_, member))| (member, quota(n))).collect()
}

/// Members that are to get more, those with the most room first; all of them, and by rack.
struct Room<'a, M> {
    all: BTreeSet<(Reverse<usize>, M)>,
    by_rack: BTreeMap<&'a str, BTreeSet<(Reverse<usize>, M)>>,
    rack_of: BTreeMap<M, &'a str>,
}

impl<M: Ord> Default for Room<'_, M> {
    fn default() -> Self {
        Self { all: BTreeSet::new(), by_rack: BTreeMap::new(), rack_of: BTreeMap::new() }
    }
}

impl<'a, M: Copy + Ord> Room<'a, M> {
    fn add(&mut self, member: M, rack: &'a str, room: usize) {
        if room > 0 {
            self.all.insert((Reverse(room), member));
            self.by_rack.entry(rack).or_default().insert((Reverse(room), member));
            self.rack_of.insert(member, rack);
        }
    }

    /// The member with the most room among those near a partition.
    fn near<P>(&self, share: &Share<P>) -> Option<(Reverse<usize>, M)> {
        let racks = share.racks.iter().filter_map(|rack| self.by_rack.get(rack.as_str()));
        racks.filter_map(|members| members.first().copied()).min()
    }

    fn has_near<P>(&self, share: &Share<P>) -> bool {
        self.near(share).is_some()
    }

    /// Gives a partition to a member that has room for it.
    fn take<P>(&mut self, share: &Share<P>) -> M {
        let chosen = self.near(share).or_else(|| self.all.first().copied());
        let (Reverse(room), member) =
            chosen.expect("there is as much room as there are partitions");
        let rack = self.rack_of[&member];
        self.all.remove(&(Reverse(room), member));
        let near = self.by_rack.get_mut(rack).expect("its rack is that of a member");
        near.remove(&(Reverse(room), member));
        self.add(member, rack, room - 1);
        member
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn members(racks: &[&str]) -> Vec<Member<usize>> {
        let member = |(id, rack): (usize, &&str)| Member { id, rack: (*rack).to_owned() };
        racks.iter().enumerate().map(member).collect()
    }

    fn shares(racks: &[&[&str]]) -> Vec<Share<usize>> {
        let share = |(partition, racks): (usize, &&[&str])| Share {
            partition,
            racks: racks.iter().map(|rack| (*rack).to_owned()).collect(),
        };
        racks.iter().enumerate().map(share).collect()
    }

    fn counts(assigned: &BTreeMap<usize, usize>, members: usize) -> Vec<usize> {
        let mut counts = vec![0; members];
        assigned.values().for_each(|member| counts[*member] += 1);
        counts
    }

    #[test]
    fn without_members_nobody_has_anything() {
        assert!(assign::<usize, _>(&[], &shares(&[&[]]), &BTreeMap::new()).is_empty());
    }

    #[test]
    fn a_new_member_gets_its_part_and_nothing_else_moves() {
        let before = assign(&members(&["", ""]), &shares(&[&[][..]; 12]), &BTreeMap::new());
        let after = assign(&members(&["", "", ""]), &shares(&[&[][..]; 12]), &before);
        let moved: Vec<_> = after.iter().filter(|(p, m)| before[p] != **m).collect();
        assert_eq!(moved.len(), 4);
        assert!(moved.iter().all(|(_, member)| **member == 2));
    }

    #[test]
    fn what_moves_goes_where_a_replica_is() {
        let shares = shares(&[&["a"], &["b"], &["a"], &["b"]]);
        let near = assign(&members(&["a", "b"]), &shares, &BTreeMap::new());
        assert_eq!(near, BTreeMap::from([(0, 0), (1, 1), (2, 0), (3, 1)]));
        let alone = assign(&members(&["a"]), &shares, &BTreeMap::new());
        assert_eq!(assign(&members(&["a", "b"]), &shares, &alone), near, "it gives up what is far");
    }

    /// Members, partitions, and who owned what.
    type Inputs = (Vec<Member<usize>>, Vec<Share<usize>>, BTreeMap<usize, usize>);

    fn racks() -> impl Strategy<Value = String> {
        prop_oneof![Just(String::new()), Just("a".to_owned()), Just("b".to_owned())]
    }

    fn inputs() -> impl Strategy<Value = Inputs> {
        let members = vec(racks(), 1..9);
        let shares = vec(vec(racks(), 0..3), 0..30);
        // Some owners are gone, and some partitions are.
        let owners = btree_map(0..33usize, 0..11usize, 0..30);
        (members, shares, owners).prop_map(|(members, shares, owners)| {
            let member = |(id, rack)| Member { id, rack };
            let share = |(partition, racks)| Share { partition, racks };
            let members = members.into_iter().enumerate().map(member).collect();
            (members, shares.into_iter().enumerate().map(share).collect(), owners)
        })
    }

    /// The fewest partitions that can move if nobody may have two more than another.
    fn fewest_moves(members: usize, shares: usize, owners: &BTreeMap<usize, usize>) -> usize {
        let mut held = vec![0; members];
        let owned = owners.iter().filter(|(p, m)| **p < shares && **m < members);
        owned.for_each(|(_, member)| held[*member] += 1);
        let owned: usize = held.iter().sum();
        held.sort_by_key(|count| Reverse(*count));
        let quota = |n: usize| shares / members + usize::from(n < shares % members);
        let kept: usize = held.iter().enumerate().map(|(n, count)| quota(n).min(*count)).sum();
        owned - kept
    }

    proptest! {
        #[test]
        fn everything_is_shared_out_evenly_and_moves_as_little_as_can_be(
            (members, shares, owners) in inputs(),
        ) {
            let assigned = assign(&members, &shares, &owners);
            prop_assert_eq!(assigned.len(), shares.len());
            let counts = counts(&assigned, members.len());
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.unwrap() - least.unwrap() <= 1, "{counts:?}");
            let is_living = |owner: &usize| *owner < members.len();
            let moved = assigned.iter().filter(|(partition, member)| {
                owners.get(partition).is_some_and(|owner| is_living(owner) && owner != *member)
            });
            let fewest = fewest_moves(members.len(), shares.len(), &owners);
            prop_assert_eq!(moved.count(), fewest);
            prop_assert_eq!(&assign(&members, &shares, &assigned), &assigned, "it is stable");
            let members: Vec<_> = members.into_iter().rev().collect();
            let shares: Vec<_> = shares.into_iter().rev().collect();
            prop_assert_eq!(assign(&members, &shares, &owners), assigned);
        }
    }
}
