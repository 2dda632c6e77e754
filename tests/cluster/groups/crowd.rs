//! The members of a churn, who come and go, and others who ask about their group or reset it.

use std::sync::Arc;
use std::time::Duration;

use quipu::proto::client::{
    FetchOffsetsRequest, GroupOffset, ResetOffsetsRequest, TopicPartitions,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::actor::{Manners, Order, Revenant, Rng, World, live};
use super::history::{Last, What};
use super::member::{GROUP, Groups, TOPIC, earliest};

const CALL_MAX: Duration = Duration::from_secs(10);
const DRAIN_MAX: Duration = Duration::from_secs(40);
/// How many members there are in each third of the time.
const SIZES: [usize; 3] = [2, 3, 10];

/// How to tell a member to end, and what is left of it then.
type Life = (mpsc::Sender<Order>, JoinHandle<Revenant>);

/// The members.
pub struct Crowd {
    world: Arc<World>,
    rng: Rng,
    /// The first one stays to the end.
    members: Vec<Life>,
    /// Those that were told to end, and may go on committing for a while.
    ending: Vec<JoinHandle<Revenant>>,
    dead: Vec<Revenant>,
}

impl Crowd {
    pub fn new(world: &Arc<World>, rng: Rng) -> Self {
        let (members, ending, dead) = Default::default();
        let mut crowd = Self { world: world.clone(), rng, members, ending, dead };
        let (commit_every, release_after) =
            (Duration::from_millis(50), Some(Duration::from_millis(20)));
        crowd.start(Manners { commit_every, release_after }, Revenant::default());
        crowd
    }

    fn start(&mut self, manners: Manners, revenant: Revenant) {
        let (orders, ordered) = mpsc::channel(1);
        let seed = self.rng.next();
        let life = tokio::spawn(live(self.world.clone(), seed, manners, revenant, ordered));
        self.members.push((orders, life));
    }

    pub async fn run(&mut self, time: Duration, until: Instant) {
        loop {
            sleep(Duration::from_millis(50 + self.rng.below(350))).await;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let third = ((time - left).as_millis() * 3 / time.as_millis().max(1)) as usize;
            self.bury().await;
            let size = SIZES[third.min(2)];
            let is_full = self.members.len() >= size;
            if !is_full && (self.members.len() < 2 || self.rng.below(4) > 0) {
                self.add();
            } else if self.members.len() > 1 {
                self.end_one().await;
            }
        }
    }

    fn add(&mut self) {
        let release_after = match self.rng.below(6) {
            0 => None,
            1 => Some(Duration::from_millis(500 + self.rng.below(1_500))),
            _ => Some(Duration::from_millis(self.rng.below(100))),
        };
        let commit_every = Duration::from_millis(20 + self.rng.below(800));
        let revenant = match self.dead.len() as u64 {
            0 => Revenant::default(),
            dead if self.rng.below(3) > 0 => {
                let at = self.rng.below(dead);
                self.dead.swap_remove(at as usize)
            }
            _ => Revenant::default(),
        };
        self.start(Manners { commit_every, release_after }, revenant);
    }

    async fn end_one(&mut self) {
        let at = 1 + self.rng.below(self.members.len() as u64 - 1);
        let (orders, life) = self.members.swap_remove(at as usize);
        let order = match self.rng.below(4) {
            0 => Order::Leave,
            1 => Order::Vanish,
            2 => Order::Die,
            _ => Order::FallSilent,
        };
        let _ = orders.send(order).await;
        self.ending.push(life);
    }

    /// Keeps what is left of those that have ended.
    async fn bury(&mut self) {
        let (ended, ending) = self.ending.drain(..).partition(JoinHandle::is_finished);
        self.ending = ending;
        let ended: Vec<JoinHandle<Revenant>> = ended;
        for life in ended {
            self.dead.push(life.await.unwrap());
        }
    }

    /// Has all but the first leave, and waits until the last ghost is gone.
    pub async fn disperse(&mut self) {
        for (orders, life) in self.members.drain(1..) {
            let _ = orders.send(Order::Leave).await;
            self.ending.push(life);
        }
        for life in self.ending.drain(..) {
            life.await.unwrap();
        }
    }

    pub async fn end(&mut self) {
        for (orders, life) in self.members.drain(..) {
            let _ = orders.send(Order::Leave).await;
            life.await.unwrap();
        }
    }
}

async fn fetch(client: &mut Groups) -> Option<Vec<GroupOffset>> {
    let request = FetchOffsetsRequest { group: GROUP.to_owned(), topics: Vec::new() };
    let answer = timeout(CALL_MAX, client.fetch_offsets(request)).await;
    Some(answer.ok()?.ok()?.into_inner().offsets)
}

/// Looks where the group is, now and then.
pub async fn look(world: Arc<World>, mut rng: Rng, ended: watch::Receiver<bool>) {
    while !*ended.borrow() {
        sleep(Duration::from_millis(50 + rng.below(100))).await;
        let mut client = Groups::new(world.connect(&mut rng).await);
        let id = world.id();
        world.history.note(What::LookSent { id });
        for found in fetch(&mut client).await.unwrap_or_default() {
            if found.error.is_none() {
                let (partition, offset) = (found.partition, found.next_offset);
                world.history.note(What::Seen { id, partition, offset });
            }
        }
    }
}

/// Resets a partition to its beginning, now and then.
pub async fn reset(world: Arc<World>, partitions: u32, mut rng: Rng, ended: watch::Receiver<bool>) {
    let mut due = Instant::now();
    while !*ended.borrow() {
        sleep(Duration::from_millis(20)).await;
        if Instant::now() < due {
            continue;
        }
        due = Instant::now() + Duration::from_millis(500 + rng.below(1_500));
        let partition = rng.below(partitions.into()) as u32;
        let topics = vec![TopicPartitions { topic: TOPIC.to_owned(), partitions: vec![partition] }];
        let request =
            ResetOffsetsRequest { group: GROUP.to_owned(), topics, to: earliest(), dry_run: false };
        let mut client = Groups::new(world.connect(&mut rng).await);
        world.history.note(What::ResetSent { partition, to: 0 });
        let answer = timeout(CALL_MAX, client.reset_offsets(request)).await;
        let Ok(Ok(answer)) = answer else { continue };
        if answer.into_inner().resets.iter().all(|reset| reset.error.is_none()) {
            world.history.note(What::ResetDone { partition });
        }
    }
}

/// Waits until the group is at the end. Returns where it is.
pub async fn drain(world: &World, rng: &mut Rng) -> Vec<Last> {
    let until = Instant::now() + DRAIN_MAX;
    let mut last = Vec::new();
    while Instant::now() < until {
        sleep(Duration::from_millis(100)).await;
        let mut client = Groups::new(world.connect(rng).await);
        let Some(found) = fetch(&mut client).await else { continue };
        let is_known = found.iter().all(|found| found.error.is_none());
        last = found
            .into_iter()
            .map(|found| Last {
                partition: found.partition,
                committed: found.next_offset,
                high_watermark: found.high_watermark,
            })
            .collect();
        if is_known && last.iter().all(|last| last.committed == last.high_watermark) {
            break;
        }
    }
    last
}
