"""Activations are recognized as the libraries of today trace them."""

from __future__ import annotations

import flax.linen
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from jax import lax
from scipy import special

from jaxcnn import accelerate, native
from support.fusing import fused

LIBRARY_FUNCTIONS = {
    "relu": [jax.nn.relu, flax.linen.relu, keras.ops.relu, keras.activations.relu],
    "relu6": [jax.nn.relu6, flax.linen.relu6, keras.ops.relu6, keras.layers.ReLU(6.0), keras.activations.relu6],
    "leaky_relu": [
        jax.nn.leaky_relu,
        lambda x: flax.linen.leaky_relu(x, 0.2),
        keras.layers.LeakyReLU(),
        keras.ops.leaky_relu,
        lambda x: keras.layers.ReLU(negative_slope=0.3)(x),
    ],
    "silu": [jax.nn.silu, jax.nn.swish, flax.linen.swish, keras.ops.silu, keras.activations.swish],
    "hard_sigmoid": [jax.nn.hard_sigmoid, flax.linen.hard_sigmoid, keras.ops.hard_sigmoid],
    "hard_swish": [jax.nn.hard_swish, flax.linen.hard_silu, keras.ops.hard_silu, keras.activations.hard_swish],
    "gelu": [jax.nn.gelu, flax.linen.gelu, keras.ops.gelu],
    "gelu_exact": [lambda x: jax.nn.gelu(x, approximate=False), lambda x: keras.ops.gelu(x, approximate=False)],
    "sigmoid": [jax.nn.sigmoid, flax.linen.sigmoid, keras.ops.sigmoid, keras.layers.Activation("sigmoid")],
    "tanh": [jnp.tanh, jax.nn.tanh, flax.linen.tanh, keras.ops.tanh],
}
SPELLED_OUT = {
    "relu": [lambda x: jnp.maximum(x, 0), lambda x: lax.max(0.0, x)],
    "relu6": [
        lambda x: jnp.clip(x, 0, 6),
        lambda x: lax.clamp(0.0, x, 6.0),
        lambda x: jnp.maximum(jnp.minimum(x, 6), 0),
    ],
    "leaky_relu": [lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: jnp.maximum(0.1 * x, x)],
    "silu": [lambda x: x * jax.nn.sigmoid(x)],
    "hard_sigmoid": [lambda x: jax.nn.relu6(x + 3) / 6, lambda x: jax.nn.relu6(x + 3) * (1 / 6)],
    "hard_swish": [lambda x: x * jax.nn.relu6(x + 3) / 6, lambda x: x * (jax.nn.relu6(x + 3) * (1 / 6))],
    "gelu_exact": [
        lambda x: 0.5 * x * (1 + lax.erf(x / np.float32(np.sqrt(2)))),
        lambda x: x * 0.5 * (1 + lax.erf(x * np.float32(np.sqrt(0.5)))),
        lambda x: x * (lax.erf(x / np.float32(np.sqrt(2))) + 1) * 0.5,
    ],
}
CASES = [
    pytest.param(name, function, id=f"{name}-{kind}{number}")
    for kind, table in (("library", LIBRARY_FUNCTIONS), ("spelled", SPELLED_OUT))
    for name, functions in table.items()
    for number, function in enumerate(functions)
]
ALPHAS = {1: 0.2, 2: 0.3, 3: 0.2, 4: 0.3}
SPECIAL = jnp.array([0.0, -0.0, jnp.nan, jnp.inf, -jnp.inf, -3, 3, 6, 1e-30, -1e-30, 100, -100, 0.5, -7], jnp.float32)
IMAGE = SPECIAL[None, :, None]


