//! Instructions of one layer, in an order in which they could run one after the other.
//!
//! Invariant: what stands behind an instruction can run when it has ended, every load stands before
//! what needs it, and each instruction lists everything that it reads and writes, buffer by buffer.

mod array;
mod dma;
mod lanes;
mod operands;
mod pooling;

use crate::{
    job::{Conv, Job, Work},
    layout::PARAMETER_BYTES,
    tile::{Plan, Ring},
    weights::{Group, WeightPlan},
};
use accelerator::Config;
use array::Fold;
use isa::{
    Destination, Filter, Input, Kernel, LoadPitch, Op, Residual, Slope, Source, StorePitch, Unit,
    Window,
};
use smallvec::SmallVec;

/// A memory that instructions share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Memory {
    Dram,
    Activation,
    Weight,
    /// In entries.
    Parameter,
    /// In rows of accumulator blocks.
    Block,
}

impl Memory {
    /// How many there are.
    pub const N: usize = 5;
}

/// Bytes (entries, block rows) that an instruction touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Access {
    pub memory: Memory,
    pub write: bool,
    from: u32,
    len: u32,
}

impl Access {
    fn new(memory: Memory, write: bool, from: u32, len: u64) -> Self {
        Self {
            memory,
            write,
            from,
            len: u32::try_from(len).expect("addresses have 32 bits"),
        }
    }

    pub fn from(self) -> u64 {
        self.from.into()
    }

    /// Behind the last.
    pub fn to(self) -> u64 {
        u64::from(self.from) + u64::from(self.len)
    }
}

/// What an instruction touches.
pub(crate) type Accesses = SmallVec<[Access; 4]>;

/// The tile and weight group that an instruction works for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    pub tile: u32,
    /// `None` for pooling. On lanes it is a run of channels.
    pub group: Option<u32>,
}

impl Note {
    /// For reading.
    pub fn text(self, plan: &Plan) -> String {
        let [rows, columns] = plan.tile(self.tile as usize);
        let columns = if plan.xs.len() > 1 {
            format!(" columns {}..{}", columns.0, columns.1)
        } else {
            String::new()
        };
        let channels = self.group.and_then(|group| {
            let group = group as usize;
            let weights = plan.weights.as_ref();
            let groups = weights.map(|w| (w.groups[group].channel, w.groups[group].n_channels));
            groups.or_else(|| Some(plan.lanes.as_ref()?.runs[group]))
        });
        let channels = channels.map_or_else(String::new, |(first, n)| {
            format!(" channels {first}..{}", first + n)
        });
        format!("rows {}..{}{columns}{channels}", rows.0, rows.1)
    }
}

/// An instruction without its tokens.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub op: Op,
    pub accesses: Accesses,
    pub note: Note,
}

impl Item {
    /// Belongs to the load unit.
    pub fn is_load(&self) -> bool {
        self.op.unit() == Unit::Load
    }
}

/// The instructions of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Emitted {
    pub items: Vec<Item>,
    /// First byte behind the weights that were loaded last.
    pub weight: u32,
    /// First parameter entry behind those in use.
    pub parameter: u32,
}

/// Which tile or piece lies in which slot.
struct Slots {
    ring: Ring,
    /// What each slot holds.
    held: Vec<Option<usize>>,
    /// Where each key lies.
    slot_of: Vec<Option<u32>>,
    next: u32,
}

impl Slots {
    /// Empty slots for keys below `n_keys`.
    fn new(ring: Ring, first_slot: u32, n_keys: usize) -> Self {
        Self {
            ring,
            held: vec![None; ring.n_slots as usize],
            slot_of: vec![None; n_keys],
            next: first_slot,
        }
    }

    /// The address for a key, and whether its data has yet to be loaded.
    fn take(&mut self, key: usize) -> (u32, bool) {
        if let Some(slot) = self.slot_of[key] {
            return (self.ring.address(slot), false);
        }
        let slot = self.next;
        self.next = (self.next + 1) % self.ring.n_slots;
        if let Some(replaced) = self.held[slot as usize].replace(key) {
            self.slot_of[replaced] = None;
        }
        self.slot_of[key] = Some(slot);
        (self.ring.address(slot), true)
    }
}

/// What the units' registers hold.
#[derive(Default)]
struct Registers {
    load: Option<LoadPitch>,
    store: Option<StorePitch>,
    input: Option<Input>,
    kernel: Option<Kernel>,
    source: Option<Source>,
    window: Option<Window>,
    filter: Option<Filter>,
    destination: Option<Destination>,
    residual: Option<Residual>,
    slope: Option<Slope>,
}

struct Emitter<'a> {
    job: &'a Job,
    plan: &'a Plan,
    config: &'a Config,
    registers: Registers,
    items: Vec<Item>,
    note: Note,
    inputs: Vec<Slots>,
    output: Slots,
    second: Slots,
    next_block: u32,
}

