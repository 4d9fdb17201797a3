"""The method `shift`: products of shifted slices with one tap each, added up in one vectorised loop.

For windows over few input channels for each output: depthwise convolutions, narrow groups and image filters, any stride
and dilation. Windows of more than a few taps go by blocks of channels (`lanes.py`). Every sum is in float32 at least
(int32 for integers), in four interleaved chains: the error is `direct`'s, within 4 epsilons of float32
of the sum of the magnitudes of an output's products.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    balanced_sum,
    by_role,
    forward_window,
    pad_spatial,
    shape_unsupported,
    sum_dtype,
    tap_slice,
    taps,
)
from jaxcnn.lowering.methods import shift_lanes as lanes
from jaxcnn.lowering.methods import shift_tiles as tiles
from jaxcnn.lowering.spec import ConvSpec

NAME = "shift"

_FEW_CHANNELS, _FEW_CHANNELS_PRODUCTS = 12, 80
"""Most channels that are added up, and most products of an output, for which a dense convolution is estimated."""

_LARGEST_PRODUCTS = 2048
"""Most slices that are multiplied for one output: 31x31 depthwise, or 3x3 over 200 channels."""

_FEW_PRODUCTS = 10
"""Most products of an output that are added in one loop over all channels."""

_LOOP_PRODUCTS = 128
"""Most products of an output that XLA makes one vectorised loop of."""

_LARGE_IMAGE = 2_000_000
"""Most values that an image of few channels becomes by blocks: 224x224x3 to 64 takes 2.2 ms, in one loop 1.4, which
holds no copy of the result."""

_UNROLLED_ROWS, _UNROLLED_SLICES = 4, 64
"""Rows that are added up slice by slice in a kernel's gradient, and slices in all. Compile time grows with them, and 14
rows instead of 4 are no faster: 0.9 ms against 0.8 at 1x112x112x32, 3x3, and 0.8 against 0.7 at 1x28x28x240, 5x5."""


def supports(spec: ConvSpec) -> str | None:
    """None, or why this convolution is not computed as shifted products."""
    if jnp.issubdtype(sum_dtype(spec), jnp.complexfloating):
        return "its operands are complex"
    products = math.prod(spec.kernel_shape[:-1])
    if products > _LARGEST_PRODUCTS:
        return f"each output has {products} products, more than {_LARGEST_PRODUCTS} slices"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> dict[str, float] | None:
    """Returns what its time grows with, or None where compiled kernels take less."""
    work = costs.work(spec)
    if work is None:
        return None
    if work.by_channel:
        return {"call": 1.0, "taps": work.taps, "channel macs": work.macs, "floats": work.floats}
    few = work.groups == 1 and work.summed <= _FEW_CHANNELS and work.results < costs.VECTOR
    if few and work.taps * work.summed <= _FEW_CHANNELS_PRODUCTS:
        return {"few channels": 1.0, "few channels' macs": work.macs}
    return None


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: object = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    del sharding
    return by_role(lhs, rhs, spec, _forward, _kernel)


def _forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """(N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    if _blocks_pay(kernel, window):
        return lanes.blocked(x, kernel, window)
    if _frame_pays(kernel, window):
        return _framed(x, kernel, window)
    # XLA materialises the padded image only behind a barrier: fused, each tap would test the image's borders.
    return _slide(lax.optimization_barrier(pad_spatial(x, window.padding)), kernel, window)


def _blocks_pay(kernel: jax.Array, window: Window) -> bool:
    """Whether to add the products by blocks of channels."""
    kernel_in, features = kernel.shape[-2:]
    out = features // window.groups
    products = math.prod(kernel.shape[:-1])
    if window.exported:
        return False
    if window.groups == 1 and products <= _LOOP_PRODUCTS and math.prod(window.outputs) * features > _LARGE_IMAGE:
        return False
    if kernel_in == 1:
        # 9 taps are faster in one loop (0.25 ms against 0.33 at 56x56x144), 11 are not (0.22 against 0.16 at 56x56x64).
        return features >= lanes.LANES and products > _FEW_PRODUCTS
    # Fewer output channels than lanes leave lanes empty: 0.21 ms in one loop against 0.31 for 8 to 4 channels by 3x3.
    # But a loop of more than 128 products is not vectorised.
    return (out >= lanes.LANES and products > _FEW_PRODUCTS) or products > _LOOP_PRODUCTS


def _frame_pays(kernel: jax.Array, window: Window) -> bool:
    """Whether to compute the interior without padding, and the frame around it apart.

    The padded copy costs as much as the arithmetic of a 3x3: 1.0 ms without it against 1.4 at 8x56x56x64. Of more taps
    it costs less, and the five loops take longer to compile than the one. An image that the program computes is padded
    in the loop that computes it: MobileNetV2 takes 7.9 ms without frames, compiled in 1.2 s, and 10.0 with, in 1.9.
    """
    inner = [output - low - high for output, (low, high) in zip(window.outputs, window.padding, strict=True)]
    return (
        not window.computed
        and len(window.outputs) == 2
        and max(window.strides) == 1
        and math.prod(kernel.shape[:-2]) <= 9
        and sum(map(sum, window.padding)) > 0
        and min(map(min, window.padding)) >= 0
        and min(inner) > 0
        and 2 * math.prod(inner) > math.prod(window.outputs)
    )


def _framed(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """A convolution of stride 1 as its interior and the strips around it, laid together."""
    height, width = window.outputs
    (top, bottom), (left, right) = window.padding

    def region(rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
        """The outputs of some rows and columns, of which only the pixels that they see are padded."""
        seen, padding = x, []
        for axis, (start, stop) in enumerate((rows, columns), start=1):
            size, low = x.shape[axis], window.padding[axis - 1][0]
            extent = (kernel.shape[axis - 1] - 1) * window.dilation[axis - 1]
            first, last = start - low, stop - low + extent  # of the pixels seen, over the borders
            seen = lax.slice_in_dim(seen, max(first, 0), min(last, size), axis=axis)
            padding.append((max(-first, 0), max(last - size, 0)))
        part = dataclasses.replace(window, outputs=(rows[1] - rows[0], columns[1] - columns[0]))
        return _slide(lax.optimization_barrier(pad_spatial(seen, padding)), kernel, part)

    inner_rows, inner_columns = (top, height - bottom), (left, width - right)
    middle = [
        region(inner_rows, columns)
        for columns in ((0, left), inner_columns, (width - right, width))
        if columns[1] > columns[0]
    ]
    bands = [
        region((0, top), (0, width)) if top else None,
        jnp.concatenate(middle, axis=2) if len(middle) > 1 else middle[0],
        region((height - bottom, height), (0, width)) if bottom else None,
    ]
    return jnp.concatenate([band for band in bands if band is not None], axis=1)


def _slide(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The convolution of an image that is padded already."""
    *sizes, kernel_in, features = kernel.shape
    groups = window.groups
    out = features // groups
    ones = (1,) * (len(sizes) + 1)
    if kernel_in == 1 and out == 1:
        weights = kernel.reshape(*sizes, *ones, features)
        return balanced_sum([tap_slice(x, tap, window) * weights[tap] for tap in taps(sizes)])
    # (N, *spatial, G, I) and (*taps, I, G, O); every product is (N, *outputs, G, O).
    weights = kernel.reshape(*sizes, kernel_in, *ones, groups, out)
    terms = []
    for tap in taps(sizes):
        pixels = tap_slice(x, tap, window)
        pixels = pixels.reshape(*pixels.shape[:-1], groups, kernel_in)
        terms += [pixels[..., i, None] * weights[tap][i] for i in range(kernel_in)]
    total = balanced_sum(terms)
    return total.reshape(*total.shape[:-2], features)


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """(N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    window = forward_window(spec)
    if spec.kernel_shape[-1] >= lanes.LANES and not spec.exported:
        return tiles.kernel_gradient(x, y, window, spec.kernel_shape)
    groups = window.groups
    kernel_in, features = spec.kernel_shape[-2:]
    out = features // groups
    x = lax.optimization_barrier(pad_spatial(x, window.padding))
    count = max(1, min(_UNROLLED_ROWS, _UNROLLED_SLICES // len(taps(spec.window)) // kernel_in))
    results = []
    for tap in taps(spec.window):
        pixels = tap_slice(x, tap, window)
        if kernel_in == out == 1:
            results.append(_summed_product(pixels, y, count))
            continue
        split = pixels.reshape(*pixels.shape[:-1], groups, kernel_in)
        for i in range(kernel_in):
            spread = jnp.broadcast_to(split[..., i, None], (*pixels.shape[:-1], groups, out)).reshape(y.shape)
            results.append(_summed_product(spread, y, count))
    return jnp.stack(results).reshape(spec.kernel_shape)


def _summed_product(a: jax.Array, b: jax.Array, count: int) -> jax.Array:
    """Sum of a * b over all axes but the last, `count` rows at a time."""
    # XLA reduces a product in a scalar, strided loop. Rows added up slice by slice are one vectorised loop, and what is
    # left is small enough for a product with ones: 1.9 ms instead of 26 at 8x56x56x64, 3x3 (PyTorch: 0.46).
    rows = a.shape[1]
    height = max(1, rows // count)
    terms = [
        lax.slice_in_dim(a, at, at + height, axis=1) * lax.slice_in_dim(b, at, at + height, axis=1)
        for at in range(0, rows - height + 1, height)
    ]
    sums = [balanced_sum(terms)]
    done = len(terms) * height
    if done < rows:
        sums.append(lax.slice_in_dim(a, done, rows, axis=1) * lax.slice_in_dim(b, done, rows, axis=1))
    totals = []
    for partial in sums:
        flat = partial.reshape(math.prod(partial.shape[:-1]), partial.shape[-1])
        ones = jnp.ones((1, flat.shape[0]), flat.dtype)
        totals.append(lax.dot(ones, flat, precision=lax.Precision.HIGHEST)[0])
    return sum(totals[1:], totals[0])
