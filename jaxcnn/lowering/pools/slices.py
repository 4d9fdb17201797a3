"""Pools as shifted slices, axis by axis, combined pairwise where the window is wide.

Maxima and minima equal `direct`'s bit for bit, NaN included. Sums differ from those of `direct` by the order of
additions alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.geometry import Pair
from jaxcnn.lowering.common.forms import Phase, materialize, pad_spatial, phase_axis
from jaxcnn.lowering.pools.direct import pool_identity
from jaxcnn.lowering.spec import PoolSpec

NAME = "slices"

REASON = "slices of the image, axis by axis"
"""Column of a summary that says how the pool is computed."""

MAX_SELECTION_TAPS = 64
"""Most taps of a window for which `select` compares the index with every tap's slice."""

MAX_COMPARISON_TAPS = 25
"""Most taps of a window for which `winner` and `scatter` compare every tap's slice. Larger windows go axis by axis."""


def refusal(spec: PoolSpec, *, selects: bool = False) -> str | None:
    """Returns None, or the reason why this method does not compute a pool.

    Args:
      spec: the pool.
      selects: flag, True for a pool that takes one tap of each window by the tap's index.
    """
    if not all(isinstance(n, int) for n in spec.input_shape[1:]):
        return "its image or its channels are of symbolic size"
    if 0 in spec.input_shape:
        return "it is empty"
    if selects and math.prod(spec.window_shape) > MAX_SELECTION_TAPS:
        return f"its window has {math.prod(spec.window_shape)} taps, more than {MAX_SELECTION_TAPS}"
    return None


def _pad_unfused(x: jax.Array, padding: Sequence[Pair], padding_value: Any = None) -> jax.Array:
    """Returns images padded by `pad_spatial`, with a barrier behind the pad.

    Fused into its readers, the pad would test the borders at every tap.
    """
    padded = pad_spatial(x, padding, padding_value)
    return x if padded is x else lax.optimization_barrier(padded)


def _strided_slice(x: Any, axis: int, start: int, count: int, stride: int = 1) -> Any:
    """Returns `count` entries along an axis, every `stride`-th from `start` on, of an array or a tree of arrays."""
    return jax.tree.map(
        lambda array: lax.slice_in_dim(array, start, start + (count - 1) * stride + 1, stride, axis=axis), x
    )


def _slide_axis(
    x: Any,
    axis: int,
    window: int,
    stride: int,
    dilation: int,
    outputs: int,
    combine: Callable[[Any, Any], Any],
    idempotent: bool,
    spec: PoolSpec,
) -> Any:
    """Returns the combination of the entries under a window that slides along one axis.

    Args:
      x: padded images, or a tree of arrays that `combine` takes together.
      axis: axis of the arrays.
      window: number of taps.
      stride: step of the window.
      dilation: distance between neighbouring taps.
      outputs: number of results along the axis.
      combine: associative function of two values.
      idempotent: flag, True for a `combine` that gives the same if a value comes in twice, as a maximum does.
      spec: the pool.
    """
    # Without doubling, `window` slices of the outputs' length are read; with doubling, about log2(window) slices of the
    # input's length.
    doublings = max(window.bit_length() - 1, 0)
    if window <= 3 or window <= (doublings + 1) * stride:
        return reduce(combine, (_strided_slice(x, axis, t * dilation, outputs, stride) for t in range(window)))
    widths, spans = [x], [1]  # images whose entries combine `span` neighbouring taps
    while 2 * spans[-1] <= window:
        last, span = widths[-1], spans[-1]
        length = jax.tree.leaves(last)[0].shape[axis] - span * dilation
        doubled = combine(_strided_slice(last, axis, 0, length), _strided_slice(last, axis, span * dilation, length))
        widths.append(materialize(doubled, spec.xla_only))
        spans.append(2 * span)
    if idempotent:
        # Two overlapping windows, each as wide as the largest power of two.
        parts = [(widths[-1], 0), (widths[-1], window - spans[-1])] if spans[-1] < window else [(widths[-1], 0)]
    else:
        parts, tap = [], 0
        for image, span in zip(widths[::-1], spans[::-1], strict=True):
            if window & span:
                parts.append((image, tap))
                tap += span
    return reduce(combine, (_strided_slice(image, axis, tap * dilation, outputs, stride) for image, tap in parts))


