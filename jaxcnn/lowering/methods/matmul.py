"""The method `matmul`: convolutions as products of matrices, batched over groups.

1x1 windows are one product; the kernel gradient is one product for each tap; dense windows of stride 1 have their taps
on both sides of products (`spread`); everything else is a product of the patches of the image, gathered in one matrix,
with the kernel. Sums are in float32 at least and exact for integers: the
error is `direct`'s, within 4 epsilons of float32 of the sum of the magnitudes of an output's products.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    forward_window,
    input_by_phases,
    pad_spatial,
    settled,
    shape_unsupported,
    sum_dtype,
    tap_slice,
    taps,
)
from jaxcnn.lowering.methods import matmul_spread as spread
from jaxcnn.lowering.spec import ConvSpec

NAME = "matmul"

_STACKED_BYTES = 8 * 2**20
"""Most bytes of patches of one group for which a stack is one batched product and not a loop over its entries: 0.7 ms
against 1.5 of the loop at 1.8 MB, 36 against 14 at 29 MB (`direct` 1.2 and 28)."""

_GATHERED_BYTES = 5 * 2**20
"""Most bytes of the pixels under all taps for which a dense kernel's gradient is one product with them, and not one for
each tap: 3x3 at 512 channels over 7x7 takes 1.5 ms as one, 2.4 by taps (`direct` 2.8); 8 images of 28x28x128 30 and 16
(`direct` 13)."""
_KERNEL_FEATURES, _KERNEL_CHANNELS, _KERNEL_MACS = 96, 8, 10e6
"""Fewest of each for which that product takes less time than XLA's convolution: of 354 shapes drawn at random (strides
1 and 2) the 145 that meet the bounds take 0.67 of its time in the geometric mean, 7 more than 1.1 times; those of 64
features take as long."""


_FEW_TAPS, _BY_TAPS_FEATURES, _BY_TAPS_NARROWING, _BY_TAPS_STRIDED = 7, 48, 4, 128
"""When one product for each tap takes less time than XLA's convolution: windows of few taps in one row or column, or
2x2, of images; the fewest features, the most channels for each of them, and the fewest of both for a stride. Set on 33
shapes drawn at random that meet them, they took 0.52 of its time in the geometric mean of 35 others, at worst 1.11; 3x1
over 8x56x56x64 to 192 takes 19 ms instead of 65."""


_INPUT_MACS, _INPUT_WIDENING, _INPUT_TAPS, _INPUT_CHANNELS = 10e6, 2, 25, 16
"""When the inputs of a strided convolution take less time by products: XLA's convolution multiplies the zeros between
outputs. The fewest multiply-accumulates, and either so many more inputs' channels than outputs', or a large window of
as many or of few: 4x4/2 from 128 channels to 32, 8x56x56, takes 9.7 ms instead of 57, 7x7/2 from 3 to 64, 4x112x112,
2.8 instead of 8.2. Set on 21 shapes drawn at random that meet them, they took 0.60 of its time in the geometric mean of
33 others, at worst 1.06. 3x3/2 of as many channels gains a fifth, and takes 0.2 s longer to compile."""


def supports(spec: ConvSpec) -> str | None:
    """None, or why this convolution is not computed as a product of matrices."""
    if jnp.issubdtype(sum_dtype(spec), jnp.complexfloating):
        return "its operands are complex"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> dict[str, float] | None:
    """Returns what its time grows with, or None where compiled kernels take less."""
    work = costs.work(spec)
    if work is None or work.groups > 1:
        return None
    pixels = work.macs / (work.taps * work.summed * work.results)
    axes = spread.gathered_axes(spec.window, round(pixels), work.summed, work.results)
    moved = pixels * spread.moved(spec.window, work.summed, work.results, axes)
    if work.results >= costs.VECTOR:
        return {"wide call": 1.0, "wide macs": work.macs, "wide moved": moved} if spec.role == "input" else None
    if spec.role == "output" and max(spec.strides) > 1:  # it gathers every tap
        return None
    return {"call": 1.0, "macs": work.macs, "moved": moved}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, sharding: object = None) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    del sharding
    dtype = sum_dtype(spec)

    def forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
        return _forward(x, kernel, window, dtype, spec.precision)

    def single(a: jax.Array, b: jax.Array) -> jax.Array:
        common = jnp.result_type(a, b) if a.dtype == b.dtype else dtype
        a, b = a.astype(common), b.astype(common)
        if spec.role == "output":
            return forward(a, b, forward_window(spec))
        if spec.role == "input":
            return input_by_phases(a, b, spec, forward)
        return _kernel(a, b, spec, dtype)

    if spec.stacked is None:
        result = single(lhs, rhs)
    elif 4 * spec.stacked * math.prod((*spec.output_shape[:-1], *spec.kernel_shape[:-1])) <= _STACKED_BYTES:
        result = jax.vmap(single)(lhs, rhs)
    else:
        result = lax.map(lambda operands: single(*operands), (lhs, rhs))
    return result.astype(spec.out_dtype)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """(..., G * C) -> (P, G, C), P pixels."""
    return x.reshape(math.prod(x.shape[:-1]), groups, x.shape[-1] // groups)


def _product(a: jax.Array, b: jax.Array, dtype: Any, precision: Any) -> jax.Array:
    """(P, G, I) @ (G, I, O) -> (P, G * O), as a plain product of matrices if there is one group."""
    if a.shape[1] == 1:
        return lax.dot(a[:, 0], b[0], precision=precision, preferred_element_type=dtype)
    product = lax.dot_general(
        a, b, (((2,), (1,)), ((1,), (0,))), precision=precision, preferred_element_type=dtype
    )  # (G, P, O)
    return jnp.moveaxis(product, 0, 1).reshape(a.shape[0], -1)


def _forward(x: jax.Array, kernel: jax.Array, window: Window, dtype: Any, precision: Any) -> jax.Array:
    """(N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    *sizes, kernel_in, features = kernel.shape
    groups = window.groups
    if groups == 1 and math.prod(sizes) > 1 and max(window.strides) == 1:
        return spread.convolved(x, kernel, window, dtype, precision)
    x = pad_spatial(x, window.padding)
    # (P, G, taps * I) patches, in the kernel's own order of taps and input features.
    patches = [tap_slice(x, tap, window).reshape(-1, groups, kernel_in) for tap in taps(sizes)]
    gathered = patches[0] if len(patches) == 1 else jnp.concatenate(patches, axis=2)
    weights = kernel.reshape(-1, groups, features // groups).transpose(1, 0, 2)  # (G, taps * I, O)
    return _product(gathered, weights, dtype, precision).reshape(x.shape[0], *window.outputs, features)


def kernel_pays(spec: ConvSpec) -> bool:
    """Whether a dense kernel's gradient takes less time as one product than as XLA's convolution."""
    if spec.role != "kernel" or spec.feature_group_count > 1 or spec.stacked is not None:
        return False
    *_, channels, features = spec.kernel_shape
    macs = math.prod(spec.output_shape[:-1]) * math.prod(spec.kernel_shape)
    if macs < _KERNEL_MACS:
        return False
    if _gathered_bytes(spec) <= _GATHERED_BYTES:
        return features >= _KERNEL_FEATURES and channels >= _KERNEL_CHANNELS
    # Otherwise one product for each tap.
    taps = math.prod(spec.window)
    few = spec.rank > 1 and taps <= _FEW_TAPS and (min(spec.window) == 1 or max(spec.window) == 2)
    if few and features >= _BY_TAPS_FEATURES and channels <= _BY_TAPS_NARROWING * features:
        return True
    return max(spec.strides) > 1 and taps <= 9 and min(channels, features) >= _BY_TAPS_STRIDED


def input_pays(spec: ConvSpec) -> bool:
    """Whether a strided convolution's inputs take less time by products, one residue of the strides after the other."""
    if spec.role != "input" or max(spec.strides) == 1 or spec.feature_group_count > 1 or spec.stacked is not None:
        return False
    *window, channels, features = spec.kernel_shape
    macs = math.prod(spec.output_shape[:-1]) * math.prod(spec.kernel_shape)
    if macs < _INPUT_MACS or any(taps < stride for taps, stride in zip(window, spec.strides, strict=True)):
        return False
    narrows = channels >= _INPUT_WIDENING * features
    return narrows or (math.prod(window) >= _INPUT_TAPS and (channels <= _INPUT_CHANNELS or channels >= features))


def _gathered_bytes(spec: ConvSpec) -> int:
    """Bytes of the pixels under all taps of a dense convolution, in float32."""
    return 4 * math.prod((*spec.output_shape[:-1], *spec.kernel_shape[:-1]))


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec, dtype: Any) -> jax.Array:
    """(N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    window = forward_window(spec)
    x = pad_spatial(x, window.padding)
    if window.groups > 1 or _gathered_bytes(spec) > _GATHERED_BYTES:
        return _kernel_by_taps(x, y, spec, dtype)
    pixels = [_pixels(tap_slice(x, tap, window)) for tap in taps(spec.window)]
    gathered = pixels[0] if len(pixels) == 1 else settled(jnp.concatenate(pixels, axis=1), spec.exported)
    product = lax.dot_general(
        gathered,
        _pixels(y),
        (((0,), (0,)), ((), ())),
        precision=spec.precision,
        preferred_element_type=dtype,
    )  # (taps * I, O)
    return product.reshape(spec.kernel_shape)


def _pixels(x: jax.Array) -> jax.Array:
    """(..., C) -> (P, C)."""
    return x.reshape(-1, x.shape[-1])


def _kernel_by_taps(x: jax.Array, y: jax.Array, spec: ConvSpec, dtype: Any) -> jax.Array:
    """The same of the padded x, one product for each tap."""
    window = forward_window(spec)
    groups = window.groups
    kernel_in, features = spec.kernel_shape[-2:]
    cotangent = _grouped(y, groups)
    results = []
    for tap in taps(spec.window):
        pixels = _grouped(tap_slice(x, tap, window), groups)
        if groups == 1:
            product = lax.dot_general(
                pixels[:, 0],
                cotangent[:, 0],
                (((0,), (0,)), ((), ())),
                precision=spec.precision,
                preferred_element_type=dtype,
            )  # (I, O)
        else:
            product = lax.dot_general(
                pixels,
                cotangent,
                (((0,), (0,)), ((1,), (1,))),
                precision=spec.precision,
                preferred_element_type=dtype,
            )  # (G, I, O)
            product = jnp.swapaxes(product, 0, 1).reshape(kernel_in, features)
        results.append(product)
    return jnp.stack(results).reshape(spec.kernel_shape)
