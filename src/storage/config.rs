//! Sizes and bounds of the log engine.

/// How a data directory stores its logs. The defaults suit a server; tests use tiny sizes so that
/// rolls and cold paths run all the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A segment is rolled before it would grow beyond this many bytes.
    pub segment_bytes: u64,
    /// One row of the sparse index, 32 bytes, stands for about this many bytes of entries. Measured
    /// in a log of 10 GB: a look-up takes 2.2 us with rows every 8 KiB and 1.9 us with 4 KiB.
    pub index_interval_bytes: u64,
    /// A new segment file has this length; it grows fourfold from there.
    pub allocation_bytes_first: u64,
    /// A segment file never grows by more than this at a time.
    pub allocation_bytes_max: u64,
    /// Prepared segment files of [`Self::segment_bytes`] kept ready, or as many bytes in shorter
    /// ones; 0 for none. Retention fills them up with what it drops: as many as roll while it does
    /// so save both the removal of files and the writing of new ones. One is prepared in any case.
    pub spares_max: usize,
    /// Segment files that are open and mapped at a time, the dirty ones not counted.
    pub open_segments_max: usize,
    /// Appends that need more disk are refused when less than this would stay free.
    pub low_water_bytes: u64,
    /// Space kept aside for the meta journal on a full disk; 0 for none.
    pub reserve_bytes: u64,
    /// Threads that sync; 0 leaves syncing to whoever calls [`super::Syncer::run_round`].
    pub sync_threads: usize,
    /// From this many dirty files in one round, one sync of the file system takes their place.
    /// Measured on ext4 with 4 KiB dirty in each file, two threads against one sync: 3 files take
    /// 0.35 and 0.29 ms, 8 take 0.9 and 0.5 ms, 64 take 7.2 and 2.0 ms. It is not 3, because the
    /// one sync also waits for whatever else is dirty on the file system; from 8 on it halves time.
    pub sync_filesystem_from: usize,
    /// The meta journal is rewritten when it is this long and mostly outdated.
    pub journal_rewrite_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 * 1024 * 1024,
            index_interval_bytes: 4 * 1024,
            allocation_bytes_first: 16 * 1024,
            allocation_bytes_max: 1024 * 1024,
            spares_max: 32,
            open_segments_max: 4096,
            low_water_bytes: 256 * 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
            sync_threads: 2,
            sync_filesystem_from: 8,
            journal_rewrite_bytes: 16 * 1024 * 1024,
        }
    }
}

impl Config {
    /// Whether the directory has threads of its own.
    pub(super) fn has_threads(&self) -> bool {
        self.sync_threads > 0
    }

    /// Sizes so small that a few appends roll segments and grow files.
    pub fn tiny() -> Self {
        Self {
            segment_bytes: 8 * 1024,
            index_interval_bytes: 256,
            allocation_bytes_first: 5 * 1024,
            allocation_bytes_max: 1024,
            spares_max: 1,
            open_segments_max: 4,
            low_water_bytes: 0,
            reserve_bytes: 0,
            sync_threads: 0,
            sync_filesystem_from: 8,
            journal_rewrite_bytes: 16 * 1024,
        }
    }
}
