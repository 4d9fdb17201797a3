"""The kernel gradient of narrow groups: rows cut into tiles, whose pixels are multiplied and added in one loop.

XLA sums products over pixels in a scalar loop, and a product of matrices for each tap and group is too small to be
fast. Here rows of x and y are cut into matching tiles, (N, rows, tiles, G, pixels, channels). A loop over (row of the
window, its taps, channels) adds the products of a tile's pixels, vectorized over output channels, and a product with a
row of ones adds up the tiles.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.geometry import dilated_size
from jaxcnn.lowering.common.forms import Window, balanced_sum, materialize, pad_spatial
from jaxcnn.lowering.methods.shift_lanes import LANES

MAX_GROUP_PIXELS, MAX_CHANNEL_PIXELS = 28, 14
"""Most pixels of a tile, whose products one loop adds: in groups of several channels, and in groups of one channel."""

MAX_TEMPORARY_BYTES = 20 << 20
"""Most bytes of copies and partial sums at once. Beyond this size the images, or parts of the channels, go in turn."""


def kernel_gradient(x: jax.Array, y: jax.Array, window: Window, kernel_shape: tuple[int, ...]) -> jax.Array:
    """Computes the kernel gradient: (N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    # Images may lie on several devices, and a loop over them would copy all of them to each device.
    if window.xla_only:
        return _at_once(x, y, window, kernel_shape)
    features = kernel_shape[-1]
    sums = (
        y.nbytes * math.prod(kernel_shape[:-1]) // (MAX_CHANNEL_PIXELS if kernel_shape[-2] == 1 else MAX_GROUP_PIXELS)
    )
    parts = -(-(x.nbytes + y.nbytes + sums) // MAX_TEMPORARY_BYTES)
    if parts > 1 and len(x) > 1:

        def of_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            x, y = image
            return total + kernel_gradient(x[None], y[None], window, kernel_shape), None

        return lax.scan(of_image, jnp.zeros(kernel_shape, x.dtype), (x, y))[0]
    if parts > 1 and window.groups == features:
        limit = max(features // (4 * parts), 1)  # small enough for the caches
        part_channels = max(n for n in range(1, limit + 1) if features % n == 0)

        def of_channels(start: jax.Array) -> jax.Array:
            x_part, y_part = (lax.dynamic_slice_in_dim(array, start, part_channels, axis=-1) for array in (x, y))
            part_window = dataclasses.replace(window, groups=part_channels)
            return _at_once(x_part, y_part, part_window, (*kernel_shape[:-1], part_channels))

        results = lax.map(of_channels, jnp.arange(0, features, part_channels))  # (parts, *taps, 1, channels of a part)
        return jnp.moveaxis(results, 0, -2).reshape(kernel_shape)
    return _at_once(x, y, window, kernel_shape)


def _at_once(x: jax.Array, y: jax.Array, window: Window, kernel_shape: tuple[int, ...]) -> jax.Array:
    """Computes the kernel gradient without a loop over images or channels."""
    *sizes, kernel_in, features = kernel_shape
    groups, out = window.groups, features // window.groups
    if kernel_in == 1:
        # Each output has one input channel, so blocks of channels take the place of groups, with equal lanes matched.
        x = jnp.repeat(x, out, axis=-1) if out > 1 else x
        blocks = -(-features // LANES)
        channels = ((0, 0),) * (x.ndim - 1) + ((0, blocks * LANES - features),)
        total = _tile_gradient(jnp.pad(x, channels), jnp.pad(y, channels), window, sizes, blocks, matched=True)
        return total.reshape(*sizes, 1, blocks * LANES)[..., :features]
    total = _tile_gradient(x, y, window, sizes, groups, matched=False)  # (*taps, G, I, O)
    return jnp.swapaxes(total.reshape(*sizes, groups, kernel_in, out), -3, -2).reshape(kernel_shape)


def _tile_gradient(
    x: jax.Array, y: jax.Array, window: Window, sizes: list[int], blocks: int, *, matched: bool
) -> jax.Array:
    """Returns the gradient for x and y of `blocks` blocks of channels.

    With `matched` each channel of x is multiplied by the same channel of y alone, and the result is (*taps, blocks,
    channels). Else it is multiplied by all channels of the block: (*taps, blocks, channels of x * channels of y).
    """
    rank = len(sizes)
    *rows, width = window.outputs
    stride, dilation = window.strides[-1], window.dilation[-1]
    extent = dilated_size(sizes[-1], dilation)
    max_pixels = MAX_CHANNEL_PIXELS if matched else MAX_GROUP_PIXELS
    tiles = -(-width // max_pixels)
    length = -(-width // tiles)
    tile_rows = max(1, min(max_pixels // length, rows[-1])) if rows else 1  # rows in a tile
    step = stride * length
    span = max(step, stride * (length - 1) + extent)  # pixels of x that a tile reads

    # The rows that fill up the last tile have a cotangent of 0.
    padding = list(window.padding)
    fill = [(0, 0)] * rank
    fill[-1] = (0, tiles * length - width)
    if rows:
        fill[-2] = (0, -rows[-1] % tile_rows)
        padding[-2] = (padding[-2][0], padding[-2][1] + fill[-2][1] * window.strides[-2])
    needed = (tiles - 1) * step + span
    padding[-1] = (padding[-1][0], needed - x.shape[-2] - padding[-1][0])
    pixels, cotangent = pad_spatial(x, padding), pad_spatial(y, fill)
    pieces = [lax.slice_in_dim(pixels, t * step, t * step + span, axis=rank) for t in range(tiles)]
    pixels = jnp.stack(pieces, axis=rank) if tiles > 1 else jnp.expand_dims(pieces[0], rank)
    pixels = pixels.reshape(*pixels.shape[:-1], blocks, -1)
    pixels = materialize(jnp.swapaxes(pixels, -3, -2), window.xla_only)  # (N, *rows, tiles, blocks, span, channels)
    cotangent = cotangent.reshape(*cotangent.shape[:rank], tiles, length, blocks, -1)
    cotangent = jnp.swapaxes(cotangent, -3, -2)  # (N, *rows, tiles, blocks, length, channels)
    if any(map(any, fill)):
        cotangent = materialize(cotangent, window.xla_only)  # without a copy every product would test the borders

    counts = [*rows[:-1], -(-rows[-1] // tile_rows)] if rows else []
    results = []
    for tap in np.ndindex(*sizes[:-1]):
        terms = []
        for offset in range(tile_rows):
            x_rows = _rows(pixels, tap, window, counts, tile_rows, offset)
            y_rows = _rows(cotangent, (0,) * len(tap), None, counts, tile_rows, offset)
            for pixel in range(length):
                start = stride * pixel
                a = lax.slice_in_dim(x_rows, start, start + extent, dilation, axis=-2)
                b = lax.slice_in_dim(y_rows, pixel, pixel + 1, axis=-2)
                terms.append(a * b if matched else jnp.expand_dims(a, -1) * jnp.expand_dims(b, -2))
        part = materialize(balanced_sum(terms), window.xla_only)  # (N, *counts, tiles, blocks, taps of a row, ...)
        flat = part.reshape(math.prod(part.shape[: rank + 1]), -1)
        ones = jnp.ones((1, flat.shape[0]), flat.dtype)
        total = lax.dot(ones, flat, precision=lax.Precision.HIGHEST)
        results.append(jnp.moveaxis(total.reshape(blocks, sizes[-1], -1), 1, 0))
    return jnp.stack(results)


def _rows(
    tiled: jax.Array, tap: tuple[int, ...], window: Window | None, counts: list[int], tile_rows: int, offset: int
) -> jax.Array:
    """Returns row `offset` of every tile: of x under one row of taps, or of y if `window` is None.

    Args:
      tiled: x or y cut into tiles, (N, *rows, tiles, blocks, pixels, channels).
      tap: place of the row of taps in the window, on all axes but the last.
      window: window over x; None for y.
      counts: number of tiles on each axis but the last.
      tile_rows: number of rows in a tile.
      offset: number of the row in its tile.
    """
    for axis, count in enumerate(counts):
        last = axis == len(counts) - 1
        stride = window.strides[axis] if window else 1
        start = tap[axis] * window.dilation[axis] if window else 0
        step = stride * tile_rows if last else stride
        start += stride * offset if last else 0
        tiled = lax.slice_in_dim(tiled, start, start + (count - 1) * step + 1, step, axis=axis + 1)
    return tiled
