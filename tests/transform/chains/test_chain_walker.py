"""Each way from a parameter to a convolution on which `with_chains` carries a chain, beside the dense kernel's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.chains.with_chains import apply_with_chains
from support import chains
from support.arrays import jax_normal
from support.chains import (
    DEPTHWISE,
    GROUPED,
    MULTIPLIED,
    SEPARABLE,
    SQUARE,
    STACKED,
    X,
    Y,
    assert_chained,
    chain,
    conv,
    dense,
    in_order,
)

pytestmark = pytest.mark.leaks

stack = partial(dense, stacks=1)
FEATURES = jax_normal((6,), 3) + 2


# Convolutions.


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [
        ((2, 3), "VALID", (1, 1)),
        ((2, 2), ((1, 2), (3, 0)), (1, 3)),
        pytest.param((1, 1), "SAME", (1, 1), marks=pytest.mark.slow),
        pytest.param((3, 1), "SAME", (2, 1), marks=pytest.mark.slow),
    ],
)
def test_options_of_a_convolution(strides, padding, dilation):
    assert_chained(lambda w, x: conv(x, w, strides, padding, rhs_dilation=dilation), SEPARABLE, X, gradients=True)
    assert_chained(
        lambda w, x: jaxcnn.conv(x, w, strides=strides, padding=padding, kernel_dilation=dilation), SEPARABLE, X
    )


def test_negative_padding():
    # XLA on the CPU reads past the end of the image here in jax 0.10.2, so the oracle crops.
    def f(w, x):
        return conv(x, w, (2, 3), ((-1, 2), (0, -1)))

    expected = conv(X[:, 1:, :-1], SEPARABLE.dense(), (2, 3), ((0, 2), (0, 0)))
    np.testing.assert_allclose(jaxcnn.with_chains(f)(SEPARABLE, X), expected, atol=1e-5)


def test_input_dilation_and_precision():
    assert_chained(lambda w, x: conv(x, w, 2, ((1, 0), (2, 3)), lhs_dilation=(3, 2), precision="highest"), SEPARABLE, X)


def test_an_empty_result():
    assert_chained(lambda w, x: conv(x, w, padding="VALID"), SEPARABLE, X[:, :2])
    assert_chained(lambda w, x: conv(x, w, padding="VALID"), SEPARABLE, X[:0])


@pytest.mark.parametrize("order", ["HWIO", "OIHW"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_orders_and_ranks(order, rank):
    shapes = [(*(3 if axis == link else 1 for axis in range(rank)), 4, 4) for link in range(rank)]
    shapes[-1] = (*shapes[-1][:-1], 5)
    numbers = chains.LAYOUTS[rank]
    channels_first = (*("NC" + "DHW"[3 - rank :],), "OI" + "DHW"[3 - rank :], "NC" + "DHW"[3 - rank :])
    links, x = chain(*shapes), jax_normal((2, *(5, 6, 4)[:rank], 4), 9)
    if order == "HWIO":
        assert_chained(lambda w, x: conv(x, w, 2, dimension_numbers=numbers), links, x)
    else:
        assert_chained(
            lambda w, x: conv(x, w, 2, dimension_numbers=channels_first),
            links,
            jnp.moveaxis(x, -1, 1),
            parameter=lambda links: in_order(links.dense(), "OIHW"),
        )


@pytest.mark.parametrize(
    ("links", "groups", "order"),
    [
        (GROUPED, 2, "OIHW"),
        (DEPTHWISE, 4, "HWIO"),
        (MULTIPLIED, 4, "HWCM"),
        *(
            pytest.param(links, groups, order, marks=pytest.mark.slow)
            for links, groups, orders in (
                (GROUPED, 2, ("HWIO",)),
                (DEPTHWISE, 4, ("OIHW", "HWCM")),
                (MULTIPLIED, 4, ("HWIO", "OIHW")),
            )
            for order in orders
        ),
    ],
)
def test_groups(links, groups, order):
    def f(w, x):
        if order == "OIHW":
            return conv(x, w, dimension_numbers=("NHWC", "OIHW", "NHWC"), feature_group_count=groups)
        return conv(x, w.reshape(*w.shape[:2], -1, links.shape[-1]), 2, feature_group_count=groups)

    def parameter(links):
        return in_order(links.dense(), order, groups)

    assert_chained(f, links, X, parameter=parameter)
    # The derivative by x exchanges the features of each group.
    assert_chained(lambda w, x: jax.grad(lambda x: jnp.sin(f(w, x)).sum())(x), links, X, parameter=parameter)


def test_a_depthwise_convolution_of_jaxcnn():
    def parameter(links):
        return in_order(links.dense(), "HWCM", 4)

    assert_chained(lambda w, x: jaxcnn.depthwise_conv(x, w, strides=2), MULTIPLIED, X, parameter=parameter)


@pytest.mark.parametrize(
    ("padding", "strides"),
    [
        ("SAME", (2, 3)),
        ("VALID", (1, 1)),
        pytest.param("SAME", (1, 1), marks=pytest.mark.slow),
        pytest.param("VALID", (2, 3), marks=pytest.mark.slow),
    ],
)
def test_transposed_convolutions(padding, strides):
    transpose = partial(lax.conv_transpose, strides=strides, padding=padding, dimension_numbers=chains.LAYOUTS[2])

    def f(w, x, y):
        return transpose(x, w), transpose(y, w, transpose_kernel=True), jaxcnn.conv_transpose(y, w, strides=strides)

    assert_chained(f, SEPARABLE, X, Y)


def test_a_transposed_convolution_in_groups():
    y = jax_normal((2, 5, 4, 8), 9)
    assert_chained(lambda w, y: jaxcnn.conv_transpose(y, w, strides=2, feature_group_count=2), GROUPED, y)


@pytest.mark.parametrize("convolve", [conv, pytest.param(jaxcnn.conv, marks=pytest.mark.slow)])
def test_the_derivative_by_x_inside(convolve):
    def f(w, x):
        return jax.grad(lambda x: jnp.sin(convolve(x, w, strides=(2, 3))).sum())(x)

    assert_chained(f, SEPARABLE, X, gradients=True)


# Moves.


@pytest.mark.parametrize(
    "move",
    [
        lambda w: w[::-1],
        lambda w: w[:, ::-1],
        lambda w: jnp.flip(w, (0, 1)),
        lambda w: w.transpose(3, 2, 0, 1).transpose(2, 3, 1, 0),
        lambda w: w.reshape(w.shape[0], -1, 2, 3).reshape(w.shape),
        lambda w: w[None, ..., None][0, ..., 0],
        lambda w: jnp.expand_dims(w, (0, 3)).squeeze((0, 3)),
        lambda w: jnp.array(w),
        lambda w: -w,
        lambda w: w * 0.5,
        lambda w: jnp.float32(3) * w / 7,
        lambda w: w * FEATURES.reshape(1, 1, 1, 6),
        lambda w: w / jnp.broadcast_to(FEATURES, w.shape),
        lambda w: (w.transpose(3, 0, 1, 2) * FEATURES.reshape(6, 1, 1, 1)).transpose(1, 2, 3, 0),
        lambda w: (w.reshape(-1, 2, 3) * FEATURES.reshape(1, 2, 3)).reshape(w.shape),
        lambda w: w[::-1].reshape(-1, 6).reshape(w.shape) * FEATURES.reshape(1, 1, 1, 6),
        lambda w: lax.rev(lax.rev(w, (3,)) * FEATURES.reshape(1, 1, 1, 6), (3,)),
    ],
)
def test_a_move(move):
    assert_chained(lambda w, x: conv(x, move(w), 2), SEPARABLE, X)


def test_a_factor_that_is_an_argument_gets_its_derivative():
    assert_chained(lambda w, x, scale: conv(x, w * scale.reshape(1, 1, 1, 6)), SEPARABLE, X, FEATURES, gradients=True)
    assert_chained(lambda w, x, scale: conv(x, w * scale), SEPARABLE, X, jnp.float32(0.3), gradients=True)


def test_a_stopped_gradient():
    assert_chained(lambda w, x: jax.grad(lambda x: conv(x, lax.stop_gradient(w)).sum())(x), SEPARABLE, X)
    gradient = jax.grad(lambda w: jaxcnn.with_chains(lambda w: conv(X, lax.stop_gradient(w)).sum())(w))(SEPARABLE)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_casts(dtype):
    assert_chained(lambda w, x: conv(x.astype(dtype), w.astype(dtype)), SEPARABLE, X, tolerance=1e-2)
    narrow = jax.tree.map(lambda link: link.astype(dtype), SEPARABLE)
    assert_chained(lambda w, x: conv(x, w.astype(np.float32)), narrow, X, tolerance=1e-2)
    assert_chained(lambda w, x: conv(x, w, preferred_element_type=np.float32), narrow, X.astype(dtype), tolerance=1e-2)


def test_mixed_dtypes_from_outputs_to_inputs():
    def f(w, x):
        wide = partial(jaxcnn.conv, preferred_element_type=np.float32)
        return jax.grad(lambda x: jnp.sin(wide(x, w)).sum())(x)

    narrow = jax.tree.map(lambda link: link.astype(jnp.bfloat16), SEPARABLE)
    assert_chained(f, narrow, X.astype(jnp.bfloat16), tolerance=1e-2)


# Stacks and loops.


def stacked_scan(ws, x, biases, reverse=False):
    def step(x, layer):
        w, bias = layer
        y = jax.nn.relu(
            conv(x, w) + jnp.broadcast_to(bias, x.shape)
        )  # what is broadcast must not outlive the body's trace
        return y, y.mean()

    return lax.scan(step, x, (ws, biases), reverse=reverse)


BIASES = jax_normal((3, 4), 5)


@pytest.mark.parametrize("reverse", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stacked_kernels_in_scan(reverse):
    assert_chained(partial(stacked_scan, reverse=reverse), STACKED, X, BIASES, parameter=stack, gradients=True)


def test_a_stack_of_one():
    links = chain((1, 3, 1, 4, 5), (1, 1, 2, 5, 4))

    def f(ws, x):
        y, _ = stacked_scan(ws, x, BIASES[:1])
        return conv(conv(y, ws[0]), ws[jnp.int32(0)])

    assert_chained(f, links, X, parameter=stack)


@pytest.mark.parametrize("index", [1, -1, 7, -9])
def test_an_index(index):
    assert_chained(lambda ws, x, i: conv(x, ws[i]), STACKED, X, jnp.int32(index), parameter=stack)
    if -3 <= index < 3:
        assert_chained(lambda ws, x: conv(x, ws[index]), STACKED, X, parameter=stack)


def test_an_index_that_is_clamped():
    def f(ws, x, i):
        return conv(x, lax.dynamic_slice(ws, (i, 0, 0, 0, 0), (1, 3, 2, 4, 4), allow_negative_indices=False)[0])

    assert_chained(f, STACKED, X, jnp.int32(-2), parameter=stack)


@pytest.mark.parametrize("steps", [3, "traced"])
def test_the_index_of_a_loop(steps):
    def f(ws, x, n):
        return lax.fori_loop(0, n if steps == "traced" else steps, lambda i, x: jnp.tanh(conv(x, ws[i])), x)

    assert_chained(f, STACKED, X, jnp.int32(3), parameter=stack)


def test_scans_in_scans():
    links = chain((2, 3, 3, 1, 4, 5), (2, 3, 1, 2, 5, 4))
    kernel = ((2, 1, 3),), ((3, 1, 2),)
    placement = Placement((2, 3, 3, 2, 4, 4), kernel, ((4, 1, 4),), ((5, 1, 4),), (0, 1))

    def f(ws, x):
        def outer(x, ws):
            return lax.scan(lambda x, w: (jnp.tanh(conv(x, w)), None), x, ws)

        return lax.scan(outer, x, ws)[0]

    actual = apply_with_chains(f, {"argument 0": placement})(links, X)
    np.testing.assert_allclose(actual, f(dense(links, 2), X), atol=1e-5)
    dense_again = apply_with_chains(lambda ws: ws, {"argument 0": placement}, materialize=True)
    np.testing.assert_array_equal(dense_again(links).kernels[0], links.kernels[0])
    turned = apply_with_chains(lambda ws: ws.transpose(0, 1, 5, 4, 2, 3), {"argument 0": placement}, materialize=True)
    np.testing.assert_allclose(turned(links), dense(links, 2).transpose(0, 1, 5, 4, 2, 3), atol=1e-6)


def test_a_chain_that_a_loop_carries_or_closes_over():
    def scanned(w, x):
        def step(carry, _):
            x, w, n = carry
            return (jnp.tanh(conv(x, w)), -w, n + 1), n

        return lax.scan(step, (x, w, 0), None, length=2)[0][0]

    def closed_over(w, x):
        return lax.scan(lambda carry, _: ((conv(carry[0], w), carry[1] + 1.0), carry[1]), (x, 0.0), None, length=2)

    def while_loop(w, x):
        return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, conv(s[1], s[2]), s[2]), (0, x, w))[:2]

    assert_chained(scanned, SQUARE, X)
    assert_chained(closed_over, SQUARE, X)
    assert_chained(while_loop, SQUARE, X)


# Boundaries.


@jax.custom_jvp
def with_a_jvp(x, w):
    return conv(x, w)


with_a_jvp.defjvp(lambda primals, tangents: jax.jvp(conv, primals, tangents))


@jax.custom_vjp
def with_a_vjp(x, w):
    return conv(x, w)


with_a_vjp.defvjp(lambda x, w: (with_a_vjp(x, w), (x, w)), lambda saved, g: jax.vjp(conv, *saved)[1](g))


@pytest.mark.parametrize(
    "boundary",
    [
        jax.jit(lambda x, w: jax.jit(conv)(x, w[::-1])),
        jax.checkpoint(conv),
        pytest.param(jax.jit(conv), marks=pytest.mark.slow),
        jax.checkpoint(conv, policy=jax.checkpoint_policies.nothing_saveable, prevent_cse=False),
        with_a_jvp,
        with_a_vjp,
        lambda x, w: lax.cond(x.sum() > 0, conv, lambda x, w: conv(x, -w), x, w),
        lambda x, w: lax.switch(jnp.int32(5), [lambda x, w: (x, 0.0), lambda x, w: (conv(x, w), 1.0)], x, w),
        lambda x, w: jax.vmap(lambda x: conv(x[None], w)[0])(x),
    ],
)
def test_a_boundary(boundary):
    assert_chained(lambda w, x: boundary(x, w), SQUARE, X, gradients=True)


@pytest.mark.parametrize(
    "boundary", [jax.checkpoint(conv), *(pytest.param(f, marks=pytest.mark.slow) for f in (jax.jit(conv), with_a_jvp))]
)
def test_the_derivative_by_x_inside_of_a_boundary(boundary):
    assert_chained(lambda w, x: jax.grad(lambda x: jnp.sin(boundary(x, w)).sum())(x), SQUARE, X)
