//! One run: a cluster, its clients, a schedule of faults, and the end where all is compared.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use quipu::client::Start;
use quipu::proto::server::log_service_client::LogServiceClient;
use tokio::time::sleep;

use crate::bed::Bed;
use crate::checker::{Last, Mark, Verdict, judge};
use crate::clients::{Crowd, Forward, TOPIC, World, connect, fetch};
use crate::cluster::{Cluster, PATIENCE};
use crate::faults::{Fault, Schedule};
use crate::groups::Trial;
use crate::history::{self, Event, Poll};
use crate::rng::Rng;

/// Three nodes, and room for one that comes in place of another.
pub(crate) const PLACES: usize = 4;
pub(crate) const PARTITIONS: u32 = 8;
/// The readers at the end have numbers of their own.
const LAST_READERS: u32 = 1_000_000;

pub(crate) struct Run {
    pub(crate) seed: u64,
    /// How long faults strike.
    pub(crate) time: Duration,
    /// How soon every partition has to go on after all is healed.
    pub(crate) heal_max: Duration,
    /// The faults to draw from; empty for all.
    pub(crate) only: Vec<Fault>,
    /// Where to keep what tells why a run failed.
    pub(crate) keep: Option<PathBuf>,
    /// The bug that the servers have, if they were built to have one.
    pub(crate) bug: Option<String>,
}

impl Run {
    pub(crate) async fn run(&self) -> Verdict {
        let world = Arc::new(World::new(PARTITIONS, PLACES));
        let mut rng = Rng::new(self.seed);
        let bed = Bed::lay(PLACES, rng.next()).await.expect("a directory can be made");
        let started = Cluster::start(bed, PLACES, world.clone(), self.bug.clone()).await;
        let mut cluster = started.expect("a cluster starts where nothing is amiss");
        let last = self.live(&mut cluster, &mut rng).await;
        let last = last.unwrap_or_else(|why| {
            world.history.breach(format!("{why:#}"));
            None
        });
        for said in cluster.stopped_replicas() {
            world.history.breach(said);
        }
        let events = world.history.take();
        let verdict = judge(&events, PARTITIONS, last.as_ref(), self.heal_max);
        if let Some(keep) = self.keep.as_ref().filter(|_| !verdict.breaches.is_empty()) {
            let keep = keep.join(self.seed.to_string());
            keep_all(&keep, &events, cluster.bed.root()).expect("the directory can be written");
            println!("the history and the logs of seed {} are in {keep:?}", self.seed);
        }
        verdict
    }

    async fn live(&self, cluster: &mut Cluster, rng: &mut Rng) -> Result<Option<Last>> {
        let crowd = Crowd::gather(&cluster.world, PLACES, rng);
        let group = cluster.world.group.clone();
        let trial = Trial::gather(group, PARTITIONS, rng.next(), self.time).await;
        let mut schedule = Schedule::new(Rng::new(rng.next()), self.only.clone());
        let until = Instant::now() + self.time;
        let mut struck = Ok(());
        while struck.is_ok() && Instant::now() < until {
            struck = schedule.round(cluster).await;
        }
        let healed = match struck {
            Ok(()) => schedule.make_whole(cluster).await,
            Err(why) => Err(why),
        };
        crowd.disperse().await;
        healed?;
        self.judge_group(cluster, trial).await?;
        // What counts is on the disks.
        for place in cluster.places() {
            cluster.kill(place).await?;
        }
        for place in cluster.places() {
            cluster.spawn(place)?;
        }
        cluster.wait_until_whole().await?;
        let last = read_all(cluster).await?;
        check_times(cluster, &last, rng).await?;
        Ok(Some(last))
    }
}

