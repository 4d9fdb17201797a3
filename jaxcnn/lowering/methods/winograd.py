"""The method `winograd`: dense convolutions by fewer products, over tiles (Lavin & Gray 2016, Toom-Cook).

A tile of m outputs along an axis of r taps costs m + r - 1 products instead of m r: F(4,3) on both axes 36 for each 16
outputs instead of 144. The points are transformed by sums along one axis after the other; the products are one batched
product of matrices. The error grows with the tile, since outputs are differences of larger values: up to 16
epsilons of float32 times the largest sum of an output's magnitudes (`direct`'s: 4 of its own sum). So `precision`
HIGHEST refuses this method, and 16-bit operands get F(2, r) alone. A NaN or an infinity spreads over its tile, as NaN.

References:
  A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn._compat import FAST_CONVOLUTION
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.bands import BYTES, Band, band_within, in_bands
from jaxcnn.lowering.common.forms import (
    Window,
    by_role,
    demands_highest,
    pad_spatial,
    settled,
    shape_unsupported,
    sum_dtype,
)
from jaxcnn.lowering.methods import native
from jaxcnn.lowering.spec import ConvSpec

NAME = "winograd"

_TILES = {3: 4, 5: 4, 7: 2}
"""Outputs of a tile by the taps of an axis: at most 8 points. F(4,7), of 10, errs by 4e-6, F(2,7) by 1e-6."""

_TRANSFORM, _KERNEL_TRANSFORM, _TRANSPOSED_KERNEL = 16, 30, 60
"""What a value of input and output costs for each axis on which it is transformed, in products of two channels, and
what one of the kernel costs, or of the kernel with its channels exchanged: their time is that of memory. Set by
hand on about thirty layers, 7x7x512 to 224x224x64, on a busy machine."""

_LARGEST = 32 << 20
"""Most bytes of transformed values: above, the C library's allocator returns the memory at each call and the system
clears its pages again, which takes longer than the products (14x14x512: 60 ms against 16)."""

_NARROWEST = 32
"""Fewest features of a block, where the features are computed in blocks because all at once are above `_LARGEST`."""
_IN_BLOCKS = 2.5
"""How much more the transforms cost in blocks. Of 260 shapes drawn at random the 158 that `pays` chose took 0.60 of
`direct`'s time in the geometric mean, and four of them more than 1.1 times as long, the worst 1.55."""

_BAND_KERNEL = 10 << 20
"""Most bytes of a transformed kernel with which images above `_LARGEST` are computed in bands, which all read it:
8x56x56x64 by 5x5 takes 28 ms at once and 16 in bands (`direct` 51), 4x112x112x64 by 3x3 34 and 21 (22); 112x112x64 to
128, of 22 MB, 5.8 and 8.8."""
_SHARE, _BANDS_OF_ONE_AXIS = 0.8, 1.05
"""Most that the products and transforms may cost, of the direct products; and of a window of at most 5
taps along one axis in bands."""

_NATIVE_MACS_PER_NANOSECOND = 220
_TILE_FLOAT_NANOSECONDS = 0.07
"""Time to transform a value of a tile of the input or the output."""
_CACHED_FLOAT_NANOSECONDS, _KERNEL_FLOAT_NANOSECONDS = 0.15, 0.5
"""Time to transform a value of the kernel, where all of them stay in the cache and where they do not."""
_CACHED_KERNEL_BYTES = 16 << 20
_TILES_MARGIN = 0.95
"""Most that tiles may take of the time of products, whose errors are smaller."""

_MULTIPLE = 8
"""Of which the features are filled up to a multiple: XLA's product of others runs at half its rate. 5x5 from 64 to 31
channels over 56x56 takes 1.7 ms filled and 2.0 as it is, 3x3 from 64 to 28 1.1 and 1.4."""

_POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), *(Fraction(sign * n, 4) for n in (3, 6) for sign in (1, -1))),
    8: (Fraction(0), *(Fraction(sign * n, 2) for n in (2, 4, 1) for sign in (1, -1))),
}
"""Where a tile's polynomials are evaluated, beside infinity. With 3/4 and 3/2 instead of the usual 1 and 2 F(4,3) errs
by 7e-7 instead of 1.4e-6 of the output's norm (56x56x64; `direct` 3e-7)."""


def supports(spec: ConvSpec) -> str | None:
    """None, or why this convolution is not computed by tiles of fewer products."""
    if spec.role == "kernel":
        return "it is a kernel gradient"
    if not jnp.issubdtype(sum_dtype(spec), jnp.floating):
        return f"its products are {sum_dtype(spec)}, and transforms are of floats"
    if demands_highest(spec.precision):
        return "precision HIGHEST admits only methods with direct's error"
    if spec.feature_group_count > 1 and not is_native(spec):
        return f"it has {spec.feature_group_count} groups, and each would be a product of its own"
    if max(spec.strides) > 1 or max(spec.kernel_dilation) > 1:
        return f"it has strides {spec.strides} and kernel dilation {spec.kernel_dilation}, and tiles need 1"
    if not all(taps == 1 or taps in _TILES for taps in spec.window) or max(spec.window, default=1) == 1:
        return f"its window is {spec.window}, and there are tiles for {', '.join(map(str, _TILES))} taps"
    if sum(taps > 1 for taps in spec.window) > 2 or math.prod(spec.window) > 25:
        return f"the error of tiles on a window of {spec.window} is too large"
    return shape_unsupported(spec)


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: object = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    del sharding
    if is_native(spec):
        return native.lower(lhs, rhs, spec, tiles=True)
    narrow = min(np.dtype(spec.lhs_dtype).itemsize, np.dtype(spec.rhs_dtype).itemsize) < 4
    waits = spec.kernel_waits and not spec.exported and spec.stacked is None
    return by_role(lhs, rhs, spec, partial(_forward, precision=spec.precision, narrow=narrow, waits=waits))


def is_native(spec: ConvSpec) -> bool:
    """Returns whether compiled kernels compute the tiles of a convolution that this method supports."""
    narrow = spec.feature_group_count > 1 and min(_channels_of_group(spec)) < costs.VECTOR
    return spec.rank == 2 and spec.window in ((3, 3), (5, 5)) and not narrow and native.supports(spec) is None


def _channels_of_group(spec: ConvSpec) -> tuple[int, int]:
    """Returns how many channels a group sums up, and how many of the result it has."""
    kernel_in, kernel_out = spec.kernel_shape[-2], spec.kernel_shape[-1] // spec.feature_group_count
    return (kernel_out, kernel_in) if spec.role == "input" else (kernel_in, kernel_out)


