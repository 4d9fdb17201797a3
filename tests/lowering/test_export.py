"""Tests of the program of a convolution or a pool on each platform, read from modules that are lowered on a CPU."""

from __future__ import annotations

import re
from functools import partial

import jax
import numpy as np
import pytest

import jaxcnn

pytestmark = pytest.mark.optimized

ACCELERATORS = ("cuda", "rocm", "tpu")

# Options, x, kernel.
LAYERS = {
    "dense": ({}, (2, 16, 16, 24), (3, 3, 24, 32)),
    "pointwise": ({}, (2, 16, 16, 24), (1, 1, 24, 32)),
    "depthwise": ({"feature_group_count": 32}, (2, 16, 16, 32), (3, 3, 1, 32)),
    "large depthwise": ({"feature_group_count": 32}, (2, 32, 32, 32), (29, 29, 1, 32)),
    "depthwise strided": ({"feature_group_count": 32, "strides": 2}, (2, 16, 16, 32), (3, 3, 1, 32)),
    "depthwise multiplied": ({"feature_group_count": 16}, (2, 16, 16, 16), (3, 3, 1, 32)),
    "grouped": ({"feature_group_count": 4}, (2, 16, 16, 32), (3, 3, 8, 32)),
    "grouped strided": ({"feature_group_count": 4, "strides": 2}, (2, 16, 16, 32), (3, 3, 8, 32)),
    "strided": ({"strides": 2}, (2, 16, 16, 24), (3, 3, 24, 32)),
    "dilated": ({"kernel_dilation": 2}, (2, 16, 16, 24), (3, 3, 24, 32)),
    "row": ({}, (2, 16, 16, 24), (1, 7, 24, 32)),
    "image": ({}, (1, 32, 32, 1), (11, 11, 1, 1)),
    "volume": ({}, (1, 8, 8, 8, 8), (3, 3, 3, 8, 16)),
    "sequence": ({"padding": "CAUSAL"}, (2, 32, 24), (5, 24, 32)),
}
FORMS = ("output", "input", "kernel")


