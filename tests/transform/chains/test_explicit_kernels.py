"""Kernels that a function computes from its parameters, as arguments of the function."""

from __future__ import annotations

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.explicit_kernels import (
    ComputedKernels,
    keep_what_is_read,
    make_kernels_explicit,
    with_explicit_kernels,
)
from jaxcnn.transform.chains.find_kernels import find_kernels
from support.arrays import assert_same, jax_normal
from support.chains import conv
from support.jaxprs import equations_of

X = jax_normal((1, 6, 6, 4), 1)
KERNEL = jax_normal((3, 3, 4, 4), 2)
STACK = jnp.stack([KERNEL, KERNEL[::-1] + 0.1, 2 - KERNEL])
NORMALIZED = {"gain": jnp.arange(1.0, 5.0), "direction": KERNEL, "bias": jnp.ones(4)}


def centred(kernel):
    return kernel - kernel.mean((0, 1, 2), keepdims=True)


def weight_norm(params, x):
    direction = params["direction"]
    norm = jnp.sqrt((direction**2).sum((0, 1, 2), keepdims=True))
    return conv(x, params["gain"].reshape(1, 1, 1, 4) * direction / norm) + params["bias"].reshape(1, 1, 1, 4)


def spectral_norm(kernel, x):
    matrix = kernel.reshape(-1, 4)

    def power(_, u):
        v = matrix.T @ u
        return matrix @ v / jnp.linalg.norm(matrix @ v)

    u = lax.fori_loop(0, 3, power, jnp.ones(36))
    return conv(x, kernel / jnp.linalg.norm(matrix.T @ u))


def rotations(kernel, x):
    return sum(conv(x, jnp.rot90(kernel, turns, (0, 1))) for turns in range(4))


def hypernetwork(params, x):
    first, second = (params["w"] @ code for code in params["codes"])
    return conv(jnp.tanh(conv(x, first.reshape(3, 3, 4, 4))), second.reshape(3, 3, 4, 4))


def tied(kernel, x):
    return lax.conv_transpose(conv(x, centred(kernel)), centred(kernel), (1, 1), "SAME", transpose_kernel=True)


def changed_by_the_loop(kernel, x):
    def step(carry):
        return carry[0] + 1, jnp.tanh(conv(carry[1], centred(kernel) * carry[0]))

    return lax.while_loop(lambda carry: carry[0] < 3, step, (1.0, x))[1]


