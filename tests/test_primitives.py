"""Every public function under JAX's transformations: derivatives, vmap, scan, remat, export, meshes, compilation."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxcnn
from jaxcnn import native, primitives
from jaxcnn.lowering.methods import native as native_method
from support import cases
from support.arrays import assert_close, normal
from support.cases import CALLS
from support.methods import METHODS, by_each_method, roles, supporting, tolerance

pytestmark = pytest.mark.leaks

NAMES = list(CALLS)
FLOATING = [name for name in NAMES if name not in ("max_pool_with_indices", "max_unpool")]


def _call(name):
    function, arrays = CALLS[name]
    return function, tuple(map(cases.as_jax, arrays))


# Derivatives.

CONVOLUTIONS = {
    "plain": ({}, (2, 5, 4, 2), (3, 3, 2, 3)),
    "strides": ({"strides": (2, 3)}, (2, 6, 5, 2), (3, 2, 2, 3)),
    "groups": ({"feature_group_count": 2, "padding": "VALID"}, (2, 5, 4, 4), (3, 2, 2, 6)),
    "depthwise": ({"feature_group_count": 3}, (2, 5, 4, 3), (3, 3, 1, 6)),
    "kernel_dilation": ({"kernel_dilation": (2, 1), "strides": 2}, (2, 6, 5, 2), (3, 2, 2, 3)),
    "input_dilation": ({"input_dilation": (2, 3), "strides": 2}, (1, 4, 3, 2), (3, 2, 2, 3)),
    "everything": (
        {"strides": 2, "input_dilation": 3, "kernel_dilation": 2, "padding": ((3, 1),), "feature_group_count": 2},
        (2, 5, 4),
        (3, 2, 2),
    ),
    "cropped": ({"padding": ((-1, 2), (1, -2))}, (1, 6, 6, 2), (2, 3, 2, 2)),
    "reflect": ({"padding_mode": "reflect", "padding": 2}, (1, 5, 4, 2), (3, 3, 2, 2)),
    "replicate": ({"padding_mode": "replicate", "strides": 2}, (1, 5, 4, 2), (3, 3, 2, 2)),
    "circular": ({"padding_mode": "circular", "kernel_dilation": 2}, (1, 5, 4, 2), (3, 3, 2, 2)),
    "three_dimensions": ({"strides": (1, 2, 1)}, (1, 3, 4, 3, 2), (2, 3, 2, 2, 2)),
    "window_of_one": ({"strides": 2}, (1, 5, 4, 3), (1, 1, 3, 2)),
}


# A convolution is bilinear: of the others the adjoint identities say as much.
CHECKED = ["plain", "depthwise", "everything"]


def _check_all(functions, arguments, order=2):
    """Derivatives up to an order in both modes, of many functions as one: compilation is what takes the time."""

    @jax.jit
    def every(arguments):
        return {name: function(*arguments[name]) for name, function in functions.items()}

    check_grads(every, (arguments,), order=order, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


def _supports(method, options, x_shape, kernel_shape):
    shapes = (jax.ShapeDtypeStruct(x_shape, np.float64), jax.ShapeDtypeStruct(kernel_shape, np.float64))
    return method in supporting(jaxcnn.conv, *shapes, **options)


# Each method has a program for each role; the rules of derivation, which second derivatives test, are the same for all.
# `native` computes no float64: tests/lowering/test_native.py checks its derivatives.
FORCED = [method for method in METHODS[1:] if method != "native"]
# The compiled kernels are of float32: their derivatives have tests of their own.
OF_FLOAT64 = [method for method in FORCED if method not in ("direct", "native")]
ORDERS = [("direct", 2), *((method, 1) for method in OF_FLOAT64)]
ORDERS += [pytest.param(method, 2, marks=pytest.mark.slow) for method in OF_FLOAT64]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "order"), ORDERS)
def test_derivatives_of_conv(rng, method, order):
    chosen = {name: CONVOLUTIONS[name] for name in CHECKED if _supports(method, *CONVOLUTIONS[name])}
    _check_all(
        {name: partial(jaxcnn.conv, method=method, **options) for name, (options, _, _) in chosen.items()},
        {name: [normal(shape, rng, dtype=np.float64) for shape in shapes] for name, (_, *shapes) in chosen.items()},
        order,
    )


TRANSPOSED = {
    "groups": (
        {"strides": 2, "padding": 1, "output_padding": 1, "feature_group_count": 2},
        (2, 3, 4, 4),
        (3, 2, 2, 4),
    ),
    "same": ({"strides": (1, 2), "kernel_dilation": (2, 1)}, (1, 3, 4, 3), (2, 3, 2, 3)),
    "cropped": ({"padding": ((-1, 1),), "kernel_dilation": 3, "output_padding": 2}, (2, 4, 3), (3, 2, 3)),
}


@pytest.mark.usefixtures("x64")
def test_derivatives_of_conv_transpose_of_chains_and_of_padding(rng):
    functions = {name: partial(jaxcnn.conv_transpose, **options) for name, (options, _, _) in TRANSPOSED.items()}
    arguments = {name: [normal(s, rng, dtype=np.float64) for s in shapes] for name, (_, *shapes) in TRANSPOSED.items()}
    for name in ("cropped", "reflect"):  # done outside the primitive, whatever the method
        options, *shapes = CONVOLUTIONS[name]
        functions[name] = partial(jaxcnn.conv, **options)
        arguments[name] = [normal(shape, rng, dtype=np.float64) for shape in shapes]
    for function in (jaxcnn.conv, jaxcnn.conv_transpose):

        def apply(x, a, b, function=function):
            return function(x, jaxcnn.KernelChain((a, b), (2, 2)), strides=(1, 2))

        name = f"chain_{function.__name__}"
        functions[name] = apply
        shapes = ((1, 5, 4, 4), (3, 1, 2, 4), (1, 2, 2, 4))
        arguments[name] = [normal(shape, rng, dtype=np.float64) for shape in shapes]
    _check_all(functions, arguments)


POOLS = {
    "max_dilated": (jaxcnn.max_pool, {"window_dilation": (2, 1), "padding": 1, "strides": (1, 2)}),
    "max_ceil": (jaxcnn.max_pool, {"strides": 2, "ceil_mode": True, "padding": ((-1, 0), (1, 1))}),
    "min_dilated": (jaxcnn.min_pool, {"window_dilation": 2, "padding": "SAME"}),
    "sum": (jaxcnn.sum_pool, {"window_dilation": (1, 2), "padding": "SAME", "strides": 2}),
    "avg": (jaxcnn.avg_pool, {"padding": 1, "count_include_pad": False}),
    "avg_ceil": (jaxcnn.avg_pool, {"strides": 2, "padding": 1, "ceil_mode": True}),
    "l2": (jaxcnn.lp_pool, {"strides": 2, "padding": 1}),
    "l3": (jaxcnn.lp_pool, {"p": 3, "window_dilation": 2}),
    "l2.5": (jaxcnn.lp_pool, {"p": 2.5, "ceil_mode": True, "strides": 3}),
    "adaptive_avg": (jaxcnn.adaptive_avg_pool, {}),
    "adaptive_max": (jaxcnn.adaptive_max_pool, {}),
    "global_max": (lambda x, _: jaxcnn.global_max_pool(x), {}),
}


def _distinct(rng, *shape):
    """No two values nearer than finite differences reach, none near 0."""
    size = math.prod(shape)
    return (rng.permutation(size).astype(np.float64).reshape(shape) + 1) / size * rng.choice([-1.0, 1.0], shape)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_pools(rng):
    functions = {name: partial(_pool, function, options) for name, (function, options) in POOLS.items()}
    arguments = {name: [_distinct(rng, 2, 6, 5, 2)] for name in functions}
    values, indices = jaxcnn.max_pool_with_indices(_distinct(rng, 2, 6, 5, 2), 2, strides=2)
    functions["unpool"] = lambda values: jaxcnn.max_unpool(values, indices, (6, 5))
    arguments["unpool"] = [values]
    _check_all(functions, arguments)


def _pool(function, options, x):
    return function(x, (3, 2), **options)


@pytest.mark.parametrize("name", FLOATING)
def test_forward_and_reverse_mode_agree(name):
    function, arrays = _call(name)

    @jax.jit
    def both(*arrays):
        tangents = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype).reshape(a.shape)), arrays)
        y, pushed = jax.jvp(function, arrays, tangents)
        cotangent = jnp.sin(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))
        pulled = jax.vjp(function, *arrays)[1](cotangent)
        inner = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(tangents), jax.tree.leaves(pulled), strict=True))
        return jnp.vdot(cotangent, pushed), inner, y, pushed

    left, right, y, pushed = both(*arrays)
    size = float(jnp.linalg.norm(pushed.ravel())) * math.sqrt(y.size)
    assert abs(float(left - right)) < 1e-5 * size


@pytest.mark.parametrize("name", ["conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_max_pool"])
def test_jacobians_agree(rng, name):
    function, arrays = _call(name)
    if name == "max_pool":
        function = partial(jaxcnn.max_pool, window_shape=2, window_dilation=2)
    x, *rest = arrays
    small = x[:1, :5, :4]
    apply = lambda x: function(x, *rest)  # noqa: E731
    forward, reverse = jax.jit(lambda x: (jax.jacfwd(apply)(x), jax.jacrev(apply)(x)))(small)
    assert forward.shape == (*apply(small).shape, *small.shape)
    assert_close(forward, reverse, 4e-6)


@pytest.mark.parametrize(
    "function", [jaxcnn.max_pool, jaxcnn.min_pool, jaxcnn.adaptive_max_pool], ids=lambda f: f.__name__
)
def test_second_derivatives_of_extrema_are_zero(rng, function):
    x, v = normal((2, 1, 5, 6, 2), rng)
    pool = lambda x: function(x, 2)  # noqa: E731
    hvp = jax.jvp(jax.grad(lambda x: pool(x).sum()), (x,), (v,))[1]
    assert not np.asarray(hvp).any()
    reverse = jax.grad(lambda x: jnp.vdot(jax.grad(lambda x: pool(x).sum())(x), v))(x)
    assert not np.asarray(reverse).any()
    # Through the square of a pool, the second derivative is that of the square.
    square = jax.jvp(jax.grad(lambda x: (pool(x) ** 2).sum() / 2), (x,), (v,))[1]
    expected = jax.vjp(pool, x)[1](jax.jvp(pool, (x,), (v,))[1])[0]
    assert_close(square, expected)


def test_the_gradient_of_a_constant_goes_to_the_first_pixel():
    # Overlapping windows accumulate.
    x = np.zeros((1, 4, 4, 1), np.float32)
    for function in (jaxcnn.max_pool, jaxcnn.min_pool):
        gradient = jax.grad(lambda x, f=function: f(x, 2, strides=2).sum())(x)
        np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]] * 2)
        gradient = jax.grad(lambda x, f=function: f(x, 3, padding=1).sum())(x)
        np.testing.assert_array_equal(gradient[0, :, :, 0], [[4, 2, 2, 0], [2, 1, 1, 0], [2, 1, 1, 0], [0, 0, 0, 0]])
    spike = x.copy()
    spike[0, 1, 1] = 5
    gradient = jax.grad(lambda x: jaxcnn.max_pool(x, 3).sum())(spike)
    assert gradient[0, 1, 1, 0] == 4
    assert jax.grad(lambda x: jaxcnn.global_max_pool(x).sum())(x)[0, 0, 0, 0] == 1
    gradient = jax.grad(lambda x: jaxcnn.max_pool_with_indices(x, 3, padding=1)[0].sum())(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[4, 2, 2, 0], [2, 1, 1, 0], [2, 1, 1, 0], [0, 0, 0, 0]])


def test_the_gradient_of_a_window_with_nan_goes_to_the_first_nan():
    x = np.array([1, np.nan, 3, np.nan], np.float32).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jaxcnn.max_pool(x, 2).sum())(x)
    np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(np.float16, marks=pytest.mark.slow)])
def test_gradients_of_16_bit_floats(rng, dtype):
    x, kernel = jnp.asarray(normal((2, 6, 6, 4), rng), dtype), jnp.asarray(normal((3, 3, 2, 4), rng), dtype)
    options = {"strides": 2, "feature_group_count": 2}

    def loss(x, kernel, **more):
        y = jaxcnn.conv(x, kernel, **options, **more)
        return (jaxcnn.avg_pool(jaxcnn.max_pool(y, 2), 2).astype(np.float32) ** 2).sum()

    wide = jax.grad(loss, (0, 1))(x.astype(np.float32), kernel.astype(np.float32))
    eps = float(jnp.finfo(dtype).eps)
    for more in ({}, {"preferred_element_type": np.float32}):
        for gradient, exact, primal in zip(
            jax.grad(partial(loss, **more), (0, 1))(x, kernel), wide, (x, kernel), strict=True
        ):
            assert gradient.dtype == primal.dtype
            assert_close(np.asarray(gradient, np.float32), exact, 16 * eps)
    for function in (jaxcnn.sum_pool, jaxcnn.lp_pool, jaxcnn.conv_transpose):
        args = (kernel,) if function is jaxcnn.conv_transpose else (2,)
        more = {"feature_group_count": 2} if args[0] is kernel else {}
        gradient = jax.grad(lambda x, f=function, a=args, m=more: f(x, *a, **m).astype(np.float32).sum())(x)
        assert gradient.dtype == dtype


def test_the_kernel_gradient_of_many_pixels_accumulates_in_float32():
    x, kernel = jnp.ones((4, 32, 32, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    for method in METHODS:
        try:
            gradient = jax.grad(lambda k, m=method: jaxcnn.conv(x, k, method=m).astype(np.float32).sum())(kernel)
        except ValueError as error:
            assert "does not support" in str(error)  # noqa: PT017
            continue
        assert float(gradient[0, 0, 0, 0]) == 4096, method


def test_indices_have_no_derivative(rng):
    x = normal((1, 4, 4, 1), rng)
    y, tangent = jax.jvp(lambda x: jaxcnn.max_pool_with_indices(x, 2), (x,), (x,))
    assert tangent[1].dtype == jax.dtypes.float0
    np.testing.assert_array_equal(tangent[0], y[0])


# vmap. The reference is the function applied to one example after the other.


def _assert_like_a_loop(function, in_axes, *args, relative=4e-6):
    mapped = jax.jit(jax.vmap(function, in_axes))(*args)
    size = next(np.shape(a)[axis] for a, axis in zip(args, in_axes, strict=True) if axis is not None)
    one = jax.jit(function)
    for index in range(size):
        example = (a if axis is None else jnp.take(a, index, axis) for a, axis in zip(args, in_axes, strict=True))
        expected = one(*example)
        jax.tree.map(lambda m, e: assert_close(m[index], e, relative), mapped, expected)  # noqa: B023


VMAPPED = ["strides", "groups", "depthwise", "everything"]


@pytest.mark.parametrize("name", VMAPPED)
@pytest.mark.parametrize("in_axes", [(1, -1), (None, 2), (-2, None)], ids=str)
def test_vmap_of_conv_and_of_its_gradients(rng, name, in_axes):
    options, x_shape, kernel_shape = CONVOLUTIONS[name]

    def with_axis(shape, axis):
        if axis is None:
            return shape
        at = axis % (len(shape) + 1)
        return (*shape[:at], 2, *shape[at:])

    def everything(x, kernel):
        y = jaxcnn.conv(x, kernel, **options)
        gradients = jax.grad(lambda x, k: (jaxcnn.conv(x, k, **options) ** 2).sum(), (0, 1))(x, kernel)
        return y, gradients

    x = normal(with_axis(x_shape, in_axes[0]), rng)
    kernel = normal(with_axis(kernel_shape, in_axes[1]), rng)
    _assert_like_a_loop(everything, in_axes, x, kernel)


def test_nested_vmap(rng):
    options, x_shape, kernel_shape = CONVOLUTIONS["groups"]
    x, kernel = normal((2, 3, *x_shape), rng), normal((2, 3, *kernel_shape), rng)

    def gradients(x, kernel):
        loss = lambda x, k: (jaxcnn.conv(x, k, **options) ** 2).sum()  # noqa: E731
        return jaxcnn.conv(x, kernel, **options), jax.grad(loss, (0, 1))(x, kernel)

    nestings = {
        "both": (jax.vmap(jax.vmap(gradients)), lambda i, j: (x[i, j], kernel[i, j])),
        "crossed": (jax.vmap(jax.vmap(gradients, (0, None)), (None, 0)), lambda i, j: (x[0, j], kernel[i, 0])),
        "kernel": (jax.vmap(jax.vmap(gradients, (None, 0)), (0, 0)), lambda i, j: (x[i, 0], kernel[i, j])),
    }
    arguments = {"both": (x, kernel), "crossed": (x[0], kernel[:, 0]), "kernel": (x[:, 0], kernel)}
    one = jax.jit(gradients)
    for nesting, (mapped, example) in nestings.items():
        result = jax.jit(mapped)(*arguments[nesting])
        for i, j in np.ndindex(2, 3):
            jax.tree.map(lambda m, e: assert_close(m[i, j], e, 4e-6), result, one(*example(i, j)))  # noqa: B023


def test_per_example_gradients(rng):
    # Each example has a gradient of its own by the shared kernel.
    x, kernel = normal((4, 6, 6, 2), rng), normal((3, 3, 2, 3), rng)
    loss = lambda kernel, x: (jaxcnn.max_pool(jaxcnn.conv(x, kernel, strides=2), (2, 2)) ** 2).sum()  # noqa: E731
    mapped = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(kernel, x)
    for index in range(4):
        assert_close(mapped[index], jax.grad(loss)(kernel, x[index]), 4e-6)
    assert_close(mapped.sum(0), jax.grad(lambda k: sum(loss(k, x[i]) for i in range(4)))(kernel), 1e-5)


def test_out_axes_and_vmap_of_jvp(rng):
    x, kernel = normal((3, 5, 5, 2), rng), normal((3, 3, 2, 2, 3), rng)
    y = jax.vmap(jaxcnn.conv, (None, -1), out_axes=2)(x, kernel)
    for index in range(3):
        assert_close(y[:, :, index], jaxcnn.conv(x, kernel[..., index]), 4e-6)
    pushed = jax.vmap(lambda v: jax.jvp(lambda k: jaxcnn.conv(x, k), (kernel[..., 0],), (v,))[1], -1, 0)(kernel)
    assert_close(pushed[1], jaxcnn.conv(x, kernel[..., 1]), 4e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if len(CALLS[name][1]) == 1 or name == "max_unpool"])
def test_vmap_of_pools(name):
    function, arrays = _call(name)
    stacked = tuple(jnp.stack([a, jnp.flip(a)], axis=1) for a in arrays)
    _assert_like_a_loop(function, (1,) * len(stacked), *stacked, relative=2e-6)
    if name in ("max_pool", "avg_pool", "adaptive_max_pool"):
        gradient = jax.grad(lambda x: (function(x) ** 2).sum())
        _assert_like_a_loop(gradient, (1,), *stacked, relative=4e-6)


# Everything else.


@pytest.mark.parametrize("name", NAMES)
def test_eager_jit_and_disable_jit_agree(name):
    function, arrays = CALLS[name]
    eager = function(*arrays)  # NumPy arrays
    jitted = jax.jit(function)(*_call(name)[1])
    with jax.disable_jit():
        undone = function(*_call(name)[1])
    for a, b, c in zip(*map(jax.tree.leaves, (eager, jitted, undone)), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype == c.dtype
        assert not a.weak_type
        assert_close(a, b)
        assert_close(a, c)


class Variants(chex.TestCase):
    """The first results under chex's variants."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_variants(self):
        for name in ("conv", "depthwise_conv", "conv_transpose", "max_pool", "avg_pool"):
            function, arrays = CALLS[name]
            result = self.variant(function)(*arrays)
            chex.assert_trees_all_close(result, function(*arrays), rtol=1e-5, atol=1e-6)
            chex.assert_type(result, np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_an_eager_call_is_one_program_and_the_second_does_not_retrace(compilations, name):
    function, arrays = CALLS[name]
    compiled, traced = compilations
    jax.clear_caches()
    jax.block_until_ready(function(*arrays))
    assert len(compiled) == 1, compiled
    compiled.clear()
    traced.clear()
    other = jax.tree.map(lambda a: a + 1 if a.dtype == np.float32 else a, arrays)
    jax.block_until_ready(function(*other))
    assert compiled == []
    assert traced == []


@pytest.mark.parametrize("name", NAMES)
def test_jitted_callers_trace_once(name):
    function, arrays = _call(name)
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(lambda *args: function(*args), n=1))
    jitted(*arrays)
    jitted(*arrays)


