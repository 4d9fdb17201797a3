"""Pools whose windows follow from the output: adaptive and global ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.dtypes import accumulation_dtype, average_dtype, check_arrays, floating_at_least_float32
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import Ints, axis_values
from jaxcnn.layout import Layout, parse_layout
from jaxcnn.options import PoolOptions, frozen, window_order
from jaxcnn.pooling import average, check_ordered, extremum

MAX_OUTPUT_SIZE = 10**7
"""Largest size of an adaptive pool's output on an axis; each has a window of its own."""


def adaptive_avg_pool(x: ArrayLike, output_shape: Any, *, layout: Layout = None) -> jax.Array:
    r"""Averages over as many windows as the output has pixels, whatever the input's size.

    Output o of q averages the inputs from $\lfloor o n / q \rfloor$ to $\lceil (o + 1) n / q \rceil - 1$ of n.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      output_shape: spatial sizes of the result; one int for each spatial axis (None keeps that axis), or an int (which
        without a layout means one batch axis).
      layout: order of the axes, as in `max_pool`.

    Returns:
      `(*batch, *output_shape, C)` in x's order of axes; in x's dtype, float32 for integers and booleans.

    Raises:
      ValueError: Options do not fit; a spatial axis is empty.

    Example:
      >>> import jax.numpy as jnp
      >>> adaptive_avg_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel()
      Array([1., 3.], dtype=float32)

    References:
      Equals `torch.nn.functional.adaptive_avg_pool2d`.
    """
    with ErrorPrefix("adaptive_avg_pool"):
        return _adaptive(x, kind="avg", output_shape=frozen(output_shape), layout=frozen(layout))


def adaptive_max_pool(x: ArrayLike, output_shape: Any, *, layout: Layout = None) -> jax.Array:
    r"""Takes the maximum over as many windows as the output has pixels, whatever the input's size.

    Output o of q takes the inputs from $\lfloor o n / q \rfloor$ to $\lceil (o + 1) n / q \rceil - 1$ of n; NaN wins,
    and the gradient goes to the first maximum.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      output_shape, layout: arguments of `adaptive_avg_pool`.

    Returns:
      `(*batch, *output_shape, C)` in x's order of axes and dtype.

    Raises:
      ValueError: Options do not fit; a spatial axis is empty.
      TypeError: x is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> adaptive_max_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel()
      Array([2., 4.], dtype=float32)

    References:
      Equals `torch.nn.functional.adaptive_max_pool2d`.
    """
    with ErrorPrefix("adaptive_max_pool"):
        return _adaptive(x, kind="max", output_shape=frozen(output_shape), layout=frozen(layout))


