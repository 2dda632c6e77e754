//! Network namespaces: one for each place, and a switch between them.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::switch::{PACKET_BYTES, Switch, Weather};
use super::sys;

/// Of the range that is set aside for tests of network devices.
const RANGE: [u8; 2] = [198, 18];
const CLIENTS: u8 = 1;
/// Those who mean no good are behind the same interface, and have an address of their own.
const STRANGERS: u8 = 2;
/// The last byte of the first place's address.
const FIRST: u8 = 11;

/// One end of the network: a place, or all clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Clients,
    Place(usize),
}

impl End {
    fn port(self) -> usize {
        match self {
            Self::Clients => 0,
            Self::Place(place) => place + 1,
        }
    }
}

/// The namespaces; they go when it is dropped.
pub(super) struct Net {
    names: Vec<String>,
    /// The third byte of all addresses.
    number: u8,
    switch: Option<Switch>,
}

impl Net {
    /// Makes `places` namespaces. Needs root and the `ip` program.
    pub(super) fn lay(places: usize, seed: u64) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "only root can make one");
        // Others may run at the same time.
        let id = std::process::id();
        let number = (id % 250) as u8 + 1;
        let mut net = Self { names: Vec::new(), number, switch: None };
        let mut ports = vec![net.interface(CLIENTS, None)?];
        let strangers = format!("{}/32", net.address(STRANGERS));
        run("ip", &["addr", "add", &strangers, "dev", &net.device(CLIENTS)])?;
        for place in 0..places {
            let name = format!("quipu-{id}-{place}");
            run("ip", &["netns", "add", &name])?;
            net.names.push(name.clone());
            ports.push(net.interface(FIRST + place as u8, Some(&name))?);
        }
        let place_of = move |[a, b, c, d]: [u8; 4]| {
            let is_ours = [a, b] == RANGE && c == number;
            let is_client = d == CLIENTS || d == STRANGERS;
            let port = if is_client { Some(0) } else { d.checked_sub(FIRST - 1) };
            port.map(usize::from).filter(|port| is_ours && *port <= places)
        };
        net.switch = Some(Switch::start(ports, place_of, seed));
        Ok(net)
    }

    fn interface(&self, last: u8, namespace: Option<&str>) -> Result<std::fs::File> {
        let device = self.device(last);
        let file = sys::open_tun(&device).context("make a network interface")?;
        let address = format!("{}/24", self.address(last));
        let mtu = PACKET_BYTES.to_string();
        // The program's own way into a namespace copies all mounts: a disk that loses its power
        // meanwhile would live on there.
        let enter = namespace.map(enter).unwrap_or_default();
        let within = |args: &[&str]| {
            let enter = enter.iter().map(String::as_str);
            let words: Vec<_> = enter.chain(["ip"]).chain(args.iter().copied()).collect();
            run(words[0], &words[1..])
        };
        if let Some(name) = namespace {
            run("ip", &["link", "set", "dev", &device, "netns", name])?;
            within(&["link", "set", "dev", "lo", "up"])?;
        }
        within(&["addr", "add", &address, "dev", &device])?;
        within(&["link", "set", "dev", &device, "mtu", &mtu, "up"])?;
        Ok(file)
    }

    fn device(&self, last: u8) -> String {
        format!("quipu{}-{last}", self.number)
    }

    /// Where those who mean no good call from.
    pub(super) fn strangers(&self) -> Ipv4Addr {
        self.address(STRANGERS)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(RANGE[0], RANGE[1], self.number, last)
    }

    /// Where a place is reached.
    pub(super) fn host(&self, place: usize) -> String {
        self.address(FIRST + place as u8).to_string()
    }

    /// The command that runs a program in a place, before its name.
    pub(super) fn enter(&self, place: usize) -> Vec<String> {
        enter(&self.names[place])
    }

    /// Sets what becomes of packets from one end to another.
    pub(super) fn set(&self, from: End, to: End, weather: Weather) {
        self.switch().set(from.port(), to.port(), weather);
    }

    /// Lets everything pass at once.
    pub(super) fn clear(&self) {
        self.switch().clear();
    }

    fn switch(&self) -> &Switch {
        self.switch.as_ref().expect("it starts with the network")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.switch = None;
        for name in &self.names {
            let _ = run("ip", &["netns", "del", name]);
        }
    }
}

fn enter(namespace: &str) -> Vec<String> {
    let path = PathBuf::from("/run/netns").join(namespace);
    vec!["nsenter".to_owned(), format!("--net={}", path.display())]
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().context(program.to_owned())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}
