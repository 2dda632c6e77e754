//! What the system says of this process, read from `/proc`.

use std::fs;

/// The state of the process; zero where the system does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    pub(super) open_files: u64,
    pub(super) open_files_max: u64,
}

impl Process {
    pub(super) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            resident_bytes: resident_bytes(&read("/proc/self/status")).unwrap_or(0),
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64),
            open_files_max: open_files_max(&read("/proc/self/limits")).unwrap_or(0),
        }
    }
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
    }

    #[test]
    fn lines_are_read_and_nonsense_is_not() {
        assert_eq!(resident_bytes("VmHWM:  9 kB\nVmRSS:\t  12 kB\n"), Some(12 * 1024));
        assert_eq!(resident_bytes("VmRSS: x kB"), None);
        assert_eq!(open_files_max("Max open files   unlimited  unlimited files"), None);
        assert_eq!(open_files_max("Max open files   64   128   files"), Some(64));
    }
}
