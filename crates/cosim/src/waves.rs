//! Waveforms of the RTL and of the stepped model, side by side: signal by signal, cycle by cycle.
//!
//! Invariant: both are read from what was written, by name; a value that the model does not know is
//! not compared, and counted.

use crate::{
    Build, Error, Model, Observed, Outcome, Rtl, Size, compare, file_error, image, machines, model,
    mutants::Mutant,
    programs::{self, Named},
    recordings, suite,
};
use accelerator::{
    Config,
    stepped::{self, Observer, Signal, Value},
};
use isa::Program;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Cursor,
    ops::Range,
    path::{Path, PathBuf},
};
use waveform::{Format, Waves};
use wellen::{SignalRef, simple::Waveform};

/// Time units of a cycle, in both waveforms.
const CYCLE: u64 = 10;
/// Cycles before and after the place of a mismatch that its waveforms show.
const AROUND: (u64, u64) = (50, 20);
/// A whole run is shown up to here: the RTL may never end.
const LONGEST: u64 = 100_000;
/// The scope that Verilator puts around the top module.
const TOP: &str = "TOP.";

/// A value that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaveDifference {
    /// The cycle.
    pub cycle: u64,
    /// The signal.
    pub signal: String,
    /// Bits in the RTL.
    pub rtl: String,
    /// Bits in the model; `x` is unknown.
    pub model: String,
}

impl fmt::Display for WaveDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cycle,
            signal,
            rtl,
            model,
        } = self;
        write!(
            f,
            "cycle {cycle}, {signal}: {rtl} in the RTL, {model} in the model"
        )
    }
}

/// What came of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Of the model's signals that the RTL has: in how many cycles each was known.
    pub known: BTreeMap<String, u64>,
    /// The model's signals that the RTL does not have.
    pub missing: Vec<String>,
    /// Cycles.
    pub n_cycles: u64,
    /// Values that were compared: one of a signal in a cycle.
    pub n_values: u64,
    /// Values without a bit that the model knows.
    pub n_unknown: u64,
    /// Values that differ.
    pub n_differences: u64,
    /// The first of them.
    pub first: Option<WaveDifference>,
}

impl Comparison {
    /// Adds another program's.
    pub fn add(&mut self, other: &Self) {
        for (signal, n) in &other.known {
            *self.known.entry(signal.clone()).or_default() += n;
        }
        for signal in &other.missing {
            if !self.missing.contains(signal) {
                self.missing.push(signal.clone());
            }
        }
        self.n_cycles += other.n_cycles;
        self.n_values += other.n_values;
        self.n_unknown += other.n_unknown;
        self.n_differences += other.n_differences;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }
}

/// The stepped model's waveform of a window, as FST. A run that a fault ends has one too.
///
/// # Errors
/// The program is refused before it runs, or is over before the window.
pub fn stepped_waveform(
    program: &Program,
    config: &Config,
    dram: &[u8],
    window: Range<u64>,
) -> Result<Vec<u8>, Error> {
    let mut bytes = Cursor::new(Vec::new());
    let mut waves = Waves::new(&mut bytes, Format::Fst, window.clone());
    let run = stepped::run_watched(program, config, &mut dram.to_vec(), window, &mut waves);
    match (waves.finish(), run) {
        (Err(waveform::Error::Empty { .. }), Err(fault)) => return Err(fault.into()),
        (result, _) => result?,
    }
    Ok(bytes.into_inner())
}

/// A waveform's signals, by name without Verilator's outermost scope.
struct Signals {
    waveform: Waveform,
    /// Pieces with their lowest bit, highest first: readers join neighbouring bits of an array, and
    /// Verilator writes arrays in the order of their elements' names.
    by_name: BTreeMap<String, Vec<(i64, SignalRef)>>,
    /// Names of arrays whose elements are bits.
    bit_arrays: BTreeSet<String>,
}

impl Signals {
    fn read(bytes: Vec<u8>) -> Result<Self, Error> {
        let waveform = wellen::simple::read_from_reader(Cursor::new(bytes))?;
        let hierarchy = waveform.hierarchy();
        let mut by_name: BTreeMap<String, Vec<(i64, SignalRef)>> = BTreeMap::new();
        let mut bit_arrays = BTreeSet::new();
        for var in hierarchy.all_vars() {
            let var = &hierarchy[var];
            let name = var.full_name(hierarchy);
            let name = name.strip_prefix(TOP).unwrap_or(&name).to_owned();
            let lowest = var.index().map_or(0, |index| index.lsb());
            let is_element = var.is_1bit(hierarchy) && var.index().is_some();
            if is_element || hierarchy.is_derived_signal(var.signal_ref()) {
                bit_arrays.insert(name.clone());
            }
            by_name
                .entry(name)
                .or_default()
                .push((lowest, var.signal_ref()));
        }
        for pieces in by_name.values_mut() {
            pieces.sort_by_key(|(lowest, _)| std::cmp::Reverse(*lowest));
        }
        Ok(Self {
            waveform,
            by_name,
            bit_arrays,
        })
    }

