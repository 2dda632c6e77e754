//! Partitions that do not move do not pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quipu::proto::client::consume_request::Message as Told;
use quipu::proto::client::consume_response::Message as Tell;
use quipu::proto::client::{ConsumeCredit, ConsumeLeave};

use super::member::{GROUP, Member, TOPIC, group};
use super::setup::{create_topic, groups, produce, produce_through, producer};
use crate::support::Cluster;

const PARTITIONS: u32 = 12;
/// The one that is looked at: whoever has it keeps it, because the first ones are kept.
const WATCHED: u32 = 0;
const TURNS: usize = 60;
const PAUSE_MAX: Duration = Duration::from_secs(10);
const BASELINE: Duration = Duration::from_secs(8);

/// The gaps between deliveries of a partition.
#[derive(Default)]
struct Gaps {
    last: Mutex<Option<Instant>>,
    longest_us: AtomicU64,
    moves: AtomicU64,
}

impl Gaps {
    fn delivered(&self) {
        let now = Instant::now();
        if let Some(last) = self.last.lock().unwrap().replace(now) {
            let gap = u64::try_from((now - last).as_micros()).unwrap();
            self.longest_us.fetch_max(gap, Ordering::Relaxed);
        }
    }

    /// The longest gap since this was asked before.
    fn longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

/// Reads as a member for ever, and lets go of what it is asked for at once.
async fn read(mut member: Member, gaps: Arc<Gaps>) {
    loop {
        match member.told().await.unwrap().expect("nobody ends the stream") {
            Tell::Data(data) => {
                let bytes = data.cost_bytes;
                member.say(Told::Credit(ConsumeCredit { bytes })).await;
                let of = member.assigned.get(&data.assignment);
                if of.is_some_and(|of| of.partition == WATCHED) {
                    gaps.delivered();
                }
            }
            Tell::Assigned(assigned) => {
                let watched = assigned.assignments.iter().filter(|a| a.partition == WATCHED);
                gaps.moves.fetch_add(watched.count() as u64, Ordering::Relaxed);
            }
            Tell::Revoke(revoke) => member.release(revoke.assignments).await,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_does_not_move_goes_on_while_members_join_and_leave() {
    let cluster = Cluster::start(3).await;
    create_topic(&cluster, TOPIC, PARTITIONS).await;
    groups(&cluster, 0).await.create_group(group()).await.unwrap();
    let gaps = Arc::new(Gaps::default());
    let mut readers = Vec::new();
    for n in 0..2 {
        let mut member = Member::join(&cluster, n).await;
        // The first one lets go of what the second one gets.
        member.until(|member, _| (!member.assigned.is_empty()).then_some(())).await;
        gaps.moves.fetch_add(u64::from(n == 0), Ordering::Relaxed);
        readers.push(tokio::spawn(read(member, gaps.clone())));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut client, over) = (producer(&cluster, 0).await, is_over.clone());
    let producing = tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            produce_through(&mut client, WATCHED, &[0; 8]).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    produce(&cluster, 1, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let moves = gaps.moves.load(Ordering::Relaxed);
    gaps.longest();
    tokio::time::sleep(BASELINE).await;
    let baseline = gaps.longest();
    let began = Instant::now();
    for n in 0..TURNS {
        let mut guest = Member::join(&cluster, n % 3).await;
        guest.until(|guest, _| (guest.assigned.len() == 4).then_some(())).await;
        guest.say(Told::Leave(ConsumeLeave {})).await;
        while guest.told().await.unwrap().is_some() {}
    }
    let (took, longest) = (began.elapsed(), gaps.longest());
    eprintln!(
        "group {GROUP}: the longest pause is {baseline:?} in {BASELINE:?} without, and {longest:?} \
         in {took:?} with {TURNS} members that join and leave"
    );
    is_over.store(true, Ordering::Relaxed);
    producing.await.unwrap();
    assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader has failed");
    assert_eq!(gaps.moves.load(Ordering::Relaxed), moves, "it moved");
    // A busy machine makes any reader wait, but not as long as one that was stopped for others.
    assert!(longest > Duration::ZERO && longest < PAUSE_MAX);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}