@pytest.mark.parametrize("name", ["conv", "conv_chain", "conv_transpose", "max_pool", "avg_pool"])
def test_scan_and_remat(name):
    function, (x, *rest) = _call(name)
    images = jnp.stack([x, x + 1, 2 * x])

    def scanned(images, *rest):
        return jax.lax.scan(lambda total, x: (total + function(x, *rest).sum(), None), 0.0, images)[0]

    def unrolled(images, *rest):
        return sum(jax.checkpoint(function)(x, *rest).sum() for x in images)

    every = tuple(range(1 + len(rest)))
    left = jax.jit(jax.grad(scanned, every))(images, *rest)
    right = jax.jit(jax.grad(unrolled, every))(images, *rest)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), left, right)


def test_while_and_cond(rng):
    x, kernel = normal((1, 5, 5, 2), rng), normal((3, 3, 2, 2), rng) / 9
    looped = jax.lax.fori_loop(0, 3, lambda _, x: jaxcnn.conv(x, kernel), x)
    unrolled = jaxcnn.conv(jaxcnn.conv(jaxcnn.conv(x, kernel), kernel), kernel)
    assert_close(looped, unrolled, 1e-5)
    result = jax.lax.cond(True, lambda x: jaxcnn.max_pool(x, 2), lambda x: jaxcnn.avg_pool(x, 2), x)
    np.testing.assert_array_equal(result, jaxcnn.max_pool(x, 2))


