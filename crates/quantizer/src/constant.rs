//! Constant tensors: read from the model, from its data files, or made from a seed.
//!
//! Invariant: `data` holds exactly the product of `dims` elements; floats are finite. Where only
//! shapes are wanted, real tensors of two or more dimensions (weights) are not kept, and those in data
//! files not read.

use crate::Error;
use onnx::TensorProto;
use std::{collections::BTreeMap, io, sync::Arc};

/// No tensor of a model has more elements than this (4 GiB of float32).
const MAX_ELEMENTS: usize = 1 << 30;

/// Elements of a [`Constant`]: every real type becomes float32, every integer type int64.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Float(Vec<f32>),
    Int(Vec<i64>),
    /// So many real elements that nobody has read.
    Unread(usize),
}

/// A constant tensor.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    pub(crate) dims: Vec<usize>,
    pub(crate) data: Data,
}

impl Data {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Float(v) => v.len(),
            Self::Int(v) => v.len(),
            Self::Unread(n) => *n,
        }
    }

    /// The elements at `indices`, in that order.
    pub(crate) fn pick(&self, indices: impl Iterator<Item = usize>) -> Self {
        match self {
            Self::Float(v) => Self::Float(indices.map(|i| v[i]).collect()),
            Self::Int(v) => Self::Int(indices.map(|i| v[i]).collect()),
            Self::Unread(_) => Self::Unread(indices.count()),
        }
    }
}

impl Constant {
    pub(crate) fn ints(values: Vec<i64>) -> Self {
        Self {
            dims: vec![values.len()],
            data: Data::Int(values),
        }
    }

    pub(crate) fn as_ints(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Int(v) => Some(v),
            Data::Float(_) | Data::Unread(_) => None,
        }
    }

    pub(crate) fn as_floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::Float(v) => Some(v),
            Data::Int(_) | Data::Unread(_) => None,
        }
    }

    /// The elements of a real tensor; zeros, which cost no memory until they are touched, when nobody
    /// has read it.
    pub(crate) fn to_floats(&self) -> Option<Vec<f32>> {
        match &self.data {
            Data::Float(v) => Some(v.clone()),
            Data::Unread(n) => Some(vec![0.0; *n]),
            Data::Int(_) => None,
        }
    }

    pub(crate) fn is_unread(&self) -> bool {
        matches!(self.data, Data::Unread(_))
    }

    /// The only element as a real number.
    pub(crate) fn scalar(&self) -> Option<f64> {
        match &self.data {
            Data::Float(v) if v.len() == 1 => Some(f64::from(v[0])),
            Data::Int(v) if v.len() == 1 => Some(v[0] as f64),
            _ => None,
        }
    }
}

/// Opens a data file beside the model, by the name that the model gives.
pub type ExternalData<'a> = dyn Fn(&str) -> io::Result<Vec<u8>> + 'a;

/// Reads the model's tensors; remembers data files and what had to be made up.
pub(crate) struct Reader<'a> {
    pub(crate) external: &'a ExternalData<'a>,
    pub(crate) synthetic_seed: Option<u64>,
    /// Weights stay [`Data::Unread`].
    shapes_only: bool,
    files: BTreeMap<String, Option<Arc<Vec<u8>>>>,
    /// Tensors filled with synthetic values.
    pub(crate) synthetic: Vec<String>,
    n_synthetic_elements: usize,
}

