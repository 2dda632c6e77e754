//! Processes of a bench: servers and floors, started by it and gone with it.
//!
//! Each is killed by its id when it is dropped, so also when the bench panics. Should the bench
//! itself be killed, the kernel kills them: between the bench and a program stands this executable,
//! which asks for that and then becomes the program.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use quipu::client::{Client, ClientConfig};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::runtime::Runtime;

/// The first argument of this executable when it is to become another program.
const BECOME: &str = "become";
/// Names another build of Quipu to be measured.
const PROGRAM: &str = "QUIPU_BENCH_PROGRAM";
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A role that this executable can have, by its name. It gets the arguments after that.
pub(crate) type Role<'a> = (&'a str, fn(&[String]));

/// Takes part as a child if this process is one, and then does not return.
///
/// A role is looked up by the first argument.
pub(crate) fn play_a_part(roles: &[Role<'_>]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((role, rest)) = arguments.split_first() else { return };
    let known = roles.iter().find(|(name, _)| name == role);
    if role != BECOME && known.is_none() {
        return;
    }
    set_parent_process_death_signal(Some(Signal::KILL)).expect("the kernel takes a signal");
    if let Some((_, play)) = known {
        play(rest);
        std::process::exit(0);
    }
    let error = Command::new(&rest[0]).args(&rest[1..]).exec();
    panic!("{} cannot be started: {error}", rest[0]);
}

/// A process that is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program, told nothing of Quipu by the environment. What it says goes to `log`.
    pub(crate) fn start<A: AsRef<OsStr>>(program: &Path, arguments: &[A], log: &Path) -> Self {
        let mut command = this_executable(log);
        command.arg(BECOME).arg(program).args(arguments);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("QUIPU_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: command.spawn().expect("a process starts"), log: log.to_owned() }
    }

    /// The same, with pipes to talk through.
    pub(crate) fn converse<A: AsRef<OsStr>>(
        program: &Path,
        arguments: &[A],
        log: &Path,
    ) -> (Self, Conversation) {
        let mut command = this_executable(log);
        command.arg(BECOME).arg(program).args(arguments);
        Self::with_pipes(command, log)
    }

    /// Starts this executable in one of its roles.
    pub(crate) fn play(role: &str, arguments: &[&str], log: &Path) -> (Self, Conversation) {
        let mut command = this_executable(log);
        command.arg(role).args(arguments);
        Self::with_pipes(command, log)
    }

    fn with_pipes(mut command: Command, log: &Path) -> (Self, Conversation) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process starts");
        let input = child.stdin.take().expect("it was piped");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        let conversation = Conversation { input, output, log: log.to_owned() };
        (Self { child, log: log.to_owned() }, conversation)
    }

    /// What it holds now.
    pub(crate) fn holdings(&self) -> Holdings {
        let dir = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(dir.join("status")).expect("the process runs");
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            let kilobytes = kilobytes.expect("the kernel tells of memory");
            1024 * kilobytes.parse::<u64>().expect("the kernel writes numbers")
        };
        let maps = fs::read_to_string(dir.join("maps")).expect("the process runs");
        Holdings {
            own_bytes: bytes("RssAnon:"),
            mapped_bytes: bytes("RssFile:") + bytes("RssShmem:"),
            files: fs::read_dir(dir.join("fd")).expect("the process runs").count(),
            mappings: maps.lines().count(),
        }
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn expect_alive(&mut self) {
        let ended = self.child.try_wait().expect("a child can be asked");
        assert!(ended.is_none(), "a process ended ({ended:?}): {}", self.said());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, and need not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a process holds.
pub(crate) struct Holdings {
    /// Resident memory of its own.
    pub(crate) own_bytes: u64,
    /// Resident memory that is files.
    pub(crate) mapped_bytes: u64,
    pub(crate) files: usize,
    pub(crate) mappings: usize,
}

impl Holdings {
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.own_bytes + self.mapped_bytes
    }
}

/// Lines to and from a process.
pub(crate) struct Conversation {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Conversation {
    /// Says a line.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the process listens");
    }

    /// The next line. Waits for it.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).expect("the process speaks");
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        assert!(read > 0, "the process has ended: {said}");
        line.trim().to_owned()
    }
}

