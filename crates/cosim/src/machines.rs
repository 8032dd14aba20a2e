//! The machines of the comparison, one a line.
//!
//! Invariant: every line becomes a machine file and passes through `Config::from_toml`, as a user's
//! would.

use accelerator::Config;

/// 4×4 to 16×16, also non-square; accumulators of 8 to 32 bits, both overflows, every rounding; DRAM
/// from 1 to 64 bytes a cycle; queues from 1 to 16; all dataflows, with and without shadow registers,
/// with blocks from 1 row on; depthwise convolutions on the array and on the lanes.
///
/// Recordings are named by a machine's place, so new ones come last.
const TABLE: &str = "
    dataflow rows cols shadow block_rows bits overflow rounding            depthwise blocks lanes queue latency bytes burst outstanding
    output   4    4    true   -          16   saturate half-even           array     2      4     16    40      16    64    16
    output   4    4    false  -          12   wrap     half-up             array     1      1     1     1       1     1     1
    output   4    8    true   -          12   saturate half-away-from-zero array     2      3     2     7       4     16    2
    output   8    4    true   -          24   wrap     floor               array     3      4     4     20      2     8     4
    output   8    8    false  -          16   wrap     half-even           array     2      8     8     100     8     64    8
    output   8    16   true   -          16   saturate half-up             array     2      5     3     13      16    16    3
    output   16   8    true   -          24   saturate half-away-from-zero array     4      16    16    33      4     4     1
    output   16   16   true   -          16   saturate half-even           array     2      16    16    40      16    64    16
    output   16   16   false  -          12   saturate floor               array     2      7     2     2       16    128   64
    output   5    7    true   -          32   wrap     half-even           array     2      2     6     9       2     2     5
    output   12   16   true   -          20   saturate half-up             array     3      16    8     25      64    256   32
    output   16   12   false  -          16   wrap     half-away-from-zero array     2      9     4     5       1     16    2
    output   4    4    true   -          8    saturate half-away-from-zero array     2      2     4     3       2     32    4
    output   4    4    true   -          10   saturate half-even           post      2      3     3     6       4     16    2
    output   8    4    false  -          12   wrap     floor               post      2      4     8     12      8     32    4
    weight   4    4    true   16         12   saturate half-even           post      2      4     16    20      16    64    8
    weight   4    4    false  1          16   wrap     half-up             array     2      1     1     3       2     8     1
    weight   8    8    true   64         16   saturate half-away-from-zero post      2      8     8     100     8     64    8
    weight   4    8    false  7          12   saturate floor               post      3      3     2     7       4     16    2
    weight   12   5    true   100        10   wrap     half-even           post      1      2     4     5       1     16    3
    weight   16   16   true   256        16   saturate half-even           array     2      16    16    40      16    64    16
    input    4    4    true   16         12   saturate half-up             post      2      4     16    20      16    64    8
    input    4    4    false  1          8    wrap     half-even           array     2      2     2     2       4     4     2
    input    8    8    true   64         16   wrap     half-away-from-zero post      2      8     8     13      8     32    4
    input    8    4    false  5          12   saturate half-even           post      3      3     4     9       2     8     2
    input    5    12   true   90         10   saturate floor               post      1      7     3     33      64    256   8
    input    16   16   true   256        16   saturate half-even           array     2      16    16    40      16    64    16
";

