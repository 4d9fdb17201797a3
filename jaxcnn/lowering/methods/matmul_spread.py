"""A dense convolution as products of matrices with taps on both sides: what `matmul` does at stride 1.

Along some axes of the window the taps' pixels are gathered beside each other, in the rows of a matrix; along the others
they are spread over its columns: one product gives what each pixel adds to each of them, and these results are shifted
and added up. All 121 taps of an 11x11 window gathered are 121 times the image; 11 gathered and 11 spread are 22 times.

XLA:CPU's product reaches 190 GFLOP/s on two cores of an AMD EPYC with AVX-512 where its convolution reaches 100 (jax
0.10.2): 1x7 over 56x56x64 takes 1.0 ms against 1.8, 11x11 from 64 to 31 channels 10.5 against 21.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn._compat import FAST_CONVOLUTION
from jaxcnn.geometry import dilated_size
from jaxcnn.lowering.common.bands import Band, band_within, in_bands
from jaxcnn.lowering.common.forms import Window, pad_spatial, settled
from jaxcnn.lowering.spec import ConvSpec, Ints

_WHOLE = 24 * 2**20
"""Most bytes of an image's taps, gathered and spread, that are not computed in bands."""
_PRODUCT_BYTES = 6 * 2**20
"""Most bytes of one product: 7x7 from 64 to 31 channels over 56x56 takes 7 ms in blocks of 6 MB, 20 in one of 19."""
_GATHER_COST = 2
"""What a gathered number costs beside a spread one, which is read where it is added: 7x7 from 64 to 31 channels over
56x56 takes 5.3 ms spread and 3.9 with an axis gathered, from 256 to 41 over 28x28 5.6 and 6.6."""

# When it pays. The bounds were set on 312 shapes drawn at random that neither `winograd` nor `shift` takes (1 to 4
# images of 24x24 to 112x112, 16 to 256 channels, windows of 2 to 11 taps along one axis or two); jax 0.10.2, two cores.
# Of 143 others they choose 99, which take 0.74 of XLA's time in the geometric mean; five take more than 1.1 times as
# long, at worst 1.18. Fewer pixels pay alone and not in a network: with 17x17 pixels allowed Inception-v3 takes 87 ms
# instead of 72, and the gradient of VGG-16, whose kernels of 9 MB change their layout, 2.5 s instead of 1.1.
_FEWEST_CHANNELS, _FEWEST_PIXELS, _MOST_PIXELS = 16, 512, 3600
_FEWEST_MACS, _FEWEST_UNEVEN = 10e6, 3e6
"""Fewest multiply-accumulates; fewer do where the output channels are no multiple of 8 or 16, which XLA's convolution
computes at half its speed: 1x11 from 64 to 31 channels over 56x56 takes 2.0 ms, to 32 channels 1.5."""
_LARGE_CHANNELS, _LARGE_TAPS = 40, 5
"""Fewest channels and most taps along one axis where images have more pixels, and are computed in bands."""
_MANY_TAPS, _MANY_CHANNELS, _MANY_FEATURES, _MANY_MACS = 36, 32, 16, 15e6
_MANY_PIXELS, _MANY_MOST_PIXELS = 100, 4096
"""Fewest of each, and most pixels, for windows of many taps along two axes over one image, or few pixels of several:
7x7 from 120 to 56 channels over 56x56 takes 12.3 ms (XLA's convolution 24.3), 9x9 from 56 to 152 over 12x12 2.7 (4.0),
11x11 from 104 to 64 over 56x56 33 (51). Over 96x96 and 112x112 some take twice as long."""
_MOST_GATHERED = 9 * 2**20
_MOST_SPREAD, _MOST_SPREAD_OF_MANY = 16 * 2**20, 3 * 2**20
"""Most bytes of an image's taps, gathered or spread. Of several images each waits in a loop for the one before."""


def gathered_axes(window: Sequence[int], pixels: int, in_features: int, out_features: int) -> Ints:
    """The axes of the window to gather: the fewest numbers moved for each pixel, of what the bounds allow if any is."""
    rank = len(window)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(rank), size) for size in range(rank + 1))

    def cost(axes: Ints) -> tuple[bool, int]:
        fits = _fits(window, pixels, in_features, out_features, axes)
        return not fits, moved(window, in_features, out_features, axes)

    return min(subsets, key=cost)


