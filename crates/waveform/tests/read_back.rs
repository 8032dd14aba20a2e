//! Waveforms as a viewer reads them, held to the run's timing, to each other and to the window.

use accelerator::{
    Config, Timing,
    random::{self, Seed},
    stepped,
};
use isa::{Op, Program, Unit};
use std::{collections::BTreeMap, io::Cursor, ops::Range};
use waveform::{Error, Format, Waves};

/// Time units of a cycle.
const CYCLE: u64 = 10;

/// A machine and a program that ends, from a seed.
fn pair(seed: u64) -> Option<(Config, Program, Timing)> {
    let mut seed = Seed::new(seed);
    let config = random::machine(&mut seed);
    let program = random::program(&mut seed, &config, 60);
    let run = stepped::run(&program, &config, &mut image(&program)).ok()?;
    Some((config, program, run.timing))
}

fn image(program: &Program) -> Vec<u8> {
    let mut dram = program.data.clone();
    dram.resize(program.dram_bytes as usize, 0);
    dram
}

fn bytes(config: &Config, program: &Program, format: Format, window: Range<u64>) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let mut waves = Waves::new(&mut out, format, window.clone());
    stepped::run_watched(program, config, &mut image(program), window, &mut waves)
        .expect("it ran before");
    waves.finish().expect("nothing is written to disk");
    out.into_inner()
}

/// Every signal's bits at the beginning of every cycle.
type Table = BTreeMap<String, Vec<String>>;

fn read(bytes: Vec<u8>, window: Range<u64>) -> Table {
    let mut waveform = wellen::simple::read_from_reader(Cursor::new(bytes)).expect("a waveform");
    let vars: Vec<_> = {
        let hierarchy = waveform.hierarchy();
        let scale = hierarchy.timescale().expect("a time scale");
        assert_eq!((scale.factor, scale.unit.to_exponent()), (100, Some(-12)));
        assert_eq!(hierarchy.date(), "");
        let vars = hierarchy.all_vars().map(|var| &hierarchy[var]);
        vars.map(|var| (var.full_name(hierarchy), var.signal_ref()))
            .collect()
    };
    waveform.load_signals(&vars.iter().map(|(_, signal)| *signal).collect::<Vec<_>>());
    let times = waveform.time_table();
    // Before the window nothing is known: in an FST, from time 0 on.
    let begins = times.iter().filter(|time| *time % CYCLE == 0);
    let mut begins = begins
        .map(|time| time / CYCLE)
        .filter(|cycle| *cycle >= window.start);
    assert!(begins.by_ref().eq(window.clone()), "one beginning a cycle");
    let mut table = Table::new();
    for (name, signal) in vars {
        let mut changes = waveform
            .get_signal(signal)
            .expect("it was loaded")
            .iter_changes()
            .map(|(index, value)| (times[index as usize], value.to_string()))
            .peekable();
        let mut now = String::new();
        let values = window.clone().map(|cycle| {
            while let Some((_, value)) = changes.next_if(|(time, _)| *time <= cycle * CYCLE) {
                now = value;
            }
            now.clone()
        });
        let values = values.collect();
        assert!(
            table.insert(name.clone(), values).is_none(),
            "{name} is there twice"
        );
    }
    table
}

fn bit(table: &Table, name: &str, cycle: u64, place: usize) -> bool {
    let text = &table[name][cycle as usize];
    text.as_bytes()[text.len() - 1 - place] == b'1'
}

fn number(table: &Table, name: &str, cycle: u64) -> usize {
    let text = &table[name][cycle as usize];
    usize::from_str_radix(text, 2).unwrap_or_else(|_| panic!("{name} in cycle {cycle}: {text}"))
}

