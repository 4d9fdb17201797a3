"""Pools: each public function with the body that checks its geometry and binds the primitives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.dtypes import (
    accumulation_dtype,
    average_dtype,
    check_arrays,
    floating_at_least_float32,
    integer_at_least_int32,
)
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Ints, Padding, Pair, axis_values
from jaxcnn.layout import Layout
from jaxcnn.lowering.pools.direct import pool_identity
from jaxcnn.options import PoolGeometry, PoolOptions, frozen, window_order
from jaxcnn.primitives import extremum_p, select_p, window_sum_p, winner_p


def max_pool(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> jax.Array:
    r"""Computes the maximum of each window.

    $y[n, o, c] = \max_t x[n, o s + t d - p, c]$; padding never wins and NaN always does. The gradient goes to the first
    maximum of a window, in row-major order; second derivatives are zero.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape: taps of the window; one int for each spatial axis, or an int (which without a layout means one batch
        axis).
      strides: step of the window, in pixels; an int, or one int for each spatial axis.
      padding: number of pixels added around x, as in `conv`.
      window_dilation: distance between neighbouring taps, in pixels.
      ceil_mode: flag that keeps a last window that hangs over the end, if the window starts inside the input or its low
        padding; a window that starts in the high padding is dropped.
      layout: order of the axes: None (channels-last), a string such as `"NCHW"`, or the triple that lax takes.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype, where
      output = floor((size + padding - (window - 1) * window_dilation - 1) / strides) + 1, ceil in `ceil_mode`. A window
      wholly on padding gives -inf, or the lowest number of a dtype without infinities, or False.

    Raises:
      ValueError: Shapes or options do not fit; a window is larger than its padded input.
      TypeError: x is complex; an option has the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(5, 1), (2,)).ravel()
      Array([3., 4., 4., 5.], dtype=float32)

    References:
      Equals `flax.linen.max_pool` and `torch.nn.functional.max_pool2d`, whose `ceil_mode` rule this is; the default
      stride is 1 as in Flax, not the window as in PyTorch. `lax.reduce_window` has no gradient with dilation.
    """
    with ErrorPrefix("max_pool"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return extremum(x, options, mode="max")


def min_pool(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> jax.Array:
    r"""Computes the minimum of each window.

    $y[n, o, c] = \min_t x[n, o s + t d - p, c]$; padding never wins and NaN always does. The gradient goes to the first
    minimum of a window, in row-major order.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options, as in `max_pool`.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype. A window wholly on padding gives inf, or the highest
      number of a dtype without infinities, or True.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> min_pool(jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(5, 1), (2,)).ravel()
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Equals `flax.linen.min_pool`.
    """
    with ErrorPrefix("min_pool"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return extremum(x, options, mode="min")


@partial(jax.jit, static_argnames=("options", "mode"), inline=True)
def extremum(x: jax.Array, options: PoolOptions, *, mode: str) -> jax.Array:
    """Computes `max_pool` or `min_pool`, by `mode`: `"max"` or `"min"`."""
    check_arrays(x=x)
    check_ordered(x)
    geometry = options.geometry(x.shape)
    x, params, _ = _operands(x, geometry)
    return geometry.order.from_canonical(extremum_p.bind(x, mode=mode, **params), geometry.batch_shape)


def check_ordered(x: jax.Array) -> None:
    """Refuses complex numbers, which have no order."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(f"complex numbers have no order, got x of dtype {x.dtype}")


def _operands(x: jax.Array, geometry: PoolGeometry) -> tuple[jax.Array, dict[str, Any], Ints]:
    """Returns the operand and the parameters of the pool primitives.

    Returns:
      x as (N, *spatial, C), cropped; the static parameters; the number of pixels cropped at the start of each axis.
    """
    x = geometry.order.to_canonical(x)
    x, padding, starts = _crop(x, geometry.padding, geometry.declared_padding)
    params = {
        "window_shape": geometry.window,
        "strides": geometry.strides,
        "padding": padding,
        "window_dilation": geometry.window_dilation,
    }
    return x, params, starts


def _crop(x: jax.Array, padding: Sequence[Pair], declared: Sequence[Pair]) -> tuple[jax.Array, tuple[Pair, ...], Ints]:
    """Crops (N, *spatial, C) where the padding is negative.

    The pixels that the declared padding crops are hidden from a window that hangs over the end, too.

    Returns:
      The cropped array, the padding that remains, and the number of pixels cropped at the start of each axis.
    """
    remaining_padding, starts = [], []
    for axis, ((low, high), (_, declared_high)) in enumerate(zip(padding, declared, strict=True), start=1):
        size = x.shape[axis]
        start = 0
        if min(low, high) < 0 or min(low, declared_high) < 0:
            cut = min(high, declared_high, 0)
            start = min(max(-low, 0), size)
            stop = max(size + cut, start)
            x = lax.slice_in_dim(x, start, stop, axis=axis)
            low, high = (max(low, 0), high - cut) if stop > start else (0, size + low + high)
        remaining_padding.append((low, high))
        starts.append(start)
    return x, tuple(remaining_padding), tuple(starts)


