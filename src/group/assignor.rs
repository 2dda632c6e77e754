//! x
use std::collections::BTreeMap;
/// x
pub struct Member<M> {
    /// x
    pub id: M,
    /// x
    pub rack: String,
}
/// x
pub struct Share<P> {
    /// x
    pub partition: P,
    /// x
    pub racks: Vec<String>,
}
/// x
pub fn assign<M: Copy + Ord, P: Copy + Ord>(
    members: &[Member<M>],
    shares: &[Share<P>],
    _owners: &BTreeMap<P, M>,
) -> BTreeMap<P, M> {
    if members.is_empty() {
        return BTreeMap::new();
    }
    shares.iter().enumerate().map(|(n, s)| (s.partition, members[n % members.len()].id)).collect()
}
