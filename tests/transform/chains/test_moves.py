"""Moves on the way from a parameter to a convolution: what the search for kernels takes, a chain passes through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.axis_views import View
from jaxcnn.transform.chains.chain_walker import ChainError
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.chains.moves import factor_by_feature
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.chains.with_chains import apply_with_chains
from support.chains import conv

X = jnp.ones((1, 6, 6, 4))
FEATURES = 1 + jnp.arange(4.0)
PARAMETER = jnp.ones((3, 2, 4, 4))
STACK = jnp.ones((3, 3, 2, 4, 4))
STACKS = jnp.ones((2, 3, 3, 2, 4, 4))


def by_outputs(w):
    return w * FEATURES.reshape(*(1,) * (w.ndim - 1), 4)


def by_inputs(w):
    return w * FEATURES.reshape(*(1,) * (w.ndim - 2), 4, 1)


def spread(w):
    return w * lax.broadcast_in_dim(FEATURES, w.shape, (w.ndim - 1,))


def from_axes_in_one(w):
    return w.reshape(3, 2, 4, 4)


@jax.jit
def product(w, factor):
    return w * factor


# Moves of a kernel, and whether a chain passes through them.
OF_A_KERNEL = {
    "cast": (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), True),
    "cast to integers": (lambda w: w.astype(jnp.int32).astype(jnp.float32), False),
    "negate": (lambda w: -w, True),
    "number": (lambda w: 2 * w / 3, True),
    "reciprocal": (lambda w: 1 / w, False),
    "by outputs": (by_outputs, True),
    "by inputs": (by_inputs, False),
    "by taps": (lambda w: w * jnp.arange(3.0).reshape(3, 1, 1, 1), False),
    "by all": (lambda w: w * jnp.arange(96.0).reshape(w.shape), False),
    "by numbers that are all there": (lambda w: w * jnp.ones(w.shape), True),
    "spread": (spread, True),
    "spread outside of a call": (lambda w: product(w, lax.broadcast_in_dim(FEATURES, w.shape, (3,))), False),
    "by half of the outputs' axis": (
        lambda w: (w.reshape(3, 2, 4, 2, 2) * FEATURES[:2].reshape(1, 1, 1, 2, 1)).reshape(w.shape),
        True,
    ),
    "by half of the inputs' axis": (
        lambda w: (w.reshape(3, 2, 2, 2, 4) * FEATURES[:2].reshape(1, 1, 2, 1, 1)).reshape(w.shape),
        False,
    ),
    "flip": (lambda w: w[::-1], True),
    "flip of the outputs": (lambda w: w[..., ::-1], False),
    "outputs flipped, scaled and flipped again": (lambda w: by_outputs(w[..., ::-1])[..., ::-1], True),
    "turn": (lambda w: w.transpose(3, 1, 0, 2).transpose(2, 1, 3, 0), True),
    "reshape": (lambda w: w.reshape(6, 2, 8).reshape(w.shape), True),
    "reshape that shifts": (lambda w: w.transpose(1, 0, 2, 3).reshape(3, 2, 4, 4), False),
    "whole slice": (lambda w: lax.slice(w, (0, 0, 0, 0), w.shape), True),
    "part": (lambda w: w[:2], False),
    "axis of size one, indexed": (lambda w: w[None][0], True),
    "sum": (lambda w: w + 1, False),
    "jit": (jax.jit(by_outputs), True),
    "remat": (jax.checkpoint(lambda w: jnp.negative(w)), True),
    "as it is": (lambda w: w, True),
}

# Functions of a parameter and an image, the parameter's shape, and whether a chain takes the parameter's place.
FUNCTIONS = {
    "larger product": (lambda w, x: conv(x, w * jnp.ones((3, 2, 4, 4))), (3, 2, 1, 4), False),
    "inputs and outputs in one axis": (lambda w, x: conv(x, from_axes_in_one(w)), (3, 2, 16), True),
    "by outputs out of one axis": (lambda w, x: conv(x, by_outputs(from_axes_in_one(w))), (3, 2, 16), True),
    "by inputs out of one axis": (lambda w, x: conv(x, by_inputs(from_axes_in_one(w))), (3, 2, 16), False),
    "index": (lambda w, x: conv(conv(x, w[1]), w[2]), STACK.shape, True),
    "index of a flipped stack": (lambda w, x: conv(x, w[::-1][1]), STACK.shape, False),
    "strided slice": (
        lambda w, x: conv(x, lax.slice(w, (0,) * 5, (1, 3, 2, 4, 4), (2, 1, 1, 1, 1))[0]),
        STACK.shape,
        False,
    ),
    "two axes sliced": (lambda w, x: conv(x, w[1:2, :1][0]), STACK.shape, False),
    "scaled stack": (lambda w, x: conv(x, by_outputs(w)[1]), STACK.shape, True),
    "stack scaled by number": (
        lambda w, x: conv(x, (w * jnp.arange(3.0).reshape(3, 1, 1, 1, 1))[1]),
        STACK.shape,
        False,
    ),
    "scan": (lambda w, x: lax.scan(lambda x, w: (conv(x, w), None), x, w)[0], STACK.shape, True),
    "scan of one": (lambda w, x: lax.scan(lambda x, w: (conv(x, w), None), x, w)[0], (1, 3, 2, 4, 4), True),
    "scan of two axes": (
        lambda w, x: lax.scan(lambda x, w: lax.scan(lambda x, w: (conv(x, w), None), x, w), x, w)[0],
        STACKS.shape,
        True,
    ),
    "scan over taps": (
        lambda w, x: lax.scan(lambda x, w: (conv(x, w), None), x, w.transpose(1, 0, 2, 3, 4).reshape(9, 1, 2, 4, 4))[0],
        STACK.shape,
        False,
    ),
    "axes indexed in order": (lambda w, x: conv(x, w[1][2]), STACKS.shape, True),
    "axes indexed the other way round": (lambda w, x: conv(x, w[:, 2][1]), STACKS.shape, True),
    "axes indexed both ways": (lambda w, x: conv(conv(x, w[1][2]), w[:, 2][1]), STACKS.shape, False),
    "closed over by a loop": (lambda w, x: lax.fori_loop(0, 2, lambda _, x: conv(x, w), x), PARAMETER.shape, True),
    "closed over by a branch": (lambda w, x: lax.cond(True, lambda x: conv(x, w), jnp.sin, x), PARAMETER.shape, True),
    "both directions": (
        lambda w, x: lax.conv_transpose(conv(x, w), w, (1, 1), "SAME", transpose_kernel=True),
        PARAMETER.shape,
        True,
    ),
    "both directions in groups": (
        lambda w, x: jax.grad(lambda x: jnp.sin(conv(x, w, feature_group_count=2)).sum())(x),
        (3, 2, 2, 4),
        True,
    ),
    "back by what are outputs forth": (
        lambda w, x: lax.conv_transpose(conv(x, w), by_outputs(w), (1, 1), "SAME", transpose_kernel=True),
        PARAMETER.shape,
        True,
    ),
    "back by what are inputs forth": (
        lambda w, x: lax.conv_transpose(conv(x, w), by_inputs(w), (1, 1), "SAME", transpose_kernel=True),
        PARAMETER.shape,
        False,
    ),
}
FUNCTIONS |= {
    f"kernel: {name}": (lambda w, x, move=move: conv(x, move(w)), PARAMETER.shape, passes)
    for name, (move, passes) in OF_A_KERNEL.items()
}

# Chains pass through products, but for the search a kernel behind one is computed from the parameter.
COMPUTED = {
    *(f"kernel: {name}" for name in ("negate", "number", "by outputs", "by numbers that are all there", "spread")),
    *("kernel: by half of the outputs' axis", "kernel: outputs flipped, scaled and flipped again", "kernel: jit"),
    *("kernel: remat", "by outputs out of one axis", "scaled stack", "back by what are outputs forth"),
}


def uses_of(f, parameter):
    return find_kernels(jax.make_jaxpr(f)(parameter, X))[0].get(0)


def is_carried(f, parameter, placement):
    """Returns whether f takes a chain, here of one link, in the place of a parameter."""
    link = jnp.asarray(placement.kernel(parameter)).astype(parameter.dtype)
    lead = len(placement.stack)
    groups = X.shape[-1] // link.shape[-2] if lead == 0 else 1
    chain = jaxcnn.KernelChain.tree_unflatten((groups,), (link,))
    try:
        jax.make_jaxpr(apply_with_chains(f, {"argument 0": placement}))(chain, X)
    except ChainError:
        return False
    return True


def in_the_order_of(parameter):
    """The placement of a kernel, HWIO, behind axes that number kernels; inputs and outputs may be one axis."""
    view = View.whole(parameter.shape)
    axes = (view if parameter.ndim > 3 else view.reshape(PARAMETER.shape)).axes
    stack = tuple(range(len(axes) - 4))
    *taps, inputs, outputs = axes[-4:]
    return Placement(parameter.shape, tuple(taps), inputs, outputs, stack)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_kernel_that_is_found_can_be_carried_and_one_that_is_refused_cannot(name):
    f, shape, passes = FUNCTIONS[name]
    parameter = jnp.ones(shape)
    uses = uses_of(f, parameter)
    accepted = uses is not None and not uses.refusal
    assert accepted == (passes and name not in COMPUTED)
    placement = in_the_order_of(parameter) if uses is None else uses.placement
    assert is_carried(f, parameter, placement) == passes


def test_the_quotient_of_integers():
    parameter = jnp.ones((3, 2, 4, 4), np.int32)

    def f(w, x):
        return conv(x, lax.div(w, jnp.int32(2)).astype(np.float32))

    assert uses_of(f, parameter) is None
    assert not is_carried(f, parameter, in_the_order_of(parameter))
    assert is_carried(lambda w, x: conv(x, lax.div(w.astype(np.float32), 2.0)), parameter, in_the_order_of(parameter))


DRAWN = {name: move for name, (move, _) in OF_A_KERNEL.items() if name != "part"}  # the others keep the size


@settings(max_examples=60)
@given(st.lists(st.sampled_from(sorted(DRAWN)), min_size=2, max_size=5))
def test_a_chain_passes_through_the_drawn_moves_of_a_kernel_that_is_found(names):
    def f(w, x):
        for name in names:
            w = DRAWN[name](w)
        return conv(x, w if w.shape == PARAMETER.shape else jnp.zeros(PARAMETER.shape))

    uses = uses_of(f, PARAMETER)
    if uses is not None and not uses.refusal:
        assert is_carried(f, PARAMETER, uses.placement)


def test_the_entry_of_a_factor_for_each_feature():
    view = View.whole(PARAMETER.shape)
    placement = in_the_order_of(PARAMETER)
    np.testing.assert_array_equal(factor_by_feature(placement, view, (1, 1, 1, 4)), range(4))
    assert factor_by_feature(placement, view, (1, 1, 4, 1)) is None
    back = view.reverse((3,))
    np.testing.assert_array_equal(factor_by_feature(placement, back, (1, 1, 1, 4)), [3, 2, 1, 0])
