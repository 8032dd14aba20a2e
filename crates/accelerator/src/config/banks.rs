//! `[dram.banks]`: rows and banks of main memory, in memory clocks or by the name of a preset.
//!
//! Invariant: a [`Banks`] holds cycles of the accelerator: what a rule asks to pass is rounded up, the
//! time between refreshes is rounded down.

use super::{ConfigError, Door};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// Parts of a cycle that data transfers are counted in before they are rounded.
const PICO: u128 = 1_000_000_000_000;

/// Main memory's banks, one row of each open at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Banks {
    /// Banks, a power of two.
    pub n_banks: u32,
    /// Bytes of a row over the whole bus: a power of two, at least a burst.
    pub row_bytes: u32,
    /// Bytes of one access of the devices: bus width × burst length.
    pub access_bytes: u32,
    /// How long the data of one access takes, in 10^-12 cycles.
    pub access_picocycles: u64,
    /// From opening a row to its first column command.
    pub rcd_cycles: u64,
    /// From closing a row to opening the next.
    pub rp_cycles: u64,
    /// From a column command to its data.
    pub cl_cycles: u64,
    /// From opening a row to closing it.
    pub ras_cycles: u64,
    /// From opening a row to opening the next of the same bank.
    pub rc_cycles: u64,
    /// From one refresh to the next.
    pub refi_cycles: u64,
    /// How long a refresh takes when every row is closed.
    pub rfc_cycles: u64,
}

impl Banks {
    /// Bank and row of a byte: from the top, an address is row, bank, column.
    pub fn place(&self, address: u64) -> (usize, u64) {
        let row = address / u64::from(self.row_bytes);
        let n_banks = u64::from(self.n_banks);
        ((row % n_banks) as usize, row / n_banks)
    }

    /// Cycles in which no command is given for a refresh: every row is closed, then refreshed.
    pub const fn refresh_cycles(&self) -> u64 {
        self.rp_cycles + self.rfc_cycles
    }

    /// Cycles that the devices need for the data of a burst.
    pub fn data_cycles(&self, address: u64, length: u64) -> u64 {
        let access = u64::from(self.access_bytes);
        let n = (address + length - 1) / access - address / access + 1;
        (u128::from(n) * u128::from(self.access_picocycles)).div_ceil(PICO) as u64
    }
}

/// A memory that can be asked for by name.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub(super) enum Preset {
    #[serde(rename = "ddr4-2400")]
    Ddr4,
    #[serde(rename = "lpddr4-3200")]
    Lpddr4,
}

/// What a preset says for each key, in the order of [`FileBanks`].
struct Values {
    n_banks: i64,
    row_bytes: i64,
    bus_bytes: i64,
    burst_length: i64,
    tck_ps: i64,
    t_rcd: i64,
    t_rp: i64,
    t_cl: i64,
    t_ras: i64,
    t_rc: i64,
    t_refi: i64,
    t_rfc: i64,
}

/// JEDEC JESD79-4, speed bin DDR4-2400T (17-17-17), as in Micron's 8 Gb x8 data sheet (MT40A1G8,
/// -083): tCK 0.833 ns, tRCD = tRP = 14.16 ns, tRAS 32 ns, tRC 46.16 ns, tRFC1 350 ns, tREFI 7.8 µs,
/// 16 banks, 1 KiB pages; eight devices make a bus of 64 bits.
const DDR4_2400: Values = Values {
    n_banks: 16,
    row_bytes: 8192,
    bus_bytes: 8,
    burst_length: 8,
    tck_ps: 833,
    t_rcd: 17,
    t_rp: 17,
    t_cl: 17,
    t_ras: 39,
    t_rc: 56,
    t_refi: 9363,
    t_rfc: 421,
};

/// JEDEC JESD209-4, as in Micron's 200-ball LPDDR4 data sheet (MT53B256M32, -062): tCK 0.625 ns,
/// RL 28, tRCD = 18 ns, tRPpb = 18 ns, tRAS 42 ns, tRC = tRAS + tRPpb, tRFCab 180 ns (4 Gb a channel),
/// tREFI 3.904 µs, 8 banks, 2 KiB pages; its two channels of 16 bits work as one.
const LPDDR4_3200: Values = Values {
    n_banks: 8,
    row_bytes: 4096,
    bus_bytes: 4,
    burst_length: 16,
    tck_ps: 625,
    t_rcd: 29,
    t_rp: 29,
    t_cl: 28,
    t_ras: 68,
    t_rc: 97,
    t_refi: 6246,
    t_rfc: 288,
};

/// Rows and banks of main memory: a preset, or every key.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct FileBanks {
    /// A memory that gives every key that is left out.
    preset: Option<Preset>,
    /// Banks: a power of two.
    #[schemars(with = "Option<i64>", range(min = 1, max = 256))]
    n_banks: Option<Spanned<i64>>,
    /// Bytes of a row over the whole bus: a power of two, at least `burst_bytes`.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_048_576))]
    row_bytes: Option<Spanned<i64>>,
    /// Width of the memory bus: a power of two.
    #[schemars(with = "Option<i64>", range(min = 1, max = 128))]
    bus_bytes: Option<Spanned<i64>>,
    /// Transfers of an access: a power of two.
    #[schemars(with = "Option<i64>", range(min = 2, max = 64))]
    burst_length: Option<Spanned<i64>>,
    /// Memory clock period.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    tck_ps: Option<Spanned<i64>>,
    /// Memory clocks from opening a row to its first column command.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_rcd: Option<Spanned<i64>>,
    /// Memory clocks from closing a row to opening the next.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_rp: Option<Spanned<i64>>,
    /// Memory clocks from a column command to its data.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_cl: Option<Spanned<i64>>,
    /// Memory clocks from opening a row to closing it.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_ras: Option<Spanned<i64>>,
    /// Memory clocks from opening a row to opening the next of the bank.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_rc: Option<Spanned<i64>>,
    /// Memory clocks from one refresh to the next.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_refi: Option<Spanned<i64>>,
    /// Memory clocks of a refresh.
    #[schemars(with = "Option<i64>", range(min = 1, max = 1_000_000))]
    t_rfc: Option<Spanned<i64>>,
}

