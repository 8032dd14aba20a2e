//! Operators whose inputs are all constant, computed at import: the shape arithmetic that
//! exporters leave behind, and weights that are reshaped or dequantized.
//!
//! Invariant: a result never has more than [`MAX_ELEMENTS`] elements beyond those of its inputs.

use crate::constant::{Constant, Data};

/// Largest tensor that an operator may create from nothing.
const MAX_ELEMENTS: usize = 1 << 16;

/// Row-major strides.
fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// A possibly negative axis of a tensor of `rank`.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let positive = if axis < 0 {
        axis.checked_add(rank as i64)
    } else {
        Some(axis)
    };
    positive
        .and_then(|axis| usize::try_from(axis).ok())
        .filter(|&axis| axis < rank)
        .ok_or_else(|| format!("axis {axis} of a tensor of rank {rank}"))
}

/// Calls `visit` with the linear index of every element of a view (`offsets + Σ index · step`).
fn walk(dims: &[usize], first: usize, steps: &[i64], mut visit: impl FnMut(usize)) {
    let n: usize = dims.iter().product();
    let mut index = vec![0usize; dims.len()];
    let mut at = first as i64;
    for _ in 0..n {
        visit(at as usize);
        for d in (0..dims.len()).rev() {
            index[d] += 1;
            at += steps[d];
            if index[d] < dims[d] {
                break;
            }
            at -= steps[d] * dims[d] as i64;
            index[d] = 0;
        }
    }
}

fn view(input: &Constant, dims: Vec<usize>, first: usize, steps: &[i64]) -> Constant {
    let mut indices = Vec::with_capacity(dims.iter().product());
    walk(&dims, first, steps, |i| indices.push(i));
    Constant {
        data: input.data.pick(indices.into_iter()),
        dims,
    }
}

/// `Transpose`; without `perm` the axes are reversed.
pub(crate) fn transpose(input: &Constant, perm: &[i64]) -> Result<Constant, String> {
    let perm = permutation(perm, input.dims.len())?;
    let strides = strides(&input.dims);
    let dims = perm.iter().map(|&p| input.dims[p]).collect();
    let steps: Vec<i64> = perm.iter().map(|&p| strides[p] as i64).collect();
    Ok(view(input, dims, 0, &steps))
}

/// Checks a permutation; an empty one reverses.
pub(crate) fn permutation(perm: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    if perm.is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let perm: Vec<usize> = perm
        .iter()
        .map(|&p| axis(p, rank))
        .collect::<Result<_, _>>()?;
    let mut seen = vec![false; rank];
    for &p in &perm {
        seen[p] = true;
    }
    if perm.len() != rank || seen.contains(&false) {
        return Err(format!("perm {perm:?} is no permutation of {rank} axes"));
    }
    Ok(perm)
}

/// One axis of a `Slice`: `count` elements from `first`, `step` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) axis: usize,
    pub(crate) first: usize,
    pub(crate) step: i64,
    pub(crate) count: usize,
}

/// Resolves `Slice` operands against extents (clamping as ONNX says).
pub(crate) fn slice_ranges(
    dims: &[usize],
    starts: &[i64],
    ends: &[i64],
    axes: Option<&[i64]>,
    steps: Option<&[i64]>,
) -> Result<Vec<Range>, String> {
    let n = starts.len();
    if ends.len() != n || axes.is_some_and(|a| a.len() != n) || steps.is_some_and(|s| s.len() != n)
    {
        return Err("starts, ends, axes and steps differ in length".into());
    }
    let mut ranges = Vec::new();
    for i in 0..n {
        let axis = axis(axes.map_or(i as i64, |a| a[i]), dims.len())?;
        let extent = dims[axis] as i64;
        let step = steps.map_or(1, |s| s[i]);
        let absolute = |v: i64| if v < 0 { v.saturating_add(extent) } else { v };
        let (first, count) = match step {
            0 => return Err("step 0".into()),
            1.. => {
                let first = absolute(starts[i]).clamp(0, extent);
                let end = absolute(ends[i]).clamp(0, extent);
                (
                    first,
                    if end > first {
                        (end - first - 1) / step + 1
                    } else {
                        0
                    },
                )
            }
            _ => {
                let first = absolute(starts[i]).clamp(0, (extent - 1).max(0));
                let end = absolute(ends[i]).clamp(-1, extent - 1);
                let away = step.checked_neg().ok_or("step -2^63")?;
                (
                    first,
                    if first > end {
                        (first - end - 1) / away + 1
                    } else {
                        0
                    },
                )
            }
        };
        ranges.push(Range {
            axis,
            first: first as usize,
            step,
            count: count as usize,
        });
    }
    Ok(ranges)
}

