//! The faults, and the schedule in which they strike: rounds of one or several at a time, after
//! each of which everything is healed and has to go on.

mod damage;
mod membership;
mod scripted;
mod topics;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tokio::time::sleep;

use crate::bed::{End, Weather};
use crate::cluster::Cluster;
use crate::rng::Rng;

/// How long after a heal the schedule waits for progress before it goes on without.
const PROGRESS_MAX: Duration = Duration::from_secs(40);

/// What can be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Processes are killed: one, two, all, and one that leads.
    Kill,
    KillTwo,
    KillAll,
    KillLeader,
    /// A process stands still and goes on.
    Pause,
    /// Nodes do not hear one another: one and the others; all but one; in one direction.
    Halves,
    Bridge,
    OneWay,
    /// Clients do not reach a node.
    Clients,
    /// Packets are lost, late, doubled, and overtake one another.
    Storm,
    /// Disks lose their power: of one node, of two, of all.
    PowerCut,
    PowerCutOfTwo,
    PowerCutOfAll,
    /// A disk is full for a while.
    FullDisk,
    /// Every sync takes long.
    SlowDisk,
    /// Some syncs fail; all writes fail; some reads fail.
    FailingSyncs,
    DyingDisk,
    FailingReads,
    /// The wall clock jumps.
    Clock,
    /// Partitions get another leader.
    Transfer,
    /// A node hands over what it leads, and takes it back.
    Drain,
    /// Bytes change on a disk: while the node is down, while it runs, elsewhere on every node.
    DamageWhileDown,
    DamageWhileUp,
    DamageEverywhere,
    /// A directory is gone.
    Wipe,
    /// A node that lives is replaced by a new one; so is a dead one.
    Replace,
    ReplaceDead,
    /// One node after the other ends and starts.
    Rolling,
    /// Topics are made, used, deleted and made anew.
    Topics,
    /// A voter loses its power with votes that are on no disk yet, and is asked again.
    ForgottenVotes,
    /// A leader that was cut off returns with entries of its own, and with a full disk.
    Overtaken,
}

use Fault::*;

/// What may strike together, with how often.
const TOGETHER: &[(Fault, u64)] = &[
    (Kill, 6),
    (KillTwo, 3),
    (KillAll, 3),
    (KillLeader, 8),
    (Pause, 6),
    (Halves, 8),
    (Bridge, 4),
    (OneWay, 6),
    (Clients, 3),
    (Storm, 8),
    (PowerCut, 8),
    (PowerCutOfTwo, 5),
    (PowerCutOfAll, 5),
    (FullDisk, 4),
    (SlowDisk, 4),
    (FailingSyncs, 4),
    (DyingDisk, 4),
    (FailingReads, 3),
    (Clock, 5),
    (Transfer, 6),
    (Drain, 3),
];

/// What needs a cluster that is whole, and no other fault meanwhile.
const ALONE: &[(Fault, u64)] = &[
    (DamageWhileDown, 6),
    (DamageWhileUp, 6),
    (DamageEverywhere, 5),
    (Wipe, 2),
    (Replace, 2),
    (ReplaceDead, 2),
    (Rolling, 2),
    (Topics, 3),
    (ForgottenVotes, 3),
    (Overtaken, 3),
];

impl Fault {
    /// The faults with these names, with commas between them.
    ///
    /// # Errors
    /// Which name is none.
    pub(crate) fn parse_all(names: &str) -> Result<Vec<Self>> {
        let all = || TOGETHER.iter().chain(ALONE).map(|(fault, _)| *fault);
        let parse = |name: &str| {
            let found = all().find(|fault| format!("{fault:?}") == name.trim());
            found.with_context(|| format!("{name} is none of {:?}", all().collect::<Vec<_>>()))
        };
        names.split(',').filter(|name| !name.is_empty()).map(parse).collect()
    }
}

