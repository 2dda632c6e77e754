//! Damage: what logs lack, and how they get it back.

use std::collections::BTreeMap;

use super::super::effects::{ColdRead, Cure, Mend, Supply};
use super::super::input::Input;
use super::super::machine::Machine;
use super::super::open::{OpenError, Start, cut_at_wound, start_of};
use super::Disk;
use crate::storage::{self, Access, Log, LogReader, Wound};
use crate::types::LogId;

impl Disk {
    /// Looks for damage, if there are news of any: segments in which reads have met it, to be
    /// examined with [`LogReader::examine`] where waiting for a disk is allowed, and what has
    /// changed about what logs lack, for their shard.
    pub fn look_for_damage<M: Machine>(&mut self) -> (Vec<(LogReader, u64)>, Vec<Input<M>>) {
        let news = self.dir.damage_news();
        if std::mem::replace(&mut self.damage_seen, news) == news {
            return (Vec::new(), Vec::new());
        }
        (self.suspects(), self.changed_wounds())
    }

    fn suspects(&self) -> Vec<(LogReader, u64)> {
        let readers = self.logs.values().map(Log::reader);
        let suspects = |reader: LogReader| {
            let taken = reader.take_suspects().into_iter();
            taken.map(move |suspect| (reader.clone(), suspect))
        };
        readers.flat_map(suspects).collect()
    }

    fn changed_wounds<M: Machine>(&mut self) -> Vec<Input<M>> {
        let mut changed = Vec::new();
        for (group, log) in &self.logs {
            let wound = next_wound(&self.passed_over, log);
            if wound.as_ref() != self.wounds.get(group) {
                match wound.clone() {
                    Some(wound) => self.wounds.insert(*group, wound),
                    None => self.wounds.remove(group),
                };
                changed.push(Input::Wound { group: *group, wound });
            }
        }
        changed
    }

    /// Mends a damaged log, or tries to, and starts its replica if that had to wait for it. The
    /// whole segment is written anew and synced before this returns: damage is rare.
    ///
    /// # Errors
    /// As [`Self::perform`].
    pub fn mend<M: Machine>(&mut self, mend: &Mend) -> storage::Result<Vec<Input<M>>> {
        let group = mend.group;
        let Some(log) = self.logs.get_mut(&group) else { return Ok(Vec::new()) };
        let mended = match &mend.cure {
            Cure::Entries(entries) => log.repair(entries).map_err(OpenError::from),
            Cure::Cut => cut_at_wound(&self.dir, log),
            Cure::PassOver(index) => {
                tracing::debug!(%group, index, "nobody who answers keeps entries that are damaged");
                self.passed_over.insert(group, *index);
                Ok(())
            }
        };
        let mut inputs = Vec::new();
        match mended {
            Ok(()) if matches!(mend.cure, Cure::PassOver(_)) => {}
            Ok(()) => tracing::info!(%group, "a damaged log was mended"),
            Err(OpenError::Storage(error)) if !is_harmless(&error) => return Err(error),
            Err(error) => tracing::warn!(%group, %error, "a damaged log cannot be mended yet"),
        }
        if let Some(damaged) = &mend.damaged {
            match start_of(&self.dir, log, damaged.replica, damaged.durability, false) {
                Ok(Start::Damaged(_)) => {}
                Ok(start) => inputs.push(start.into_input()),
                Err(error) => tracing::error!(%group, %error, "a mended replica cannot start"),
            }
        }
        // Told in any case: without news the shard would wait for it.
        let wound = next_wound(&self.passed_over, log);
        match wound.clone() {
            Some(wound) => self.wounds.insert(group, wound),
            None => self.wounds.remove(&group),
        };
        inputs.push(Input::Wound { group, wound });
        Ok(inputs)
    }
}

/// What is to be mended next: what was passed over has its turn again after all that comes behind
/// it, for who keeps it may have been away.
fn next_wound(passed_over: &BTreeMap<LogId, u64>, log: &Log) -> Option<Wound> {
    let after = passed_over.get(&log.id()).copied().unwrap_or(0);
    log.wound_after(after).or_else(|| log.wound())
}

/// Reads what another replica lacks: good entries up to the first that is damaged here too.
pub fn read_supply<M: Machine>(reader: &LogReader, supply: &Supply) -> Input<M> {
    let ColdRead { first_index, last_index, bytes_max, .. } = supply.read;
    let mut entries = Vec::new();
    let last_index = last_index.min(reader.last_index());
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    if first_index > last_index {
        return Input::Supplied(*supply, entries);
    }
    assert!(supply.from != supply.to, "{} asks itself for entry {first_index}", supply.to);
    let read = reader.read(first_index, last_index, bytes_max, Access::MayBlock, &mut entries);
    if let Err(error) = read {
        tracing::warn!(group = %supply.read.group, %error, "another replica is given less");
    }
    Input::Supplied(*supply, entries)
}

/// True if a log that could not be mended is as it was, and it can be tried again.
fn is_harmless(error: &storage::Error) -> bool {
    matches!(error, storage::Error::RepairRefused(_) | storage::Error::NoSpace { .. })
}
