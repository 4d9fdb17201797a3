"""The method `matmul`: convolutions as products of matrices, batched over groups.

A 1x1 window is one product. At stride 1 the pixels under the taps along some axes of a dense window are gathered beside
each other, in the rows of a matrix; the taps along the other axes are spread over the columns of the kernel's matrix,
and the results that one product gives for them are shifted and added up. Other convolutions gather all taps. A kernel
gradient is one product with the pixels under all taps, or one product for each tap. Sums are in float32 at least, and
exact for integers. The error of an output is as large as that of `direct`: at most 4 epsilons of float32 times the sum
of the magnitudes of the output's products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.geometry import Ints
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import (
    Window,
    by_role,
    forward_window,
    pad_spatial,
    shape_unsupported,
    sum_dtype,
    tap_slice,
    taps,
)
from jaxcnn.lowering.spec import ConvSpec

NAME = "matmul"

MAX_PRODUCT_BYTES = 24 << 20
"""Most bytes of a product of several images. Beyond this size one product is computed for each image in turn."""
MAX_GATHERED_BYTES = 5 << 20
"""Most bytes of gathered pixels for which a kernel gradient is one product and not one for each tap."""
GATHER_COST = 2
"""Cost of a gathered number, in units of the cost of a spread number, which the addition reads without a copy."""


def refusal(spec: ConvSpec) -> str | None:
    """Returns None, or the reason why this convolution is not computed as products of matrices."""
    if jnp.issubdtype(sum_dtype(spec), jnp.complexfloating):
        return "its operands are complex"
    return shape_unsupported(spec)


def terms(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the method's time grows with."""
    if not jnp.issubdtype(sum_dtype(spec), jnp.inexact):
        return costs.NEVER  # XLA computes products of integers in plain loops
    work = costs.work(spec)
    grouped = "grouped " if work.groups > 1 else ""
    if spec.role == "kernel":
        if grouped:
            return {"grouped kernel call": 1, "kernel macs": work.macs, "grouped kernel moved": work.gathered_numbers}
        at_once = 4 * work.gathered_numbers <= MAX_GATHERED_BYTES
        prefix = "kernel " if at_once else "kernel taps "
        return {
            f"{prefix}call": 1 if at_once else work.taps,
            f"{prefix}macs": work.macs,
            f"{prefix}few results' macs": work.macs if work.results < costs.VECTOR else 0.0,
            f"{prefix}moved": work.gathered_numbers,
            costs.CLEARING: costs.clearing_nanoseconds(4 * work.gathered_numbers),
        }
    phases = math.prod(spec.strides) if spec.role == "input" else 1
    if grouped:
        return {
            "grouped call": 1,
            "grouped phases": phases - 1,
            "macs": work.slid,
            "grouped moved": work.gathered_numbers + work.result,
        }
    window, strides, sizes = spec.window, spec.strides, spec.output_shape[1:-1]
    read = spec.input_shape[1:-1]
    if spec.role == "input":
        # The role is one forward convolution of stride 1 for each residue of the pixels by the strides.
        read, sizes = sizes, tuple(-(-n // stride) for n, stride in zip(read, strides, strict=True))
        window = tuple(-(-n // stride) for n, stride in zip(window, strides, strict=True))
        strides = (1,) * spec.rank
    axes = _allowed_gather_axes(window, work.summed, work.results, max(strides) == 1)
    # On gathered axes the rows are the pixels of the result, on spread axes the pixels of the source.
    rows = phases * work.stack * spec.input_shape[0]
    rows *= math.prod(size if axis in axes else read[axis] for axis, size in enumerate(sizes))
    macs = float(rows * math.prod(window) * work.summed * work.results)
    moved = rows * moved_numbers(window, work.summed, work.results, axes)
    copies = spec.role == "input" or len(axes) < sum(taps > 1 for taps in window)  # the kernel in another order
    kernel_floats = float(work.stack * math.prod(spec.kernel_shape)) if copies and work.taps > 1 else 0.0
    return {
        "call": 1,
        "phases": phases - 1,
        "macs": macs,
        "few results' macs": macs if work.results < costs.VECTOR else 0.0,
        "moved": moved,
        "kernel floats": kernel_floats,
        costs.CLEARING: costs.kernel_clearing_nanoseconds(4 * kernel_floats),
        "floats": work.floats + (work.result if phases > 1 else 0.0),
        "floats in turn": work.floats if spec.input_shape[0] > 1 and 4 * moved > MAX_PRODUCT_BYTES else 0.0,
        "large": costs.above_cliff(8 * moved / spec.input_shape[0]),
    }


def program(spec: ConvSpec) -> costs.Terms:
    """Returns the counts that the time to compile the method grows with."""
    work, taps = costs.work(spec), math.prod(spec.window)
    if taps == 1 and max(spec.strides) == 1:
        return {"grouped product" if work.groups > 1 else "product": 1.0}
    if spec.role == "kernel":
        return {"kernel call": 1.0, "kernel operations": float(taps)}
    strides = spec.strides if spec.role == "input" else (1,) * spec.rank
    window = tuple(-(-count // stride) for count, stride in zip(spec.window, strides, strict=True))
    may_spread = work.groups == 1 and (spec.role == "input" or max(spec.strides) == 1)
    gathered = math.prod(window[axis] for axis in _allowed_gather_axes(window, work.summed, work.results, may_spread))
    phases = float(math.prod(strides))
    return {"call": 1.0, "phases": phases - 1, "operations": phases * (gathered + math.prod(window) // gathered)}


def lower(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the array that `spec.role` names from the two others."""
    in_turn = 4 * costs.work(spec.with_known_batch()).gathered_numbers > MAX_PRODUCT_BYTES
    return by_role(lhs, rhs, spec, partial(_forward, precision=spec.precision), _kernel, in_turn=in_turn)


def gathered_axes(window: Sequence[int], summed: int, results: int) -> Ints:
    """Returns the axes of the window whose taps are gathered, the choice that moves the fewest numbers."""
    rank = len(window)
    subsets = itertools.chain.from_iterable(itertools.combinations(range(rank), size) for size in range(rank + 1))
    return min(subsets, key=lambda axes: moved_numbers(window, summed, results, axes))


def moved_numbers(window: Sequence[int], summed: int, results: int, gathered: Ints) -> int:
    """Returns the cost of moving numbers for each pixel if the taps along these axes are gathered, the others spread.

    A number that is gathered costs `GATHER_COST` times as much as one that is spread.
    """
    rows = math.prod(window[axis] for axis in gathered)
    columns = math.prod(window) // rows
    return (GATHER_COST * rows * summed if rows > 1 else 0) + columns * results


def _allowed_gather_axes(window: Sequence[int], summed: int, results: int, may_spread: bool) -> Ints:
    """Returns the axes of `gathered_axes`, or all axes where taps may not be spread."""
    return gathered_axes(window, summed, results) if may_spread else tuple(range(len(window)))


def _forward(x: jax.Array, kernel: jax.Array, window: Window, *, precision: Any) -> jax.Array:
    """Computes the forward convolution: (N, *spatial, G * I), (*taps, I, G * O) -> (N, *outputs, G * O)."""
    *sizes, kernel_in, features = kernel.shape
    rank, groups = len(sizes), window.groups
    may_spread = groups == 1 and max(window.strides) == 1
    gathered = _allowed_gather_axes(sizes, kernel_in, features, may_spread)
    spread = tuple(axis for axis in range(rank) if axis not in gathered)
    columns = math.prod(sizes[axis] for axis in spread)
    # (gathered taps, I, spread taps, G, O) -> (G, gathered taps * I, spread taps * O)
    weights = kernel.reshape(*sizes, kernel_in, groups, features // groups)
    weights = weights.transpose(rank + 1, *gathered, rank, *spread, rank + 2)
    weights = weights.reshape(groups, -1, columns * features // groups)
    x = pad_spatial(x, [pair if axis in gathered else (0, 0) for axis, pair in enumerate(window.padding)])

    def of_images(x: jax.Array) -> jax.Array:
        rows = _gather(x, sizes, window, gathered)
        product = _product(rows.reshape(-1, *rows.shape[-2:]), weights, precision).reshape(*rows.shape[:-2], -1)
        parts = []
        for index, tap in enumerate(itertools.product(*(range(sizes[axis]) for axis in spread))):
            part = lax.slice_in_dim(product, index * features, (index + 1) * features, axis=-1)
            parts.append(_shift(part, dict(zip(spread, tap, strict=True)), window))
        return sum(parts[1:], parts[0])

    # Images may lie on several devices, and a loop over them would copy all of them to each device.
    if window.xla_only:
        return of_images(x)
    numbers = math.prod((len(x), *window.outputs)) * (columns * features + weights.shape[1] * groups)
    if len(x) > 1 and numbers * x.dtype.itemsize > MAX_PRODUCT_BYTES:
        return lax.map(lambda image: of_images(image[None])[0], x)
    return of_images(x)


def _product(a: jax.Array, b: jax.Array, precision: Any) -> jax.Array:
    """Returns the products of the groups' matrices: (P, G, K) @ (G, K, O) -> (P, G * O)."""
    if a.shape[1] == 1:
        return lax.dot(lax.squeeze(a, (1,)), b[0], precision=precision)
    product = lax.dot_general(a, b, (((2,), (1,)), ((1,), (0,))), precision=precision)  # (G, P, O)
    return jnp.moveaxis(product, 0, 1).reshape(a.shape[0], -1)


def _gather(x: jax.Array, sizes: Sequence[int], window: Window, axes: Ints) -> jax.Array:
    """Returns the pixels under the taps along some axes: (N, *spatial, G, taps * I), with outputs along these axes."""
    pieces = []
    for tap in itertools.product(*(range(sizes[axis]) for axis in axes)):
        starts, limits, steps = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for axis, index in zip(axes, tap, strict=True):
            starts[axis + 1] = index * window.dilation[axis]
            steps[axis + 1] = window.strides[axis]
            limits[axis + 1] = starts[axis + 1] + (window.outputs[axis] - 1) * window.strides[axis] + 1
        piece = lax.slice(x, starts, limits, steps)
        pieces.append(piece.reshape(*piece.shape[:-1], window.groups, -1))
    return pieces[0] if len(pieces) == 1 else lax.optimization_barrier(jnp.concatenate(pieces, -1))


def _shift(part: jax.Array, tap: dict[int, int], window: Window) -> jax.Array:
    """Returns the contribution of one tap to each output: its products (N, *spatial, O) -> (N, *outputs, O)."""
    edges = [(0, 0, 0)] * part.ndim
    for axis, index in tap.items():
        low = window.padding[axis][0] - index * window.dilation[axis]
        edges[axis + 1] = (low, window.outputs[axis] - part.shape[axis + 1] - low, 0)
    return lax.pad(part, jnp.zeros((), part.dtype), edges)


def _kernel(x: jax.Array, y: jax.Array, spec: ConvSpec) -> jax.Array:
    """Computes the kernel gradient: (N, *spatial, G * I), (N, *outputs, G * O) -> (*taps, I, G * O)."""
    window = forward_window(spec)
    x = pad_spatial(x, window.padding)
    groups = window.groups
    pixels = [_by_group(tap_slice(x, tap, window), groups) for tap in taps(spec.window)]
    if groups == 1 and 4 * costs.work(spec.with_known_batch()).gathered_numbers <= MAX_GATHERED_BYTES:
        gathered = pixels[0] if len(pixels) == 1 else lax.optimization_barrier(jnp.concatenate(pixels, axis=-1))
        pixels = [gathered]
    contract = partial(_contract_pixels, y=_by_group(y, groups), precision=spec.precision)
    return jnp.stack([contract(of_tap) for of_tap in pixels]).reshape(spec.kernel_shape)


def _by_group(x: jax.Array, groups: int) -> jax.Array:
    """Returns the channels by group: (..., G * C) -> (P, G, C) for P pixels."""
    return x.reshape(-1, groups, x.shape[-1] // groups)


def _contract_pixels(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    """Multiplies the channels of x and y and sums over the pixels: (P, G, I), (P, G, O) -> (I, G * O)."""
    if x.shape[1] == 1:
        x, y = lax.squeeze(x, (1,)), lax.squeeze(y, (1,))
        return lax.dot_general(x, y, (((0,), (0,)), ((), ())), precision=precision)
    product = lax.dot_general(x, y, (((0,), (0,)), ((1,), (1,))), precision=precision)  # (G, I, O)
    return jnp.swapaxes(product, 0, 1).reshape(x.shape[-1], -1)