def _slide_all_axes(x: Any, spec: PoolSpec, combine: Callable[[Any, Any], Any], idempotent: bool) -> Any:
    """Returns the combination of the pixels under each window, by `_slide_axis` along one axis after the other."""
    outputs, sizes = spec.output_shape[1:-1], jax.tree.leaves(x)[0].shape[1:-1]
    # The axes that shrink the image most come first.
    for axis in sorted(range(spec.rank), key=lambda a: outputs[a] / sizes[a]):
        x = _slide_axis(
            x,
            axis + 1,
            spec.window_shape[axis],
            spec.strides[axis],
            spec.window_dilation[axis],
            outputs[axis],
            combine,
            idempotent,
            spec,
        )
        # Windows without overlap read each value once: there one fused loop over all axes is faster.
        overlap = spec.window_shape[axis] > spec.strides[axis]
        if overlap and math.prod(spec.window_shape) > MAX_COMPARISON_TAPS:
            x = materialize(x, spec.xla_only)
    return x


def extremum(x: jax.Array, spec: PoolSpec, mode: str) -> jax.Array:
    """Returns the maximum (`mode` "max") or minimum ("min") of each window; NaN wins."""
    padded = _pad_unfused(x, spec.padding, pool_identity(mode, spec.dtype))
    return _slide_all_axes(padded, spec, lax.max if mode == "max" else lax.min, idempotent=True)


def window_sum(x: jax.Array, spec: PoolSpec) -> jax.Array:
    """Returns the sum of each window, in x's dtype."""
    return _slide_all_axes(_pad_unfused(x, spec.padding), spec, lax.add, idempotent=False)


