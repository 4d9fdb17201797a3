"""Moves of a parameter's values as views, beside NumPy's, and where a kernel may lie."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcnn.transform.chains.axis_views import View, factors_of, merge_factors, view_after


def resized(draw, shape):
    """Another shape of as many elements, of factors of these sizes in their order."""
    factors = []
    for size in shape:
        while size > 1:
            factor = draw(st.sampled_from([n for n in range(2, size + 1) if size % n == 0]))
            factors.append(factor)
            size //= factor
    sizes = []
    for factor in factors:
        if sizes and draw(st.booleans()):
            sizes[-1] *= factor
        else:
            sizes.append(factor)
    for _ in range(draw(st.integers(0, 2))):
        sizes.insert(draw(st.integers(0, len(sizes))), 1)
    return tuple(sizes)


@st.composite
def moves(draw):
    """A shape, and functions of an array of it, one after the other."""
    shape = own = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4)))
    records = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["transpose", "reshape", "rev", "squeeze", "expand"]))
        if kind == "transpose":
            order = tuple(draw(st.permutations(range(len(own)))))
            own = tuple(own[axis] for axis in order)
            records.append(lambda a, order=order: lax.transpose(a, order))
        elif kind == "reshape":
            order = tuple(draw(st.permutations(range(len(own))))) if draw(st.booleans()) else None
            own = resized(draw, own if order is None else tuple(own[axis] for axis in order))
            records.append(lambda a, own=own, order=order: lax.reshape(a, own, order))
        elif kind == "rev":
            axes = tuple(axis for axis in range(len(own)) if draw(st.booleans()))
            records.append(lambda a, axes=axes: lax.rev(a, axes))
        elif kind == "squeeze":
            axes = tuple(axis for axis, size in enumerate(own) if size == 1 and draw(st.booleans()))
            own = tuple(size for axis, size in enumerate(own) if axis not in axes)
            records.append(lambda a, axes=axes: lax.squeeze(a, axes))
        else:
            axis = draw(st.integers(0, len(own)))
            own = (*own[:axis], 1, *own[axis:])
            records.append(lambda a, axis=axis: lax.expand_dims(a, (axis,)))
    return shape, records


@settings(max_examples=150)
@given(moves())
def test_a_view_is_what_the_moves_make(case):
    shape, functions = case
    parameter = np.arange(math.prod(shape)).reshape(shape)

    def run(array):
        for function in functions:
            array = function(array)
        return array

    view = View.whole(shape)
    for equation in jax.make_jaxpr(run)(parameter).eqns:
        after = view_after(equation, view)
        if after is None:  # one of a part of an axis, whose view would be no product of whole steps
            assert equation.primitive is not None
            assert equation.primitive.name in ("rev", "reshape")
            return
        view = after
        assert view.sizes == equation.outvars[0].aval.shape
    np.testing.assert_array_equal(view.apply_to(parameter), jax.device_get(run(jnp.asarray(parameter))))


@pytest.mark.parametrize(
    "function",
    [
        lambda a: a + 1,
        lambda a: a[1:],
        lambda a: a.sum(0),
        lambda a: jnp.broadcast_to(a[None], (2, 4, 6)),
        lambda a: lax.rev(a.reshape(2, 2, 6), (0,)),
        lambda a: a.reshape(3, 8),  # its first axis takes one and a third of the first axis's rows
    ],
)
def test_what_is_no_view(function):
    view = View.whole((4, 6))
    for equation in jax.make_jaxpr(function)(np.zeros((4, 6))).eqns:
        view = view and view_after(equation, view)
    assert view is None


def test_factors_that_are_neighbours_are_one():
    assert merge_factors([(0, 6, 2), (0, 2, 3), (0, 1, 2)]) == ((0, 1, 12),)
    assert merge_factors([(0, 2, 3), (1, 1, 2), (0, 1, 2)]) == ((0, 2, 3), (1, 1, 2), (0, 1, 2))
    assert factors_of(3, 1) == ()


def test_one_index_of_an_axis():
    view = View.whole((3, 4, 5))
    inner = view.index_axis(1)
    assert (inner.sizes, inner.sliced, inner.drop_axis(1).sizes) == ((3, 1, 5), (1,), (3, 5))
    assert view.reshape((12, 5)).index_axis(0) is None
    assert view.reverse((1,)).index_axis(1) is None
