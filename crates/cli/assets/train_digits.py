#!/usr/bin/env python3
"""Trains the network of `systole demo` and writes its files next to this script.

    python3 -m pip install numpy scikit-learn onnx
    OPENBLAS_NUM_THREADS=1 python3 train_digits.py

Everything random comes from SEED. The trainer is plain NumPy, feature maps are N, H, W, C; another
BLAS may round differently and so give slightly different weights. Half a minute on one core.
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 2020
EPOCHS = 120
BATCH = 64
RATE = 4e-3
WEIGHT_DECAY = 4e-3
# While it trains, weights and features tremble by one step of this many to their maximum: the
# network learns margins that survive 4 bits.
WEIGHT_STEPS = 7.0
FEATURE_STEPS = 15.0
BN_EPSILON = 1e-5
BN_MOMENTUM = 0.05
FULL_SCALE = 16.0  # the largest pixel value of this data set
HERE = pathlib.Path(__file__).resolve().parent


def tremble(rng, value, axes, steps):
    """Adds what rounding to 4 bits would: uniform noise, one step wide."""
    step = np.abs(value).max(axis=axes, keepdims=True) / np.float32(steps)
    noise = rng.random(value.shape, np.float32) - np.float32(0.5)
    return value + step * noise


class Conv:
    """3x3, stride 1, one zero on every side, no bias (the batch norm has it)."""

    def __init__(self, rng, n_in, n_out):
        self.shape = (n_in, n_out)
        self.rng = rng
        self.w = rng.normal(0, np.sqrt(2 / (9 * n_in)), (9 * n_in, n_out)).astype(np.float32)
        self.params = ["w"]

    def forward(self, x, train):
        n, h, w, c = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        taps = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
        self.columns = np.concatenate(taps, axis=3).reshape(-1, 9 * c)
        self.used = tremble(self.rng, self.w, 0, WEIGHT_STEPS) if train else self.w
        return (self.columns @ self.used).reshape(n, h, w, -1)

    def backward(self, d):
        n, h, w, _ = d.shape
        c = self.shape[0]
        flat = d.reshape(-1, d.shape[3])
        self.d_w = self.columns.T @ flat
        d_columns = (flat @ self.used.T).reshape(n, h, w, 9, c)
        padded = np.zeros((n, h + 2, w + 2, c), np.float32)
        for k in range(9):
            padded[:, k // 3 : k // 3 + h, k % 3 : k % 3 + w] += d_columns[:, :, :, k]
        return padded[:, 1:-1, 1:-1]

    def oihw(self):
        n_in, n_out = self.shape
        return self.w.reshape(3, 3, n_in, n_out).transpose(3, 2, 0, 1)


class BatchNorm:
    """Per channel, with running statistics for inference."""

    def __init__(self, n):
        self.gamma, self.beta = np.ones(n, np.float32), np.zeros(n, np.float32)
        self.mean, self.var = np.zeros(n, np.float32), np.ones(n, np.float32)
        self.params = ["gamma", "beta"]

    def forward(self, x, train):
        mean, var = self.mean, self.var
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.mean += np.float32(BN_MOMENTUM) * (mean - self.mean)
            self.var += np.float32(BN_MOMENTUM) * (var - self.var)
        self.inverse = 1 / np.sqrt(var + np.float32(BN_EPSILON))
        self.x_hat = (x - mean) * self.inverse
        return self.x_hat * self.gamma + self.beta

    def backward(self, d):
        axes = (0, 1, 2)
        self.d_gamma, self.d_beta = (d * self.x_hat).sum(axes), d.sum(axes)
        count = np.float32(d.size / d.shape[3])
        centred = d - self.d_beta / count - self.x_hat * (self.d_gamma / count)
        return self.gamma * self.inverse * centred


class Linear:
    """Fully connected, with bias."""

    def __init__(self, rng, n_in, n_out):
        self.rng = rng
        self.w = rng.normal(0, np.sqrt(1 / n_in), (n_in, n_out)).astype(np.float32)
        self.b = np.zeros(n_out, np.float32)
        self.params = ["w", "b"]

    def forward(self, x, train):
        self.x = x
        self.used = tremble(self.rng, self.w, 0, WEIGHT_STEPS) if train else self.w
        return x @ self.used + self.b

    def backward(self, d):
        self.d_w, self.d_b = self.x.T @ d, d.sum(0)
        return d @ self.used.T


class Net:
    """conv-bn-relu, conv-bn-add-relu, max pool, conv-bn-relu, average, linear."""

    def __init__(self, rng):
        self.rng = rng
        self.conv1, self.bn1 = Conv(rng, 1, 16), BatchNorm(16)
        self.conv2, self.bn2 = Conv(rng, 16, 16), BatchNorm(16)
        self.conv3, self.bn3 = Conv(rng, 16, 32), BatchNorm(32)
        self.fc = Linear(rng, 32, 10)
        self.layers = [
            self.conv1, self.bn1, self.conv2, self.bn2, self.conv3, self.bn3, self.fc,
        ]  # fmt: skip

    def forward(self, x, train=False):
        feel = lambda v: tremble(self.rng, v, None, FEATURE_STEPS) if train else v
        self.a1 = np.maximum(feel(self.bn1.forward(self.conv1.forward(x, train), train)), 0)
        branch = self.bn2.forward(self.conv2.forward(self.a1, train), train)
        self.a2 = np.maximum(feel(branch + self.a1), 0)
        n, h, w, c = self.a2.shape
        blocks = self.a2.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
        self.blocks = blocks.reshape(n, h // 2, w // 2, c, 4)
        self.pooled = self.blocks.max(4)
        self.a3 = np.maximum(feel(self.bn3.forward(self.conv3.forward(self.pooled, train), train)), 0)
        return self.fc.forward(feel(self.a3.mean((1, 2))), train)

    def backward(self, d):
        d = self.fc.backward(d)
        n, h, w, c = self.a3.shape
        d = np.broadcast_to(d[:, None, None] / np.float32(h * w), (n, h, w, c)) * (self.a3 > 0)
        d = self.conv3.backward(self.bn3.backward(d))
        first = self.blocks.argmax(4)[..., None] == np.arange(4)
        d = (d[..., None] * first).reshape(n, h, w, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        d = d.reshape(self.a2.shape) * (self.a2 > 0)
        d1 = d + self.conv2.backward(self.bn2.backward(d))
        self.conv1.backward(self.bn1.backward(d1 * (self.a1 > 0)))


def augment(rng, x):
    """Shifts every image by at most one pixel each way and changes its contrast a little."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    dy, dx = rng.integers(0, 3, (2, len(x)))
    rows, columns = dy[:, None] + np.arange(8), dx[:, None] + np.arange(8)
    shifted = padded[np.arange(len(x))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted * rng.uniform(0.9, 1.1, (len(x), 1, 1, 1)).astype(np.float32)


def train(rng, x, y):
    """Adam with decoupled weight decay and a cosine schedule, cross entropy."""
    net = Net(rng)
    slots = [(layer, name) for layer in net.layers for name in layer.params]
    first = [np.zeros_like(getattr(layer, name)) for layer, name in slots]
    second = [np.zeros_like(m) for m in first]
    n_batches = len(x) // BATCH
    step, n_steps = 0, EPOCHS * n_batches
    for epoch in range(EPOCHS):
        order, total = rng.permutation(len(x)), 0.0
        for batch in order[: n_batches * BATCH].reshape(n_batches, BATCH):
            logits = net.forward(augment(rng, x[batch]), train=True)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            total -= np.log(p[np.arange(BATCH), y[batch]] + 1e-12).mean()
            p[np.arange(BATCH), y[batch]] -= 1
            net.backward(p / np.float32(BATCH))
            step += 1
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / n_steps)) * min(1, step / n_batches)
            for i, (layer, name) in enumerate(slots):
                value, gradient = getattr(layer, name), getattr(layer, "d_" + name)
                first[i] += 0.1 * (gradient - first[i])
                second[i] += 0.001 * (gradient**2 - second[i])
                move = first[i] / (1 - 0.9**step)
                move /= np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                if name == "w":
                    move += WEIGHT_DECAY * value / RATE
                value -= np.float32(rate) * move.astype(np.float32)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1:3}: loss {total / n_batches:.4f}")
    return net