/// The instructions of a layer.
pub(crate) fn emit(job: &Job, plan: &Plan, config: &Config) -> Emitted {
    let n_tiles = plan.n_tiles();
    let n_groups = plan.weights.as_ref().map_or(1, |w| w.groups.len());
    let mut emitter = Emitter {
        job,
        plan,
        config,
        registers: Registers::default(),
        items: Vec::new(),
        note: Note::default(),
        inputs: plan
            .inputs
            .iter()
            .map(|&ring| Slots::new(ring, 0, n_tiles))
            .collect(),
        output: Slots::new(plan.output, 0, n_tiles * n_groups),
        second: Slots::new(plan.second, 0, n_tiles),
        next_block: 0,
    };
    let (weight, parameter) = match (&job.work, &plan.weights) {
        (Work::Conv(conv), Some(weights)) => emitter.convolution(conv, weights),
        (Work::Pool(parts), _) => {
            emitter.pooling(parts);
            (0, 0)
        }
        (Work::Lanes(conv), _) => {
            let lanes = plan.lanes.as_ref();
            emitter.lanes(conv, lanes.expect("a plan for lanes has runs"));
            (0, 0)
        }
        (Work::Conv(_), None) => unreachable!("a convolution's plan has weights"),
    };
    Emitted {
        items: emitter.items,
        weight,
        parameter,
    }
}

impl Emitter<'_> {
    fn push(&mut self, op: impl Into<Op>, accesses: impl IntoIterator<Item = Access>) {
        self.items.push(Item {
            op: op.into(),
            accesses: accesses.into_iter().collect(),
            note: self.note,
        });
    }

    /// Returns where weights and parameters end.
    fn convolution(&mut self, conv: &Conv, plan: &WeightPlan) -> (u32, u32) {
        let n_groups = plan.groups.len();
        let mut weights = Slots::new(plan.ring, plan.first_slot, plan.n_pieces());
        let mut parameters = Slots::new(plan.parameters, 0, n_groups);
        let n_tiles = self.plan.n_tiles();
        for step in 0..n_tiles * n_groups {
            let (tile, group_index) = if plan.outer {
                (step % n_tiles, step / n_tiles)
            } else {
                (step / n_groups, step % n_groups)
            };
            let group = &plan.groups[group_index];
            self.note = Note {
                tile: tile as u32,
                group: Some(group_index as u32),
            };
            let parameter = self.load_parameters(conv, plan, group_index, &mut parameters);
            let input = self.load_tile(0, tile, &conv.input, &conv.window);
            let output = self.output_tile(tile, plan.sliced.then_some((group_index, group)));
            self.set_input(conv, tile, group, input);
            self.set_destination(&output);
            for index in group.first_tile..group.first_tile + group.n_tiles {
                let column = &plan.tiles[index];
                self.set_group(conv, column.channel);
                let mut pixel = 0;
                let n_folds = output
                    .n_pixels()
                    .div_ceil(crate::tile::fold_pixels(self.config));
                let fold_pixels = output.n_pixels().div_ceil(n_folds);
                while pixel < output.n_pixels() {
                    let n_pixels = fold_pixels.min(output.n_pixels() - pixel);
                    let fold = Fold {
                        pixel,
                        n_pixels,
                        index,
                        channel: column.channel,
                        n_channels: column.n_channels,
                        parameter: parameter + column.channel - Self::first_parameter(plan, group),
                        all_padding: input.is_none(),
                    };
                    self.fold(conv, plan, &fold, &mut weights, &output);
                    pixel += n_pixels;
                }
            }
            if self.job.store && (plan.sliced || group_index + 1 == n_groups) {
                self.store(&output);
            }
        }
        let behind = plan.parameters.base + plan.parameters.size();
        (plan.ring.address(weights.next), behind)
    }

    /// Channel of the first entry of the slot that holds a group's parameters.
    fn first_parameter(plan: &WeightPlan, group: &Group) -> u32 {
        if plan.parameters_resident {
            0
        } else {
            group.channel
        }
    }

    /// First entry of the group's slot.
    fn load_parameters(
        &mut self,
        conv: &Conv,
        plan: &WeightPlan,
        group_index: usize,
        slots: &mut Slots,
    ) -> u32 {
        let group = &plan.groups[group_index];
        let (key, n) = if plan.parameters_resident {
            (0, conv.groups * conv.group_out)
        } else {
            (group_index, group.n_channels)
        };
        let (entry, missing) = slots.take(key);
        if missing {
            let first = Self::first_parameter(plan, group) * PARAMETER_BYTES;
            let access = Access::new(Memory::Parameter, true, entry, n.into());
            let load = (u64::from(conv.parameters + first), entry * PARAMETER_BYTES);
            self.load_run(2, load, u64::from(n * PARAMETER_BYTES), access);
        }
        entry
    }
}
