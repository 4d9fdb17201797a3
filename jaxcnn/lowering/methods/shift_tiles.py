"""The kernel gradient of narrow groups: rows cut into tiles, whose pixels are multiplied and added in one loop.

XLA adds a product over pixels in a scalar loop, and a product of matrices for each tap and group is too small to be
fast. Here a tile of x and the tile of y that it meets lie next to each other, (N, rows, tiles, G, pixels, channels); a
loop over (row of the window, its taps, channels) adds the products of a tile's pixels, vectorised over output channels,
and one product with ones adds up the tiles. 56x56x128 in 32 groups by 3x3 takes 0.9 ms (a product for each tap and
group 7.5, PyTorch 0.9), 28x28x256 in 16 groups 0.6 (1.9, PyTorch 0.3).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn._compat import row_major
from jaxcnn.geometry import dilated_size
from jaxcnn.lowering.common.forms import Window, balanced_sum
from jaxcnn.lowering.methods.shift_lanes import LANES

_PIXELS, _PIXELS_BY_CHANNEL = 28, 14
"""Pixels of a tile, whose products are one loop's, where each channel of x meets all of a group or its own alone. With
more the tiles that are left to add up are fewer and the loop takes longer to compile."""


_MOST_BYTES, _BYTES = 24 << 20, 4 << 20
"""Most bytes of x and y that are computed at once, and most at each step of a loop where they are more. The copies of
more pass 32 MB, above which the C library returns memory at each call and the system clears its pages again: of 3x3
over 8x56x56x256 27 ms pass at once and 12 image by image, over 124x124x256 26 and 6 by 32 channels (PyTorch 4)."""


def kernel_gradient(x: jax.Array, y: jax.Array, window: Window, kernel_shape: tuple[int, ...]) -> jax.Array:
    """(N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    images, features = len(x), kernel_shape[-1]
    whole = x.nbytes + y.nbytes
    if whole <= _MOST_BYTES:
        return _at_once(x, y, window, kernel_shape)
    if images > 1:
        some = _divisor(images, whole // images)

        def of_images(step: jax.Array, total: jax.Array) -> jax.Array:
            x_some, y_some = (lax.dynamic_slice_in_dim(array, step * some, some) for array in (x, y))
            return total + kernel_gradient(x_some, y_some, window, kernel_shape)

        return lax.fori_loop(0, images // some, of_images, jnp.zeros(kernel_shape, x.dtype))
    if window.groups == features:
        some = _divisor(features, whole // features)
        part = (*kernel_shape[:-1], some)

        def of_channels(start: jax.Array) -> jax.Array:
            x_some, y_some = (lax.dynamic_slice_in_dim(array, start, some, axis=-1) for array in (x, y))
            return _at_once(x_some, y_some, dataclasses.replace(window, groups=some), part)

        parts = lax.map(of_channels, jnp.arange(0, features, some))  # (parts, *taps, 1, channels of a part)
        return jnp.moveaxis(parts, 0, -2).reshape(kernel_shape)
    return _at_once(x, y, window, kernel_shape)


def _divisor(count: int, each: int) -> int:
    """The largest divisor of a count of things of `each` bytes that fits into a step."""
    return max(n for n in range(1, count + 1) if count % n == 0 and (n == 1 or n * each <= _BYTES))


def _at_once(x: jax.Array, y: jax.Array, window: Window, kernel_shape: tuple[int, ...]) -> jax.Array:
    *sizes, kernel_in, features = kernel_shape
    groups, out = window.groups, features // window.groups
    if kernel_in == 1:
        # One input channel for each output: blocks of channels are the groups, and the lanes meet each their own.
        x = jnp.repeat(x, out, axis=-1) if out > 1 else x
        blocks = -(-features // LANES)
        channels = ((0, 0),) * (x.ndim - 1) + ((0, blocks * LANES - features),)
        total = _added(jnp.pad(x, channels), jnp.pad(y, channels), window, sizes, blocks, matched=True)
        return total.reshape(*sizes, 1, blocks * LANES)[..., :features]
    total = _added(x, y, window, sizes, groups, matched=False)  # (*taps, G, I, O)
    return jnp.swapaxes(total.reshape(*sizes, groups, kernel_in, out), -3, -2).reshape(kernel_shape)


def _added(x: jax.Array, y: jax.Array, window: Window, sizes: list[int], blocks: int, *, matched: bool) -> jax.Array:
    """The gradient as (*taps, blocks, ...), where x and y have `blocks` blocks of channels.

    `matched`: each channel of x meets the same channel of y, and no other of its block.
    """
    rank = len(sizes)
    *rows, width = window.outputs
    stride, dilation = window.strides[-1], window.dilation[-1]
    extent = dilated_size(sizes[-1], dilation)
    most = _PIXELS_BY_CHANNEL if matched else _PIXELS
    tiles = -(-width // most)
    length = -(-width // tiles)
    high = max(1, min(most // length, rows[-1])) if rows else 1  # rows in a tile
    step = stride * length
    span = max(step, stride * (length - 1) + extent)  # pixels of x that a tile sees

    # Rows that fill the last tile have a cotangent of 0.
    padding = list(window.padding)
    fill = [(0, 0)] * rank
    fill[-1] = (0, tiles * length - width)
    if rows:
        fill[-2] = (0, -rows[-1] % high)
        padding[-2] = (padding[-2][0], padding[-2][1] + fill[-2][1] * window.strides[-2])
    needed = (tiles - 1) * step + span
    padding[-1] = (padding[-1][0], needed - x.shape[-2] - padding[-1][0])
    zero = ((0, 0, 0),)
    pixels = lax.pad(x, jnp.zeros((), x.dtype), (*zero, *((*pair, 0) for pair in padding), *zero))
    cotangent = lax.pad(y, jnp.zeros((), y.dtype), (*zero, *((*pair, 0) for pair in fill), *zero))
    pieces = [lax.slice_in_dim(pixels, t * step, t * step + span, axis=rank) for t in range(tiles)]
    pixels = jnp.stack(pieces, axis=rank) if tiles > 1 else jnp.expand_dims(pieces[0], rank)
    pixels = pixels.reshape(*pixels.shape[:-1], blocks, -1)
    pixels = row_major(jnp.swapaxes(pixels, -3, -2))  # (N, *rows, tiles, blocks, span, channels)
    cotangent = cotangent.reshape(*cotangent.shape[:rank], tiles, length, blocks, -1)
    cotangent = jnp.swapaxes(cotangent, -3, -2)  # (N, *rows, tiles, blocks, length, channels)
    if any(map(any, fill)):
        cotangent = row_major(cotangent)  # or every product tests the borders

    counts = [*rows[:-1], -(-rows[-1] // high)] if rows else []
    results = []
    for tap in np.ndindex(*sizes[:-1]):
        terms = []
        for offset in range(high):
            seen = _rows(pixels, tap, window, counts, high, offset)
            met = _rows(cotangent, (0,) * len(tap), None, counts, high, offset)
            for pixel in range(length):
                start = stride * pixel
                a = lax.slice_in_dim(seen, start, start + extent, dilation, axis=-2)
                b = lax.slice_in_dim(met, pixel, pixel + 1, axis=-2)
                terms.append(a * b if matched else a[..., :, None] * b[..., None, :])
        part = row_major(balanced_sum(terms))  # (N, *counts, tiles, blocks, taps of a row, ...)
        flat = part.reshape(math.prod(part.shape[: rank + 1]), -1)
        ones = jnp.ones((1, flat.shape[0]), flat.dtype)
        total = lax.dot(ones, flat, precision=lax.Precision.HIGHEST)
        results.append(jnp.moveaxis(total.reshape(blocks, sizes[-1], -1), 1, 0))
    return jnp.stack(results)


def _rows(
    tiled: jax.Array, tap: tuple[int, ...], window: Window | None, counts: list[int], high: int, offset: int
) -> jax.Array:
    """The rows that one row of taps sees, of every tile's row `offset`; those of y itself without a window."""
    for axis, count in enumerate(counts):
        last = axis == len(counts) - 1
        stride = window.strides[axis] if window else 1
        start = tap[axis] * window.dilation[axis] if window else 0
        step = stride * high if last else stride
        start += stride * offset if last else 0
        tiled = lax.slice_in_dim(tiled, start, start + (count - 1) * step + 1, step, axis=axis + 1)
    return tiled