@pytest.mark.parametrize("name", ["conv", "conv_reflect", "conv_chain", "extract_patches", "sum_pool", "avg_pool"])
def test_linear_transpose(rng, name):
    function, (x, *rest) = _call(name)
    y = function(x, *rest)
    cotangent = jnp.asarray(normal(y.shape, rng))
    (back,) = jax.linear_transpose(lambda x: function(x, *rest), x)(cotangent)
    assert float(jnp.vdot(cotangent, y)) == pytest.approx(float(jnp.vdot(back, x)), rel=1e-3, abs=1e-3)
    transposed = lambda y: jax.linear_transpose(lambda x: function(x, *rest), x)(y)[0]  # noqa: E731
    assert_close(jax.linear_transpose(transposed, y)(x)[0], y, 4e-6)


def test_derivatives_by_the_kernel_are_linear_too(rng):
    x, kernel = normal((1, 5, 5, 2), rng), normal((3, 3, 2, 3), rng)
    for method, y in by_each_method(jaxcnn.conv, x, kernel):
        apply = partial(jaxcnn.conv, method=method)
        (back,) = jax.linear_transpose(lambda k, f=apply: f(x, k), kernel)(y)
        assert float(np.vdot(y, y)) == pytest.approx(float(np.vdot(back, kernel)), rel=1e2 * tolerance(method))


