"""The method `winograd`: dense convolutions by fewer products, over tiles (Lavin & Gray 2016, Toom-Cook).

A tile of m outputs along an axis of r taps costs m + r - 1 products instead of m r. With F(4,3) on both axes, 16
outputs cost 36 products instead of 144. The transforms are sums along one axis after the other; the products are one
batched product of matrices. The error grows with the tile, since outputs are differences of larger values: up to 16
epsilons of float32 times the largest sum of an output's magnitudes (`direct`'s: 4 of its own sum). So `precision`
HIGHEST refuses this method, and 16-bit operands get F(2, r) alone. A NaN or an infinity spreads over its tile, as NaN.

References:
  A. Lavin, S. Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from __future__ import annotations

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

from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    by_role,
    demands_highest,
    materialize,
    pad_spatial,
    shape_unsupported,
    sum_dtype,
)
from jaxcnn.lowering.methods import native
from jaxcnn.lowering.spec import ConvSpec

NAME = "winograd"

TILE_OUTPUTS = {3: 4, 5: 4, 7: 2}
"""Outputs of a tile by the taps of an axis. A tile has at most 8 points, since the error grows with their number."""

_POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), *(Fraction(sign * n, 4) for n in (3, 6) for sign in (1, -1))),
    8: (Fraction(0), *(Fraction(sign * n, 2) for n in (2, 4, 1) for sign in (1, -1))),
}
"""Points at which a tile's polynomials are evaluated, beside infinity, by the number of points with infinity.

