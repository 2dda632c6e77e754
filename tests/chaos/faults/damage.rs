//! Bytes that change on disks, where others still have what was there.
//!
//! A batch is struck in one place only, ever: what all replicas have lost, no server can bring
//! back. The last records are left alone: bytes that were synced last and changed before anything
//! else was written look like a write that was cut off, which is a known limit.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{Fault, Schedule, note};
use crate::bed::files_in;
use crate::clients::{Forward, connect, fetch};
use crate::cluster::Cluster;
use crate::value::Value;
use quipu::proto::server::log_service_client::LogServiceClient;

/// How far from the end, and from one another, damage strikes, in records: more than a batch has.
const APART: u64 = 2_000;
const TRIES: usize = 20;

impl Schedule {
    pub(super) async fn damage_while_down(&mut self, cluster: &mut Cluster) -> Result<()> {
        let place = self.one(cluster);
        note(cluster, Fault::DamageWhileDown, &[place]);
        let blows = self.aim(cluster, place, 1, 3).await?;
        match self.rng.chance(500) {
            true => cluster.kill(place).await?,
            false => cluster.terminate(place).await?,
        }
        self.strike_all(cluster, place, &blows)?;
        if self.rng.chance(400) {
            self.damage_derived(cluster, place)?;
        }
        cluster.spawn(place)
    }

    pub(super) async fn damage_while_up(&mut self, cluster: &mut Cluster) -> Result<()> {
        let place = self.one(cluster);
        note(cluster, Fault::DamageWhileUp, &[place]);
        let blows = self.aim(cluster, place, 1, 3).await?;
        self.strike_all(cluster, place, &blows)
    }

    /// Each node loses something that the others have.
    pub(super) async fn damage_everywhere(&mut self, cluster: &mut Cluster) -> Result<()> {
        let places = cluster.places();
        note(cluster, Fault::DamageEverywhere, &places);
        let is_down = self.rng.chance(500);
        let mut blows = Vec::new();
        for place in &places {
            blows.push(self.aim(cluster, *place, 1, 2).await?);
        }
        if is_down {
            for place in &places {
                cluster.kill(*place).await?;
            }
        }
        for (place, blows) in places.iter().zip(blows) {
            self.strike_all(cluster, *place, &blows)?;
        }
        places.into_iter().filter(|_| is_down).try_for_each(|place| cluster.spawn(place))
    }

    /// Chooses records that were not near any damage yet, and reads them as long as all is well.
    async fn aim(
        &mut self,
        cluster: &Cluster,
        place: usize,
        least: u64,
        most: u64,
    ) -> Result<Vec<Value>> {
        let server = &cluster.bed.addresses(place)[0];
        let channel = connect(server).await.context("a node that is whole takes connections")?;
        let mut client = LogServiceClient::new(channel);
        let wanted = self.rng.between(least, most) as usize;
        let mut blows = Vec::new();
        for _ in 0..TRIES {
            let partition = self.rng.below(cluster.world.partitions.into()) as u32;
            let end = fetch(&mut client, partition, 0, Forward::On).await?.high_watermark;
            let Some(room) = end.checked_sub(APART).filter(|room| *room > 0) else { continue };
            let offset = self.rng.below(room);
            let struck = self.struck.entry(partition).or_default();
            if struck.iter().any(|before| before.abs_diff(offset) < APART) {
                continue;
            }
            let fetched = fetch(&mut client, partition, offset, Forward::On).await?;
            let Some((_, Some(value))) = fetched.records.first() else { continue };
            struck.push(offset);
            blows.push(*value);
            if blows.len() == wanted {
                break;
            }
        }
        Ok(blows)
    }

    /// Changes a byte or more of records wherever they stand in the logs of a place. Those that
    /// were sent compressed stand nowhere.
    fn strike_all(&mut self, cluster: &Cluster, place: usize, values: &[Value]) -> Result<()> {
        let segments: Vec<PathBuf> = of_kind(cluster, place, "seg");
        for value in values {
            let needle = value.bytes();
            let found = segments.iter().find_map(|path| {
                let content = fs::read(path).ok()?;
                let at = content.windows(needle.len()).position(|found| found == needle)?;
                Some((path, at))
            });
            let Some((path, at)) = found else { continue };
            let at = at as u64 + self.rng.below(needle.len() as u64);
            let len = if self.rng.chance(700) { 1 } else { self.rng.between(2, 200) };
            let what = format!("Damage: {value:?} at {place}, {len} bytes at {at} of {path:?}");
            cluster.world.fault(what);
            let file = fs::File::options().read(true).write(true).open(path)?;
            let end = file.metadata()?.len();
            for at in at..(at + len).min(end) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                file.write_all_at(&[byte[0] ^ (1 << self.rng.below(8))], at)?;
            }
        }
        Ok(())
    }

    /// Changes bytes of what is there twice or can be made again: an index, and one copy of the
    /// journal.
    fn damage_derived(&mut self, cluster: &Cluster, place: usize) -> Result<()> {
        let copies = of_kind(cluster, place, "a");
        let indexes = of_kind(cluster, place, "idx");
        for path in [self.rng.pick(&copies), self.rng.pick(&indexes)].into_iter().flatten() {
            let mut bytes = fs::read(path)?;
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let at = self.rng.below(end as u64 + 1) as usize;
            cluster.world.fault(format!("Damage: a bit at {at} of {path:?}"));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << self.rng.below(8);
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }
}

fn of_kind(cluster: &Cluster, place: usize, extension: &str) -> Vec<PathBuf> {
    let is_it = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    files_in(cluster.bed.dir(place)).into_iter().filter(is_it).collect()
}