# Export.


@pytest.mark.parametrize("name", NAMES)
def test_export_for_other_platforms(name):
    function, arrays = _call(name)
    if any(isinstance(a, jaxcnn.KernelChain) for a in arrays):  # a chain is a pytree that export does not know
        (x, chain), original = arrays, function
        function, arrays = (lambda x, *kernels: original(x, jaxcnn.KernelChain(kernels))), (x, *chain.kernels)
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    exported = jax.export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(*shapes)
    if importlib.util.find_spec("flatbuffers"):
        exported = jax.export.deserialize(exported.serialize())
    assert_close(jax.tree.leaves(exported.call(*arrays))[0], jax.tree.leaves(function(*arrays))[0])
    if name in ("conv", "conv_transpose", "max_pool", "avg_pool"):
        gradient = jax.grad(lambda *a: (function(*a) ** 2).sum())
        jax.export.export(jax.jit(gradient), platforms=("cpu", "cuda", "tpu"))(*shapes)


SYMBOLIC = {
    "conv": partial(jaxcnn.conv, kernel=normal((3, 3, 2, 3), np.random.default_rng(0)), strides=2),
    "conv_lower": partial(
        jaxcnn.conv, kernel=normal((2, 3, 2, 3), np.random.default_rng(0)), strides=(1, 3), padding="SAME_LOWER"
    ),
    "conv_dilated": partial(
        jaxcnn.conv,
        kernel=normal((3, 3, 1, 2), np.random.default_rng(0)),
        padding=1,
        kernel_dilation=2,
        feature_group_count=2,
    ),
    "conv_transpose": partial(jaxcnn.conv_transpose, kernel=normal((3, 3, 3, 2), np.random.default_rng(0)), strides=2),
    "max_pool": partial(jaxcnn.max_pool, window_shape=3, strides=2, padding="SAME"),
    "indices": lambda x: jaxcnn.max_pool_with_indices(x, 2, strides=2)[1].astype(np.float32),
    "sum_pool": partial(jaxcnn.sum_pool, window_shape=2, strides=2),
    "avg_pool": partial(jaxcnn.avg_pool, window_shape=3, strides=2, padding="SAME", count_include_pad=False),
    "avg_padded": partial(jaxcnn.avg_pool, window_shape=3, padding=1),
    "global_avg_pool": jaxcnn.global_avg_pool,
    "global_max_pool": jaxcnn.global_max_pool,
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_export_with_symbolic_shapes(rng, name):
    function = SYMBOLIC[name]
    batch, height, width = jax.export.symbolic_shape("b, h, w", constraints=["h >= 6", "w >= 6"])
    struct = jax.ShapeDtypeStruct((batch, height, width, 2), np.float32)
    exported = jax.export.export(jax.jit(function))(struct)
    for shape in ((1, 6, 9, 2), (3, 8, 7, 2)):
        x = normal(shape, rng)
        assert_close(exported.call(x), function(x), 2e-6, str(shape))


@pytest.mark.parametrize("name", ["conv", "max_pool", "avg_pool"])
def test_export_of_gradients_with_a_symbolic_batch(rng, name):
    gradient = jax.grad(lambda x: (SYMBOLIC[name](x) ** 2).sum())
    struct = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 6, 7, 2), np.float32)
    exported = jax.export.export(jax.jit(gradient))(struct)
    x = normal((3, 6, 7, 2), rng)
    assert_close(exported.call(x), gradient(x), 4e-6)


