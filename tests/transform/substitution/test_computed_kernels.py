"""Kernels that a function computes from its parameters, in `substitute`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.explicit_kernels import ComputedKernels
from support.arrays import normal, relative_error
from support.planted import conv, planted

pytestmark = pytest.mark.usefixtures("clock_of_macs")

X = jnp.asarray(normal((1, 8, 8, 6)))
KERNEL = planted(5, 5, 6, 6, 2)
PARAMS = {"gain": jnp.arange(1.0, 7.0), "direction": KERNEL, "bias": jnp.ones(6)}


def weight_norm(params, x):
    direction = params["direction"]
    norm = jnp.sqrt((direction**2).sum((0, 1, 2), keepdims=True))
    return conv(x, params["gain"].reshape(1, 1, 1, 6) * direction / norm) + params["bias"].reshape(1, 1, 1, 6)


def test_weight_normalization(tmp_path):
    small = jaxcnn.substitute(weight_norm, PARAMS, X, macs=0.5, schemes="separable")
    assert small.report.error < 1e-4
    assert [row.name for row in small.report.rows] == ["direction/kernels/0"]
    (chain,) = small.params["direction"].kernels
    assert isinstance(chain, jaxcnn.KernelChain)
    # Nothing reads gain and direction any more.
    assert len(jax.tree.leaves(small.params)) == len(chain.kernels) + 1
    expected = weight_norm(PARAMS, X)
    assert relative_error(small.apply(small.params, X), expected) < 1e-4
    assert relative_error(small.apply(small.params, jnp.concatenate([X, X]))[1:], expected) < 1e-4
    small.save(tmp_path / "small.npz")
    for params in (PARAMS, jax.eval_shape(lambda: PARAMS)):
        loaded = jaxcnn.Substitution.load(tmp_path / "small.npz", weight_norm, params)
        np.testing.assert_array_equal(loaded.apply(loaded.params, X), small.apply(small.params, X))
    other = {**PARAMS, "direction": jnp.ones((5, 5, 6, 7))}
    with pytest.raises(ValueError, match=r"direction is \(5, 5, 6, 6\) there, in params \(5, 5, 6, 7\)"):
        jaxcnn.Substitution.load(tmp_path / "small.npz", weight_norm, other)


def test_a_computed_kernel_that_stays_dense_is_computed_from_its_parameters():
    small = jaxcnn.substitute(weight_norm, PARAMS, X, macs=1.0, schemes="separable", skip="direction")
    assert jax.tree.structure(small.params) == jax.tree.structure(PARAMS)


def test_four_rotations_of_one_kernel():
    def f(params, x):
        return sum(conv(x, jnp.rot90(params["p"], turns, (0, 1))) for turns in range(4))

    params = {"p": KERNEL}
    small = jaxcnn.substitute(f, params, X, rank=30, schemes="separable")
    assert relative_error(small.apply(small.params, X), f(params, X)) < 1e-4
    node = small.params["p"]
    assert isinstance(node, ComputedKernels)
    # The kernel itself, which two convolutions use, and those of the other two.
    assert isinstance(node.parameter, jaxcnn.KernelChain)
    assert len(node.kernels) == 2
    assert small.report.macs_before == 4 * 8 * 8 * 25 * 36


def test_kernels_that_stay_dense_outlive_the_parameter_that_becomes_a_chain(tmp_path):
    """Two of four rotations stay dense, and the parameter from which they were computed is a chain."""

    def f(params, x):
        return sum(conv(x, jnp.rot90(params["p"], turns, (0, 1))) for turns in range(4))

    params = {"p": KERNEL}
    options = {"ranks": {"p": 4}, "schemes": "separable", "skip": "p/kernels/*", "macs": 0.9, "count": "macs"}
    small = jaxcnn.substitute(f, params, X, **options)
    chain = small.params["p"].parameter
    assert isinstance(chain, jaxcnn.KernelChain)
    assert not any(isinstance(kernel, jaxcnn.KernelChain) for kernel in small.params["p"].kernels)
    dense = chain.dense()
    kernels = [dense, dense[::-1, ::-1], *(jnp.rot90(KERNEL, turns, (0, 1)) for turns in (1, 3))]
    expected = sum(conv(X, kernel) for kernel in kernels)
    assert relative_error(small.apply(small.params, X), expected) < 1e-5
    small.save(tmp_path / "small.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "small.npz", f, params)
    assert relative_error(loaded.apply(loaded.params, X), expected) < 1e-5


def test_a_while_is_weighed_without_a_derivative():
    def f(params, x):
        def step(carry):
            return carry[0] + 1, jnp.tanh(conv(carry[1], params["p"] - params["p"].mean()))

        return lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]

    params = {"p": KERNEL}
    small = jaxcnn.substitute(f, params, X, macs=0.7)
    assert small.report.macs_share <= 0.7
    assert relative_error(small.apply(small.params, X), f(params, X)) == pytest.approx(small.report.error, rel=1e-3)
