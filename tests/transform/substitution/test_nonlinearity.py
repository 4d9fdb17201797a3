"""The responses beyond which the nonlinearity after a convolution is constant."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.substitution.nonlinearity import ClipLimits
from jaxcnn.transform.substitution.unrolled import UnrolledProgram
from support.arrays import normal
from support.planted import conv

BIAS, SCALE = normal((4,), 1), np.array([1.0, -2.0, 0.5, 3.0], np.float32)
B, S = (numbers[None, None, None] for numbers in (BIAS, SCALE))
KERNEL = jnp.asarray(normal((3, 3, 2, 4)))
X = jnp.asarray(normal((2, 6, 6, 2), 2))


def ends(f):
    """Returns the ends that are found after the first convolution of f(x, kernel)."""
    closed = jax.make_jaxpr(f)(X, KERNEL)
    (uses,) = find_kernels(closed)[0].values()
    program = UnrolledProgram(closed, {site.path: (1, site) for site in uses.sites})
    return ClipLimits(program).of((X, KERNEL))[0]


NOWHERE = np.full(4, -np.inf), np.full(4, np.inf)
WAYS = {
    "relu": (lambda y: jax.nn.relu(y + B), (-BIAS, NOWHERE[1])),
    "maximum": (lambda y: jnp.maximum(y, 0.5), (np.full(4, 0.5), NOWHERE[1])),
    "relu6": (lambda y: jax.nn.relu6(y - B), (BIAS, 6 + BIAS)),
    "clip": (lambda y: jnp.clip(2 * y, -1, 3), (np.full(4, -0.5), np.full(4, 1.5))),
    "scaled": (
        lambda y: jax.nn.relu((y - B) * S + 1),
        (np.where(SCALE > 0, BIAS - 1 / SCALE, -np.inf), np.where(SCALE > 0, np.inf, BIAS - 1 / SCALE)),
    ),
    "batch norm": (
        lambda y: jax.nn.relu((y - B) / jnp.sqrt(jnp.square(S) + 1e-3) + 0.25),
        (BIAS - 0.25 * np.sqrt(SCALE**2 + 1e-3), NOWHERE[1]),
    ),
    "subtracted from": (lambda y: jax.nn.relu(1 - y), (NOWHERE[0], np.full(4, 1.0))),
    "nothing": (lambda y: y + B, NOWHERE),
    "gelu": (lambda y: jax.nn.gelu(y + B), NOWHERE),
    "swish": (lambda y: y * jax.nn.sigmoid(y), NOWHERE),
    "read twice": (lambda y: jax.nn.relu(y) + y, NOWHERE),
    "residual": (lambda y: jax.nn.relu(y + normal((2, 6, 6, 4), 9)), NOWHERE),
    "by pixel": (lambda y: jax.nn.relu(y + normal((1, 6, 6, 1), 9)), NOWHERE),
}


@pytest.mark.parametrize("way", WAYS)
def test_ends(way):
    f, (low, high) = WAYS[way]
    result = ends(lambda x, k: f(conv(x, k)))
    np.testing.assert_allclose(result[0], low, rtol=1e-5)
    np.testing.assert_allclose(result[1], high, rtol=1e-5)


@pytest.mark.parametrize("way", ["relu", "relu6", "clip", "scaled", "batch norm"])
def test_beyond_the_ends_nothing_changes(way):
    f, _ = WAYS[way]
    low, high = ends(lambda x, k: f(conv(x, k)))
    y = np.asarray(conv(X, KERNEL))
    np.testing.assert_allclose(f(np.clip(y, low, high).astype(y.dtype)), f(y), atol=1e-6)


def test_features_first():
    def f(x, k):
        y = jax.lax.conv_general_dilated(x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME")
        return jax.nn.relu(y + BIAS[None, :, None, None])

    np.testing.assert_allclose(ends(f)[0], -BIAS, rtol=1e-6)


def test_another_convolution_is_not_taken_for_a_factor():
    def f(x, k):
        return conv(conv(x, k), jnp.ones((3, 3, 4, 6)))

    np.testing.assert_array_equal(ends(f), NOWHERE)