def native_pays(spec: ConvSpec) -> bool:
    """Returns whether compiled tiles are estimated to take less time than the compiled products of `native`."""
    if not is_native(spec):
        return False
    taps = spec.window[0]
    batch, *sizes, _ = spec.result_shape
    summed, features = _channels_of_group(spec)
    features = -(-features // costs.VECTOR) * costs.VECTOR
    tiles = batch * math.prod(-(-size // _TILES[taps]) for size in sizes)
    points = (taps + _TILES[taps] - 1) ** 2
    kernel_floats = points * summed * features
    in_cache = 4 * kernel_floats * spec.feature_group_count <= _CACHED_KERNEL_BYTES
    estimate = (
        tiles * kernel_floats / _NATIVE_MACS_PER_NANOSECOND
        + tiles * points * (-(-summed // costs.VECTOR) * costs.VECTOR + features) * _TILE_FLOAT_NANOSECONDS
        + kernel_floats * (_CACHED_FLOAT_NANOSECONDS if in_cache else _KERNEL_FLOAT_NANOSECONDS)
    )
    macs = batch * math.prod(sizes) * taps**2 * summed * features
    return estimate < _TILES_MARGIN * macs / _NATIVE_MACS_PER_NANOSECOND


def supports_fused(spec: ConvSpec, epilogue: Any) -> str | None:
    """Returns None, or why an epilogue is not applied to the tiles of this convolution."""
    if not is_native(spec):
        return "its tiles are computed by XLA's operations"
    return native.supports_fused(spec, epilogue)


lower_fused = partial(native.lower_fused, tiles=True)


def pays(spec: ConvSpec) -> bool:
    """Whether a convolution of float32 that this method supports takes fewer products, its transforms counted."""
    *window, summed, features = spec.kernel_shape
    if spec.role == "input":
        summed, features = features, summed
    stack = spec.stacked or 1
    result = spec.result_shape
    direct_macs = stack * math.prod(result[:-1]) * math.prod(window) * summed * features
    features = _filled(features)
    tile = [_TILES[taps] if taps > 1 else 1 for taps in window]
    grid = _Grid.of(result[1:-1], window, tile, result[0])
    grid = dataclasses.replace(grid, points=stack * grid.points)
    block = grid.block(summed, features)
    if stack > 1 and block != features:
        return False
    in_bands = stack == 1 and grid.band(summed, features) is not None
    if block is None and not in_bands:
        return False
    axes = sum(taps > 1 for taps in window)
    of_kernel = _KERNEL_TRANSFORM if spec.role == "output" else _TRANSPOSED_KERNEL
    tiles = grid.images * grid.tiles
    transforming = _TRANSFORM * axes * tiles * (summed + features) + of_kernel * summed * features
    in_parts = 1 if in_bands or block == features else _IN_BLOCKS
    cost = grid.points * (tiles * summed * features + transforming * in_parts)
    # On jax 0.10 XLA's convolution of large images by a window along one axis runs at half of its usual rate.
    slow = not FAST_CONVOLUTION and in_bands and axes == 1 and max(window) <= 5
    return cost < (_BANDS_OF_ONE_AXIS if slow else _SHARE) * direct_macs


def _filled(features: int) -> int:
    return -(-features // _MULTIPLE) * _MULTIPLE


@functools.cache
def transforms(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of F(outputs, taps): y = at @ ((g @ kernel) * (bt @ x)).

    Returns:
      at (outputs, n), g (n, taps) and bt (n, n), n = outputs + taps - 1, of float64.
    """
    size = outputs + taps - 1
    finite = _POINTS[size]
    at = np.zeros((outputs, size))
    g = np.zeros((size, taps))
    bt = np.zeros((size, size))
    for i, point in enumerate(finite):
        others = [other for other in finite if other != point]
        scale = math.prod((point - other for other in others), start=Fraction(1))
        at[:, i] = [float(point**k) for k in range(outputs)]
        g[i] = [float(point**k / scale) for k in range(taps)]
        bt[i, :-1] = _polynomial(others)
    # The point at infinity: leading coefficients.
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = _polynomial(finite)
    return at, g, bt


def _polynomial(roots: Sequence[Fraction]) -> list[float]:
    """Coefficients, the constant one first, of the product of (z - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return [float(c) for c in coefficients]


def _combined(slices: Sequence[jax.Array], matrix: np.ndarray, axis: int) -> jax.Array:
    """Sums of the slices with the coefficients of each row of a matrix, along a new axis, in one loop."""
    shape = [1] * (slices[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = [
        jnp.expand_dims(part, axis) * jnp.asarray(column, part.dtype).reshape(shape)
        for part, column in zip(slices, matrix.T, strict=True)
    ]
    return functools.reduce(lax.add, terms)


def _transformed_kernel(kernel: jax.Array, tile: Sequence[int], after: jax.Array | None) -> jax.Array:
    """(*taps, I, O) -> (points, I, O), the last axis' points first; not before `after` is computed, if it is given.

    XLA:CPU begins a program with all that its arguments are enough for, and keeps it until it is read: all kernels of
    a network, transformed. So one of two equal matrices is taken, and an array's first value decides which. VGG-16
    takes 33 MB instead of 78, and 155 ms instead of 171, since memory above 32 MB is cleared at each call.
    """
    *sizes, kernel_in, features = kernel.shape
    matrices = [transforms(m, taps)[1] if taps > 1 else np.ones((1, 1)) for m, taps in zip(tile, sizes, strict=True)]
    matrix = functools.reduce(np.kron, matrices)  # (points, taps), the first axis' points first
    order = tuple(reversed(range(len(sizes))))
    matrix = matrix.reshape(*map(len, matrices), -1).transpose(*order, len(sizes)).reshape(matrix.shape)
    flat = kernel.reshape(math.prod(sizes), kernel_in * features)
    chosen = jnp.asarray(matrix, kernel.dtype)
    if after is not None:
        which = (after.ravel()[0] > 0).astype(jnp.int32)
        chosen = lax.dynamic_index_in_dim(jnp.stack([chosen, chosen]), which, keepdims=False)
    points = lax.dot(chosen, flat, precision=lax.Precision.HIGHEST)
    return points.reshape(-1, kernel_in, features)


def _forward(
    x: jax.Array, kernel: jax.Array, window: Window, *, precision: Any, narrow: bool, waits: bool
) -> jax.Array:
    """(N, *spatial, I), (*taps, I, O) -> (N, *outputs, O); `waits`: the kernel is transformed after the image."""
    *sizes, kernel_in, wanted = kernel.shape
    features = _filled(wanted)
    kernel = jnp.pad(kernel, ((0, 0),) * (kernel.ndim - 1) + ((0, features - wanted),))
    tile = [1 if taps == 1 else 2 if narrow else _TILES[taps] for taps in sizes]
    grid = _Grid.of(window.outputs, sizes, tile, x.shape[0])

    band = grid.band(kernel_in, features)
    if band is not None:
        x = settled(x, window.exported)
        of_kernel = settled(_transformed_kernel(kernel, tile, x if waits else None), window.exported)

        def of_band(some: jax.Array, window: Window) -> jax.Array:
            tiles = _transformed(some, sizes, tile, window)
            return _outputs(tiles, of_kernel, sizes, tile, window, precision)[..., :wanted]

        return in_bands(x, window, sizes[0], band, wanted, x.dtype, of_band)
    tiles = _transformed(x, sizes, tile, window)
    block = grid.block(kernel_in, features)
    if block is None or block == features:
        of_kernel = _transformed_kernel(kernel, tile, tiles if waits else None)
        return _outputs(tiles, of_kernel, sizes, tile, window, precision)[..., :wanted]

    def of_block(start: jax.Array) -> jax.Array:
        some = _transformed_kernel(lax.dynamic_slice_in_dim(kernel, start, block, axis=-1), tile, None)
        return _outputs(tiles, some, sizes, tile, window, precision)

    blocks = lax.map(of_block, jnp.arange(0, features, block))
    return jnp.moveaxis(blocks, 0, -2).reshape(*blocks.shape[1:-1], features)[..., :wanted]


def _transformed(x: jax.Array, sizes: Sequence[int], tile: Sequence[int], window: Window) -> jax.Array:
    """(N, *spatial, I) -> (points..., N, *tiles, I), of whole tiles; points come to the front, the last axis' first."""
    axes = [axis for axis, taps in enumerate(sizes) if taps > 1]
    counts = [-(-outputs // m) for outputs, m in zip(window.outputs, tile, strict=True)]
    padding = list(window.padding)
    for axis in axes:
        low, _ = padding[axis]
        padding[axis] = (low, counts[axis] * tile[axis] + sizes[axis] - 1 - low - x.shape[axis + 1])
    values = pad_spatial(x, padding)
    for done, axis in enumerate(axes):
        _, _, bt = transforms(tile[axis], sizes[axis])
        at = done + 1 + axis
        length = (counts[axis] - 1) * tile[axis] + 1
        seen = [lax.slice_in_dim(values, i, i + length, tile[axis], axis=at) for i in range(len(bt))]
        values = settled(_combined(seen, bt, 0), window.exported)
    return values


def _outputs(
    values: jax.Array,
    kernel: jax.Array,
    sizes: Sequence[int],
    tile: Sequence[int],
    window: Window,
    precision: Any,
) -> jax.Array:
    """(points..., N, *tiles, I), (points, I, O) -> (N, *outputs, O)."""
    axes = [axis for axis, taps in enumerate(sizes) if taps > 1]
    kernel_in, features = kernel.shape[1:]
    products = lax.dot_general(
        values.reshape(len(kernel), -1, kernel_in),
        kernel,
        (((2,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=values.dtype,
    )  # (points, N * tiles, I) @ (points, I, O)
    result = products.reshape(*values.shape[:-1], features)
    for axis in reversed(axes):
        matrix, _, _ = transforms(tile[axis], sizes[axis])
        at = axes.index(axis) + 1 + axis  # of the tiles, once the points of this axis are gone
        parts = [lax.index_in_dim(result, i, axis=0, keepdims=False) for i in range(matrix.shape[1])]
        combined = settled(_combined(parts, matrix, at + 1), window.exported)
        shape = list(parts[0].shape)
        shape[at] *= tile[axis]
        result = combined.reshape(shape)
    return lax.slice(result, (0,) * result.ndim, (result.shape[0], *window.outputs, features))


@dataclasses.dataclass(frozen=True)
class _Grid:
    """The tiles of a convolution, and how many of them are computed at once.

    Args:
      points: products of each tile, for each pair of channels.
      images: number of images.
      tiles: number of tiles of an image.
      outputs: rows of outputs of an image.
      height: rows of outputs of a tile.
    """

    points: int
    images: int
    tiles: int
    outputs: int
    height: int

    @classmethod
    def of(cls, outputs: Sequence[int], sizes: Sequence[int], tile: Sequence[int], images: int) -> _Grid:
        """The tiles of these outputs."""
        counts = [-(-size // m) for size, m in zip(outputs, tile, strict=True)]
        points = math.prod(m + taps - 1 if taps > 1 else 1 for m, taps in zip(tile, sizes, strict=True))
        return cls(points, images, math.prod(counts), outputs[0], tile[0])

    def band(self, kernel_in: int, features: int) -> Band | None:
        """What to compute at a time, of all features; None where the images are not computed in bands."""
        values, of_kernel = 4 * self.points * (kernel_in + features), 4 * self.points * kernel_in * features
        if of_kernel > _BAND_KERNEL or values * self.images * self.tiles + of_kernel <= _LARGEST:
            return None
        of_row = -(-values * self.tiles // self.outputs)
        # Each band reads the whole kernel: 3x3 over 128x128x256, whose transformed kernel is of 9 MB, takes 131 ms in
        # bands of 5 MB and 57 of 20 (`direct` 114).
        within = max(BYTES, 2 * of_kernel)
        return band_within(self.images, self.outputs, of_row, multiple=self.height, within=within)

    def block(self, kernel_in: int, features: int) -> int | None:
        """How many features to compute at once, so that what is transformed is at most `_LARGEST`; None if too few.

        28x28x512 by 3x3 takes 11.5 ms in two blocks and 22.7 at once (`direct` 21.9): a transformed kernel is 4 times
        its kernel.
        """
        for parts in range(1, max(1, features // _NARROWEST) + 1):
            some = features // parts
            values = self.images * self.tiles * (kernel_in + some) + kernel_in * some
            if features % parts == 0 and 4 * self.points * values <= _LARGEST:
                return some
        return None
