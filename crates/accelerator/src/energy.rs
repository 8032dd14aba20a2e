//! What each action costs: the machine file's `[energy]` table, or documented defaults.
//!
//! Invariant: energies are integers of femtojoules, so sums are exact in any order. The sources of
//! the defaults are in `docs/energy.md`.

use crate::{Action, Config, ConfigError, Counts, config::Door};
use arith::Cycles;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

/// Femtojoules of each action, and of a cycle in which nothing need happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnergyTable {
    /// Femtojoules of one action.
    pub actions: Counts,
    /// Femtojoules of a cycle: leakage and clocks.
    pub cycle: u64,
}

/// Prices of actions in picojoules, with at most three decimals; a key that is left out has its default.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[expect(clippy::struct_field_names, reason = "the unit is part of a key")]
pub(crate) struct FileEnergy {
    /// The frontend fetches an instruction and hands it on.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    instruction_pj: Option<Spanned<f64>>,
    /// A multiplier, of a PE or of a lane, takes a pass: 4 × 4 bits.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    multiply_pj: Option<Spanned<f64>>,
    /// An addition at the accumulators' width, in a PE, below a column, or in a lane.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    accumulate_pj: Option<Spanned<f64>>,
    /// An accumulator is written to a block or read from it.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    block_pj: Option<Spanned<f64>>,
    /// 4 bits are read from the activation scratchpad.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    activation_read_pj: Option<Spanned<f64>>,
    /// 4 bits are written to the activation scratchpad.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    activation_write_pj: Option<Spanned<f64>>,
    /// 4 bits are read from the weight scratchpad.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    weight_read_pj: Option<Spanned<f64>>,
    /// 4 bits are written to the weight scratchpad.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    weight_write_pj: Option<Spanned<f64>>,
    /// An entry (8 bytes) of the parameter table is read.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    parameter_read_pj: Option<Spanned<f64>>,
    /// A byte of the parameter table is written.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    parameter_write_pj: Option<Spanned<f64>>,
    /// A lane of the post unit takes an element (of a window: each tap, and each pass of it).
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    lane_pj: Option<Spanned<f64>>,
    /// A byte of a bus word is read from DRAM, asked for or not.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    dram_read_pj: Option<Spanned<f64>>,
    /// A byte of a bus word is written to DRAM, asked for or not.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    dram_write_pj: Option<Spanned<f64>>,
    /// A cycle passes: leakage and clocks.
    #[schemars(with = "Option<f64>", range(min = 0, max = 1_000_000))]
    cycle_pj: Option<Spanned<f64>>,
}

impl FileEnergy {
    fn price(&self, action: Action) -> Option<&Spanned<f64>> {
        match action {
            Action::Instruction => &self.instruction_pj,
            Action::Multiply => &self.multiply_pj,
            Action::Accumulate => &self.accumulate_pj,
            Action::Block => &self.block_pj,
            Action::ActivationRead => &self.activation_read_pj,
            Action::ActivationWrite => &self.activation_write_pj,
            Action::WeightRead => &self.weight_read_pj,
            Action::WeightWrite => &self.weight_write_pj,
            Action::ParameterRead => &self.parameter_read_pj,
            Action::ParameterWrite => &self.parameter_write_pj,
            Action::Lane => &self.lane_pj,
            Action::DramRead => &self.dram_read_pj,
            Action::DramWrite => &self.dram_write_pj,
        }
        .as_ref()
    }

    /// The defaults of the machine, replaced where the file says something.
    pub(crate) fn table(
        &self,
        config: &Config,
        door: &Door<'_>,
    ) -> Result<EnergyTable, ConfigError> {
        let mut table = EnergyTable::default_for(config);
        for action in Action::ALL {
            if let Some(price) = self.price(action) {
                table.actions[action] = femtojoules(action.name(), price, door)?;
            }
        }
        if let Some(price) = &self.cycle_pj {
            table.cycle = femtojoules("cycle", price, door)?;
        }
        Ok(table)
    }
}

/// Largest price, 1 µJ: far above any, and small enough that sums stay inside 64 bits.
const MAX_PJ: f64 = 1e6;

fn femtojoules(name: &str, price: &Spanned<f64>, door: &Door<'_>) -> Result<u64, ConfigError> {
    let pj = *price.get_ref();
    let refuse = |rule: &str| {
        let message = format!("{name}_pj = {pj}: must {rule}");
        Err(door.refuse(&price.span(), message))
    };
    if !(0.0..=MAX_PJ).contains(&pj) {
        return refuse("be 0 to 1000000");
    }
    let fj = (pj * 1000.0).round();
    // A decimal number is not exact in binary: a millionth of a femtojoule is no fourth decimal.
    if (pj * 1000.0 - fj).abs() > 1e-6 {
        return refuse("have at most three decimals");
    }
    Ok(fj as u64)
}

/// Units that energy is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EnergyUnit {
    /// Fetching and handing on of instructions.
    Frontend,
    /// Multipliers and accumulators, of PEs and of lanes.
    Macs,
    /// Accumulator blocks.
    Blocks,
    /// Activation scratchpad.
    Activations,
    /// Weight scratchpad.
    Weights,
    /// Parameter table.
    Parameters,
    /// Requantization and pooling in the post unit's lanes.
    Post,
    /// Main memory and its bus.
    Dram,
    /// Leakage and clocks.
    Static,
}