# Meshes. Every call has a batch of four, for four devices.


def _losses(name):
    """A function of the arrays with its gradients by all floating ones, and the arrays, chains taken apart."""
    function, arrays = _call(name)
    leaves, structure = jax.tree.flatten(arrays)
    by = tuple(index for index, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating))

    def apply(*leaves):
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))[0]

    def with_gradients(*leaves):
        gradients = jax.grad(lambda *leaves: (apply(*leaves) ** 2).sum(), by)(*leaves)
        return apply(*leaves), gradients

    sharded = [leaf.ndim and leaf.shape[0] == 4 for leaf in leaves]
    return with_gradients, leaves, sharded, by


# The kinds of things that can go wrong: each primitive, and what is done outside of them.
KINDS = ["conv", "conv_reflect", "conv_transpose", "max_pool", "sum_pool", "max_pool_with_indices", "adaptive_max_pool"]
MORE_KINDS = ["conv_cropped", "depthwise_conv", "conv_transpose_chain", "avg_pool", "max_unpool", "global_avg_pool"]


def of_each_kind(first, second):
    """Every function with the first value of an option, every kind with the second; most of them slow."""
    every = [(name, first) for name in KINDS] + [("conv", second), ("max_pool", second)]
    slow = [(name, first) for name in MORE_KINDS] + [(name, second) for name in KINDS]
    return every + [pytest.param(*pair, marks=pytest.mark.slow) for pair in slow if pair not in every]


