//! The clipping range that keeps most of a histogram's information.
//!
//! Source: Migacz, 8-bit Inference with `TensorRT`, GTC 2017: the histogram clipped at a threshold is
//! compared with the same histogram after quantization, whose levels share their counts evenly
//! among the bins that were not empty; the threshold with the least Kullback–Leibler divergence
//! wins. Here levels are those of round-to-nearest with a zero-point of 0, of either sign, and
//! exact zeros, which every scale represents, are left out (the source leaves out the first bin).
//!
//! Invariant: the divergence of a histogram whose values all stand on levels is 0.

use arith::Format;

/// `Σ p · ln(p / q)` in counts per value, for the scale `s`. `values` are bin centres and counts,
/// ascending.
pub(crate) fn divergence(values: &[(f64, f64)], s: f64, format: Format) -> f64 {
    let (low, high) = (f64::from(format.q_min()), f64::from(format.q_max()));
    let total: f64 = values.iter().map(|&(_, n)| n).sum();
    let level = |x: f64| (x / s).round_ties_even().max(low).min(high);
    // What is clipped piles up in the outermost bins that are not clipped.
    let inside = |x: f64| x >= (low - 0.5) * s && x <= (high + 0.5) * s;
    let clipped = |above: bool| -> f64 {
        let out = values
            .iter()
            .filter(|&&(x, _)| !inside(x) && (x > 0.0) == above);
        out.map(|&(_, n)| n).sum()
    };
    let first = values.iter().position(|&(x, _)| inside(x));
    let last = values.iter().rposition(|&(x, _)| inside(x));
    let (Some(first), Some(last)) = (first, last) else {
        return f64::INFINITY;
    };
    let (below, above) = (clipped(false), clipped(true));
    let mut sum = 0.0;
    let mut start = first;
    while start <= last {
        let q = level(values[start].0);
        let mut end = start;
        while end <= last && level(values[end].0).total_cmp(&q).is_eq() {
            end += 1;
        }
        let bins = &values[start..end];
        let share = bins.iter().map(|&(_, n)| n).sum::<f64>() / bins.len() as f64;
        for (index, &(_, n)) in bins.iter().enumerate() {
            let at = start + index;
            let mut p = n;
            p += if at == first { below } else { 0.0 };
            p += if at == last { above } else { 0.0 };
            sum += p * (p / share).ln();
        }
        start = end;
    }
    // The quantized histogram lacks what was clipped: both are made distributions.
    let kept = total - below - above;
    (sum + total * (kept / total).ln()) / total
}

#[cfg(test)]
mod tests {
    use super::divergence;
    use arith::Format;

    const UINT2: Format = Format {
        bits: 2,
        signed: false,
    };

    #[test]
    fn values_on_levels_lose_nothing() {
        let values = [(1.0, 5.0), (2.0, 7.0), (3.0, 1.0)];
        assert!(divergence(&values, 1.0, UINT2).abs() < 1e-12);
    }

    #[test]
    fn by_hand() {
        // Level 1 shares 3 and 1, level 3 has 4 and the clipped 2.
        let values = [(0.9, 3.0), (1.1, 1.0), (3.0, 4.0), (9.0, 2.0)];
        let kept: f64 = 8.0;
        let q = [2.0 / kept, 2.0 / kept, 4.0 / kept];
        let p = [0.3, 0.1, 0.6];
        let expected: f64 = p
            .iter()
            .zip(q)
            .map(|(p, q): (&f64, f64)| p * (p / q).ln())
            .sum();
        assert!((divergence(&values, 1.0, UINT2) - expected).abs() < 1e-12);
    }
}
