//! `systole latency`: cycles of every layer, who owned them, and what they cost.

use crate::{
    args::Latency,
    engine::Engine,
    input, model, output,
    report::{
        Bound, DramRows, EnergyByUnit, Header, LatencyReport, LayerLatency, OwnedCycles,
        StallReport,
    },
    tables, trace,
};
use accelerator::{Config, Counts, DepthwiseUnit, EnergyTable, LayerTiming, Owner, count_actions};
use anyhow::Result;
use network::{Layer, Network};

/// Runs the command.
///
/// # Errors
/// Bad files, or a machine too small for the model.
pub fn run(args: &Latency) -> Result<()> {
    if let Some(path) = &args.trace {
        output::check_writable(path)?;
    }
    let machine = input::machine(args.machine.as_deref())?;
    let accumulator_bits = machine.config.arithmetic.accumulator.width_bits;
    let network = model::open_for_time(&args.model, &args.uncalibrated, accumulator_bits)?;
    let engine = Engine::timed(&network, &machine.config)?;
    let report = report(&engine, &machine.energy)?;
    if let Some(path) = &args.trace {
        output::write_file(path, &trace::chrome(&engine, &report)?)?;
    }
    if args.json {
        return output::print_json(&report);
    }
    if args.csv {
        return output::print_csv(&report.layers);
    }
    output::print(&format!(
        "{}\n{}",
        tables::header(&report.header),
        tables::latency(&report, args.wide)
    ))
}

/// The report of a compiled network.
///
/// # Errors
/// The program breaks a rule of the machine.
pub fn report(engine: &Engine<'_>, energy: &EnergyTable) -> Result<LatencyReport> {
    let config = engine.config;
    let timing = engine.plan.timing();
    let timings = timing.layers(&engine.program, config);
    let actions = count_actions(&engine.program, config)?;
    let total_cycles = timing.total.0;
    let layers: Vec<LayerLatency> = timings
        .iter()
        .zip(&actions)
        .enumerate()
        .map(|(index, (timing, actions))| {
            layer_report(engine, energy, index, timing, actions, total_cycles)
        })
        .collect();
    let accounted: u64 = layers.iter().map(|layer| layer.cycles).sum();
    assert_eq!(
        accounted, total_cycles,
        "the layers' cycles do not sum to the total"
    );
    let mut owned_cycles = OwnedCycles::default();
    let mut energy_by_unit_fj = EnergyByUnit::default();
    for layer in &layers {
        owned_cycles.add(&layer.owned_cycles);
        energy_by_unit_fj.add(&layer.energy_by_unit_fj);
    }
    let n_pes = n_pes(config);
    let mac_passes: u64 = timings.iter().map(|timing| timing.mac_passes).sum();
    let total_seconds = total_cycles as f64 / config.clock_hz as f64;
    let energy_fj = energy_by_unit_fj.total();
    let roofline_cycles = layers
        .iter()
        .map(|layer| layer.compute_floor_cycles.max(layer.dram_cycles))
        .sum();
    Ok(LatencyReport {
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
        lane_macs: engine
            .network
            .layers
            .iter()
            .zip(&engine.program.layers)
            .filter(|(layer, _)| is_on_lanes(layer, config))
            .map(|(_, info)| info.n_macs)
            .sum(),
        lane_mapping_utilization: ratio(
            timings.iter().map(|timing| timing.lane_passes).sum(),
            u64::from(config.lanes)
                * timings
                    .iter()
                    .map(|timing| timing.lanes_busy.0)
                    .sum::<u64>(),
        ),
        dram_rows: DramRows::total(layers.iter().map(|layer| layer.dram_rows)),
        roofline_cycles,
        over_roofline: ratio(total_cycles, roofline_cycles),
        owned_cycles,
        energy_fj,
        energy_by_unit_fj,
        average_watts: if total_cycles == 0 {
            0.0
        } else {
            energy_fj as f64 * 1e-15 / total_seconds
        },
        actions: actions.into_iter().sum(),
        action_fj: energy.actions,
        cycle_fj: energy.cycle,
        stalls: stalls(&layers),
        layers,
    })
}