/// A28: where a time is in a partition, by the index and by what was read.
async fn check_times(cluster: &Cluster, last: &Last, rng: &mut Rng) -> Result<()> {
    let client = cluster.client();
    for ((_, partition), marks) in &last.replicas {
        let Some(mark) = rng.pick(marks) else { continue };
        for time_ms in [mark.append_time_ms - 1, mark.append_time_ms, mark.append_time_ms + 1] {
            let first = marks.iter().find(|mark| mark.append_time_ms >= time_ms);
            let end = last.ends[*partition as usize];
            let expected = first.map_or(end, |mark| mark.base_offset);
            let at = Start::TimeMs(time_ms);
            let found = client.list_offsets(TOPIC, vec![*partition], at).await?;
            if found[0].offset != expected {
                let found = found[0].offset;
                let what = format!("{time_ms} is at {partition}/{expected}, looked up: {found}");
                cluster.world.history.breach(what);
            }
        }
    }
    Ok(())
}

impl Run {
    async fn judge_group(&self, cluster: &Cluster, trial: Trial) -> Result<()> {
        let (verdict, told) = trial.disperse(self.heal_max).await;
        println!("the group: {verdict}");
        for breach in &verdict.breaches {
            let what = format!("the group: {:?}: {}", breach.rule, breach.why);
            cluster.world.history.breach(what);
        }
        if let (Some(keep), Some(told)) = (&self.keep, told) {
            fs::create_dir_all(keep.join(self.seed.to_string()))?;
            fs::write(keep.join(self.seed.to_string()).join("group"), told)?;
        }
        Ok(())
    }
}

/// Reads everything that each replica has.
pub(crate) async fn read_all(cluster: &mut Cluster) -> Result<Last> {
    let client = cluster.client();
    let ends = client.list_offsets(TOPIC, Vec::new(), Start::Latest).await?;
    let mut last = Last { ends: vec![0; ends.len()], ..Last::default() };
    ends.iter().for_each(|end| last.ends[end.partition as usize] = end.offset);
    for place in cluster.places() {
        let id = cluster.node(place).id;
        for (partition, end) in (0..).zip(last.ends.clone()) {
            let read = read_replica(cluster, place, partition, end).await;
            let read = read.with_context(|| format!("node {id}, partition {partition}"))?;
            last.replicas.insert((id, partition), read);
        }
    }
    Ok(last)
}

/// Reads one replica from the beginning to `end`. It may have to be mended on the way.
async fn read_replica(
    cluster: &Cluster,
    place: usize,
    partition: u32,
    end: u64,
) -> Result<Vec<Mark>> {
    let history = &cluster.world.history;
    let channel = connect(&cluster.bed.addresses(place)[0]).await.context("no connection")?;
    let mut client = LogServiceClient::new(channel);
    let (mut marks, mut from): (Vec<Mark>, u64) = (Vec::new(), 0);
    let mut since = Instant::now();
    while from < end {
        let invoked = history.now();
        let fetched = match fetch(&mut client, partition, from, Forward::Off).await {
            Ok(fetched) if fetched.next > from => fetched,
            other => {
                let why = other.err().map(|status| status.message().to_owned());
                ensure!(since.elapsed() < PATIENCE, "nothing can be read at {from}: {why:?}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        since = Instant::now();
        let known = marks.last().map_or(0, |mark| mark.base_offset + u64::from(mark.records));
        marks.extend(fetched.marks.iter().filter(|mark| mark.base_offset >= known));
        let poll = Poll {
            invoked,
            ended: history.now(),
            reader: LAST_READERS + place as u32,
            session: 0,
            place: Some(place),
            partition,
            from,
            next: fetched.next,
            high_watermark: Some(fetched.high_watermark),
            log_start: Some(fetched.log_start),
            records: fetched.records,
        };
        from = fetched.next;
        history.note(Event::Poll(poll));
    }
    Ok(marks)
}

/// Keeps the history and what the nodes have said.
fn keep_all(keep: &Path, events: &[Event], root: &Path) -> Result<()> {
    fs::create_dir_all(keep)?;
    history::write(events, &mut BufWriter::new(File::create(keep.join("history"))?))?;
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::copy(&path, keep.join(path.file_name().expect("a file has a name")))?;
        }
    }
    Ok(())
}
