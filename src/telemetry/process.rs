//! What the system says of this process, read from `/proc`.

use std::fs;
use std::path::Path;

/// The state of the process; zero where the system does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Memory that it has in use.
    pub resident_bytes: u64,
    /// Files and connections that are open.
    pub open_files: u64,
    /// How many of them there can be.
    pub open_files_max: u64,
    /// Ranges of memory that are mapped.
    pub mappings: u64,
    /// How many of them there can be.
    pub mappings_max: u64,
}

impl Process {
    /// The process as it is now.
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            resident_bytes: resident_bytes(&read("/proc/self/status")).unwrap_or(0),
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            open_files_max: open_files_max(&read("/proc/self/limits")).unwrap_or(0),
            mappings: read("/proc/self/maps").lines().count() as u64,
            mappings_max: read("/proc/sys/vm/max_map_count").trim().parse().unwrap_or(0),
        }
    }
}

/// The kind of the file system that `path` is on, as the system mounted it.
pub fn filesystem_of(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    kind_of(&path, &fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// `36 35 98:0 /root /mount/point rw,noatime - ext4 /dev/sda1 rw`; of several mounts that hold a
/// path the longest holds, and of equal ones the last.
fn kind_of(path: &Path, mounts: &str) -> Option<String> {
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let point = head.split(' ').nth(4)?.to_owned();
        Some((point, tail.split(' ').next()?.to_owned()))
    };
    let holding = mounts.lines().filter_map(mount).filter(|(point, _)| path.starts_with(point));
    holding.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind)
}

/// `VmRSS:      1234 kB`
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// `Max open files            1024                 524288               files`
fn open_files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_something() {
        let process = Process::now();
        assert!(process.resident_bytes > 100_000, "{process:?}");
        assert!(process.open_files >= 3 && process.open_files_max > 3, "{process:?}");
        assert!(process.mappings > 3 && process.mappings_max > process.mappings, "{process:?}");
    }

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let mounts = "1 0 8:0 / / rw - ext4 /dev/a rw\n2 1 8:1 / /data rw shared:1 - xfs /dev/b \
                      rw\n3 1 8:1 / /data rw - tmpfs tmpfs rw\nnonsense\n";
        let kind = |path| kind_of(Path::new(path), mounts);
        assert_eq!(kind("/data/quipu").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/database").as_deref(), Some("ext4"));
        assert!(filesystem_of(Path::new("/proc")).is_some());
    }

    #[test]
    fn lines_are_read_and_nonsense_is_not() {
        assert_eq!(resident_bytes("VmHWM:  9 kB\nVmRSS:\t  12 kB\n"), Some(12 * 1024));
        assert_eq!(resident_bytes("VmRSS: x kB"), None);
        assert_eq!(open_files_max("Max open files   unlimited  unlimited files"), None);
        assert_eq!(open_files_max("Max open files   64   128   files"), Some(64));
    }
}