With 3/4 and 3/2 instead of the usual 1 and 2 the error of F(4,3) is smaller.
"""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed by tiles of fewer products."""
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
    if not all(taps == 1 or taps in TILE_OUTPUTS for taps in spec.window) or max(spec.window, default=1) == 1:
        return f"its window is {spec.window}, and there are tiles for {', '.join(map(str, TILE_OUTPUTS))} taps"
    if sum(taps > 1 for taps in spec.window) > 2 or math.prod(spec.window) > 25:
        return f"the error of tiles on a window of {spec.window} is too large"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    if spec.xla_only:
        return costs.NEVER  # without layout constraints XLA computes the transforms again for every product
    work = costs.work(spec)
    tiles, points = work.stack * spec.result_shape[0], 1
    for size, taps in zip(spec.result_shape[1:-1], spec.window, strict=True):
        outputs = TILE_OUTPUTS.get(taps, 1)
        tiles *= -(-size // outputs)
        points *= taps + outputs - 1
    tile_floats = tiles * points * (work.summed + work.results)
    kernel_floats = work.stack * points * work.summed * work.results
    if is_native(spec):
        kernel_floats *= work.groups
        return {
            costs.KNOWN: costs.NANOSECONDS[native.NAME]["call"],
            "native macs": work.macs_of_whole_vectors(tiles * kernel_floats),
            "native tile floats": tiles
            * points
            * work.groups
            * sum(map(costs.whole_vectors, (work.summed, work.results))),
            "native kernel floats": kernel_floats,
            "native floats": work.floats,
        }
    return {
        "call": 1,
        costs.CLEARING: costs.kernel_clearing_nanoseconds(4 * kernel_floats),
        "macs": tiles * kernel_floats / work.stack,
        "tile floats": tile_floats,
        "kernel floats": kernel_floats,
        "large": costs.above_cliff(4 * (tile_floats + kernel_floats)),
    }


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    if is_native(spec):
        return {costs.KNOWN_TO_COMPILE: costs.MILLISECONDS_TO_COMPILE[native.NAME]["call"]}
    axes = [(TILE_OUTPUTS[taps], taps + TILE_OUTPUTS[taps] - 1) for taps in spec.window if taps > 1]
    return {"call": 1.0, "operations": float(sum((outputs + points) * points for outputs, points in axes))}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    if is_native(spec):
        return native.lower(lhs, rhs, spec, tiles=True)
    narrow = min(np.dtype(spec.lhs_dtype).itemsize, np.dtype(spec.rhs_dtype).itemsize) < 4
    return by_role(lhs, rhs, spec, partial(_forward, precision=spec.precision, narrow=narrow))


def call(spec: ConvSpec) -> tuple[str, dict[str, Any]] | None:
    """Returns the FFI target and attributes of the call that computes the tiles; None without compiled kernels."""
    return native.call(spec, tiles=True) if is_native(spec) else None


def is_native(spec: ConvSpec) -> bool:
    """Returns whether compiled kernels compute the tiles of a convolution that this method supports."""
    narrow = spec.feature_group_count > 1 and min(_channels_of_group(spec)) < costs.VECTOR
    return spec.rank == 2 and spec.window in ((3, 3), (5, 5)) and not narrow and native.refusal(spec) is None


def _channels_of_group(spec: ConvSpec) -> tuple[int, int]:
    """Returns the number of channels that a group sums over, and the number of its result channels."""
    kernel_in, kernel_out = spec.kernel_shape[-2], spec.kernel_shape[-1] // spec.feature_group_count
    return (kernel_out, kernel_in) if spec.role == "input" else (kernel_in, kernel_out)


def supports_fused(spec: ConvSpec, epilogue: Any) -> str | None:
    """Returns None, or the reason why an epilogue is not applied to the tiles of this convolution."""
    if not is_native(spec):
        return "its tiles are computed by XLA's operations"
    return native.supports_fused(spec, epilogue)


lower_fused = partial(native.lower_fused, tiles=True)


@functools.cache
def transforms(outputs: int, taps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the matrices of F(outputs, taps), with which y = at @ ((g @ kernel) * (bt @ x)).

    The letters are those of the paper: `at` and `bt` are the transposes of its A and B.

    Returns:
      at (outputs, n), g (n, taps) and bt (n, n), n = outputs + taps - 1, of float64.
    """
    size = outputs + taps - 1
    finite = _POINTS[size]
    at = np.zeros((outputs, size))
    g = np.zeros((size, taps))
    bt = np.zeros((size, size))
    for i, point in enumerate(finite):
        other_points = [other for other in finite if other != point]
        scale = math.prod((point - other for other in other_points), start=Fraction(1))
        at[:, i] = [float(point**k) for k in range(outputs)]
        g[i] = [float(point**k / scale) for k in range(taps)]
        bt[i, :-1] = _polynomial(other_points)
    # The point at infinity: leading coefficients.
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = _polynomial(finite)
    return at, g, bt


def _polynomial(roots: Sequence[Fraction]) -> list[float]:
    """Returns the coefficients, the constant one first, of the product of (z - root)."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return [float(c) for c in coefficients]


def _multiply_slices(slices: Sequence[jax.Array], matrix: np.ndarray, axis: int) -> jax.Array:
    """Returns the products of a matrix with the slices, one sum for each of its rows along a new axis, in one loop."""
    shape = [1] * (slices[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = [
        jnp.expand_dims(part, axis) * jnp.asarray(column, part.dtype).reshape(shape)
        for part, column in zip(slices, matrix.T, strict=True)
    ]
    return functools.reduce(lax.add, terms)


def _transform_kernel(kernel: jax.Array, tile: Sequence[int]) -> jax.Array:
    """Evaluates the kernel at the points: (*taps, I, O) -> (points, I, O), the last axis' points first."""
    *sizes, kernel_in, features = kernel.shape
    matrices = [transforms(m, taps)[1] if taps > 1 else np.ones((1, 1)) for m, taps in zip(tile, sizes, strict=True)]
    matrix = functools.reduce(np.kron, matrices)  # (points, taps), the first axis' points first
    order = tuple(reversed(range(len(sizes))))
    matrix = matrix.reshape(*map(len, matrices), -1).transpose(*order, len(sizes)).reshape(matrix.shape)
    flat = kernel.reshape(math.prod(sizes), kernel_in * features)
    points = lax.dot(jnp.asarray(matrix, kernel.dtype), flat, precision=lax.Precision.HIGHEST)
    return points.reshape(-1, kernel_in, features)


def _forward(x: jax.Array, kernel: jax.Array, window: Window, *, precision: Any, narrow: bool) -> jax.Array:
    """Computes the forward convolution: (N, *spatial, I), (*taps, I, O) -> (N, *outputs, O)."""
    sizes = kernel.shape[:-2]
    tile = [1 if taps == 1 else 2 if narrow else TILE_OUTPUTS[taps] for taps in sizes]
    return _multiply_and_interpolate(
        _transform_images(x, sizes, tile, window), _transform_kernel(kernel, tile), sizes, tile, window, precision
    )


def _transform_images(x: jax.Array, sizes: Sequence[int], tile: Sequence[int], window: Window) -> jax.Array:
    """Evaluates images at the points: (N, *spatial, I) -> (points..., N, *tiles, I), the last axis' points first."""
    axes = [axis for axis, taps in enumerate(sizes) if taps > 1]
    counts = [-(-outputs // m) for outputs, m in zip(window.outputs, tile, strict=True)]
    padding = list(window.padding)
    for axis in axes:
        low, _ = padding[axis]
        padding[axis] = (low, counts[axis] * tile[axis] + sizes[axis] - 1 - low - x.shape[axis + 1])
    values = pad_spatial(x, padding)
    for point_axes, axis in enumerate(axes):
        _, _, bt = transforms(tile[axis], sizes[axis])
        position = point_axes + 1 + axis
        length = (counts[axis] - 1) * tile[axis] + 1
        tile_slices = [lax.slice_in_dim(values, i, i + length, tile[axis], axis=position) for i in range(len(bt))]
        values = materialize(_multiply_slices(tile_slices, bt, 0), window.xla_only)
    return values


def _multiply_and_interpolate(
    values: jax.Array,
    kernel: jax.Array,
    sizes: Sequence[int],
    tile: Sequence[int],
    window: Window,
    precision: Any,
) -> jax.Array:
    """Multiplies at the points and interpolates: (points..., N, *tiles, I), (points, I, O) -> (N, *outputs, O)."""
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
        position = axes.index(axis) + 1 + axis  # of the tiles, in an array without this axis' points
        parts = [lax.index_in_dim(result, i, axis=0, keepdims=False) for i in range(matrix.shape[1])]
        combined = materialize(_multiply_slices(parts, matrix, position + 1), window.xla_only)
        shape = list(parts[0].shape)
        shape[position] *= tile[axis]
        result = combined.reshape(shape)
    return lax.slice(result, (0,) * result.ndim, (result.shape[0], *window.outputs, features))
