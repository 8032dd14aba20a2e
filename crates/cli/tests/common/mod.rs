//! What the command line's tests share: a workshop with files, good and bad.

use assert_cmd::Command;
use std::{
    fs,
    io::{Cursor, Write},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A folder that goes away with the test.
pub struct Workshop {
    folder: TempDir,
}

/// What a command left behind.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Workshop {
    pub fn new() -> Self {
        Self {
            folder: TempDir::new().expect("temporary folder"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("writable");
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names of all files, sorted.
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .expect("readable")
            .map(|entry| {
                entry
                    .expect("readable")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// Runs `systole` here, with backtraces wished for.
    pub fn run(&self, line: &str) -> Outcome {
        self.run_with(line, &[])
    }

    pub fn run_with(&self, line: &str, variables: &[(&str, &str)]) -> Outcome {
        let output = Command::cargo_bin("systole")
            .expect("the binary is built")
            .current_dir(self.folder.path())
            .env("RUST_BACKTRACE", "1")
            .envs(variables.iter().copied())
            .args(line.split_whitespace())
            .output()
            .expect("it starts");
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Starts a command and leaves it running.
    pub fn start(&self, line: &str) -> std::process::Child {
        std::process::Command::new(assert_cmd::cargo::cargo_bin("systole"))
            .current_dir(self.folder.path())
            .args(line.split_whitespace())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts")
    }

    /// Whether a file is there.
    pub fn has(&self, name: &str) -> bool {
        self.folder.path().join(name).exists()
    }

    /// Runs a command that has to succeed; its standard output.
    pub fn succeed(&self, line: &str) -> String {
        let outcome = self.run(line);
        assert_eq!(outcome.code, 0, "{line}\n{}", outcome.stderr);
        outcome.stdout
    }

    /// Runs a command that has to refuse: exit code 2, one message with every part of `says`, no
    /// backtrace, no file made or changed.
    pub fn refuse(&self, line: &str, says: &[&str]) {
        let before: Vec<_> = self.files();
        let outcome = self.run(line);
        let text = &outcome.stderr;
        assert_eq!(outcome.code, 2, "{line}\n{text}\n{}", outcome.stdout);
        for part in says {
            assert!(text.contains(part), "{line}: no {part:?} in\n{text}");
        }
        assert_eq!(text.matches("error:").count(), 1, "{line}\n{text}");
        for bad in ["panicked", "backtrace", "RUST_BACKTRACE", ".rs:"] {
            assert!(!text.contains(bad), "{line}\n{text}");
        }
        assert_eq!(outcome.stdout, "", "{line}");
        assert_eq!(self.files(), before, "{line}");
    }

    /// The demo's files and a network quantized from them, `net.safetensors`.
    pub fn with_digits() -> Self {
        let shop = Self::new();
        for name in ["digits.onnx", "digits_calibration.npz", "digits_test.npz"] {
            shop.write(name, asset(name));
        }
        shop.succeed(&format!("{QUANTIZE} -o net.safetensors"));
        shop
    }
}

/// The demo's network from its files.
pub const QUANTIZE: &str =
    "quantize digits.onnx --calibration digits_calibration.npz --scale 0.0625";

pub fn asset(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("assets")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The default machine file.
pub fn machine() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/edge-16x16.toml");
    fs::read_to_string(path).expect("the default machine is in the repository")
}

/// An `.npy` file.
pub fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// An `.npz` archive.
pub fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        archive
            .start_file(
                format!("{name}.npy"),
                zip::write::SimpleFileOptions::default(),
            )
            .expect("memory");
        archive.write_all(bytes).expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

/// A protobuf field that holds bytes.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = varint(number << 3 | 2);
    out.extend(varint(bytes.len() as u64));
    out.extend(bytes);
    out
}

/// A protobuf field that holds a number.
fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// An ONNX model of one 1 × 1 convolution, whose weights have these dims and bytes.
pub fn onnx(dims: &[u64], raw: &[u8]) -> Vec<u8> {
    let dim = |value: u64| field(1, &number(1, value));
    let shape = [dim(1), dim(1), dim(2), dim(2)].concat();
    let value = |name: &str| {
        let tensor = [number(1, 1), field(2, &shape)].concat();
        [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
    };
    let dims: Vec<u8> = dims.iter().flat_map(|&d| number(1, d)).collect();
    let weights = [dims, number(2, 1), field(8, b"w"), field(9, raw)].concat();
    let node = [
        field(1, b"x"),
        field(1, b"w"),
        field(2, b"y"),
        field(3, b"only"),
        field(4, b"Conv"),
    ]
    .concat();
    let graph = [
        field(1, &node),
        field(2, b"small"),
        field(5, &weights),
        field(11, &value("x")),
        field(12, &value("y")),
    ]
    .concat();
    [number(1, 8), field(8, &number(2, 13)), field(7, &graph)].concat()
}
