"""`split`: a large kernel cut into small ones side by side, each on a shifted image."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Padding, Pair, axis_values, dilated_size, resolve_padding
from jaxcnn.layout import Layout, parse_layout

Piece = tuple[jax.Array, tuple[Pair, ...]]


@ErrorPrefix("split")
def split(
    kernel: ArrayLike,
    window_shape: IntOrInts,
    *,
    padding: Padding = "SAME",
    kernel_dilation: IntOrInts = 1,
    layout: Layout = None,
) -> tuple[Piece, ...]:
    r"""Returns the pieces of a large kernel, and the padding with which their convolutions add up to the kernel's.

    A piece that starts at tap u of the kernel begins u d pixels further on in the image, where d is the dilation. Its
    padding is (low - u d, high - (K - u - k) d) for K taps of the kernel and k of the piece, so that
    $\mathrm{conv}(x, K) = \sum_n \mathrm{conv}(x, K_n, \mathrm{padding}_n)$ at every stride. The multiplications stay
    the same. The split is of use where a device, a method or a file format supports small windows only.

    Args:
      kernel: Kernel `(*window, I, O)` or as `layout` says, of any number of groups.
      window_shape: Largest window of a piece; an int or one for each window axis. The last piece on an axis is smaller
        where the sizes do not divide.
      padding: Padding of the convolution with the kernel, as in `conv`. A name such as `"SAME"` stands for
        its padding at stride 1.
      kernel_dilation: Dilation of the convolution with the kernel, and of those with the pieces.
      layout: Layout of `kernel`: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A pair for each piece, in the order of the window's taps: its kernel, in the same layout, and its (low, high)
      padding on each axis, which may be negative and then crops.

    Raises:
      ValueError: a window below 1; a padding that `conv` refuses.
      TypeError: a window, padding or dilation of another type; a chain.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxcnn import conv
      >>> x, kernel = jnp.arange(1.0, 7.0).reshape(6, 1), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(5, 1, 1)
      >>> for piece, padding in split(kernel, 3, padding=2):
      ...     print(piece.ravel(), padding, conv(x, piece, padding=padding).ravel())
      [1. 2. 3.] ((2, 0),) [ 3.  8. 14. 20. 26. 32.]
      [4. 5.] ((-1, 2),) [23. 32. 41. 50. 24.  0.]
      >>> conv(x, kernel, padding=2).ravel()
      Array([26., 40., 55., 70., 50., 32.], dtype=float32)

    References:
      Ding, Zhang, Han and Ding, "Scaling up your kernels to 31x31", 2022, on large kernels and what runs them.
    """
    if isinstance(kernel, KernelChain):
        raise TypeError("kernel is a KernelChain; its dense kernel is chain.dense()")
    array = jnp.asarray(kernel)
    if array.ndim < 3:
        raise ValueError(
            f"kernel must have at least one window axis, an input and an output feature axis, got shape {array.shape}"
        )
    rank = array.ndim - 2
    window_axes = parse_layout(layout, rank).kernel_axes[:rank]
    window = [array.shape[axis] for axis in window_axes]
    largest = axis_values("window_shape", window_shape, rank)
    dilation = axis_values("kernel_dilation", kernel_dilation, rank)
    extents = tuple(map(dilated_size, window, dilation))
    # At stride 1 the padding of a name depends on the window alone, so any image size will do.
    pairs = resolve_padding(padding, extents, extents, (1,) * rank)
    starts = (range(0, size, step) for size, step in zip(window, largest, strict=True))
    pieces = []
    for start in itertools.product(*starts):
        index = [slice(None)] * array.ndim
        shifted = []
        for axis, first, step, size, d, (low, high) in zip(
            window_axes, start, largest, window, dilation, pairs, strict=True
        ):
            last = min(first + step, size)
            index[axis] = slice(first, last)
            shifted.append((low - first * d, high - (size - last) * d))
        pieces.append((array[tuple(index)], tuple(shifted)))
    return tuple(pieces)