@pytest.mark.parametrize(("name", "check_vma"), of_each_kind(True, False))
def test_shard_map(name, check_vma):
    with_gradients, leaves, sharded, by = _losses(name)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    specs = tuple(P("d") if is_sharded else P() for is_sharded in sharded)

    def local(*leaves):
        y, gradients = with_gradients(*leaves)
        if not check_vma:  # then each device has its own share of a replicated array's gradient
            gradients = tuple(g if sharded[i] else jax.lax.psum(g, "d") for i, g in zip(by, gradients, strict=True))
        return y, gradients

    out_specs = (P("d"), tuple(specs[index] for index in by))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=check_vma)
    result = jax.jit(mapped)(*leaves)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), result, jax.jit(with_gradients)(*leaves))


@pytest.mark.parametrize(("name", "kind"), of_each_kind("Explicit", "Auto"))
def test_meshes(name, kind):
    with_gradients, leaves, sharded, _ = _losses(name)
    expected = jax.jit(with_gradients)(*leaves)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(getattr(AxisType, kind),))
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(leaf, NamedSharding(mesh, P("d") if is_sharded else P()))
            for leaf, is_sharded in zip(leaves, sharded, strict=True)
        ]
        result = jax.jit(with_gradients)(*placed)
        function, arrays = CALLS[name]
        eager = jax.tree.leaves(function(*jax.tree.unflatten(jax.tree.structure(arrays), placed)))[0]
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), result, expected)
    assert_close(eager, expected[0], 4e-6)
    if kind == "Explicit":
        assert result[0].sharding.spec[0] == "d"
        assert eager.sharding.spec[0] == "d"


