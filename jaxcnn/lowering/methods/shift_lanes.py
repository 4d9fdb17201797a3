"""Shifted products over blocks of channels: the form of `shift` for windows of many taps.

In channels-last order neighbouring pixels lie a row of all channels apart, and the pixels under a large window do not
fit in the first-level cache. Here each block of channels is one piece of memory, (blocks, N, *spatial, lanes), and a
few taps are added at a time, so that XLA keeps their kernel values in registers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn._compat import row_major
from jaxcnn.lowering.common.forms import Window, balanced_sum, pad_spatial, tap_slice, taps

LANES = 8
"""Channels in a block: one 256-bit vector of float32."""

MAX_CHUNK = 32
"""Most products that one loop adds: the number of vector registers of AVX-512."""

MIN_LOOPED_TAPS, MIN_STEP_PRODUCTS = 100, 20
"""Fewest taps of a window whose rows a loop adds, to compile fast, and fewest products of one step of the loop."""


def forward_by_blocks(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the forward convolution: (N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    kernel_in, features = kernel.shape[-2:]
    out = features // window.groups
    if kernel_in == 1:
        if out > 1:
            x = jnp.repeat(x, out, axis=-1)
        return _by_channel(x, kernel, window)
    return _by_group(x, kernel, window)


def _by_channel(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the forward convolution where each output has one input channel; the lanes are channels."""
    *sizes, _, features = kernel.shape
    rank, batch = len(sizes), x.shape[0]
    lanes = LANES
    blocks = -(-features // lanes)
    extra = blocks * lanes - features
    config = ((0, 0, 0), *((low, high, 0) for low, high in window.padding), (0, extra, 0))
    pixels = lax.pad(x, jnp.zeros((), x.dtype), config)
    pixels = pixels.reshape(*pixels.shape[:-1], blocks, lanes)
    pixels = row_major(jnp.moveaxis(pixels, -2, 0))  # (blocks, N, *spatial, lanes)
    pixels = pixels.reshape(blocks * batch, *pixels.shape[2:])
    weights = jnp.pad(kernel.reshape(*sizes, features), (*((0, 0),) * rank, (0, extra)))
    weights = row_major(jnp.moveaxis(weights.reshape(*sizes, blocks, lanes), -2, 0))

    def product(pixels: jax.Array, weights: jax.Array, tap: tuple[int, ...]) -> jax.Array:
        tap_pixels = tap_slice(pixels, tap, window).reshape(blocks, batch, *window.outputs, lanes)
        return tap_pixels * weights[:, *tap].reshape(blocks, *(1,) * (rank + 1), lanes)

    def sum_of_rows(row: Any, count: int) -> jax.Array:
        """Returns the sum over `count` rows of the window from `row` on."""
        extent = (count - 1) * window.dilation[0] + (window.outputs[0] - 1) * window.strides[0] + 1
        row_pixels = lax.dynamic_slice_in_dim(pixels, row * window.dilation[0], extent, axis=1)
        row_weights = lax.dynamic_slice_in_dim(weights, row, count, axis=1)
        return _sum_in_chunks([partial(product, row_pixels, row_weights, tap) for tap in taps((count, *sizes[1:]))])

    if rank > 1 and math.prod(sizes) >= MIN_LOOPED_TAPS:
        total = _sum_by_rows(sizes, sum_of_rows)
    else:
        total = _sum_in_chunks([partial(product, pixels, weights, tap) for tap in taps(sizes)])
    total = jnp.moveaxis(total, 0, -2).reshape(batch, *window.outputs, blocks * lanes)
    return total[..., :features]


def _sum_by_rows(sizes: Sequence[int], sum_of_rows: Callable[..., jax.Array]) -> jax.Array:
    """Returns the sum over a large window, by a loop that is compiled once and adds a few rows at each step.

    Args:
      sizes: taps on each spatial axis.
      sum_of_rows: function `sum_of_rows(row, count)` of a row, which may be traced, and a number of rows.
    """
    height = -(-MIN_STEP_PRODUCTS // math.prod(sizes[1:]))
    first = sizes[0] % height + height  # the remainder too, which alone may be too few products
    steps = (sizes[0] - first) // height
    return lax.fori_loop(
        0,
        steps,
        lambda step, total: row_major(total + sum_of_rows(first + step * height, height)),
        sum_of_rows(0, first),
    )


def _by_group(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the forward convolution where each output has several input channels; the lanes are output channels."""
    *sizes, kernel_in, features = kernel.shape
    rank, batch, groups = len(sizes), x.shape[0], window.groups
    out = features // groups
    lanes = min(LANES, out)
    blocks = -(-out // lanes)
    pixels = pad_spatial(x, window.padding)
    pixels = pixels.reshape(*pixels.shape[:-1], groups, kernel_in)
    pixels = row_major(jnp.moveaxis(pixels, -2, 0))  # (G, N, *spatial, I)
    pixels = pixels.reshape(groups * batch, *pixels.shape[2:])
    weights = kernel.reshape(*sizes, kernel_in, groups, out)
    weights = jnp.pad(weights, (*((0, 0),) * (rank + 2), (0, blocks * lanes - out)))
    weights = weights.reshape(*sizes, kernel_in, groups, blocks, lanes)
    weights = row_major(jnp.moveaxis(weights, (-3, -2), (0, 1)))  # (G, blocks, *taps, I, lanes)

    def product(tap: tuple[int, ...], channel: int) -> jax.Array:
        tap_pixels = tap_slice(pixels, tap, window)[..., channel].reshape(groups, 1, batch, *window.outputs, 1)
        return tap_pixels * weights[:, :, *tap, channel].reshape(groups, blocks, *(1,) * (rank + 1), lanes)

    total = _sum_in_chunks([partial(product, tap, i) for tap in taps(sizes) for i in range(kernel_in)])
    total = jnp.moveaxis(total, (0, 1), (-3, -2)).reshape(batch, *window.outputs, groups, blocks * lanes)
    return total[..., :out].reshape(batch, *window.outputs, features)


def _sum_in_chunks(products: Sequence[Callable[[], jax.Array]]) -> jax.Array:
    """Returns the sum of the products, computed by one loop for each chunk of at most `MAX_CHUNK` products."""
    count = -(-len(products) // MAX_CHUNK)
    size = -(-len(products) // count)
    total = row_major(balanced_sum([product() for product in products[:size]]))
    for start in range(size, len(products), size):
        total = row_major(total + balanced_sum([product() for product in products[start : start + size]]))
    return total
