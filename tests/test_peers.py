"""The operations that are timed beside other libraries are equal in all of them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import multiprocessing
import os
from importlib.util import find_spec as util_find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.choice import families
from benchmarks.peers import __main__ as peers
from benchmarks.peers import families as peer_families
from benchmarks.peers import layers as peer_layers
from benchmarks.peers import networks as peer_networks
from benchmarks.peers import runtimes as peer_runtimes
from benchmarks.shared import environment
from benchmarks.shared.arrays import relative_error
from benchmarks.shared.layers import Layer
from benchmarks.shared.network_layers import draw
from benchmarks.shared.networks import NETWORKS, QUICK, Network

LAYERS = [
    Layer("dense", (2, 9, 8, 3), (3, 5), 4, 2),
    Layer("grouped", (2, 9, 8, 4), (3, 3), 6, 1, 2),
    Layer("depthwise", (2, 9, 8, 4), (5, 5), 4, 2, 4),
    Layer("filter", (1, 12, 11, 1), (5, 3), 1),
    Layer("transposed", (2, 5, 4, 6), (4, 4), 3, 2, transposed=True),
    Layer("transposed", (2, 5, 4, 6), (2, 2), 3, 2, transposed=True),
    Layer("max", (2, 9, 8, 4), (3, 3), 0, 2, pool="max"),
    Layer("max", (2, 8, 8, 4), (2, 2), 0, 2, pool="max"),
    Layer("avg", (2, 9, 8, 4), (3, 3), 0, 1, pool="avg"),
]


@pytest.fixture(autouse=True)
def _standard_jax():
    """JAX's defaults, as where benchmarks run."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.check_tracer_leaks(False):
        yield


def _channels_last(tensor):
    """A tensor of PyTorch in the form of lax: an image or a row of values."""
    return np.moveaxis(tensor.numpy(), 1, -1)


ALIKE = [LAYERS[index] for index in (3, 5, 7)]
"""Layers whose gradients are those of another's kind."""


@pytest.mark.parametrize(
    ("layer", "role"),
    [
        pytest.param(layer, role, marks=pytest.mark.slow if role == "gradient" and layer in ALIKE else ())
        for layer in LAYERS
        for role in peers.ROLES
    ],
    ids=lambda value: getattr(value, "name_and_shape", value),
)
def test_layers_of_all_libraries_are_the_same(layer, role):
    calls, programs = peer_layers.functions(layer, role)
    assert set(programs) == {"jaxcnn", "lax"}
    assert min(program.first_seconds for program in programs.values()) > 0
    expected = jax.tree.leaves(calls.pop("lax")())
    for name, call in calls.items():
        results = call()
        if name == "torch":
            results = [
                tensor for tensor in (results if isinstance(results, tuple) else (results,)) if tensor is not None
            ]
            kernels = [tensor.numpy().transpose(2, 3, 1, 0) for tensor in results[1:]]
            results = [_channels_last(results[0]), *kernels]
        elif name in ("scipy", "scipy fft", "opencv"):
            results = [results[None, :, :, None]]
        assert relative_error(results, expected) < 1e-5, name


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_as_many_parameters_as_published(name):
    network = NETWORKS[name]
    assert sum(math.prod(shape) for _, shape in network.weight_specs()) == network.parameters


def _arguments(network, size):
    weight_specs = network.weight_specs(size)
    x = np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)
    return weight_specs, draw(weight_specs), x


SMALL = {"Inception-v3": 75, "Xception": 35}
"""Images of few pixels after all strides, where 32 rows are not enough."""


