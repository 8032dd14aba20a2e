//! The event model: the default. Time and values are computed apart, because timing does not
//! depend on data: one [`Plan`] serves every image.

mod dram;
mod execute;
mod mac;
mod timing;

use crate::{Config, Fault, Timing, rules, rules::Work};
use arith::ChannelOverflow;
pub use execute::Detail;
use isa::Program;
pub use timing::Tasks;

/// A program that has been checked and timed for one machine.
pub struct Plan<'a> {
    config: &'a Config,
    n_channels: usize,
    works: Vec<Work>,
    /// Instructions in the order of their starts: without races, an order of their effects.
    order: Vec<u32>,
    timing: Timing,
}

impl<'a> Plan<'a> {
    /// Checks and times a program.
    ///
    /// # Errors
    /// The first broken rule of `docs/machine.md`, or a deadlock or token overflow in the run.
    pub fn new(program: &Program, config: &'a Config) -> Result<Self, Fault> {
        let works = rules::resolve(program, config)?;
        let mut tasks = Tasks::none(program, config);
        for (instruction, work) in program.instructions.iter().zip(&works) {
            tasks.push(instruction, work);
        }
        let timing = tasks.time()?;
        let mut order: Vec<u32> = (0..works.len() as u32).collect();
        order.sort_by_key(|&index| timing.start[index as usize]);
        Ok(Self {
            config,
            n_channels: program.n_channels as usize,
            works,
            order,
            timing,
        })
    }

    /// When everything happens.
    pub fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Runs the program on `dram` (at least `dram_bytes` of the program).
    ///
    /// # Errors
    /// A parameter that the machine cannot use.
    pub fn execute(&self, dram: &mut [u8], detail: Detail) -> Result<Vec<ChannelOverflow>, Fault> {
        execute::execute(
            self.config,
            &self.works,
            &self.order,
            self.n_channels,
            dram,
            detail,
        )
    }
}

/// Times a program; see [`Plan::new`].
///
/// # Errors
/// As [`Plan::new`].
pub fn time(program: &Program, config: &Config) -> Result<Timing, Fault> {
    Tasks::of(program, config)?.time()
}

/// Runs a program once with every statistic; see [`Plan::execute`].
///
/// # Errors
/// As [`Plan::new`] and [`Plan::execute`].
pub fn execute(
    program: &Program,
    config: &Config,
    dram: &mut [u8],
) -> Result<Vec<ChannelOverflow>, Fault> {
    Plan::new(program, config)?.execute(dram, Detail::Full)
}
