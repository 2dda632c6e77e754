//! A data directory, and the machine that it is on.

use std::path::Path;
use std::sync::Arc;

use super::Finding;
use crate::storage::fs::os::OsFs;
use crate::storage::{Inspector, Report};
use crate::telemetry::{Process, filesystem_of};

/// Fewer open files than this are soon used up: each segment in use is one.
const OPEN_FILES_MIN: u64 = 65_536;
/// What the kernel allows by default, and what the log engine counts on.
const MAPPINGS_MIN: u64 = 65_530;

/// Looks at a data directory, without changing it.
pub(super) fn look(dir: &Path) -> anyhow::Result<Vec<Finding>> {
    let path = std::path::absolute(dir)?;
    let report = Inspector::open(Arc::new(OsFs::new()), &path, None)?.inspect(false, &mut |_| {});
    let about = path.display().to_string();
    let mut findings = of_report(&about, &report);
    findings.extend(of_filesystem(&about, filesystem_of(&path).as_deref()));
    findings.extend(of_machine(&Process::now()));
    Ok(findings)
}

fn of_report(about: &str, report: &Report) -> Vec<Finding> {
    let remedy = "`quipu log verify` says where; a node that runs mends it from other replicas";
    let damage = report.damage.iter().chain(report.logs.iter().flat_map(|log| &log.damage));
    let damaged = damage.count();
    let mut findings = Vec::new();
    if damaged > 0 {
        findings.push(Finding::problem(about, format!("{damaged} places are damaged"), remedy));
    }
    for failure in &report.failures {
        let what = format!("{}: {}", failure.file.display(), failure.what);
        findings.push(Finding::problem(about, what, "check the disk and the permissions"));
    }
    if report.in_use == Some(false) && report.closed_cleanly == Some(false) {
        let what = "it was not closed in order";
        findings.push(Finding::note(about, what, "the node recovers it when it starts"));
    }
    findings
}

fn of_filesystem(about: &str, kind: Option<&str>) -> Option<Finding> {
    let kind = kind?;
    let what = format!("it is on {kind}");
    let remedy = "use a local disk with ext4 or xfs";
    match kind {
        "tmpfs" | "ramfs" => {
            Some(Finding::problem(about, what + ", which a restart empties", remedy))
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "ceph" | "glusterfs" => Some(Finding::problem(
            about,
            what + ": whether a sync is durable is up to others",
            remedy,
        )),
        kind if kind.starts_with("fuse") || kind == "overlay" => {
            Some(Finding::note(about, what, "give it a volume of its own, with ext4 or xfs"))
        }
        _ => None,
    }
}

fn of_machine(process: &Process) -> Vec<Finding> {
    let mut findings = Vec::new();
    if (1..OPEN_FILES_MIN).contains(&process.open_files_max) {
        let what = format!("a process may have {} files open", process.open_files_max);
        let remedy = format!("raise it to {OPEN_FILES_MIN} for the server (`ulimit -n`)");
        findings.push(Finding::note("this machine", what, remedy));
    }
    if (1..MAPPINGS_MIN).contains(&process.mappings_max) {
        let what = format!("vm.max_map_count is {}", process.mappings_max);
        let remedy = format!("sysctl -w vm.max_map_count={MAPPINGS_MIN} or more");
        findings.push(Finding::problem("this machine", what, remedy));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_and_memory_file_systems_are_problems() {
        for kind in ["tmpfs", "nfs4", "cifs"] {
            let finding = of_filesystem("x", Some(kind)).unwrap();
            assert_eq!(finding.severity, super::super::Severity::Problem, "{kind}");
        }
        for kind in ["ext4", "xfs", "btrfs", "zfs"] {
            assert_eq!(of_filesystem("x", Some(kind)), None, "{kind}");
        }
    }

    #[test]
    fn low_limits_are_named() {
        let low = Process { open_files_max: 1024, mappings_max: 1000, ..Process::default() };
        assert_eq!(of_machine(&low).len(), 2);
        let high = Process { open_files_max: 1 << 20, mappings_max: 65_530, ..low };
        assert_eq!(of_machine(&high), []);
    }
}