def moved(window: Sequence[int], in_features: int, out_features: int, gathered: Ints) -> int:
    """Numbers moved for each pixel if these axes are gathered, in units of a spread one."""
    rows, columns = _sides(window, gathered)
    return (_GATHER_COST * rows * in_features if rows > 1 else 0) + columns * out_features


def _sides(window: Sequence[int], gathered: Ints) -> tuple[int, int]:
    """How many taps lie in a row of the matrix, and how many in its columns."""
    rows = math.prod(window[axis] for axis in gathered)
    return rows, math.prod(window) // rows


def _fits(window: Sequence[int], pixels: int, in_features: int, out_features: int, gathered: Ints) -> bool:
    rows, columns = _sides(window, gathered)
    gathered_fit = rows == 1 or 4 * pixels * rows * in_features <= _MOST_GATHERED
    return gathered_fit and 4 * pixels * columns * out_features <= _MOST_SPREAD


def pays(spec: ConvSpec) -> bool:
    """Whether the products take less time than XLA's own convolution: of volumes, and on jax 0.10 of images."""
    if spec.role == "kernel" or spec.feature_group_count > 1 or max(spec.strides) > 1 or spec.stacked is not None:
        return False
    *window, in_features, out_features = spec.kernel_shape
    shape = spec.output_shape
    if spec.role == "input":
        in_features, out_features, shape = out_features, in_features, spec.input_shape
    images, pixels = shape[0], math.prod(shape[1:-1])
    macs = images * pixels * math.prod(window) * in_features * out_features
    axes = sum(taps > 1 for taps in window)
    if axes > 2 and in_features >= _FEWEST_CHANNELS:
        # XLA's own convolution of volumes reaches 20 to 40 GFLOP/s on jax 0.10 and 0.12: 3x3x3 over 48x48x48x32 takes
        # 208 ms, products in bands 68; of 26 volumes drawn at random 25 were chosen and took 0.22 of its time in the
        # geometric mean, at worst 0.61.
        return macs >= _FEWEST_MACS
    if FAST_CONVOLUTION or in_features < _FEWEST_CHANNELS:
        return False
    wide = in_features >= _MANY_CHANNELS and out_features >= _MANY_FEATURES
    if axes == 2 and math.prod(window) >= _MANY_TAPS and wide and macs >= _MANY_MACS:
        alone = images == 1 or images * pixels < _FEWEST_PIXELS
        if alone and images * pixels >= _MANY_PIXELS and pixels <= _MANY_MOST_PIXELS:
            return True
    if images * pixels < _FEWEST_PIXELS:
        return False
    if pixels > _MOST_PIXELS and in_features >= _LARGE_CHANNELS and macs >= _FEWEST_MACS and _few_taps(window, images):
        return True
    gathered = gathered_axes(window, pixels, in_features, out_features)
    if not _fits(window, pixels, in_features, out_features, gathered):
        return False
    if out_features % 16 not in (0, 8):
        return macs >= _FEWEST_UNEVEN
    _, columns = _sides(window, gathered)
    if images > 1 and 4 * pixels * columns * out_features > _MOST_SPREAD_OF_MANY:
        return False
    return macs >= _FEWEST_MACS and pixels <= _MOST_PIXELS


def _few_taps(window: Sequence[int], images: int) -> bool:
    """Whether a window has few taps along one axis, or two along two axes of one image."""
    if sum(taps > 1 for taps in window) == 1:
        return max(window) <= _LARGE_TAPS
    return images == 1 and math.prod(window) <= 4


def convolved(x: jax.Array, kernel: jax.Array, window: Window, dtype: Any, precision: Any) -> jax.Array:
    """(N, *spatial, I), (*taps, I, O) -> (N, *outputs, O), of one group at stride 1."""
    *sizes, in_features, features = kernel.shape
    band = _band(x.shape[0], sizes, window.outputs, in_features, features)
    if band is None:
        return _whole(x, kernel, window, dtype, precision)

    def of_band(some: jax.Array, window: Window) -> jax.Array:
        return _whole(some, kernel, window, dtype, precision)

    return in_bands(x, window, dilated_size(sizes[0], window.dilation[0]), band, features, dtype, of_band)


