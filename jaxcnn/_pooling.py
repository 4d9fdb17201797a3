"""The jitted bodies of the pools: from checked arguments to bound primitives and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.arguments import PoolArguments, pool_arguments, window_order
from jaxcnn.dtypes import accumulation_dtype, floating_at_least_float32, integer_at_least_int32
from jaxcnn.geometry import Pair, axis_values
from jaxcnn.layout import Layout, parse_layout
from jaxcnn.lowering.pools.direct import pool_identity
from jaxcnn.operands import batch_sharding, check_arrays
from jaxcnn.primitives import extremum_p, select_p, window_sum_p, winner_p

_STATIC = ("window_shape", "strides", "padding", "window_dilation", "ceil_mode", "layout")


def _check_ordered(operation: str, x: jax.Array) -> None:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"{operation}: complex numbers have no order, got x of dtype {x.dtype}")


def _average_dtype(dtype: np.dtype) -> np.dtype:
    if jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)


def _cropped(
    x: jax.Array, padding: Sequence[Pair], declared: Sequence[Pair]
) -> tuple[jax.Array, tuple[Pair, ...], tuple[int, ...]]:
    """(N, *spatial, C) cropped where the padding is negative, the padding that is left, and the pixels cut before.

    What the declared padding crops is not there for a window that hangs over the end either.
    """
    rest, starts = [], []
    for axis, ((low, high), (_, declared_high)) in enumerate(zip(padding, declared, strict=True), start=1):
        size = x.shape[axis]
        start = 0
        if min(low, high) < 0 or min(low, declared_high) < 0:
            cut = min(high, declared_high, 0)
            start = min(max(-low, 0), size)
            stop = max(size + cut, start)
            x = lax.slice_in_dim(x, start, stop, axis=axis)
            low, high = (max(low, 0), high - cut) if stop > start else (0, size + low + high)
        rest.append((low, high))
        starts.append(start)
    return x, tuple(rest), tuple(starts)


def _prepared(
    operation: str, x: jax.Array, arguments: PoolArguments
) -> tuple[jax.Array, dict[str, Any], tuple[int, ...]]:
    """x in canonical form, the static parameters of the pool primitives, and the pixels cropped before each axis."""
    x = arguments.order.to_canonical(operation, x)
    x, padding, starts = _cropped(x, arguments.padding, arguments.declared_padding)
    params = {
        "window_shape": arguments.window,
        "strides": arguments.strides,
        "padding": padding,
        "window_dilation": arguments.window_dilation,
    }
    return x, params, starts


@partial(jax.jit, static_argnames=(*_STATIC, "mode"), inline=True)
def extremum(x: jax.Array, *, mode: str, **options: Any) -> jax.Array:
    """The body of `max_pool` and `min_pool`."""
    operation = f"{mode}_pool"
    check_arrays(operation, x=x)
    _check_ordered(operation, x)
    arguments = pool_arguments(operation, x.shape, **options)
    x, params, _ = _prepared(operation, x, arguments)
    return arguments.order.from_canonical(extremum_p.bind(x, mode=mode, **params), arguments.batch_shape)


@partial(jax.jit, static_argnames=_STATIC, inline=True)
def extremum_with_indices(x: jax.Array, **options: Any) -> tuple[jax.Array, jax.Array]:
    """The body of `max_pool_with_indices`."""
    operation = "max_pool_with_indices"
    check_arrays(operation, x=x)
    _check_ordered(operation, x)
    arguments = pool_arguments(operation, x.shape, **options)
    cropped, params, starts = _prepared(operation, x, arguments)
    index = winner_p.bind(lax.stop_gradient(cropped), mode="max", **params)
    nowhere = index < 0
    maxima = select_p.bind(cropped, index, **params)
    values = jnp.where(nowhere, jnp.asarray(pool_identity("max", cropped.dtype)), maxima)
    if cropped.shape[1:-1] != tuple(arguments.sizes):
        index = jnp.where(nowhere, index, _moved_index(index, cropped.shape[1:-1], arguments.sizes, starts))
    unflatten = partial(arguments.order.from_canonical, batch_shape=arguments.batch_shape)
    return unflatten(values), unflatten(index)


def _moved_index(index: jax.Array, sizes: Sequence[int], whole: Sequence[int], starts: Sequence[int]) -> jax.Array:
    """Flat indices in a cropped plane as flat indices in the whole one."""
    place, moved, scale = index, jnp.zeros_like(index), 1
    for size, whole_size, start in zip(sizes[::-1], whole[::-1], starts[::-1], strict=True):
        moved = moved + (place % size + start) * scale
        place, scale = place // size, scale * whole_size
    return moved


def _window_total(operation: str, x: jax.Array, arguments: PoolArguments) -> jax.Array:
    """Sum of each window in the accumulation dtype, (N, *output, C)."""
    x, params, _ = _prepared(operation, x.astype(accumulation_dtype(x.dtype)), arguments)
    return window_sum_p.bind(x, **params)


@partial(jax.jit, static_argnames=_STATIC, inline=True)
def total(x: jax.Array, **options: Any) -> jax.Array:
    """The body of `sum_pool`."""
    check_arrays("sum_pool", x=x)
    arguments = pool_arguments("sum_pool", x.shape, **options)
    result = _window_total("sum_pool", x, arguments)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        result = result.astype(x.dtype)
    return arguments.order.from_canonical(result, arguments.batch_shape)


def _counts(arguments: PoolArguments, count_include_pad: bool, dtype: np.dtype) -> Any:
    """Number of taps of each window that count, as a constant that broadcasts with (N, *output, C)."""
    rank = arguments.order.rank
    bounds = []
    for size, (low, high) in zip(arguments.sizes, arguments.declared_padding, strict=True):
        if not count_include_pad:
            # Symbolic padding, of "SAME", is never negative.
            low, high = (min(value, 0) if isinstance(value, int) else 0 for value in (low, high))
        bounds.append((-low, size + high))
    axes = []
    for axis in range(rank):
        output, step, low = arguments.output_sizes[axis], arguments.strides[axis], arguments.padding[axis][0]
        taps = np.arange(arguments.window[axis]) * arguments.window_dilation[axis]
        start, stop = bounds[axis]
        # Positions are compared as arrays: with a symbolic size they are traced, else a NumPy constant.
        positions = _arange(output)[:, None] * step - _value(low) + taps[None]
        inside = (positions >= _value(start)) & (positions < _value(stop))
        axes.append(inside.sum(1).reshape(*(1,) * axis, -1, *(1,) * (rank - axis)))
    counts = reduce(lambda a, b: a * b, axes)
    if isinstance(counts, np.ndarray) and counts.min(initial=1) == counts.max(initial=1):
        return np.asarray(counts.flat[0] if counts.size else 1, dtype)
    return counts.astype(dtype)


def _arange(size: Any) -> Any:
    return np.arange(size) if isinstance(size, int) else lax.iota(jnp.int32, size)


def _value(size: Any) -> Any:
    return size if isinstance(size, int) else jnp.asarray(size, jnp.int32)


@partial(jax.jit, static_argnames=(*_STATIC, "count_include_pad"), inline=True)
def average(x: jax.Array, *, count_include_pad: bool, **options: Any) -> jax.Array:
    """The body of `avg_pool`."""
    check_arrays("avg_pool", x=x)
    arguments = pool_arguments("avg_pool", x.shape, **options)
    dtype = _average_dtype(x.dtype)
    result = _window_total("avg_pool", x, arguments).astype(floating_at_least_float32(dtype))
    counts = jnp.asarray(_counts(arguments, count_include_pad, result.dtype))
    result = result / jnp.maximum(counts, 1).astype(result.dtype).reshape(
        (1,) * (result.ndim - counts.ndim) + counts.shape
    )
    return arguments.order.from_canonical(result.astype(dtype), arguments.batch_shape)


@partial(jax.jit, static_argnames=(*_STATIC, "p"), inline=True)
def norm(x: jax.Array, *, p: float, **options: Any) -> jax.Array:
    """The body of `lp_pool`."""
    check_arrays("lp_pool", x=x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"lp_pool: x must be of real floats, got dtype {x.dtype}")
    arguments = pool_arguments("lp_pool", x.shape, **options)
    wide = x.astype(floating_at_least_float32(x.dtype))
    if math.isinf(p):
        magnitude, params, _ = _prepared("lp_pool", jnp.abs(wide), arguments)
        # A window without a pixel has norm 0.
        result = jnp.maximum(extremum_p.bind(magnitude, mode="max", **params), jnp.zeros((), wide.dtype))
    else:
        powers = jnp.square(wide) if p == 2 else jnp.abs(wide) ** p
        sums = _window_total("lp_pool", powers, arguments)
        # The root has no derivative at 0: there the result is constant 0, and its gradient 0 rather than NaN.
        zero = sums == 0
        safe = jnp.where(zero, jnp.ones_like(sums), sums)
        root = jnp.sqrt(safe) if p == 2 else safe ** (1 / p)
        result = jnp.where(zero, jnp.zeros_like(sums), root)
    return arguments.order.from_canonical(result.astype(x.dtype), arguments.batch_shape)


@partial(jax.jit, static_argnames=("output_shape", "layout"), inline=True)
def unpool(values: jax.Array, indices: jax.Array, *, output_shape: Any, layout: Layout) -> jax.Array:
    """The body of `max_unpool`."""
    operation = "max_unpool"
    check_arrays(operation, values=values, indices=indices)
    if values.shape != indices.shape:
        raise ValueError(f"{operation}: values {values.shape} and indices {indices.shape} must have the same shape")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{operation}: indices must be integers, got dtype {indices.dtype}")
    order = window_order(operation, values.shape, output_shape, layout)
    sizes = axis_values(operation, "output_shape", output_shape, order.rank)
    batch_shape, _, features = order.split_input(operation, values.shape)
    values, indices = order.to_canonical(operation, values), order.to_canonical(operation, indices)
    batch, plane = values.shape[0], math.prod(sizes)
    places = math.prod(values.shape[1:-1])
    flat = values.reshape(batch, places, features)
    # An index below 0 would count from the end: it goes past the end instead, where it is dropped. A narrow integer
    # does not reach that far.
    at = indices.astype(integer_at_least_int32(indices.dtype)).reshape(batch, places, features)
    at = jnp.where(at < 0, jnp.asarray(plane, at.dtype), at)
    rows, columns = np.arange(batch)[:, None, None], np.arange(features)[None, None, :]
    sharding = batch_sharding(flat)
    result = jnp.zeros((batch, plane, features), values.dtype, device=sharding)
    result = result.at[rows, at, columns].set(flat, mode="drop", out_sharding=sharding)
    return order.from_canonical(result.reshape(batch, *sizes, features), batch_shape)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_extremum(x: jax.Array, axis: int) -> jax.Array:
    """Maximum along an axis; NaN wins, and the derivative is the first maximum's alone."""
    return jnp.max(x, axis)


