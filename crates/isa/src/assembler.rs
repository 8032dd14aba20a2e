//! The text of a program, read.
//!
//! Invariant: memory stays within a small multiple of the text's length, and every error names the
//! line. All statements have one shape, a word and `key=value` pairs, so one scanner reads them.

use crate::program::VERSION;
use crate::text::DATA_LINE;
use crate::{
    Instruction, InstructionError, LayerInfo, OPS, Op, Placement, Program, ProgramError, Role,
    Unit, Units,
};
use std::fmt;
use thiserror::Error;

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {problem}")]
pub struct TextError {
    /// The line, counted from 1; the last one when the program as a whole is wrong.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// A word that is not known here.
    #[error("unknown {what} {word}{hint}")]
    Unknown {
        /// What was looked for.
        what: &'static str,
        /// The word.
        word: Excerpt,
        /// The nearest known one, when one is near.
        hint: Hint,
    },
    /// A field of the statement is absent.
    #[error("{word}: {key} is missing")]
    Missing {
        /// The statement.
        word: Excerpt,
        /// The field.
        key: &'static str,
    },
    /// A field is given twice.
    #[error("{word}: {key} is given twice")]
    Twice {
        /// The statement.
        word: Excerpt,
        /// The field.
        key: Excerpt,
    },
    /// Something that is no `key=value`.
    #[error("{0}: expected key=value")]
    NotAPair(Excerpt),
    /// A value that is no number of its kind.
    #[error("{key} = {value}: must be a whole number{range}")]
    Number {
        /// The field.
        key: &'static str,
        /// The text.
        value: Excerpt,
        /// The limits, when they are narrower than 64 bits.
        range: String,
    },
    /// Quotes that do not end, or an escape that does not exist.
    #[error("{0}: expected a closing quote and only the escapes \\\", \\\\ and \\u{{..}}")]
    Quote(Excerpt),
    /// A line of data that does not follow the one before.
    #[error("data line {word}: expected address {address:08x}, then 1 to 64 bytes in hex or zeros")]
    Data {
        /// The line.
        word: Excerpt,
        /// The next byte's address.
        address: usize,
    },
    /// Statements in the wrong order.
    #[error("{word}: {rule}")]
    Order {
        /// The statement.
        word: Excerpt,
        /// What must hold.
        rule: &'static str,
    },
    /// The text has no statement.
    #[error("no .program found")]
    Empty,
    /// The text is of another version.
    #[error("program format {0} is not supported, only {VERSION}")]
    Version(u32),
    /// An instruction has no encoding.
    #[error(transparent)]
    Instruction(#[from] InstructionError),
    /// The parts do not belong together.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The beginning of a text that was not understood, fit for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    fn of(text: &str) -> Self {
        let short: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        let dots = if text.chars().nth(40).is_some() {
            "…"
        } else {
            ""
        };
        Self(short + dots)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The nearest known word, when one is near.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint(Option<&'static str>);

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .map_or(Ok(()), |known| write!(f, "; did you mean {known}?"))
    }
}

fn unknown(what: &'static str, word: &str, known: impl Iterator<Item = &'static str>) -> Problem {
    // No known word is this long, and the distance costs the product of the lengths.
    let near = |candidate: &&str| {
        word.len() <= 40
            && strsim::damerau_levenshtein(word, candidate) <= (candidate.len() / 3).max(1)
    };
    let hint = known
        .filter(near)
        .min_by_key(|known| strsim::damerau_levenshtein(word, known));
    Problem::Unknown {
        what,
        word: Excerpt::of(word),
        hint: Hint(hint),
    }
}

/// A word and its pairs.
struct Statement<'a> {
    word: &'a str,
    pairs: Vec<(&'a str, String)>,
}

/// Up to white space, comment or end; and what follows.
fn split_word(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| c.is_whitespace() || c == ';')
        .unwrap_or(text.len());
    text.split_at(end)
}

/// What stands before a comment or the end of the line.
fn skip_space(text: &str) -> Option<&str> {
    Some(text.trim_start()).filter(|text| !text.is_empty() && !text.starts_with(';'))
}

/// A quoted text behind its opening quote; and what follows the closing one.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\\' => match chars.next()? {
                c @ ('"' | '\\') => out.push(c),
                'u' => {
                    let (digits, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                    out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
                    chars = rest.chars();
                }
                _ => return None,
            },
            c => out.push(c),
        }
    }
}