def test_a_batch_sharded_convolution_gathers_nothing():
    for name in ("conv", "depthwise_conv", "conv_transpose", "max_pool"):
        function, arrays = _call(name)
        mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
        placed = [jax.device_put(a, NamedSharding(mesh, P("d") if i == 0 else P())) for i, a in enumerate(arrays)]
        if name.startswith("conv"):  # grouped ones gather in XLA (openxla/xla#47945)
            function, placed[1] = partial(getattr(jaxcnn, name), strides=2), jnp.ones((3, 3, 4, 4))
        text = jax.jit(function).lower(*placed).compile().as_text()
        assert "all-gather" not in text, name
        assert "all-to-all" not in text, name


# By tiles, image by image, by products and channel by channel, on one device.
@pytest.mark.parametrize(
    ("x_shape", "kernel_shape"),
    [
        ((4, 56, 56, 64), (3, 3, 64, 64)),
        ((4, 112, 112, 64), (3, 3, 64, 64)),
        ((4, 56, 56, 64), (1, 7, 64, 64)),
        ((4, 56, 56, 64), (5, 5, 1, 64)),
        ((4, 56, 56, 64), (3, 3, 8, 64)),
    ],
)
def test_nor_do_its_gradients_whatever_one_device_would_compute_it_by(x_shape, kernel_shape):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct(x_shape, np.float32, sharding=NamedSharding(mesh, P("d")))
    kernel = jax.ShapeDtypeStruct(kernel_shape, np.float32, sharding=NamedSharding(mesh, P()))
    conv = partial(jaxcnn.conv, feature_group_count=x_shape[-1] // kernel_shape[-2])
    for function in (conv, jax.grad(lambda x, kernel: jnp.square(conv(x, kernel)).sum(), (0, 1))):
        text = jax.jit(function).lower(x, kernel).compile().as_text()
        assert "all-gather" not in text
        assert "all-to-all" not in text


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_a_vmap_of_size_0_is_empty(axes):
    x, kernel = jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 2, 6))
    x = x if axes[0] is None else jnp.ones((0, *x.shape))
    kernel = kernel if axes[1] is None else jnp.ones((0, *kernel.shape))

    def f(x, kernel):
        return jaxcnn.conv(x, kernel, strides=2, feature_group_count=2)

    assert jax.vmap(f, axes)(x, kernel).shape == (0, 2, 3, 3, 6)
    gradients = jax.vmap(jax.grad(lambda x, kernel: jnp.sum(f(x, kernel) ** 2), (0, 1)), axes)(x, kernel)
    assert [gradient.shape for gradient in gradients] == [(0, 2, 5, 5, 4), (0, 3, 3, 2, 6)]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: jaxcnn.conv(x, jnp.ones((3, 3, 2, 1))),
        lambda x: jaxcnn.max_pool(x, 2),
        lambda x: jaxcnn.avg_pool(x, 2),
        jaxcnn.accelerate(lambda x: jnp.sum(jaxcnn.sum_pool(x, 2))),
    ],
    ids=["conv", "max_pool", "avg_pool", "accelerated"],
)
@pytest.mark.parametrize(("number", "check"), [(np.nan, jax.debug_nans), (np.inf, jax.debug_infs)])
def test_what_jax_looks_for_in_each_operation_is_found(f, number, check):
    x = np.ones((1, 4, 4, 2), np.float32)
    with check(True):
        jax.block_until_ready(f(x))
        x[0, 1, 1] = number
        with pytest.raises(FloatingPointError, match=r"invalid value \((nan|inf)\) encountered in"):
            f(x)