/// Where the elements are.
enum Source<'a> {
    Inside(&'a [u8]),
    File(Arc<Vec<u8>>, usize, usize),
    Absent,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(external: &'a ExternalData<'a>, synthetic_seed: Option<u64>) -> Self {
        Self {
            external,
            synthetic_seed,
            shapes_only: false,
            files: BTreeMap::new(),
            synthetic: Vec::new(),
            n_synthetic_elements: 0,
        }
    }

    /// A reader that leaves weights unread and makes up whatever else is absent.
    pub(crate) fn of_shapes(external: &'a ExternalData<'a>) -> Self {
        Self {
            shapes_only: true,
            ..Self::new(external, Some(0))
        }
    }

    /// Converts one tensor.
    pub(crate) fn read(&mut self, tensor: &TensorProto) -> Result<Constant, Error> {
        let error = |problem: String| Error::Tensor {
            tensor: tensor.name.clone(),
            problem,
        };
        let mut dims = Vec::with_capacity(tensor.dims.len());
        // Empty extents count as 1 here, so that no partial product overflows later.
        let mut bound = 1usize;
        for &dim in &tensor.dims {
            let dim = usize::try_from(dim)
                .map_err(|_| error(format!("dims {:?} have a negative extent", tensor.dims)))?;
            bound = bound
                .checked_mul(dim.max(1))
                .filter(|&n| n <= MAX_ELEMENTS)
                .ok_or_else(|| {
                    error(format!(
                        "dims {:?} overflow the limit of 2^30 elements",
                        tensor.dims
                    ))
                })?;
            dims.push(dim);
        }
        let n = dims.iter().product();
        let is_shape =
            self.shapes_only && matches!(tensor.data_type, 1 | 10 | 11) && dims.len() > 1;
        let unread = Data::Unread(n);
        if is_shape && tensor.data_location == 1 {
            return Ok(Constant { dims, data: unread });
        }
        let source = self.source(tensor)?;
        let data = match &source {
            Source::Absent => Data::Float(self.invent(tensor, &dims, n)?),
            Source::Inside(bytes) => decode_elements(tensor, n, bytes)?,
            Source::File(bytes, from, to) => decode_elements(tensor, n, &bytes[*from..*to])?,
        };
        if data.len() != n {
            return Err(error(format!(
                "dims {:?} need {n} elements, {} present",
                tensor.dims,
                data.len()
            )));
        }
        if let Data::Float(values) = &data
            && let Some(index) = values.iter().position(|v| !v.is_finite())
        {
            let value = values[index];
            return Err(Error::NotFinite {
                tensor: tensor.name.clone(),
                index,
                value,
            });
        }
        // What stands in the model is checked all the same.
        let data = if is_shape { unread } else { data };
        Ok(Constant { dims, data })
    }

    fn source<'t>(&mut self, tensor: &'t TensorProto) -> Result<Source<'t>, Error> {
        if tensor.data_location != 1 {
            return Ok(Source::Inside(&tensor.raw_data));
        }
        let entry = |key| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key == key)
                .map(|e| &e.value)
        };
        let location = entry("location").cloned().unwrap_or_default();
        let error = |problem: &str| Error::ExternalData {
            tensor: tensor.name.clone(),
            location: location.clone(),
            problem: problem.into(),
        };
        let plain = !location.is_empty()
            && !location.starts_with(['/', '\\'])
            && !location.contains(':')
            && location.split(['/', '\\']).all(|part| part != "..");
        if !plain {
            return Err(error("the path must stay inside the model's directory"));
        }
        let number = |key, default: usize| match entry(key) {
            None => Ok(default),
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| error(&format!("bad {key} `{text}`"))),
        };
        let file = if let Some(file) = self.files.get(&location) {
            file.clone()
        } else {
            let file = match (self.external)(&location) {
                Ok(bytes) => Some(Arc::new(bytes)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(error(&e.to_string())),
            };
            self.files.insert(location.clone(), file.clone());
            file
        };
        let Some(file) = file else {
            return if self.synthetic_seed.is_some() {
                Ok(Source::Absent)
            } else {
                Err(error("the file is absent (synthetic weights need a seed)"))
            };
        };
        let from = number("offset", 0)?;
        let to = from.checked_add(number("length", file.len().saturating_sub(from))?);
        match to {
            Some(to) if to <= file.len() => Ok(Source::File(file, from, to)),
            _ => Err(error(&format!(
                "offset and length exceed the file's {} bytes",
                file.len()
            ))),
        }
    }

    /// Values from seed and name alone: uniform, spread like a usual initialisation.
    fn invent(
        &mut self,
        tensor: &TensorProto,
        dims: &[usize],
        n: usize,
    ) -> Result<Vec<f32>, Error> {
        self.n_synthetic_elements += n;
        if tensor.data_type != 1 || self.n_synthetic_elements > MAX_ELEMENTS / 2 {
            return Err(Error::Tensor {
                tensor: tensor.name.clone(),
                problem: "synthetic weights are float32, at most 2^29 in all".into(),
            });
        }
        self.synthetic.push(tensor.name.clone());
        let name = tensor.name.as_str();
        let fan_in = dims.iter().skip(1).product::<usize>().max(1);
        let (offset, spread) = if dims.len() >= 2 {
            (0.0, (6.0 / fan_in as f64).sqrt())
        } else if name.ends_with("running_var") {
            (1.0, 0.5)
        } else if name.ends_with("running_mean") {
            (0.0, 0.1)
        } else if name.ends_with(".weight") {
            (0.75, 0.25)
        } else {
            (0.0, 0.1)
        };
        let mut state = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
            .wrapping_add(splitmix64(self.synthetic_seed.unwrap_or(0)));
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let unit = (splitmix64(state) >> 40) as f64 / f64::from(1 << 23) - 1.0;
            (offset + spread * unit) as f32
        };
        Ok((0..n).map(|_| next()).collect())
    }
}

