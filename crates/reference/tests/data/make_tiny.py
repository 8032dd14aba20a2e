"""Writes the models of the tests: python3 make_tiny.py (needs numpy and onnx)."""

import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

HERE = pathlib.Path(__file__).resolve().parent


def model(batch, name_of):
    """conv 2x2 with weight 1 2 3 4 and bias -10, relu, constant Reshape to (1, 4), y = 2 relu."""
    f32 = lambda name, value: numpy_helper.from_array(np.array(value, np.float32), name)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], name=name_of("conv"), kernel_shape=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"], name=name_of("relu")),
        helper.make_node("Reshape", ["relu", "to"], ["flat"], name=name_of("flat")),
        helper.make_node("Gemm", ["flat", "twice"], ["y"], name=name_of("y")),
        helper.make_node("Shape", ["relu"], ["extents"], name=name_of("extents")),
    ]
    constants = [
        f32("w", [[[[1, 2], [3, 4]]]]),
        f32("b", [-10]),
        f32("twice", 2 * np.eye(4)),
        numpy_helper.from_array(np.array([batch, 4], np.int64), "to"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [info("x", TensorProto.FLOAT, [batch, 1, 3, 3])],
        [info("y", TensorProto.FLOAT, [batch, 4])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(made, full_check=True)
    return made


save(model(1, lambda output: f"node_{output}"), HERE / "tiny.onnx")
# Nodes named like their outputs, a batch of 2.
save(model(2, lambda output: output), HERE / "tiny_clash_batch2.onnx")
