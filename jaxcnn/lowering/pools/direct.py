"""Pools by XLA's own window reduction, which supports every pool and defines the correct result."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn._compat import example
from jaxcnn.lowering.spec import PoolSpec

NAME = "direct"

REASON = "XLA's own window reduction"
"""Column of a summary that says how the pool is computed."""


def pool_identity(mode: str, dtype: np.dtype) -> np.ndarray:
    """Returns the value that never wins a maximum (`mode` "max") or a minimum (`mode` "min")."""
    if dtype == np.bool_:
        return np.array(mode == "min", dtype)
    if jnp.issubdtype(dtype, jnp.floating):
        infinity = np.array(-np.inf if mode == "max" else np.inf, dtype)
        if np.isinf(infinity):
            return infinity
    # Some 8-bit floats have no infinity: the cast gives NaN, which would win.
    limits = jnp.finfo(dtype) if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype)
    return np.array(limits.min if mode == "max" else limits.max, dtype)


def _window_options(spec: PoolSpec) -> dict[str, Any]:
    """Returns the arguments of `lax.reduce_window` for images (N, *spatial, C)."""
    return {
        "window_dimensions": (1, *spec.window_shape, 1),
        "window_strides": (1, *spec.strides, 1),
        "padding": ((0, 0), *spec.padding, (0, 0)),
        "window_dilation": (1, *spec.window_dilation, 1),
    }


def _is_empty(spec: PoolSpec) -> bool:
    """Returns whether x has no elements."""
    return any(isinstance(n, int) and n == 0 for n in spec.input_shape)


def extremum(x: jax.Array, spec: PoolSpec, mode: str) -> jax.Array:
    """Returns the maximum (`mode` "max") or minimum ("min") of each window; NaN wins."""
    identity = pool_identity(mode, spec.dtype)
    if _is_empty(spec):
        return jnp.full(spec.output_shape, identity)
    return lax.reduce_window(x, identity, lax.max if mode == "max" else lax.min, **_window_options(spec))


def winner(x: jax.Array, spec: PoolSpec, mode: str) -> tuple[jax.Array, jax.Array]:
    """Returns the int32 index of each window's first extremum in the flattened, unpadded plane, and the extremum.

    The index is -1 for a window on padding alone.
    """
    if _is_empty(spec):
        return jnp.full(spec.output_shape, -1, jnp.int32), extremum(x, spec, mode)
    shape = x.shape
    plane = (1, *shape[1:-1], 1)
    flat = jnp.zeros(plane, jnp.int32)
    for axis in range(1, len(shape) - 1):
        flat = flat * shape[axis] + lax.broadcasted_iota(jnp.int32, plane, axis)
    flat = jnp.broadcast_to(flat, shape)
    no_index = np.array(np.iinfo(np.int32).max, np.int32)
    better = lax.gt if mode == "max" else lax.lt

    def first_extremum(a: Any, b: Any) -> Any:
        (a_value, a_index), (b_value, b_index) = a, b
        a_nan, b_nan = a_value != a_value, b_value != b_value
        tie = (a_value == b_value) | (a_nan & b_nan)
        a_wins = (better(a_value, b_value) & ~b_nan) | (a_nan & ~b_nan) | (tie & (a_index < b_index))
        # A pixel that equals the identity still beats the padding, whose index is larger than that of any pixel.
        return jnp.where(a_wins, a_value, b_value), jnp.where(a_wins, a_index, b_index)

    identity = pool_identity(mode, spec.dtype)
    best, index = lax.reduce_window((x, flat), (identity, no_index), first_extremum, **_window_options(spec))
    return jnp.where(index == no_index, -1, index), best


def _flatten_plane(x: jax.Array) -> jax.Array:
    """Returns x with all spatial axes as one: (N, pixels, C)."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def select(x: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """Returns the value of x at the flat index of each output, 0 for the index -1; linear in x."""
    del spec
    flat, places = _flatten_plane(x), _flatten_plane(index)  # (N, pixels, C), (N, outputs, C)
    if any(isinstance(n, int) and n == 0 for n in flat.shape):
        return jnp.zeros(index.shape, x.dtype)
    values = jnp.take_along_axis(flat, jnp.maximum(places, 0), axis=1)
    return jnp.where(places < 0, jnp.zeros((), x.dtype), values).reshape(index.shape)


def scatter(y: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """Adds each value of y to the pixel that its index names: the transpose of `select`."""
    struct = example(spec.input_shape, y.dtype, spec.sharding, y, index)
    (x,) = jax.linear_transpose(lambda x: select(x, index, spec), struct)(y)
    return x


def window_sum(x: jax.Array, spec: PoolSpec) -> jax.Array:
    """Returns the sum of each window, in x's dtype."""
    if _is_empty(spec):
        return jnp.zeros(spec.output_shape, spec.dtype)
    return lax.reduce_window(x, np.zeros((), spec.dtype), lax.add, **_window_options(spec))


def window_spread(y: jax.Array, spec: PoolSpec) -> jax.Array:
    """Adds each value of y to the pixels of its window: the transpose of `window_sum`."""
    if _is_empty(spec):
        return jnp.zeros(spec.input_shape, spec.dtype)
    struct = example(spec.input_shape, spec.dtype, spec.sharding, y)
    (x,) = jax.linear_transpose(lambda x: window_sum(x, spec), struct)(y)
    return x
