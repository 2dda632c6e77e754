//! Golden bytes, round trips and lies of commands and checkpoints.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::partition::{
    CheckpointError, CommandError, FenceGeneration, GROUP_ID_BYTES_MAX, METADATA_BYTES_MAX,
    ResetOffsets,
};

const COUNT_POSITION: usize = 36;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One command of each kind.
fn commands() -> [Command; 5] {
    let fence = FenceGeneration {
        group: group("g"),
        generation: 3,
        expire_after_idle_ms: 60_000,
        start: 1,
    };
    [
        Command::InitProducer(InitProducer { producer_id: 7, take_over: true }),
        commit(3, 2),
        Command::ResetOffsets(ResetOffsets { group: group("g"), offset: 2 }),
        Command::DeleteGroup(group("g")),
        Command::FenceGeneration(fence),
    ]
}

/// A state with something of everything.
fn sample() -> State {
    let mut replica = Replica::new();
    replica.init(7, false).unwrap();
    replica.store(batch(0, 2));
    replica.store(batch(2, 1));
    replica.command(&commands()[4]).unwrap();
    replica.command(&commit(3, 2)).unwrap();
    let empty =
        FenceGeneration { group: group("h"), generation: 1, expire_after_idle_ms: 0, start: 0 };
    replica.command(&Command::FenceGeneration(empty)).unwrap();
    let effect = replica.append(Kind::LogStart, 1u64.to_le_bytes().to_vec());
    assert_eq!(effect, Effect::LogStart(Ok(1)));
    replica.state
}

