//! Delay lines: registers in a row, each of which takes over its neighbour's value every cycle.
//!
//! Invariant: what a line holds stands still in memory while the line's beginning moves, so a shift of
//! all registers costs nothing and any run of registers is a slice.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

/// Shifts before what is still held is moved to the end of the memory.
const ROOM: usize = 256;
/// Shifts that can be looked back.
pub(crate) const PAST: usize = 64;

/// Lines that shift together.
#[derive(Clone, Debug)]
pub(crate) struct Lines<T> {
    /// Registers of a line.
    depth: usize,
    /// Where the lines begin.
    head: usize,
    /// From one line to the next.
    pitch: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> Lines<T> {
    /// `n` lines of `depth` registers.
    pub fn new(n: usize, depth: usize) -> Self {
        let pitch = ROOM + depth + PAST;
        Self {
            depth,
            head: ROOM,
            pitch,
            values: vec![T::default(); pitch * n],
        }
    }

    /// One shift; the first registers hold nothing of use until [`Self::put`] fills them.
    #[inline(always)]
    pub fn shift(&mut self) {
        self.shift_by(1);
    }

    /// Several shifts, at most [`PAST`]; what entered meanwhile is [`Self::fill`]'s.
    #[inline(always)]
    pub fn shift_by(&mut self, n: usize) {
        if self.head < n {
            for line in self.values.chunks_exact_mut(self.pitch) {
                line.copy_within(self.head..self.head + self.depth + PAST, ROOM);
            }
            self.head = ROOM;
        }
        self.head -= n;
    }

    /// What entered a line in the latest shifts, oldest last.
    #[inline(always)]
    pub fn fill(&mut self, line: usize, values: &[T]) {
        let first = line * self.pitch + self.head;
        self.values[first..first + values.len()].copy_from_slice(values);
    }

    /// Fills a line's first register.
    #[inline(always)]
    pub fn put(&mut self, line: usize, value: T) {
        self.values[line * self.pitch + self.head] = value;
    }

    /// Fills the first registers of the first lines.
    #[inline(always)]
    pub fn put_all(&mut self, values: impl IntoIterator<Item = T>) {
        let first = self.values[self.head..].iter_mut().step_by(self.pitch);
        first.zip(values).for_each(|(first, value)| *first = value);
    }

    /// All registers of a line.
    #[inline(always)]
    pub fn line(&self, line: usize) -> &[T] {
        self.line_before(line, 0)
    }

    /// What they held some shifts ago, at most [`PAST`].
    #[inline(always)]
    pub fn line_before(&self, line: usize, n_shifts: usize) -> &[T] {
        &self.values[line * self.pitch + self.head + n_shifts..][..self.depth]
    }

    /// What `N` registers from a place on held in the latest `n` cycles, oldest first.
    #[inline(always)]
    pub fn history<const N: usize>(
        &self,
        (line, at): (usize, usize),
        n: usize,
    ) -> impl Iterator<Item = &[T; N]> {
        let values = &self.values[line * self.pitch + self.head + at..][..N + n - 1];
        values.array_windows().rev()
    }

    /// One register.
    pub fn register(&self, line: usize, at: usize) -> T {
        self.values[line * self.pitch + self.head + at]
    }
}

/// Rows of registers, each of which takes over the row above's values every cycle, behind columns that
/// are delayed: column `c` by `c` cycles.
#[derive(Clone, Debug)]
pub(crate) struct Rows<T> {
    n_columns: usize,
    /// Places before row 0's that are looked at.
    n_before: usize,
    /// The place of row 0.
    head: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> Rows<T> {
    /// `n_rows` rows of `n_columns`.
    pub fn new(n_rows: usize, n_columns: usize) -> Self {
        let n_before = n_rows + PAST;
        Self {
            n_columns,
            n_before,
            head: n_before,
            values: vec![T::default(); (n_before + ROOM + n_columns + 1) * n_columns],
        }
    }

    /// One shift; what enters the delays must be [`Self::put`] afterwards.
    #[inline(always)]
    pub fn shift(&mut self) {
        self.make_room(1);
        self.head += 1;
    }

    /// Makes room for so many shifts, at most [`PAST`].
    #[inline(always)]
    pub fn make_room(&mut self, n: usize) {
        if self.head + n > self.n_before + ROOM {
            let from = (self.head - self.n_before) * self.n_columns;
            let to = (self.head + self.n_columns + 1) * self.n_columns;
            self.values.copy_within(from..to, 0);
            self.head = self.n_before;
        }
    }

    /// What enters a column's delay now: row 0 has it `column` shifts later.
    #[inline(always)]
    pub fn put(&mut self, column: usize, value: T) {
        self.values[(self.head + column) * self.n_columns + column] = value;
    }

    /// What enters the delays of columns side by side.
    #[inline(always)]
    pub fn put_from(&mut self, column: usize, values: impl IntoIterator<Item = T>) {
        let first = (self.head + column) * self.n_columns + column;
        let places = self.values[first..].iter_mut().step_by(self.n_columns + 1);
        places.zip(values).for_each(|(place, value)| *place = value);
    }

    /// What row 0 has of a delayed column after the next shift.
    pub fn coming(&self, column: usize) -> T {
        self.values[(self.head + 1) * self.n_columns + column]
    }

    /// A row's registers.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[T] {
        self.row_before(row, 0)
    }