/// The schedule of a run.
pub(crate) struct Schedule {
    pub(crate) rng: Rng,
    /// The faults to draw from; empty for all.
    pub(crate) only: Vec<Fault>,
    /// What was damaged: offsets by partition.
    struck: BTreeMap<u32, Vec<u64>>,
    round: u64,
}

impl Schedule {
    pub(crate) fn new(rng: Rng, only: Vec<Fault>) -> Self {
        Self { rng, only, struck: BTreeMap::new(), round: 0 }
    }

    /// One round: something strikes, stays for a while, and is healed.
    pub(crate) async fn round(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.round += 1;
        // Every fourth one is of those that need a cluster that is whole.
        let alone = self.draw(cluster, ALONE).filter(|_| self.round.is_multiple_of(4));
        let together = self.draw(cluster, TOGETHER);
        match alone.or(together) {
            Some(fault) if ALONE.iter().any(|(alone, _)| *alone == fault) => {
                self.alone(cluster, fault).await?;
            }
            Some(first) => self.together(cluster, first).await?,
            None => sleep(Duration::from_secs(1)).await,
        }
        let quiet = self.rng.between(300, 2_500);
        sleep(Duration::from_millis(quiet)).await;
        Ok(())
    }

    fn draw(&mut self, cluster: &Cluster, from: &[(Fault, u64)]) -> Option<Fault> {
        let can = |fault: Fault| match fault {
            Halves | Bridge | OneWay | Clients | Storm => cluster.bed.has_net(),
            PowerCut | PowerCutOfTwo | PowerCutOfAll | FullDisk | DyingDisk => {
                cluster.bed.has_disks()
            }
            ForgottenVotes => {
                cluster.bed.has_net() && cluster.bed.has_disks() && cluster.bed.has_calls()
            }
            Overtaken => cluster.bed.has_net() && cluster.bed.has_disks(),
            SlowDisk | FailingSyncs | FailingReads | Clock => cluster.bed.has_calls(),
            _ => true,
        };
        let is_wanted = |fault: Fault| self.only.is_empty() || self.only.contains(&fault);
        let can_strike = from.iter().filter(|(fault, _)| can(*fault) && is_wanted(*fault));
        let faults: Vec<_> =
            can_strike.flat_map(|(fault, times)| vec![*fault; *times as usize]).collect();
        self.rng.pick(&faults).copied()
    }

    async fn together(&mut self, cluster: &mut Cluster, first: Fault) -> Result<()> {
        self.strike(cluster, first).await?;
        for _ in 0..self.rng.below(3) {
            let wait = self.rng.between(50, 2_000);
            sleep(Duration::from_millis(wait)).await;
            if let Some(next) = self.draw(cluster, TOGETHER) {
                self.strike(cluster, next).await?;
            }
        }
        let hold = if self.rng.chance(150) { self.rng.between(4_000, 9_000) } else { 1_500 };
        let hold = self.rng.between(200, hold);
        sleep(Duration::from_millis(hold)).await;
        self.heal(cluster).await
    }

    /// Heals everything, and waits until every partition acknowledges something.
    async fn heal(&mut self, cluster: &mut Cluster) -> Result<()> {
        self.restore_power(cluster).await?;
        cluster.heal()?;
        let (at, started) = (cluster.world.history.now(), Instant::now());
        let before = cluster.world.acknowledged();
        let mut stuck: Vec<u32> = (0..cluster.world.partitions).collect();
        while !stuck.is_empty() && started.elapsed() < PROGRESS_MAX {
            sleep(Duration::from_millis(20)).await;
            let now = cluster.world.acknowledged();
            stuck.retain(|at| now[*at as usize] == before[*at as usize]);
            for place in cluster.places() {
                cluster.reap(place);
            }
        }
        let took = started.elapsed();
        cluster.world.healed(at, took, stuck);
        Ok(())
    }

    async fn restore_power(&mut self, cluster: &mut Cluster) -> Result<()> {
        for place in cluster.places() {
            if !cluster.bed.is_cut(place) {
                continue;
            }
            cluster.kill(place).await?;
            cluster.bed.restore_power(place)?;
        }
        Ok(())
    }

