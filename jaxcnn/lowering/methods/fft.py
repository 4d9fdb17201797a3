"""The method `fft`: convolutions as products of spectra, for windows of hundreds of taps.

The whole image is transformed at once where it is not much larger than the window, else in overlapping tiles whose
results are laid side by side (overlap-save). Errors are relative to the largest magnitude in a tile, not to each
output: within 4 epsilons of float32 of the largest sum of the magnitudes of an output's products. So `precision`
HIGHEST refuses this method. A NaN or an infinity spreads over its tile, as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.geometry import dilated_size
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    by_role,
    demands_highest,
    forward_window,
    pad_spatial,
    shape_unsupported,
    sum_dtype,
)
from jaxcnn.lowering.spec import ConvSpec

NAME = "fft"

TILE_WINDOWS = 4
"""Longest tile, in lengths of the window. Longer images are cut into tiles."""
MIN_TILE = 64
"""Fewest pixels of a tile along an axis."""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed from spectra."""
    if not jnp.issubdtype(sum_dtype(spec), jnp.floating):
        return f"its products are {sum_dtype(spec)}, and spectra are of floats"
    if demands_highest(spec.precision):
        return "precision HIGHEST admits only methods with direct's error"
    if spec.rank > 3:
        return f"it has {spec.rank} spatial axes, and transforms have at most 3"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    work = costs.work(spec)
    if not work.by_channel:
        return costs.NEVER  # between many channels the spectra of every pair are multiplied
    kernel = spec.role == "kernel"
    phases = math.prod(spec.strides) if spec.role == "input" else 1
    tiles, length = spec.output_shape[0] * phases, 1.0
    for output, taps, dilation, stride in zip(
        spec.output_shape[1:-1], spec.window, spec.kernel_dilation, spec.strides, strict=True
    ):
        extent = dilated_size(taps, dilation)
        pixels = output + extent / stride if spec.role == "input" else output * stride + extent
        of_tile = pixels if kernel else min(pixels, max(TILE_WINDOWS * extent, MIN_TILE))
        tiles *= math.ceil(pixels / max(of_tile - extent, of_tile / TILE_WINDOWS))
        length *= of_tile
    images = 2 * tiles * length * work.groups
    return {
        "call": 1,
        "transformed": images + phases * length * work.groups,
        "large": costs.above_cliff(8 * images),
    }


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    return {"call": 1.0, "phases": math.prod(spec.strides) - 1.0 if spec.role == "input" else 0.0}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    return by_role(lhs, rhs, spec, _forward, _kernel)


def fast_length(length: int) -> int:
    """Returns the smallest length, not below this one, with a fast transform."""
    from scipy import fft  # imported here to keep `import jaxcnn` fast

    return int(fft.next_fast_len(length, real=True))


def tile_lengths(pixels: Sequence[int], extents: Sequence[int]) -> tuple[int, ...]:
    """Returns the length of the transform on each axis, from the axis' padded pixels and the window's extent."""
    return tuple(
        fast_length(min(size, max(TILE_WINDOWS * extent, MIN_TILE)))
        for size, extent in zip(pixels, extents, strict=True)
    )


def _features_first(x: jax.Array, groups: int) -> jax.Array:
    """Transposes images: (N, *spatial, G * C) -> (N, G, C, *spatial)."""
    features_first = jnp.moveaxis(x, -1, 1)
    return features_first.reshape(
        features_first.shape[0], groups, features_first.shape[1] // groups, *features_first.shape[2:]
    )


