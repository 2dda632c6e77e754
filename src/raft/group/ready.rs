//! Following up on what has happened: what is to be written, sent and read, and in which order.

use ::raft::Ready;
use ::raft::eraftpb::{Entry as RaftEntry, EntryType, Message, MessageType};
use bytes::Bytes;

use super::super::effects::{ColdRead, Effects, Fault, Persist, Step};
use super::super::envelope::{Envelope, Lane, MessageKind, SnapshotBody};
use super::super::hard_state::HardState;
use super::super::log_view::from_raft;
use super::super::membership::{Change, Membership};
use super::super::planted::{Bug, planted};
use super::{Group, Pass, Role};
use crate::storage::{Entry, FactKind, Kind, Tip};

/// How often the commit index is recorded.
const COMMIT_RECORD_TICKS: u64 = 10;
/// Waiting readers of the same entries; more of them ask again.
const CONTEXTS_MAX: usize = 8;
/// Messages that wait for one sync.
const HELD_MAX: usize = 512;

impl Group {
    /// Follows up on everything that has happened, and says what is to be done. `tokens` numbers
    /// what is handed out.
    pub fn advance(&mut self, tokens: &mut u64, effects: &mut Effects) {
        let mut steps = Vec::new();
        if let Some(fault) = self.pending_fault.take() {
            self.stop(fault, effects);
        }
        loop {
            self.settle(effects);
            if self.fault.is_some() || !self.node.has_ready() {
                break;
            }
            let token = *tokens;
            if let Err(fault) = self.handle_ready(token, &mut steps, effects) {
                self.stop(fault, effects);
            }
        }
        effects.envelopes.append(&mut self.outbox);
        self.record_commit(*tokens, &mut steps);
        if !steps.is_empty() && self.fault.is_none() {
            let is_synced = steps.iter().any(|step| step.needs_sync(self.durability));
            effects.persists.push(Persist { group: self.id, token: *tokens, steps, is_synced });
            *tokens += 1;
        }
        self.fetch(effects);
    }

    /// Follows up on what has become durable, in order.
    fn settle(&mut self, effects: &mut Effects) {
        while self.passes.front().is_some_and(|pass| pass.is_done) {
            let pass = self.passes.pop_front().expect("there is a first pass");
            self.complete(pass.ready, pass.held, effects);
            if let Some(index) = pass.restores {
                assert!(self.is_restoring, "{}: a snapshot at {index} is installed twice", self.id);
                self.node.advance_apply_to(index);
                self.is_restoring = false;
            }
        }
        self.settle_promise();
    }

    /// Tells the library that its readies up to `ready` are durable, and then the world.
    fn complete(&mut self, ready: u64, held: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        if !planted(Bug::SendBeforeNoticing) || held.is_empty() {
            self.node.on_persist_ready(ready);
        }
        effects.envelopes.extend(held);
    }

    fn handle_ready(
        &mut self,
        token: u64,
        steps: &mut Vec<Step>,
        effects: &mut Effects,
    ) -> Result<(), Fault> {
        let mut ready = self.node.ready();
        let mark = steps.len();
        let restores = self.take_snapshot(&ready, steps, effects)?;
        let is_cut = self.take_entries(&mut ready, steps)?;
        let has_vote = self.take_hard_state(&ready, steps);
        let reads = ready.take_read_states().into_iter();
        self.reads.extend(reads.filter_map(|read| {
            let number = read.request_ctx.as_slice().try_into().ok()?;
            Some((u64::from_le_bytes(number), read.index))
        }));
        let number = ready.number();
        let now = self.seal(ready.take_messages());
        let mut held = self.seal(ready.take_persisted_messages());
        if planted(Bug::SendBeforeDurable) {
            effects.envelopes.append(&mut held);
        }
        if planted(Bug::VoteBeforeDurable) {
            effects.envelopes.extend(held.extract_if(.., |(_, held)| held.kind.is_vote()));
        }
        let committed = ready.take_committed_entries();
        self.node.advance_append_async(ready);
        let is_writing = steps.len() > mark;
        if is_writing {
            self.open_pass(token, has_vote, restores);
            if is_cut || restores.is_some() {
                self.join_passes();
            }
        }
        if planted(Bug::SendOutOfOrder) && !is_writing {
            effects.envelopes.append(&mut held);
        }
        self.wait(number, held, effects);
        self.send_or_hold(now, effects);
        self.apply(&committed, steps)
    }

