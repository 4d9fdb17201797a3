"""Pools as users call them; `_pooling.py` checks the arguments and binds the primitives."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

from jaxcnn.arguments import IntOrInts, frozen
from jaxcnn.geometry import Padding
from jaxcnn.layout import Layout


def bodies() -> Any:
    """`_pooling`, imported at the first call: JAX's extension modules would be half of the import time."""
    from jaxcnn import _pooling

    return _pooling


def _frozen_options(
    window_shape: IntOrInts,
    strides: IntOrInts,
    padding: Padding,
    window_dilation: IntOrInts,
    ceil_mode: bool,
    layout: Layout,
) -> dict[str, Any]:
    return {
        "window_shape": frozen(window_shape),
        "strides": frozen(strides),
        "padding": frozen(padding),
        "window_dilation": frozen(window_dilation),
        "ceil_mode": bool(ceil_mode),
        "layout": frozen(layout),
    }


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
    r"""Maximum of each window.

    $y[n, o, c] = \max_t x[n, o s + t d - p, c]$; padding never wins and NaN always does. The gradient goes to the first
    maximum of a window, in row-major order; second derivatives are zero.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape: taps of the window; one int for each spatial axis, or an int (without a layout: one batch axis).
      strides: step of the window, in pixels; an int or one for each spatial axis.
      padding: as in `conv`.
      window_dilation: distance between neighbouring taps, in pixels.
      ceil_mode: also keep a last window that hangs over the end, if it starts inside the input or its low padding; one
        that starts in the high padding is dropped.
      layout: None (channels-last), a string such as `"NCHW"`, or the triple that lax takes.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype, where
      output = floor((size + padding - (window - 1) * window_dilation - 1) / strides) + 1, ceil in `ceil_mode`. A window
      wholly on padding gives -inf, the lowest integer or False.

    Raises:
      ValueError: shapes or options that do not fit; a window larger than its padded input.
      TypeError: complex x; an option of the wrong type.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(5, 1), (2,)).ravel()
      Array([3., 4., 4., 5.], dtype=float32)

    References:
      Equals `flax.linen.max_pool` and `torch.nn.functional.max_pool2d`, whose `ceil_mode` rule this is; the default
      stride is 1 as in Flax, not the window as in PyTorch. `lax.reduce_window` has no gradient with dilation.
    """
    return bodies().extremum(
        x, mode="max", **_frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout)
    )


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
    r"""Minimum of each window.

    $y[n, o, c] = \min_t x[n, o s + t d - p, c]$; padding never wins and NaN always does. The gradient goes to the first
    minimum of a window, in row-major order.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: as in `max_pool`.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype. A window wholly on padding gives inf, the highest integer
      or True.

    Raises:
      ValueError, TypeError: as in `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> min_pool(jnp.array([3.0, 1.0, 4.0, 1.0, 5.0]).reshape(5, 1), (2,)).ravel()
      Array([1., 1., 1., 1.], dtype=float32)

    References:
      Equals `flax.linen.min_pool`.
    """
    return bodies().extremum(
        x, mode="min", **_frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout)
    )


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
    r"""Sum of each window.

    $y[n, o, c] = \sum_t x[n, o s + t d - p, c]$, padding counted as zero.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: as in `max_pool`.

    Returns:
      `(*batch, *output, C)` in x's order of axes; in x's dtype, int32 for narrower integers and booleans. 16-bit floats
      are summed in float32 and rounded once.

    Raises:
      ValueError, TypeError: as in `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> sum_pool(jnp.ones((4, 1), jnp.int8) * 100, (2,)).ravel()
      Array([200, 200, 200], dtype=int32)

    References:
      Equals `lax.reduce_window` with `lax.add`, which however rounds 16-bit floats at each step (1024 ones give 256 in
      bfloat16) and wraps int8.
    """
    return bodies().total(x, **_frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout))


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
    r"""Average of each window.

    $y[n, o, c] = \frac{1}{m_o} \sum_t x[n, o s + t d - p, c]$, where $m_o$ counts the taps of the window.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: as in `max_pool`.
      count_include_pad: whether $m_o$ counts taps on padding; those that hang over the end in `ceil_mode` are never
        counted.

    Returns:
      `(*batch, *output, C)` in x's order of axes; in x's dtype, float32 for integers and booleans. 0 where no tap
      counts.

    Raises:
      ValueError, TypeError: as in `max_pool`.

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
    options = _frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout)
    return bodies().average(x, count_include_pad=bool(count_include_pad), **options)


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
    r"""p-norm of each window.

    $y[n, o, c] = \left( \sum_t |x[n, o s + t d - p_0, c]|^p \right)^{1/p}$. The gradient of a window of zeros is 0.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: as in `max_pool`.
      p: order of the norm, at least 1; infinity gives the largest magnitude.

    Returns:
      `(*batch, *output, C)` in x's order of axes and dtype.

    Raises:
      ValueError: as in `max_pool`; p below 1.
      TypeError: x is not of real floats.

    Example:
      >>> import jax.numpy as jnp
      >>> lp_pool(jnp.array([3.0, 4.0, 0.0]).reshape(3, 1), (2,)).ravel()
      Array([5., 4.], dtype=float32)

    References:
      Equals `torch.nn.functional.lp_pool2d` for even p, and ONNX's LpPool; for odd p PyTorch adds signed powers, and
      in `ceil_mode` it scales a window that hangs over the end as if it were full.
    """
    order = float(p)
    if not order >= 1:
        raise ValueError(f"lp_pool: p must be at least 1, got {p!r}")
    options = _frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout)
    return bodies().norm(x, p=order, **options)


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
    r"""Maximum of each window, and where it stands.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: as in `max_pool`.

    Returns:
      The values of `max_pool`, and of the same shape the int32 index of each window's first maximum in its unpadded
      spatial plane, flattened in row-major order (h * W + w in 2-D); -1 where a window is wholly on padding.

    Raises:
      ValueError, TypeError: as in `max_pool`.

    Example:
      >>> import jax.numpy as jnp
      >>> values, indices = max_pool_with_indices(jnp.array([3.0, 1.0, 4.0, 4.0]).reshape(4, 1), (2,), strides=2)
      >>> values.ravel(), indices.ravel()
      (Array([3., 4.], dtype=float32), Array([0, 2], dtype=int32))

    References:
      Equals `torch.nn.functional.max_pool2d(..., return_indices=True)`, with int32 for int64.
      `max_unpool` puts the values back.
    """
    return bodies().extremum_with_indices(
        x, **_frozen_options(window_shape, strides, padding, window_dilation, ceil_mode, layout)
    )


def max_unpool(values: ArrayLike, indices: ArrayLike, output_shape: IntOrInts, *, layout: Layout = None) -> jax.Array:
    r"""Puts the values of a max pool back where they came from, zeros elsewhere.

    The inverse of `max_pool_with_indices` on the maxima; a pixel that won several windows gets its value once.

    Args:
      values: `(*batch, *pooled, C)`, or as `layout` says.
      indices: of the same shape, flat in the plane of `output_shape`; -1 puts nothing.
      output_shape: spatial sizes of the result; one int for each spatial axis, or an int (without a layout: one batch
        axis).
      layout: as in `max_pool`.

    Returns:
      `(*batch, *output_shape, C)` in the order of axes and dtype of `values`.

    Raises:
      ValueError: `values` and `indices` of different shapes; options that do not fit.
      TypeError: indices that are not integers.

    Example:
      >>> import jax.numpy as jnp
      >>> max_unpool(jnp.array([[3.0], [4.0]]), jnp.array([[0], [2]]), (4,)).ravel()
      Array([3., 0., 4., 0.], dtype=float32)

    References:
      Equals `torch.nn.functional.max_unpool2d`, which leaves open which of several equal indices wins.
    """
    return bodies().unpool(values, indices, output_shape=frozen(output_shape), layout=frozen(layout))