    /// Whether a name means one signal.
    fn is_single(pieces: &[(i64, SignalRef)]) -> bool {
        pieces.windows(2).all(|pair| pair[0].0 > pair[1].0)
    }

    fn load(&mut self, names: &[String]) {
        let pieces = names.iter().flat_map(|name| &self.by_name[name]);
        let signals: Vec<SignalRef> = pieces.map(|(_, signal)| *signal).collect();
        self.waveform.load_signals(&signals);
    }

    /// A signal's bits at the beginning of every cycle.
    fn values(&self, name: &str, cycles: &[u64]) -> Vec<String> {
        let mut values = vec![String::new(); cycles.len()];
        for (_, signal) in &self.by_name[name] {
            self.append(*signal, cycles, &mut values);
        }
        values
    }

    fn append(&self, signal: SignalRef, cycles: &[u64], values: &mut [String]) {
        let times = self.waveform.time_table();
        let mut changes = self
            .waveform
            .get_signal(signal)
            .into_iter()
            .flat_map(wellen::Signal::iter_changes)
            .map(|(index, value)| (times[index as usize], value.to_string()))
            .peekable();
        let mut now = String::new();
        for (cycle, values) in cycles.iter().zip(values) {
            while let Some((_, value)) = changes.next_if(|(time, _)| *time <= cycle * CYCLE) {
                now = value;
            }
            values.push_str(&now);
        }
    }

    /// The values of a signal as the model names it: elements of an array stand in its scope, and bits
    /// are joined.
    fn values_of(&mut self, signal: &Signal, cycles: &[u64]) -> Result<Vec<u64>, Error> {
        let (array, element) = match signal.name.rsplit_once('[') {
            Some((array, element)) if element.ends_with(']') => (array, element),
            _ => (signal.name.as_str(), ""),
        };
        let is_bit = signal.width == 1 && !element.is_empty();
        let name = match element {
            "" => signal.name.clone(),
            _ if is_bit => array.to_owned(),
            element => format!("{array}.[{element}"),
        };
        if !self.by_name.contains_key(&name) {
            return Err(Error::NoSignal(name));
        }
        self.load(std::slice::from_ref(&name));
        let bits = |text: &String| u64::from_str_radix(text, 2);
        let values = self.values(&name, cycles);
        let values: Result<Vec<u64>, _> = values.iter().map(bits).collect();
        let values = values.map_err(|_| Error::NoSignal(name))?;
        let place = element.trim_end_matches(']').parse().unwrap_or(0);
        Ok(if is_bit {
            values.iter().map(|value| value >> place & 1).collect()
        } else {
            values
        })
    }

    /// The cycles that begin in the waveform.
    fn cycles(&self) -> Vec<u64> {
        let times = self.waveform.time_table().iter();
        times
            .filter(|time| *time % CYCLE == 0)
            .map(|time| time / CYCLE)
            .collect()
    }
}

