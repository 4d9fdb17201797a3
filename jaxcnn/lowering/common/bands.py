"""Large images in bands of rows, and many images some at a time, so that what they need in between stays in the caches.

Above 32 MB the C library also returns memory at each call, and the system clears its pages again: 3 microseconds for
each 4 KB on the machine of the other figures, more than the arithmetic of a 3x1 window on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering.common.forms import Window, settled

BYTES = 5 * 2**20
"""What may lie in between at a time. Bands of 2, 4, 6 and 10 MB take 27, 26, 30 and 32 ms for products of 3x1 from 72
to 128 channels over 224x224 (53 at once), 31, 32, 27 and 28 for tiles of 3x3 over 256x256x64 (53)."""


@dataclasses.dataclass(frozen=True)
class Band:
    """How many images, and how many rows of their outputs, are computed at a time."""

    images: int
    rows: int


def band_within(images: int, outputs: int, bytes_of_row: int, *, multiple: int = 1, within: int = BYTES) -> Band | None:
    """A band whose rows of outputs, a multiple of a number, take that many bytes each; None if that is everything."""
    bytes_of_image = bytes_of_row * outputs
    if bytes_of_image <= within:
        some = max(n for n in range(1, images + 1) if images % n == 0 and (n == 1 or n * bytes_of_image <= within))
        return None if some == images else Band(some, outputs)
    most = max(within // bytes_of_row // multiple, 1) * multiple
    bands = -(-outputs // most)
    rows = -(-outputs // (bands * multiple)) * multiple
    return None if images == 1 and rows >= outputs else Band(1, min(rows, outputs))


def in_bands(
    x: jax.Array,
    window: Window,
    extent: int,
    band: Band,
    features: int,
    dtype: Any,
    compute: Callable[[jax.Array, Window], jax.Array],
) -> jax.Array:
    """(N, *spatial, I) -> (N, *outputs, features) of a window of stride 1, computed band by band.

    Args:
      x: the images.
      window: how the window slides.
      extent: rows that the window covers, dilation counted.
      band: what is computed at a time.
      features: of the result.
      dtype: of the result.
      compute: what `(images, rows + extent - 1, ..., I)` and the band's own window give, (images, rows, ..., features).
    """
    # Settled, for two things read it, and XLA would not fuse what computes it with either.
    x = settled(x, window.exported)
    height, (low, high) = x.shape[1], window.padding[0]
    outputs, rows = window.outputs[0], band.rows
    bands, seen, edge = -(-outputs // rows), rows + extent - 1, max(low, high, 0)
    read = min(seen, height)
    of_band = dataclasses.replace(
        window, padding=((0, 0), *window.padding[1:]), outputs=(rows, *window.outputs[1:]), computed=False
    )

    def step(index: jax.Array, result: jax.Array) -> jax.Array:
        image = index // bands * band.images
        # The last band ends with the image, and computes some rows again.
        start = jnp.minimum(index % bands * rows, outputs - rows)
        first = jnp.clip(start - low, 0, height - read)
        zeros = (0,) * (x.ndim - 2)
        some = lax.dynamic_slice(x, (image, first, *zeros), (band.images, read, *x.shape[2:]))
        if edge:
            some = lax.pad(some, jnp.zeros((), x.dtype), [(0, 0, 0), (edge, edge, 0), *((0, 0, 0),) * len(zeros)])
            # Settled, for otherwise every slice that reads it tests for the border: 5x1 from 96 to 48 channels over
            # 224x224 by tiles takes 41 ms instead of 19.
            some = settled(lax.dynamic_slice_in_dim(some, edge + start - low - first, seen, axis=1), window.exported)
        return lax.dynamic_update_slice(result, compute(some, of_band), (image, start, *zeros))

    steps = len(x) // band.images * bands
    # All of it is overwritten. Of zeros XLA would make it, and keep its memory, from the start of the whole program on:
    # 368 MB for a network on 512x512 pixels that takes 190 otherwise.
    unwritten = jnp.broadcast_to(x.ravel()[0].astype(dtype), (len(x), *window.outputs, features))
    return lax.fori_loop(0, steps, step, unwritten)
