#!/usr/bin/env python3
"""Writes the images of `systole demo` and of its recipe next to this script.

    python3 -m pip install numpy scikit-learn
    python3 split_digits.py
"""

import pathlib

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 2020
HERE = pathlib.Path(__file__).resolve().parent


def main():
    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=450, random_state=SEED, stratify=y
    )
    np.savez_compressed(HERE / "digits_train.npz", x=x_train[:, None], y=y_train)
    np.savez_compressed(HERE / "digits_calibration.npz", x=x_train[:256, None], y=y_train[:256])
    np.savez_compressed(HERE / "digits_test.npz", x=x_test[:, None], y=y_test)


if __name__ == "__main__":
    main()
