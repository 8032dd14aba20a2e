//! `systole train` from outside: what it writes, that stopping does not show, what it refuses.

use crate::common::{Workshop, asset};
use std::time::Duration;

const IMAGES: &str =
    "--data digits_train.npz --scale 0.0625 --no-flip --crop 1 --max-images 300 --batch 30";

fn workshop() -> Workshop {
    let shop = Workshop::with_digits();
    shop.write("digits_train.npz", asset("digits_train.npz"));
    shop
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let shop = workshop();
    let line = |name: &str| {
        format!(
            "train digits.onnx {IMAGES} --epochs 3 --validation digits_test.npz --checkpoint {name}.checkpoint --checkpoint-every 1 \
             --log {name}.csv --curve {name}.svg -o {name}.safetensors"
        )
    };
    let said = shop.succeed(&line("whole"));
    assert!(said.contains("written to whole.safetensors"), "{said}");
    assert!(!shop.has("whole.checkpoint"), "a finished run has no state");
    let mut killed = shop.start(&line("killed"));
    while !shop.has("killed.checkpoint") {
        std::thread::sleep(Duration::from_millis(2));
        if let Ok(Some(code)) = killed.try_wait() {
            panic!("it ended before its first checkpoint: {code}");
        }
    }
    killed.kill().expect("it runs");
    killed.wait().expect("it ends");
    assert!(!shop.has("killed.safetensors"), "it was killed too late");
    let resumed = shop.run(&format!("{} --resume", line("killed")));
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(
        resumed.stderr.contains("going on after step"),
        "{}",
        resumed.stderr
    );
    for end in ["safetensors", "csv", "svg"] {
        let [whole, killed] = ["whole", "killed"].map(|name| shop.read(&format!("{name}.{end}")));
        assert!(whole == killed, "{end} differs");
    }
    let log = String::from_utf8(shop.read("whole.csv")).expect("text");
    assert_eq!(log.lines().count(), 4, "{log}");
    // The other commands take it.
    shop.succeed("run whole.safetensors --data digits_test.npz --check --image 5");
    shop.succeed("compare whole.safetensors --model digits.onnx --data digits_test.npz");
}

#[test]
fn a_float_network_from_scratch_is_a_model() {
    let shop = workshop();
    shop.succeed(&format!(
        "train digits.onnx --float --from-scratch {IMAGES} --epochs 12 --rate 0.01 -o fresh.onnx"
    ));
    shop.succeed("quantize fresh.onnx --calibration digits_calibration.npz --scale 0.0625 -o fresh.safetensors");
    let report =
        shop.succeed("compare fresh.safetensors --model fresh.onnx --data digits_test.npz --json");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let float = report["top1"]["float"].as_f64();
    assert!(float.expect("labels are there") > 0.8, "{report}");
}

/// The float model as its own teacher, named: nothing changes, whatever scale both see the images at.
#[test]
fn a_named_teacher_is_asked() {
    let shop = workshop();
    let train = |flags: &str, name: &str| {
        shop.succeed(&format!(
            "train digits.onnx {IMAGES} --epochs 1 {flags} -o {name}.safetensors"
        ));
        shop.read(&format!("{name}.safetensors"))
    };
    let own = train("", "own");
    let named = train("--teacher digits.onnx --teacher-scale 0.0625", "named");
    assert!(own == named);
    let dazzled = train("--teacher digits.onnx --teacher-scale 1", "dazzled");
    assert!(own != dazzled);
}

#[test]
fn mistakes_are_named() {
    let shop = workshop();
    for (flags, says) in [
        ("--rate 0", "rate is 0: it must be finite and above 0"),
        ("--warmup 9", "warm-up is 9: it must be 0 to the 3 epochs"),
        ("--distill 2", "distillation weight is 2: it must be 0 to 1"),
        ("--weight-bits 1", "1 is not in 2..=8"),
        ("--keep last", "--validation"),
        ("--checkpoint-every 5", "--checkpoint"),
        ("--checkpoint out.safetensors", "the same file"),
        ("--teacher-scale 2", "--teacher <MODEL.onnx>"),
        (
            "--teacher digits.onnx --distill 0",
            "has no share in the loss",
        ),
        (
            "--teacher digits.onnx --teacher-std 1,2",
            "--std has 2 values",
        ),
        ("--teacher none.onnx", "none.onnx"),
    ] {
        shop.refuse(
            &format!("train digits.onnx {IMAGES} --epochs 3 {flags} -o out.safetensors"),
            &[says],
        );
    }
    shop.refuse(
        "train digits.onnx --data digits_train.npz --scale 0.0625 --crop 8 -o out.safetensors",
        &["--crop 8", "shifted out of its frame"],
    );
}