    /// Any of the places, or several in any order.
    fn some(&mut self, cluster: &Cluster, count: usize) -> Vec<usize> {
        let mut places = cluster.places();
        while places.len() > count {
            let at = self.rng.below(places.len() as u64) as usize;
            places.swap_remove(at);
        }
        places
    }

    fn one(&mut self, cluster: &Cluster) -> usize {
        self.some(cluster, 1)[0]
    }

    async fn strike(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<()> {
        let all = cluster.places();
        match fault {
            Kill | KillTwo | KillAll => {
                let count = [1, 2, all.len()][fault as usize - Kill as usize];
                let places = self.some(cluster, count);
                self.kill(cluster, fault, &places).await?;
            }
            KillLeader => {
                let place = cluster.leading_place(&mut self.rng).await;
                let place = place.unwrap_or(all[0]);
                self.kill(cluster, fault, &[place]).await?;
            }
            Pause => {
                let place = self.one(cluster);
                note(cluster, fault, &[place]);
                cluster.signal(place, Signal::STOP);
            }
            Halves | Bridge | OneWay | Clients | Storm => self.disturb(cluster, fault),
            PowerCut | PowerCutOfTwo | PowerCutOfAll => {
                let count = [1, 2, all.len()][fault as usize - PowerCut as usize];
                let places = self.some(cluster, count);
                self.cut_power(cluster, fault, &places).await?;
            }
            Transfer => {
                let (partition, to) =
                    (self.rng.below(cluster.world.partitions.into()), self.one(cluster));
                note(cluster, fault, &[to]);
                let (client, to) = (cluster.client(), cluster.node(to).id);
                let topic = crate::clients::TOPIC;
                let call = client.transfer_leadership(topic, partition as u32, to);
                // It may well fail while other things do.
                let _ = tokio::time::timeout(Duration::from_secs(2), call).await;
            }
            Drain => self.drain(cluster).await,
            _ => self.trouble(cluster, fault)?,
        }
        Ok(())
    }

    /// Faults of calls and disks, in one place each.
    fn trouble(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<()> {
        let place = self.one(cluster);
        note(cluster, fault, &[place]);
        if cluster.bed.is_cut(place) {
            return Ok(());
        }
        let control = cluster.bed.control(place);
        match fault {
            FullDisk => cluster.bed.fill(place)?,
            SlowDisk => control.set_sync_delay(self.rng.between(5_000, 400_000) as u32),
            FailingSyncs => control.set_failing_syncs(self.rng.between(1_000, 1_000_000) as u32),
            FailingReads => control.set_failing_reads(self.rng.between(1_000, 300_000) as u32),
            Clock => {
                let far = *self.rng.pick(&[500, 60_000, 3_600_000]).expect("there are some");
                let ahead = self.rng.between(0, 2 * far) as i64 - far as i64;
                control.set_clock(ahead);
            }
            // Writes fail under a process that goes on: what it does then is up to it.
            DyingDisk => cluster.bed.cut_power(place, &mut self.rng)?,
            _ => unreachable!("{fault:?} is no fault of calls and disks"),
        }
        let is_fatal = matches!(fault, FailingSyncs | FailingReads | DyingDisk | FullDisk);
        cluster.node(place).may_end |= is_fatal;
        Ok(())
    }

    async fn kill(&mut self, cluster: &mut Cluster, fault: Fault, places: &[usize]) -> Result<()> {
        note(cluster, fault, places);
        for place in places {
            cluster.kill(*place).await?;
        }
        // Some come back at once, the others when all is healed.
        for place in places {
            if self.rng.chance(300) && !cluster.bed.is_cut(*place) {
                cluster.spawn(*place)?;
            }
        }
        Ok(())
    }

    async fn cut_power(
        &mut self,
        cluster: &mut Cluster,
        fault: Fault,
        places: &[usize],
    ) -> Result<()> {
        note(cluster, fault, places);
        for place in places {
            cluster.node(*place).may_end = true;
            cluster.bed.cut_power(*place, &mut self.rng)?;
        }
        for place in places {
            cluster.kill(*place).await?;
        }
        for place in places {
            cluster.bed.restore_power(*place)?;
            if self.rng.chance(500) {
                cluster.spawn(*place)?;
            }
        }
        Ok(())
    }

    fn disturb(&mut self, cluster: &Cluster, fault: Fault) {
        let places = cluster.places();
        let chosen = self.one(cluster);
        note(cluster, fault, &[chosen]);
        let others: Vec<_> = places.iter().copied().filter(|place| *place != chosen).collect();
        let cut = |from: usize, to: usize| {
            cluster.bed.set_weather(End::Place(from), End::Place(to), Weather::CUT);
        };
        match fault {
            Halves => others.iter().for_each(|other| {
                cut(chosen, *other);
                cut(*other, chosen);
            }),
            // The chosen one hears everybody, the others only it.
            Bridge => others.iter().for_each(|from| {
                others.iter().filter(|to| *to != from).for_each(|to| cut(*from, *to));
            }),
            OneWay if self.rng.chance(500) => others.iter().for_each(|other| cut(chosen, *other)),
            OneWay => others.iter().for_each(|other| cut(*other, chosen)),
            Clients => {
                cluster.bed.set_weather(End::Clients, End::Place(chosen), Weather::CUT);
            }
            _ => {
                let weather = Weather {
                    lost: self.rng.below(150),
                    doubled: self.rng.below(200),
                    delay_us: (0, self.rng.between(100, 60_000)),
                };
                let ends = places.iter().map(|place| End::Place(*place)).chain([End::Clients]);
                let ends: Vec<_> = ends.collect();
                for from in &ends {
                    for to in ends.iter().filter(|to| *to != from) {
                        cluster.bed.set_weather(*from, *to, weather);
                    }
                }
            }
        }
    }

    async fn drain(&mut self, cluster: &mut Cluster) {
        let place = self.one(cluster);
        note(cluster, Drain, &[place]);
        let (client, id) = (cluster.client(), cluster.node(place).id);
        let briefly = Duration::from_secs(3);
        let _ = tokio::time::timeout(briefly, client.drain_node(id)).await;
        let hold = self.rng.between(200, 1_500);
        sleep(Duration::from_millis(hold)).await;
        let _ = tokio::time::timeout(briefly, client.undrain_node(id)).await;
    }

    async fn alone(&mut self, cluster: &mut Cluster, fault: Fault) -> Result<()> {
        self.make_whole(cluster).await?;
        match fault {
            DamageWhileDown => self.damage_while_down(cluster).await?,
            DamageWhileUp => self.damage_while_up(cluster).await?,
            DamageEverywhere => self.damage_everywhere(cluster).await?,
            Wipe => membership::wipe(self, cluster).await?,
            Replace => membership::replace(self, cluster, false).await?,
            ReplaceDead => membership::replace(self, cluster, true).await?,
            Topics => topics::turn_over(self, cluster).await?,
            ForgottenVotes => scripted::forget_votes(self, cluster).await?,
            Overtaken => scripted::overtake(self, cluster).await?,
            _ => {
                for place in cluster.places() {
                    note(cluster, fault, &[place]);
                    cluster.terminate(place).await?;
                    cluster.spawn(place)?;
                    cluster.wait_until_whole().await?;
                }
            }
        }
        self.heal(cluster).await?;
        self.make_whole(cluster).await
    }

    /// Waits until nothing is amiss; nodes that were drained lead again.
    pub(crate) async fn make_whole(&mut self, cluster: &mut Cluster) -> Result<()> {
        for place in cluster.places() {
            let (client, id) = (cluster.client(), cluster.node(place).id);
            let _ = client.undrain_node(id).await;
        }
        cluster.wait_until_whole().await
    }
}

/// Takes note of a fault.
fn note(cluster: &Cluster, fault: Fault, places: &[usize]) {
    cluster.world.fault(format!("{fault:?}: places {places:?}"));
}
