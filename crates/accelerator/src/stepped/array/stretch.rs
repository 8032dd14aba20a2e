//! Stretches of cycles in which an output-stationary array only reads on along its pixels, all at once.
//!
//! Invariant: registers, counters and memories are those that [`OutputStationary::step`] leaves, cycle after
//! cycle, where no other unit writes.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the processor's registers"
)]

use super::{
    ActivationPort, Half, OutputStationary,
    output_stationary::Stream,
    output_stationary_pe::{Operands, signal},
    passes,
};
use crate::{
    Config,
    stepped::{
        line::PAST,
        memory::{Memories, Memory},
        pe::weighed,
        sums::LANES,
    },
};
use isa::Input;

impl OutputStationary {
    /// Several cycles at once, in each of which the ports read the next channel and the PEs may be late;
    /// 0 where [`Self::step`] has more to do. While it reads, no other unit may write.
    pub fn run(&mut self, config: &Config, memories: &Memories<'_>) -> u64 {
        let n = self.n_alike_cycles(config);
        if n < 2 {
            return 0;
        }
        let Some(stream) = &mut self.stream else {
            return 0;
        };
        let (channel, input) = (self.tap.channel, &stream.input);
        if !self.operands.read(
            (&self.ports, input, channel),
            (stream, self.tap.k, n),
            config,
            memories,
        ) {
            return 0;
        }
        memories.count_nibbles(Memory::Activation, self.n_reads.unwrap_or(0) * u64::from(n));
        let n_columns = stream.matmul.cols_minus_1 + 1;
        memories.count_nibbles(Memory::Weight, u64::from(n_columns) * u64::from(n));
        self.n_late += n as usize;
        self.tap.k += n - 1;
        self.tap.channel += n - 1;
        stream.step += n - 1;
        self.advance();
        let n = u64::from(n);
        self.drain_gap = self.drain_gap.saturating_sub(n);
        self.running.iter_mut().for_each(|matmul| matmul.left -= n);
        n
    }

    /// How many cycles from now on differ in nothing but the channel that is read.
    fn n_alike_cycles(&self, config: &Config) -> u32 {
        let Some(stream) = &self.stream else {
            return 0;
        };
        let reads_on = passes(&stream.input) == 1 && self.n_reads.is_some();
        if !(reads_on && self.can_be_late(config) && self.is_drained()) {
            return 0;
        }
        let until_end = self.running.iter().map(|matmul| matmul.left).min();
        // The last step of a matmul may end a fold, and does end the stream.
        (stream.matmul.n_steps - stream.step - 1)
            .min(stream.input.n_channels - self.tap.channel)
            .min((PAST - 1 - self.n_late) as u32)
            .min(until_end.map_or(0, |left| left.min(PAST as u64) as u32 - 1))
    }
}

impl Operands {
    /// What `n` cycles bring, in which the ports read one channel after the other of the pixels that they
    /// look at; `false` where one of them is outside its memory, and nothing has changed.
    fn read(
        &mut self,
        (ports, input, channel): (&[ActivationPort], &Input, u32),
        (stream, k, n): (&Stream, u32, u32),
        config: &Config,
        memories: &Memories<'_>,
    ) -> bool {
        let matmul = &stream.matmul;
        let line_bytes = u64::from(config.line_bytes());
        let first = (u64::from(matmul.weight_line) + u64::from(stream.step)) * line_bytes;
        let Ok(lines) = memories.weights(first, u64::from(n) * line_bytes) else {
            return false;
        };
        let first = input.channel + channel;
        let last = Half::new(input, channel + n - 1, false);
        if ports.iter().any(|port| last.under(port, memories).is_err()) {
            return false;
        }
        let lines = lines.chunks_exact(line_bytes as usize);
        fill(
            self,
            (ports, input, first),
            (lines, matmul.cols_minus_1),
            k,
            memories,
        );
        true
    }
}

/// [`Operands::read`], where everything can be read: from the ports' pixels the channels from `first` on,
/// and lines of weights.
#[multiversion::multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
fn fill(
    operands: &mut Operands,
    (ports, input, first): (&[ActivationPort], &Input, u32),
    (lines, cols_minus_1): (std::slice::ChunksExact<'_, u8>, u32),
    k: u32,
    memories: &Memories<'_>,
) {
    let n = lines.len();
    // Oldest last, as in a line.
    let mut values = [0; PAST];
    operands.signals.shift_by(n);
    for signal in 0..signal::COUNT {
        values.fill(operands.signals.register(signal, n));
        operands.signals.fill(signal, &values[..n]);
    }
    for (value, k) in values[..n].iter_mut().rev().zip(k as i32..) {
        *value = k;
    }
    operands.signals.fill(signal::K, &values[..n]);
    operands.activations.shift_by(n);
    let is_signed = input.signed_activations == 1;
    for (row, port) in ports.iter().enumerate() {
        match port.pixel {
            Some(pixel) => {
                let from = (pixel + u64::from(first / 2)) as usize;
                let bytes = &memories.activations[from..];
                weigh(bytes, first % 2 == 1, is_signed, &mut values);
            }
            None => values.fill(0),
        }
        operands.activations.fill(row, &values[PAST - n..]);
    }
    operands.weights.make_room(n);
    operands.initial.make_room(n);
    let n_columns = cols_minus_1 as usize + 1;
    for line in lines {
        operands.weights.shift();
        operands.initial.shift();
        for (group, bytes) in line.chunks(LANES / 2).enumerate() {
            let mut held = [0; LANES / 2];
            held[..bytes.len()].copy_from_slice(bytes);
            let values = nibbles(u64::from_le_bytes(held), true);
            let column = group * LANES;
            let n = n_columns.saturating_sub(column).min(LANES);
            operands
                .weights
                .put_from(column, values.into_iter().take(n));
        }
    }
    operands.latest.note_more(n);
}

/// What the nibbles of `bytes`, or those from the first upper one on, stand for, the first last.
#[inline(always)]
fn weigh(bytes: &[u8], from_upper: bool, is_signed: bool, values: &mut [i32; PAST]) {
    let mut held = [0; PAST / 2 + 8];
    let n = bytes.len().min(held.len());
    held[..n].copy_from_slice(&bytes[..n]);
    let chunks = values.as_chunks_mut::<LANES>().0.iter_mut().rev();
    for (chunk, values) in chunks.enumerate() {
        let bytes = &held[chunk * LANES / 2..];
        let low: [u8; 8] = *bytes.first_chunk().expect("so many are held");
        let mut word = u64::from_le_bytes(low);
        if from_upper {
            word = word >> 4 | u64::from(bytes[8]) << 60;
        }
        *values = nibbles(word, is_signed);
        values.reverse();
    }
}

/// What the nibbles of a word stand for, the lowest first.
#[inline(always)]
fn nibbles(word: u64, is_signed: bool) -> [i32; LANES] {
    let mut values = [0; LANES];
    for (at, value) in values.iter_mut().enumerate() {
        *value = weighed((word >> (4 * at)) as u8, false, is_signed);
    }
    values
}
