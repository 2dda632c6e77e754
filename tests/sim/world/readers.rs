//! Readers on every node: what they see below the high watermark stays as it is.

use quipu::raft::{Durability, Published, Role};
use quipu::storage::{Access, Entry, Error, LogReader};
use quipu::types::NodeId;

use super::{Event, World};

const READ_BYTES: usize = 4 * 1024;

impl World {
    /// Reads somewhere, as consumers do: from any replica, by offset, up to what it has published.
    pub(super) fn read(&mut self) {
        let next_us = self.rng.between(1, 2 * self.plan.read_every_ms * 1000);
        self.after(next_us, Event::Read);
        let id = NodeId(self.rng.between(1, self.plan.nodes));
        let group = *self.rng.pick(&self.groups).expect("there is a group");
        let node = &self.nodes[&id];
        let Some(published) = self.published.get(&(id, node.life, group)).copied() else { return };
        let live = node.live.as_ref().filter(|live| live.shard.group(group).is_some());
        let Some(reader) = live.and_then(|live| live.disk.reader(group)) else { return };
        let (start, end) = (reader.log_start_offset(), published.high_watermark);
        if start >= end {
            return;
        }
        let offset = self.rng.between(start, end - 1);
        let entries = match read_from(&reader, offset) {
            Ok(Some(entries)) => entries,
            Ok(None) => return self.tally.add("read-before-written", 1),
            Err(error @ Error::Corrupt(_)) if self.plan.damages() => {
                let _ = error;
                return self.tally.add("read-of-damage-refused", 1);
            }
            Err(error) => panic!("offset {offset} cannot be read: {error}"),
        };
        for entry in entries.iter().filter(|entry| entry.header.base_offset < end) {
            self.check_read(id, &published, entry);
        }
        self.tally.add("read", 1);
        self.tally.add("read-by-follower", u64::from(published.role != Role::Leader));
    }

    fn check_read(&self, id: NodeId, published: &Published, entry: &Entry) {
        let (group, header) = (published.group, &entry.header);
        assert_eq!(
            crc32fast::hash(&entry.payload),
            header.payload_crc,
            "node {id}: the payload of entry {} of {group} is not what its header says",
            header.index
        );
        if self.plan.durability == Durability::Memory {
            return;
        }
        let settled = self.oracle.settled.get(&group).and_then(|all| all.get(&header.index));
        let known = settled.map(|settled| settled.header.chain);
        assert_eq!(
            known,
            Some(header.chain),
            "node {id}: a reader of {group} below {} was given entry {header:?}, settled is {:?}",
            published.high_watermark,
            settled.map(|settled| &settled.header)
        );
    }
}

/// Entries from the one that holds `offset` on; `None` if the log is not written that far.
fn read_from(reader: &LogReader, offset: u64) -> Result<Option<Vec<Entry>>, Error> {
    let index = match reader.index_of_offset(offset, Access::MayBlock) {
        Ok(index) if index <= reader.last_index() => index,
        Ok(_) | Err(Error::OffsetOutOfRange { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut entries = Vec::new();
    let last_index = reader.last_index();
    let read = reader.read(index, last_index, READ_BYTES, Access::MayBlock, &mut entries);
    if entries.is_empty() {
        read?;
    }
    let first = entries.first().expect("a read gives an entry").header;
    let is_found = first.base_offset <= offset && offset < first.end_offset();
    assert!(is_found, "offset {offset} was looked for, {first:?} was found");
    Ok(Some(entries))
}