    /// Sees that what was handed out under `token` is waited for.
    fn open_pass(&mut self, token: u64, has_vote: bool, restores: Option<u64>) {
        let since_tick = self.ticks;
        let last = self.passes.back().map_or(0, |pass| pass.token);
        assert!(last <= token, "{}: pass {token} is handed out after {last}", self.id);
        if self.passes.back().is_none_or(|pass| pass.token != token) {
            let (ready, held, is_done) = (0, Vec::new(), false);
            let pass =
                Pass { token, ready, held, is_done, has_vote: false, restores: None, since_tick };
            self.passes.push_back(pass);
        }
        let pass = self.passes.back_mut().expect("a pass was just opened");
        pass.has_vote |= has_vote;
        pass.restores = pass.restores.or(restores);
    }

    /// Lets what was handed out before a cut wait for the cut. The library knows what was stored by
    /// index and term: entries that were cut off and came back would count as stored before they
    /// are written again.
    fn join_passes(&mut self) {
        let mut last = self.passes.pop_back().expect("a cut is in a pass");
        let mut held = Vec::new();
        for pass in self.passes.drain(..) {
            hold(&mut held, pass.held);
            last.has_vote |= pass.has_vote;
            last.restores = last.restores.or(pass.restores);
            last.since_tick = last.since_tick.min(pass.since_tick);
        }
        hold(&mut held, std::mem::take(&mut last.held));
        last.held = held;
        self.passes.push_back(last);
    }

    /// Lets a ready and its messages wait for all that was handed out before them.
    fn wait(&mut self, ready: u64, held: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        match self.passes.back_mut() {
            Some(pass) => {
                pass.ready = ready;
                hold(&mut pass.held, held);
            }
            None => self.complete(ready, held, effects),
        }
    }

    /// Sends a leader's messages, unless its term and vote are not durable.
    fn send_or_hold(&mut self, envelopes: Vec<(Lane, Envelope)>, effects: &mut Effects) {
        match self.passes.iter_mut().rev().find(|pass| pass.has_vote) {
            Some(pass) if !planted(Bug::LeadBeforeTermDurable) => hold(&mut pass.held, envelopes),
            _ => effects.envelopes.extend(envelopes),
        }
    }

    fn take_snapshot(
        &mut self,
        ready: &Ready,
        steps: &mut Vec<Step>,
        effects: &mut Effects,
    ) -> Result<Option<u64>, Fault> {
        if ready.snapshot().is_empty() {
            return Ok(None);
        }
        let body = SnapshotBody::decode(ready.snapshot().get_data().to_vec().into());
        let SnapshotBody { membership, base } = body.ok_or(Fault::Snapshot)?;
        let index = base.tip.index;
        self.proposed.clear();
        self.node.mut_store().reset(base.tip);
        self.is_restoring = true;
        self.membership = membership.clone();
        steps.retain(Step::outlives_reset);
        steps.push(Step::Reset { base: base.clone(), membership: membership.clone() });
        steps.push(Step::Record(FactKind::Membership, membership.encode()));
        effects.restored.push((self.id, base));
        Ok(Some(index))
    }

    /// Hands out entries; true if others had to go for them.
    fn take_entries(&mut self, ready: &mut Ready, steps: &mut Vec<Step>) -> Result<bool, Fault> {
        let raft = ready.take_entries();
        let Some(first) = raft.first() else {
            return Ok(false);
        };
        let (first_index, tip) = (first.index, self.view().tip());
        let is_cut = first_index <= tip.index;
        if is_cut {
            let committed_index = self.committed();
            assert!(
                first_index > self.recorded.commit,
                "{}: entry {first_index} is to go, but {} is committed",
                self.id,
                self.recorded.commit
            );
            self.node.mut_store().truncate(first_index - 1);
            let committed_index = committed_index.min(first_index - 1);
            let first_index = if planted(Bug::CommittedTruncated) { 2 } else { first_index };
            steps.push(Step::Truncate { first_index, committed_index });
        }
        let entries: Vec<Entry> = raft.iter().map(|entry| self.claim(entry)).collect();
        let entries = link_no_ops(self.view().tip(), entries);
        self.node.mut_store().append(&entries).map_err(Fault::Diverged)?;
        steps.push(Step::Append(entries));
        Ok(is_cut)
    }

