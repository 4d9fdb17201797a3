"""The error of each method against float64 over shapes, dtypes, magnitudes; NaN, infinity, denormals, integers, ties.

The unit of error is float32's epsilon times the sum of the magnitudes of an output's products, which no rounding of the
operands exceeds. `BOUNDS` has for each method how many of them its error may be, and whether each output is measured by
its own products or by the largest sum of all outputs: these figures are in the methods' docstrings.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering import choice
from jaxcnn.lowering.pools import direct
from jaxcnn.lowering.spec import PoolSpec, conv_spec
from support import oracles

pytestmark = pytest.mark.optimized

BOUNDS = {
    "direct": ("own", 4),
    "shift": ("own", 4),
    "matmul": ("own", 4),
    "fft": ("largest", 4),
    "winograd": ("largest", 16),
    "per_group": ("largest", 16),
    "native": ("own", 4),
}
"""By method: relative to which sum, and how many epsilons."""

EPSILON, TINY = float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny)
EXACT = tuple(name for name, (kind, _) in BOUNDS.items() if kind == "own")
"""The methods whose outputs depend on nothing but the pixels that they see."""

ROLES = ("output", "input", "kernel")

# x, kernel, and the options that differ from stride 1 and SAME padding.
SHAPES = {
    "depthwise": ((2, 9, 8, 32), (3, 3, 1, 32), {"feature_group_count": 32}),
    "large window": ((1, 20, 24, 2), (5, 5, 1, 2), {"feature_group_count": 2, "padding": ((0, 3), (4, 0))}),
    "dense": ((2, 8, 9, 12), (3, 3, 12, 20), {}),
    "strided": ((2, 9, 8, 4), (3, 2, 4, 6), {"strides": (2, 2)}),
    "grouped and dilated": ((1, 8, 10, 8), (3, 2, 2, 16), {"feature_group_count": 4, "kernel_dilation": (1, 2)}),
    "pointwise, many channels": ((1, 4, 4, 300), (1, 1, 300, 8), {}),
    "sequence": ((2, 40, 2), (5, 2, 3), {}),
    "stack": ((3, 1, 8, 8, 3), (3, 2, 2, 3, 4), {"stacked": True}),
}


def operands_spec(name, role, dtype):
    """The spec of a shape in a role."""
    x, kernel, options = SHAPES[name]
    stacked = options.get("stacked", False)
    rank = len(kernel) - 2 - stacked
    window = kernel[stacked:-2]
    options = {
        "strides": (1,) * rank,
        "padding": tuple(((n - 1) // 2, n // 2) for n in window),
        "input_dilation": (1,) * rank,
        "kernel_dilation": (1,) * rank,
        "feature_group_count": 1,
        "precision": None,
        "stacked": False,
        "preferred_element_type": dtype,
        **options,
    }
    given = [jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel)]
    forward = conv_spec(*given, role="output", input_size=None, window=None, **options)
    if role == "output":
        return forward
    lead = x[:1] if stacked else ()
    y = jax.ShapeDtypeStruct((*lead, *forward.output_shape), dtype)
    first, second = (y, given[1]) if role == "input" else (given[0], y)
    return conv_spec(first, second, role=role, input_size=forward.input_shape[1:-1], window=window, **options)


@functools.cache
def compiled(spec):
    """A function from the operands to the results of all methods that support a spec."""
    names = [name for name, module in choice.METHODS.items() if module.refusal(spec) is None]
    spec = dataclasses.replace(spec, platform="cpu")
    return jax.jit(lambda a, b: {name: choice.METHODS[name].lower(a, b, spec) for name in names})


def scaled(rng, shape, dtype, magnitude):
    """Values of both signs around a magnitude, or of every magnitude between two."""
    values = rng.uniform(0.5, 1, shape) * rng.choice([-1.0, 1.0], shape)
    if isinstance(magnitude, tuple):
        low, high = map(math.log10, magnitude)
        return (values * 10 ** rng.uniform(low, high, shape)).astype(dtype)
    return (values * magnitude).astype(dtype)


WIDE = [
    (1, 1),
    (1e-30, 1e30),
    (1e30, 1e-30),
    (1e-15, 1e-15),
    (1e15, 1e15),
    ((1e-9, 1e9), (1e-9, 1e9)),
    (1, (1e-30, 1e30)),
]
NARROW = [(1, 1), (1e-3, 1e3), ((1e-2, 10), (1e-2, 10))]  # float16's
CASES = [(name, jnp.float32) for name in SHAPES]
CASES += [("dense", jnp.bfloat16), ("depthwise", jnp.float16)]


def allowed(method, spec, sums, exact):
    """The largest error of each output."""
    kind, epsilons = BOUNDS[method]
    error = epsilons * EPSILON * (sums if kind == "own" else sums.max())
    if spec.out_dtype.itemsize == 2:
        error = error + jnp.finfo(spec.out_dtype).eps / 2 * (abs(exact) + error)  # rounded once
    # Products and sums below the smallest normal number may be 0.
    return error + math.prod(spec.kernel_shape) * max(TINY, float(jnp.finfo(spec.out_dtype).tiny))


def test_every_method_states_its_error():
    assert set(choice.METHODS) <= set(BOUNDS)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_errors_against_float64(rng, name, dtype, role):
    spec = operands_spec(name, role, dtype)
    for magnitudes in NARROW if dtype == jnp.float16 else WIDE:
        lhs, rhs = (
            scaled(rng, shape, dtype, magnitude)
            for shape, magnitude in zip(spec.operand_shapes, magnitudes, strict=True)
        )
        wide = np.asarray(lhs, np.float64), np.asarray(rhs, np.float64)
        exact, sums = oracles.trilinear(spec, *wide), oracles.trilinear(spec, *map(abs, wide))
        for method, result in compiled(spec)(lhs, rhs).items():
            assert result.dtype == dtype
            excess = abs(np.asarray(result, np.float64) - exact) / allowed(method, spec, sums, exact)
            assert excess.max() <= 1, (method, magnitudes, float(excess.max()))


@pytest.mark.parametrize("role", ROLES)
def test_bounds_do_not_grow_with_a_large_image(rng, role):
    x, kernel = (1, 96, 96, 1), (15, 15, 1, 1)
    spec = conv_spec(
        *[jax.ShapeDtypeStruct(shape, np.float32) for shape in (x, kernel)],
        **{"role": "output", "input_size": None, "window": None, "stacked": False, "strides": (1, 1)},
        **{"padding": ((7, 7), (7, 7)), "input_dilation": (1, 1), "kernel_dilation": (1, 1)},
        **{"feature_group_count": 1, "precision": None, "preferred_element_type": np.float32},
    )
    spec = dataclasses.replace(spec, role=role)
    lhs, rhs = (scaled(rng, shape, np.float32, 1) for shape in spec.operand_shapes)
    exact = oracles.trilinear(spec, lhs.astype(float), rhs.astype(float))
    sums = oracles.trilinear(spec, abs(lhs).astype(float), abs(rhs).astype(float))
    for method in ("direct", "fft"):
        result = jax.jit(lambda a, b, m=method: choice.METHODS[m].lower(a, b, spec))(lhs, rhs)
        assert np.all(abs(result - exact) <= allowed(method, spec, sums, exact)), method


# NaN and infinity.

PLACES = [("depthwise", "output"), ("depthwise", "input"), ("depthwise", "kernel"), ("dense", "output")]
PLACES += [("dense", "input"), ("dense", "kernel"), ("grouped and dilated", "output"), ("strided", "output")]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "role"), PLACES)
def test_what_is_not_finite_reaches_what_it_reaches_in_direct(rng, name, role, value):
    spec = operands_spec(name, role, jnp.float32)
    for position in range(2):
        operands = [rng.uniform(0.5, 1, shape).astype(np.float32) for shape in spec.operand_shapes]
        at = tuple(n // 2 for n in operands[position].shape)
        operands[position][at] = value
        results = {name: np.asarray(result) for name, result in compiled(spec)(*operands).items()}
        expected = results.pop("direct")
        reached = ~np.isfinite(expected)
        assert 0 < reached.sum() <= reached.size
        for method, result in results.items():
            if method in EXACT:
                np.testing.assert_array_equal(np.isnan(result), np.isnan(expected), err_msg=method)
                np.testing.assert_array_equal(result[reached], expected[reached], err_msg=method)
            else:  # NaN, or in a few places infinity
                assert not np.isfinite(result[reached]).any(), method


def test_what_is_not_finite_stays_in_its_image(rng):
    spec = operands_spec("depthwise", "output", jnp.float32)
    lhs, rhs = (rng.standard_normal(shape).astype(np.float32) for shape in spec.operand_shapes)
    lhs[0, 4, 4, 3] = np.nan
    for method, result in compiled(spec)(lhs, rhs).items():
        assert np.isfinite(result[1]).all(), method
        assert np.isfinite(result[0, ..., 4]).all(), method


# Denormals.


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["depthwise", "dense", "strided"])
def test_denormals_are_zero_or_themselves(rng, name, role):
    spec = operands_spec(name, role, jnp.float32)
    lhs, rhs = (scaled(rng, shape, np.float32, 1) for shape in spec.operand_shapes)
    lhs = (lhs * 1e-40).astype(np.float32)
    exact = oracles.trilinear(spec, lhs.astype(np.float64), rhs.astype(np.float64))
    for method, result in compiled(spec)(lhs, rhs).items():
        result = np.asarray(result, np.float64)
        close = abs(result - exact) <= 1e-2 * abs(exact).max()
        assert (close | (result == 0)).all(), method


# Integers.


@pytest.mark.parametrize("role", ["output", "input"])  # no derivative by a kernel of integers exists
@pytest.mark.parametrize("dtype", ["int8", "int32"])
def test_integers_are_exact(rng, dtype, role):
    info = np.iinfo(dtype)
    for name in ("depthwise", "strided"):
        spec = dataclasses.replace(operands_spec(name, role, np.dtype(dtype)), out_dtype=np.dtype(np.int32))
        lhs, rhs = (rng.integers(info.min, info.max, shape, dtype, endpoint=True) for shape in spec.operand_shapes)
        expected = oracles.trilinear(spec, lhs.astype(np.int64), rhs.astype(np.int64)).astype(
            np.int32
        )  # wraps, as JAX does
        results = compiled(spec)(lhs, rhs)
        assert {"direct", "shift", "matmul"} <= set(results)
        for method, result in results.items():
            np.testing.assert_array_equal(result, expected, err_msg=f"{method} {name}")


# Ties of pools.


def first_wins(x, window, strides, pairs, mode):
    """The gradient of the sum of a pool: each window gives 1 to its first extremum."""
    gradient = np.zeros_like(x)
    outputs, pixels, _ = oracles.windows(x.shape[1:-1], window, strides, pairs, (1, 1), False)
    for output in np.ndindex(*outputs):
        for batch, channel in np.ndindex(x.shape[0], x.shape[-1]):
            values = np.array([x[(batch, *pixel, channel)] for pixel in pixels[output]])
            winner = pixels[output][oracles.first_extremum(values, mode)]
            gradient[(batch, *winner, channel)] += 1
    return gradient


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("window", "strides"), [((2, 2), (2, 2)), ((3, 2), (1, 1)), ((5, 5), (1, 2))])
def test_ties_go_to_the_first(rng, mode, window, strides):
    x = rng.integers(0, 2, (2, 7, 8, 3)).astype(np.float32)
    pairs = ((1, 1), (0, 1))
    function = getattr(jaxcnn, f"{mode}_pool")
    gradient = jax.jit(jax.grad(lambda x: function(x, window, strides=strides, padding=pairs).sum()))(x)
    np.testing.assert_array_equal(gradient, first_wins(x, window, strides, pairs, mode))
    # The reference's own index, which other platforms use.
    spec = PoolSpec(x.shape, window, strides, pairs, (1, 1), np.dtype(np.float32))
    index, _ = direct.winner(jnp.asarray(x), spec, mode)
    spread = direct.scatter(jnp.ones(index.shape), index, spec)
    np.testing.assert_array_equal(spread, first_wins(x, window, strides, pairs, mode))