/// The machines of `TABLE`, with memories small enough that random programs reach their ends.
pub fn machines() -> Vec<Config> {
    let mut lines = TABLE.lines().filter(|line| !line.trim().is_empty());
    let columns: Vec<&str> = lines.next().map_or(Vec::new(), words);
    lines
        .map(|line| {
            let values = words(line);
            assert_eq!(values.len(), columns.len(), "{line}: one value a column");
            let of = |column: &str| {
                let index = columns.iter().position(|c| *c == column);
                values[index.unwrap_or_else(|| panic!("no column {column}"))]
            };
            let text = file(&of);
            Config::from_toml(&text).unwrap_or_else(|error| panic!("{line}: {error}"))
        })
        .collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn file<'a>(of: &impl Fn(&str) -> &'a str) -> String {
    let (rows, cols, bits, bytes) = (of("rows"), of("cols"), of("bits"), of("bytes"));
    let (overflow, rounding, depthwise) = (of("overflow"), of("rounding"), of("depthwise"));
    let dataflow = of("dataflow");
    let mut name = format!("{rows}x{cols}-{bits}-{overflow}-{rounding}-d{bytes}");
    if dataflow != "output" {
        name = format!("{dataflow}-{name}");
    }
    if depthwise != "array" {
        name = format!("{name}-lanes");
    }
    let shadow = match dataflow {
        "output" => "shadow_accumulators",
        _ => "shadow_operands",
    };
    let block_rows = match of("block_rows") {
        "-" => String::new(),
        n => format!("block_rows = {n}\n"),
    };
    format!(
        "name = \"{name}\"\nclock_hz = 1\n[array]\ndataflow = \"{dataflow}-stationary\"\n\
         rows = {rows}\ncols = {cols}\n{shadow} = {}\n[accumulator]\n\
         width_bits = {bits}\noverflow = \"{overflow}\"\nn_blocks = {}\n{block_rows}[post]\n\
         lanes = {}\nrounding = \"{rounding}\"\ndepthwise = \"{depthwise}\"\n[scratchpad]\n\
         activation_bytes = 1024\nweight_bytes = 512\nn_parameters = 24\n[frontend]\n\
         queue_depth = {}\nmax_tokens = 255\n[dram]\nsize_bytes = 65536\n\
         latency_cycles = {}\nbytes_per_cycle = {bytes}\nburst_bytes = {}\n\
         max_outstanding = {}\n",
        of("shadow"),
        of("blocks"),
        of("lanes"),
        of("queue"),
        of("latency"),
        of("burst"),
        of("outstanding"),
    )
}

#[cfg(test)]
mod tests {
    use super::machines;
    use accelerator::{Config, Dataflow, DepthwiseUnit};
    use arith::{Overflow, Rounding};

    #[test]
    fn the_machines_cover_what_they_claim() {
        let all = machines();
        for rounding in Rounding::ALL {
            assert!(
                all.iter().any(|m| m.arithmetic.rounding == rounding),
                "{rounding:?}"
            );
        }
        for overflow in [Overflow::Saturate, Overflow::Wrap] {
            for bits in [12, 16, 24] {
                assert!(
                    all.iter().any(|m| {
                        let format = m.arithmetic.accumulator;
                        format.overflow == overflow && format.width_bits == bits
                    }),
                    "{overflow:?} {bits}"
                );
            }
        }
        let names: std::collections::BTreeSet<_> = all.iter().map(|m| &m.name).collect();
        assert_eq!(names.len(), all.len(), "names tell machines apart");
        for bytes in [1, 64] {
            assert!(all.iter().any(|m| m.dram.bytes_per_cycle == bytes));
        }
        assert!(all.iter().any(|m| m.queue_depth == 1));
        for dataflow in [Dataflow::WeightStationary, Dataflow::InputStationary] {
            let of = |what: &dyn Fn(&Config) -> bool| {
                all.iter().any(|m| m.dataflow == dataflow && what(m))
            };
            assert!(of(&|m| m.shadow) && of(&|m| !m.shadow), "{dataflow:?}");
            assert!(of(&|m| m.block_rows == 1) && of(&|m| m.block_rows > 64));
            assert!(of(&|m| m.rows > m.cols) && of(&|m| m.rows != m.cols));
            for overflow in [Overflow::Saturate, Overflow::Wrap] {
                let is_narrow = |m: &Config| {
                    let format = m.arithmetic.accumulator;
                    format.overflow == overflow && format.width_bits <= 12
                };
                assert!(of(&is_narrow), "{dataflow:?} {overflow:?}");
            }
            assert!(of(&|m| m.depthwise == DepthwiseUnit::Post));
        }
        assert!(all.iter().any(|m| m.rows != m.cols));
    }
}
