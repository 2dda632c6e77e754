//! The bed: where the nodes of a cluster live, and what can be done to them there.
//!
//! Each place has a network namespace, a file system in a file and a library between its processes
//! and the system. Without root, or where a tool is missing, there is less, which is said: then
//! nodes live on loopback or in plain directories, and the faults that need more are left out.

mod control;
mod net;
mod switch;
mod sys;

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

pub(crate) use self::control::Control;
pub(crate) use self::net::End;
use self::net::Net;
pub(crate) use self::switch::Weather;
use crate::image::Image;
use crate::kernel::{self, Cut};
use crate::rng::Rng;

const DISK_BYTES: u64 = 2 << 30;
const BLOCK_BYTES: u32 = 4096;
/// For clients, for nodes, for metrics.
const PORTS: [u16; 3] = [7401, 7501, 7601];

/// One cluster has all of the machine that there is.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// All places.
pub(crate) struct Bed {
    root: TempDir,
    net: Option<Net>,
    preload: Option<PathBuf>,
    places: Vec<Place>,
    _turn: MutexGuard<'static, ()>,
}

/// Where one node lives.
struct Place {
    image: Option<Image>,
    dir: PathBuf,
    control: Control,
    addresses: [String; 3],
    is_cut: bool,
}

impl Bed {
    /// Makes so many places. What is drawn in the network is drawn from `seed`.
    pub(crate) async fn lay(places: usize, seed: u64) -> Result<Self> {
        let turn = ONE_AT_A_TIME.lock().await;
        let root = tempfile::Builder::new().prefix("quipu-chaos-").tempdir()?;
        let net =
            Net::lay(places, seed).inspect_err(|why| println!("SKIPPED: no network: {why:#}"));
        let preload = control::compile(root.path());
        let preload = preload.inspect_err(|why| println!("SKIPPED: no faults of calls: {why:#}"));
        let mut bed =
            Self { root, net: net.ok(), preload: preload.ok(), places: Vec::new(), _turn: turn };
        for number in 0..places {
            let place = bed.place(number)?;
            bed.places.push(place);
        }
        Ok(bed)
    }

    fn place(&self, number: usize) -> Result<Place> {
        let mut image = Image::make(DISK_BYTES, BLOCK_BYTES);
        let own = self.root.path().join(format!("place-{number}"));
        fs::create_dir(&own)?;
        let dir = match &mut image {
            Some(image) => {
                image.mount("defaults")?;
                image.mount_point()
            }
            None => own.clone(),
        };
        let addresses = match &self.net {
            Some(net) => PORTS.map(|port| format!("{}:{port}", net.host(number))),
            None => free_addresses(),
        };
        let control = Control::new(&self.root.path().join(format!("control-{number}")))?;
        Ok(Place { image, dir: dir.join("data"), control, addresses, is_cut: false })
    }

    /// A directory for whatever is to outlive the nodes.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Whether packets can be lost, disks lose their power, and calls fail.
    pub(crate) fn has_net(&self) -> bool {
        self.net.is_some()
    }

    pub(crate) fn has_disks(&self) -> bool {
        self.places.iter().all(|place| place.image.is_some())
    }

    pub(crate) fn has_calls(&self) -> bool {
        self.preload.is_some()
    }

    /// The addresses of a place: for clients, for nodes, for metrics.
    pub(crate) fn addresses(&self, place: usize) -> &[String; 3] {
        &self.places[place].addresses
    }

    /// Where those who mean no good call from.
    pub(crate) fn strangers(&self) -> Ipv4Addr {
        self.net.as_ref().map_or(Ipv4Addr::new(127, 0, 0, 2), Net::strangers)
    }

    /// The data directory of a place.
    pub(crate) fn dir(&self, place: usize) -> &Path {
        &self.places[place].dir
    }