DEEP = {"ConvNeXt-T", "EfficientNet-B0", "Inception-v3", "MobileNetV2", "ResNet-50", "Xception"}
"""Networks that compile for long; the test of every layer's gradients holds all their kinds of layer."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in DEEP else ()) for n in NETWORKS])
def test_networks_equal_torch(name):
    pytest.importorskip("torch")
    network = dataclasses.replace(NETWORKS[name], width=1 / 16)
    _, weights, x = _arguments(network, SMALL.get(name, 32))
    expected = jax.jit(network.lax("forward"))(list(map(jnp.asarray, weights)), x)
    result = network.torch("forward", weights, x)()
    assert relative_error(_channels_last(result), expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_runtimes(name):
    network = dataclasses.replace(NETWORKS[name], width=1 / 16)
    check_runtimes(network, SMALL.get(name, 32))


def test_every_layer_equals_runtimes():
    check_runtimes(Network(_every_layer, 0), 12)


def check_runtimes(network, size):
    """The forward pass in each runtime that is installed, against lax."""
    if len(peer_runtimes.missing()) == len(peer_runtimes.RUNTIMES):
        pytest.skip("; ".join(peer_runtimes.missing().values()))
    _, weights, x = _arguments(network, size)
    expected = jax.jit(network.lax("forward"))(list(map(jnp.asarray, weights)), x)
    functions = peer_runtimes.runtime_functions(network, weights, x)
    assert set(functions) == set(peer_runtimes.RUNTIMES) - set(peer_runtimes.missing())
    for name, function in functions.items():
        assert relative_error(np.moveaxis(function(), 1, -1), expected) < 1e-5, name


def test_runtimes_that_are_missing_have_a_reason(monkeypatch):
    monkeypatch.setattr(peer_runtimes.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    reasons = peer_runtimes.missing()
    assert list(reasons.values()) == ["OpenVINO is left out: openvino not installed (pip install 'jaxcnn[peers]')"]
    monkeypatch.setattr(peer_runtimes.importlib.util, "find_spec", lambda name: None)
    assert list(peer_runtimes.missing()) == list(peer_runtimes.RUNTIMES)
    assert peer_runtimes.runtime_functions(NETWORKS["VGG-16"], [], np.zeros((1, 8, 8, 3))) == {}


@pytest.mark.slow
def test_a_network_runs_in_a_process_without_the_native_library(monkeypatch):
    monkeypatch.setattr(peer_networks, "native_available", lambda: True)
    monkeypatch.delenv("JAXCNN_NATIVE", raising=False)
    times = peer_networks.measure(QUICK["one block"], 1, "gradient", 0.0)
    assert "without library" in times["milliseconds"]
    assert times["first_seconds"]["without library"] > 0
    assert "JAXCNN_NATIVE" not in os.environ


def test_a_process_that_has_the_native_library_is_refused(monkeypatch):
    class Process:
        def __init__(self, target, args, daemon):
            self.connection = args[0]

        def start(self):
            assert os.environ["JAXCNN_NATIVE"] == "0"
            self.connection.send((True, 1.0, 1.0))

        def join(self, timeout):
            pass

        def is_alive(self):
            return False

    context = multiprocessing.get_context("spawn")
    monkeypatch.setattr(type(context), "Process", Process)
    monkeypatch.setenv("JAXCNN_NATIVE", "1")
    refused = pytest.raises(RuntimeError, match="does not switch the native library off")
    with refused, peer_runtimes.without_library(QUICK["one block"], 1, "forward"):
        pass
    assert os.environ["JAXCNN_NATIVE"] == "1"


def _every_layer(k, x):
    x = k.max_pool(k.relu(k.norm(k.conv(x, 6, 3, 2))), 3, 2, 1)
    x = k.concatenate([x, k.avg_pool(k.silu(k.conv(x, 6, (1, 5), groups=3, bias=True)), 3, 1, 1)])
    x = x * k.sigmoid(k.conv(k.mean(x, keepdims=True), 12, 1))
    x = x + k.scale(k.dense(k.gelu(k.dense(k.layer_norm(x), 7)), 12))
    return k.dense(k.flatten(k.relu6(k.conv_transpose(x, 3, 2))), 5)


def test_gradients_of_every_layer_equal_torch():
    pytest.importorskip("torch")
    network = Network(_every_layer, 0)
    weight_specs, weights, x = _arguments(network, 12)
    expected = jax.jit(network.lax("gradient"))(list(map(jnp.asarray, weights)), x)
    results = network.torch("gradient", weights, x)()
    axes = {"kernel": (2, 3, 1, 0), "transposed": (2, 3, 0, 1), "dense": (1, 0)}
    for (kind, shape), gradient, plain in zip(weight_specs, results, expected, strict=True):
        gradient = gradient.numpy().transpose(axes.get(kind, (0,)))
        gradient = gradient[::-1, ::-1] if kind == "transposed" else gradient
        assert gradient.shape == plain.shape == shape
        assert relative_error(gradient, plain) < 1e-4, kind


def _tiny(k, x):
    return k.dense(k.mean(k.conv(x, 4, 3)), 5)


@pytest.mark.parametrize("role", peers.ROLES)
def test_a_network_is_measured_and_reported(role, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny", Network(_tiny, 0, 8))
    layer = Layer("layer", (1, 8, 8, 4), (3, 3), 0, 2, pool="max")
    monkeypatch.setattr(peers, "FAMILIES", {"pool": [layer]})
    monkeypatch.setattr(peer_layers, "ceilings", lambda: (1e11, 1e10))
    records = [*peers.measure_layers(["pool"], [role], 0.0), *peers.measure_networks(["tiny"], [2], [role], 0.0)]
    console = Console(file=io.StringIO(), width=400)
    peers.report(records, console)
    text = console.file.getvalue()
    assert [record["layer"] for record in records] == ["layer 1x8x8x4", "tiny 2x8x8x3"]
    assert f"networks, {role}" in text
    assert text.count("geometric mean") == text.count("first / lax") == 2
    for column in ("lax ms", "/ lax", "jaxcnn MB", "roofline", "lax first s", "first / lax"):
        assert column in text


def test_the_command_measures_writes_and_prints(monkeypatch, tmp_path, capsys):
    kept = []
    monkeypatch.setattr(peers, "keep_to_processors", kept.append)
    monkeypatch.setitem(NETWORKS, "tiny", Network(_tiny, 0, 8))
    monkeypatch.setattr(
        peer_runtimes.importlib.util, "find_spec", lambda name: None if name == "openvino" else util_find_spec(name)
    )
    path = tmp_path / "peers.json"
    options = {"group": "networks", "network": "tiny", "batch": 1, "role": "forward", "seconds": 0, "threads": 3}
    peers.main([f"--{name}={value}" for name, value in {**options, "json": path}.items()])
    (record,) = json.loads(path.read_text())
    assert (record["group"], record["role"], record["layer"]) == ("networks", "forward", "tiny 1x8x8x3")
    assert {"jaxcnn", "lax"} <= set(record["milliseconds"])
    assert "openvino" not in record["milliseconds"]
    assert kept == [3]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("OpenVINO is left out: openvino") for line in lines)
    assert any(line.startswith("jaxcnn's native library is") for line in lines)


def test_a_process_keeps_to_its_first_processors(monkeypatch):
    kept = []
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda process: {7, 3, 5}, raising=False)
    monkeypatch.setattr(environment.os, "sched_setaffinity", lambda process, chosen: kept.append(chosen), raising=False)
    assert environment.processors() == 3
    environment.keep_to_processors(2)
    assert kept == [[3, 5]]


def test_seeded_layers_are_measured_and_reported(monkeypatch):
    draft = families.Draft((6, 5), (2, 3), 3, 4, (2, 1), (1, 1), 1, (0, 1))
    for name in ("dense", "transposed"):
        monkeypatch.setitem(families.FAMILIES, name, lambda rng: draft)
    monkeypatch.setattr(families, "NARROW_MACS", (1, 1e6))
    monkeypatch.setattr(peer_layers, "ceilings", lambda: (1e11, 1e10))
    measure, measured = peer_families.measure, []
    monkeypatch.setattr(peer_families, "measure", lambda *args: measured.append(args[1].role) or measure(*args))
    groups = ["seeded dense", "seeded transposed"]
    records = [*peers.measure_families(groups, ["forward"], 0, 1, 0.0)]
    records += peers.measure_families(groups[:1], ["gradient"], 0, 1, 0.0)
    roles = ["forward", "forward", "gradient by the image", "gradient by the kernel"]
    assert [record["role"] for record in records] == roles
    assert measured == ["output", "input", "input", "kernel"]
    assert {record["layer"] for record in records} == {"1x6x5 3->4 2x3 s2"}
    assert all(record["milliseconds"]["jaxcnn"] > 0 for record in records)
    console = Console(file=io.StringIO(), width=220)
    peers.report(records, console)
    text = console.file.getvalue()
    assert "seeded transposed, forward" in text
    assert "seeded dense, gradient by the kernel" in text