def to_onnx(net):
    """The float network in ONNX, opset 13, symbolic batch, batch norms kept as nodes."""
    constants, nodes = [], []

    def constant(name, value):
        value = np.ascontiguousarray(value, np.float32)
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], name=f"{output}.node", **attributes))
        return output

    def conv_bn(i, x):
        conv, bn = getattr(net, f"conv{i}"), getattr(net, f"bn{i}")
        window = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
        weight = constant(f"conv{i}.weight", conv.oihw())
        x = node("Conv", [x, weight], f"conv{i}", **window)
        names = ("gamma", "beta", "mean", "var")
        stored = [constant(f"bn{i}.{name}", getattr(bn, name)) for name in names]
        return node("BatchNormalization", [x, *stored], f"bn{i}", epsilon=BN_EPSILON)

    a1 = node("Relu", [conv_bn(1, "input")], "relu1")
    a2 = node("Relu", [node("Add", [conv_bn(2, a1), a1], "add2")], "relu2")
    pooled = node("MaxPool", [a2], "pool2", kernel_shape=[2, 2], strides=[2, 2])
    a3 = node("Relu", [conv_bn(3, pooled)], "relu3")
    flat = node("Flatten", [node("GlobalAveragePool", [a3], "average")], "flat", axis=1)
    weight, bias = constant("fc.weight", net.fc.w.T), constant("fc.bias", net.fc.b)
    node("Gemm", [flat, weight, bias], "logits", transB=1)
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.producer_name = "train_digits.py"
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=450, random_state=SEED, stratify=y
    )
    as_input = lambda images: (images / np.float32(FULL_SCALE))[..., None].astype(np.float32)
    net = train(np.random.default_rng(SEED), as_input(x_train), y_train)
    for name, images, labels in ("train", x_train, y_train), ("test", x_test, y_test):
        right = (net.forward(as_input(images)).argmax(1) == labels).sum()
        print(f"{name}: {right} of {len(labels)} right, {100 * right / len(labels):.2f} %")
    onnx.save(to_onnx(net), HERE / "digits.onnx")
    np.savez_compressed(
        HERE / "digits_calibration.npz", x=x_train[:256, None], y=y_train[:256]
    )
    np.savez_compressed(HERE / "digits_test.npz", x=x_test[:, None], y=y_test)


if __name__ == "__main__":
    main()