# What a first call takes.


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_the_stated_type_of_a_convolution_is_that_of_its_program(dtype, stacked):
    for spec, lhs, rhs in roles((2, 6, 5, 4), (3, 3, 2, 6), feature_group_count=2, strides=(2, 1)):
        lead = (3,) if stacked else ()
        operands = [jax.ShapeDtypeStruct((*lead, *operand.shape), dtype) for operand in (lhs, rhs)]
        out_dtype = np.dtype("int32" if dtype == "int8" else dtype)
        dtypes = {"lhs_dtype": np.dtype(dtype), "rhs_dtype": np.dtype(dtype), "out_dtype": out_dtype}
        spec = dataclasses.replace(spec, stacked=3 if stacked else None, **dtypes)
        params = {"spec": spec, "method": "auto"}
        (stated,) = jax.make_jaxpr(partial(primitives.conv_p.bind, sharding=None, **params))(*operands).out_avals
        (traced,) = jax.make_jaxpr(partial(primitives._run_conv, **params))(*operands).out_avals
        assert stated == traced


@pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")
def test_a_compiled_kernel_is_lowered_without_a_trace(monkeypatch):
    x, kernel = normal((1, 8, 8, 16)), normal((3, 3, 16, 16))
    expected = jaxcnn.conv(x, kernel)
    monkeypatch.setattr(native_method, "lower", None)  # what a trace would call
    jax.clear_caches()
    lowered = jax.jit(jaxcnn.conv).lower(x, kernel)
    assert lowered.as_text().count("custom_call @jaxcnn_slide") == 1
    assert_close(lowered.compile()(x, kernel), expected)