@_first_extremum.defjvp
def _first_extremum_jvp(axis: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    result = _first_extremum(x, axis)
    # The least position of what equals the maximum, or is NaN: argmax is a scalar loop, and what it takes is scattered
    # back, 8.7 ms for the gradient over 8x56x56x64 instead of 1.
    value = lax.stop_gradient(x)
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    best = jnp.expand_dims(lax.stop_gradient(result), axis)
    first = jnp.where((value == best) | (value != value), position, x.shape[axis]).min(axis, keepdims=True)
    return result, jnp.where(position == first, tangent, jnp.zeros((), tangent.dtype)).sum(axis)


def _adaptive_windows(size: int, output: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and number of pixels of each of `output` windows over `size` pixels (PyTorch's rule)."""
    places = np.arange(output)
    starts = places * size // output
    return starts, -(-(places + 1) * size // output) - starts


_MOST_WINDOWS = 32
"""Most windows of a period that are cut out one by one: more take long to compile. From 55x56 to 2x2 pixels, 2 images
of 64 channels, the gradient of the average takes 0.09 ms so and 0.32 where the windows are gathered, whose transpose
is a scatter."""


def _by_window(
    x: jax.Array,
    axis: int,
    output: int,
    reduce_axis: Callable[[jax.Array, int], jax.Array],
    gathered: Callable[[jax.Array, int, int], jax.Array],
) -> jax.Array:
    """One axis cut into `output` windows, each reduced by `reduce_axis`; by `gathered` where they are many."""
    size = x.shape[axis]
    periods = math.gcd(size, output)
    windows, pixels = output // periods, size // periods  # of a period, which no window crosses
    if windows > _MOST_WINDOWS:
        return gathered(x, axis, output)
    split = x.reshape(*x.shape[:axis], periods, pixels, *x.shape[axis + 1 :])
    parts = [
        reduce_axis(lax.slice_in_dim(split, start, start + length, axis=axis + 1), axis + 1)
        for start, length in zip(*_adaptive_windows(pixels, windows), strict=True)
    ]
    return jnp.stack(parts, axis + 1).reshape(*x.shape[:axis], output, *x.shape[axis + 1 :])


def _gathered_maxima(x: jax.Array, axis: int, output: int) -> jax.Array:
    starts, lengths = _adaptive_windows(x.shape[axis], output)
    # A window shorter than the longest one repeats its last pixel, which changes no maximum.
    taps = starts[:, None] + np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    return _first_extremum(jnp.take(x, taps, axis=axis), axis + 1)


def _gathered_sums(x: jax.Array, axis: int, output: int) -> jax.Array:
    starts, lengths = _adaptive_windows(x.shape[axis], output)
    offsets = np.arange(lengths.max())
    inside = np.expand_dims(offsets < lengths[:, None], tuple(range(2, x.ndim + 1 - axis)))
    taps = jnp.take(x, np.minimum(starts[:, None] + offsets, x.shape[axis] - 1), axis=axis)
    return jnp.where(inside, taps, jnp.zeros((), x.dtype)).sum(axis + 1)


def _first_maxima(x: jax.Array, outputs: tuple[int, ...]) -> jax.Array:
    """Maximum of each window, whose derivative is the first maximum's alone."""
    # The last axis first: the first maximum of a window's rows, and in that row, is the first in row-major order.
    for axis in range(len(outputs), 0, -1):
        x = _by_window(x, axis, outputs[axis - 1], _first_extremum, _gathered_maxima)
    return x


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _adaptive_maxima(x: jax.Array, outputs: tuple[int, ...]) -> jax.Array:
    """The same; the values alone are computed the first axis first, 4x112x112x64 to 5x5 in about lax's time."""
    for axis in range(1, len(outputs) + 1):
        x = _by_window(x, axis, outputs[axis - 1], jnp.max, _gathered_maxima)
    return x


@_adaptive_maxima.defjvp
def _adaptive_maxima_jvp(outputs: tuple[int, ...], primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(lambda x: _first_maxima(x, outputs), primals, tangents)


@partial(jax.jit, static_argnames=("kind", "output_shape", "layout"), inline=True)
def adaptive(x: jax.Array, *, kind: str, output_shape: Any, layout: Layout) -> jax.Array:
    """The body of `adaptive_avg_pool` and `adaptive_max_pool`."""
    operation = f"adaptive_{kind}_pool"
    check_arrays(operation, x=x)
    order = window_order(operation, x.shape, output_shape, layout)
    batch_shape, sizes, _ = order.split_input(operation, x.shape)
    if isinstance(output_shape, tuple) and len(output_shape) == order.rank:
        output_shape = tuple(
            size if wanted is None else wanted for size, wanted in zip(sizes, output_shape, strict=True)
        )
    outputs = axis_values(operation, "output_shape", output_shape, order.rank)
    if 0 in sizes:
        raise ValueError(f"{operation}: x has an empty spatial axis, sizes {sizes}")
    if kind == "max":
        _check_ordered(operation, x)
    if not any(size % output for size, output in zip(sizes, outputs, strict=True)):
        # All windows are alike: an ordinary pool, 3 to 6 times faster than windows that are gathered.
        window = tuple(size // output for size, output in zip(sizes, outputs, strict=True))
        tiling = {"window_shape": window, "strides": window, "padding": "VALID", "window_dilation": 1}
        tiling |= {"ceil_mode": False, "layout": layout}
        return extremum(x, mode="max", **tiling) if kind == "max" else average(x, count_include_pad=True, **tiling)
    y = order.to_canonical(operation, x)
    if kind == "max":
        y = _adaptive_maxima(y, outputs)
        return order.from_canonical(y, batch_shape)
    y = y.astype(accumulation_dtype(y.dtype))
    count = np.ones((1,) * y.ndim)
    for axis in range(1, order.rank + 1):
        y = _by_window(y, axis, outputs[axis - 1], jnp.sum, _gathered_sums)
        _, lengths = _adaptive_windows(sizes[axis - 1], outputs[axis - 1])
        count = count * np.expand_dims(lengths, tuple(range(1, y.ndim - axis)))
    dtype = _average_dtype(x.dtype)
    y = y.astype(floating_at_least_float32(dtype))
    y = (y / jnp.asarray(count, y.dtype)).astype(dtype)
    return order.from_canonical(y, batch_shape)


@partial(jax.jit, static_argnames=("kind", "layout", "keepdims"), inline=True)
def whole_plane(x: jax.Array, *, kind: str, layout: Layout, keepdims: bool) -> jax.Array:
    """The body of `global_avg_pool` and `global_max_pool`."""
    operation = f"global_{kind}_pool"
    check_arrays(operation, x=x)
    if layout is None and x.ndim < 3:
        raise ValueError(
            f"{operation}: x must have a batch axis, at least one spatial axis and a feature axis, got shape {x.shape}"
        )
    order = parse_layout(operation, layout, x.ndim - 2 if layout is None else None)
    batch_shape, sizes, features = order.split_input(operation, x.shape)
    if 0 in sizes:
        raise ValueError(f"{operation}: x has an empty spatial axis, sizes {sizes}")
    y = order.to_canonical(operation, x)
    y = y.reshape(y.shape[0], math.prod(sizes), features)
    if kind == "max":
        _check_ordered(operation, x)
        y = _first_extremum(y, 1)
    else:
        dtype = _average_dtype(x.dtype)
        y = y.astype(accumulation_dtype(x.dtype)).sum(1).astype(floating_at_least_float32(dtype))
        y = (y / jnp.asarray(math.prod(sizes), y.dtype)).astype(dtype)
    y = order.from_canonical(y.reshape(y.shape[0], *(1,) * order.rank, features), batch_shape)
    return y if keepdims else jnp.squeeze(y, order.output_spatial_axes(y.ndim))