def sum_pool(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> jax.Array:
    r"""Adds up each window.

    $y[n, o, c] = \sum_t x[n, o s + t d - p, c]$, padding counted as zero.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options, as in `max_pool`.

    Returns:
      `(*batch, *output, C)` in x's order of axes; in x's dtype, int32 for narrower integers and booleans. 16-bit floats
      are summed in float32 and rounded once.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> sum_pool(jnp.ones((4, 1), jnp.int8) * 100, (2,)).ravel()
      Array([200, 200, 200], dtype=int32)

    References:
      Equals `lax.reduce_window` with `lax.add`, which however rounds 16-bit floats at each step (1024 ones give 256 in
      bfloat16) and wraps int8.
    """
    with ErrorPrefix("sum_pool"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return _sum(x, options)


@partial(jax.jit, static_argnames="options", inline=True)
def _sum(x: jax.Array, options: PoolOptions) -> jax.Array:
    """Computes `sum_pool`."""
    check_arrays(x=x)
    geometry = options.geometry(x.shape)
    result = _window_sums(x, geometry)
    if jnp.issubdtype(x.dtype, jnp.inexact):
        result = result.astype(x.dtype)
    return geometry.order.from_canonical(result, geometry.batch_shape)


def _window_sums(x: jax.Array, geometry: PoolGeometry) -> jax.Array:
    """Returns the sum of each window in the accumulation dtype, (N, *output, C)."""
    x, params, _ = _operands(x.astype(accumulation_dtype(x.dtype)), geometry)
    return window_sum_p.bind(x, **params)


def avg_pool(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    layout: Layout = None,
) -> jax.Array:
    r"""Computes the average of each window.

    $y[n, o, c] = \frac{1}{m_o} \sum_t x[n, o s + t d - p, c]$, where $m_o$ counts the taps of the window.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options, as in `max_pool`.
      count_include_pad: flag that counts taps on padding in $m_o$; taps that hang over the end in `ceil_mode` are
        never counted.

    Returns:
      `(*batch, *output, C)` in x's order of axes; in x's dtype, float32 for integers and booleans. 0 where no tap
      counts.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([2.0, 4.0, 6.0]).reshape(3, 1)
      >>> avg_pool(x, (2,), padding=((1, 0),)).ravel()
      Array([1., 3., 5.], dtype=float32)
      >>> avg_pool(x, (2,), padding=((1, 0),), count_include_pad=False).ravel()
      Array([2., 3., 5.], dtype=float32)

    References:
      Equals `torch.nn.functional.avg_pool2d` and `flax.linen.avg_pool` with the same `count_include_pad`;
      TensorFlow and Keras never count padding.
    """
    with ErrorPrefix("avg_pool"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return average(x, options, count_include_pad=bool(count_include_pad))


@partial(jax.jit, static_argnames=("options", "count_include_pad"), inline=True)
def average(x: jax.Array, options: PoolOptions, *, count_include_pad: bool) -> jax.Array:
    """Computes `avg_pool`."""
    check_arrays(x=x)
    geometry = options.geometry(x.shape)
    dtype = average_dtype(x.dtype)
    result = _window_sums(x, geometry).astype(floating_at_least_float32(dtype))
    counts = jnp.asarray(_counts(geometry, count_include_pad, result.dtype))
    result = result / jnp.maximum(counts, 1).astype(result.dtype).reshape(
        (1,) * (result.ndim - counts.ndim) + counts.shape
    )
    return geometry.order.from_canonical(result.astype(dtype), geometry.batch_shape)


def _counts(geometry: PoolGeometry, count_include_pad: bool, dtype: np.dtype) -> Any:
    """Returns the number of taps of each window that count, as a constant that broadcasts with (N, *output, C)."""
    rank = geometry.order.rank
    bounds = []
    for size, (low, high) in zip(geometry.sizes, geometry.declared_padding, strict=True):
        if not count_include_pad:
            # The symbolic padding of "SAME" is never negative.
            low, high = (min(value, 0) if isinstance(value, int) else 0 for value in (low, high))
        bounds.append((-low, size + high))
    axes = []
    for axis in range(rank):
        output, step, low = geometry.output_sizes[axis], geometry.strides[axis], geometry.padding[axis][0]
        taps = np.arange(geometry.window[axis]) * geometry.window_dilation[axis]
        start, stop = bounds[axis]
        # With a symbolic size the positions are a traced array, else a NumPy constant.
        positions = _arange(output)[:, None] * step - _value(low) + taps[None]
        inside = (positions >= _value(start)) & (positions < _value(stop))
        axes.append(inside.sum(1).reshape(*(1,) * axis, -1, *(1,) * (rank - axis)))
    counts = reduce(lambda a, b: a * b, axes)
    if isinstance(counts, np.ndarray) and counts.min(initial=1) == counts.max(initial=1):
        return np.asarray(counts.flat[0] if counts.size else 1, dtype)
    return counts.astype(dtype)


def _arange(size: Any) -> Any:
    """Returns 0, 1, ..., size - 1: a NumPy array, or a traced one for a symbolic size."""
    return np.arange(size) if isinstance(size, int) else lax.iota(jnp.int32, size)


def _value(size: Any) -> Any:
    """Returns a size as a number, traced if it is symbolic."""
    return size if isinstance(size, int) else jnp.asarray(size, jnp.int32)


def lp_pool(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    p: float = 2,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> jax.Array:
    r"""Computes the p-norm of each window.

    $y[n, o, c] = \left( \sum_t |x[n, o s + t d - p_0, c]|^p \right)^{1/p}$. The gradient of a window of zeros is 0.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options, as in `max_pool`.
      p: order of the norm, at least 1; infinity gives the largest magnitude.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype.

    Raises:
      ValueError: arguments of `max_pool`; p is below 1.
      TypeError: x is not of real floats.

    Example:
      >>> import jax.numpy as jnp
      >>> lp_pool(jnp.array([3.0, 4.0, 0.0]).reshape(3, 1), (2,)).ravel()
      Array([5., 4.], dtype=float32)

    References:
      Equals `torch.nn.functional.lp_pool2d` for even p, and ONNX's LpPool; for odd p PyTorch adds signed powers, and
      in `ceil_mode` it scales a window that hangs over the end as if it were full.
    """
    with ErrorPrefix("lp_pool"):
        p_order = float(p)
        if not p_order >= 1:
            raise ValueError(f"p must be at least 1, got {p!r}")
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return _norm(x, options, p=p_order)


@partial(jax.jit, static_argnames=("options", "p"), inline=True)
def _norm(x: jax.Array, options: PoolOptions, *, p: float) -> jax.Array:
    """Computes `lp_pool`."""
    check_arrays(x=x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be of real floats, got dtype {x.dtype}")
    geometry = options.geometry(x.shape)
    wide = x.astype(floating_at_least_float32(x.dtype))
    if math.isinf(p):
        magnitude, params, _ = _operands(jnp.abs(wide), geometry)
        # A window without a pixel has norm 0.
        result = jnp.maximum(extremum_p.bind(magnitude, mode="max", **params), jnp.zeros((), wide.dtype))
    else:
        powers = jnp.square(wide) if p == 2 else jnp.abs(wide) ** p
        sums = _window_sums(powers, geometry)
        # The root has no derivative at 0: there the result is constant 0, and its gradient 0 rather than NaN.
        is_zero = sums == 0
        safe = jnp.where(is_zero, jnp.ones_like(sums), sums)
        root = jnp.sqrt(safe) if p == 2 else safe ** (1 / p)
        result = jnp.where(is_zero, jnp.zeros_like(sums), root)
    return geometry.order.from_canonical(result.astype(x.dtype), geometry.batch_shape)


def max_pool_with_indices(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> tuple[jax.Array, jax.Array]:
    r"""Computes the maximum of each window and its index in the plane.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options, as in `max_pool`.

    Returns:
      The values of `max_pool`, and an int32 array of the same shape: the index of each window's first maximum in the
      unpadded spatial plane, flattened in row-major order (h * W + w in 2-D); -1 where a window is wholly on padding.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> values, indices = max_pool_with_indices(jnp.array([3.0, 1.0, 4.0, 4.0]).reshape(4, 1), (2,), strides=2)
      >>> values.ravel(), indices.ravel()
      (Array([3., 4.], dtype=float32), Array([0, 2], dtype=int32))

    References:
      Equals `torch.nn.functional.max_pool2d(..., return_indices=True)`, with int32 for int64.
      `max_unpool` puts the values back.
    """
    with ErrorPrefix("max_pool_with_indices"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return _max_with_indices(x, options)


@partial(jax.jit, static_argnames="options", inline=True)
def _max_with_indices(x: jax.Array, options: PoolOptions) -> tuple[jax.Array, jax.Array]:
    """Computes `max_pool_with_indices`."""
    check_arrays(x=x)
    check_ordered(x)
    geometry = options.geometry(x.shape)
    cropped, params, starts = _operands(x, geometry)
    index = winner_p.bind(lax.stop_gradient(cropped), mode="max", padding_wins=False, **params)
    is_empty = index < 0
    maxima = select_p.bind(cropped, index, **params)
    values = jnp.where(is_empty, jnp.asarray(pool_identity("max", cropped.dtype)), maxima)
    if cropped.shape[1:-1] != tuple(geometry.sizes):
        index = jnp.where(is_empty, index, _index_in_whole(index, cropped.shape[1:-1], geometry.sizes, starts))
    unflatten = partial(geometry.order.from_canonical, batch_shape=geometry.batch_shape)
    return unflatten(values), unflatten(index)


def _index_in_whole(
    index: jax.Array, sizes: Sequence[int], whole_sizes: Sequence[int], starts: Sequence[int]
) -> jax.Array:
    """Returns the flat indices in the whole plane of flat indices in the cropped plane.

    Args:
      index: flat indices in the cropped plane.
      sizes: sizes of the cropped plane.
      whole_sizes: sizes of the whole plane.
      starts: number of pixels cropped at the start of each axis.
    """
    quotient, whole_index, scale = index, jnp.zeros_like(index), 1
    for size, whole_size, start in zip(sizes[::-1], whole_sizes[::-1], starts[::-1], strict=True):
        whole_index = whole_index + (quotient % size + start) * scale
        quotient, scale = quotient // size, scale * whole_size
    return whole_index


def max_unpool(values: ArrayLike, indices: ArrayLike, output_shape: IntOrInts, *, layout: Layout = None) -> jax.Array:
    r"""Puts the values of a max pool back where they came from, zeros elsewhere.

    The function inverts `max_pool_with_indices` on the maxima; a pixel that won several windows gets its value once.

    Args:
      values: `(*batch, *pooled, C)`, or as `layout` says.
      indices: array of the same shape; indices into the flattened plane of `output_shape`, -1 for a value to leave out.
      output_shape: spatial sizes of the result; one int for each spatial axis, or an int (which without a layout means
        one batch axis).
      layout: order of the axes, as in `max_pool`.

    Returns:
      `(*batch, *output_shape, C)` in the order of axes and dtype of `values`.

    Raises:
      ValueError: `values` and `indices` have different shapes; options do not fit.
      TypeError: The indices are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> max_unpool(jnp.array([[3.0], [4.0]]), jnp.array([[0], [2]]), (4,)).ravel()
      Array([3., 0., 4., 0.], dtype=float32)

    References:
      Equals `torch.nn.functional.max_unpool2d`, which leaves open which of several equal indices wins.
    """
    with ErrorPrefix("max_unpool"):
        return _unpool(values, indices, output_shape=frozen(output_shape), layout=frozen(layout))


@partial(jax.jit, static_argnames=("output_shape", "layout"), inline=True)
def _unpool(values: jax.Array, indices: jax.Array, *, output_shape: Any, layout: Layout) -> jax.Array:
    """Computes `max_unpool`."""
    check_arrays(values=values, indices=indices)
    if values.shape != indices.shape:
        raise ValueError(f"values {values.shape} and indices {indices.shape} must have the same shape")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    order = window_order(values.shape, output_shape, layout)
    sizes = axis_values("output_shape", output_shape, order.rank)
    batch_shape, _, features = order.split_input(values.shape)
    values, indices = order.to_canonical(values), order.to_canonical(indices)
    batch, plane = values.shape[0], math.prod(sizes)
    pixels = math.prod(values.shape[1:-1])
    flat = values.reshape(batch, pixels, features)
    # An index below 0 would count from the end, so its value would be written there. An index past the end is dropped.
    # A narrow integer cannot hold such an index, so the indices are widened.
    positions = indices.astype(integer_at_least_int32(indices.dtype)).reshape(batch, pixels, features)
    positions = jnp.where(positions < 0, jnp.asarray(plane, positions.dtype), positions)

    def plane_of(values: jax.Array, positions: jax.Array) -> jax.Array:
        return jnp.zeros(plane, values.dtype).at[positions].set(values, mode="drop")

    # The maps over images and features let a program for several devices split along both.
    result = jax.vmap(jax.vmap(plane_of, -1, -1))(flat, positions)
    return order.from_canonical(result.reshape(batch, *sizes, features), batch_shape)
