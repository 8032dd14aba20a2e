//! `NumPy` arrays in `.npz` archives: read without trusting them, and written.
//!
//! Invariant: memory stays within [`MAX_ARRAY_BYTES`], whatever the headers say; an array's data
//! has exactly the length that its shape and type demand.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Cursor, Read, Seek, Write};
use zip::{
    CompressionMethod, DateTime, ZipArchive, ZipWriter, result::ZipError, write::SimpleFileOptions,
};

/// Largest array, unpacked.
const MAX_ARRAY_BYTES: u64 = 2 << 30;
/// Longest header; `NumPy`'s own are below 200 bytes.
const MAX_HEADER_BYTES: usize = 1 << 16;
const MAGIC: &[u8] = b"\x93NUMPY";

/// An array as it stands in the file, C order.
#[derive(Debug)]
pub struct Array {
    /// Type as `NumPy` writes it: `|u1`, `<f4`, `<i8`.
    pub descr: String,
    /// Extents.
    pub shape: Vec<usize>,
    data: Vec<u8>,
}

/// The array `name` of an archive; `None` when there is none of that name.
///
/// # Errors
/// The bytes are no archive, or the array is damaged, too large or in Fortran order.
pub fn from_npz(archive: &[u8], name: &str) -> Result<Option<Array>> {
    let mut archive = ZipArchive::new(Cursor::new(archive)).context("not an .npz archive")?;
    let file = match archive.by_name(&format!("{name}.npy")) {
        Ok(file) => file,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("array `{name}`")),
    };
    let mut bytes = Vec::new();
    file.take(MAX_ARRAY_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("array `{name}`"))?;
    ensure!(
        bytes.len() as u64 <= MAX_ARRAY_BYTES,
        "array `{name}`: it is larger than {MAX_ARRAY_BYTES} bytes"
    );
    Array::parse(&bytes)
        .with_context(|| format!("array `{name}`"))
        .map(Some)
}

/// Names of the arrays of an archive, sorted.
///
/// # Errors
/// The bytes are no archive.
pub fn names(archive: &[u8]) -> Result<Vec<String>> {
    let archive = ZipArchive::new(Cursor::new(archive)).context("not an .npz archive")?;
    let mut names: Vec<String> = archive
        .file_names()
        .filter_map(|n| n.strip_suffix(".npy"))
        .map(str::to_owned)
        .collect();
    names.sort();
    Ok(names)
}

/// An archive that is being written; nothing in it depends on the clock.
pub struct NpzWriter<W: Write + Seek> {
    archive: ZipWriter<W>,
}

impl<W: Write + Seek> NpzWriter<W> {
    /// An archive without arrays.
    pub fn new(file: W) -> Self {
        Self {
            archive: ZipWriter::new(file),
        }
    }

    /// Adds an array of the type `descr` in C order, from its parts along the first axis.
    ///
    /// # Errors
    /// The file cannot be written, or the archive has an array of that name.
    pub fn add<'a>(
        &mut self,
        name: &str,
        descr: &str,
        shape: &[usize],
        parts: impl Iterator<Item = &'a Vec<u8>>,
    ) -> Result<()> {
        let extents: String = shape
            .iter()
            .flat_map(|n| [n.to_string(), ", ".to_owned()])
            .collect();
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({extents}), }}");
        // Data begins at a multiple of 64 bytes: magic, version and length take 10.
        while (header.len() + 11) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let length = u16::try_from(header.len()).context("a header that long")?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .last_modified_time(DateTime::default())
            .large_file(true);
        self.archive.start_file(format!("{name}.npy"), options)?;
        self.archive.write_all(MAGIC)?;
        self.archive.write_all(&[1, 0])?;
        self.archive.write_all(&length.to_le_bytes())?;
        self.archive.write_all(header.as_bytes())?;
        for part in parts {
            self.archive.write_all(part)?;
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<()> {
        self.archive.finish()?;
        Ok(())
    }
}