/// `Slice`.
pub(crate) fn slice(input: &Constant, ranges: &[Range]) -> Result<Constant, String> {
    let strides = strides(&input.dims);
    let mut dims = input.dims.clone();
    let mut steps: Vec<i64> = strides.iter().map(|&s| s as i64).collect();
    let mut first = 0;
    for range in ranges {
        dims[range.axis] = range.count;
        // A step is only taken when a second element exists, so it is less than the extent.
        steps[range.axis] = if range.count > 1 {
            strides[range.axis] as i64 * range.step
        } else {
            0
        };
        first += strides[range.axis] * range.first;
    }
    let mut axes: Vec<usize> = ranges.iter().map(|r| r.axis).collect();
    axes.dedup();
    if axes.len() != ranges.len() {
        return Err("an axis is sliced twice".into());
    }
    Ok(view(input, dims, first, &steps))
}

/// `Gather` along one axis.
pub(crate) fn gather(input: &Constant, indices: &Constant, at: i64) -> Result<Constant, String> {
    let at = axis(at, input.dims.len())?;
    let extent = input.dims[at];
    let wanted = indices.as_ints().ok_or("indices are no integers")?;
    let outer: usize = input.dims[..at].iter().product();
    let inner: usize = input.dims[at + 1..].iter().product();
    let n = outer
        .checked_mul(wanted.len())
        .and_then(|n| n.checked_mul(inner));
    if n.is_none_or(|n| n > MAX_ELEMENTS) {
        return Err("result is too large".into());
    }
    let rows: Vec<usize> = wanted
        .iter()
        .map(|&i| axis(i, extent).map_err(|_| format!("index {i} of an extent of {extent}")))
        .collect::<Result<_, _>>()?;
    let mut picked = Vec::new();
    for o in 0..outer {
        for &row in &rows {
            picked.extend((0..inner).map(|i| (o * extent + row) * inner + i));
        }
    }
    let dims = [&input.dims[..at], &indices.dims, &input.dims[at + 1..]].concat();
    Ok(Constant {
        dims,
        data: input.data.pick(picked.into_iter()),
    })
}

/// `ConstantOfShape`.
pub(crate) fn of_shape(shape: &[i64], value: Option<&Constant>) -> Result<Constant, String> {
    let mut bound = 1usize;
    let mut dims = Vec::new();
    for &dim in shape {
        let dim = usize::try_from(dim).map_err(|_| format!("negative extent {dim}"))?;
        bound = bound
            .checked_mul(dim.max(1))
            .filter(|&n| n <= MAX_ELEMENTS)
            .ok_or_else(|| format!("shape {shape:?} is too large"))?;
        dims.push(dim);
    }
    let n = dims.iter().product();
    let data = match value.map(|v| &v.data) {
        None => Data::Float(vec![0.0; n]),
        Some(Data::Float(v)) if v.len() == 1 => Data::Float(vec![v[0]; n]),
        Some(Data::Int(v)) if v.len() == 1 => Data::Int(vec![v[0]; n]),
        Some(_) => return Err("value must have one element".into()),
    };
    Ok(Constant { dims, data })
}

/// `Cast` to an ONNX data type.
pub(crate) fn cast(input: &Constant, to: i64) -> Result<Constant, String> {
    let data = match (to, &input.data) {
        (1 | 10 | 11, Data::Int(v)) => Data::Float(v.iter().map(|&v| v as f32).collect()),
        (6 | 7, Data::Float(v)) => Data::Int(v.iter().map(|&v| v as i64).collect()),
        (1 | 10 | 11, Data::Float(_)) | (6 | 7, Data::Int(_)) => input.data.clone(),
        _ => return Err(format!("cast to data type {to} is not supported")),
    };
    Ok(Constant {
        dims: input.dims.clone(),
        data,
    })
}

