//! `systole latency`: cycles of every layer, and who owned them.

use crate::{
    args::Latency,
    engine::Engine,
    input, model, output,
    report::{Bound, Header, LatencyReport, LayerLatency, OwnedCycles},
    tables,
};
use accelerator::{Config, LayerTiming};
use anyhow::Result;
use network::{Layer, Network};

/// Runs the command.
///
/// # Errors
/// Bad files, or a machine too small for the model.
pub fn run(args: &Latency) -> Result<()> {
    let config = input::machine(args.machine.as_deref())?;
    let accumulator_bits = config.arithmetic.accumulator.width_bits;
    let (model, _) = model::open_any(&args.model, &args.uncalibrated, accumulator_bits)?;
    let engine = Engine::new(&model.network, &config)?;
    let report = report(&engine);
    if args.json {
        return output::print_json(&report);
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&report.header),
        tables::latency(&report)
    ))
}

/// The report of a compiled network.
pub fn report(engine: &Engine<'_>) -> LatencyReport {
    let config = engine.config;
    let timing = engine.plan.timing();
    let timings = timing.layers(&engine.program, config);
    let total_cycles = timing.total.0;
    let layers: Vec<LayerLatency> = timings
        .iter()
        .enumerate()
        .map(|(index, timing)| layer_report(engine, index, timing, total_cycles))
        .collect();
    let accounted: u64 = layers.iter().map(|layer| layer.cycles).sum();
    assert_eq!(
        accounted, total_cycles,
        "the layers' cycles do not sum to the total"
    );
    let mut owned_cycles = OwnedCycles::default();
    for layer in &layers {
        owned_cycles.add(&layer.owned_cycles);
    }
    let n_pes = n_pes(config);
    let mac_passes: u64 = timings.iter().map(|timing| timing.mac_passes).sum();
    let total_seconds = total_cycles as f64 / config.clock_hz as f64;
    LatencyReport {
        header: Header::new("latency", config, engine.network),
        clock_hz: config.clock_hz,
        n_pes,
        total_cycles,
        total_seconds,
        frames_per_second: ratio(config.clock_hz, total_cycles),
        n_macs: engine.program.layers.iter().map(|layer| layer.n_macs).sum(),
        compute_utilization: ratio(mac_passes, n_pes.saturating_mul(total_cycles)),
        dram_read_bytes: layers.iter().map(|layer| layer.dram_read_bytes).sum(),
        dram_written_bytes: layers.iter().map(|layer| layer.dram_written_bytes).sum(),
        owned_cycles,
        layers,
    }
}

fn layer_report(
    engine: &Engine<'_>,
    index: usize,
    timing: &LayerTiming,
    total_cycles: u64,
) -> LayerLatency {
    let config = engine.config;
    let info = &engine.program.layers[index];
    let n_pes = n_pes(config);
    let bytes = timing.loaded.payload.0 + timing.stored.payload.0;
    let work = info
        .n_macs
        .saturating_mul(n_passes(engine.network, &engine.network.layers[index]));
    let compute_floor_cycles = work.div_ceil(n_pes);
    let memory_floor_cycles = bytes.div_ceil(u64::from(config.dram.bytes_per_cycle));
    LayerLatency {
        name: info.name.clone(),
        from_cycle: timing.from.0,
        cycles: timing.cycles.0,
        share: ratio(timing.cycles.0, total_cycles),
        n_macs: info.n_macs,
        compute_utilization: ratio(timing.mac_passes, n_pes.saturating_mul(timing.cycles.0)),
        mapping_utilization: ratio(timing.mac_passes, n_pes.saturating_mul(timing.array_busy.0)),
        bound: if memory_floor_cycles > compute_floor_cycles {
            Bound::Memory
        } else {
            Bound::Compute
        },
        compute_floor_cycles,
        memory_floor_cycles,
        dram_read_bytes: timing.loaded.payload.0,
        dram_written_bytes: timing.stored.payload.0,
        owned_cycles: OwnedCycles::of(timing),
    }
}

fn n_pes(config: &Config) -> u64 {
    u64::from(config.rows) * u64::from(config.cols)
}

/// Cycles that a PE needs for a MAC: 4-bit multipliers take wider operands nibble by nibble.
fn n_passes(network: &Network, layer: &Layer) -> u64 {
    layer.conv().map_or(0, |conv| {
        let nibbles = |bits: u8| u64::from(bits.div_ceil(4));
        nibbles(conv.weight_bits) * nibbles(network.tensor(conv.input).format.storage_bits())
    })
}

/// 0 when there is nothing to divide by.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}
