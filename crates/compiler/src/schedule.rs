//! The order of the instruction stream: loads move ahead of the work of the stage before.
//!
//! Invariant: the stream stays valid when run one after the other, and no unit's own order changes.

use crate::emit::{Access, Item, Stage};
use std::collections::BTreeSet;

/// An instruction in the stream.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub item: Item,
    pub layer: u32,
    /// Index of the stage, in program order.
    pub stage: u32,
}

/// Orders the stages of all layers. A stage's loads stand before the work of the stage before, so
/// that they run beside it; the first that would disturb that work stays behind it, and with it
/// every later one, because the load queue is in order.
pub(crate) fn order(stages: Vec<(u32, Stage)>) -> Vec<Scheduled> {
    let mut stream = Vec::new();
    let mut waiting: Vec<Scheduled> = Vec::new();
    for (index, (layer, stage)) in stages.into_iter().enumerate() {
        let scheduled = |item| Scheduled {
            item,
            layer,
            stage: index as u32,
        };
        let touched: BTreeSet<Access> = waiting
            .iter()
            .flat_map(|s| s.item.accesses.iter().copied())
            .collect();
        let disturbs = |item: &Item| {
            item.accesses
                .iter()
                .any(|access| touched.iter().any(|other| access.conflicts(other)))
        };
        let n_ahead = stage
            .loads
            .iter()
            .position(disturbs)
            .unwrap_or(stage.loads.len());
        let mut loads = stage.loads.into_iter().map(scheduled);
        stream.extend(loads.by_ref().take(n_ahead));
        stream.append(&mut waiting);
        stream.extend(loads);
        waiting = stage.work.into_iter().map(scheduled).collect();
    }
    stream.append(&mut waiting);
    stream
}