    /// A command that runs `program` in a place.
    pub(crate) fn command(&self, place: usize, program: &str) -> Command {
        let mut words = self.net.as_ref().map_or_else(Vec::new, |net| net.enter(place));
        words.push(program.to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        if let Some(library) = &self.preload {
            let control = &self.places[place].control;
            command.env("LD_PRELOAD", library);
            command.env("CHAOS_CONTROL", control.path()).env("CHAOS_BOOT", control.boot_path());
        }
        command
    }

    /// What the calls of a place's processes come to.
    pub(crate) fn control(&self, place: usize) -> &Control {
        &self.places[place].control
    }

    /// Sets what becomes of packets from one end to another.
    pub(crate) fn set_weather(&self, from: End, to: End, weather: Weather) {
        self.net.as_ref().expect("there is a network").set(from, to, weather);
    }

    /// Everything arrives, calls come to what the system says.
    pub(crate) fn clear(&self) {
        if let Some(net) = &self.net {
            net.clear();
        }
        self.places.iter().for_each(|place| place.control.clear());
    }

    /// Cuts the power of a place's disk, after some pages of its logs went there by themselves.
    /// Processes see errors from now on.
    pub(crate) fn cut_power(&mut self, place: usize, rng: &mut Rng) -> Result<()> {
        let place = &mut self.places[place];
        let Some(image) = place.image.as_ref().filter(|_| !place.is_cut) else { return Ok(()) };
        if rng.chance(500) {
            write_some_out(&place.dir, rng).context("write some pages out")?;
        }
        image.cut_power(if rng.chance(500) { Cut::Nothing } else { Cut::JournalFlushed })?;
        place.is_cut = true;
        Ok(())
    }

    /// Whether a place's disk has no power.
    pub(crate) fn is_cut(&self, place: usize) -> bool {
        self.places[place].is_cut
    }

    /// Gives a place its power back, after its processes have ended: another boot.
    pub(crate) fn restore_power(&mut self, place: usize) -> Result<()> {
        let place = &mut self.places[place];
        if let Some(image) = &mut place.image {
            image.unmount()?;
            image.mount("defaults")?;
            place.control.boot()?;
        }
        place.is_cut = false;
        Ok(())
    }

    /// Fills a place's disk, or what has become free on it since.
    pub(crate) fn fill(&self, place: usize) -> Result<()> {
        let filler = self.filler(place);
        let file = File::options().create(true).truncate(false).write(true).open(&filler)?;
        let mut bytes = DISK_BYTES;
        while bytes >= u64::from(BLOCK_BYTES) {
            let stat = rustix::fs::statvfs(&filler)?;
            let len = file.metadata()?.len();
            bytes = bytes.min(stat.f_bavail * stat.f_frsize);
            let flags = rustix::fs::FallocateFlags::empty();
            if bytes == 0 || rustix::fs::fallocate(&file, flags, len, bytes).is_err() {
                bytes /= 2;
            }
        }
        Ok(())
    }

    /// Gives the space back.
    pub(crate) fn empty(&self, place: usize) -> Result<()> {
        match fs::remove_file(self.filler(place)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn filler(&self, place: usize) -> PathBuf {
        self.dir(place).with_file_name("filler")
    }
}

/// Has the kernel write some dirty pages of segments and journals to the disk, in no order.
fn write_some_out(dir: &Path, rng: &mut Rng) -> Result<()> {
    for path in files_in(dir) {
        if !rng.chance(300) {
            continue;
        }
        let Ok(file) = File::open(&path) else { continue };
        let pages = file.metadata()?.len() / u64::from(BLOCK_BYTES);
        for _ in 0..rng.below(4) {
            let page = rng.below(pages + 1);
            let len = rng.between(1, 16) * u64::from(BLOCK_BYTES);
            kernel::write_out(&file, page * u64::from(BLOCK_BYTES), len)?;
        }
    }
    Ok(())
}

/// All files below a directory, as far as they stay there, in order.
pub(crate) fn files_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<PathBuf> = Vec::new();
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Three addresses that were free a moment ago.
fn free_addresses() -> [String; 3] {
    let listeners = PORTS.map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback has ports"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").to_string())
}