impl Array {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let rest = bytes.strip_prefix(MAGIC).context("not a NumPy array")?;
        let (version, rest) = rest.split_at_checked(2).context("cut off in the header")?;
        let n_length = match version[0] {
            1 => 2,
            2 | 3 => 4,
            other => bail!("NumPy format {other} is not supported, 1 to 3 are"),
        };
        let (length, rest) = rest
            .split_at_checked(n_length)
            .context("cut off in the header")?;
        let length = length
            .iter()
            .rev()
            .fold(0, |sum, &byte| (sum << 8) | usize::from(byte));
        ensure!(
            length <= MAX_HEADER_BYTES,
            "a header of {length} bytes is too long"
        );
        let (header, data) = rest
            .split_at_checked(length)
            .context("cut off in the header")?;
        let header = std::str::from_utf8(header).context("the header is not text")?;
        let field = |name: &str| {
            let found = header
                .split_once(&format!("'{name}':"))
                .map(|(_, value)| value.trim());
            found.with_context(|| format!("the header has no {name}"))
        };
        let descr = field("descr")?
            .strip_prefix('\'')
            .and_then(|value| value.split_once('\''))
            .context("structured types are not supported")?
            .0
            .to_owned();
        let shape = field("shape")?
            .strip_prefix('(')
            .and_then(|value| value.split_once(')'))
            .context("the header's shape is malformed")?
            .0
            .split(',')
            .map(str::trim)
            .filter(|extent| !extent.is_empty())
            .map(|extent| extent.parse().with_context(|| format!("extent {extent:?}")))
            .collect::<Result<Vec<usize>>>()?;
        let is_fortran = field("fortran_order")?.starts_with("True");
        ensure!(
            !is_fortran || shape.len() < 2,
            "Fortran order is not supported: save a C-order copy"
        );
        let array = Self {
            descr,
            shape,
            data: data.to_vec(),
        };
        let needed = array
            .shape
            .iter()
            .try_fold(array.element_bytes()?, |product, &extent| {
                product.checked_mul(extent)
            })
            .context("the shape's product overflows")?;
        ensure!(
            array.data.len() == needed,
            "shape {:?} of {} needs {needed} bytes, there are {}",
            array.shape,
            array.descr,
            array.data.len()
        );
        Ok(array)
    }

    fn element_bytes(&self) -> Result<usize> {
        match self.descr.as_str() {
            "|u1" | "|i1" => Ok(1),
            "<u2" | "<i2" => Ok(2),
            "<u4" | "<i4" | "<f4" => Ok(4),
            "<u8" | "<i8" | "<f8" => Ok(8),
            other => bail!("type {other} is not supported"),
        }
    }

    /// Its elements, when it is uint8.
    pub fn u8(&self) -> Option<&[u8]> {
        (self.descr == "|u1").then_some(self.data.as_slice())
    }

    /// Its elements, when it is float32.
    pub fn f32(&self) -> Option<Vec<f32>> {
        (self.descr == "<f4").then(|| {
            let (elements, _) = self.data.as_chunks::<4>();
            elements
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect()
        })
    }

    /// Its elements, when it has an integer type.
    pub fn integers(&self) -> Option<Vec<i128>> {
        let signed = match self.descr.as_bytes().get(1) {
            Some(b'i') => true,
            Some(b'u') => false,
            _ => return None,
        };
        let width = self.element_bytes().ok()?;
        Some(
            self.data
                .chunks_exact(width)
                .map(|bytes| {
                    let unsigned = bytes
                        .iter()
                        .rev()
                        .fold(0i128, |sum, &b| (sum << 8) | i128::from(b));
                    let limit = 1i128 << (8 * width);
                    if signed && unsigned >= limit / 2 {
                        unsigned - limit
                    } else {
                        unsigned
                    }
                })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Array, NpzWriter, from_npz, names};
    use std::io::Cursor;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn integers_of_every_sign() {
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }";
        let array = Array::parse(&npy(header, &[255, 255, 0, 128, 1, 0])).expect("well formed");
        assert_eq!(array.integers(), Some(vec![-1, -32768, 1]));
        assert_eq!(array.shape, [3]);
        assert!(array.u8().is_none() && array.f32().is_none());
    }

    #[test]
    fn every_cut_and_every_flip_is_survived() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }";
        let bytes = npy(header, &[0, 0, 128, 63, 0, 0, 0, 64]);
        assert_eq!(
            Array::parse(&bytes).expect("well formed").f32(),
            Some(vec![1.0, 2.0])
        );
        for length in 0..bytes.len() {
            assert!(Array::parse(&bytes[..length]).is_err(), "cut at {length}");
        }
        for index in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[index] ^= 1 << bit;
                let _ = Array::parse(&flipped);
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Cursor::new(Vec::new());
        let mut archive = NpzWriter::new(&mut bytes);
        let parts = [vec![255u8, 255], vec![1, 0]];
        archive
            .add("/a/b", "<i2", &[2, 1], parts.iter())
            .expect("memory");
        archive
            .add("c", "|u1", &[3], [vec![7u8, 8, 9]].iter())
            .expect("memory");
        archive.finish().expect("memory");
        let bytes = bytes.into_inner();
        assert_eq!(names(&bytes).expect("an archive"), ["/a/b", "c"]);
        let array = from_npz(&bytes, "/a/b").expect("sound").expect("there");
        assert_eq!(
            (array.shape.as_slice(), array.integers()),
            (&[2, 1][..], Some(vec![-1, 1]))
        );
    }

    #[test]
    fn hostile_shapes() {
        for shape in [
            "(99999999999999999999,)",
            "(4294967296, 4294967296, 4294967296)",
            "(-1,)",
            "4",
        ] {
            let header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
            assert!(Array::parse(&npy(&header, &[0; 4])).is_err(), "{shape}");
        }
    }
}
