//! Sessions: the members that a node serves, and which of them have been silent for too long.
//!
//! The node that serves a member watches over it. The coordinator only watches over nodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cluster::State;
use crate::cluster::command::Id;
use crate::cluster::group::{Group, Leaving, Member};
use crate::types::NodeId;

/// How long a member without a lasting name may be without a stream: it has crashed, or is on its
/// way to another node.
pub const AWAY_MAX: Duration = Duration::from_secs(5);

/// How often members are looked at, at least.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long a member may be away from its node before it is out.
pub fn away_max(group: &Group, member: &Member) -> Duration {
    let timeout = session_timeout(group);
    if member.instance.is_empty() { timeout.min(AWAY_MAX) } else { timeout }
}

/// How long a member that has a stream may be silent.
pub fn session_timeout(group: &Group) -> Duration {
    Duration::from_millis(group.session_timeout_ms.into())
}

/// A group and one of its members.
type Key = (Id, Id);

/// When a member that has a stream was last heard, as milliseconds of this process.
#[derive(Debug)]
struct Beat {
    began: Instant,
    heard_ms: AtomicU64,
}

impl Beat {
    fn now() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), heard_ms: AtomicU64::new(0) })
    }

    fn hear(&self) {
        self.heard_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn heard(&self) -> Instant {
        self.began + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed))
    }
}

/// Whether a member has a stream here.
#[derive(Debug)]
enum Presence {
    Here(Arc<Beat>),
    AwaySince(Instant),
}

#[derive(Debug)]
struct Entry {
    /// The member's session; 0 for a member that this process has not seen.
    session: u64,
    presence: Presence,
}

/// What the streams of a group hear of it: the group, or nothing once it is deleted.
type News = watch::Sender<Option<Arc<Group>>>;

#[derive(Debug, Default)]
struct Inner {
    members: HashMap<Key, Entry>,
    news: HashMap<Id, News>,
    /// Nobody is overdue before, unless something changes; none if that is not known.
    nobody_before: Option<Instant>,
}

/// The members that this node serves.
#[derive(Debug, Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
}

/// A member's stream, as long as it is there. Dropped, the member is away.
#[derive(Debug)]
pub struct Session {
    sessions: Arc<Sessions>,
    key: Key,
    number: u64,
    beat: Arc<Beat>,
}

impl Session {
    /// Takes note that the member lives.
    pub fn hear(&self) {
        self.beat.hear();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut inner = self.sessions.inner();
        if let Some(entry) = inner.members.get_mut(&self.key)
            && entry.session == self.number
        {
            entry.presence = Presence::AwaySince(Instant::now());
            inner.nobody_before = None;
        }
    }
}

impl Sessions {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the lock")
    }

    /// Takes note of a member's stream. An older stream of the same member counts no more.
    pub fn begin(self: &Arc<Self>, group: Id, member: Id, number: u64) -> Session {
        let beat = Beat::now();
        let presence = Presence::Here(beat.clone());
        let key = (group, member);
        let mut inner = self.inner();
        inner.members.insert(key, Entry { session: number, presence });
        inner.nobody_before = None;
        drop(inner);
        Session { sessions: self.clone(), key, number, beat }
    }

    /// Watches a group, as it is in `state` and as [`Self::follow`] hears of it.
    pub fn watch(&self, group: Id, state: &State) -> watch::Receiver<Option<Arc<Group>>> {
        let mut inner = self.inner();
        let news = inner.news.entry(group).or_insert_with(|| watch::Sender::new(None));
        let news = news.subscribe();
        drop(inner);
        self.follow(state);
        news
    }

    /// Takes note of a state that may be another one, and tells the streams of groups that have
    /// changed.
    pub fn follow(&self, state: &State) {
        let mut inner = self.inner();
        inner.nobody_before = None;
        inner.news.retain(|_, news| news.receiver_count() > 0);
        for (id, news) in &inner.news {
            let now = state.groups().get(*id);
            news.send_if_modified(|known| {
                let is_newer = match (now, known.as_ref()) {
                    (Some(now), Some(known)) => now.generation > known.generation,
                    (Some(_), None) | (None, Some(_)) => true,
                    (None, None) => false,
                };
                if is_newer {
                    *known = now.cloned();
                }
                is_newer
            });
        }
    }

    /// How many members have a stream here.
    pub fn len(&self) -> usize {
        let inner = self.inner();
        let here = |entry: &&Entry| matches!(entry.presence, Presence::Here(_));
        inner.members.values().filter(here).count()
    }

    /// True if no member has a stream here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The members served by `node`, this one, that have been silent or away for too long.
    ///
    /// A member that the metadata has here and that never came, as after a restart of this node,
    /// counts as away since it was first looked for. `state` gives the newest state: one that comes
    /// later is [followed](Self::follow) later, and makes this look again.
    pub fn overdue(
        &self,
        state: impl FnOnce() -> Arc<State>,
        node: NodeId,
        now: Instant,
    ) -> Vec<Leaving> {
        let mut inner = self.inner();
        // Whoever is heard is overdue only later.
        if inner.nobody_before.is_some_and(|before| now < before) {
            return Vec::new();
        }
        let state = state();
        let mut overdue = Vec::new();
        let mut nobody_before = now + LOOK_EVERY;
        let mut here = HashMap::with_capacity(inner.members.len());
        for group in state.groups().iter() {
            for member in group.members.iter().filter(|member| member.node == node.0) {
                let key = (group.id, member.id);
                let known = inner.members.remove(&key);
                let entry = known.filter(|entry| entry.session >= member.session);
                let away = Presence::AwaySince(now);
                let entry = entry.unwrap_or(Entry { session: member.session, presence: away });
                let due = due(group, member, &entry.presence);
                nobody_before = nobody_before.min(due);
                if now > due {
                    let session = member.session;
                    overdue.push(Leaving { group: group.id, member: member.id, session });
                }
                here.insert(key, entry);
            }
        }
        // A stream may have begun whose member the state does not show here yet.
        inner.members.retain(|_, entry| matches!(entry.presence, Presence::Here(_)));
        inner.members.extend(here);
        inner.nobody_before = Some(nobody_before);
        overdue
    }
}

/// When a member is overdue if nothing is heard of it.
fn due(group: &Group, member: &Member, presence: &Presence) -> Instant {
    let (since, max) = match presence {
        Presence::Here(beat) => (beat.heard(), session_timeout(group)),
        Presence::AwaySince(since) => (*since, away_max(group, member)),
    };
    since + max
}