impl<'a> Statement<'a> {
    /// The statement of a line, if it has one. A label before it is for the reader only.
    fn scan(line: &'a str) -> Result<Option<Self>, Problem> {
        let Some(rest) = skip_space(line) else {
            return Ok(None);
        };
        let (mut word, mut rest) = split_word(rest);
        let label = word.strip_suffix(':');
        if label.is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
            let Some(behind) = skip_space(rest) else {
                return Ok(None);
            };
            (word, rest) = split_word(behind);
        }
        let mut pairs = Vec::new();
        while let Some(text) = skip_space(rest) {
            let (pair, behind) = split_word(text);
            let Some((key, value)) = pair.split_once('=') else {
                return Err(Problem::NotAPair(Excerpt::of(pair)));
            };
            if value.starts_with('"') {
                let quote = &text[key.len() + 2..];
                let (value, behind) =
                    unquote(quote).ok_or_else(|| Problem::Quote(Excerpt::of(text)))?;
                pairs.push((key, value));
                rest = behind;
            } else {
                pairs.push((key, value.to_owned()));
                rest = behind;
            }
        }
        Ok(Some(Self { word, pairs }))
    }

    /// Refuses keys that are unknown or given twice.
    fn expect_keys(&self, keys: impl Iterator<Item = &'static str> + Clone) -> Result<(), Problem> {
        for (index, (key, _)) in self.pairs.iter().enumerate() {
            if !keys.clone().any(|known| known == *key) {
                return Err(unknown("field", key, keys));
            }
            // As many distinct keys as the list has may stand before; so this stays short.
            if self.pairs[..index].iter().any(|(before, _)| before == key) {
                let (word, key) = (Excerpt::of(self.word), Excerpt::of(key));
                return Err(Problem::Twice { word, key });
            }
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, value)| value.as_str())
    }

    fn text(&self, key: &'static str) -> Result<&str, Problem> {
        let missing = || Problem::Missing {
            word: Excerpt::of(self.word),
            key,
        };
        self.get(key).ok_or_else(missing)
    }

    /// A number, decimal or hexadecimal with `0x`, that `T` can hold.
    fn number<T: TryFrom<i128>>(&self, key: &'static str, range: &str) -> Result<T, Problem> {
        let text = self.text(key)?;
        let parsed = match text.strip_prefix("0x") {
            Some(digits) if !digits.starts_with(['+', '-']) => {
                i128::from_str_radix(digits, 16).ok()
            }
            Some(_) => None,
            None => text.parse().ok(),
        };
        parsed
            .and_then(|value| T::try_from(value).ok())
            .ok_or_else(|| Problem::Number {
                key,
                value: Excerpt::of(text),
                range: range.to_owned(),
            })
    }

    fn u32(&self, key: &'static str) -> Result<u32, Problem> {
        self.number(key, " of at most 32 bits")
    }

    fn u64(&self, key: &'static str) -> Result<u64, Problem> {
        self.number(key, " of at most 64 bits")
    }

    /// A set of units; none when absent.
    fn units(&self, key: &str) -> Result<Units, Problem> {
        let Some(text) = self.get(key) else {
            return Ok(Units::NONE);
        };
        text.split(',')
            .map(|name| {
                let unit = Unit::QUEUED.into_iter().find(|unit| unit.name() == name);
                unit.ok_or_else(|| unknown("unit", name, Unit::QUEUED.iter().map(|u| u.name())))
            })
            .collect()
    }

    fn instruction(&self) -> Result<Instruction, Problem> {
        let info = OPS
            .iter()
            .find(|info| info.mnemonic == self.word)
            .ok_or_else(|| {
                unknown(
                    "instruction",
                    self.word,
                    OPS.iter().map(|info| info.mnemonic),
                )
            })?;
        let names = info.fields.iter().map(|field| field.name);
        self.expect_keys(names.chain(["wait", "signal"]))?;
        let mut values = Vec::with_capacity(info.fields.len());
        for field in info.fields {
            let range = format!(", {} to {}", field.min, field.max);
            values.push(self.number(field.name, &range)?);
        }
        let (wait, signal) = (self.units("wait")?, self.units("signal")?);
        let instruction = Instruction {
            op: Op::from_values(info, &values)?,
            wait,
            signal,
        };
        instruction.check()?;
        Ok(instruction)
    }

    fn layer(&self) -> Result<LayerInfo, Problem> {
        self.expect_keys(["name", "n_macs", "first_channel", "n_channels"].into_iter())?;
        Ok(LayerInfo {
            name: self.text("name")?.to_owned(),
            n_macs: self.u64("n_macs")?,
            first_channel: self.u32("first_channel")?,
            n_channels: self.u32("n_channels")?,
        })
    }

    fn tensor(&self) -> Result<Placement, Problem> {
        let keys = [
            "name",
            "role",
            "address",
            "channels",
            "height",
            "width",
            "pixel_bytes",
        ];
        self.expect_keys(keys.into_iter().chain(["storage_bits", "signed"]))?;
        let role = self.text("role")?;
        let signed: u8 = self.number("signed", ", 0 or 1")?;
        if signed > 1 {
            let (value, range) = (Excerpt::of(self.text("signed")?), ", 0 or 1".to_owned());
            return Err(Problem::Number {
                key: "signed",
                value,
                range,
            });
        }
        Ok(Placement {
            name: self.text("name")?.to_owned(),
            role: Role::ALL
                .into_iter()
                .find(|known| known.name() == role)
                .ok_or_else(|| unknown("role", role, Role::ALL.iter().map(|role| role.name())))?,
            address: self.u32("address")?,
            channels: self.u32("channels")?,
            height: self.u32("height")?,
            width: self.u32("width")?,
            pixel_bytes: self.u32("pixel_bytes")?,
            storage_bits: self.number("storage_bits", ", 4, 8 or 16")?,
            signed: signed == 1,
        })
    }
}

