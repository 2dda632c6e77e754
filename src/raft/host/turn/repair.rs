//! Damaged logs: finding out what they lack, mending them, and giving others what they lack.

use super::{Machine, Turn, Wanted};
use crate::storage;

impl<M: Machine> Turn<M> {
    /// Mends what can be mended, and has read what others lack.
    pub(super) fn mend(&mut self) -> storage::Result<()> {
        for supply in std::mem::take(&mut self.out.effects.supplies) {
            if let Some(reader) = self.disk.reader(supply.read.group) {
                self.read_elsewhere(reader, Wanted::Supply(supply));
            }
        }
        for mend in std::mem::take(&mut self.out.effects.mends) {
            let inputs = self.disk.mend(&mend)?;
            self.counters.log_mended();
            self.inputs.extend(inputs);
        }
        for group in std::mem::take(&mut self.out.effects.unrepaired) {
            tracing::error!(%group, "entries are damaged, and no other replica has given them");
            self.counters.repair_in_vain();
        }
        Ok(())
    }

    /// Has suspicions looked into, and tells the shard what is known to be missing.
    pub(super) fn look_for_damage(&mut self) {
        let (suspects, changed) = self.disk.look_for_damage();
        self.inputs.extend(changed);
        for (reader, suspect) in suspects {
            self.read_elsewhere(reader, Wanted::Examination(suspect));
        }
    }
}
