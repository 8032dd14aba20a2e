#!/usr/bin/env python3
"""Exported networks in ONNX Runtime against the simulated machine: every tensor, every bit.

    onnxruntime_check.py [--systole PATH] NET.safetensors X.npz [--images N]
    onnxruntime_check.py [--systole PATH] --random FOLDER

The first form runs given images through one network, the second random images through every
network of a folder that `cargo run -p export --example random_networks` has filled. The machine is
the default one with 32-bit accumulators, which these networks do not overflow, and each rounding.
ONNX Runtime runs the model as it stands and with every optimisation. Needs onnx, onnxruntime, numpy.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime

ROUNDINGS = ["half-even", "half-up", "half-away-from-zero", "floor"]
LEVELS = [
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int, help="use at most this many images")
    parser.add_argument("--random", metavar="FOLDER", help="every network of a folder")
    parser.add_argument("--rounding", choices=ROUNDINGS, action="append", help="instead of all")
    parser.add_argument("--batch", type=int, default=50, help="images in one run")
    parser.add_argument("--systole", default="systole", help="the binary")
    args = parser.parse_args()
    if (args.random is None) == (args.network is None or args.data is None):
        parser.error("either NET.safetensors and X.npz, or --random FOLDER")
    total = Total()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args, pathlib.Path(folder), total)
        if args.random:
            files = sorted(pathlib.Path(args.random).glob("*.safetensors"))
            if not files:
                sys.exit(f"{args.random} has no networks")
            for index, file in enumerate(files):
                check.random(file, ROUNDINGS[index % len(ROUNDINGS)])
        else:
            images = np.load(args.data)["x"][: args.images]
            for rounding in args.rounding or ROUNDINGS:
                check.network(args.network, images, rounding)
    total.report()


class Total:
    """What was compared, and what it was made of."""

    def __init__(self):
        self.models = self.images = self.tensors = self.values = 0
        self.operators = {}

    def report(self):
        operators = ", ".join(f"{name} {n}" for name, n in sorted(self.operators.items()))
        print(
            f"onnxruntime {onnxruntime.__version__}: {self.models} models, {self.images} images, "
            f"{self.tensors} tensors, {self.values} values equal, without optimisation and with all"
        )
        print(f"operators: {operators}")


class Check:
    def __init__(self, args, folder, total):
        self.args, self.folder, self.total = args, folder, total

    def systole(self, *arguments):
        command = [self.args.systole, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def machine(self, rounding):
        text = (REPOSITORY / "configs/edge-16x16.toml").read_text()
        for key, value in [("rounding", f'"{rounding}"'), ("width_bits", "32")]:
            text, n = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            assert n == 1, key
        path = self.folder / f"{rounding}.toml"
        path.write_text(text)
        return path

    def export(self, network, machine, *flags):
        path = self.folder / "model.onnx"
        self.systole("export-onnx", network, "-o", path, "--machine", machine, *flags)
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        return model

    def network(self, network, images, rounding):
        """The machine's own integers of every tensor are what is expected."""
        machine = self.machine(rounding)
        model = self.export(network, machine, "--every-tensor")
        data, dump = self.folder / "x.npz", self.folder / "tensors.npz"
        np.savez(data, x=images)
        report = self.systole(
            "run", network, "--machine", machine, "--data", data, "--all",
            "--dump-tensors", dump, "--json",
        )
        overflowed = [image["n_overflowed"] for image in json.loads(report)["images"]]
        assert not any(overflowed), f"{network}: 32-bit accumulators overflow: {overflowed}"
        expected = dict(np.load(dump))
        self.compare(f"{network} ({rounding})", model, expected)
        return expected

    def random(self, network, rounding):
        rng = np.random.default_rng(int(network.stem))
        machine = self.machine(rounding)
        # The model says what its input is; the command line takes real numbers.
        model = self.export(network, machine)
        source = model.graph.input[0]
        meaning = meanings(model)[source.name]
        bits, signed = meaning["bits"], meaning["signed"]
        low = -(2 ** (bits - 1)) if signed else 0
        high = low + 2**bits - 1
        shape = (2, *[dim.dim_value for dim in source.type.tensor_type.shape.dim[1:]])
        integers = rng.integers(low, high, shape, endpoint=True)
        integers[1] = rng.choice([low, high], shape[1:])
        images = (integers * meaning["scale"]).astype(np.float32)
        expected = self.network(network, images, rounding)
        assert np.array_equal(expected[source.name], integers)
        # Everything between two integers rounds to one of them.
        shift = rng.uniform(-0.49, 0.49, shape) * meaning["scale"]
        self.floats(network, machine, (images + shift).astype(np.float32), expected)

    def floats(self, network, machine, images, expected):
        """The same model behind real inputs, in front of real outputs."""
        model = self.export(network, machine, "--float-input", "--float-output")
        scales = {meaning["tensor"]: meaning["scale"] for meaning in meanings(model).values()}
        for level in LEVELS:
            results = run(model, {model.graph.input[0].name: images}, level)
            for name, found in results.items():
                tensor = name.removesuffix("/copy")
                wanted = expected[tensor] * np.float32(scales[tensor])
                require(f"{network} in floats", name, found, wanted.astype(np.float32))

    def compare(self, what, model, expected):
        source = model.graph.input[0].name
        integers = expected[source]
        for level in LEVELS:
            for first in range(0, len(integers), self.args.batch):
                some = slice(first, first + self.args.batch)
                results = run(model, {source: integers[some]}, level)
                names = {name.removesuffix("/copy") for name in results} | {source}
                assert names == set(expected), names ^ set(expected)
                for name, found in results.items():
                    require(what, name, found, expected[name.removesuffix("/copy")][some])
                    if level == LEVELS[0]:
                        self.total.values += found.size
        self.total.models += 1
        self.total.images += len(integers)
        self.total.tensors += len(expected) - 1
        for node in model.graph.node:
            name = node.op_type
            if name == "Cast":
                to = onnx.TensorProto.DataType.Name(node.attribute[0].i)
                name = f"Cast to {to.lower()}"
            self.total.operators[name] = self.total.operators.get(name, 0) + 1


def run(model, inputs, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


def require(what, name, found, wanted):
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        sys.exit(
            f"{what}: tensor {name!r} is {found.dtype} {found.shape}, "
            f"systole has {wanted.dtype} {wanted.shape}"
        )
    if not np.array_equal(found, wanted):
        at = tuple(int(i) for i in np.argwhere(found != wanted)[0])
        n = np.count_nonzero(found != wanted)
        sys.exit(
            f"{what}: tensor {name!r} differs in {n} of {found.size} values, first at {at} "
            f"(image, channel, row, column): ONNX Runtime has {found[at]}, systole {wanted[at]}"
        )


def meanings(model):
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return json.loads(texts["systole.tensors"])


if __name__ == "__main__":
    main()
