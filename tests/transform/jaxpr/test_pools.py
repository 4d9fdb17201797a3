"""Window reductions of lax and the derivatives of max pools: recognised, and computed as they were."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

import jaxcnn
from jaxcnn.transform.acceleration.accelerate import accelerate
from support.arrays import assert_same, jax_normal
from support.drawn import drawn
from support.jaxprs import primitives_of

pytestmark = pytest.mark.leaks

REDUCERS = {"max": (-jnp.inf, lax.max), "min": (jnp.inf, lax.min), "sum": (0.0, lax.add)}


def primitives(f, *args):
    """The names of the primitives that the accelerated function binds."""
    return set(primitives_of(accelerate(f), *args))


@st.composite
def reductions(draw):
    """(shape, options of `lax.reduce_window`): windows over any axes, batch and channels included."""
    ndim = draw(st.integers(1, 4))
    slid = draw(st.lists(st.booleans(), min_size=ndim, max_size=ndim))
    shape = tuple(draw(st.integers(4, 7)) for _ in range(ndim))

    def of_slid(values, else_):
        return tuple(draw(values) if slides else else_ for slides in slid)

    options = {
        "window_dimensions": of_slid(st.integers(1, 3), 1),
        "window_strides": of_slid(st.integers(1, 3), 1),
        "padding": of_slid(st.tuples(st.integers(0, 2), st.integers(0, 2)), (0, 0)),
    }
    return shape, options


@drawn(6, 50, reductions(), st.sampled_from(list(REDUCERS)), st.booleans())
def test_any_axes_and_derivatives(case, kind, ties):
    shape, options = case
    x = jax_normal(shape)
    x = jnp.round(x) if ties else x

    def forward(x):
        return lax.reduce_window(x, *REDUCERS[kind], **options)

    cotangent = jax_normal(jax.eval_shape(forward, x).shape, 1)

    def backward(x, cotangent):
        return jax.vjp(forward, x)[1](cotangent)

    assert_same(accelerate(forward)(x), jax.jit(forward)(x), 1e-6)
    assert_same(accelerate(backward)(x, cotangent), jax.jit(backward)(x, cotangent))
    assert_same(
        jax.jit(lambda x, y: jax.vjp(accelerate(forward), x)[1](y))(x, cotangent), jax.jit(backward)(x, cotangent)
    )
    if kind != "sum":

        def tangent(x, t):
            return jax.jvp(forward, (x,), (t,))

        assert_same(accelerate(tangent)(x, x * x), jax.jit(tangent)(x, x * x))


def _max_pool(x, **options):
    defaults = {"window_dimensions": (1, 3, 3, 1), "window_strides": (1, 2, 2, 1), "padding": "SAME"}
    return lax.reduce_window(x, -jnp.inf, lax.max, **{**defaults, **options})


def test_the_gradient_of_a_max_pool_is_a_scatter_by_the_winner():
    x = jax_normal((2, 8, 8, 3))
    primitives_run = primitives(jax.grad(lambda x: jnp.sum(_max_pool(x) ** 2)), x)
    assert {"jaxcnn_extremum", "jaxcnn_winner", "jaxcnn_scatter"} <= primitives_run
    assert not any("reduce_window" in name or "select_and" in name for name in primitives_run)


WINDOWS = {  # window, strides, padding; lax has no gradient of dilated windows
    "side by side": ((2, 2), (2, 2), ((0, 0), (0, 0))),
    "padded": ((3, 3), (1, 1), ((1, 1), (1, 1))),
    "padded at the ends": ((3, 3), (2, 2), ((0, 1), (1, 0))),
    "by axis": ((6, 6), (1, 2), ((2, 3), (3, 2))),
    "some on padding alone": ((2, 2), (1, 1), ((2, 2), (0, 0))),
}


def _infinities(shape, kind, share):
    """Integers among which a share of the pixels are the infinity that loses, and some the one that wins."""
    rng = np.random.default_rng(0)
    loser = -np.inf if kind == "max" else np.inf
    x = rng.integers(-2, 3, shape).astype(np.float32)
    x[rng.random(shape) < share] = loser
    x[rng.random(shape) < (1 - share) / 4] = -loser
    return x


@pytest.mark.parametrize(
    ("name", "kind", "first", "dtype"),
    [
        *((name, "max", 1, "float32") for name in WINDOWS),
        ("padded", "max", 2, "bfloat16"),
        ("by axis", "max", 0, "float16"),
        ("padded", "min", 1, "float32"),
        ("by axis", "min", 2, "bfloat16"),
    ],
)
def test_gradients_of_infinite_windows_go_where_those_of_lax_go(name, kind, first, dtype):
    window, strides, padding = WINDOWS[name]
    shape = tuple(np.insert([2, 3], first, [9, 8]))

    def among_axes(values, other):
        return (*[other] * first, *values, *[other] * (2 - first))

    def pool(x):
        initial, reducer = REDUCERS[kind]
        edges = among_axes(padding, (0, 0))
        return lax.reduce_window(x, initial, reducer, among_axes(window, 1), among_axes(strides, 1), edges)

    def pull_back(f):
        return lambda x, y: jax.vjp(f, x)[1](y)[0]

    y = jnp.arange(1, 1 + np.prod(jax.eval_shape(pool, jnp.zeros(shape, dtype)).shape)) % 8
    y = y.reshape(jax.eval_shape(pool, jnp.zeros(shape, dtype)).shape).astype(dtype)
    functions = [jax.jit(pull_back(pool)), accelerate(pull_back(pool)), jax.jit(pull_back(accelerate(pool)))]
    if first > 0:
        pool_of_jaxcnn = jaxcnn.max_pool if kind == "max" else jaxcnn.min_pool
        options = {"strides": strides, "padding": padding}
        layout = "NHWC" if first == 1 else "NCHW"
        functions.append(jax.jit(pull_back(lambda x: pool_of_jaxcnn(x, window, layout=layout, **options))))
    for share in (1.0, 0.8):
        x = jnp.asarray(_infinities(shape, kind, share), dtype)
        expected, *gradients = (np.asarray(f(x, y), np.float32) for f in functions)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, expected)


def test_ties_go_to_the_first_maximum_as_in_lax():
    x = jnp.zeros((1, 6, 6, 1))  # what is left of an image after relu

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(_max_pool(x) * jnp.arange(9.0).reshape(1, 3, 3, 1)))(x)

    np.testing.assert_array_equal(accelerate(gradient)(x), gradient(x))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8])
@pytest.mark.parametrize("kind", list(REDUCERS))
def test_integers_are_equal_bit_for_bit(dtype, kind, rng):
    x = jnp.asarray(rng.integers(0, 120, (1, 7, 7, 2)).astype(dtype))
    initial = {"max": jnp.iinfo(dtype).min, "min": jnp.iinfo(dtype).max, "sum": 0}[kind]

    def f(x):
        return lax.reduce_window(
            x, np.array(initial, dtype), REDUCERS[kind][1], (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
        )

    assert_same(accelerate(f)(x), f(x))
    assert any(name.startswith("jaxcnn") for name in primitives(f, x))


def test_sums_of_16_bit_floats_are_added_up_in_float32():
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)

    def f(x):
        return lax.reduce_window(x, np.array(0, x.dtype), lax.add, (1, 32, 32, 1), (1, 1, 1, 1), "VALID")

    assert accelerate(f)(x).dtype == jnp.bfloat16
    assert float(accelerate(f)(x).squeeze()) == 1024  # lax: 256


@pytest.mark.parametrize("body", [lax.max, lax.min, jnp.maximum, lambda a, b: lax.max(b, a)])
def test_a_reduction_by_a_function_keeps_its_initial_value(body):
    x = jax_normal((1, 6, 6, 2))

    def f(x, initial):
        return lax.reduce_window(x, initial, body, (1, 2, 2, 1), (1, 2, 2, 1), ((0, 0), (2, 2), (0, 0), (0, 0)))

    for initial in (0.3, -5.0, 5.0):
        assert_same(accelerate(f)(x, jnp.float32(initial)), f(x, jnp.float32(initial)), 0)
    assert "jaxcnn_extremum" in primitives(f, x, jnp.float32(0.3))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: lax.reduce_window(x, 1.0, lax.mul, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x: lax.reduce_window(x, 0.0, lambda a, b: a + 2 * b, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x: lax.reduce_window(x, 0.5, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        lambda x: _max_pool(x, base_dilation=(1, 2, 2, 1)),
        lambda x: jax.jvp(lambda x: _max_pool(x, window_dimensions=(1, 9, 9, 1)), (x,), (x,)),
        lambda x: lax.cumsum(x, 1) + lax.cummax(x, 2),
    ],
)
def test_what_only_lax_takes_is_left_to_it(f):
    x = jax_normal((1, 8, 8, 2))
    primitives_run = primitives(f, x)
    assert not any(name in primitives_run for name in ("jaxcnn_winner", "jaxcnn_window_sum"))
    assert_same(accelerate(f)(x), f(x), 1e-6)