impl EnergyUnit {
    /// How many there are.
    pub const COUNT: usize = 9;

    /// Every unit.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Frontend,
        Self::Macs,
        Self::Blocks,
        Self::Activations,
        Self::Weights,
        Self::Parameters,
        Self::Post,
        Self::Dram,
        Self::Static,
    ];

    /// To which unit an action belongs.
    pub const fn of(action: Action) -> Self {
        match action {
            Action::Instruction => Self::Frontend,
            Action::Multiply | Action::Accumulate => Self::Macs,
            Action::Block => Self::Blocks,
            Action::ActivationRead | Action::ActivationWrite => Self::Activations,
            Action::WeightRead | Action::WeightWrite => Self::Weights,
            Action::ParameterRead | Action::ParameterWrite => Self::Parameters,
            Action::Lane => Self::Post,
            Action::DramRead | Action::DramWrite => Self::Dram,
        }
    }
}

impl EnergyTable {
    /// The defaults for a machine; `docs/energy.md` derives each from its source.
    pub fn default_for(config: &Config) -> Self {
        let width = u64::from(config.arithmetic.accumulator.width_bits);
        let block_bytes = u64::from(config.n_blocks)
            * u64::from(config.block_rows)
            * u64::from(config.cols)
            * width.div_ceil(8);
        let parameter_bytes = u64::from(config.n_parameters) * 8;
        let activation = sram_word(config.activation_bytes.into());
        let weight = sram_word(config.weight_bytes.into());
        let parameter = sram_word(parameter_bytes);
        let mut actions = Counts::default();
        actions[Action::Instruction] = 2 * sram_word(INSTRUCTION_MEMORY_BYTES);
        actions[Action::Multiply] = multiply(4, 4);
        actions[Action::Accumulate] = add(width);
        actions[Action::Block] = (sram_word(block_bytes) * width).div_ceil(WORD_BITS);
        actions[Action::ActivationRead] = activation / 16;
        actions[Action::ActivationWrite] = activation / 16;
        actions[Action::WeightRead] = weight / 16;
        actions[Action::WeightWrite] = weight / 16;
        actions[Action::ParameterRead] = parameter;
        actions[Action::ParameterWrite] = parameter / 8;
        actions[Action::Lane] = multiply(width, 8) + add(32);
        actions[Action::DramRead] = DRAM_WORD / 8;
        actions[Action::DramWrite] = DRAM_WORD / 8;
        Self { actions, cycle: 0 }
    }

    /// Femtojoules by unit, in the order of [`EnergyUnit::ALL`].
    ///
    /// # Panics
    /// On more than 2^64 fJ, 18 kJ: half a year of a watt.
    pub fn charge(&self, counts: &Counts, cycles: Cycles) -> [u64; EnergyUnit::COUNT] {
        let mut units = [0u64; EnergyUnit::COUNT];
        for action in Action::ALL {
            units[EnergyUnit::of(action) as usize] += counts[action] * self.actions[action];
        }
        units[EnergyUnit::Static as usize] += cycles.0 * self.cycle;
        units
    }
}

/// Bits of a memory access in the source's table.
const WORD_BITS: u64 = 64;
/// Femtojoules of 64 bits from a memory of 8 KiB.
const SRAM_8K_WORD: f64 = 10_000.0;
/// Femtojoules of 64 bits from DRAM.
const DRAM_WORD: u64 = 1_300_000;
/// The instruction memory is not part of the machine file: as large as the source's smallest.
const INSTRUCTION_MEMORY_BYTES: u64 = 8192;

/// Femtojoules of a 64-bit access: 10 pJ at 8 KiB, growing with the square root of the size.
fn sram_word(bytes: u64) -> u64 {
    (SRAM_8K_WORD * (bytes as f64 / 8192.0).sqrt()).round() as u64
}

/// Femtojoules of a multiplication: 0.2 pJ at 8 × 8 bits, growing with the product of the widths.
fn multiply(a_bits: u64, b_bits: u64) -> u64 {
    200 * a_bits * b_bits / 64
}

/// Femtojoules of an addition: on the line through 0.03 pJ at 8 bits and 0.1 pJ at 32.
fn add(bits: u64) -> u64 {
    30 + 70 * (bits - 8) / 24
}

#[cfg(test)]
mod tests {
    use super::{add, multiply, sram_word};

    #[test]
    fn the_source_table_within_its_error() {
        assert_eq!((add(8), add(32)), (30, 100));
        assert_eq!((multiply(8, 8), multiply(4, 4)), (200, 50));
        assert_eq!((sram_word(8 << 10), sram_word(32 << 10)), (10_000, 20_000));
        // The source has 100 pJ at 1 MiB; the square root gives 113.
        assert_eq!(sram_word(1 << 20), 113_137);
        // And 3.1 pJ for 32 × 32 bits; the product gives 3.2.
        assert_eq!(multiply(32, 32), 3_200);
    }
}
