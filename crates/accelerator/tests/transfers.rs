//! Long transfers in both models: the event model takes bursts many at a time, the stepped one never.

use accelerator::{
    Config, event,
    random::{self, Seed},
    stepped,
};
use isa::{Input, Instruction, LayerInfo, Load, LoadPitch, Op, Program, Store, StorePitch, Units};

const DRAM_BYTES: u32 = 1 << 14;
const CHIP_BYTES: u32 = 1 << 13;

/// Rows with and without gaps, from one to many bursts, aligned or not; some begin in the middle of others.
fn transfers(seed: &mut Seed, burst_bytes: u32) -> Vec<Instruction> {
    let mut instructions = Vec::new();
    let mut push = |op: Op| {
        instructions.push(Instruction {
            op,
            wait: Units::NONE,
            signal: Units::NONE,
        });
    };
    for _ in 0..seed.pick(2, 8) {
        if seed.pick(0, 1) == 0 {
            // Each takes a cycle to issue.
            let setup = Input {
                pixel_bytes: 1,
                n_channels: 1,
                ..Input::default()
            };
            (0..seed.pick(1, 300)).for_each(|_| push(setup.into()));
        }
        let n_rows = seed.pick(1, 4);
        let whole = seed.pick(1, 2) == 1;
        let mut row_bytes = seed.pick(1, CHIP_BYTES / n_rows / 2);
        if whole {
            row_bytes = (row_bytes / burst_bytes).max(1) * burst_bytes;
        }
        let gap = if seed.pick(1, 2) == 1 {
            0
        } else {
            seed.pick(0, burst_bytes)
        };
        let dram_pitch = row_bytes + gap;
        let room = DRAM_BYTES - n_rows * dram_pitch;
        let mut dram_address = seed.pick(0, room);
        if whole {
            dram_address -= dram_address % burst_bytes;
        }
        let is_load = seed.pick(1, 2) == 1;
        if is_load {
            let pitch = LoadPitch {
                dram_pitch,
                chip_pitch: row_bytes,
            };
            push(pitch.into());
            let load = Load {
                memory: 0,
                dram_address,
                chip_address: 0,
                n_rows,
                row_bytes,
            };
            push(load.into());
        } else {
            let pitch = StorePitch {
                dram_pitch,
                chip_pitch: row_bytes,
            };
            push(pitch.into());
            let store = Store {
                dram_address,
                chip_address: 0,
                n_rows,
                row_bytes,
            };
            push(store.into());
        }
    }
    instructions
}

fn check(pair: u64) {
    let mut seed = Seed::new(pair.wrapping_mul(0x2545_F491_4F6C_DD1D));
    let mut config: Config = random::machine(&mut seed);
    config.activation_bytes = CHIP_BYTES;
    if seed.pick(0, 2) == 0 {
        // Bursts pass as fast as they are accepted.
        config.dram.burst_bytes = config.dram.bytes_per_cycle;
        config.dram.latency_cycles = seed.pick(1, 20);
    }
    config.dram.size_bytes = config.dram.size_bytes.max(DRAM_BYTES.into());
    let instructions = transfers(&mut seed, config.dram.burst_bytes);
    let program = Program {
        machine: config.fingerprint(),
        dram_bytes: DRAM_BYTES.into(),
        n_channels: 1,
        layer_of: vec![0; instructions.len()],
        layers: vec![LayerInfo {
            name: "l".into(),
            n_macs: 0,
            first_channel: 0,
            n_channels: 1,
        }],
        instructions,
        data: Vec::new(),
        tensors: Vec::new(),
    };
    let fast = event::time(&program, &config);
    let slow = stepped::run(&program, &config, &mut vec![0; DRAM_BYTES as usize]);
    match (slow, fast) {
        (Ok(slow), Ok(fast)) => {
            assert_eq!(slow.timing, fast, "pair {pair}");
            let layers = |timing: &accelerator::Timing| timing.layers(&program, &config);
            assert_eq!(layers(&slow.timing), layers(&fast), "pair {pair}");
        }
        (slow, fast) => assert_eq!(slow.err(), fast.err(), "pair {pair}"),
    }
}

#[test]
fn long_transfers_take_the_same_cycles() {
    for pair in 0..400 {
        check(pair);
    }
}