/// Converts the values of one table.
struct Reader<'a> {
    door: &'a Door<'a>,
    table: std::ops::Range<usize>,
    values: Option<Values>,
    clock_hz: u64,
}

impl Reader<'_> {
    fn number(
        &self,
        key: &str,
        written: Option<&Spanned<i64>>,
        preset: impl Fn(&Values) -> i64,
        (min, max): (i64, i64),
    ) -> Result<u64, ConfigError> {
        match (written, &self.values) {
            (Some(value), _) => self.door.number(key, value, min, max),
            (None, Some(values)) => Ok(preset(values) as u64),
            (None, None) => {
                let message = format!("missing field `{key}`: without `preset` every key is given");
                Err(self.door.refuse(&self.table, message))
            }
        }
    }

    fn power_of_two(
        &self,
        key: &str,
        written: Option<&Spanned<i64>>,
        preset: impl Fn(&Values) -> i64,
        (min, max): (i64, i64),
    ) -> Result<u32, ConfigError> {
        let number = self.number(key, written, preset, (min, max))?;
        if number.is_power_of_two() {
            return Ok(number as u32);
        }
        let span = written.map_or(self.table.clone(), Spanned::span);
        let message = format!("{key} = {number}: must be a power of two");
        Err(self.door.refuse(&span, message))
    }

    /// Memory clocks as cycles of the accelerator, times 10^12.
    fn picocycles(&self, n_clocks: u64, tck_ps: u64) -> u128 {
        u128::from(n_clocks) * u128::from(tck_ps) * u128::from(self.clock_hz)
    }
}

impl FileBanks {
    pub(super) fn check(
        &self,
        door: &Door<'_>,
        table: std::ops::Range<usize>,
        clock_hz: u64,
        burst_bytes: u32,
    ) -> Result<Banks, ConfigError> {
        const CLOCKS: (i64, i64) = (1, 1_000_000);
        let reader = Reader {
            door,
            table,
            values: self.preset.map(|preset| match preset {
                Preset::Ddr4 => DDR4_2400,
                Preset::Lpddr4 => LPDDR4_3200,
            }),
            clock_hz,
        };
        let written = self.n_banks.as_ref();
        let n_banks = reader.power_of_two("n_banks", written, |v| v.n_banks, (1, 256))?;
        let written = self.row_bytes.as_ref();
        let row_bytes = reader.power_of_two("row_bytes", written, |v| v.row_bytes, (1, 1 << 20))?;
        let written = self.bus_bytes.as_ref();
        let bus_bytes = reader.power_of_two("bus_bytes", written, |v| v.bus_bytes, (1, 128))?;
        let written = self.burst_length.as_ref();
        let burst_length =
            reader.power_of_two("burst_length", written, |v| v.burst_length, (2, 64))?;
        let written = self.tck_ps.as_ref();
        let tck_ps = reader.number("tck_ps", written, |v| v.tck_ps, (1, 1_000_000))?;
        if row_bytes < burst_bytes {
            let span = self
                .row_bytes
                .as_ref()
                .map_or(reader.table.clone(), Spanned::span);
            let message = format!(
                "row_bytes = {row_bytes}: must be at least dram.burst_bytes, {burst_bytes}, so that a burst has one row"
            );
            return Err(door.refuse(&span, message));
        }
        let clocks = |key: &str, written: &Option<Spanned<i64>>, preset: fn(&Values) -> i64| {
            reader.number(key, written.as_ref(), preset, CLOCKS)
        };
        let up = |n: u64| reader.picocycles(n, tck_ps).div_ceil(PICO) as u64;
        let banks = Banks {
            n_banks,
            row_bytes,
            access_bytes: bus_bytes * burst_length,
            // Two transfers a clock.
            access_picocycles: reader.picocycles(u64::from(burst_length / 2), tck_ps) as u64,
            rcd_cycles: up(clocks("t_rcd", &self.t_rcd, |v| v.t_rcd)?),
            rp_cycles: up(clocks("t_rp", &self.t_rp, |v| v.t_rp)?),
            cl_cycles: up(clocks("t_cl", &self.t_cl, |v| v.t_cl)?),
            ras_cycles: up(clocks("t_ras", &self.t_ras, |v| v.t_ras)?),
            rc_cycles: up(clocks("t_rc", &self.t_rc, |v| v.t_rc)?),
            refi_cycles: (reader.picocycles(clocks("t_refi", &self.t_refi, |v| v.t_refi)?, tck_ps)
                / PICO) as u64,
            rfc_cycles: up(clocks("t_rfc", &self.t_rfc, |v| v.t_rfc)?),
        };
        if banks.rfc_cycles < banks.rc_cycles {
            let message = "t_rfc: a refresh must last at least t_rc".to_owned();
            return Err(door.refuse(&reader.table, message));
        }
        if banks.refi_cycles <= banks.refresh_cycles() + banks.rcd_cycles {
            let message = format!(
                "t_refi: {} cycles from one refresh to the next leave no time for data after {} of refresh and {} to open a row",
                banks.refi_cycles,
                banks.refresh_cycles(),
                banks.rcd_cycles
            );
            return Err(door.refuse(&reader.table, message));
        }
        Ok(banks)
    }
}
