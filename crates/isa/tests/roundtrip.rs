//! Every form of an instruction and of a program gives back what went in, and damage is refused.

use isa::{
    Instruction, LayerInfo, OPS, OpInfo, Placement, Program, ProgramError, Role, Unit, Units,
};
use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

/// The bits of an instruction by shifts alone: the slow, obvious encoder.
fn assemble_bits(info: &OpInfo, wait: u8, signal: u8, values: &[i64]) -> [u8; 16] {
    let mut bits = u128::from(info.opcode) | u128::from(wait) << 6 | u128::from(signal) << 10;
    let mut position = 14;
    for (field, &value) in info.fields.iter().zip(values) {
        let mask = (1_u128 << field.width_bits) - 1;
        bits |= (i128::from(value) as u128 & mask) << position;
        position += field.width_bits;
    }
    bits.to_le_bytes()
}

/// Masks that the unit may have: without its own bit, none for the frontend.
fn masks(info: &OpInfo, wait: u8, signal: u8) -> (u8, u8) {
    if info.unit == Unit::Frontend {
        return (0, 0);
    }
    let others = !(1 << info.unit.index()) & 0b1111;
    (
        wait & others,
        if info.may_signal() {
            signal & others
        } else {
            0
        },
    )
}

/// A valid instruction as line of the list, masks and operands; the limits come up often.
fn parts() -> impl Strategy<Value = (&'static OpInfo, u8, u8, Vec<i64>)> {
    (0..OPS.len(), 0_u8..16, 0_u8..16).prop_flat_map(|(index, wait, signal)| {
        let info = &OPS[index];
        let (wait, signal) = masks(info, wait, signal);
        let value = |field: &isa::Field| {
            proptest::prop_oneof![
                1 => Just(field.min),
                1 => Just(field.max),
                3 => field.min..=field.max,
            ]
        };
        let values: Vec<_> = info.fields.iter().map(value).collect();
        (Just(info), Just(wait), Just(signal), values)
    })
}

fn instruction() -> impl Strategy<Value = Instruction> {
    parts().prop_map(|(info, wait, signal, values)| {
        Instruction::decode(&assemble_bits(info, wait, signal, &values)).expect("a valid one")
    })
}

fn tensor() -> impl Strategy<Value = Placement> {
    let extents = (1_u32..9, 1_u32..9, 1_u32..9);
    let storage = prop::sample::select(vec![4_u8, 8, 16]);
    let role = prop::sample::select(vec![Role::Input, Role::Output, Role::Internal]);
    (
        any::<String>(),
        role,
        0_u32..1000,
        extents,
        storage,
        any::<bool>(),
    )
        .prop_map(
            |(name, role, address, (channels, height, width), storage_bits, signed)| Placement {
                name,
                role,
                address,
                channels,
                height,
                width,
                pixel_bytes: (channels * u32::from(storage_bits)).div_ceil(8) + 1,
                storage_bits,
                signed,
            },
        )
}

fn layer() -> impl Strategy<Value = LayerInfo> {
    (any::<String>(), any::<u64>(), 0_u32..50, 0_u32..50).prop_map(
        |(name, n_macs, first_channel, n_channels)| LayerInfo {
            name,
            n_macs,
            first_channel,
            n_channels,
        },
    )
}

fn program() -> impl Strategy<Value = Program> {
    let zeros_and_noise = prop::collection::vec(
        proptest::prop_oneof![
            Just(vec![0; 64]),
            prop::collection::vec(any::<u8>(), 0..100),
        ],
        0..4,
    );
    (
        (
            any::<u64>(),
            prop::collection::vec(layer(), 1..4),
            zeros_and_noise,
        ),
        prop::collection::vec((instruction(), any::<prop::sample::Index>()), 0..20),
        prop::collection::vec(tensor(), 0..3),
    )
        .prop_map(|((machine, layers, data), instructions, tensors)| {
            let n_layers = layers.len();
            let (instructions, layer_of) = instructions
                .into_iter()
                .map(|(instruction, layer)| (instruction, layer.index(n_layers) as u32))
                .unzip();
            let data = data.concat();
            let dram_bytes = 20_000 + data.len() as u64;
            Program {
                machine,
                dram_bytes,
                n_channels: 100,
                instructions,
                data,
                layers,
                layer_of,
                tensors,
            }
        })
}