@partial(jax.jit, static_argnames=("kind", "output_shape", "layout"), inline=True)
def _adaptive(x: jax.Array, *, kind: str, output_shape: Any, layout: Layout) -> jax.Array:
    """Computes an adaptive pool of a kind, `"avg"` or `"max"`, in the user's layout."""
    check_arrays(x=x)
    order = window_order(x.shape, output_shape, layout)
    batch_shape, sizes, _ = order.split_input(x.shape)
    if not all(isinstance(size, int) for size in sizes):
        raise ValueError(
            f"the windows of an adaptive pool depend on the image, so its sizes must be numbers, got {sizes}; only "
            "batch axes may be symbolic, and a global pool takes images of any size"
        )
    if isinstance(output_shape, tuple) and len(output_shape) == order.rank:
        output_shape = tuple(
            size if output is None else output for size, output in zip(sizes, output_shape, strict=True)
        )
    outputs = axis_values("output_shape", output_shape, order.rank)
    if max(outputs) > MAX_OUTPUT_SIZE:
        raise ValueError(f"output_shape must be at most {MAX_OUTPUT_SIZE} on every axis, got {outputs}")
    if 0 in sizes:
        raise ValueError(f"x has an empty spatial axis, sizes {sizes}")
    if kind == "max":
        check_ordered(x)
    if not any(size % output for size, output in zip(sizes, outputs, strict=True)):
        # All windows are alike: an ordinary pool is faster than windows that are gathered.
        window = tuple(size // output for size, output in zip(sizes, outputs, strict=True))
        options = PoolOptions.of(window_shape=window, strides=window, layout=layout)
        return extremum(x, options, mode="max") if kind == "max" else average(x, options, count_include_pad=True)
    y = order.to_canonical(x)
    if kind == "max":
        y = _adaptive_maxima(y, outputs)
        return order.from_canonical(y, batch_shape)
    y = y.astype(accumulation_dtype(y.dtype))
    count = np.ones((1,) * y.ndim)
    for axis in range(1, order.rank + 1):
        y = _by_window(y, axis, outputs[axis - 1], jnp.sum, _sums_by_gather)
        _, lengths = _adaptive_windows(sizes[axis - 1], outputs[axis - 1])
        count = count * np.expand_dims(lengths, tuple(range(1, y.ndim - axis)))
    dtype = average_dtype(x.dtype)
    y = y.astype(floating_at_least_float32(dtype))
    y = (y / jnp.asarray(count, y.dtype)).astype(dtype)
    return order.from_canonical(y, batch_shape)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _adaptive_maxima(x: jax.Array, outputs: Ints) -> jax.Array:
    """Returns the maximum of each window, with the derivative of `_first_maxima`.

    The order of the axes does not matter to the values, and the first axis first is faster.
    """
    for axis in range(1, len(outputs) + 1):
        x = _by_window(x, axis, outputs[axis - 1], jnp.max, _maxima_by_gather)
    return x


@_adaptive_maxima.defjvp
def _adaptive_maxima_jvp(outputs: Ints, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(lambda x: _first_maxima(x, outputs), primals, tangents)


def _first_maxima(x: jax.Array, outputs: Ints) -> jax.Array:
    """Returns the maximum of each window; its derivative goes to the first maximum alone."""
    # The last axis comes first: the first of the rows' maxima, and the first in that row, is the first in row-major
    # order.
    for axis in range(len(outputs), 0, -1):
        x = _by_window(x, axis, outputs[axis - 1], _first_extremum, _maxima_by_gather)
    return x


_MAX_SLICED_WINDOWS = 32
"""Largest number of windows of a period that are cut out one by one. More would take long to compile; they are gathered
instead, whose transpose is a slower scatter."""


def _by_window(
    x: jax.Array,
    axis: int,
    output: int,
    reduce_axis: Callable[[jax.Array, int], jax.Array],
    reduce_gathered: Callable[[jax.Array, int, int], jax.Array],
) -> jax.Array:
    """Cuts one axis into `output` windows and reduces each by `reduce_axis`, or all by `reduce_gathered` if many."""
    size = x.shape[axis]
    periods = math.gcd(size, output)
    windows, pixels = output // periods, size // periods  # of one period, which no window crosses
    if windows > _MAX_SLICED_WINDOWS:
        return reduce_gathered(x, axis, output)
    split = x.reshape(*x.shape[:axis], periods, pixels, *x.shape[axis + 1 :])
    parts = [
        reduce_axis(lax.slice_in_dim(split, start, start + length, axis=axis + 1), axis + 1)
        for start, length in zip(*_adaptive_windows(pixels, windows), strict=True)
    ]
    return jnp.stack(parts, axis + 1).reshape(*x.shape[:axis], output, *x.shape[axis + 1 :])


def _adaptive_windows(size: int, output: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first pixel and the number of pixels of each of `output` windows over `size` pixels (PyTorch's)."""
    windows = np.arange(output)
    starts = windows * size // output
    return starts, -(-(windows + 1) * size // output) - starts


def _maxima_by_gather(x: jax.Array, axis: int, output: int) -> jax.Array:
    starts, lengths = _adaptive_windows(x.shape[axis], output)
    # A window shorter than the longest one repeats its last pixel, which changes no maximum.
    taps = starts[:, None] + np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)
    return _first_extremum(jnp.take(x, taps, axis=axis), axis + 1)


def _sums_by_gather(x: jax.Array, axis: int, output: int) -> jax.Array:
    starts, lengths = _adaptive_windows(x.shape[axis], output)
    offsets = np.arange(lengths.max())
    inside = np.expand_dims(offsets < lengths[:, None], tuple(range(2, x.ndim + 1 - axis)))
    taps = jnp.take(x, np.minimum(starts[:, None] + offsets, x.shape[axis] - 1), axis=axis)
    return jnp.where(inside, taps, jnp.zeros((), x.dtype)).sum(axis + 1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _first_extremum(x: jax.Array, axis: int) -> jax.Array:
    """Returns the maximum along an axis; NaN wins, and the derivative goes to the first maximum alone."""
    return jnp.max(x, axis)


@_first_extremum.defjvp
def _first_extremum_jvp(axis: int, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    result = _first_extremum(x, axis)
    # The winner is the least position of a value that equals the maximum or is NaN. XLA's argmax is a slow scalar loop.
    value = lax.stop_gradient(x)
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    best = jnp.expand_dims(lax.stop_gradient(result), axis)
    first = jnp.where((value == best) | (value != value), position, x.shape[axis]).min(axis, keepdims=True)
    return result, jnp.where(position == first, tangent, jnp.zeros((), tangent.dtype)).sum(axis)


def global_avg_pool(x: ArrayLike, *, layout: Layout = None, keepdims: bool = False) -> jax.Array:
    r"""Averages each channel over all pixels.

    $y[n, c] = \frac{1}{P} \sum_o x[n, o, c]$ over the P pixels.

    Args:
      x: `(N, *spatial, C)`, or as `layout` says; without a layout the first axis is the batch.
      layout: order of the axes, as in `max_pool`.
      keepdims: flag that keeps the spatial axes, with size 1.

    Returns:
      `(N, C)`, or `(N, 1, ..., 1, C)` with `keepdims`, in x's order of axes; in x's dtype, float32 for integers and
      booleans. 16-bit floats are summed in float32.

    Raises:
      ValueError: There is no spatial axis, or an empty one.

    Example:
      >>> import jax.numpy as jnp
      >>> global_avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))
      Array([[1.5]], dtype=float32)

    References:
      Equals `keras.layers.GlobalAveragePooling2D`.
    """
    with ErrorPrefix("global_avg_pool"):
        return _global(x, kind="avg", layout=frozen(layout), keepdims=bool(keepdims))


def global_max_pool(x: ArrayLike, *, layout: Layout = None, keepdims: bool = False) -> jax.Array:
    r"""Takes the maximum of each channel over all pixels.

    $y[n, c] = \max_o x[n, o, c]$; NaN wins, and the gradient goes to the first maximum.

    Args:
      x: `(N, *spatial, C)`, or as `layout` says; without a layout the first axis is the batch.
      layout, keepdims: options of `global_avg_pool`.

    Returns:
      `(N, C)`, or `(N, 1, ..., 1, C)` with `keepdims`, in x's order of axes and dtype.

    Raises:
      ValueError: There is no spatial axis, or an empty one.
      TypeError: x is complex.

    Example:
      >>> import jax.numpy as jnp
      >>> global_max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))
      Array([[3.]], dtype=float32)

    References:
      Equals `keras.layers.GlobalMaxPooling2D`; where several pixels are maximal, `jnp.max` shares the gradient among
      them.
    """
    with ErrorPrefix("global_max_pool"):
        return _global(x, kind="max", layout=frozen(layout), keepdims=bool(keepdims))


@partial(jax.jit, static_argnames=("kind", "layout", "keepdims"), inline=True)
def _global(x: jax.Array, *, kind: str, layout: Layout, keepdims: bool) -> jax.Array:
    """Computes a pool of a kind, `"avg"` or `"max"`, over the whole image, in the user's layout."""
    check_arrays(x=x)
    if layout is None and x.ndim < 3:
        raise ValueError(f"x must have a batch axis, at least one spatial axis and a feature axis, got shape {x.shape}")
    order = parse_layout(layout, x.ndim - 2 if layout is None else None)
    batch_shape, sizes, features = order.split_input(x.shape)
    if 0 in sizes:
        raise ValueError(f"x has an empty spatial axis, sizes {sizes}")
    y = order.to_canonical(x)
    y = y.reshape(y.shape[0], math.prod(sizes), features)
    if kind == "max":
        check_ordered(x)
        y = _first_extremum(y, 1)
    else:
        dtype = average_dtype(x.dtype)
        y = y.astype(accumulation_dtype(x.dtype)).sum(1).astype(floating_at_least_float32(dtype))
        y = (y / jnp.asarray(math.prod(sizes), y.dtype)).astype(dtype)
    y = order.from_canonical(y.reshape(y.shape[0], *(1,) * order.rank, features), batch_shape)
    return y if keepdims else jnp.squeeze(y, order.output_spatial_axes(y.ndim))
