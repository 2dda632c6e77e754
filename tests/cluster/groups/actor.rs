//! A member that lives through a churn: it reads, commits and lets go in its own manner, comes back
//! when its stream breaks, and takes note of all it is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::offset_commit_outcome::Outcome;
use quipu::proto::client::{
    Assignment, AssignmentCommit, AssignmentCommitOutcome, CommitOffsetsRequest, ConsumeCommit,
    ConsumeCredit, ConsumeData, ConsumeJoin, ConsumeLeave, ConsumeReleased, ErrorReason,
    LostReason, OffsetCommit, ResumePosition,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tonic::transport::{Channel, Endpoint};

use super::history::{Held, History, What};
use super::member::{GROUP, Groups, Member, TOPIC, outcome, reason};

const CALL_MAX: Duration = Duration::from_secs(5);
/// A member that says nothing any more goes on committing for longer than its session.
const ZOMBIE_MAX: Duration = Duration::from_secs(6);

/// A small generator (`SplitMix64`): equal seeds, equal draws.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What all share.
pub struct World {
    pub history: History,
    /// Where clients find the servers that run.
    pub addresses: RwLock<Vec<Option<SocketAddr>>>,
    ids: AtomicU64,
}

impl World {
    pub fn new(addresses: Vec<Option<SocketAddr>>) -> Self {
        let (history, ids) = (History::new(), AtomicU64::new(1));
        Self { history, addresses: RwLock::new(addresses), ids }
    }

    pub fn id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection to any server that runs.
    pub async fn connect(&self, rng: &mut Rng) -> Channel {
        loop {
            let running: Vec<_> =
                self.addresses.read().unwrap().iter().flatten().copied().collect();
            let address = running[rng.below(running.len() as u64) as usize];
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            match endpoint.connect_timeout(CALL_MAX).timeout(CALL_MAX * 100).connect().await {
                Ok(channel) => return channel,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// How a member behaves.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    pub commit_every: Duration,
    /// How long it takes to let go; `None` for never.
    pub release_after: Option<Duration>,
}

/// How a member's life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Leave,
    /// It drops its stream, and may come back at once.
    Vanish,
    /// It drops its stream, and goes on committing.
    Die,
    /// It keeps its stream, says nothing more, and goes on committing.
    FallSilent,
}

/// What a member that was there before comes back with.
#[derive(Debug, Clone, Default)]
pub struct Revenant {
    member_id: String,
    positions: BTreeMap<u32, ResumePosition>,
}

struct Have {
    held: Held,
    topic_id: String,
    next: u64,
    committed: u64,
    release_at: Option<Instant>,
    is_revoked: bool,
}

/// One stream of a member.
struct Actor {
    world: Arc<World>,
    manners: Manners,
    rng: Rng,
    /// Until it drops its stream.
    member: Option<Member>,
    member_id: String,
    number: u64,
    had: Revenant,
    have: BTreeMap<u64, Have>,
    /// The commits of each request that waits for its answer.
    asked: BTreeMap<u64, Vec<u64>>,
    requests: u64,
}

enum End {
    Broken,
    Ordered(Order),
}

/// Lives until it is ordered to end, on one stream after the other. What is left of it can come
/// back.
pub async fn live(
    world: Arc<World>,
    seed: u64,
    manners: Manners,
    mut had: Revenant,
    mut orders: mpsc::Receiver<Order>,
) -> Revenant {
    let mut rng = Rng(seed);
    loop {
        let Some(mut actor) = Actor::join(&world, &mut rng, manners, had.clone()).await else {
            had.member_id.clear();
            sleep(Duration::from_millis(30)).await;
            match orders.try_recv() {
                Ok(_) | Err(mpsc::error::TryRecvError::Disconnected) => return had,
                Err(mpsc::error::TryRecvError::Empty) => continue,
            }
        };
        let end = actor.stay(&mut orders).await;
        let member = actor.number;
        match end {
            End::Broken => world.history.note(What::Gone { member }),
            End::Ordered(order) => {
                actor.end(order).await;
                return actor.had;
            }
        }
        had = actor.had;
    }
}

impl Actor {
    async fn join(
        world: &Arc<World>,
        rng: &mut Rng,
        manners: Manners,
        had: Revenant,
    ) -> Option<Self> {
        let client = Groups::new(world.connect(rng).await);
        let join = ConsumeJoin {
            member_id: had.member_id.clone(),
            positions: had.positions.values().cloned().collect(),
            ..ConsumeJoin::default()
        };
        let joining = timeout(CALL_MAX * 3, Member::join_through(client, join));
        let member = joining.await.ok()?.ok()?;
        let number = world.id();
        world.history.note(What::Joined { member: number });
        let had = Revenant { member_id: member.joined.member_id.clone(), ..had };
        Some(Self {
            world: world.clone(),
            manners,
            rng: Rng(rng.next()),
            member_id: member.joined.member_id.clone(),
            member: Some(member),
            number,
            had,
            have: BTreeMap::new(),
            asked: BTreeMap::new(),
            requests: 0,
        })
    }

    fn member(&mut self) -> &mut Member {
        self.member.as_mut().expect("it has its stream until it ends")
    }

    async fn stay(&mut self, orders: &mut mpsc::Receiver<Order>) -> End {
        let mut commits = interval(self.manners.commit_every);
        commits.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.have.values().filter_map(|have| have.release_at).min();
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                order = orders.recv() => return End::Ordered(order.unwrap_or(Order::Leave)),
                () = sleep_until(due) => self.release().await,
                _ = commits.tick() => self.commit().await,
                told = self.member().hear() => match told {
                    Ok(Some(Tell::GoAway(_)) | None) => return End::Broken,
                    Ok(Some(told)) => self.take(told).await,
                    Err(status) => {
                        // Nobody can come back as one that is out.
                        if reason(&status) == "UNKNOWN_MEMBER" {
                            self.had.member_id.clear();
                        }
                        return End::Broken;
                    }
                },
            }
        }
    }

    async fn take(&mut self, told: Tell) {
        match told {
            Tell::Assigned(assigned) => {
                assigned.assignments.into_iter().for_each(|assignment| self.get(assignment));
            }
            Tell::Data(data) => self.read(data).await,
            Tell::Revoke(revoke) => {
                let after = self.manners.release_after;
                for number in revoke.assignments {
                    let Some(have) = self.have.get_mut(&number) else { continue };
                    have.is_revoked = true;
                    have.release_at = after.map(|after| Instant::now() + after);
                    self.world.history.note(What::Revoked(have.held));
                }
                self.commit().await;
            }
            Tell::Lost(lost) => {
                let is_moved = lost.reason() == LostReason::Moved;
                for number in lost.assignments {
                    let Some(Have { held, .. }) = self.have.remove(&number) else { continue };
                    self.world.history.note(What::Lost { held, is_moved });
                }
            }
            Tell::Committed(committed) => {
                let ids = self.asked.remove(&committed.request_id).unwrap_or_default();
                ids.into_iter().zip(&committed.outcomes).for_each(|(id, o)| self.answered(id, o));
            }
            Tell::Joined(_) | Tell::Gap(_) | Tell::Positions(_) | Tell::GoAway(_) => {}
        }
    }

    fn get(&mut self, assignment: Assignment) {
        let Assignment { partition, generation, next_offset, .. } = assignment;
        let held = Held { member: self.number, partition, generation };
        let before = self.had.positions.get(&partition).map(|position| position.generation);
        let resumed = before.filter(|_| assignment.is_resumed);
        self.world.history.note(What::Assigned { held, next_offset, resumed });
        let have = Have {
            held,
            topic_id: assignment.topic_id,
            next: next_offset,
            committed: next_offset,
            release_at: None,
            is_revoked: false,
        };
        self.remember(&have);
        self.have.insert(assignment.assignment, have);
    }

    fn remember(&mut self, have: &Have) {
        let Held { partition, generation, .. } = have.held;
        let (topic_id, next_offset) = (have.topic_id.clone(), have.next);
        let position = ResumePosition { topic_id, partition, generation, next_offset };
        self.had.positions.insert(partition, position);
    }

    async fn read(&mut self, data: ConsumeData) {
        let bytes = data.cost_bytes;
        self.member().say(Told::Credit(ConsumeCredit { bytes })).await;
        self.note_read(&data);
    }

    fn note_read(&mut self, data: &ConsumeData) {
        let Some(mut have) = self.have.remove(&data.assignment) else { return };
        for batch in &data.batches {
            let (from, held) = (batch.base_offset, have.held);
            let to = from + u64::from(batch.record_count);
            self.world.history.note(What::Delivered { held, from, to });
        }
        have.next = data.next_offset;
        self.remember(&have);
        self.have.insert(data.assignment, have);
    }

    fn answered(&self, id: u64, told: &AssignmentCommitOutcome) {
        match outcome(told) {
            Ok(_) => self.world.history.note(What::CommitTaken { id }),
            Err(ErrorReason::OutcomeUnknown) => {}
            Err(_) => self.world.history.note(What::CommitRefused { id }),
        }
    }

    /// Commits all or some of what it has read and not committed.
    async fn commit(&mut self) {
        let mut ids = Vec::new();
        let mut offsets = Vec::new();
        for (assignment, have) in
            self.have.iter_mut().filter(|(_, have)| have.committed < have.next)
        {
            let is_all = have.is_revoked || self.rng.below(3) > 0;
            let more = have.next - have.committed;
            let more = if is_all { more } else { 1 + self.rng.below(more) };
            have.committed += more;
            let (id, held, offset) = (self.world.id(), have.held, have.committed);
            self.world.history.note(What::CommitSent { id, held, offset });
            ids.push(id);
            let (assignment, next_offset) = (*assignment, offset);
            offsets.push(AssignmentCommit { assignment, next_offset, ..Default::default() });
        }
        if !ids.is_empty() {
            self.requests += 1;
            let request_id = self.requests;
            self.asked.insert(request_id, ids);
            self.member().say(Told::Commit(ConsumeCommit { request_id, offsets })).await;
        }
    }

    /// Lets go of what is due.
    async fn release(&mut self) {
        self.commit().await;
        let now = Instant::now();
        let is_due = |have: &Have| have.release_at.is_some_and(|at| at <= now);
        let due = self.have.iter().filter(|(_, have)| is_due(have)).map(|(number, _)| *number);
        let assignments: Vec<u64> = due.collect();
        for number in &assignments {
            let have = self.have.remove(number).expect("it was just seen");
            self.world.history.note(What::Released(have.held));
        }
        self.member().say(Told::Released(ConsumeReleased { assignments })).await;
    }

    async fn end(&mut self, order: Order) {
        if order == Order::Leave {
            self.commit().await;
            // Its commits are answered before it is out.
            self.world.history.note(What::Gone { member: self.number });
            self.member().say(Told::Leave(ConsumeLeave {})).await;
            let last = async {
                while let Ok(Some(told)) = self.member().hear().await {
                    self.take(told).await;
                }
            };
            let _ = timeout(CALL_MAX, last).await;
            return;
        }
        self.world.history.note(What::Gone { member: self.number });
        match order {
            Order::Leave | Order::Vanish => {}
            Order::Die => self.haunt(false).await,
            Order::FallSilent => self.haunt(true).await,
        }
    }

    /// Commits what it had, little by little, as if it were still a member.
    async fn haunt(&mut self, keeps_stream: bool) {
        let mut client = Groups::new(self.world.connect(&mut self.rng).await);
        match keeps_stream {
            true => self.member().be_silent(),
            false => self.member = None,
        }
        let until = Instant::now() + ZOMBIE_MAX;
        while Instant::now() < until && !self.have.is_empty() {
            if keeps_stream {
                let soon = Duration::from_millis(1);
                while let Ok(Ok(Some(told))) = timeout(soon, self.member().hear()).await {
                    self.overhear(&told);
                }
            }
            if !self.commit_as_stranger(&mut client).await {
                client = Groups::new(self.world.connect(&mut self.rng).await);
            }
        }
    }

    /// Takes note of records only: it is past caring for the rest.
    fn overhear(&mut self, told: &Tell) {
        match told {
            Tell::Data(data) => self.note_read(data),
            Tell::Committed(committed) => {
                let ids = self.asked.remove(&committed.request_id).unwrap_or_default();
                ids.into_iter().zip(&committed.outcomes).for_each(|(id, o)| self.answered(id, o));
            }
            _ => {}
        }
    }

    /// Commits one record more of some partitions by a call of its own. What is refused for good it
    /// has no more. False if the call failed.
    async fn commit_as_stranger(&mut self, client: &mut Groups) -> bool {
        let mut asked = Vec::new();
        let mut offsets = Vec::new();
        for (number, have) in &mut self.have {
            // It keeps some for the moment when the partition is somebody else's.
            let more = u64::from(self.rng.below(4) == 0);
            have.committed = have.next.min(have.committed + more);
            let (id, held, offset) = (self.world.id(), have.held, have.committed);
            self.world.history.note(What::CommitSent { id, held, offset });
            asked.push((id, *number));
            offsets.push(OffsetCommit {
                topic: TOPIC.to_owned(),
                partition: held.partition,
                next_offset: offset,
                generation: held.generation,
                ..OffsetCommit::default()
            });
        }
        let member_id = self.member_id.clone();
        let request = CommitOffsetsRequest { group: GROUP.to_owned(), member_id, offsets };
        let answer = timeout(CALL_MAX, client.commit_offsets(request)).await;
        let Ok(Ok(answer)) = answer else { return false };
        let outcomes = answer.into_inner().outcomes;
        for ((id, number), outcome) in asked.into_iter().zip(outcomes) {
            match outcome.outcome.expect("an outcome says something") {
                Outcome::NextOffset(_) => self.world.history.note(What::CommitTaken { id }),
                Outcome::Error(error) if error.reason() == ErrorReason::IllegalGeneration => {
                    self.have.remove(&number);
                    self.world.history.note(What::CommitRefused { id });
                }
                Outcome::Error(_) => {}
            }
        }
        true
    }
}
