"""Forms that several methods share: padded images, windows as slices, the role `"input"` as forward convolutions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn._compat import row_major
from jaxcnn.dtypes import accumulation_dtype
from jaxcnn.geometry import Ints, Pair, dilated_size
from jaxcnn.lowering.spec import ConvSpec


@dataclasses.dataclass(frozen=True)
class Window:
    """Holds the geometry of a forward convolution without the sizes of the image and the window, which the arrays tell.

    Args:
      strides: step on each spatial axis.
      padding: pair (low, high) on each spatial axis; negative values crop.
      dilation: distance between neighbouring taps on each spatial axis.
      outputs: number of outputs on each spatial axis.
      groups: number of groups.
      xla_only: flag, True for a program of XLA's operations alone, see `ConvSpec`.
    """

    strides: Ints
    padding: tuple[Pair, ...]
    dilation: Ints
    outputs: Ints
    groups: int
    xla_only: bool = False


def forward_window(spec: ConvSpec) -> Window:
    """Returns the window of a spec in the role `"output"` or `"kernel"`."""
    return Window(
        spec.strides,
        spec.padding,
        spec.kernel_dilation,
        spec.output_shape[1:-1],
        spec.feature_group_count,
        spec.xla_only,
    )


def sum_dtype(spec: ConvSpec) -> np.dtype:
    """Returns the dtype of sums of products: float32 for 16-bit floats, at least int32 for integers."""
    return accumulation_dtype(np.promote_types(np.promote_types(spec.lhs_dtype, spec.rhs_dtype), spec.out_dtype))


def shape_unsupported(spec: ConvSpec) -> str | None:
    """Returns the reason why only `direct` computes a convolution of this shape, or None."""
    if not spec.has_known_layer:
        return "its image or its channels are of symbolic size"
    if 0 in (*spec.input_shape, *spec.output_shape):
        return "it is empty"
    if max(spec.input_dilation) > 1:
        return f"its input is dilated by {spec.input_dilation}"
    return None


def demands_highest(precision: Any) -> bool:
    """Returns whether a precision asks for HIGHEST on any operand."""
    if isinstance(precision, tuple):
        return any(map(demands_highest, precision))
    return precision == lax.Precision.HIGHEST or precision in ("highest", "float32")


def pad_spatial(x: jax.Array, padding: Sequence[Pair], padding_value: Any = None) -> jax.Array:
    """Returns images (N, *spatial, C) padded on their spatial axes, and cropped where the padding is negative.

    Args:
      x: images.
      padding: pair (low, high) on each spatial axis.
      padding_value: value of the added pixels, zero unless given.
    """
    if not any(map(any, padding)):
        return x
    config = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    # `jnp.zeros` makes its zero on the device; `jnp.asarray` moves a constant there.
    value = jnp.zeros((), x.dtype) if padding_value is None else jnp.asarray(padding_value, x.dtype)
    return lax.pad(x, value, config)


def taps(shape: Sequence[int]) -> Sequence[Ints]:
    """Returns the taps of a window in row-major order."""
    return list(np.ndindex(*shape))


def tap_slice(x: jax.Array, tap: Sequence[int], window: Window) -> jax.Array:
    """Returns the pixels of the padded images x under one tap of the window: (N, *outputs, C)."""
    starts = [t * d for t, d in zip(tap, window.dilation, strict=True)]
    limits = [
        start + (output - 1) * stride + 1
        for start, output, stride in zip(starts, window.outputs, window.strides, strict=True)
    ]
    return lax.slice(x, (0, *starts, 0), (x.shape[0], *limits, x.shape[-1]), (1, *window.strides, 1))


def balanced_sum(terms: Sequence[Any]) -> Any:
    """Returns the sum of the terms, added in four chains that do not wait for one another."""
    chains: list[Any] = []
    for index, term in enumerate(terms):
        if index < 4:
            chains.append(term)
        else:
            chains[index % 4] = chains[index % 4] + term
    while len(chains) > 1:
        chains = [a + b for a, b in zip(chains[::2], chains[1::2], strict=False)] + chains[len(chains) // 2 * 2 :]
    return chains[0]


def transposed_kernel(kernel: jax.Array, groups: int) -> jax.Array:
    """Returns the kernel with input and output channels exchanged, not flipped: (*window, O, G * I)."""
    *window, kernel_in, features = kernel.shape
    split = kernel.reshape(*window, kernel_in, groups, features // groups)
    return split.swapaxes(-3, -1).reshape(*window, features // groups, groups * kernel_in)


def input_by_phases(y: jax.Array, kernel: jax.Array, spec: ConvSpec, forward: Forward) -> jax.Array:
    """Computes the role `"input"` by convolutions of stride 1 over y, one for each phase.

    A phase is the set of the input pixels j whose residue by the stride s is r, on each axis. Input pixel j is the sum
    of y[o] k[t] over the outputs o and taps t with o s + t d = j + low, where d is the dilation and low the padding. In
    one phase only every n-th tap fulfils this equation, so no convolution multiplies zeros of an interior padding.
    `forward(y, kernel, window)` computes the convolution of one phase.
    """
    kernel = transposed_kernel(kernel, spec.feature_group_count)
    sizes, outputs = spec.input_shape[1:-1], spec.output_shape[1:-1]
    rank = spec.rank
    counts = tuple(-(-size // stride) for size, stride in zip(sizes, spec.strides, strict=True))
    parts = []
    for phase in np.ndindex(*spec.strides):
        axis_phases = [
            phase_axis(
                phase[a],
                spec.strides[a],
                spec.kernel_dilation[a],
                spec.padding[a][0],
                spec.window[a],
                outputs[a],
                counts[a],
            )
            for a in range(rank)
        ]
        reached_phases = [axis for axis in axis_phases if axis is not None]
        if len(reached_phases) < rank:
            parts.append(jnp.zeros((y.shape[0], *counts, spec.input_shape[-1]), sum_dtype(spec)))
            continue
        phase_kernel = kernel[tuple(slice(axis.first, None, axis.step) for axis in reached_phases)]
        phase_kernel = jnp.flip(phase_kernel, tuple(range(rank)))
        paddings, dilations = (
            tuple(axis.padding for axis in reached_phases),
            tuple(axis.dilation for axis in reached_phases),
        )
        window = Window((1,) * rank, paddings, dilations, counts, spec.feature_group_count, spec.xla_only)
        parts.append(forward(y, phase_kernel, window))
    if len(parts) == 1:
        return parts[0]
    # Otherwise XLA computes the parts inside the loop that interleaves them.
    parts = [materialize(part, spec.xla_only) for part in parts]
    # (phases..., N, *counts, C) -> (N, count, phase, count, phase, ..., C)
    stacked = jnp.stack(parts).reshape(*spec.strides, *parts[0].shape)
    order = [rank]
    for axis in range(rank):
        order += [rank + 1 + axis, axis]
    interleaved = stacked.transpose(*order, 2 * rank + 1)
    full = interleaved.reshape(
        y.shape[0], *(c * s for c, s in zip(counts, spec.strides, strict=True)), spec.input_shape[-1]
    )
    return lax.slice(full, (0,) * full.ndim, (full.shape[0], *sizes, full.shape[-1]))


Forward = Callable[[jax.Array, jax.Array, Window], jax.Array]


def by_role(
    lhs: jax.Array,
    rhs: jax.Array,
    spec: ConvSpec,
    forward: Forward,
    kernel: Callable[..., jax.Array] | None = None,
    *,
    in_turn: bool = False,
) -> jax.Array:
    """Computes a convolution of any role by the forward convolution, and perhaps the kernel gradient, of a method.

    The operands are converted to the dtype of sums. A stack is vectorized, or computed entry by entry.

    Args:
      lhs: the first operand.
      rhs: the second operand.
      spec: the convolution.
      forward: function `forward(x, kernel, window)` that computes a forward convolution.
      kernel: function `kernel(x, y, spec)` that computes the role `"kernel"`. None for a method that refuses this role.
      in_turn: flag, True if the entries of a stack are computed one after the other.
    """
    dtype = sum_dtype(spec)

    def single(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(dtype), b.astype(dtype)
        if spec.role == "output":
            return forward(a, b, forward_window(spec))
        if spec.role == "input" or kernel is None:
            return input_by_phases(a, b, spec, forward)
        return kernel(a, b, spec)

    if spec.stacked is None:
        result = single(lhs, rhs)
    elif in_turn:
        result = lax.map(lambda operands: single(*operands), (lhs, rhs))
    else:
        result = jax.vmap(single)(lhs, rhs)
    return result.astype(spec.out_dtype)


def materialize(value: Any, xla_only: bool) -> Any:
    """Returns an array, or a tree of arrays, that XLA computes once and not again in each slice that reads it.

    A layout constraint keeps XLA from fusing the array into its readers. With `xla_only` a barrier takes its place,
    which does not prevent every fusion.
    """
    return lax.optimization_barrier(value) if xla_only else jax.tree.map(row_major, value)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Holds the taps that reach the input pixels of one residue by the stride, on one axis.

    Args:
      first: number of the first of these taps.
      step: distance between neighbouring taps of the phase.
      taps: number of taps of the phase.
      dilation: distance between the outputs that neighbouring taps of the phase read.
      padding: pair (low, high) for the outputs, with which a window of stride 1 gives every input pixel of the phase.
    """

    first: int
    step: int
    taps: int
    dilation: int
    padding: Pair


def phase_axis(phase: int, stride: int, dilation: int, low: int, taps: int, outputs: int, count: int) -> Phase | None:
    """Returns the taps that reach the `count` input pixels `phase`, `phase + stride`, ...; None if no tap does.

    Args:
      phase: residue of the pixels by the stride.
      stride: step of the window.
      dilation: distance between neighbouring taps.
      low: padding before the first input pixel.
      taps: number of taps of the window.
      outputs: number of outputs.
      count: number of input pixels of the phase, rounded up.
    """
    common = math.gcd(stride, dilation)
    if (phase + low) % common:
        return None
    step = stride // common
    first = next(t for t in range(step) if (phase + low - t * dilation) % stride == 0)
    tap_count = len(range(first, taps, step))
    if tap_count == 0:
        return None
    extent = dilated_size(tap_count, dilation // common)
    low_padding = extent - 1 - (phase + low - first * dilation) // stride
    return Phase(first, step, tap_count, dilation // common, (low_padding, count - outputs - low_padding + extent - 1))