/// Issue, start and end of an instruction stand where the timing says.
fn check(table: &Table, program: &Program, timing: &Timing, index: usize) {
    let op = &program.instructions[index].op;
    let (issue, start, end) = (timing.issue[index], timing.start[index], timing.end[index]);
    assert!(bit(table, "systole.trace_issue", issue, 0));
    assert_eq!(number(table, "systole.trace_issue_index", issue), index);
    assert_eq!(number(table, "systole.u_frontend.pc", issue), index);
    let unit = op.unit();
    if unit == Unit::Frontend {
        assert!(bit(table, "systole.trace_fence", issue, 0));
        return;
    }
    let unit = unit.index();
    assert!(bit(table, "systole.trace_start", start, unit));
    let name = format!("systole.trace_start_index.[{unit}]");
    assert_eq!(number(table, &name, start), index);
    // The end is the first cycle that sees the results.
    let last = end - 1;
    match op {
        Op::Preload(_) => {
            assert!(bit(table, "systole.trace_preload_end", last, 0));
            assert_eq!(
                number(table, "systole.trace_preload_end_index", last),
                index
            );
        }
        op if op.may_signal() => {
            assert!(bit(table, "systole.trace_end", last, unit));
            let name = format!("systole.trace_end_index.[{unit}]");
            assert_eq!(number(table, &name, last), index);
        }
        _ => assert!(bit(table, "systole.trace_setup_end", last, unit)),
    }
}

/// How many cycles have a bit set.
fn count(table: &Table, name: &str, place: usize, total: u64) -> usize {
    (0..total)
        .filter(|&cycle| bit(table, name, cycle, place))
        .count()
}

#[test]
fn every_instruction_is_where_the_timing_says() {
    let mut dataflows = std::collections::BTreeSet::new();
    for seed in 0..24 {
        let Some((config, program, timing)) = pair(seed) else {
            continue;
        };
        dataflows.insert(config.dataflow.name());
        let total = timing.total.0;
        let table = read(bytes(&config, &program, Format::Fst, 0..total), 0..total);
        for index in 0..program.instructions.len() {
            check(&table, &program, &timing, index);
        }
        // And nowhere else.
        let n = program.instructions.len();
        assert_eq!(count(&table, "systole.trace_issue", 0, total), n);
        let fences = count(&table, "systole.trace_fence", 0, total);
        let starts = (0..4).map(|unit| count(&table, "systole.trace_start", unit, total));
        assert_eq!(starts.sum::<usize>() + fences, n);
        let mut ends = fences;
        for unit in 0..4 {
            ends += count(&table, "systole.trace_end", unit, total);
            ends += count(&table, "systole.trace_setup_end", unit, total);
        }
        if table.contains_key("systole.trace_preload_end") {
            ends += count(&table, "systole.trace_preload_end", 0, total);
        }
        assert_eq!(ends, n);
        let moves = count(&table, "systole.u_dram.moving", 0, total);
        assert!(moves > 0, "seed {seed}: nothing was loaded");
    }
    assert_eq!(dataflows.len(), 3, "{dataflows:?}");
}

#[test]
fn a_window_is_cut_from_the_whole() {
    let mut n = 0;
    for seed in 0..8 {
        let Some((config, program, timing)) = pair(seed) else {
            continue;
        };
        let total = timing.total.0;
        let window = total / 3..total / 2;
        let whole = read(bytes(&config, &program, Format::Fst, 0..total), 0..total);
        let part = read(
            bytes(&config, &program, Format::Fst, window.clone()),
            window.clone(),
        );
        assert_eq!(whole.len(), part.len());
        for (name, values) in part {
            let cut = &whole[&name][window.start as usize..window.end as usize];
            assert_eq!(values, cut, "{name}");
        }
        n += 1;
    }
    assert!(n > 3, "only {n} programs ran");
}

#[test]
fn both_formats_say_the_same_with_the_same_bytes_every_time() {
    let (config, program, timing) = (0..).find_map(pair).expect("one of them ends");
    let total = timing.total.0;
    let [fst, vcd] = [Format::Fst, Format::Vcd].map(|format| {
        let first = bytes(&config, &program, format, 0..total);
        assert!(
            first == bytes(&config, &program, format, 0..total),
            "{format:?}"
        );
        first
    });
    assert!(
        fst.len() * 5 < vcd.len(),
        "{} and {} bytes",
        fst.len(),
        vcd.len()
    );
    assert!(!String::from_utf8_lossy(&vcd).contains("$date"));
    assert_eq!(read(fst, 0..total), read(vcd, 0..total));
}

#[test]
fn a_window_behind_the_end_is_refused() {
    let (config, program, timing) = (0..).find_map(pair).expect("one of them ends");
    let total = timing.total.0;
    let mut out = Cursor::new(Vec::new());
    let mut waves = Waves::new(&mut out, Format::Fst, total..total + 5);
    let window = waves.window();
    stepped::run_watched(&program, &config, &mut image(&program), window, &mut waves)
        .expect("it ran before");
    assert!(matches!(waves.finish(), Err(Error::Empty { from }) if from == total));
}
