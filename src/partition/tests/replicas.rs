//! The state is a function of the log: whoever applies it, from whichever checkpoint.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::partition::{FenceGeneration, PRODUCER_IDLE_MS, ResetOffsets};

/// A log entry without its place.
#[derive(Debug, Clone)]
struct Draft {
    kind: Kind,
    payload: Bytes,
    submission: Submission,
    later_ms: i64,
}

fn submission() -> impl Strategy<Value = Submission> {
    let numbers = (0..4u64, 0..3u16, 0..8u32, 0..3u32);
    numbers.prop_map(|(producer_id, producer_epoch, base_sequence, record_count)| {
        let payload_crc = base_sequence / 4;
        Submission { producer_id, producer_epoch, base_sequence, record_count, payload_crc }
    })
}

pub(super) fn command() -> impl Strategy<Value = Command> {
    let id = prop_oneof![Just(group("a")), Just(group("b")), Just(group("c"))];
    let ids = (0..4u64, any::<bool>());
    let init = ids.prop_map(|(producer_id, take_over)| InitProducer { producer_id, take_over });
    let commit = (id.clone(), 0..5u64, 0..12u64, "[a-z]{0,9}");
    let commit = commit.prop_map(|(group, generation, offset, text)| OffsetCommit {
        group,
        generation,
        member: uuid::Uuid::from_u128(u128::from(offset)),
        offset,
        leader_epoch: generation,
        metadata: Metadata::try_new(&text).unwrap(),
    });
    let fence = (id.clone(), 0..5u64, prop_oneof![Just(0), 1..2_000u64]);
    let fence = fence.prop_map(|(group, generation, expire_after_idle_ms)| FenceGeneration {
        group,
        generation,
        expire_after_idle_ms,
        start: generation,
    });
    let reset = (id.clone(), 0..12u64).prop_map(|(group, offset)| ResetOffsets { group, offset });
    prop_oneof![
        3 => init.prop_map(Command::InitProducer),
        4 => commit.prop_map(Command::OffsetCommit),
        2 => fence.prop_map(Command::FenceGeneration),
        1 => reset.prop_map(Command::ResetOffsets),
        1 => id.prop_map(Command::DeleteGroup),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let later = prop_oneof![9 => 0..500i64, 1 => Just(PRODUCER_IDLE_MS)];
    let controls = command().prop_map(|command| (Kind::Control, command.encode()));
    let starts = (0..12u64).prop_map(|at| (Kind::LogStart, at.to_le_bytes().to_vec().into()));
    let kinds = [Kind::NoOp, Kind::Membership, Kind::Control, Kind::LogStart];
    let bytes = (proptest::sample::select(kinds.to_vec()), vec(any::<u8>(), 0..12));
    let junk = bytes.prop_map(|(kind, bytes)| (kind, Bytes::from(bytes)));
    let entry = prop_oneof![
        8 => Just((Kind::Records, Bytes::new())),
        8 => controls,
        1 => starts,
        1 => junk,
    ];
    (entry, submission(), later).prop_map(|((kind, payload), submission, later_ms)| Draft {
        kind,
        payload,
        submission,
        later_ms,
    })
}

fn place(drafts: &[Draft]) -> Vec<Entry> {
    let mut end_offset = 0;
    let mut now_ms = 0;
    let mut entries = Vec::new();
    for (draft, index) in drafts.iter().zip(1..) {
        now_ms += draft.later_ms;
        let mut entry = Entry::new(draft.kind, index, 1, draft.payload.clone(), 0)
            .with_records(end_offset, 0)
            .at_time(now_ms);
        if draft.kind == Kind::Records {
            stamp(&mut entry.header, &draft.submission);
        }
        end_offset = entry.header.end_offset();
        entries.push(entry);
    }
    entries
}

fn apply_all(state: &mut State, entries: &[Entry]) -> Vec<Applied> {
    entries.iter().map(|entry| state.apply(&entry.header, &entry.payload)).collect()
}

proptest! {
    #[test]
    fn a_checkpoint_and_the_rest_give_the_same_state_and_effects_at_any_cut(
        drafts in vec(draft(), 1..60),
    ) {
        let entries = place(&drafts);
        let mut whole = State::new();
        let effects = apply_all(&mut whole, &entries);
        for cut in 0..=entries.len() {
            let mut early = State::new();
            let _ = apply_all(&mut early, &entries[..cut]);
            let mut restored = State::from_checkpoint(&early.checkpoint()).unwrap();
            prop_assert_eq!(&restored, &early);
            let rest = apply_all(&mut restored, &entries[cut..]);
            prop_assert_eq!(&rest[..], &effects[cut..]);
            prop_assert_eq!(&restored, &whole);
            prop_assert_eq!(restored.digest(), whole.digest());
            prop_assert_eq!(restored.checkpoint(), whole.checkpoint());
        }
    }

    #[test]
    fn a_position_goes_back_by_a_reset_only_and_a_generation_by_deletion_only(
        drafts in vec(draft(), 1..200),
    ) {
        let mut state = State::new();
        for entry in place(&drafts) {
            let before = state.clone();
            let applied = state.apply(&entry.header, &entry.payload);
            let is_reset =
                matches!(applied.effect, Effect::Control(Ok(Reply::OffsetsReset { .. })));
            for (id, was) in before.progress().iter() {
                let Some(now) = state.progress().get(id) else { continue };
                let offset = |group: &crate::partition::Group| {
                    group.position.as_ref().map(|position| position.offset)
                };
                prop_assert!(is_reset || offset(now) >= offset(was), "{:?} to {:?}", was, now);
                prop_assert!(now.generation >= was.generation, "{:?} to {:?}", was, now);
            }
        }
    }

    #[test]
    fn a_refusal_changes_nothing_but_what_time_does(drafts in vec(draft(), 1..60)) {
        let mut state = State::new();
        for entry in place(&drafts) {
            let mut twin = state.clone();
            let applied = state.apply(&entry.header, &entry.payload);
            if applied.refusal().is_some() {
                let no_op = EntryHeader { kind: Kind::NoOp, ..entry.header };
                let _ = twin.apply(&no_op, b"");
                prop_assert_eq!(&twin, &state);
            }
        }
    }
}
