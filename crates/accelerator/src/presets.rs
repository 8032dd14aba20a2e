//! Machines that systole knows by name; their files are `configs/*.toml`.
//!
//! Invariant: a preset's name is that in its file, and its file's.

/// A machine by name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Name for `--machine` and `base`.
    pub name: &'static str,
    /// The machine file.
    pub text: &'static str,
}

macro_rules! presets {
    ($($name:literal)*) => {
        /// Every preset; the first is the default machine.
        pub const PRESETS: &[Preset] = &[$(Preset {
            name: $name,
            text: include_str!(concat!("../../../configs/", $name, ".toml")),
        }),*];
    };
}

presets! {
    "edge-16x16"
    "paper-8x8-os"
    "paper-8x8-ws"
    "paper-8x8-is"
    "paper-16x16-os"
    "paper-16x16-ws"
    "paper-16x16-is"
    "paper-32x32-os"
    "paper-32x32-ws"
    "paper-32x32-is"
    "gemmini-like-16x16"
    "tpuv1-like-256x256"
    "ethos-u55-like"
}

/// The preset of that name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// What to say when there is none.
pub(crate) fn unknown(name: &str) -> String {
    let nearest = PRESETS
        .iter()
        .map(|preset| (strsim::damerau_levenshtein(name, preset.name), preset.name))
        .min();
    match nearest {
        Some((distance, near)) if distance <= near.len().div_ceil(2) => {
            format!("no machine has this name; did you mean {near:?}?")
        }
        _ => "no machine has this name; `systole machines` lists them".to_owned(),
    }
}

impl Preset {
    /// The first line of the file: what the machine is.
    pub fn summary(&self) -> &'static str {
        let line = self.text.lines().next().unwrap_or_default();
        line.trim_start_matches(['#', ' '])
    }
}
