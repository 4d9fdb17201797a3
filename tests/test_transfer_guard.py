"""Under `jax.transfer_guard("disallow")` no function of jaxcnn moves a constant of its own to the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from support.arrays import normal

X, KERNEL = normal((2, 6, 6, 4)), normal((3, 3, 4, 4), seed=1)
CHAIN = jaxcnn.KernelChain((normal((3, 1, 4, 2), seed=2), normal((1, 3, 2, 4), seed=3)))


def network(x, kernel):
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.reduce_window(jax.nn.relu(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")


def of_lax(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def of_computed_divisors(x):
    return jaxcnn.avg_pool(x, 3, padding="SAME", count_include_pad=False)


CALLS = {
    "lax": (of_lax, (X, KERNEL)),
    "conv": (jaxcnn.conv, (X, KERNEL)),
    "reflect": (partial(jaxcnn.conv, padding_mode="reflect"), (X, KERNEL)),
    "winograd": (partial(jaxcnn.conv, method="winograd"), (X, KERNEL)),
    "transposed": (partial(jaxcnn.conv_transpose, strides=2), (X, KERNEL)),
    "chain": (jaxcnn.conv, (X, CHAIN)),
    "max": (partial(jaxcnn.max_pool, window_shape=3, padding="SAME"), (X,)),
    "average": (of_computed_divisors, (X,)),
    "adaptive": (partial(jaxcnn.adaptive_max_pool, output_shape=4), (X,)),
    "accelerated": (jaxcnn.accelerate(network), (X, KERNEL)),
    "accelerated, jitted inside": (jaxcnn.accelerate(jax.jit(network)), (X, KERNEL)),
    "with chains": (lambda x, chain: jaxcnn.with_chains(of_lax)(x, chain), (X, CHAIN)),
}


GRADIENTS_OF_OPERATIONS = {"adaptive", "accelerated"}
"""Calls whose gradients without `jit` are those of lax's operations one by one, some of which move a zero."""


def value_and_cotangents(function, args, cotangent):
    value, pull_back = jax.vjp(function, *args)
    return value, pull_back(cotangent)


@pytest.mark.parametrize("name", CALLS)
def test_values_and_derivatives_move_nothing(name):
    function, args = CALLS[name]
    args = jax.device_put(args)
    cotangent = jnp.ones(jax.eval_shape(function, *args).shape)
    with jax.transfer_guard("disallow"):
        eager = function(*args)
        jitted, jitted_cotangents = jax.jit(partial(value_and_cotangents, function))(args, cotangent)
    np.testing.assert_allclose(jitted, eager, atol=1e-5)
    if name in GRADIENTS_OF_OPERATIONS:
        return
    with jax.transfer_guard("disallow"):
        _, cotangents = value_and_cotangents(function, args, cotangent)
    for actual, expected in zip(jax.tree.leaves(cotangents), jax.tree.leaves(jitted_cotangents), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_a_kernel_that_a_vmap_leaves_alone_moves_nothing():
    x, kernel = jax.device_put((normal((2, 2, 6, 6, 4)), KERNEL))
    mapped = jax.vmap(jaxcnn.accelerate(jax.jit(of_lax)), (0, None))
    with jax.transfer_guard("disallow"):
        y = mapped(x, kernel)
    np.testing.assert_allclose(y[1], of_lax(x[1], kernel), atol=1e-5)


def test_the_guard_is_on():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        jnp.add(jnp.asarray(X), 1.0)


def test_a_summary_and_a_substituted_function_move_nothing():
    parameters, x = jax.device_put(({"kernel": KERNEL}, X))

    def function(parameters, x):
        return jaxcnn.conv(x, parameters["kernel"])

    substitution = jaxcnn.substitute(function, parameters, x, rank=2, schemes="separable")
    chains = jax.device_put(substitution.params)
    with jax.transfer_guard("disallow"):
        assert len(jaxcnn.summarize(function, parameters, x).rows) == 1
        assert substitution.apply(chains, x).shape == X.shape
