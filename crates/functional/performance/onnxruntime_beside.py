#!/usr/bin/env python3
"""One image through systole's functional engine and through ONNX Runtime int8, in turn.

    onnxruntime_beside.py --systole PATH [--rounds N] MODEL.onnx ...

For each float model: ONNX Runtime's own static quantization (8 bits, per channel, unsigned
activations, weights of 7 bits where the processor lacks VNNI, as its documentation advises) makes
the int8 model; systole quantizes the same file to 4 and 8 bits. Then both run in turn, one thread
each; the median of each side and their ratio are printed. Weights that are not there come from a seed.
`proved` has weights whose sums fit 16 bits whatever the image, so that nothing saturates; `W4A4` has
others, of which a few sums do. `saturating` is the same on a machine with 12-bit accumulators.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

# (name, weight and activation bits, accumulator bits, bits that the weights' sums provably fit)
CASES = [
    ("W4A4 proved", 4, 16, 16),
    ("W4A4", 4, 16, 32),
    ("W4A4 saturating", 4, 12, 32),
    ("W8A8", 8, 32, 32),
]


def with_weights(path, folder):
    """The model with weights inside; those that are absent are drawn from a seed, He-scaled."""
    model = onnx.load(path, load_external_data=False)
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        shape, name = tuple(tensor.dims), tensor.name
        if len(shape) > 1:
            values = rng.uniform(-1, 1, shape) * np.sqrt(6 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            values = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.5, 1.0, shape)
        else:
            values = rng.uniform(-0.1, 0.1, shape)
        whole = onnx.numpy_helper.from_array(values.astype(np.float32), name)
        tensor.CopyFrom(whole)
    out = folder / "float.onnx"
    onnx.save(model, out)
    return out


class Random(CalibrationDataReader):
    """A few images of noise: ranges do not matter for time."""

    def __init__(self, name, shape):
        rng = np.random.default_rng(2)
        self.images = iter([{name: rng.random(shape, np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.images, None)


def has_vnni():
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_vnni" in flags or "avx_vnni" in flags


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def int8(path, folder):
    """ONNX Runtime's own int8 model, and an input for it."""
    entry = session(path).get_inputs()[0]
    shape = [extent if isinstance(extent, int) else 1 for extent in entry.shape]
    prepared, out = folder / "prepared.onnx", folder / "int8.onnx"
    quant_pre_process(str(path), str(prepared))
    quantize_static(
        str(prepared),
        str(out),
        Random(entry.name, shape),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=not has_vnni(),
    )
    image = np.random.default_rng(3).random(shape, np.float32)
    return session(out), {entry.name: image}


def milliseconds(run, seconds):
    """The median of as many runs as `seconds` hold."""
    times = []
    begin = time.perf_counter()
    while len(times) < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def systole(binary, network, machine, seconds):
    """Median milliseconds of an image, and the share of MAC steps that overflowed."""
    command = [binary, "bench", network, "--machine", machine, "--seconds", str(seconds), "--json"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(said.stdout)
    run = next(stage for stage in report["stages"] if stage["name"] == "run")
    return run["median_seconds"] * 1e3, report["n_overflowed"] / report["n_macs"], report["level"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systole", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    print(f"ONNX Runtime {onnxruntime.__version__}, one thread each, medians of {arguments.rounds} rounds in turn\n")
    print("| network | case | kernels | overflowed | systole ms | ONNX Runtime int8 ms | ratio |")
    print("| --- | --- | --- | --: | --: | --: | --: |")
    for path in arguments.models:
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            whole = with_weights(path, folder)
            int8_session, feed = int8(whole, folder)
            for case, bits, accumulator, proved in CASES:
                machine = folder / f"m{accumulator}.toml"
                machine.write_text(
                    'base = "edge-16x16"\nname = "bench"\n'
                    f"[accumulator]\nwidth_bits = {accumulator}\n"
                    "[scratchpad]\nactivation_bytes = 1048576\nweight_bytes = 1048576\n",
                    encoding="utf-8",
                )
                network = folder / f"w{bits}_{proved}.safetensors"
                if not network.exists():
                    image = folder / "x.npz"
                    np.savez(image, x=next(iter(feed.values())))
                    command = [arguments.systole, "quantize", whole, "--calibration", image, "-o", network]
                    for flag in ("--weight-bits", "--activation-bits"):
                        command += [flag, str(bits)]
                    command += ["--accumulator-bits", str(proved), "--method", "min-max"]
                    subprocess.run(command, check=True, capture_output=True)
                rounds = []
                for _ in range(arguments.rounds):
                    ours, share, level = systole(arguments.systole, network, machine, arguments.seconds)
                    theirs = milliseconds(lambda: int8_session.run(None, feed), arguments.seconds)
                    rounds.append((ours, theirs))
                ours, theirs = (statistics.median(side) for side in zip(*rounds))
                ratio = statistics.median(a / b for a, b in rounds)
                print(
                    f"| {path.stem} | {case} | {level} | {share:.2%} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
