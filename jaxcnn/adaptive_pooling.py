"""Pools whose windows follow from the output: adaptive and global ones; `_pooling.py` binds the primitives."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike

from jaxcnn.arguments import frozen
from jaxcnn.layout import Layout
from jaxcnn.pooling import bodies


def adaptive_avg_pool(x: ArrayLike, output_shape: Any, *, layout: Layout = None) -> jax.Array:
    r"""Average over as many windows as the output has pixels, whatever the input's size.

    Output o of q averages the inputs from $\lfloor o n / q \rfloor$ to $\lceil (o + 1) n / q \rceil - 1$ of n.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      output_shape: spatial sizes of the result; one int for each spatial axis (None keeps that axis), or an int
        (without a layout: one batch axis).
      layout: as in `max_pool`.

    Returns:
      `(*batch, *output_shape, C)` in x's order of axes; in x's dtype, float32 for integers and booleans.

    Raises:
      ValueError: options that do not fit; an empty spatial axis.

    Example:
      >>> import jax.numpy as jnp
      >>> adaptive_avg_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel()
      Array([1., 3.], dtype=float32)

    References:
      Equals `torch.nn.functional.adaptive_avg_pool2d`.
    """
    return bodies().adaptive(x, kind="avg", output_shape=frozen(output_shape), layout=frozen(layout))


def adaptive_max_pool(x: ArrayLike, output_shape: Any, *, layout: Layout = None) -> jax.Array:
    r"""Maximum over as many windows as the output has pixels, whatever the input's size.

    Output o of q takes the inputs from $\lfloor o n / q \rfloor$ to $\lceil (o + 1) n / q \rceil - 1$ of n; NaN wins,
    and the gradient goes to the first maximum.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says; real floats, integers or booleans.
      output_shape, layout: as in `adaptive_avg_pool`.

    Returns:
      `(*batch, *output_shape, C)` in x's order of axes and dtype.

    Raises:
      ValueError: options that do not fit; an empty spatial axis.
      TypeError: complex x.

    Example:
      >>> import jax.numpy as jnp
      >>> adaptive_max_pool(jnp.arange(5.0).reshape(5, 1), (2,)).ravel()
      Array([2., 4.], dtype=float32)

    References:
      Equals `torch.nn.functional.adaptive_max_pool2d`.
    """
    return bodies().adaptive(x, kind="max", output_shape=frozen(output_shape), layout=frozen(layout))


def global_avg_pool(x: ArrayLike, *, layout: Layout = None, keepdims: bool = False) -> jax.Array:
    r"""Average of each channel over all pixels.

    $y[n, c] = \frac{1}{P} \sum_o x[n, o, c]$ over the P pixels.

    Args:
      x: `(N, *spatial, C)`, or as `layout` says; without a layout the first axis is the batch.
      layout: as in `max_pool`.
      keepdims: whether to keep the spatial axes, with size 1.

    Returns:
      `(N, C)`, or `(N, 1, ..., 1, C)` with `keepdims`, in x's order of axes; in x's dtype, float32 for integers and
      booleans. 16-bit floats are summed in float32.

    Raises:
      ValueError: no spatial axis, or an empty one.

    Example:
      >>> import jax.numpy as jnp
      >>> global_avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))
      Array([[1.5]], dtype=float32)

    References:
      Equals `keras.layers.GlobalAveragePooling2D`.
    """
    return bodies().whole_plane(x, kind="avg", layout=frozen(layout), keepdims=bool(keepdims))


def global_max_pool(x: ArrayLike, *, layout: Layout = None, keepdims: bool = False) -> jax.Array:
    r"""Maximum of each channel over all pixels.

    $y[n, c] = \max_o x[n, o, c]$; NaN wins, and the gradient goes to the first maximum.

    Args:
      x: `(N, *spatial, C)`, or as `layout` says; without a layout the first axis is the batch.
      layout, keepdims: as in `global_avg_pool`.

    Returns:
      `(N, C)`, or `(N, 1, ..., 1, C)` with `keepdims`, in x's order of axes and dtype.

    Raises:
      ValueError: no spatial axis, or an empty one.
      TypeError: complex x.

    Example:
      >>> import jax.numpy as jnp
      >>> global_max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1))
      Array([[3.]], dtype=float32)

    References:
      Equals `keras.layers.GlobalMaxPooling2D`; where several pixels are maximal, `jnp.max` shares the gradient among
      them.
    """
    return bodies().whole_plane(x, kind="max", layout=frozen(layout), keepdims=bool(keepdims))