    /// The entry that a raft entry stands for: a proposal of ours, one that came with its header,
    /// or a no-op of the library's own.
    fn claim(&mut self, raft: &RaftEntry) -> Entry {
        while let Some(entry) = self.proposed.pop_front() {
            // What was proposed in a term that ended before it was handed out is gone.
            if (entry.header.index, entry.header.term) == (raft.index, raft.term) {
                return entry;
            }
        }
        from_raft(raft).unwrap_or_else(|| {
            let is_no_op = raft.data.is_empty() && raft.get_entry_type() == EntryType::EntryNormal;
            assert!(is_no_op, "entry {} is neither ours nor a no-op", raft.index);
            Entry::new(Kind::NoOp, raft.index, raft.term, Bytes::new(), 0)
        })
    }

    /// Hands out term and vote if they changed; true if so.
    fn take_hard_state(&mut self, ready: &Ready, steps: &mut Vec<Step>) -> bool {
        let Some(found) = ready.hs() else {
            return false;
        };
        let is_new = (found.term, found.vote) != (self.recorded.term, self.recorded.vote);
        if is_new {
            let value = self.note_hard_state(found.term, found.vote);
            steps.push(Step::Record(FactKind::HardState, value));
        }
        is_new
    }

    /// DURABILITY: the commit index goes to the journal, the entries to the log; after a power cut
    /// there may be one without the other. Capped, it speaks of entries that are on disk.
    fn recordable(&self) -> u64 {
        if planted(Bug::CommitBeyondDisk) { self.committed() } else { self.applicable() }
    }

    /// Takes note of what the journal is told, and returns it.
    fn note_hard_state(&mut self, term: u64, vote: u64) -> Bytes {
        let commit = self.recordable().max(self.recorded.commit);
        let before = self.recorded;
        assert!(term >= before.term, "{}: term {term} comes after {}", self.id, before.term);
        assert!(
            term > before.term || before.vote == 0 || vote == before.vote,
            "{}: a vote for {vote} in term {term}, after one for {}",
            self.id,
            before.vote
        );
        self.recorded = HardState { term, vote, commit, promise: self.promise };
        self.recorded.encode()
    }

    /// Records the commit index now and then, so that a restart need not wait for a leader to apply
    /// what was applied before. Nothing depends on it, so nothing waits for it.
    fn record_commit(&mut self, token: u64, steps: &mut Vec<Step>) {
        let commit = self.recordable();
        let is_time = self.ticks.is_multiple_of(COMMIT_RECORD_TICKS) || self.is_commit_due;
        let is_due = is_time && commit > self.recorded.commit;
        self.is_commit_due = false;
        let is_own_pass = self.passes.back().is_some_and(|pass| pass.token == token);
        if is_due && !is_own_pass && steps.is_empty() && self.is_running() {
            let HardState { term, vote, .. } = self.recorded;
            let value = self.note_hard_state(term, vote);
            steps.push(Step::Hint(FactKind::HardState, value));
        }
    }

    /// Applies membership changes among the entries that are committed and stored.
    fn apply(&mut self, committed: &[RaftEntry], steps: &mut Vec<Step>) -> Result<(), Fault> {
        for stub in committed {
            let is_change = stub.get_entry_type() == EntryType::EntryConfChangeV2;
            // What the snapshot's membership has seen already comes by again with the log.
            let is_new = stub.index > self.membership.index || planted(Bug::ChangeAppliedTwice);
            if is_change && is_new {
                self.apply_change(stub.index, steps)?;
            }
        }
        if let Some(last) = committed.last() {
            let applicable = self.applicable();
            assert!(
                last.index <= applicable,
                "{}: entry {} is to be applied, {applicable} are committed and stored",
                self.id,
                last.index
            );
            self.node.mut_store().changes_applied(last.index);
            self.node.advance_apply_to(last.index);
        }
        Ok(())
    }

    fn apply_change(&mut self, index: u64, steps: &mut Vec<Step>) -> Result<(), Fault> {
        let entry = self.view().entry(index).expect("what is not applied is in memory");
        let change = Change::decode(&entry.payload).ok_or(Fault::UnknownChange { index })?;
        let applied = self.node.apply_conf_change(&change.to_conf_change());
        let state = applied.map_err(|_| Fault::UnknownChange { index })?;
        let before = std::mem::take(&mut self.membership);
        assert!(
            index > before.index,
            "{}: the change at {index} is applied to the membership of {}",
            self.id,
            before.index
        );
        self.membership = Membership::from_conf_state(index, &state);
        self.node.mut_store().forget_snapshot();
        steps.push(Step::Record(FactKind::Membership, self.membership.encode()));
        let stays = self.membership.is_voter(self.replica) || planted(Bug::RemovedLeaderStays);
        if self.role() == Role::Leader && !stays {
            let term = self.term();
            self.node.raft.become_follower(term, 0);
        }
        Ok(())
    }