def _tiles(x: jax.Array, axis: int, length: int, step: int, outputs: int) -> jax.Array:
    """Cuts an axis into overlapping tiles along a new leading axis: tile i begins at pixel i * step."""
    count, pieces = -(-outputs // step), -(-length // step)
    padding = (count + pieces - 1) * step - x.shape[axis]
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, padding, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    # A tile is the step at which it begins and the following ones. One slice for each tile would compile slowly.
    steps = x.reshape(*x.shape[:axis], count + pieces - 1, step, *x.shape[axis + 1 :])
    slices = [lax.slice_in_dim(steps, piece, piece + count, axis=axis) for piece in range(pieces)]
    slices[-1] = lax.slice_in_dim(slices[-1], 0, length - (pieces - 1) * step, axis=axis + 1)
    return jnp.moveaxis(jnp.concatenate(slices, axis=axis + 1), axis, 0)


def _contract(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies spectra and sums over input channels: (T, N, G, I, *F), (G, I, O, *F) -> (T, N, G, O, *F)."""
    if kernel.shape[1] == 1:
        return x * kernel[None, None, :, 0]
    rank = kernel.ndim - 3
    # One product of matrices for each frequency: (F, G, T N, I) @ (F, G, I, O), real and imaginary parts apart, since
    # XLA multiplies complex matrices element by element.
    tiles, batch, groups, features = x.shape[:4]
    frequencies = math.prod(x.shape[4:])
    flat = jnp.moveaxis(x.reshape(tiles * batch, groups, features, frequencies), -1, 0).swapaxes(1, 2)
    weights = jnp.moveaxis(kernel.reshape(groups, features, -1, frequencies), -1, 0)
    real, imaginary = jnp.real, jnp.imag
    left = jnp.concatenate([real(flat), imaginary(flat)], axis=-1)  # (F, G, T N, 2 I)
    top = jnp.concatenate([real(weights), imaginary(weights)], axis=-1)
    bottom = jnp.concatenate([-imaginary(weights), real(weights)], axis=-1)
    right = jnp.concatenate([top, bottom], axis=-2)  # (F, G, 2 I, 2 O)
    product = jnp.matmul(left, right, precision=lax.Precision.HIGHEST)
    out = product.shape[-1] // 2
    spectrum = lax.complex(*jnp.split(product, 2, axis=-1))  # (F, G, T N, O)
    spectrum = jnp.moveaxis(spectrum.swapaxes(1, 2), 0, -1)
    return spectrum.reshape(tiles, batch, groups, out, *x.shape[-rank:])


def _forward(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """Computes the forward convolution: (N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    *sizes, kernel_in, features = kernel.shape
    rank, groups = len(sizes), window.groups
    extents = tuple(map(dilated_size, sizes, window.dilation))
    # All outputs of stride 1 between the first and the last one.
    dense = tuple((o - 1) * s + 1 for o, s in zip(window.outputs, window.strides, strict=True))
    pixels = tuple(d + e - 1 for d, e in zip(dense, extents, strict=True))
    image = _features_first(pad_spatial(x, window.padding), groups)
    image = lax.slice(image, (0,) * image.ndim, (*image.shape[:3], *pixels))
    weights = jnp.moveaxis(kernel.reshape(*sizes, kernel_in, groups, features // groups), (-2, -3), (0, 1))
    weights = jnp.moveaxis(weights, -1, 2)  # (G, I, O, *taps)
    holes = ((0, 0, 0),) * 3 + tuple((0, 0, d - 1) for d in window.dilation)
    weights = lax.pad(weights, jnp.zeros((), weights.dtype), holes)
    lengths = tile_lengths(pixels, extents)
    steps = tuple(length - extent + 1 for length, extent in zip(lengths, extents, strict=True))
    axes = tuple(range(-rank, 0))
    counts = tuple(-(-d // s) for d, s in zip(dense, steps, strict=True))
    tiles = image[None]
    for axis in range(rank):
        cut = _tiles(tiles, 4 + axis, lengths[axis], steps[axis], dense[axis])  # (t, T, N, G, I, ...)
        tiles = jnp.moveaxis(cut, 0, 1).reshape(-1, *tiles.shape[1:4], *cut.shape[5:])
    spectra = _contract(jnp.fft.rfftn(tiles, axes=axes), jnp.conj(jnp.fft.rfftn(weights, s=lengths, axes=axes)))
    full = jnp.fft.irfftn(spectra, s=lengths, axes=axes)  # (T, N, G, O, *lengths)
    valid = lax.slice(full, (0,) * full.ndim, (*full.shape[:4], *steps))
    # (t0, t1, ..., N, G, O, s0, s1, ...) -> (N, t0, s0, t1, s1, ..., G, O)
    split = valid.reshape(*counts, *valid.shape[1:])
    order = [rank]
    for axis in range(rank):
        order += [axis, rank + 3 + axis]
    outputs = split.transpose(*order, rank + 1, rank + 2)
    outputs = outputs.reshape(x.shape[0], *(c * s for c, s in zip(counts, steps, strict=True)), features)
    return lax.slice(outputs, (0,) * outputs.ndim, (x.shape[0], *dense, features), (1, *window.strides, 1))


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the kernel gradient: (N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    window = forward_window(spec)
    rank, groups = spec.rank, window.groups
    extents = tuple(map(dilated_size, spec.window, window.dilation))
    dense = tuple((o - 1) * s + 1 for o, s in zip(window.outputs, window.strides, strict=True))
    pixels = tuple(d + e - 1 for d, e in zip(dense, extents, strict=True))
    image = _features_first(pad_spatial(x, window.padding), groups)  # (N, G, I, *spatial)
    image = lax.slice(image, (0,) * image.ndim, (*image.shape[:3], *pixels))
    cotangent = _features_first(y, groups)  # (N, G, O, *outputs)
    holes = ((0, 0, 0),) * 3 + tuple((0, 0, s - 1) for s in window.strides)
    cotangent = lax.pad(cotangent, jnp.zeros((), y.dtype), holes)
    lengths = tuple(map(fast_length, pixels))
    axes = tuple(range(-rank, 0))
    image_spectra = jnp.fft.rfftn(image, s=lengths, axes=axes)
    y_spectra = jnp.conj(jnp.fft.rfftn(cotangent, s=lengths, axes=axes))
    if image_spectra.shape[2] == y_spectra.shape[2] == 1:
        spectrum = (image_spectra * y_spectra).sum(0)[:, :, None]  # (G, 1, 1, *F)
    else:
        # Here the sum is over the batch: batch and input channels change places in the arguments.
        # (1, I, G, N, *F), (G, N, O, *F) -> (1, I, G, O, *F)
        spectrum = _contract(image_spectra.swapaxes(0, 2)[None], y_spectra.swapaxes(0, 1))[0].swapaxes(0, 1)
    full = jnp.fft.irfftn(spectrum, s=lengths, axes=axes)
    steps = (1, 1, 1, *window.dilation)
    gradient = lax.slice(full, (0,) * full.ndim, (*full.shape[:3], *extents), steps)  # (G, I, O, *taps)
    return gradient.transpose(*range(3, 3 + rank), 1, 0, 2).reshape(spec.kernel_shape)