def around(function):
    """A function of an image of one channel that a convolution leaves as it is."""

    def f(x):
        kernel = jnp.ones((1, 1, 1), jnp.float32)
        return function(lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")))

    return f


@pytest.mark.parametrize(("name", "function"), CASES)
def test_an_activation_is_recognized_however_it_is_spelled(name, function, fusing_on, standard_promotion):
    (recipe,) = fused(accelerate(around(function)), IMAGE)
    if recipe.steps == (("add", 3.0),):  # the sum before a hard sigmoid is taken for a bias, and its quotient left
        assert recipe.activation == "relu6"
    else:
        assert (recipe.activation, recipe.steps) == (name, ())


def test_values_and_derivatives_at_special_values(fusing_on, standard_promotion):
    functions = [around(case.values[1]) for case in CASES]

    @jax.jit
    def run(x):
        pairs = [(f, accelerate(f)) for f in functions]
        ones = jnp.ones_like(x)
        return [[(g(x), jax.jvp(g, (x,), (ones,))[1]) for g in pair] for pair in pairs]

    for (expected, expected_slope), (value, slope) in run(IMAGE):
        np.testing.assert_allclose(value, expected, 1e-6, 1e-7)
        np.testing.assert_allclose(
            slope, expected_slope, 1e-5, 1e-6
        )  # at 0, where conventions differ, as anywhere else
    applied = {epilogue.activation for _, epilogue in fusing_on.calls}
    assert applied == set(LIBRARY_FUNCTIONS)


@pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")
def test_the_error_of_the_exact_gelu_between_its_special_values():
    x = np.linspace(-8, 8, 20_000, dtype=np.float32)
    f = accelerate(around(lambda x: jax.nn.gelu(x, approximate=False)), method="native")
    exact = x.astype(np.float64) * (0.5 + 0.5 * special.erf(x / np.sqrt(2.0)))
    assert np.abs(np.asarray(f(x[None, :, None])).ravel() - exact).max() < 1e-6


@pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")
def test_fused_activations_of_extreme_numbers_are_xlas():
    x = jnp.array([np.inf, -np.inf, np.nan, 1e38, -1e38, 87.5, -87.5, -88.5, 0.0, 1e-30], jnp.float32)[None, :, None]
    functions = [jax.nn.silu, jax.nn.sigmoid, jnp.tanh, jax.nn.gelu, lambda x: jax.nn.gelu(x, approximate=False)]

    @jax.jit
    def run(x):
        return [(around(f)(x), accelerate(around(f), method="native")(x)) for f in functions]

    for expected, value in run(x):
        np.testing.assert_allclose(value, expected, 1e-6, 1e-36)


@pytest.mark.parametrize(("number", "function"), list(enumerate(LIBRARY_FUNCTIONS["leaky_relu"])))
def test_the_slope_of_a_leaky_relu(number, function, fusing_on, standard_promotion):
    (recipe,) = fused(accelerate(around(function)), IMAGE)
    assert recipe.alpha == np.float32(ALPHAS.get(number, 0.01))


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.elu,
        jax.nn.softplus,
        jnp.abs,
        lambda x: jnp.maximum(x, 1),
        lambda x: jnp.minimum(x, 0),
        lambda x: jnp.clip(x, -1, 6),
        lambda x: jnp.maximum(x, 1.5 * x),  # not below 0 alone
        lambda x: jnp.where(x > 1, x, 0.1 * x),
        lambda x: x * jnp.tanh(x),
        lambda x: x * jax.nn.sigmoid(1.702 * x),
        lambda x: x * x,
        lambda x: x + x,
        lambda x: lax.sort(x, dimension=1),
        lambda x: jnp.cumsum(x, 1),
    ],
)
def test_what_is_no_such_activation_is_left(function, fusing_on):
    assert not fused(accelerate(around(function)), IMAGE)


def test_what_is_read_beside_an_activation_is_left(fusing_on):
    def f(x):
        return x * jax.nn.sigmoid(x), x  # the value before is returned too

    def g(x):
        y = jax.nn.sigmoid(x)
        return x * y + y

    for function in (f, g):
        assert not fused(accelerate(around(function)), IMAGE)
