//! The search against timing every candidate.

use super::{n_cases, random_case};
use crate::{
    Front, job,
    residency::Residency,
    search::{Effort, candidates},
};

/// Leaving candidates out by their bounds does not change what is chosen, and no candidate is faster
/// than its bound.
#[test]
fn pruned_search_finds_what_the_exhaustive_one_finds() {
    let (mut n_timed, mut n_candidates) = (0, 0);
    for seed in 0..n_cases() {
        let (config, network) = random_case(seed);
        let Ok(front) = Front::new(&network, &config) else {
            continue;
        };
        let residency = Residency::decide(&network, &front.jobs, &config);
        let mut jobs = front.jobs.clone();
        job::keep_on_chip(&mut jobs, &network.layers, &residency, false);
        for (layer, (job, gap)) in jobs.iter().zip(&residency.gaps).enumerate() {
            let name = &network.layers[layer].name;
            let search = |effort| candidates(name, job, gap.len, &config, front.trial, effort);
            let (pruned, exhaustive) = (search(Effort::Pruned), search(Effort::Exhaustive));
            let (Ok((pruned, some)), Ok((found, all))) = (pruned, exhaustive) else {
                continue;
            };
            assert_eq!(
                (pruned.choice, pruned.cycles),
                (found.choice, found.cycles),
                "seed {seed}: layer {name}"
            );
            for candidate in &all {
                let cycles = candidate.cycles.map_or(u64::MAX, |cycles| cycles.0);
                assert!(
                    candidate.bound.total <= cycles,
                    "seed {seed}: layer {name}: {:?} takes {cycles} cycles, the bound is {:?}",
                    candidate.plan,
                    candidate.bound
                );
            }
            n_candidates += all.len();
            n_timed += some.iter().filter(|c| c.cycles.is_some()).count();
        }
    }
    // Otherwise nothing was left out.
    assert!(n_timed < n_candidates, "{n_timed} of {n_candidates}");
}
