//! Whose files they are: no links are followed, and nobody else reads or writes.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use quipu::storage::fs::os::OsFs;
use quipu::storage::{Config, DataDir, Error};

fn open(path: &Path) -> quipu::storage::Result<DataDir> {
    DataDir::open(Arc::new(OsFs::new()), path, Config::tiny())
}

#[test]
fn a_data_directory_that_is_a_link_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (real, link) = (root.path().join("real"), root.path().join("link"));
    open(&real).unwrap().finish().unwrap();
    symlink(&real, &link).unwrap();
    let refused = open(&link).unwrap_err();
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    assert!(refused.to_string().contains("symbolic link"), "{refused}");
    open(&real).unwrap();
}

#[test]
fn links_within_a_data_directory_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let (data, elsewhere) = (root.path().join("data"), root.path().join("elsewhere"));
    open(&data).unwrap().finish().unwrap();
    std::fs::rename(data.join("logs"), &elsewhere).unwrap();
    symlink(&elsewhere, data.join("logs")).unwrap();
    assert!(open(&data).unwrap_err().to_string().contains("symbolic link"));
}

#[test]
fn only_the_owner_may_look_at_the_files() {
    let root = tempfile::tempdir().unwrap();
    let data = root.path().join("data");
    open(&data).unwrap().finish().unwrap();
    let mut looked_at = 0;
    let mut dirs = vec![data];
    while let Some(dir) = dirs.pop() {
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700, "{}", dir.display());
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            looked_at += 1;
            if path.is_dir() {
                dirs.push(path);
            } else {
                assert_eq!(mode(&path), 0o600, "{}", path.display());
            }
        }
    }
    assert!(looked_at > 4, "{looked_at} names");
}
