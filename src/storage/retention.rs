//! Choosing which segments retention drops, and how long segments are for its sake. Pure;
//! [`super::Log`] carries it out.

/// What retention needs to know of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFacts {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset after its last record, exclusive.
    pub end_offset: u64,
    /// Append time of its last entry in milliseconds.
    pub last_append_time_ms: i64,
    /// Length of its file.
    pub bytes: u64,
    /// It starts with a checkpoint, so that a log can begin with it.
    pub has_checkpoint: bool,
}

/// How long records are kept. A record goes when *any* rule gives it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Give up what was appended longer ago than this many milliseconds.
    pub age_ms: Option<u64>,
    /// Give up the oldest while the log is larger than this many bytes.
    pub bytes: Option<u64>,
    /// Do not give up this offset or a later one for its age: somebody still needs it. A log that
    /// is too large gives it up all the same, or one reader that is gone could fill the disk.
    pub keep_from_offset: Option<u64>,
}

/// Parts of a log that is bounded in size: with few, much would go at a time and more than is to be
/// kept would stay; with many, it would roll all the time.
const PARTS: u64 = 4;
/// A segment is not made shorter than this for the sake of retention: each costs a sync of its
/// directory and a checkpoint.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Length at which a segment is full in a log that keeps at most `kept_bytes`; `max` in one without
/// a bound. A power of two if less, so that logs can use each other's old files.
///
/// Measured with 16 logs of 16 MiB each: with segments of 64 MiB a node wrote through 2 GiB of
/// files until it came to the first one again, and on a machine that lets go of idle memory the
/// kernel spent a quarter of all time to get it back. With segments of 4 MiB it is 370 MiB.
pub(super) fn segment_bytes(kept_bytes: Option<u64>, max: u64) -> u64 {
    let Some(kept_bytes) = kept_bytes else { return max };
    let part = (kept_bytes / PARTS).max(SEGMENT_BYTES_MIN);
    let rounded = 1 << part.ilog2();
    rounded.min(max)
}

/// Length at which a segment is full that would be `full` bytes long and begins with a checkpoint:
/// most of it is for entries, unless it is `max` long already.
pub(super) fn with_checkpoint(full: u64, checkpoint_bytes: u64, max: u64) -> u64 {
    full.max((PARTS * checkpoint_bytes).next_power_of_two()).min(max)
}

/// Returns how many of the oldest segments go.
///
/// `segments` are those of one log, oldest first. The last one, which is being written, always
/// stays, and the first that stays has a checkpoint.
pub fn choose(segments: &[SegmentFacts], policy: &Policy, now_ms: i64) -> usize {
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let candidates = segments.len().saturating_sub(1);
    let mut count = 0;
    for segment in &segments[..candidates] {
        let is_old = policy.age_ms.is_some_and(|age| {
            let age = i64::try_from(age).unwrap_or(i64::MAX);
            segment.last_append_time_ms < now_ms.saturating_sub(age)
        });
        let is_over = policy.bytes.is_some_and(|max| bytes > max);
        let is_needed = policy.keep_from_offset.is_some_and(|keep| segment.end_offset > keep);
        if !(is_over || (is_old && !is_needed)) {
            break;
        }
        bytes -= segment.bytes;
        count += 1;
    }
    assert!(count <= candidates, "the last of {} segments would go", segments.len());
    while count > 0 && !segments[count].has_checkpoint {
        count -= 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five segments of ten records and 100 bytes, the last entries appended at 10, 20, 30, 40, 50.
    fn segments() -> Vec<SegmentFacts> {
        let segment = |n: u64| SegmentFacts {
            base_offset: 10 * n,
            end_offset: 10 * n + 10,
            last_append_time_ms: 10 * (n as i64 + 1),
            bytes: 100,
            has_checkpoint: true,
        };
        (0..5).map(segment).collect()
    }

    #[test]
    fn segments_are_a_part_of_what_is_kept() {
        const MIB: u64 = 1 << 20;
        for (kept, bytes) in
            [(1, MIB), (16 * MIB, 4 * MIB), (31 * MIB, 4 * MIB), (u64::MAX, 64 * MIB)]
        {
            assert_eq!(segment_bytes(Some(kept), 64 * MIB), bytes, "{kept} bytes are kept");
        }
        assert_eq!(segment_bytes(None, 64 * MIB), 64 * MIB);
        assert_eq!(segment_bytes(Some(16 * MIB), 8192), 8192, "never longer than configured");
        for (checkpoint, bytes) in [(0, MIB), (700_000, 4 * MIB), (17 * MIB, 64 * MIB)] {
            assert_eq!(with_checkpoint(MIB, checkpoint, 64 * MIB), bytes, "{checkpoint} bytes");
        }
    }

    #[test]
    fn without_a_rule_nothing_goes() {
        assert_eq!(choose(&segments(), &Policy::default(), i64::MAX), 0);
        assert_eq!(choose(&[], &Policy::default(), 0), 0);
    }

    #[test]
    fn a_segment_goes_by_age_only_when_its_last_entry_is_too_old() {
        let policy = Policy { age_ms: Some(30), ..Policy::default() };
        assert_eq!(choose(&segments(), &policy, 50), 1, "10 is older than 20, 20 is not");
        assert_eq!(choose(&segments(), &policy, 51), 2);
        assert_eq!(choose(&segments(), &policy, i64::MAX), 4, "the last one stays");
        let forever = Policy { age_ms: Some(u64::MAX), ..Policy::default() };
        assert_eq!(choose(&segments(), &forever, i64::MAX), 0);
    }

    #[test]
    fn the_oldest_go_until_the_log_is_small_enough() {
        for (max, count) in [(500, 0), (499, 1), (300, 2), (1, 4)] {
            let policy = Policy { bytes: Some(max), ..Policy::default() };
            assert_eq!(choose(&segments(), &policy, 0), count, "at most {max} bytes");
        }
    }

    #[test]
    fn what_somebody_needs_stays_however_old_until_the_log_is_too_large() {
        let keep = Policy { age_ms: Some(0), keep_from_offset: Some(25), ..Policy::default() };
        assert_eq!(choose(&segments(), &keep, 1_000), 2, "offset 25 is in the third");
        let bounded = Policy { bytes: Some(199), ..keep };
        assert_eq!(choose(&segments(), &bounded, 1_000), 4, "the size overrules");
    }

    #[test]
    fn a_log_never_starts_where_no_checkpoint_is() {
        let mut segments = segments();
        segments[3].has_checkpoint = false;
        let policy = Policy { bytes: Some(200), ..Policy::default() };
        assert_eq!(choose(&segments, &policy, 0), 2);
    }
}
