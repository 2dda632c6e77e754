//! Announcing: a node tells the others what it leads, and that it lives.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::cluster::Node;
use crate::partition::Handle;
use crate::raft::Role;
use crate::rpc::Context;
use crate::rpc::peer::{self, Announcement};
use crate::types::{LogId, NodeId};

/// How often a node looks whether anything has changed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it goes through all partitions although nothing has.
const GO_THROUGH_EVERY: Duration = Duration::from_secs(1);
/// How often it speaks when nothing has.
const SPEAK_EVERY: Duration = Duration::from_secs(1);
/// How often it tells everything again.
const TELL_ALL_EVERY: Duration = Duration::from_secs(30);

/// What a node leads, each with the term.
type Led = Arc<HashMap<LogId, u64>>;

/// Announces for ever: one task for each other node.
pub(super) async fn announce(context: Context) {
    let node = context.node().clone();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let now = watch::Sender::new(Led::default());
    let mut listeners: HashSet<NodeId> = HashSet::new();
    let mut speakers = tokio::task::JoinSet::new();
    let mut seen: Option<(u64, Instant)> = None;
    loop {
        ticks.tick().await;
        let changes = node.partition_host().role_changes();
        let is_seen =
            |(then, at): (u64, Instant)| then == changes && at.elapsed() < GO_THROUGH_EVERY;
        if !seen.is_some_and(is_seen) {
            seen = Some((changes, Instant::now()));
            let led = led_by(&node);
            node.leaders().learn(node.id(), led.iter().map(|(log, term)| (*log, *term)));
            now.send_if_modified(|known| {
                let is_new = **known != led;
                if is_new {
                    *known = Arc::new(led);
                }
                is_new
            });
        }
        while let Some(ended) = speakers.try_join_next() {
            listeners.remove(&ended.expect("announcing does not panic"));
        }
        for to in node.state().nodes().map(crate::cluster::command::Node::node_id) {
            if to != node.id() && listeners.insert(to) {
                let (context, led) = (context.clone(), now.subscribe());
                speakers.spawn(async move {
                    speak(&context, to, led).await;
                    to
                });
            }
        }
    }
}

/// Says for the last time that this node is about to stop, to all others.
pub(super) async fn say_goodbye(context: &Context) {
    let node = context.node();
    let others: Vec<_> = node.state().nodes().map(crate::cluster::command::Node::node_id).collect();
    for to in others.into_iter().filter(|to| *to != node.id()) {
        let Ok(channel) = context.channel(to) else { continue };
        let incarnation = node.identity().incarnation;
        let told = Announcement { incarnation, is_stopping: true, ..Announcement::default() };
        let said = peer::announce(channel, node.cluster(), node.id(), told);
        // Whoever does not hear it notices.
        let _ = timeout(SPEAK_EVERY / 2, said).await;
    }
}

fn led_by(node: &Node) -> HashMap<LogId, u64> {
    let handles = node.registry().handles();
    let status = handles.iter().map(Handle::status);
    let led = status.filter(|status| status.role == Role::Leader && status.is_writable);
    led.map(|status| (status.group, status.term)).collect()
}

/// Tells one node, as long as it is part of the cluster.
async fn speak(context: &Context, to: NodeId, now: watch::Receiver<Led>) {
    let node = context.node();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Led::default();
    let (mut spoke_at, mut all_at): (Option<Instant>, Option<Instant>) = (None, None);
    while node.state().node(to).is_some() {
        ticks.tick().await;
        let led = now.borrow().clone();
        let is_full = all_at.is_none_or(|at| at.elapsed() >= TELL_ALL_EVERY);
        let news = if is_full || !Arc::ptr_eq(&led, &told) {
            let is_news = |(log, term): &(&LogId, &u64)| is_full || told.get(log) != Some(term);
            led.iter().filter(is_news).map(|(log, term)| (*log, *term)).collect()
        } else {
            Vec::new()
        };
        let is_due = spoke_at.is_none_or(|at| at.elapsed() >= SPEAK_EVERY);
        if news.is_empty() && !is_due && !is_full {
            continue;
        }
        let message = Announcement {
            incarnation: node.identity().incarnation,
            led: news,
            is_full,
            metadata_index: node.state().applied_index(),
            is_stopping: false,
        };
        let Ok(channel) = context.channel(to) else { continue };
        spoke_at = Some(Instant::now());
        match peer::announce(channel, node.cluster(), node.id(), message).await {
            Ok(wants_full) => {
                told = led;
                all_at = if wants_full { None } else { all_at.filter(|_| !is_full).or(spoke_at) };
            }
            Err(_) => {
                all_at = None;
                tokio::time::sleep(LOOK_EVERY * 3).await;
            }
        }
    }
}