/// What has been read so far.
#[derive(Default)]
struct Assembler {
    program: Program,
    begun: bool,
    in_data: bool,
    layer: Option<u32>,
}

impl Assembler {
    fn line(&mut self, line: &str) -> Result<(), Problem> {
        if self.in_data {
            return self.data(line);
        }
        let Some(statement) = Statement::scan(line)? else {
            return Ok(());
        };
        let order = |rule| Problem::Order {
            word: Excerpt::of(statement.word),
            rule,
        };
        if self.begun == (statement.word == ".program") {
            return Err(order(
                "the first statement, and only the first, must be .program",
            ));
        }
        match statement.word {
            ".program" => {
                self.begun = true;
                statement
                    .expect_keys(["version", "machine", "dram_bytes", "n_channels"].into_iter())?;
                let version = statement.u32("version")?;
                if version != VERSION {
                    return Err(Problem::Version(version));
                }
                self.program.machine = statement.u64("machine")?;
                self.program.dram_bytes = statement.u64("dram_bytes")?;
                self.program.n_channels = statement.u32("n_channels")?;
            }
            ".layer" => self.program.layers.push(statement.layer()?),
            ".tensor" => self.program.tensors.push(statement.tensor()?),
            ".at" => {
                statement.expect_keys(["layer"].into_iter())?;
                let layer = statement.u32("layer")?;
                if layer as usize >= self.program.layers.len() {
                    return Err(order("there is no such .layer above (they count from 0)"));
                }
                self.layer = Some(layer);
            }
            ".data" => {
                statement.expect_keys(std::iter::empty())?;
                self.in_data = true;
            }
            word if word.starts_with('.') => {
                let known = [".program", ".layer", ".tensor", ".at", ".data"];
                return Err(unknown("directive", word, known.into_iter()));
            }
            _ => {
                let instruction = statement.instruction()?;
                let layer = self
                    .layer
                    .ok_or_else(|| order("the first instruction needs an .at above"))?;
                self.program.instructions.push(instruction);
                self.program.layer_of.push(layer);
            }
        }
        Ok(())
    }

    /// A line behind `.data`: an address and up to 64 bytes. All but the last are full, so that
    /// a text has one meaning at most.
    fn data(&mut self, line: &str) -> Result<(), Problem> {
        let Some(text) = skip_space(line) else {
            return Ok(());
        };
        let address = self.program.data.len();
        let error = || Problem::Data {
            word: Excerpt::of(text),
            address,
        };
        let (label, rest) = text.split_once(':').ok_or_else(error)?;
        let is_hex = label.bytes().all(|byte| byte.is_ascii_hexdigit());
        let labelled = usize::from_str_radix(label, 16).ok();
        let text = skip_space(rest).ok_or_else(error)?;
        let (bytes, rest) = split_word(text);
        let expected = is_hex && labelled == Some(address) && address.is_multiple_of(DATA_LINE);
        if !expected || skip_space(rest).is_some() {
            return Err(error());
        }
        if bytes == "zeros" {
            self.program.data.extend([0; DATA_LINE]);
            return Ok(());
        }
        let digits: Option<Vec<u8>> = bytes
            .chars()
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .collect();
        let digits = digits.ok_or_else(error)?;
        let (pairs, odd) = digits.as_chunks::<2>();
        if !odd.is_empty() || pairs.len() > DATA_LINE {
            return Err(error());
        }
        self.program
            .data
            .extend(pairs.iter().map(|[high, low]| high << 4 | low));
        Ok(())
    }
}

impl Program {
    /// The program of a text, as [`Self::to_text`] writes it; see `docs/isa.md`.
    ///
    /// # Errors
    /// The first line that is wrong, or as [`Self::check`].
    pub fn from_text(text: &str) -> Result<Self, TextError> {
        let mut assembler = Assembler::default();
        let mut n_lines = 0;
        for (index, line) in text.lines().enumerate() {
            n_lines = index + 1;
            assembler.line(line).map_err(|problem| TextError {
                line: n_lines,
                problem,
            })?;
        }
        let whole = |problem| TextError {
            line: n_lines.max(1),
            problem,
        };
        if !assembler.begun {
            return Err(whole(Problem::Empty));
        }
        assembler
            .program
            .check()
            .map_err(|error| whole(error.into()))?;
        Ok(assembler.program)
    }
}
