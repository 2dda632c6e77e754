//! A consumer group whose members come, leave, die and fall silent while everything else goes
//! wrong, too: the members and the checker of the tests of groups.

#[path = "../../cluster/groups/actor.rs"]
mod actor;
#[path = "../../cluster/groups/checker.rs"]
mod checker;
#[path = "../../cluster/groups/crowd.rs"]
mod crowd;
#[path = "../../cluster/groups/history.rs"]
mod history;
#[path = "../../cluster/groups/member.rs"]
mod member;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use self::actor::Rng;
pub(crate) use self::actor::World;
pub(crate) use self::checker::Verdict;
use self::checker::{Rules, judge};
use self::crowd::{Crowd, drain, look};
use self::history::What;
pub(crate) use self::member::TOPIC;
use self::member::{Groups, group};

/// A session, and what a partition may take beyond it.
const ORPHAN_MAX: Duration = Duration::from_secs(3 + 2);

/// Takes note of a fault, or of the end of all.
pub(crate) fn note_fault(world: &World, what: &str) {
    world.history.note(What::Fault(what.to_owned()));
}

/// The group, until it is judged.
pub(crate) struct Trial {
    world: Arc<World>,
    partitions: u32,
    seed: u64,
    ending: watch::Sender<bool>,
    looker: JoinHandle<()>,
    crowd: JoinHandle<Crowd>,
}

impl Trial {
    /// Makes the group and has members come and go for `time`.
    pub(crate) async fn gather(
        world: Arc<World>,
        partitions: u32,
        seed: u64,
        time: Duration,
    ) -> Self {
        let mut rng = Rng(seed);
        let mut groups = Groups::new(world.connect(&mut rng).await);
        groups.create_group(group()).await.expect("a group can be made where nothing is amiss");
        let (ending, ended) = watch::channel(false);
        let looker = tokio::spawn(look(world.clone(), Rng(rng.next()), ended));
        let mut crowd = Crowd::new(&world, Rng(rng.next()));
        let crowd = tokio::spawn(async move {
            crowd.run(time, Instant::now() + time).await;
            crowd
        });
        Self { world, partitions, seed, ending, looker, crowd }
    }

    /// Has all but one member leave, waits until that one is at the end, and judges what they saw.
    /// Also returns what happened around the first breach. `heal_max` is how long the partitions
    /// themselves may take after a fault.
    pub(crate) async fn disperse(self, heal_max: Duration) -> (Verdict, Option<String>) {
        self.ending.send_replace(true);
        let mut crowd = self.crowd.await.expect("no member panics");
        self.looker.await.expect("who looks does not panic");
        crowd.disperse().await;
        sleep(Duration::from_millis(500)).await;
        let last = drain(&self.world, &mut Rng(self.seed)).await;
        crowd.end().await;
        let events = self.world.history.events();
        let rules = Rules { partitions: self.partitions, orphan_max: ORPHAN_MAX + heal_max };
        let verdict = judge(&events, &last, rules);
        let first = verdict.breaches.first().map(|breach| breach.event);
        let told = first.map(|first| {
            let mut told = String::new();
            let near = events.iter().enumerate().take(first + 50).skip(first.saturating_sub(500));
            for (n, event) in near {
                let _ = writeln!(told, "{n:>6} {:>9.3?} {:?}", event.at, event.what);
            }
            told
        });
        (verdict, told)
    }
}