/// The output function of splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
const fn splitmix64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn decode_elements(tensor: &TensorProto, n: usize, raw: &[u8]) -> Result<Data, Error> {
    macro_rules! raw {
        ($type:ty) => {
            raw.chunks_exact(size_of::<$type>())
                .map(|chunk| <$type>::from_le_bytes(chunk.try_into().expect("exact chunks")))
        };
    }
    let size = match tensor.data_type {
        2 | 3 | 9 => 1,
        4 | 5 | 10 => 2,
        1 | 6 | 12 => 4,
        7 | 11 => 8,
        other => {
            return Err(Error::Tensor {
                tensor: tensor.name.clone(),
                problem: format!("data type {other} is not supported: use float32 or int8"),
            });
        }
    };
    let typed = raw.is_empty() && tensor.data_location != 1;
    if !typed && n.checked_mul(size) != Some(raw.len()) {
        return Err(Error::Tensor {
            tensor: tensor.name.clone(),
            problem: format!(
                "dims {:?} need {n} elements of {size} bytes, {} bytes present",
                tensor.dims,
                raw.len()
            ),
        });
    }
    let narrow = || tensor.int32_data.iter().map(|&v| i64::from(v)).collect();
    Ok(match (tensor.data_type, typed) {
        (1, false) => Data::Float(raw!(f32).collect()),
        (1, true) => Data::Float(tensor.float_data.clone()),
        (11, false) => Data::Float(raw!(f64).map(|v| v as f32).collect()),
        (11, true) => Data::Float(tensor.double_data.iter().map(|&v| v as f32).collect()),
        (10, false) => Data::Float(raw!(u16).map(half_to_single).collect()),
        (10, true) => Data::Float(
            tensor
                .int32_data
                .iter()
                .map(|&v| half_to_single(v as u16))
                .collect(),
        ),
        (2 | 9, false) => Data::Int(raw!(u8).map(i64::from).collect()),
        (3, false) => Data::Int(raw!(i8).map(i64::from).collect()),
        (4, false) => Data::Int(raw!(u16).map(i64::from).collect()),
        (5, false) => Data::Int(raw!(i16).map(i64::from).collect()),
        (6, false) => Data::Int(raw!(i32).map(i64::from).collect()),
        (7, false) => Data::Int(raw!(i64).collect()),
        (7, true) => Data::Int(tensor.int64_data.clone()),
        (12, false) => Data::Int(raw!(u32).map(i64::from).collect()),
        (_, _) => Data::Int(narrow()),
    })
}

/// IEEE 754 binary16 to binary32, exactly.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(bits >> 10 & 31);
    let fraction = f32::from(bits & 1023);
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision() {
        for (bits, real) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(
                half_to_single(bits).to_bits(),
                f32::to_bits(real),
                "{bits:#06x}"
            );
        }
        assert!(half_to_single(0x7c01).is_nan());
    }
}
