"""Tests of the benchmark of trained networks: graphs of ONNX as JAX functions, and the scores of their tasks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.networks import tasks
from support.arrays import normal, relative_error

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

NODES = {
    "a strided convolution in groups": ("Conv", (1, 8, 9, 10), (12, 4, 3, 3), {"strides": [2, 1], "group": 2}),
    "automatic padding": ("Conv", (1, 3, 9, 10), (4, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "the other automatic padding": ("Conv", (1, 3, 9, 10), (4, 3, 4, 3), {"auto_pad": "SAME_LOWER"}),
    "uneven padding and dilation": ("Conv", (1, 3, 9, 9), (4, 3, 3, 2), {"pads": [0, 1, 2, 3], "dilations": [2, 1]}),
    "one axis": ("Conv", (2, 3, 20), (4, 3, 5), {"pads": [2, 2]}),
    "a transposed convolution": (
        "ConvTranspose",
        (1, 6, 5, 7),
        (6, 4, 3, 2),
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    "a pool that counts partial windows": (
        "MaxPool",
        (1, 3, 8, 9),
        None,
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
    ),
    "a pool with padding": ("MaxPool", (1, 3, 8, 9), None, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "a mean pool": ("AveragePool", (1, 3, 8, 9), None, {"kernel_shape": [3, 2], "strides": [3, 2]}),
    "a slope for each channel": ("PRelu", (2, 3, 4, 5), (3, 1, 1), {}),
    "flattening": ("Flatten", (2, 3, 4, 5), None, {"axis": 2}),
    "softmax": ("Softmax", (2, 3, 4), None, {"axis": 1}),
    "the mean of each channel": ("GlobalAveragePool", (2, 3, 4, 5), None, {}),
    "a hard sigmoid": ("HardSigmoid", (2, 30), None, {"alpha": 0.3, "beta": 0.4}),
}


def graph_of(path, node, x_shape, weights):
    """Writes a graph of one node, of x and of constants."""
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        [value("x", onnx.TensorProto.FLOAT, x_shape)],
        [value("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def agrees(path, x):
    from benchmarks.networks.onnx_graph import read_graph

    function, params = read_graph(path)
    (expected,) = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    (y,) = function({name: jnp.asarray(array) for name, array in params.items()}, jnp.asarray(x))
    assert y.shape == expected.shape
    assert relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("name", NODES)
def test_nodes(name, tmp_path):
    operation, x_shape, weight_shape, attributes = NODES[name]
    weights = {"w": normal(weight_shape).astype(np.float32)} if weight_shape else {}
    node = onnx.helper.make_node(operation, ["x", *weights], ["y"], **attributes)
    graph_of(tmp_path / "graph.onnx", node, x_shape, weights)
    agrees(tmp_path / "graph.onnx", normal(x_shape, 1).astype(np.float32))


@pytest.mark.parametrize(
    ("operation", "constants", "attributes"),
    [
        ("Slice", {"starts": [-1], "ends": [-100], "axes": [1], "steps": [-2]}, {}),
        ("Slice", {"starts": [1, 0], "ends": [100, 2], "axes": [2, 1]}, {}),
        ("Reshape", {"shape": [0, -1, 2]}, {}),
        ("Pad", {"pads": [0, 1, 0, 2, 0, 3]}, {}),
        ("Squeeze", {"axes": [0]}, {}),
        ("ReduceSum", {"axes": [-1]}, {"keepdims": 0}),
        ("Transpose", {}, {"perm": [2, 0, 1]}),
        ("Gather", {"indices": [2, 0]}, {"axis": 1}),
    ],
)
def test_nodes_with_constants(operation, constants, attributes, tmp_path):
    arrays = {name: np.array(values, np.int64) for name, values in constants.items()}
    node = onnx.helper.make_node(operation, ["x", *arrays], ["y"], **attributes)
    graph_of(tmp_path / "graph.onnx", node, (1, 5, 4), arrays)
    agrees(tmp_path / "graph.onnx", normal((1, 5, 4)).astype(np.float32))


def test_an_unknown_node_is_named(tmp_path):
    from benchmarks.networks.onnx_graph import read_graph

    graph_of(tmp_path / "graph.onnx", onnx.helper.make_node("Det", ["x"], ["y"]), (2, 2), {})
    with pytest.raises(NotImplementedError, match="Det"):
        read_graph(tmp_path / "graph.onnx")


def test_texts_are_read_without_blanks_and_repeats():
    scores = np.eye(4)[[0, 1, 1, 0, 1, 3, 2]][None]
    assert tasks.read_text(scores, ["", "a", "b", " "]) == "aa b"


def test_boxes_that_overlap_are_one():
    size, places = 32, 4 * 4 + 2 * 2 + 1
    output = np.zeros((1, places, 6), np.float32)
    output[0, 0] = [0.5, 0.5, np.log(2), np.log(2), 0.9, 1]  # 16 pixels wide around (4, 4)
    output[0, 1] = [-0.4, 0.5, np.log(2), np.log(2), 0.8, 1]  # the same, a pixel to the right
    output[0, 15] = [0.5, 0.5, 0, 0, 0.5, 1]  # 8 pixels wide around (28, 28)
    assert tasks.boxes(output, size).tolist() == [[-4, -4, 12, 12], [24, 24, 32, 32]]
    missing = output.copy()
    missing[0, 15, 4] = 0
    assert tasks.same_boxes(size)([output], [output]) == 1
    assert tasks.same_boxes(size)([output], [missing]) == pytest.approx(2 / 3)
    assert tasks.overlap(np.array([0.0, 0, 2, 2]), np.array([1.0, 0, 3, 2])) == pytest.approx(1 / 3)


def test_shares_of_a_task():
    mask = tasks.mask_f1(lambda one: one, 0.5)
    assert mask([np.array([0.9, 0.9, 0.1])], [np.array([0.9, 0.1, 0.1])]) == pytest.approx(2 / 3)
    assert mask([np.zeros(3)], [np.zeros(3)]) == 1
    scores = [np.eye(6)[[0, 3]]], [np.eye(6)[[1, 3]]]
    assert tasks.same_class(lambda one: one)(*scores) == 0.5
    assert tasks.near_class(1)(*scores) == 1


def test_classes_in_common():
    before = [np.array([[5.0, 4, 3, 0, 0], [0, 1, 2, 3, 4]])]
    after = [np.array([[4.0, 5, 0, 3, 0], [4, 3, 2, 1, 0]])]
    assert tasks.common_classes(2)(before, after) == 0.5
    assert tasks.common_classes(1)(before, before) == 1


def test_pieces_of_photographs():
    from benchmarks.networks import inputs

    ramp = np.broadcast_to(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], (100, 90, 3))
    batches = inputs.random_pieces([ramp], 16, 3, 0)
    first, second = next(batches), next(batches)
    assert first.shape == (3, 16, 16, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, next(inputs.random_pieces([ramp], 16, 3, 0)))
    rows = np.diff(first[:, 2:-2, 8, 0].astype(int), axis=1)  # of all sizes, and never upside down
    assert (rows.min(1) >= 0).all()
    assert np.ptp(rows.max(1)) > 2
