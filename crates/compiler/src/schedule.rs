//! The order of the instruction stream: loads move ahead of work that does not need them, across
//! tiles and layers.
//!
//! A load goes as far ahead as the memory that it writes and the data that it reads allow, with one
//! limit: there are never more loads whose data nobody has used yet than the load queue holds,
//! because a full queue would stop the frontend. Invariant: the stream stays valid when run one
//! after the other, and no unit's own order changes.

use crate::{
    emit::{Item, Memory},
    ranges::Ranges,
};

/// Who touched a range last: positions in the order before scheduling.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// Last instruction of another unit that wrote.
    write: Option<u32>,
    /// Last instruction of another unit that read.
    read: Option<u32>,
    /// Last load that wrote, as an index among loads.
    load: Option<u32>,
}

/// A load, with the setup before it.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// No earlier than behind this many instructions of other units.
    earliest: u32,
    /// How many stand before it where it was emitted, just before what needs it.
    natural: u32,
    /// The first instruction of another unit that uses the data, if any does.
    first_use: Option<u32>,
}

/// The order of the instructions of all layers: their positions in `items`.
pub(crate) fn order(items: &[Item], queue_depth: u32) -> Vec<u32> {
    let loads = constraints(items);
    // Positions count the instructions of other units that stand before.
    let mut positions = Vec::with_capacity(loads.len());
    let mut position = 0;
    for (index, load) in loads.iter().enumerate() {
        let oldest = index.checked_sub(queue_depth as usize);
        let used = oldest.and_then(|oldest| loads[oldest].first_use);
        let behind_use = used.map_or(0, |used| used + 1);
        position = position
            .max(load.earliest)
            .max(behind_use.min(load.natural));
        positions.push(position);
    }
    let of_kind = |is_load: bool| {
        let indices = 0..items.len() as u32;
        indices.filter(move |&index| items[index as usize].is_load() == is_load)
    };
    let mut stream = Vec::with_capacity(items.len());
    let mut loads = of_kind(true).zip(positions).peekable();
    for (index, work) in of_kind(false).enumerate() {
        while let Some((load, _)) = loads.next_if(|&(_, position)| position as usize <= index) {
            stream.push(load);
        }
        stream.push(work);
    }
    stream.extend(loads.map(|(load, _)| load));
    stream
}

/// For each load what holds it back.
fn constraints(items: &[Item]) -> Vec<Load> {
    let mut memories: [Ranges<History>; Memory::N] = Default::default();
    let mut loads: Vec<Load> = Vec::new();
    let mut n_others = 0u32;
    for item in items {
        if item.is_load() {
            let index = loads.len() as u32;
            let mut earliest = None;
            for access in &item.accesses {
                let ranges = &mut memories[access.memory as usize];
                ranges.visit(access.from(), access.to(), |history| {
                    earliest = earliest.max(history.write);
                    if access.write {
                        earliest = earliest.max(history.read);
                        // Later loads stand behind this one, and so behind all that held it back.
                        *history = History {
                            load: Some(index),
                            ..History::default()
                        };
                    }
                });
                if access.write {
                    ranges.join(access.from(), access.to());
                }
            }
            loads.push(Load {
                earliest: earliest.map_or(0, |last| last + 1),
                natural: n_others,
                first_use: None,
            });
            continue;
        }
        for access in &item.accesses {
            if access.memory == Memory::Block {
                continue;
            }
            let ranges = &mut memories[access.memory as usize];
            ranges.visit(access.from(), access.to(), |history| {
                if access.write {
                    history.write = Some(n_others);
                } else {
                    history.read = Some(n_others);
                }
                if let Some(load) = history.load {
                    loads[load as usize].first_use.get_or_insert(n_others);
                }
            });
        }
        n_others += 1;
    }
    loads
}