def _band(images: int, sizes: Sequence[int], outputs: Sequence[int], in_features: int, features: int) -> Band | None:
    """What to compute at a time; None where the images are not computed in bands."""
    rows, columns = _sides(sizes, gathered_axes(sizes, math.prod(outputs), in_features, features))
    of_row = 4 * math.prod(outputs[1:]) * ((rows * in_features if rows > 1 else 0) + columns * features)
    return None if outputs[0] * of_row <= _WHOLE else band_within(images, outputs[0], of_row)


def _whole(x: jax.Array, kernel: jax.Array, window: Window, dtype: Any, precision: Any) -> jax.Array:
    """The same, of whole images."""
    *sizes, in_features, features = kernel.shape
    rank = len(sizes)
    gathered = gathered_axes(sizes, math.prod(window.outputs), in_features, features)
    spread = tuple(axis for axis in range(rank) if axis not in gathered)
    rows, columns = _sides(sizes, gathered)
    # (gathered taps * I, spread taps, O)
    weights = kernel.transpose(*gathered, rank, *spread, rank + 1).reshape(rows * in_features, columns, features)
    taps = list(itertools.product(*(range(sizes[axis]) for axis in spread)))

    def of_images(x: jax.Array) -> jax.Array:
        return _of_images(_gathered(x, sizes, window, gathered), weights, taps, spread, window, dtype, precision)

    pixels = math.prod(x.shape[1:-1])
    together = _PRODUCT_BYTES // (pixels * columns * features * jnp.dtype(dtype).itemsize)
    together = max(n for n in range(1, x.shape[0] + 1) if x.shape[0] % n == 0 and n <= max(together, 1))
    if together == x.shape[0]:
        return of_images(x)
    blocks = lax.map(of_images, x.reshape(-1, together, *x.shape[1:]))
    return blocks.reshape(x.shape[0], *blocks.shape[2:])


def _of_images(
    rows: jax.Array,
    weights: jax.Array,
    taps: Sequence[Ints],
    axes: Ints,
    window: Window,
    dtype: Any,
    precision: Any,
) -> jax.Array:
    """(N, *spatial, K), (K, taps, O) -> (N, *outputs, O), in blocks of taps, which are along these axes."""
    features = weights.shape[-1]
    matrix = rows.reshape(-1, rows.shape[-1])
    block = max(1, _PRODUCT_BYTES // (len(matrix) * features * jnp.dtype(dtype).itemsize))
    result: Any = None
    for start in range(0, len(taps), block):
        some = weights[:, start : start + block]
        product = lax.dot(
            matrix, some.reshape(len(some), -1), precision=precision, preferred_element_type=dtype
        ).reshape(*rows.shape[:-1], -1)  # (N, *spatial, taps * O)
        for index, tap in enumerate(taps[start : start + block]):
            part = product[..., index * features : (index + 1) * features]
            part = _shifted(part, dict(zip(axes, tap, strict=True)), window)
            result = part if result is None else result + part
        if start + block < len(taps):
            result = settled(result, window.exported)  # ends the loop over this product: the next one takes its memory
    return result


def _gathered(x: jax.Array, sizes: Sequence[int], window: Window, axes: Ints) -> jax.Array:
    """The pixels under the taps along some axes, (N, *spatial, taps * C), which there are as many as outputs."""
    if not axes:
        return x
    x = pad_spatial(x, [pair if axis in axes else (0, 0) for axis, pair in enumerate(window.padding)])
    pieces = []
    for tap in itertools.product(*(range(sizes[axis]) for axis in axes)):
        starts, limits = [0] * x.ndim, list(x.shape)
        for axis, index in zip(axes, tap, strict=True):
            starts[axis + 1] = index * window.dilation[axis]
            limits[axis + 1] = starts[axis + 1] + window.outputs[axis]
        pieces.append(lax.slice(x, starts, limits))
    return settled(jnp.concatenate(pieces, -1), window.exported)


def _shifted(part: jax.Array, tap: dict[int, int], window: Window) -> jax.Array:
    """What one tap adds to each output, of what it makes of each pixel: (N, *spatial, O) -> (N, *outputs, O)."""
    edges = [(0, 0, 0)] * part.ndim
    for axis, index in tap.items():
        low = window.padding[axis][0] - index * window.dilation[axis]
        edges[axis + 1] = (low, window.outputs[axis] - part.shape[axis + 1] - low, 0)
    return lax.pad(part, jnp.zeros((), part.dtype), edges)
