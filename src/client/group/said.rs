//! What a member says next. It follows from the state: nothing waits in a queue to be said.

use std::time::Instant;

use super::member::{Goal, Member};
use super::partitions::{Held, Phase, Slot};
use crate::client::LostReason;
use crate::proto::client::consume_request::Message;
use crate::proto::client::{
    ConsumeCredit, ConsumeHeartbeat, ConsumeLeave, ConsumePause, ConsumeReleased, ConsumeResume,
};

impl Member {
    /// Returns what to say next, as said.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<Message> {
        let link = self.link.as_ref().filter(|link| link.has_joined() && !link.has_left)?;
        let is_heartbeat_due = link.heartbeat_at().is_some_and(|at| at <= now);
        let heartbeat = is_heartbeat_due.then_some(Message::Heartbeat(ConsumeHeartbeat {}));
        let request = self.next_news(now).or(heartbeat)?;
        self.link.as_mut()?.on_spoken(now);
        Some(request)
    }

    fn next_news(&mut self, now: Instant) -> Option<Message> {
        if self.goal == Goal::Out {
            return self.say_goodbye();
        }
        let assignment = |slot| self.partitions.get(slot)?.assignment;
        if let Some(commit) = self.commits.next_to_send(now, assignment) {
            return Some(Message::Commit(commit));
        }
        if self.goal != Goal::Stay {
            return if self.commits.is_empty() { self.say_goodbye() } else { None };
        }
        self.next_released().or_else(|| self.next_pause()).or_else(|| self.next_credit())
    }

    fn say_goodbye(&mut self) -> Option<Message> {
        self.link.as_mut()?.has_left = true;
        let says_so = self.goal != Goal::Leave { says_so: false };
        says_so.then_some(Message::Leave(ConsumeLeave {}))
    }

    fn next_released(&mut self) -> Option<Message> {
        let is_free = |(slot, held): &(Slot, &Held)| {
            matches!(held.phase, Phase::Releasing(_)) && !self.commits.has(*slot)
        };
        let free: Vec<Slot> =
            self.partitions.iter().filter(is_free).map(|(slot, _)| slot).collect();
        let mut assignments = std::mem::take(&mut self.overdue);
        for slot in free {
            assignments.extend(self.partitions.get(slot).and_then(|held| held.assignment));
            self.remove(slot, LostReason::Moved);
        }
        let released = !assignments.is_empty();
        released.then_some(Message::Released(ConsumeReleased { assignments }))
    }

    fn next_pause(&mut self) -> Option<Message> {
        let is_news =
            |held: &Held| held.assignment.is_some() && held.is_paused != held.is_told_paused;
        let held = self.partitions.iter().find(|(_, held)| is_news(held));
        let is_paused = held.map(|(_, held)| held.is_paused)?;
        let mut assignments = Vec::new();
        for (_, held) in self.partitions.iter_mut() {
            if is_news(held) && held.is_paused == is_paused {
                held.is_told_paused = is_paused;
                assignments.extend(held.assignment);
            }
        }
        Some(match is_paused {
            true => Message::Pause(ConsumePause { assignments }),
            false => Message::Resume(ConsumeResume { assignments }),
        })
    }

    fn next_credit(&mut self) -> Option<Message> {
        let link = self.link.as_mut()?;
        let bytes = link.credit.due()?;
        link.credit.on_given(bytes);
        Some(Message::Credit(ConsumeCredit { bytes }))
    }
}