def _phase(spec: PoolSpec, axis: int, residue: int, outputs: int) -> Phase | None:
    """Returns the taps that reach every stride-th pixel of an axis, from `residue` on; None if no tap does."""
    stride = spec.strides[axis]
    return phase_axis(
        residue,
        stride,
        spec.window_dilation[axis],
        spec.padding[axis][0],
        spec.window_shape[axis],
        outputs,
        -(-spec.input_shape[axis + 1] // stride),
    )


def window_spread(y: jax.Array, spec: PoolSpec) -> jax.Array:
    """Adds each value of y to the pixels of its window, axis by axis: the transpose of `window_sum`."""
    for axis in range(spec.rank):
        size, stride = spec.input_shape[axis + 1], spec.strides[axis]
        if spec.window_shape[axis] == stride and spec.window_dilation[axis] == 1:
            y = _repeat(y, axis + 1, stride, spec.padding[axis][0], size)
            continue
        count = -(-size // stride)
        phases = []
        for phase in range(stride):
            axis_taps = _phase(spec, axis, phase, y.shape[axis + 1])
            if axis_taps is None:
                phases.append(jnp.zeros((*y.shape[: axis + 1], count, *y.shape[axis + 2 :]), y.dtype))
                continue
            padding = [(0, 0)] * spec.rank
            padding[axis] = axis_taps.padding
            padded = _pad_unfused(y, padding)
            phases.append(
                _slide_axis(
                    padded, axis + 1, axis_taps.taps, 1, axis_taps.dilation, count, lax.add, idempotent=False, spec=spec
                )
            )
        y = _interleave(phases, axis + 1, size)
    return y


def _repeat(y: jax.Array, axis: int, times: int, low: int, size: int) -> jax.Array:
    """Returns the entries of an axis, each repeated `times` times: the gradient of a sum whose windows tile the axis.

    The first `low` results are dropped, and the rest is cut or filled with zeros to `size`.
    """
    if times > 1:
        repeated = jnp.broadcast_to(jnp.expand_dims(y, axis + 1), (*y.shape[: axis + 1], times, *y.shape[axis + 1 :]))
        y = repeated.reshape(*y.shape[:axis], y.shape[axis] * times, *y.shape[axis + 1 :])
    edges = [(0, 0, 0)] * y.ndim
    edges[axis] = (-low, size - y.shape[axis] + low, 0)
    return lax.pad(y, jnp.zeros((), y.dtype), edges)


def _interleave(phases: Sequence[jax.Array], axis: int, size: int) -> jax.Array:
    """Returns the entries of the phases in turn along an axis, cut to `size`."""
    if len(phases) == 1:
        return phases[0]
    stacked = jnp.stack(phases, axis=axis + 1)
    shape = phases[0].shape
    merged = stacked.reshape(*shape[:axis], shape[axis] * len(phases), *shape[axis + 1 :])
    return lax.slice_in_dim(merged, 0, size, axis=axis)


def _flat_index(places: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Returns the flat indices in a plane of these sizes, from the coordinates on each axis."""
    flat = 0
    for place, size in zip(places, sizes, strict=True):
        flat = flat * size + place
    return flat


def _axis_vector(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """Returns a vector shaped to broadcast along one spatial axis of (N, *spatial, C)."""
    return values.reshape(1, *(-1 if a == axis else 1 for a in range(rank)), 1)


def _first_pixels(spec: PoolSpec) -> np.ndarray:
    """Returns the flat index of each window's first pixel that is not padding, (1, *outputs, 1); -1 without one."""
    sizes, outputs = spec.input_shape[1:-1], spec.output_shape[1:-1]
    places, real = [], []
    for axis in range(spec.rank):
        start = np.arange(outputs[axis])[:, None] * spec.strides[axis] - spec.padding[axis][0]
        pixels = start + np.arange(spec.window_shape[axis]) * spec.window_dilation[axis]
        inside = (pixels >= 0) & (pixels < sizes[axis])
        places.append(_axis_vector(pixels[np.arange(len(pixels)), inside.argmax(1)], axis, spec.rank))
        real.append(_axis_vector(np.asarray(inside.any(1)), axis, spec.rank))
    return np.where(reduce(np.logical_and, real), _flat_index(places, sizes), -1).astype(np.int32)


def _first_places(spec: PoolSpec) -> np.ndarray:
    """Returns the flat index of each window's first tap, (1, *outputs, 1).

    The formula of the index continues beyond the borders of the plane, so a tap on padding has one too.
    """
    places = [
        _axis_vector(np.arange(output) * stride - low, axis, spec.rank)
        for axis, (output, stride, (low, _)) in enumerate(
            zip(spec.output_shape[1:-1], spec.strides, spec.padding, strict=True)
        )
    ]
    return np.asarray(_flat_index(places, spec.input_shape[1:-1]), np.int32)


def _tap_slices(x: jax.Array, spec: PoolSpec) -> list[tuple[int, jax.Array]]:
    """Returns a pair for each tap: the tap's offset in the flat index, and the pixels under the tap."""
    outputs = spec.output_shape[1:-1]
    slices = []
    for tap in np.ndindex(*spec.window_shape):
        starts = [t * d for t, d in zip(tap, spec.window_dilation, strict=True)]
        limits = [s + (o - 1) * step + 1 for s, o, step in zip(starts, outputs, spec.strides, strict=True)]
        pixels = lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *spec.strides, 1))
        slices.append((int(_flat_index(starts, spec.input_shape[1:-1])), pixels))
    return slices


def winner(x: jax.Array, spec: PoolSpec, mode: str) -> tuple[jax.Array, jax.Array]:
    """Returns the int32 index of each window's first extremum in the flattened, unpadded plane, and the extremum.

    The index is -1 for a window on padding alone.
    """
    identity = pool_identity(mode, spec.dtype)
    padded = _pad_unfused(x, spec.padding, identity)
    if math.prod(spec.window_shape) > MAX_COMPARISON_TAPS:
        return _winner_by_axis(padded, spec, mode)
    not_better = lax.le if mode == "max" else lax.ge
    best = jnp.full(spec.output_shape, identity)
    offset = jnp.full(spec.output_shape, -1, jnp.int32)
    for tap_offset, pixels in _tap_slices(padded, spec):
        # NaN is better than any number, and nothing is better than NaN.
        better = ~not_better(pixels, best) & (best == best)
        best = jnp.where(better, pixels, best)
        offset = jnp.where(better, np.int32(tap_offset), offset)
    # Where no pixel beats the identity, all pixels equal the identity, and the first that is not padding wins.
    index = jnp.where(offset < 0, jnp.asarray(_first_pixels(spec)), offset + jnp.asarray(_first_places(spec)))
    return index, best


def _winner_by_axis(padded: jax.Array, spec: PoolSpec, mode: str) -> tuple[jax.Array, jax.Array]:
    """Computes `winner` along one axis after the other, from pairs of a value and its flat index.

    Of equal values the first wins.
    """
    better = lax.gt if mode == "max" else lax.lt
    outside = np.iinfo(np.int32).max
    places, inside = [], []
    for axis, (size, (low, _)) in enumerate(zip(spec.input_shape[1:-1], spec.padding, strict=True)):
        pixels = np.arange(padded.shape[axis + 1]) - low
        places.append(_axis_vector(pixels, axis, spec.rank))
        inside.append(_axis_vector((pixels >= 0) & (pixels < size), axis, spec.rank))
    flat = np.where(reduce(np.logical_and, inside), _flat_index(places, spec.input_shape[1:-1]), outside)

    def combine(a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        (first, first_place), (second, second_place) = a, b
        tied = (first == second) | ((first != first) & (second != second))
        wins = better(second, first) | ((second != second) & (first == first)) | (tied & (second_place < first_place))
        # On the first axis the index still has one image and one channel.
        first_place, second_place = (jnp.broadcast_to(place, first.shape) for place in (first_place, second_place))
        return jnp.where(wins, second, first), jnp.where(wins, second_place, first_place)

    best, index = _slide_all_axes((padded, jnp.asarray(flat, jnp.int32)), spec, combine, idempotent=True)
    index = jnp.broadcast_to(index, spec.output_shape)  # a window of one tap combines nothing
    return jnp.where(index == outside, -1, index), best


def select(x: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """Returns the value of x at the flat index of each output, 0 for the index -1; linear in x."""
    padded = _pad_unfused(x, spec.padding)
    # Without the barrier XLA fuses the search for the index into every tap.
    padded, index = lax.optimization_barrier((padded, index))
    places = jnp.where(index < 0, -1, index - jnp.asarray(_first_places(spec)))
    zero = jnp.zeros((), x.dtype)
    # A tap on padding may have the flat index of a pixel; the padding adds 0.
    chosen = [jnp.where(places == offset, pixels, zero) for offset, pixels in _tap_slices(padded, spec)]
    # At most one of the values is not 0; booleans cannot be added.
    return reduce(lax.bitwise_or if spec.dtype == np.bool_ else lax.add, chosen)


def scatter(y: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """Adds each value of y to the pixel that its index names: the transpose of `select`.

    The pixels of one residue by the strides are computed together, from the windows that reach them.
    """
    y, index = materialize((y, index), spec.xla_only)
    if math.prod(spec.window_shape) > MAX_COMPARISON_TAPS:
        return _scatter_by_axis(y, index, spec)
    rank, sizes = spec.rank, spec.input_shape[1:-1]
    counts = [-(-size // stride) for size, stride in zip(sizes, spec.strides, strict=True)]

    def spread(axis: int, chosen: tuple[Any, ...], phase: tuple[int, ...]) -> jax.Array:
        """Returns the sums at the pixels whose residues on the axes before `axis` are `phase`."""
        if axis < rank:
            parts = []
            for residue in range(spec.strides[axis]):
                axis_taps = _phase(spec, axis, residue, y.shape[axis + 1])
                parts.append(spread(axis + 1, (*chosen, axis_taps), (*phase, residue)))
            return _interleave(parts, axis + 1, sizes[axis])
        shape = (y.shape[0], *(counts), y.shape[-1])
        # Each phase has `counts` pixels here; the callers cut the axes when they interleave.
        if any(axis_taps is None for axis_taps in chosen):
            return jnp.zeros(shape, y.dtype)
        padding = [axis_taps.padding for axis_taps in chosen]
        cotangent, place = _pad_unfused(y, padding), _pad_unfused(index, padding, -1)
        pixels = [_axis_vector(np.arange(counts[a]) * spec.strides[a] + phase[a], a, rank) for a in range(rank)]
        flat = np.asarray(_flat_index(pixels, sizes), np.int32)
        terms = []
        for tap in np.ndindex(*(axis_taps.taps for axis_taps in chosen)):
            starts = [t * axis_taps.dilation for t, axis_taps in zip(tap, chosen, strict=True)]
            limits = [s + c for s, c in zip(starts, counts, strict=True)]
            window = [(0, *starts, 0), (y.shape[0], *limits, y.shape[-1])]
            won = lax.slice(place, *window) == flat
            terms.append(jnp.where(won, lax.slice(cotangent, *window), jnp.zeros((), y.dtype)))
        return reduce(lax.add, terms)

    return spread(0, (), ())


def _scatter_by_axis(y: jax.Array, index: jax.Array, spec: PoolSpec) -> jax.Array:
    """Computes `scatter` along one axis after the other.

    On two axes: windows over the same columns whose winners lie in the same row have the same winner, the first
    extremum of that row in these columns. So the first step adds up, for each row, the cotangents of the windows whose
    winner lies in that row, and keeps the winner's column. The second step adds up these sums for each column. On more
    axes `index_below` is the winner's flat index on all later axes.
    """
    sizes = spec.input_shape[1:-1]
    for axis in range(spec.rank):
        size, stride = sizes[axis], spec.strides[axis]
        count = -(-size // stride)
        below = math.prod(sizes[axis + 1 :])
        place: jax.Array = index
        index_below: jax.Array | None = None
        if below > 1:
            # One division serves all taps. The index -1 stays -1, which is the place of no pixel.
            place, index_below = materialize((jnp.where(index < 0, -1, index // below), index % below), spec.xla_only)
        sums, indices_below = [], []
        for residue in range(stride):
            axis_taps = _phase(spec, axis, residue, y.shape[axis + 1])
            if axis_taps is None:
                shape = (*y.shape[: axis + 1], count, *y.shape[axis + 2 :])
                sums.append(jnp.zeros(shape, y.dtype))
                indices_below.append(jnp.full(shape, -1, jnp.int32))
                continue
            padding = [(0, 0)] * spec.rank
            padding[axis] = axis_taps.padding
            fields = [(y, 0), (place, -1), *([] if index_below is None else [(index_below, 0)])]
            padded = [_pad_unfused(field, padding, fill) for field, fill in fields]
            pixel_places = _axis_vector(np.arange(count) * stride + residue, axis, spec.rank).astype(np.int32)
            taps = [_strided_slice(padded, axis + 1, t * axis_taps.dilation, count) for t in range(axis_taps.taps)]
            hits = [tap[1] == pixel_places for tap in taps]
            zero = jnp.zeros((), y.dtype)
            sums.append(reduce(lax.add, [jnp.where(w, tap[0], zero) for w, tap in zip(hits, taps, strict=True)]))
            if below > 1:
                indices = [jnp.where(w, tap[2], -1) for w, tap in zip(hits, taps, strict=True)]
                indices_below.append(reduce(lax.max, indices))
        y = materialize(_interleave(sums, axis + 1, size), spec.xla_only)
        if below > 1:
            index = materialize(_interleave(indices_below, axis + 1, size), spec.xla_only)
    return y