/// Compares the RTL's waveform with the model's.
///
/// # Errors
/// One of them cannot be read.
pub fn compare_waveforms(rtl: Vec<u8>, model: Vec<u8>) -> Result<Comparison, Error> {
    let (mut rtl, mut model) = (Signals::read(rtl)?, Signals::read(model)?);
    let mut found = Comparison::default();
    let mut names = Vec::new();
    for (name, pieces) in &model.by_name {
        match rtl.by_name.get(name) {
            Some(others) if Signals::is_single(pieces) && Signals::is_single(others) => {
                names.push(name.clone());
            }
            Some(_) => return Err(Error::TwoSignals(name.clone())),
            None => found.missing.push(name.clone()),
        }
    }
    rtl.load(&names);
    model.load(&names);
    let mut cycles = model.cycles();
    // Before its window an FST has a time 0, at which nothing is known.
    let from = rtl.cycles().first().copied().unwrap_or(0);
    cycles.retain(|cycle| *cycle >= from);
    found.n_cycles = cycles.len() as u64;
    if rtl.cycles() != cycles {
        let show = |cycles: &[u64]| match (cycles.first(), cycles.last()) {
            (Some(first), Some(last)) => format!("{first} to {last}"),
            _ => "none".to_owned(),
        };
        found.n_differences += 1;
        found.first = Some(WaveDifference {
            cycle: cycles.last().copied().unwrap_or(0),
            signal: "cycles".to_owned(),
            rtl: show(&rtl.cycles()),
            model: show(&cycles),
        });
        return Ok(found);
    }
    for name in names {
        let mut n_known = 0;
        let mut values = rtl.values(&name, &cycles);
        if model.bit_arrays.contains(&name) {
            // The RTL may be built larger than the machine.
            let width = model.values(&name, &cycles[..1])[0].len();
            for value in &mut values {
                value.drain(..value.len().saturating_sub(width));
            }
        }
        for ((&cycle, r), m) in cycles.iter().zip(values).zip(model.values(&name, &cycles)) {
            if !m.contains(['0', '1']) {
                found.n_unknown += 1;
                continue;
            }
            n_known += 1;
            let is_same =
                r.len() == m.len() && r.bytes().zip(m.bytes()).all(|(r, m)| m == b'x' || r == m);
            if is_same {
                continue;
            }
            found.n_differences += 1;
            if found.first.as_ref().is_none_or(|first| cycle < first.cycle) {
                found.first = Some(WaveDifference {
                    cycle,
                    signal: name.clone(),
                    rtl: r,
                    model: m,
                });
            }
        }
        found.n_values += n_known;
        found.known.insert(name, n_known);
    }
    Ok(found)
}

/// Runs a program on a traced build and on the stepped model, and compares all its cycles.
///
/// # Errors
/// A side cannot run it.
pub fn compare_run(rtl: &Rtl, config: &Config, program: &Program) -> Result<Comparison, Error> {
    let dram = image(program);
    let window = 0..suite::MAX_CYCLES;
    let model = stepped_waveform(program, config, &dram, window.clone())?;
    let rtl = rtl.waveform(program, config, &dram, window)?;
    compare_waveforms(rtl, model)
}

/// Fewer signals than this are not what an architect was promised.
pub const LEAST_SIGNALS: usize = 350;
/// Random programs of a machine.
const RANDOM_PROGRAMS: u64 = 6;
const LENGTH: usize = 120;

/// The machines of the comparison that the small build holds, with their place in the list.
pub fn small_machines() -> Vec<(u64, Config)> {
    let is_small = |config: &Config| Build::traced(config, None).size == Size::Small;
    let all = (0..).zip(machines());
    all.filter(|(_, config)| is_small(config)).collect()
}

/// The programs whose waveforms are compared on a machine: directed ones, random ones, and one that
/// may end in a deadlock or a token overflow.
pub fn programs_of(config: &Config, machine: u64) -> Vec<Named> {
    let mut list = programs::directed(config);
    let seed = |n: u64| (machine << 32) + n;
    list.extend((1..=RANDOM_PROGRAMS).map(|n| Named {
        name: format!("random {:#x}", seed(n)),
        program: programs::random(config, seed(n), LENGTH),
    }));
    list.push(Named {
        name: format!("stopped {:#x}", seed(1)),
        program: programs::token_fault(config, seed(1), LENGTH),
    });
    list
}

/// The recorded runs whose waveforms are recorded too: with shadow accumulators, and without.
const RECORDED: [&str; 2] = ["0-directed-a8-s0-w8", "1-directed-a4-s1-w8"];
/// Cycles of a recorded waveform.
const RECORDED_CYCLES: Range<u64> = 0..600;

/// The recorded runs of a directory that have a waveform, and where that is.
pub fn recorded(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let path = |stem: &str, extension: &str| directory.join(format!("{stem}.{extension}"));
    let both = |stem| (path(stem, "trace"), path(stem, "fst"));
    RECORDED.map(both).into()
}