proptest! {
    #[test]
    fn bits_are_where_the_list_says((info, wait, signal, values) in parts()) {
        let bytes = assemble_bits(info, wait, signal, &values);
        let instruction = Instruction::decode(&bytes)?;
        prop_assert_eq!(instruction.op.mnemonic(), info.mnemonic);
        prop_assert_eq!(instruction.op.values(), values);
        prop_assert_eq!(instruction.wait, Units::from_bits(wait));
        prop_assert_eq!(instruction.signal, Units::from_bits(signal));
        prop_assert_eq!(instruction.encode()?, bytes);
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(bytes in any::<[u8; 16]>(), opcode in 0_u8..20) {
        let mut bytes = bytes;
        bytes[0] = bytes[0] & 0xc0 | opcode;
        // Few random bytes are instructions; without masks more are.
        for bytes in [bytes, { bytes[0] &= 0x3f; bytes[1] &= 0xc0; bytes }] {
            if let Ok(instruction) = Instruction::decode(&bytes) {
                prop_assert_eq!(instruction.encode()?, bytes);
            }
        }
    }

    #[test]
    fn program_and_bytes(program in program()) {
        let bytes = program.to_bytes()?;
        prop_assert_eq!(&Program::from_bytes(&bytes)?, &program);
    }

    #[test]
    fn program_and_text(program in program()) {
        let text = program.to_text();
        let again = Program::from_text(&text)?;
        prop_assert_eq!(&again, &program);
        prop_assert_eq!(again.to_bytes()?, program.to_bytes()?);
        let notes = vec!["tile 1\n.data".to_owned(); program.instructions.len()];
        prop_assert_eq!(Program::from_text(&program.to_text_with_notes(&notes))?, program);
    }

    #[test]
    fn damage_is_refused(program in program(), at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = program.to_bytes()?;
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let error = Program::from_bytes(&bytes).expect_err("one byte differs");
        let expected = match at {
            0..8 => matches!(error, ProgramError::Magic),
            8..12 => matches!(error, ProgramError::Version { .. }),
            _ => matches!(error, ProgramError::Checksum { .. }),
        };
        prop_assert!(expected, "{}", error);
    }

    #[test]
    fn a_cut_is_refused(program in program(), at in any::<prop::sample::Index>()) {
        let bytes = program.to_bytes()?;
        prop_assert!(Program::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }

    /// Behind a checksum that fits, anything may stand.
    #[test]
    fn hostile_bytes_do_not_panic(
        program in program(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = program.to_bytes()?;
        for (at, value) in changes {
            let at = at.index(bytes.len() - 20) + 20;
            bytes[at] = value;
        }
        seal(&mut bytes);
        if let Ok(again) = Program::from_bytes(&bytes) {
            prop_assert_eq!(again.to_bytes()?, bytes);
        }
    }

    #[test]
    fn hostile_text_does_not_panic(
        program in program(),
        at in any::<prop::sample::Index>(),
        inserted in "[ -~\u{e9}\n]{0,6}",
    ) {
        let mut text: Vec<char> = program.to_text().chars().collect();
        let at = at.index(text.len());
        text.splice(at..(at + 2).min(text.len()), inserted.chars());
        let text: String = text.into_iter().collect();
        if let Ok(again) = Program::from_text(&text) {
            prop_assert_eq!(Program::from_text(&again.to_text())?, again);
        }
    }
}

/// Writes the checksum that the bytes ask for.
fn seal(bytes: &mut [u8]) {
    if let Err(ProgramError::Checksum { computed, .. }) = Program::from_bytes(bytes) {
        bytes[12..20].copy_from_slice(&computed.to_le_bytes());
    }
}

#[test]
fn huge_lengths_are_refused() {
    let layers = vec![LayerInfo::default()];
    let bytes = Program {
        layers,
        ..Program::default()
    }
    .to_bytes()
    .expect("a valid program");
    // n_instructions, n_layers, n_runs, n_tensors, n_data.
    for at in [40, 44, 48, 52, 56] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&[0xff; 4]);
        seal(&mut bytes);
        let error = Program::from_bytes(&bytes).expect_err("more than there is");
        assert!(matches!(error, ProgramError::Truncated { .. }), "{error}");
    }
}

#[test]
fn limits_are_one_apart() {
    for info in OPS {
        for (index, field) in info.fields.iter().enumerate() {
            let smallest: Vec<i64> = info.fields.iter().map(|field| field.min).collect();
            assert!(Instruction::decode(&assemble_bits(info, 0, 0, &smallest)).is_ok());
            let width_max = (1_i64 << field.width_bits) - 1;
            for outside in [field.min - 1, field.max + 1] {
                if field.signed || !(0..=width_max).contains(&outside) {
                    continue;
                }
                let mut values = smallest.clone();
                values[index] = outside;
                let error = Instruction::decode(&assemble_bits(info, 0, 0, &values))
                    .expect_err("outside the limits");
                assert!(error.to_string().contains(field.name), "{error}");
            }
        }
    }
}

#[test]
fn opcodes_ascend_in_the_list() {
    for pair in OPS.windows(2) {
        assert!(pair[0].opcode < pair[1].opcode, "{}", pair[1].mnemonic);
    }
}
