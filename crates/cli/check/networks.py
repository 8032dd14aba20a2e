"""Networks on machines: MACs layer by layer, rooflines, owners of cycles, values.

Invariant: a difference ends the script with exit code 1 and a line that names network, machine and layer.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys

DATAFLOWS = ["os", "ws", "is"]
MACHINES = [f"paper-{array}-{flow}" for array in ("16x16", "32x32") for flow in DATAFLOWS]


def run(systole, *arguments):
    done = subprocess.run([systole, *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"systole {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def wrong(place, problem):
    sys.exit(f"{place}: {problem}")


def check_macs(place, report, layers):
    with open(layers, newline="", encoding="utf-8") as file:
        wanted = {row["name"]: int(row["macs"]) for row in csv.DictReader(file) if int(row["macs"])}
    found = {layer["name"]: layer["n_macs"] for layer in report["layers"] if layer["n_macs"]}
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            wrong(place, f"{name} has {found.get(name)} MACs, {layers} says {wanted.get(name)}")


def check_cycles(place, report):
    at = 0
    for layer in report["layers"]:
        name, cycles = layer["name"], layer["cycles"]
        if layer["from_cycle"] != at:
            wrong(place, f"{name} begins in cycle {layer['from_cycle']}, the layer before ends at {at}")
        at += cycles
        owned = sum(layer["owned_cycles"].values())
        if owned != cycles:
            wrong(place, f"{name}: {owned} of {cycles} cycles have an owner")
        for floor in ("compute", "memory", "post"):
            least = layer[f"{floor}_floor_cycles"]
            if cycles < least:
                wrong(place, f"{name} takes {cycles} cycles, its {floor} floor is {least}")
    if at != report["total_cycles"]:
        wrong(place, f"the layers' cycles sum to {at}, the total is {report['total_cycles']}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--systole", required=True)
    parser.add_argument("--values", action="store_true", help="also run --check --stepped, which takes minutes")
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--seed", default="1", help="of made-up weights and images")
    parser.add_argument("models", nargs="+", metavar="MODEL.onnx[=LAYERS.csv]")
    arguments = parser.parse_args()
    print("| network | machine | cycles | × rooflines | PE utilization | lanes, mapping | values checked |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for given in arguments.models:
        model, _, layers = given.partition("=")
        for machine in arguments.machines.split(","):
            place = f"{model} on {machine}"
            common = [model, "--machine", machine, "--synthetic-weights", arguments.seed]
            report = run(arguments.systole, "latency", *common)
            if layers:
                check_macs(place, report, layers)
            check_cycles(place, report)
            values = "–"
            if arguments.values:
                image = ["--synthetic-images", f"{arguments.seed}:1", "--check", "--stepped"]
                checked = run(arguments.systole, "run", *common, *image)["checked"]
                values = f"{checked['n_values']:,}"
            lanes = report["lane_mapping_utilization"]
            print(
                f"| {pathlib.Path(model).stem} | {machine} | {report['total_cycles']:,} "
                f"| {report['over_roofline']:.3f} | {report['compute_utilization']:.1%} "
                f"| {f'{lanes:.2%}' if lanes else '–'} | {values} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
