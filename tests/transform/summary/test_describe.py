"""Tests of the row of one convolution or pool in a summary: kind, cost, method."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn import accelerate, summarize
from support import architectures


def shape(*sizes, dtype=np.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_costs_are_those_of_conv_cost():
    options = {"strides": (2, 1), "padding": ((2, 1), (0, 1)), "kernel_dilation": (1, 2), "feature_group_count": 2}
    sizes, kernel = (2, 9, 8, 4), (3, 2, 2, 6)
    expected = jaxcnn.conv_cost(sizes, kernel, **options)
    summary = summarize(lambda x, k: jaxcnn.conv(x, k, **options), shape(*sizes), shape(*kernel))
    assert summary.total == expected
    (row,) = summary.rows
    assert (row.kernel, row.strides, row.padding, row.dilation, row.groups) == (
        (3, 2),
        (2, 1),
        ((2, 1), (0, 1)),
        (1, 2),
        2,
    )
    pooled = summarize(lambda x: jaxcnn.max_pool(x, 3, strides=2), shape(*sizes))
    assert pooled.total == jaxcnn.pool_cost(sizes, 3, strides=2)


def test_layouts_keep_the_functions_own_shapes():
    def f(x, kernel):
        return jaxcnn.conv(x, kernel, layout="NCHW")

    for g in (f, lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME")):
        (row,) = summarize(g, shape(1, 3, 8, 9), shape(5, 3, 3, 3)).rows
        assert row.cost.macs == 8 * 9 * 9 * 3 * 5
        assert row.receptive_field.size == (3, 3)
    assert (row.input_shape, row.output_shape) == ((1, 3, 8, 9), (1, 5, 8, 9))


def training_loss(kernel, x):
    y = architectures.conv(lambda _: kernel, x, 4, 3, 2)
    return jnp.sum(architectures.max_pool(y, 3, 2) ** 2)


def test_gradients_and_accelerated_functions():
    gradient = jax.grad(training_loss, (0, 1))
    arguments = shape(3, 3, 4, 4), shape(1, 17, 17, 4)
    plain, fast = summarize(gradient, *arguments), summarize(accelerate(gradient), *arguments)
    kinds = ["conv", "max pool", "max pool gradient", "kernel gradient", "transposed conv"]
    assert [row.kind for row in plain.rows] == [row.kind for row in fast.rows] == kinds
    for a, b in zip(plain.rows, fast.rows, strict=True):
        assert (a.cost.macs, a.cost.macs_valid, a.cost.flops) == (b.cost.macs, b.cost.macs_valid, b.cost.flops)
        assert (a.method, a.reason) == (b.method, b.reason)
    assert len({row.cost.macs for row in plain.rows if "pool" not in row.kind}) == 1  # each costs what forward costs


@pytest.mark.without_native
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(
    ("dilation", "padding"), [((2, 2), ((1, 1), (1, 1))), ((1, 1), ((-1, 0), (0, 2))), ((2, 1), ((-1, 3), (0, 2)))]
)
def test_kernel_gradients_in_groups_of_a_dilated_or_cropped_input_are_counted(groups, dilation, padding):
    def f(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            padding,
            lhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    x, kernel = jnp.ones((2, 9, 8, 4)), jnp.ones((3, 3, 4 // groups, 2 * groups))
    (forward,) = summarize(f, x, kernel).rows
    rows = summarize(jax.grad(lambda x, kernel: jnp.sum(f(x, kernel) ** 2), (0, 1)), x, kernel).rows
    (gradient,) = (row for row in rows if row.kind == "kernel gradient")
    assert (gradient.cost.macs, gradient.cost.macs_valid) == (forward.cost.macs, forward.cost.macs_valid)
    # Of an input that is cropped first it is computed as any other; of a dilated one lax alone computes it.
    is_direct = min(map(min, padding)) >= 0
    assert (gradient.cost.params, gradient.method == "direct", gradient.output_shape) == (0, is_direct, kernel.shape)
    assert len(rows) == 3


@pytest.mark.parametrize("layout", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")])
@pytest.mark.parametrize(("size", "padding"), [(5, "VALID"), (2, "SAME")])
def test_a_window_larger_than_its_result_is_no_gradient(layout, size, padding):
    shapes = {"NHWC": (2, size, size, 4), "NCHW": (2, 4, size, size), "HWIO": (5, 5, 4, 8), "OIHW": (8, 4, 5, 5)}
    x, kernel = (jnp.ones(shapes[name]) for name in layout[:2])
    f = partial(lax.conv_general_dilated, window_strides=(1, 1), padding=padding, dimension_numbers=layout)
    (row,) = summarize(f, x, kernel).rows
    assert (row.kind, row.kernel, row.cost.params) == ("conv", (5, 5), 5 * 5 * 4 * 8)
    assert row.receptive_field.size == (5, 5)


def test_weights_of_a_stack_of_kernels():
    x, kernels = jnp.ones((5, 6, 6, 2)), jnp.ones((5, 3, 3, 2, 3))
    (row,) = summarize(jax.vmap(lambda x, kernel: jaxcnn.conv(x[None], kernel)), x, kernels).rows
    assert row.cost.params == kernels.size


def test_a_convolution_of_symbolic_shape_is_noted():
    (batch,) = jax.export.symbolic_shape("b")
    summary = summarize(
        lambda x: jaxcnn.conv(x, jnp.ones((3, 3, 2, 3))), jax.ShapeDtypeStruct((batch, 6, 6, 2), np.float32)
    )
    assert summary.rows == ()
    (note,) = summary.notes
    assert note.startswith("a convolution of symbolic shape at ")
    assert note.endswith("is not counted")


@pytest.mark.without_native
def test_methods_and_platforms():
    def f(x, kernel):
        return jaxcnn.conv(x, kernel, feature_group_count=8)

    arguments = shape(1, 16, 16, 8), shape(3, 3, 1, 8)
    assert summarize(f, *arguments).rows[0].method != "direct"
    row = summarize(f, *arguments, platform="gpu").rows[0]
    assert (row.method, row.reason) == ("direct", "the platform's own convolution is used on GPU and TPU")
    row = summarize(accelerate(f, method="matmul"), *arguments).rows[0]
    assert (row.method, row.reason) == ("matmul", "asked for")
    row = summarize(lambda x, k: lax.conv(x, k, (1, 1), "SAME"), *(shape(1, 2, 5, 5, dtype=np.complex64),) * 2).rows[0]
    assert (row.method, row.reason) == ("direct", "left to XLA: only it takes these operands")
