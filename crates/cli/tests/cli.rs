//! The command line from outside: what it prints, writes, refuses; that equal inputs give equal
//! bytes. Needs nothing outside the repository.

mod common;
mod gemm;
mod reports;
mod sweep;
mod train;
mod tuning;
mod waves;

use common::{QUANTIZE, Workshop, asset, machine, npy, npz, onnx};
use std::process::Stdio;

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn demo_answers_within_a_point_of_float() {
    let shop = Workshop::new();
    let story = shop.succeed("demo");
    for part in [
        "1. How long",
        "2. Do the accumulators",
        "3. What do 4 bits cost",
        "top-1 float",
    ] {
        assert!(story.contains(part), "no {part:?} in\n{story}");
    }
    let report = json(&shop.succeed("demo --json"));
    assert_eq!(report["systole"], env!("CARGO_PKG_VERSION"));
    let top1 = &report["compare"]["top1"];
    let float = top1["float"].as_f64().expect("labels are there");
    let integer = top1["integer"].as_f64().expect("labels are there");
    assert!(
        float > 0.9 && (float - integer).abs() <= 0.01,
        "float {float}, integer {integer}"
    );
    let latency = &report["latency"];
    let layers = latency["layers"].as_array().expect("a list");
    let sum: u64 = layers
        .iter()
        .map(|l| l["cycles"].as_u64().expect("a number"))
        .sum();
    assert_eq!(latency["total_cycles"].as_u64(), Some(sum));
}

#[test]
fn equal_inputs_give_equal_bytes_on_any_number_of_threads() {
    let shop = Workshop::with_digits();
    let first = shop.read("net.safetensors");
    for threads in ["1", "2"] {
        let variables = [
            ("RAYON_NUM_THREADS", threads),
            ("RTEN_NUM_THREADS", threads),
        ];
        let outcome = shop.run_with(&format!("{QUANTIZE} -o again.safetensors"), &variables);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(shop.read("again.safetensors") == first, "{threads} threads");
    }
    let data = "net.safetensors --data digits_test.npz --max-images 60 --json";
    for line in [
        "demo --json".to_owned(),
        format!("compare {data} --model digits.onnx"),
        format!("overflow {data}"),
        "latency net.safetensors --json".to_owned(),
    ] {
        let one = shop.run_with(&line, &[("RAYON_NUM_THREADS", "1")]);
        let two = shop.run_with(&line, &[("RAYON_NUM_THREADS", "2")]);
        assert_eq!(one.code, 0, "{line}\n{}", one.stderr);
        assert!(
            one.stdout == two.stdout,
            "{line}: threads show in the report"
        );
    }
}

#[test]
fn quantize_compile_run_check() {
    let shop = Workshop::with_digits();
    shop.succeed("compile net.safetensors -o net.bin");
    let text = shop.succeed(
        "run net.safetensors --program net.bin --data digits_test.npz --check --stepped --all",
    );
    assert!(text.contains("agree bit for bit: 450 images"), "{text}");
    let results: Vec<_> = ["event", "stepped", "oracle"]
        .map(|model| {
            let line = format!(
                "run net.safetensors --data digits_test.npz --image 7 --model {model} --json"
            );
            json(&shop.succeed(&line))["images"].clone()
        })
        .into();
    assert!(
        results[0] == results[1] && results[1] == results[2],
        "{results:?}"
    );
}

#[test]
fn text_assembles_back_to_the_same_bytes() {
    let shop = Workshop::with_digits();
    shop.succeed("compile net.safetensors -o net.bin");
    let text = shop.succeed("disasm net.bin");
    shop.write("net.asm", &text);
    shop.succeed("assemble net.asm -o again.bin");
    assert!(shop.read("net.bin") == shop.read("again.bin"));
    shop.write(
        "annotated.asm",
        shop.succeed("compile net.safetensors --emit asm"),
    );
    shop.succeed("assemble annotated.asm -o third.bin");
    assert!(shop.read("net.bin") == shop.read("third.bin"));
    for stage in ["integer", "tiled"] {
        assert!(
            !shop
                .succeed(&format!("compile net.safetensors --emit {stage}"))
                .is_empty()
        );
    }
    assert!(
        shop.succeed("compile digits.onnx --emit folded")
            .contains("conv")
    );
    shop.refuse(
        "compile net.safetensors --emit folded",
        &["needs an .onnx file"],
    );
}