/// `Concat` along one axis.
pub(crate) fn concat(inputs: &[&Constant], at: i64) -> Result<Constant, String> {
    let first = inputs.first().ok_or("no inputs")?;
    let at = axis(at, first.dims.len())?;
    let mut dims = first.dims.clone();
    dims[at] = 0;
    for input in inputs {
        let same = input.dims.len() == dims.len()
            && (0..dims.len()).all(|d| d == at || input.dims[d] == dims[d]);
        if !same {
            return Err("input shapes differ".into());
        }
        dims[at] += input.dims[at];
    }
    let outer: usize = dims[..at].iter().product();
    let n: usize = inputs.iter().map(|i| i.data.len()).sum();
    if n > MAX_ELEMENTS {
        return Err("result is too large".into());
    }
    let pieces = |o: usize, input: &Constant| {
        let inner: usize = input.dims[at..].iter().product();
        o * inner..(o + 1) * inner
    };
    let data = if inputs.iter().all(|i| i.as_ints().is_some()) {
        let mut all = Vec::with_capacity(n);
        for o in 0..outer {
            for input in inputs {
                all.extend_from_slice(&input.as_ints().unwrap_or_default()[pieces(o, input)]);
            }
        }
        Data::Int(all)
    } else if inputs.iter().all(|i| i.as_floats().is_some()) {
        let mut all = Vec::with_capacity(n);
        for o in 0..outer {
            for input in inputs {
                all.extend_from_slice(&input.as_floats().unwrap_or_default()[pieces(o, input)]);
            }
        }
        Data::Float(all)
    } else {
        return Err("input types differ".into());
    };
    Ok(Constant { dims, data })
}

/// Resolves the target of a `Reshape` (`0` copies unless `allow_zero`, `-1` takes the rest).
pub(crate) fn reshape_dims(
    dims: &[usize],
    target: &[i64],
    allow_zero: bool,
) -> Result<Vec<usize>, String> {
    let error = || format!("cannot reshape {dims:?} to {target:?}");
    let total: usize = dims.iter().product();
    let mut out = Vec::with_capacity(target.len());
    let mut rest = None;
    let mut known = 1usize;
    let mut bound = 1usize;
    for (i, &t) in target.iter().enumerate() {
        let extent = match t {
            -1 if rest.is_none() => {
                rest = Some(i);
                1
            }
            0 if !allow_zero => *dims.get(i).ok_or_else(error)?,
            t => usize::try_from(t).map_err(|_| error())?,
        };
        known = known.checked_mul(extent).ok_or_else(error)?;
        bound = bound
            .checked_mul(extent.max(1))
            .filter(|&n| n <= 1 << 30)
            .ok_or_else(error)?;
        out.push(extent);
    }
    if let Some(i) = rest {
        if known == 0 || !total.is_multiple_of(known) {
            return Err(error());
        }
        out[i] = total / known;
    } else if known != total {
        return Err(error());
    }
    Ok(out)
}

/// Extents after `Squeeze` (no axes: every extent of 1).
pub(crate) fn squeeze_dims(dims: &[usize], axes: Option<&[i64]>) -> Result<Vec<usize>, String> {
    let mut drop: Vec<bool> = dims.iter().map(|&d| axes.is_none() && d == 1).collect();
    for &a in axes.unwrap_or_default() {
        let a = axis(a, dims.len())?;
        if dims[a] != 1 {
            return Err(format!("axis {a} of {dims:?} is not 1"));
        }
        drop[a] = true;
    }
    Ok(dims
        .iter()
        .zip(drop)
        .filter(|(_, drop)| !drop)
        .map(|(&d, _)| d)
        .collect())
}

/// Extents after `Unsqueeze`.
pub(crate) fn unsqueeze_dims(dims: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let rank = dims.len() + axes.len();
    let mut is_new = vec![false; rank];
    for &a in axes {
        is_new[axis(a, rank)?] = true;
    }
    if is_new.iter().filter(|&&new| new).count() != axes.len() {
        return Err(format!("axes {axes:?} repeat"));
    }
    let mut old = dims.iter();
    Ok(is_new
        .iter()
        .map(|&new| if new { 1 } else { *old.next().unwrap_or(&1) })
        .collect())
}