fn this_executable(log: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this executable has a path"));
    command.stderr(File::options().create(true).append(true).open(log).expect("a log can be made"));
    command
}

/// Addresses that were free a moment ago.
pub(crate) fn free_addresses<const N: usize>() -> [String; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    listeners.map(|listener| listener.local_addr().expect("it listens").to_string())
}

/// Nodes of Quipu, one cluster.
pub(crate) struct Nodes {
    nodes: Vec<Process>,
    /// Where clients reach them.
    pub(crate) addresses: Vec<String>,
}

impl Nodes {
    /// Starts so many nodes with directories below `root`, and waits until they are one cluster.
    pub(crate) fn start(runtime: &Runtime, root: &Path, count: usize) -> Self {
        let ports: Vec<[String; 3]> = (0..count).map(|_| free_addresses()).collect();
        let seed = |(n, [_, peers, _]): (usize, &[String; 3])| format!("{}@{peers}", n + 1);
        let seeds: Vec<String> = ports.iter().enumerate().map(seed).collect();
        let start = |(n, ports): (usize, &[String; 3])| {
            let id = (n + 1).to_string();
            let (dir, log) = (root.join(format!("node-{id}")), root.join(format!("node-{id}.log")));
            start_node(&["--node-id", &id, "--seeds", &seeds.join(",")], &dir, &log, ports)
        };
        let nodes = ports.iter().enumerate().map(start).collect();
        let addresses = ports.into_iter().map(|[clients, ..]| clients).collect();
        let mut nodes = Self { nodes, addresses };
        nodes.wait_until_whole(runtime);
        nodes
    }

    /// A client of all nodes.
    pub(crate) fn client(&self, runtime: &Runtime) -> Client {
        let _inside = runtime.enter();
        Client::new(ClientConfig::new(self.addresses.clone())).expect("the addresses are good")
    }

    /// What each node holds now.
    pub(crate) fn holdings(&self) -> Vec<Holdings> {
        self.nodes.iter().map(Process::holdings).collect()
    }

    fn wait_until_whole(&mut self, runtime: &Runtime) {
        let client = self.client(runtime);
        let started = Instant::now();
        loop {
            self.nodes.iter_mut().for_each(Process::expect_alive);
            let seen = runtime.block_on(client.describe_cluster());
            let alive = seen.map(|seen| seen.nodes.iter().filter(|node| node.is_alive).count());
            if alive.is_ok_and(|alive| alive == self.nodes.len()) {
                return;
            }
            let said = self.nodes[0].said();
            assert!(started.elapsed() < PATIENCE, "the nodes do not become a cluster: {said}");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Starts one node for trying things out, and returns it with how long it took to be ready.
pub(crate) fn start_alone(dir: &Path, log: &Path) -> (Process, Duration) {
    let ports: [String; 3] = free_addresses();
    let started = Instant::now();
    let mut node = start_node(&["--dev"], dir, log, &ports);
    while !is_ready(&ports[2]) {
        node.expect_alive();
        assert!(started.elapsed() < PATIENCE, "the node does not get ready: {}", node.said());
        std::thread::sleep(Duration::from_millis(1));
    }
    (node, started.elapsed())
}

fn start_node(arguments: &[&str], dir: &Path, log: &Path, ports: &[String; 3]) -> Process {
    let dir = dir.to_str().expect("the path is text");
    let [clients, peers, http] = ports;
    let mut all = vec!["serve", "--data-dir", dir, "--listen", clients];
    all.extend(["--peer-listen", peers, "--http-listen", http]);
    all.extend(arguments);
    let program = std::env::var_os(PROGRAM).map(PathBuf::from);
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_quipu").into());
    Process::start(&program, &all, log)
}

/// Asks the HTTP port whether a node is ready.
fn is_ready(address: &str) -> bool {
    let Ok(mut port) = TcpStream::connect(address) else { return false };
    let asked = write!(port, "GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n");
    let mut status = String::new();
    let heard = BufReader::new(port).read_line(&mut status);
    asked.is_ok() && heard.is_ok() && status.contains(" 200 ")
}