    /// Makes envelopes of messages, with the entries that they stand for.
    fn seal(&self, messages: Vec<Message>) -> Vec<(Lane, Envelope)> {
        let entry = |raft: &RaftEntry| {
            let known = || {
                let entry = self.view().entry(raft.index);
                entry.filter(|entry| entry.header.term == raft.term).cloned()
            };
            from_raft(raft).or_else(known)
        };
        // A leader that was deposed within the same step may leave messages behind whose entries
        // are gone already: they are lost on their way.
        let seal_one = |mut message: Message| {
            if !planted(Bug::AppendNotMended) {
                self.mend(&mut message)?;
            }
            if message.get_msg_type() == MessageType::MsgHeartbeat {
                // A new replica, to which any term is news, believes one that there are entries of.
                message.log_term = self.view().tip().term;
            }
            // Only what was read from disk for a follower carries its header along.
            let is_cold = message.get_entries().iter().any(|entry| !entry.context.is_empty());
            let envelope = Envelope::from_raft(self.id, message, entry)?;
            Some((envelope.lane(is_cold), envelope))
        };
        messages.into_iter().filter_map(seal_one).collect()
    }

    /// Lets an append begin right before its first entry. The library adds entries to an append
    /// without any that is on its way to the same follower, and does not look where that one
    /// begins. Such a message contradicts itself, and whoever gets it would drop the whole frame.
    ///
    /// `None` if the entries are gone, because another leader has others.
    fn mend(&self, message: &mut Message) -> Option<()> {
        let Some(first_index) = message.get_entries().first().map(|entry| entry.index) else {
            return Some(());
        };
        let is_append = message.get_msg_type() == MessageType::MsgAppend;
        if is_append && first_index != message.index + 1 {
            let before = first_index.checked_sub(1).filter(|_| message.term == self.term())?;
            message.log_term = self.node.raft.raft_log.term(before).ok()?;
            message.index = before;
        }
        Some(())
    }

    /// Asks for what followers need from disk.
    fn fetch(&mut self, effects: &mut Effects) {
        let wanted = self.node.mut_store().take_wanted();
        for wanted in wanted {
            let waiting = self.fetching.entry(wanted.first_index).or_insert_with(|| {
                let last_index = self.node.raft.raft_log.last_index();
                effects.cold_reads.push(ColdRead {
                    group: self.id,
                    first_index: wanted.first_index,
                    last_index,
                    bytes_max: self.config.append_bytes_max,
                });
                Vec::new()
            });
            if waiting.len() < CONTEXTS_MAX {
                waiting.push(wanted.context);
            }
        }
        if self.view().take_wants_snapshot() && !self.is_fetching_base {
            self.is_fetching_base = true;
            effects.bases.push(self.id);
        }
    }
}

/// Lets messages wait. While a disk is full others go on asking for days: of answers to heartbeats
/// the last one says all, and whatever else is too much is lost, the oldest first.
fn hold(held: &mut Vec<(Lane, Envelope)>, more: Vec<(Lane, Envelope)>) {
    for (lane, envelope) in more {
        if envelope.kind == MessageKind::HeartbeatResponse {
            let (kind, to) = (envelope.kind, envelope.to);
            held.retain(|(_, earlier)| (earlier.kind, earlier.to) != (kind, to));
        }
        held.push((lane, envelope));
    }
    let excess = held.len().saturating_sub(HELD_MAX);
    held.drain(..excess);
}

/// Completes the no-ops among `entries`, which follow `tip`: everything about them follows from
/// their place, so that all replicas make the same of them.
fn link_no_ops(mut tip: Tip, mut entries: Vec<Entry>) -> Vec<Entry> {
    for entry in &mut entries {
        let header = &mut entry.header;
        if header.kind == Kind::NoOp && header.chain == 0 {
            header.base_offset = tip.end_offset;
            header.append_time_ms = tip.append_time_ms;
            header.chain = header.chain_after(tip.chain);
        }
        tip = header.tip();
    }
    entries
}