def struct(shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def form(name, role):
    """One of a layer's three convolutions, as a function of its two operands, and their shapes."""
    options, x_shape, kernel_shape = LAYERS[name]
    forward = partial(jaxcnn.conv, **options)
    if role == "output":
        return forward, (x_shape, kernel_shape)
    y_shape = jax.eval_shape(forward, struct(x_shape), struct(kernel_shape)).shape
    if role == "input":
        transpose = jax.linear_transpose
        return (lambda y, kernel: transpose(lambda x: forward(x, kernel), struct(x_shape))(y)[0]), (
            y_shape,
            kernel_shape,
        )
    return (lambda x, y: jax.linear_transpose(lambda k: forward(x, k), struct(kernel_shape))(y)[0]), (x_shape, y_shape)


def exported(function, shapes, platform):
    module = jax.export.export(jax.jit(function), platforms=[platform])(*map(struct, shapes)).mlir_module()
    assert "stablehlo" in module
    return module


def on_cpu(function, shapes):
    """Returns the module of a jitted call and that of an exported program, which differ on a CPU."""
    return [jax.jit(function).lower(*map(struct, shapes)).as_text(), exported(function, shapes, "cpu")]


def convolutions(module):
    return re.findall(r"stablehlo\.convolution\(.*", module)


def batch_groups(module):
    """The batch groups of each convolution."""
    counts = re.findall(r"batch_group_count = (\d+)", module)
    assert len(counts) == len(convolutions(module)), "the module is written in another way than expected"
    return [int(count) for count in counts]


def interior_paddings(module):
    """Every interior padding and input dilation that is not trivial."""
    pads = re.findall(r"stablehlo\.pad .*interior = \[([^\]]*)\]", module)
    assert len(pads) == module.count("stablehlo.pad ")
    dilations = re.findall(r"lhs_dilate = \[([^\]]*)\]", module)
    return [p for p in pads if set(p) - set("0, ")] + [d for d in dilations if set(d) - set("1, ")]


OTHERS = ("dot_general", "multiply", "fft", "while", "reduce_window", "custom_call")


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_each_layer_is_one_convolution_on_accelerators(platform):
    for name in LAYERS:
        for role in FORMS:
            module = exported(*form(name, role), platform)
            assert len(convolutions(module)) == 1, (name, role)
            for other in OTHERS:
                assert f"stablehlo.{other}" not in module, (name, role, other)


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_a_transposed_convolution_is_one_convolution_on_accelerators(platform):
    shapes = (2, 8, 8, 32), (3, 3, 24, 32)
    module = exported(partial(jaxcnn.conv_transpose, strides=2), shapes, platform)
    assert len(convolutions(module)) == 1


def test_several_platforms_in_one_module():
    function, shapes = form("depthwise", "output")
    both = jax.export.export(jax.jit(function), platforms=("cpu", *ACCELERATORS))(*map(struct, shapes)).mlir_module()
    assert len(convolutions(both)) == len(ACCELERATORS), "one for each accelerator, none for the CPU"


@pytest.mark.parametrize("role", FORMS)
def test_depthwise_and_grouped_layers_hold_no_convolution_on_cpu(role):
    for name in LAYERS:
        if "depthwise" in name or "grouped" in name:
            for module in on_cpu(*form(name, role)):
                # Where each group is computed by itself it may be a convolution of one group.
                text = convolutions(module)
                assert not text if "depthwise" in name else all("feature_group_count = 1 " in line for line in text), (
                    name
                )


def test_no_batch_groups_on_cpu():
    for name in LAYERS:
        for role in FORMS:
            for module in on_cpu(*form(name, role)):
                assert set(batch_groups(module)) <= {1}, (name, role)


@pytest.mark.parametrize("name", ["depthwise strided", "grouped strided"])
def test_a_strided_gradient_multiplies_no_zeros_on_cpu(name):
    # A dense one is left to XLA, which is as fast as one convolution for each phase of the stride.
    for role in ("input", "kernel"):
        for module in on_cpu(*form(name, role)):
            assert not interior_paddings(module), role
    assert interior_paddings(exported(*form(name, "input"), "cuda")), "there it is what the platform has"


POOLS = {
    "max": partial(jaxcnn.max_pool, window_shape=(2, 2), strides=2),
    "overlapping max": partial(jaxcnn.max_pool, window_shape=(3, 3), strides=2, padding="SAME"),
    "min": partial(jaxcnn.min_pool, window_shape=(3, 3)),
    "average": partial(jaxcnn.avg_pool, window_shape=(3, 3), strides=2, padding="SAME"),
}


@pytest.mark.parametrize("name", POOLS)
def test_gradients_of_pools_on_cpu(name):
    pool = POOLS[name]

    def gradient(x):
        return jax.grad(lambda x: (pool(x) ** 2).sum())(x)

    for module in on_cpu(gradient, [(2, 16, 16, 8)]):
        for other in ("select_and_scatter", "reduce_window", "scatter", "convolution"):
            assert f"stablehlo.{other}" not in module, other


def products(module):
    """(batch axes, all) of the products of matrices."""
    lines = re.findall(r"stablehlo\.dot_general.*", module)
    return sum("batching_dims" in line for line in lines), len(lines)


def test_an_ensemble_is_batched_products_on_cpu():
    ensemble = jax.vmap(jaxcnn.conv)
    shapes = (4, 1, 16, 16, 24), (4, 3, 3, 24, 32)

    def gradients(x, kernels):
        return jax.grad(lambda *both: (ensemble(*both) ** 2).sum(), (0, 1))(x, kernels)

    for function in (ensemble, gradients):
        jitted, for_export = on_cpu(function, shapes)
        assert products(jitted)[0] > 0, "others than the batched ones transform kernels for tiles"
        batched, all_ = products(for_export)
        assert batched == all_ > 0
        assert not convolutions(jitted)
        assert not convolutions(for_export)


def test_a_large_ensemble_is_a_loop_of_products_on_cpu():
    for module in on_cpu(jax.vmap(jaxcnn.conv), ((8, 8, 32, 32, 32), (8, 3, 3, 32, 32))):
        assert products(module) == (0, 1)
        assert "stablehlo.while" in module
        assert not convolutions(module)


def test_per_example_gradients_are_batched_products_on_cpu():
    def loss(kernel, x):
        return (jaxcnn.conv(x, kernel, strides=2) ** 2).sum()

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))
    shapes = (3, 3, 24, 32), (4, 1, 16, 16, 24)
    for module in on_cpu(gradients, shapes):
        batched, _ = products(module)
        assert batched > 0
        assert set(batch_groups(module)) <= {1}
        assert len(convolutions(module)) <= 1, "the forward pass alone, of all examples at once"