fn layer_report(
    engine: &Engine<'_>,
    energy: &EnergyTable,
    index: usize,
    timing: &LayerTiming,
    actions: &Counts,
    total_cycles: u64,
) -> LayerLatency {
    let config = engine.config;
    let info = &engine.program.layers[index];
    let bytes = timing.loaded.payload.0 + timing.stored.payload.0;
    let on_lanes = timing.lane_passes > 0;
    let (multipliers, done, busy) = if on_lanes {
        let lanes = u64::from(config.lanes);
        (lanes, timing.lane_passes, timing.lanes_busy.0)
    } else {
        (n_pes(config), timing.mac_passes, timing.array_busy.0)
    };
    let work = info
        .n_macs
        .saturating_mul(n_passes(engine.network, &engine.network.layers[index]));
    let cycles = timing.cycles.0;
    let compute_floor_cycles = work.div_ceil(multipliers);
    let memory_floor_cycles = timing.bus_busy.0;
    let post_floor_cycles = timing.post_busy.0;
    let floor = memory_floor_cycles.max(post_floor_cycles);
    assert!(
        cycles >= floor && (on_lanes || cycles >= compute_floor_cycles),
        "layer {} beats its roofline: {cycles} cycles",
        info.name
    );
    let energy_by_unit_fj = EnergyByUnit::of(energy.charge(actions, timing.cycles));
    LayerLatency {
        name: info.name.clone(),
        from_cycle: timing.from.0,
        cycles,
        seconds: cycles as f64 / config.clock_hz as f64,
        share: ratio(cycles, total_cycles),
        n_macs: info.n_macs,
        compute_utilization: ratio(done, multipliers.saturating_mul(cycles)),
        mapping_utilization: ratio(done, multipliers.saturating_mul(busy)),
        bound: if compute_floor_cycles >= floor {
            Bound::Compute
        } else if memory_floor_cycles >= post_floor_cycles {
            Bound::Memory
        } else {
            Bound::Post
        },
        compute_floor_cycles,
        memory_floor_cycles,
        post_floor_cycles,
        dram_cycles: bytes.div_ceil(u64::from(config.dram.bytes_per_cycle)),
        dram_read_bytes: timing.loaded.payload.0,
        dram_written_bytes: timing.stored.payload.0,
        lane_busy_cycles: timing.lanes_busy.0,
        lane_mapping_utilization: ratio(
            timing.lane_passes,
            u64::from(config.lanes) * timing.lanes_busy.0,
        ),
        dram_rows: DramRows::of(timing, config),
        owned_cycles: OwnedCycles::of(timing),
        energy_fj: energy_by_unit_fj.total(),
        energy_by_unit_fj,
        actions: *actions,
    }
}

/// For every layer beyond its roofline: what most of its cycles went to besides useful work.
fn stalls(layers: &[LayerLatency]) -> Vec<StallReport> {
    let mut stalls: Vec<StallReport> = layers
        .iter()
        .filter_map(|layer| {
            let roofline = layer.compute_floor_cycles.max(layer.dram_cycles);
            let beyond = layer.cycles.saturating_sub(roofline);
            let computing = layer.owned_cycles.compute;
            // The owner that comes first wins among equals.
            let (owner, owned) = Owner::ALL
                .into_iter()
                .zip(layer.owned_cycles.list())
                .skip(1)
                .rev()
                .max_by_key(|&(_, owned)| owned)?;
            (beyond > 0).then(|| StallReport {
                layer: layer.name.clone(),
                beyond_roofline_cycles: beyond,
                idle_multipliers_cycles: computing.saturating_sub(layer.compute_floor_cycles),
                owner,
                owned_cycles: owned,
            })
        })
        .collect();
    stalls.sort_by_key(|stall| std::cmp::Reverse(stall.beyond_roofline_cycles));
    stalls
}

fn n_pes(config: &Config) -> u64 {
    u64::from(config.rows) * u64::from(config.cols)
}

/// Whether the post unit's lanes compute a layer.
fn is_on_lanes(layer: &Layer, config: &Config) -> bool {
    config.depthwise == DepthwiseUnit::Post
        && layer.conv().is_some_and(network::Conv::is_plain_depthwise)
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
