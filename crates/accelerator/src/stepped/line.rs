//! Delay lines: registers in a row, each of which takes over its neighbour's value every cycle.
//!
//! Invariant: what a line holds stands still in memory while the line's beginning moves, so a shift of
//! all registers costs nothing and any run of registers is a slice.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

/// Shifts before what is still held is moved to the end of the memory.
const ROOM: usize = 4096;

/// Lines that shift together.
#[derive(Clone, Debug)]
pub(crate) struct Lines<T> {
    /// Registers of a line.
    depth: usize,
    /// Where the lines begin.
    head: usize,
    values: Vec<Vec<T>>,
}

impl<T: Copy + Default> Lines<T> {
    /// `n` lines of `depth` registers.
    pub fn new(n: usize, depth: usize) -> Self {
        Self {
            depth,
            head: ROOM,
            values: vec![vec![T::default(); ROOM + depth]; n],
        }
    }

    /// One shift; the first registers hold nothing of use until [`Self::put`] fills them.
    #[inline(always)]
    pub fn shift(&mut self) {
        if self.head == 0 {
            self.head = ROOM;
            for line in &mut self.values {
                line.copy_within(..self.depth, ROOM);
            }
        }
        self.head -= 1;
    }

    /// Fills a line's first register.
    #[inline(always)]
    pub fn put(&mut self, line: usize, value: T) {
        self.values[line][self.head] = value;
    }

    /// Fills the first registers of the first lines.
    #[inline(always)]
    pub fn put_all(&mut self, values: impl IntoIterator<Item = T>) {
        let head = self.head;
        let first = self.values.iter_mut().map(|line| &mut line[head]);
        first.zip(values).for_each(|(first, value)| *first = value);
    }

    /// All registers of a line.
    #[inline(always)]
    pub fn line(&self, line: usize) -> &[T] {
        &self.values[line][self.head..][..self.depth]
    }

    /// One register.
    pub fn register(&self, line: usize, at: usize) -> T {
        self.values[line][self.head + at]
    }
}

/// Rows of registers, each of which takes over the row above's values every cycle, behind columns that
/// are delayed: column `c` by `c` cycles.
#[derive(Clone, Debug)]
pub(crate) struct Rows<T> {
    n_columns: usize,
    /// The place of row 0.
    head: usize,
    /// A power of two.
    n_places: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> Rows<T> {
    /// `n_rows` rows of `n_columns`.
    pub fn new(n_rows: usize, n_columns: usize) -> Self {
        let n_places = (n_rows + n_columns).next_power_of_two();
        Self {
            n_columns,
            head: 0,
            n_places,
            values: vec![T::default(); n_places * n_columns],
        }
    }

    /// One shift; what enters the delays must be [`Self::put`] afterwards.
    #[inline(always)]
    pub fn shift(&mut self) {
        self.head = (self.head + 1) & (self.n_places - 1);
    }

    /// What enters a column's delay now: row 0 has it `column` shifts later.
    #[inline(always)]
    pub fn put(&mut self, column: usize, value: T) {
        let place = (self.head + column) & (self.n_places - 1);
        self.values[place * self.n_columns + column] = value;
    }

    /// What enters the delays of the first columns.
    #[inline(always)]
    pub fn put_all(&mut self, values: impl IntoIterator<Item = T>) {
        for (column, value) in values.into_iter().enumerate() {
            self.put(column, value);
        }
    }

    /// What row 0 has of a delayed column after the next shift.
    pub fn coming(&self, column: usize) -> T {
        let place = (self.head + 1) & (self.n_places - 1);
        self.values[place * self.n_columns + column]
    }

    /// A row's registers.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[T] {
        let place = (self.head + self.n_places - row) & (self.n_places - 1);
        &self.values[place * self.n_columns..][..self.n_columns]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both against queues that move.
    #[test]
    fn lines_are_shift_registers() {
        let depth = 7;
        let mut lines = Lines::new(2, depth);
        let mut queues = [vec![0; depth], vec![0; depth]];
        for time in 0..3 * ROOM as i32 {
            lines.shift();
            for (line, queue) in queues.iter_mut().enumerate() {
                let value = time * 10 + line as i32;
                lines.put(line, value);
                queue.rotate_right(1);
                queue[0] = value;
                let held: Vec<i32> = (0..depth).map(|at| lines.register(line, at)).collect();
                assert_eq!(held, *queue);
                assert_eq!(lines.line(line), queue);
            }
        }
    }

    #[test]
    fn rows_are_shift_registers_behind_delays() {
        let (n_rows, n_columns) = (3, 4);
        let mut rows = Rows::new(n_rows, n_columns);
        let mut queues = vec![Vec::new(); n_columns];
        for time in 1..100 {
            rows.shift();
            for (column, queue) in queues.iter_mut().enumerate() {
                let value = 10 * time + column;
                rows.put(column, value);
                queue.push(value);
            }
            for row in 0..n_rows {
                let delayed = |column: usize| time.checked_sub(row + column + 1);
                let expected = |column| delayed(column).map_or(0, |at| queues[column][at]);
                let expected: Vec<usize> = (0..n_columns).map(expected).collect();
                assert_eq!(rows.row(row), expected, "{time} {row}");
            }
        }
    }
}