    /// What they held some shifts ago, at most [`PAST`].
    #[inline(always)]
    pub fn row_before(&self, row: usize, n_shifts: usize) -> &[T] {
        &self.values[(self.head - row - n_shifts) * self.n_columns..][..self.n_columns]
    }

    /// What `N` of a row's registers from a place on held in the latest `n` cycles, oldest first.
    #[inline(always)]
    pub fn history<const N: usize>(
        &self,
        (row, at): (usize, usize),
        n: usize,
    ) -> impl Iterator<Item = &[T; N]> {
        let end = self.head - row + 1;
        let values = &self.values[(end - n) * self.n_columns..end * self.n_columns];
        let rows = values.chunks_exact(self.n_columns);
        rows.map(move |row| row[at..].first_chunk().expect("so many columns"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against queues that move, at every depth of the past.
    #[test]
    fn lines_are_shift_registers() {
        let depth = 7;
        let mut lines = Lines::new(2, depth);
        let mut queues = [vec![0; depth + PAST], vec![0; depth + PAST]];
        let mut time = 0;
        while time < 3 * ROOM as i32 {
            // Several shifts at once, or one.
            let n = 1 + (time % 5) as usize;
            lines.shift_by(n);
            for (line, queue) in queues.iter_mut().enumerate() {
                let values: Vec<i32> = (0..n as i32)
                    .rev()
                    .map(|later| (time + later) * 10 + line as i32)
                    .collect();
                lines.fill(line, &values);
                queue.splice(0..0, values);
                queue.truncate(depth + PAST);
                let held: Vec<i32> = (0..depth).map(|at| lines.register(line, at)).collect();
                assert_eq!(held, queue[..depth]);
                for n_shifts in 0..=PAST {
                    assert_eq!(
                        lines.line_before(line, n_shifts),
                        &queue[n_shifts..][..depth]
                    );
                }
                let history: Vec<&[i32]> = lines
                    .history::<3>((line, 4), 20)
                    .map(|held| &held[..])
                    .collect();
                let before = |n_shifts: usize| queue[n_shifts + 4..][..3].to_vec();
                let expected: Vec<Vec<i32>> = (0..20).rev().map(before).collect();
                assert_eq!(history, expected);
            }
            time += n as i32;
        }
    }

    #[test]
    fn rows_are_shift_registers_behind_delays() {
        let (n_rows, n_columns) = (3, 4);
        let mut rows = Rows::new(n_rows, n_columns);
        let mut queues = vec![Vec::new(); n_columns];
        for time in 1..2 * ROOM {
            rows.shift();
            let values: Vec<usize> = (0..n_columns).map(|column| 10 * time + column).collect();
            if time % 2 == 0 {
                rows.put_from(0, values.iter().copied());
            } else {
                rows.put(0, values[0]);
                rows.put_from(1, values[1..].iter().copied());
            }
            for (queue, value) in queues.iter_mut().zip(values) {
                queue.push(value);
            }
            let expected = |row: usize, n_shifts: usize| {
                let delayed = |column: usize| time.checked_sub(row + column + n_shifts + 1);
                let value = |column: usize| delayed(column).map_or(0, |at| queues[column][at]);
                (0..n_columns).map(value).collect::<Vec<usize>>()
            };
            for row in 0..n_rows {
                for n_shifts in 0..PAST {
                    let held = rows.row_before(row, n_shifts);
                    assert_eq!(held, expected(row, n_shifts), "{time} {row}");
                }
                let history: Vec<&[usize]> = rows
                    .history::<2>((row, 1), 20)
                    .map(|held| &held[..])
                    .collect();
                let expected: Vec<Vec<usize>> = (0..20)
                    .rev()
                    .map(|n| expected(row, n)[1..3].to_vec())
                    .collect();
                assert_eq!(history, expected);
            }
        }
    }
}
