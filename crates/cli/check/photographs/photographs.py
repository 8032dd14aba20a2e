#!/usr/bin/env python3
"""Crops of photographs as .npz: calibration.npz (`x`) and test.npz (`x`, and `y` with 1001 classes).

    photographs.py WHEELS OUT

The photographs are those inside wheels from PyPI, in the folder WHEELS: foolbox's twenty of ImageNet
for the test, what scikit-image, scikit-learn and ultralytics ship for the calibration. No photograph
serves both. Crops are squares of 60 to 100 % of the shorter side, half of them mirrored, 224 x 224,
the first of each photograph its largest middle square; the same on every computer.
"""

import io
import pathlib
import sys
import zipfile

import numpy as np
from PIL import Image

CALIBRATION = [
    ("scikit_image", f"skimage/data/{name}")
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
] + [
    ("scikit_learn", "sklearn/datasets/images/china.jpg"),
    ("scikit_learn", "sklearn/datasets/images/flower.jpg"),
    ("ultralytics", "ultralytics/assets/bus.jpg"),
    ("ultralytics", "ultralytics/assets/zidane.jpg"),
]


def crops(photographs, n_each, rng):
    """`n_each` crops of each photograph, the first of all, then the second of all, ..."""
    made = []
    for number in range(n_each):
        for photograph in photographs:
            width, height = photograph.size
            whole = min(width, height)
            side = whole if number == 0 else int(whole * rng.uniform(0.6, 1.0))
            free = (width - side, height - side)
            left, top = (f // 2 if number == 0 else int(rng.integers(0, f + 1)) for f in free)
            crop = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.BICUBIC)
            if number > 0 and rng.random() < 0.5:
                crop = crop.transpose(Image.FLIP_LEFT_RIGHT)
            made.append(np.asarray(crop).transpose(2, 0, 1))
    return np.stack(made)


def main():
    wheels, out = map(pathlib.Path, sys.argv[1:3])

    def wheel(package):
        (found,) = wheels.glob(f"{package}-*.whl")
        return zipfile.ZipFile(found)

    def photograph(package, name):
        return Image.open(io.BytesIO(wheel(package).read(name))).convert("RGB")

    calibration = [photograph(*place) for place in CALIBRATION]
    names = sorted(n for n in wheel("foolbox").namelist() if n.startswith("foolbox/data/imagenet_"))
    test = [photograph("foolbox", name) for name in names]
    # imagenet_07_609.jpg is class 609 of 1000; networks with 1001 classes begin with a background.
    labels = [int(name.rsplit("_", 1)[1].split(".")[0]) + 1 for name in names]
    rng = np.random.default_rng(7)
    np.savez(out / "calibration.npz", x=crops(calibration, 16, rng))
    np.savez(out / "test.npz", x=crops(test, 10, rng), y=np.array(labels * 10))
    print(f"{len(test)} photographs for the test, {len(calibration)} for the calibration", file=sys.stderr)


main()