/// Integer or real element-wise arithmetic; one side may have a single element.
pub(crate) fn arithmetic(op: &str, left: &Constant, right: &Constant) -> Result<Constant, String> {
    let n = left.data.len().max(right.data.len());
    let dims = if left.data.len() == n {
        left.dims.clone()
    } else {
        right.dims.clone()
    };
    if !(left.dims == right.dims || left.data.len() == 1 || right.data.len() == 1) {
        return Err(format!(
            "shapes {:?} and {:?} differ",
            left.dims, right.dims
        ));
    }
    let at = |len: usize, i: usize| if len == 1 { 0 } else { i };
    let data = match (&left.data, &right.data) {
        (Data::Int(x), Data::Int(y)) => Data::Int(
            (0..n)
                .map(|i| {
                    let (x, y) = (x[at(x.len(), i)], y[at(y.len(), i)]);
                    match op {
                        "Add" => x.checked_add(y),
                        "Sub" => x.checked_sub(y),
                        "Mul" => x.checked_mul(y),
                        _ => x.checked_div(y),
                    }
                    .ok_or_else(|| format!("{x} and {y} overflow"))
                })
                .collect::<Result<_, _>>()?,
        ),
        (Data::Float(x), Data::Float(y)) => Data::Float(
            (0..n)
                .map(|i| {
                    let (x, y) = (x[at(x.len(), i)], y[at(y.len(), i)]);
                    let result = match op {
                        "Add" => x + y,
                        "Sub" => x - y,
                        "Mul" => x * y,
                        _ => x / y,
                    };
                    if result.is_finite() {
                        Ok(result)
                    } else {
                        Err(format!("{x} and {y} give {result}"))
                    }
                })
                .collect::<Result<_, _>>()?,
        ),
        _ => return Err("operand types differ".into()),
    };
    Ok(Constant { dims, data })
}

/// `DequantizeLinear` of a constant: `(q - zero_point) · scale`, per tensor or along one axis.
pub(crate) fn dequantize(
    input: &Constant,
    scale: &Constant,
    zero_point: Option<&Constant>,
    at: i64,
) -> Result<Constant, String> {
    let values = input.as_ints().ok_or("input is no integer tensor")?;
    let scales = scale.as_floats().ok_or("scale is no real tensor")?;
    let zeros = match zero_point {
        None => &[][..],
        Some(zeros) => zeros.as_ints().ok_or("zero point is no integer tensor")?,
    };
    if !zeros.is_empty() && zeros.len() != scales.len() {
        return Err(format!(
            "{} zero points for {} scales",
            zeros.len(),
            scales.len()
        ));
    }
    let (extent, inner) = if scales.len() == 1 {
        (1, usize::MAX)
    } else {
        let at = axis(at, input.dims.len())?;
        (
            input.dims[at],
            input.dims[at + 1..].iter().product::<usize>().max(1),
        )
    };
    if scales.len() != extent {
        return Err(format!("{} scales for an extent of {extent}", scales.len()));
    }
    let data = values.iter().enumerate().map(|(i, &q)| {
        let c = i / inner % extent;
        let zero = zeros.get(c).copied().unwrap_or(0);
        q.saturating_sub(zero) as f32 * scales[c]
    });
    Ok(Constant {
        dims: input.dims.clone(),
        data: Data::Float(data.collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reversed_slice_as_the_exporter_writes_pads() {
        let table = Constant {
            dims: vec![4, 2],
            data: Data::Int((0..8).collect()),
        };
        let ranges = slice_ranges(&[4, 2], &[-1], &[-i64::MAX], Some(&[0]), Some(&[-1])).unwrap();
        let flipped = slice(&table, &ranges).unwrap();
        let back = transpose(&flipped, &[1, 0]).unwrap();
        assert_eq!(back.as_ints().unwrap(), [6, 4, 2, 0, 7, 5, 3, 1]);
    }

    #[test]
    fn slices_clamp() {
        let one = |s, e, step| {
            let r = slice_ranges(&[5], &[s], &[e], None, Some(&[step])).unwrap()[0];
            let all = Constant::ints((0..5).collect());
            let out = slice(&all, &[r]).unwrap();
            out.as_ints().unwrap().to_vec()
        };
        assert_eq!(one(0, i64::MAX, 2), [0, 2, 4]);
        assert_eq!(one(-2, i64::MAX, 1), [3, 4]);
        assert_eq!(one(4, -6, -2), [4, 2, 0]);
        assert_eq!(one(3, 1, 1), [0i64; 0]);
        assert_eq!(one(0, 5, i64::MAX), [0]);
        assert_eq!(one(i64::MIN, i64::MAX, 3), [0, 3]);
    }

    #[test]
    fn reshape_rules() {
        assert_eq!(reshape_dims(&[2, 3, 4], &[0, -1], false).unwrap(), [2, 12]);
        assert!(reshape_dims(&[2, 3], &[4], false).is_err());
        assert!(reshape_dims(&[2, 3], &[-1, -1], false).is_err());
        assert!(reshape_dims(&[2, 3], &[i64::MAX, i64::MAX], false).is_err());
    }
}