# Functions, parameters, and the number of convolutions that use each kernel which is an argument then.
FUNCTIONS = {
    "weight normalization": (weight_norm, NORMALIZED, [1]),
    "spectral normalization": (spectral_norm, KERNEL, [1]),
    "number": (lambda k, x: conv(x, 2 * k), KERNEL, [1]),
    "features reversed": (lambda k, x: conv(x, k[..., ::-1]), KERNEL, [1]),
    "put together": (lambda k, x: conv(x, jnp.concatenate([k[..., :2], k[..., 2:]], -1)), KERNEL, [1]),
    "integers": (
        lambda p, x: conv(x, p["integers"].astype(jnp.float32) * p["scale"]),
        {"integers": jnp.arange(144).reshape(3, 3, 4, 4).astype(jnp.int8), "scale": jnp.float32(0.1)},
        [1],
    ),
    "rotations": (rotations, KERNEL, [2, 1, 1]),
    "in two numbers of groups": (
        lambda k, x: conv(x, k, feature_group_count=2) + conv(x[..., :2], k),
        KERNEL[:, :, :2],
        [1, 1],
    ),
    "hypernetwork": (hypernetwork, {"w": jax_normal((144, 3), 3), "codes": [jnp.ones(3), jnp.arange(3.0)]}, [1, 1]),
    "composed": (lambda p, x: conv(x, jaxcnn.compose(*p)), [KERNEL, KERNEL + 1], [1]),
    "computed once, used twice": (lambda k, x: conv(conv(x, centred(k)), centred(k)), KERNEL, [2]),
    "in both directions": (tied, KERNEL, [2]),
    "cast afterwards": (lambda k, x: conv(x.astype(jnp.bfloat16), centred(k).astype(jnp.bfloat16)), KERNEL, [1]),
    "of another order": (
        lambda k, x: conv(x, centred(k.transpose(3, 2, 0, 1).transpose(2, 3, 1, 0)).transpose(0, 1, 2, 3)),
        KERNEL,
        [1],
    ),
    "jit": (lambda k, x: jax.jit(lambda x, k: conv(x, centred(k)))(x, k), KERNEL, [1]),
    "checkpoint": (lambda k, x: jax.checkpoint(lambda x, k: conv(x, centred(k)))(x, k), KERNEL, [1]),
    "branches": (
        lambda k, x: lax.cond(x.sum() > 0, lambda x: conv(x, centred(k)), lambda x: conv(x, jnp.abs(k)), x),
        KERNEL,
        [1, 1],
    ),
    "scan": (
        lambda k, x: lax.scan(lambda y, k: (jnp.tanh(conv(y, centred(k))), y.mean()), x, k, reverse=True),
        STACK,
        [1],
    ),
    "scan of one kernel": (
        lambda k, x: lax.scan(lambda y, _: (conv(y, centred(k)), None), x, None, length=2)[0],
        KERNEL,
        [1],
    ),
    "scans in scans": (
        lambda k, x: lax.scan(
            lambda y, ks: lax.scan(lambda y, k: (jnp.tanh(conv(y, centred(k) * ks.mean())), None), y, ks), x, k
        )[0],
        jnp.stack([STACK, STACK + 1]),
        [1],
    ),
    "while": (
        lambda k, x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, conv(c[1], centred(k))), (0, x))[1],
        KERNEL,
        [1],
    ),
    "changed by the loop": (changed_by_the_loop, KERNEL, []),
    "parameter": (lambda k, x: conv(x, k.transpose(3, 2, 0, 1).transpose(2, 3, 1, 0)), KERNEL, [1]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kernels_become_arguments(name):
    f, params, sites = FUNCTIONS[name]
    explicit = make_kernels_explicit(f, params, (X,))
    g = with_explicit_kernels(f)
    kernels, _ = find_kernels(jax.make_jaxpr(g)(explicit, X))
    assert [len(uses.sites) for uses in kernels.values()] == sites
    assert not any(uses.refusal for uses in kernels.values())
    tolerance = 1e-2 if name == "cast afterwards" else 1e-5
    assert_same(jax.jit(g)(explicit, X), jax.jit(f)(params, X), tolerance)


def test_the_kernels_are_read_and_not_computed():
    explicit = make_kernels_explicit(weight_norm, NORMALIZED, (X,))
    node = explicit["direction"]
    other = {**explicit, "direction": ComputedKernels(node.parameter, (2 * node.kernels[0],), node.shape, node.dtype)}
    expected = 2 * (weight_norm(NORMALIZED, X) - 1) + 1
    assert_same(with_explicit_kernels(weight_norm)(other, X), expected)
    primitives = {equation.primitive.name for equation in equations_of(with_explicit_kernels(weight_norm), explicit, X)}
    assert not primitives & {"sqrt", "integer_pow", "div", "reduce_sum"}


def with_chain(explicit, rank=12):
    """Explicit parameters of weight normalization with a chain for the kernel."""
    node = explicit["direction"]
    chain = jaxcnn.separable(node.kernels[0], rank=rank)
    return {**explicit, "direction": ComputedKernels(node.parameter, (chain,), node.shape, node.dtype)}


def test_chains_in_the_place_of_computed_kernels_train():
    params = with_chain(make_kernels_explicit(weight_norm, NORMALIZED, (X,)))
    kept = keep_what_is_read(weight_norm, NORMALIZED, params, (X,))
    assert kept["direction"].parameter is None
    assert kept["gain"] == ComputedKernels(None, (), (4,), "float32")
    assert kept["bias"] is NORMALIZED["bias"]
    f = jaxcnn.with_chains(weight_norm)
    assert_same(f(kept, X), weight_norm(NORMALIZED, X), 1e-4)
    gradient = jax.grad(lambda params: (f(params, X) ** 2).sum())(kept)
    assert jax.tree.structure(gradient) == jax.tree.structure(kept)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_a_kernel_without_a_chain_is_computed_from_its_parameters_again():
    explicit = make_kernels_explicit(weight_norm, NORMALIZED, (X,))
    kept = keep_what_is_read(weight_norm, NORMALIZED, explicit, (X,))
    assert jax.tree.structure(kept) == jax.tree.structure(NORMALIZED)
    assert all(kept[name] is NORMALIZED[name] for name in kept)


def test_a_parameter_that_something_else_reads_stays():
    def f(kernel, x):
        return conv(x, centred(kernel)), (kernel**2).sum()

    explicit = make_kernels_explicit(f, KERNEL, (X,))
    chain = jaxcnn.separable(explicit.kernels[0], rank=12)
    kept = keep_what_is_read(f, KERNEL, ComputedKernels(KERNEL, (chain,), KERNEL.shape, "float32"), (X,))
    assert kept.parameter is KERNEL
    assert_same(jaxcnn.with_chains(f)(kept, X), f(KERNEL, X), 1e-4)


def test_arguments_for_which_other_kernels_are_computed():
    def f(kernel, x):
        y = conv(x, centred(kernel))
        return y if len(x) == 1 else y * kernel.mean() if len(x) == 2 else conv(y, jnp.abs(kernel))

    explicit = make_kernels_explicit(f, KERNEL, (X,))
    dropped = ComputedKernels(None, explicit.kernels, KERNEL.shape, "float32")
    g = with_explicit_kernels(f)
    assert_same(g(dropped, X), f(KERNEL, X))
    with pytest.raises(ValueError, match="params is no longer among the parameters, since f read it for nothing but"):
        g(dropped, jnp.concatenate([X, X]))
    with pytest.raises(ValueError, match="f computes 2 kernels from params for these arguments, and 1 for those"):
        g(dropped, jnp.concatenate([X, X, X]))


def test_state_dicts_of_flax():
    params = with_chain(make_kernels_explicit(weight_norm, NORMALIZED, (X,)), rank=2)
    zeros = jax.tree.map(jnp.zeros_like, params)
    restored = flax.serialization.from_bytes(zeros, flax.serialization.to_bytes(params))
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