/// The search of one layer: one candidate won, nothing pruned could have beaten it, it is what
/// `--emit tiled` shows, and what does not fit says why.
#[test]
fn explain_shows_the_search() {
    let shop = Workshop::with_digits();
    let small = machine().replace("activation_bytes = 131_072", "activation_bytes = 512");
    shop.write("small.toml", small);
    let line = "compile digits.onnx --machine small.toml";
    let report = json(&shop.succeed(&format!("{line} --explain conv2.node --json")));
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let candidates = report["candidates"].as_array().expect("a list");
    let of = |fate: &str| {
        candidates
            .iter()
            .filter(|c| c["fate"] == fate)
            .collect::<Vec<_>>()
    };
    let [chosen] = of("chosen")[..] else {
        panic!("one is chosen in {report}")
    };
    let cycles = number(&chosen["cycles"]);
    let total = |candidate: &serde_json::Value| number(&candidate["bound"]["total"]);
    assert!(of("slower").iter().all(|c| number(&c["cycles"]) >= cycles));
    assert!(
        of("pruned")
            .iter()
            .all(|c| total(c) >= cycles && c["cycles"].is_null())
    );
    assert!(
        candidates
            .iter()
            .all(|c| total(c) <= c["cycles"].as_u64().unwrap_or(u64::MAX))
    );
    assert!(!of("pruned").is_empty());
    let rejected = report["too_large"].as_array().expect("a list");
    assert!(!rejected.is_empty());
    for candidate in rejected {
        assert!(number(&candidate["needed_bytes"]) > number(&candidate["available_bytes"]));
    }
    let tile = format!("tile {}x{} pixels", chosen["tile"][0], chosen["tile"][1]);
    let tiled = shop.succeed(&format!("{line} --emit tiled"));
    let layer = tiled
        .split("layer ")
        .find(|part| part.starts_with("conv2.node"));
    let layer = layer.expect("the layer is listed");
    assert!(layer.contains(&tile), "no {tile} in {layer}");
    assert!(
        layer.contains(&format!("alone      {cycles} cycles")),
        "{cycles} in {layer}"
    );

    let text = shop.succeed(&format!("{line} --explain conv2.node"));
    for part in ["* ", "pruned", "does not fit", "until the first operands"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    shop.refuse(
        "compile net.safetensors --explain conv2",
        &["no layer is named \"conv2\", did you mean \"conv2.node\"?"],
    );
    shop.refuse("compile net.safetensors --json", &["--explain"]);
}

/// The time of a float model does not depend on weights that nobody has read.
#[test]
fn latency_without_weights_is_that_with_them() {
    let shop = Workshop::with_digits();
    let layers = |model: &str| {
        let report = json(&shop.succeed(&format!("latency {model} --json")));
        (report["total_cycles"].clone(), report["layers"].clone())
    };
    assert_eq!(layers("digits.onnx"), layers("net.safetensors"));
}

#[test]
fn every_method_granularity_and_override_works() {
    let shop = Workshop::with_digits();
    for method in ["min-max", "mse", "llsq"] {
        for granularity in ["per-tensor", "per-channel"] {
            let flags = format!("--method {method} --granularity {granularity} --weight-bits 8");
            shop.succeed(&format!(
                "{QUANTIZE} {flags} --activation-bits 8 -o m.safetensors"
            ));
            let line = "compare m.safetensors --model digits.onnx --data digits_test.npz --json";
            let top1 = json(&shop.succeed(line))["top1"].clone();
            let loss =
                top1["float"].as_f64().expect("labels") - top1["integer"].as_f64().expect("labels");
            assert!(loss <= 0.01, "{flags}: {top1}");
        }
    }
    let listed = shop.succeed("latency net.safetensors --json");
    let name = json(&listed)["layers"][0]["name"]
        .as_str()
        .expect("a name")
        .to_owned();
    if !name.contains(' ') {
        shop.succeed(&format!(
            "{QUANTIZE} --layer {name}:w=8,a=6 -o o.safetensors"
        ));
        let text = shop.succeed("compile o.safetensors --emit integer");
        assert!(text.contains("int8") && text.contains("uint6"), "{text}");
    }
    shop.refuse(
        &format!("{QUANTIZE} --layer nobody:w=8 -o o2.safetensors"),
        &["nobody"],
    );
    shop.refuse(
        &format!("{QUANTIZE} --weight-bits 9 -o o2.safetensors"),
        &["--weight-bits", "9"],
    );
}

#[test]
fn latency_works_from_the_float_model() {
    let shop = Workshop::with_digits();
    let from_float = json(&shop.succeed("latency digits.onnx --json"));
    let from_integers = json(&shop.succeed("latency net.safetensors --json"));
    assert_eq!(from_float["total_cycles"], from_integers["total_cycles"]);
    for key in [
        "frames_per_second",
        "n_macs",
        "compute_utilization",
        "owned_cycles",
    ] {
        assert!(!from_float[key].is_null(), "{key}");
    }
}

#[test]
fn bad_machine_files() {
    let shop = Workshop::with_digits();
    let good = machine();
    let line = "latency net.safetensors --machine m.toml";
    for (from, to, says) in [
        (
            "rows = 16",
            "rowz = 16",
            ["did you mean `rows`", "m.toml:"].as_slice(),
        ),
        ("rows = 16", "rows = \"16\"", &["m.toml:", "^"]),
        ("rows = 16", "rows = 0", &["rows = 0", "1 to 256", "^"]),
        (
            "activation_bytes = 131_072",
            "activation_bytes = 8",
            &["layer", "needs", "8 bytes"],
        ),
        ("[dram]", "[dram", &["m.toml:"]),
        ("burst_bytes = 64", "burst_bytes = 63", &["power of two"]),
    ] {
        assert!(good.contains(from), "{from}");
        shop.write("m.toml", good.replace(from, to));
        shop.refuse(line, says);
    }
    shop.refuse(
        "latency net.safetensors --machine nowhere.toml",
        &["nowhere.toml"],
    );
    shop.refuse("demo --machine nowhere.toml", &["nowhere.toml"]);
}

/// What would be lost, ignored or misunderstood is refused, and it is said why.
#[test]
fn bad_flags() {
    let shop = Workshop::with_digits();
    let with = |line: &str| {
        let more = "--calibration digits_calibration.npz --scale 0.0625";
        format!("quantize digits.onnx {more} {line}")
    };
    for (line, says) in [
        (
            with("-o digits_calibration.npz"),
            ["--output and --calibration are the same file"].as_slice(),
        ),
        (with("-o ./digits.onnx"), &["--output and MODEL.onnx"]),
        (with("-o nowhere/o"), &["there is no folder nowhere"]),
        (with("-o o/"), &["a folder's name"]),
        (
            with("--method percentile --percentile 101 -o o"),
            &["--percentile", "at most 100"],
        ),
        (
            with("--method percentile --percentile nan -o o"),
            &["above 0"],
        ),
        (
            "overflow digits.onnx --data digits_test.npz".into(),
            &["systole quantize"],
        ),
        ("export-onnx digits.onnx -o o".into(), &["systole quantize"]),
        (
            "quantize net.safetensors --calibration digits_calibration.npz -o o".into(),
            &["integer network"],
        ),
        (
            "latency net.safetensors --weight-bits 8".into(),
            &["--weight-bits", "chooses them"],
        ),
        (
            "compile net.safetensors --activation-bits 8".into(),
            &["--activation-bits"],
        ),
        (
            "bench net.safetensors --threads 100000".into(),
            &["1..=256"],
        ),
        (
            "bench net.safetensors --seconds -1".into(),
            &["--seconds is -1"],
        ),
        (
            "run net.safetensors --data digits_test.npz --image -1".into(),
            &["--image"],
        ),
    ] {
        shop.refuse(&line, says);
    }
    shop.succeed("compile net.safetensors -o p.bin");
    shop.refuse(
        "run net.safetensors --data digits_test.npz --program p.bin --model oracle",
        &["--program", "oracle"],
    );
}

#[test]
fn bad_models() {
    let shop = Workshop::with_digits();
    let digits = asset("digits.onnx");
    shop.write("cut.onnx", &digits[..digits.len() / 2]);
    let at = digits
        .windows(4)
        .position(|w| w == b"Relu")
        .expect("it has a Relu");
    let mut selu = digits.clone();
    selu[at..at + 4].copy_from_slice(b"Selu");
    shop.write("selu.onnx", selu);
    shop.write("good.onnx", onnx(&[1, 1, 1, 1], &1f32.to_le_bytes()));
    shop.succeed("latency good.onnx");
    shop.write("huge.onnx", onnx(&[1 << 40, 1 << 40, 1, 1], &[]));
    shop.write("nan.onnx", onnx(&[1, 1, 1, 1], &f32::NAN.to_le_bytes()));
    shop.write(
        "inf.onnx",
        onnx(&[1, 1, 1, 1], &f32::INFINITY.to_le_bytes()),
    );
    shop.write("empty.onnx", b"");
    for (name, says) in [
        ("cut.onnx", ["cut.onnx"].as_slice()),
        ("selu.onnx", &["Selu", "not supported"]),
        ("huge.onnx", &["huge.onnx", "w"]),
        ("nan.onnx", &["NaN"]),
        ("inf.onnx", &["inf"]),
        ("empty.onnx", &["empty.onnx"]),
        ("nowhere.onnx", &["cannot read nowhere.onnx"]),
    ] {
        // `latency` does not look at weights.
        if !["nan.onnx", "inf.onnx"].contains(&name) {
            shop.refuse(&format!("latency {name}"), says);
        }
        let data = "--calibration digits_calibration.npz -o out.safetensors";
        shop.refuse(&format!("quantize {name} {data}"), says);
    }
    let net = shop.read("net.safetensors");
    shop.write("cut.safetensors", &net[..net.len() / 2]);
    shop.refuse("latency cut.safetensors", &["cut.safetensors"]);
    shop.refuse("latency .", &["cannot read"]);
}

#[test]
fn bad_data() {
    let shop = Workshop::with_digits();
    let x = |n: usize| npy("|u1", &format!("({n}, 1, 8, 8)"), &vec![1; n * 64]);
    let floats = |value: f32| {
        let data: Vec<u8> = (0..64).flat_map(|_| value.to_le_bytes()).collect();
        npy("<f4", "(1, 1, 8, 8)", &data)
    };
    let label = |value: i64| npy("<i8", "(1,)", &value.to_le_bytes());
    shop.write("no_x.npz", npz(&[("images", x(1))]));
    shop.write("rank.npz", npz(&[("x", npy("|u1", "(8, 8)", &[0; 64]))]));
    shop.write(
        "size.npz",
        npz(&[("x", npy("|u1", "(1, 3, 4, 4)", &[0; 48]))]),
    );
    shop.write(
        "type.npz",
        npz(&[("x", npy("<i8", "(1, 1, 8, 8)", &[0; 512]))]),
    );
    shop.write("none.npz", npz(&[("x", x(0))]));
    shop.write("nan.npz", npz(&[("x", floats(f32::NAN))]));
    shop.write("inf.npz", npz(&[("x", floats(f32::INFINITY))]));
    shop.write(
        "lies.npz",
        npz(&[("x", npy("|u1", "(1, 1, 8, 99999999999)", &[0; 64]))]),
    );
    shop.write("garbage.npz", b"PK\x03\x04 and nothing of that kind");
    shop.write("text.npz", b"hello");
    for (name, says) in [
        ("no_x.npz", ["no array `x`", "images"].as_slice()),
        ("rank.npz", &["2 dimensions", "1×8×8"]),
        ("size.npz", &["1×3×4×4", "1×8×8"]),
        ("type.npz", &["uint8 or float32"]),
        ("none.npz", &["no images"]),
        ("nan.npz", &["NaN"]),
        ("inf.npz", &["inf"]),
        ("lies.npz", &["`x`"]),
        ("garbage.npz", &["garbage.npz"]),
        ("text.npz", &["neither"]),
        ("nowhere.npz", &["cannot read nowhere.npz"]),
    ] {
        let flags = "--scale 0.0625 -o out.safetensors";
        shop.refuse(
            &format!("quantize digits.onnx --calibration {name} {flags}"),
            says,
        );
        shop.refuse(&format!("overflow net.safetensors --data {name}"), says);
        shop.refuse(&format!("run net.safetensors --data {name}"), says);
        let line = format!("compare net.safetensors --model digits.onnx --data {name} --json");
        shop.refuse(&line, says);
    }
    shop.write("far.npz", npz(&[("x", x(1)), ("y", label(10))]));
    shop.write("negative.npz", npz(&[("x", x(1)), ("y", label(-1))]));
    shop.write("many.npz", npz(&[("x", x(2)), ("y", label(1))]));
    for (name, says) in [
        ("far.npz", "label 10 of image 0 is out of range"),
        ("negative.npz", "label -1 of image 0 is out of range"),
        ("many.npz", "one label for each of 2 images"),
    ] {
        shop.refuse(
            &format!("compare net.safetensors --model digits.onnx --data {name}"),
            &[says],
        );
    }
    shop.refuse(
        "run net.safetensors --data digits_test.npz --image 450",
        &["450 images"],
    );
    let quantize = "quantize digits.onnx --calibration digits_calibration.npz -o out.safetensors";
    shop.refuse(
        &format!("{quantize} --mean 1,2"),
        &["--mean has 2 values", "1 channels"],
    );
    shop.refuse(&format!("{quantize} --std 0"), &["--std", "above 0"]);
    shop.refuse(&format!("{quantize} --scale NaN"), &["--scale"]);
}

#[test]
fn bad_programs() {
    let shop = Workshop::with_digits();
    shop.succeed("compile net.safetensors -o net.bin");
    let run = "run net.safetensors --data digits_test.npz --program";
    shop.write("m.toml", machine().replace("rows = 16", "rows = 8"));
    shop.refuse(
        &format!("{run} net.bin --machine m.toml"),
        &["compiled for machine"],
    );
    let good = shop.read("net.bin");
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    shop.write("bad.bin", bad);
    shop.write("cut.bin", &good[..good.len() - 1]);
    for name in ["bad.bin", "cut.bin"] {
        shop.refuse(&format!("{run} {name}"), &[name]);
        shop.refuse(&format!("disasm {name}"), &[name]);
    }
    shop.refuse("disasm net.safetensors", &["not a systole program"]);
    shop.refuse("latency net.bin", &["is a program"]);
    shop.write("bad.asm", "matmull 1\n");
    shop.refuse("assemble bad.asm -o out.bin", &["bad.asm", "line 1"]);
    shop.write("other.onnx", onnx(&[1, 1, 1, 1], &1f32.to_le_bytes()));
    shop.succeed("compile other.onnx -o other.bin");
    shop.refuse(&format!("{run} other.bin"), &["another network"]);
}

#[test]
fn every_tensor_can_be_dumped() {
    let shop = Workshop::with_digits();
    let run = "run net.safetensors --data digits_test.npz";
    let report = json(&shop.succeed(&format!("{run} --all --json --dump-tensors all.npz")));
    let archive = std::io::Cursor::new(shop.read("all.npz"));
    let mut archive = zip::ZipArchive::new(archive).expect("an archive");
    assert_eq!(archive.len(), 7, "the input and the output of every layer");
    // A 16-bit output behind a header of 128 bytes, image after image.
    let mut bytes = Vec::new();
    let mut file = archive.by_name("logits.npy").expect("the output's name");
    std::io::Read::read_to_end(&mut file, &mut bytes).expect("sound");
    let (header, data) = bytes.split_at(128);
    let header = String::from_utf8_lossy(header);
    assert!(
        header.contains("'<i2'") && header.contains("(450, 10, 1, 1, )"),
        "{header}"
    );
    let found: Vec<i64> = data
        .as_chunks::<2>()
        .0
        .iter()
        .map(|&pair| i16::from_le_bytes(pair).into())
        .collect();
    let images = report["images"].as_array().expect("a list");
    let integers = |image: &serde_json::Value| image["outputs"][0]["integers"].clone();
    let expected: Vec<i64> = images
        .iter()
        .flat_map(|image| integers(image).as_array().expect("a list").clone())
        .map(|value| value.as_i64().expect("an integer"))
        .collect();
    assert_eq!(found, expected);
    shop.succeed(&format!(
        "{run} --model oracle --all --dump-tensors oracle.npz"
    ));
    assert!(shop.read("oracle.npz") == shop.read("all.npz"));
}

#[test]
fn export_onnx() {
    let shop = Workshop::with_digits();
    let report = shop.succeed("export-onnx net.safetensors -o net.onnx");
    assert!(report.contains("digits: 6 layers"), "{report}");
    shop.succeed("export-onnx net.safetensors -o again.onnx");
    assert!(shop.read("net.onnx") == shop.read("again.onnx"));
    shop.write("m.toml", machine().replace("\"half-even\"", "\"floor\""));
    shop.succeed("export-onnx net.safetensors -o floor.onnx --machine m.toml");
    assert!(shop.read("net.onnx") != shop.read("floor.onnx"));
    shop.refuse("export-onnx digits.onnx -o out.onnx", &["digits.onnx"]);
}

#[test]
fn unwritable_outputs() {
    let shop = Workshop::with_digits();
    shop.succeed("compile net.safetensors -o net.bin");
    shop.write("net.asm", shop.succeed("disasm net.bin"));
    for place in ["missing/out", "."] {
        shop.refuse(&format!("{QUANTIZE} -o {place}"), &["cannot write"]);
        shop.refuse(
            &format!("compile net.safetensors -o {place}"),
            &["cannot write"],
        );
        shop.refuse(&format!("assemble net.asm -o {place}"), &["cannot write"]);
        shop.refuse(
            &format!("export-onnx net.safetensors -o {place}"),
            &["cannot write"],
        );
        shop.refuse(
            &format!("run net.safetensors --data digits_test.npz --dump-tensors {place}"),
            &["cannot write"],
        );
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_systole"))
        .args(["demo", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}

#[test]
fn bench() {
    let shop = Workshop::with_digits();
    let text = shop.succeed("bench net.safetensors --seconds 0.01 --threads 2 --json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let names: Vec<_> = report["stages"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    assert_eq!(names.len(), 5);
    assert!(
        names
            .iter()
            .all(|s| s["median_seconds"].as_f64().is_some_and(|t| t > 0.0))
    );
    assert_eq!(report["n_macs"], 230_720);
    shop.refuse("bench net.safetensors --seconds 0", &["--seconds is 0"]);
}