/// The same bytes with a checksum that fits.
fn resign(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn the_format_of_commands_has_not_changed() {
    let golden = [
        "01010108000700000000000000020100 01",
        "0102 03010067 0408000300000000000000 05100000000000000000000000000000000005 \
         0608000200000000000000 0708000100000000000000 0801006d",
        "0103 03010067 0608000200000000000000",
        "0104 03010067",
        "0105 03010067 0408000300000000000000 09080060ea000000000000 \
         0a08000100000000000000",
    ];
    for (command, golden) in commands().iter().zip(golden) {
        assert_eq!(hex(&command.encode()), golden.replace(' ', ""), "{command:?}");
    }
}

#[test]
fn the_format_of_checkpoints_has_not_changed() {
    let golden = "7175697075707374 01000000 0700000000000000 e803000000000000 0100000000000000 \
        01000000 0700000000000000 0000 e803000000000000 02 00000000 02000000 0000cdab \
        0000000000000000 02000000 01000000 0200cdab 0200000000000000 02000000 0167 \
        0300000000000000 60ea000000000000 e803000000000000 01 0200000000000000 \
        0100000000000000 00000000000000000000000000000005 0100 6d 0168 0100000000000000 \
        0000000000000000 e803000000000000 01 0000000000000000 0000000000000000 \
        00000000000000000000000000000000 0000 e3c01c5a";
    assert_eq!(hex(&sample().checkpoint()), golden.replace(' ', ""));
}

#[test]
fn a_command_cut_short_or_with_more_behind_it_is_malformed() {
    for command in commands() {
        let bytes = command.encode();
        assert_eq!(Command::decode(&bytes), Ok(command));
        for length in 0..bytes.len() {
            let error = Command::decode(&bytes[..length]).unwrap_err();
            assert!(matches!(error, CommandError::Malformed { .. }), "{length}: {error}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Command::decode(&longer).is_err());
    }
}

#[test]
fn lengths_out_of_their_bounds_are_refused() {
    assert!(GroupId::try_new(b"").is_none());
    assert!(GroupId::try_new(&[1; GROUP_ID_BYTES_MAX]).is_some());
    assert!(GroupId::try_new(&[1; GROUP_ID_BYTES_MAX + 1]).is_none());
    assert!(Metadata::try_new(&"x".repeat(METADATA_BYTES_MAX)).is_some());
    assert!(Metadata::try_new(&"x".repeat(METADATA_BYTES_MAX + 1)).is_none());
    let too_long = [&[1, 4, 3, 250, 0][..], &[b'g'; 250]].concat();
    assert!(matches!(Command::decode(&too_long), Err(CommandError::Malformed { position: 2, .. })));
}

#[test]
fn any_flipped_bit_of_a_checkpoint_is_found() {
    let bytes = sample().checkpoint();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = State::from_checkpoint(&flipped).unwrap_err();
        match bit / 8 {
            0..8 => assert_eq!(error, CheckpointError::Magic),
            8..12 => assert!(matches!(error, CheckpointError::Version { .. }), "{error}"),
            _ => assert!(matches!(error, CheckpointError::Checksum { .. }), "{error}"),
        }
    }
}

#[test]
fn a_checkpoint_cut_short_is_refused_even_with_a_fitting_checksum() {
    let bytes = sample().checkpoint();
    for length in 0..bytes.len() {
        assert!(State::from_checkpoint(&bytes[..length]).is_err());
        if length >= 4 {
            let signed = resign(bytes[..length].to_vec());
            assert!(State::from_checkpoint(&signed).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn counts_that_lie_are_refused_with_a_fitting_checksum() {
    for count in [0, 2, 4096, 4097, u32::MAX] {
        let mut bytes = sample().checkpoint().to_vec();
        bytes[COUNT_POSITION..COUNT_POSITION + 4].copy_from_slice(&count.to_le_bytes());
        let error = State::from_checkpoint(&resign(bytes)).unwrap_err();
        assert!(matches!(error, CheckpointError::Malformed { .. }), "{count}: {error}");
    }
}

#[test]
fn ids_out_of_order_or_twice_are_refused_with_a_fitting_checksum() {
    let mut replica = Replica::new();
    for (id, name) in [(1, "a"), (2, "b")] {
        replica.init(id, false).unwrap();
        let reset = ResetOffsets { group: group(name), offset: 0 };
        replica.command(&Command::ResetOffsets(reset)).unwrap();
    }
    let bytes = replica.state.checkpoint().to_vec();
    let producer = COUNT_POSITION + 4;
    let group = bytes.windows(2).position(|window| window == b"\x01a").unwrap() + 1;
    for (position, id, fault) in [
        (producer, 2, "producer ids are not ascending"),
        (producer, 3, "producer ids are not ascending"),
        (producer, 0, "producer ids are not ascending"),
        (group, b'b', "group ids are not ascending"),
        (group, b'c', "group ids are not ascending"),
    ] {
        let mut bytes = bytes.clone();
        bytes[position] = id;
        let error = State::from_checkpoint(&resign(bytes)).unwrap_err();
        let is_expected =
            matches!(error, CheckpointError::Malformed { fault: found, .. } if found == fault);
        assert!(is_expected, "id {id}: {error}");
    }
}

#[test]
fn the_empty_state_has_a_checkpoint_and_no_bytes_are_none() {
    let state = State::new();
    assert_eq!(State::from_checkpoint(&state.checkpoint()), Ok(state));
    assert_eq!(State::from_checkpoint(b""), Err(CheckpointError::Magic));
}

#[test]
fn digests_of_different_states_differ() {
    let mut replica = Replica::new();
    let mut digests = vec![replica.state.digest()];
    for id in 1..50 {
        replica.init(id, false).unwrap();
        digests.push(replica.state.digest());
    }
    let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
}

proptest! {
    #[test]
    fn a_command_has_one_form(command in super::replicas::command()) {
        prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
    }

    #[test]
    fn any_bytes_are_a_command_that_encodes_to_them_or_an_error(
        head in 0..7u8,
        rest in vec(prop_oneof![0..10u8, any::<u8>()], 0..60),
    ) {
        let bytes = [&[1, head][..], &rest].concat();
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(&command.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn a_damaged_command_is_an_error_or_another_command_in_its_one_form(
        which in 0..5usize,
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = commands()[which].encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(command) = Command::decode(&bytes) {
            prop_assert_eq!(&command.encode()[..], &bytes[..]);
        }
    }

    #[test]
    fn any_bytes_are_no_checkpoint(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(State::from_checkpoint(&bytes).is_err());
    }

    #[test]
    fn a_damaged_checkpoint_with_a_fitting_checksum_is_an_error_or_another_state(
        damage in vec((any::<proptest::sample::Index>(), prop_oneof![0..4u8, any::<u8>()]), 1..4),
    ) {
        let mut bytes = sample().checkpoint().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let bytes = resign(bytes);
        if let Ok(mut state) = State::from_checkpoint(&bytes) {
            prop_assert_eq!(&state.checkpoint()[..], &bytes[..]);
            // The state is sound: entries can be applied to it.
            let index = state.applied_index().saturating_add(1);
            if index > state.applied_index() {
                let header = Entry::new(Kind::Records, index, 1, Bytes::new(), 0).header;
                let _ = state.apply(&header, b"");
            }
        }
    }
}
