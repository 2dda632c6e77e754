//! A client in Python, made from the `.proto` files alone.
//!
//! It needs python3 and packages from PyPI, which are kept below `target/tmp`. Where these cannot
//! be had the test says so and passes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use crate::support::Cluster;

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a package index may be silent.
const INDEX_TIMEOUT_S: &str = "15";

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a command, and returns what it said if it failed.
fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.stdin(Stdio::null()).output();
    let ran = ran.map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ran.status.success().then_some(()).ok_or_else(|| format!("{command:?}: {}: {said}", ran.status))
}

/// A Python with the packages that the client needs, made once for each list of them.
fn python() -> Result<PathBuf, String> {
    // Tests of one process would make it at the same time.
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let requirements = here("tests/python/requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap();
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let program = environment.join("bin/python");
    // Written last: an environment without it was not finished.
    let done = environment.join("requirements.txt");
    if fs::read_to_string(&done).is_ok_and(|made| made == wanted) {
        return Ok(program);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut pip = Command::new(&program);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    // Built from source they would take longer than everything else together.
    pip.args(["--only-binary", ":all:", "--retries", "1", "--timeout", INDEX_TIMEOUT_S]);
    run(pip.arg("--requirement").arg(&requirements))?;
    fs::write(&done, wanted).unwrap();
    Ok(program)
}

/// Runs a script of `tests/python` against a server of its own.
async fn run_script(script: &str) {
    let python = match tokio::task::spawn_blocking(python).await.unwrap() {
        Ok(python) => python,
        Err(reason) => {
            println!("SKIPPED: no Python with gRPC: {reason}");
            return;
        }
    };
    let mut cluster = Cluster::start(1).await;
    let stubs = tempfile::tempdir().unwrap();
    let mut client = tokio::process::Command::new(python);
    client.arg(here("tests/python").join(script)).arg(here("proto")).arg(stubs.path());
    client.arg(cluster.server(0).addresses().clients.to_string());
    // No files are to appear beside the scripts.
    client.env("PYTHONDONTWRITEBYTECODE", "1");
    let ran = client.stdin(Stdio::null()).kill_on_drop(true).output();
    let ran = timeout(PATIENCE, ran).await.expect("the client ends").unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{}: {said}", ran.status);
    cluster.stop(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_from_the_proto_files_is_served() {
    run_script("client.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_made_from_the_proto_files_shares_a_group() {
    run_script("groups.py").await;
}
