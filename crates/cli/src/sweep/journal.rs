//! The results file: a line is added when its point is done, so that nothing done is lost.
//!
//! Invariant: lines of another sweep are never mixed in, for every line holds the sweep's
//! fingerprint; a line that was cut off is done again; in the end the lines stand in the order of the
//! points, whatever happened on the way.

use crate::output;
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// A point's line: what stands in every column.
pub type Row = Vec<String>;

/// A results file in work.
pub struct Journal {
    path: PathBuf,
    header: Row,
    sweep: String,
    state: Mutex<State>,
}

struct State {
    file: File,
    rows: BTreeMap<usize, Row>,
}

impl Journal {
    /// Opens a results file, with what an earlier run has left there.
    ///
    /// # Errors
    /// It cannot be written, or it holds something else.
    pub fn open(path: &Path, columns: &[&str], fingerprint: u64, n_points: usize) -> Result<Self> {
        let mut header: Row = vec!["sweep".to_owned(), "point".to_owned()];
        header.extend(columns.iter().map(|&column| column.to_owned()));
        let sweep = format!("{fingerprint:016x}");
        let old = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        // A line that was cut off has no end.
        let whole = old
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        let first = line(&header)?;
        anyhow::ensure!(
            whole > 0 || first.starts_with(&old),
            "{} holds something else than a sweep's results: remove it, or choose another --output",
            path.display()
        );
        let rows = rows(&old[..whole], &header, &sweep, n_points).with_context(|| {
            format!(
                "{} holds something else than this sweep's results: remove it, or choose another --output",
                path.display()
            )
        })?;
        let place = || format!("cannot write {}", path.display());
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(place)?;
        file.set_len(whole as u64).with_context(place)?;
        if whole == 0 {
            file.write_all(&first).with_context(place)?;
        }
        Ok(Self {
            path: path.to_owned(),
            header,
            sweep,
            state: Mutex::new(State { file, rows }),
        })
    }

    /// Whether a point is done.
    pub fn has(&self, point: usize) -> bool {
        self.lock().rows.contains_key(&point)
    }

    /// Adds a point's line.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, point: usize, cells: Row) -> Result<()> {
        let mut row = vec![self.sweep.clone(), point.to_string()];
        row.extend(cells);
        let bytes = line(&row)?;
        let mut state = self.lock();
        // One write: a reader, or a kill, sees whole lines but for the last.
        state
            .file
            .write_all(&bytes)
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        state.rows.insert(point, row);
        Ok(())
    }

    /// Brings the lines into the order of the points; they without the first two columns.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self) -> Result<Vec<Row>> {
        let state = self
            .state
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut bytes = line(&self.header)?;
        for row in state.rows.values() {
            bytes.extend(line(row)?);
        }
        output::write_file(&self.path, &bytes)?;
        Ok(state
            .rows
            .into_values()
            .map(|row| row[2..].to_vec())
            .collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn line(row: &Row) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(row)?;
    writer.into_inner().context("cannot make CSV")
}

fn rows(text: &[u8], header: &Row, sweep: &str, n_points: usize) -> Result<BTreeMap<usize, Row>> {
    let mut rows = BTreeMap::new();
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(text);
    for (index, record) in reader.records().enumerate() {
        let row: Row = record?.iter().map(str::to_owned).collect();
        if index == 0 {
            ensure!(row == *header, "line 1: other columns");
            continue;
        }
        ensure!(
            row.len() == header.len(),
            "line {}: {} fields",
            index + 1,
            row.len()
        );
        ensure!(
            row[0] == sweep,
            "line {}: another sweep, or another version of systole",
            index + 1
        );
        let point: usize = row[1]
            .parse()
            .with_context(|| format!("line {}", index + 1))?;
        ensure!(
            point < n_points,
            "line {}: there is no point {point}",
            index + 1
        );
        rows.insert(point, row);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use std::fs;

    fn cells(point: usize) -> Vec<String> {
        vec![format!("net, {point}"), "1".to_owned()]
    }

    #[test]
    fn a_file_that_was_cut_anywhere_ends_as_if_it_had_not_been() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("points.csv");
        let run = |order: &[usize]| {
            let journal = Journal::open(&path, &["network", "cycles"], 7, 3).expect("it opens");
            for &point in order.iter().filter(|&&point| !journal.has(point)) {
                journal.add(point, cells(point)).expect("it is written");
            }
            journal.finish().expect("it is written")
        };
        run(&[0, 1, 2]);
        let whole = fs::read(&path).expect("it is there");
        fs::remove_file(&path).expect("it is there");
        assert_eq!(run(&[2, 0, 1]), [cells(0), cells(1), cells(2)]);
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).expect("writable");
            run(&[2, 1, 0]);
            assert_eq!(fs::read(&path).expect("it is there"), whole, "cut at {cut}");
        }
        for other in [
            Journal::open(&path, &["network", "cycles"], 8, 3),
            Journal::open(&path, &["network"], 7, 3),
            Journal::open(&path, &["network", "cycles"], 7, 2),
        ] {
            assert!(other.is_err());
        }
        assert_eq!(fs::read(&path).expect("it is there"), whole, "left alone");
    }
}