/// The RTL's waveform of a recorded run, as it is kept: the signals that the model has too.
///
/// # Errors
/// The recording cannot be read, or the RTL cannot run it.
pub fn record(build: &Path, trace: &Path) -> Result<Vec<u8>, Error> {
    let (_, trace) = recordings::read(trace)?;
    let (program, config, dram) = (&trace.program, &trace.config, trace.dram());
    let rtl = Build::traced(config, None).make(build)?;
    let mut list = List::default();
    let end = RECORDED_CYCLES.end;
    // Of a fault there is nothing to say: the list is there before it.
    let _ = stepped::run_watched(program, config, &mut dram.clone(), 0..end, &mut list);
    let mut signals = Signals::read(rtl.waveform(program, config, &dram, 0..end)?)?;
    let cycles = signals.cycles();
    let mut values = Vec::with_capacity(list.0.len());
    for signal in &list.0 {
        values.push(signals.values_of(signal, &cycles)?);
    }
    let mut bytes = Cursor::new(Vec::new());
    let mut waves = Waves::new(&mut bytes, Format::Fst, RECORDED_CYCLES);
    waves.signals(&list.0);
    for (i, cycle) in cycles.into_iter().enumerate() {
        let known = u64::MAX;
        let now = values.iter().map(|values| Value {
            bits: values[i],
            known,
        });
        waves.cycle(cycle, &now.collect::<Vec<_>>());
    }
    waves.finish()?;
    Ok(bytes.into_inner())
}

/// Compares a recorded waveform with what the stepped model does today.
///
/// # Errors
/// A file cannot be read.
pub fn judge(trace: &Path, waveform: &Path) -> Result<Comparison, Error> {
    let (_, trace) = recordings::read(trace)?;
    let rtl = fs::read(waveform).map_err(file_error(waveform))?;
    let (program, config) = (&trace.program, &trace.config);
    let model = stepped_waveform(program, config, &trace.dram(), RECORDED_CYCLES)?;
    compare_waveforms(rtl, model)
}

/// The list of a run's signals.
#[derive(Default)]
struct List(Vec<Signal>);

impl Observer for List {
    fn signals(&mut self, signals: &[Signal]) {
        self.0 = signals.to_vec();
    }

    fn cycle(&mut self, _: u64, _: &[Value]) {}
}

/// Where the waveforms of a mismatch are, and the first signal in which they differ.
#[derive(Clone, Debug)]
pub struct Dump {
    /// The RTL's.
    pub rtl: PathBuf,
    /// The stepped model's.
    pub model: PathBuf,
    /// The first difference, if the window has one.
    pub first: Option<WaveDifference>,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waveforms {} and {}",
            self.rtl.display(),
            self.model.display()
        )?;
        match &self.first {
            Some(first) => write!(f, "; first signal that differs: {first}"),
            None => write!(f, "; no signal differs in them"),
        }
    }
}

/// Writes the waveforms of a job's first program that a model runs otherwise than the RTL.
///
/// # Errors
/// As [`dump`].
pub fn dump_first(
    build: &Path,
    rtl: &Rtl,
    job: &suite::Job,
    directory: &Path,
) -> Result<Option<Dump>, Error> {
    for named in &job.programs {
        let dram = image(&named.program);
        let found = match rtl.run(&named.program, &job.config, &dram, suite::MAX_CYCLES) {
            Ok(run) => run.outcome,
            // Its end is a difference, too.
            Err(Error::Run(_)) => Outcome::Finished(Observed::default()),
            Err(error) => return Err(error),
        };
        for which in Model::ALL {
            let expected = model(which, &named.program, &job.config, &dram)?;
            if let Some(difference) =
                compare(&named.program, job.config.dataflow, &found, &expected)
            {
                let cycle = difference.cycle;
                return dump(build, None, &job.config, named, cycle, directory).map(Some);
            }
        }
    }
    Ok(None)
}

/// Writes both waveforms around a cycle (of the whole run when there is none) into `directory`.
///
/// # Errors
/// A side cannot run the program, or a file cannot be written.
pub fn dump(
    build: &Path,
    mutant: Option<&'static Mutant>,
    config: &Config,
    named: &Named,
    cycle: Option<u64>,
    directory: &Path,
) -> Result<Dump, Error> {
    let rtl = Build::traced(config, mutant).make(build)?;
    let window = match cycle {
        Some(cycle) => cycle.saturating_sub(AROUND.0)..cycle + AROUND.1,
        None => 0..LONGEST,
    };
    let dram = image(&named.program);
    let model = stepped_waveform(&named.program, config, &dram, window.clone())?;
    let rtl = rtl.waveform(&named.program, config, &dram, window)?;
    fs::create_dir_all(directory).map_err(file_error(directory))?;
    let stem = format!("{}-{}", config.name, named.name).replace([' ', '/'], "-");
    let put = |side: &str, bytes: &[u8]| {
        let path = directory.join(format!("{stem}-{side}"));
        fs::write(&path, bytes).map_err(file_error(&path))?;
        Ok::<_, Error>(path)
    };
    Ok(Dump {
        rtl: put("rtl.vcd", &rtl)?,
        model: put("model.fst", &model)?,
        first: compare_waveforms(rtl, model)?.first,
    })
}
