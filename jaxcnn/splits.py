"""Splits of convolutions and pools over devices: the axes that their arrays share, and one device's computation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.lowering.spec import ConvSpec, PoolSpec
from jaxcnn.partitioning import Split, Window

Run = Callable[..., jax.Array]
"""Function that computes a convolution or a pool from its operands and its spec."""


def conv_split(spec: ConvSpec, run: Run) -> Split:
    """Returns the `Split` of a convolution.

    Batch, stack, groups and channels may be split. So may spatial axes, with rows from the neighbours, but those with
    input dilation are whole on every device, and so are the axes of the window.

    Args:
      spec: geometry of the whole convolution.
      run: function of both operands and a `ConvSpec`, which computes the array that the spec's role names.
    """
    groups, lead = spec.feature_group_count, () if spec.stacked is None else ("s",)
    is_split = [dilation == 1 for dilation in spec.input_dilation]
    image, outputs = (
        tuple(f"{side}{axis}" if split else "" for axis, split in enumerate(is_split)) for side in ("x", "y")
    )
    whole = ("",) * spec.rank
    group_in, group_out = spec.kernel_shape[-2], spec.kernel_shape[-1] // groups
    kernel_in, channels_in, channels_out, sizes = "i", "i", "o", {}
    if groups > 1:
        # A group of one channel is no axis of its own.
        channels_in, channels_out = ("g i" if group_in > 1 else "g"), ("g o" if group_out > 1 else "g")
        kernel_in, sizes = "", {"g": groups, "i": group_in, "o": group_out}
    axes = {
        "input": (*lead, "n", *image, channels_in),
        "output": (*lead, "n", *outputs, channels_out),
        "kernel": (*lead, *whole, kernel_in, channels_out),
    }
    first, second = (array for role, array in axes.items() if role != spec.role)

    local_spec = partial(_local_conv, spec)

    def local(operands: Sequence[jax.Array], windows: Sequence[Window], origins: Any, dtype: Any) -> jax.Array:
        del origins
        return run(*operands, local_spec([operand.shape for operand in operands], windows, dtype))

    return Split(
        (first, second), axes[spec.role], sizes, _windows(spec), (0, 0), spec.out_dtype, local, spec, local_spec
    )


def _local_conv(spec: ConvSpec, shapes: Sequence[tuple[int, ...]], windows: Sequence[Window], dtype: Any) -> ConvSpec:
    """Returns the spec of the convolution of one device's parts.

    Args:
      spec: geometry of the whole convolution.
      shapes: shapes of the parts of both operands.
      windows: window on each spatial axis of the parts.
      dtype: dtype of the part's result, wider than the whole result's where parts of narrow floats are added up.
    """
    stacked = None if spec.stacked is None else shapes[0][0]
    lhs, rhs = (shape if stacked is None else shape[1:] for shape in shapes)
    image, outputs = ([getattr(window, name) for window in windows] for name in ("image", "outputs"))
    # Groups are never cut, so the number of a group's channels is that of the whole.
    group_in, group_out = spec.kernel_shape[-2], spec.kernel_shape[-1] // spec.feature_group_count
    if spec.role == "output":
        groups = lhs[-1] // group_in if spec.feature_group_count > 1 else 1
        arrays = (lhs, rhs, (lhs[0], *outputs, rhs[-1]))
    elif spec.role == "input":
        groups = lhs[-1] // group_out if spec.feature_group_count > 1 else 1
        arrays = ((lhs[0], *image, rhs[-2] * groups), rhs, lhs)
    else:
        groups = lhs[-1] // group_in if spec.feature_group_count > 1 else 1
        arrays = (lhs, (*spec.window, lhs[-1] // groups, rhs[-1]), rhs)
    return dataclasses.replace(
        spec,
        input_shape=arrays[0],
        kernel_shape=arrays[1],
        output_shape=arrays[2],
        padding=tuple(window.padding for window in windows),
        feature_group_count=groups,
        out_dtype=np.dtype(dtype),
        stacked=stacked,
    )


_POOL_AXES = {
    "extremum": ("x", "y"),
    "winner": ("x", "y"),
    "select": ("x", "y", "y"),
    "scatter": ("y", "y", "x"),
    "window_sum": ("x", "y"),
    "window_spread": ("y", "x"),
}
"""Side of each operand and of the result, by the kind of pool: `"x"` for the image, `"y"` for the outputs."""


def pool_split(kind: str, spec: PoolSpec, fill: Any, dtype: Any, run: Run, padding_wins: bool = False) -> Split:
    """Returns the `Split` of a pool, or of a part of its derivative.

    Args:
      kind: name of a pool's primitive.
      spec: geometry of the whole pool.
      fill: number that stands for the pixels beyond the first operand's ends.
      dtype: dtype of the result.
      run: function of the operands and a `PoolSpec`.
      padding_wins: parameter of `winner_p`.
    """
    *operands, result = (("n", *(f"{side}{axis}" for axis in range(spec.rank)), "c") for side in _POOL_AXES[kind])

    def local_spec(shapes: Sequence[tuple[int, ...]], windows: Sequence[Window], dtype: Any) -> PoolSpec:
        del dtype
        batch, *_, channels = shapes[0]
        image = tuple(window.image for window in windows)
        return dataclasses.replace(
            spec, input_shape=(batch, *image, channels), padding=tuple(window.padding for window in windows)
        )

    def local(parts: Sequence[jax.Array], windows: Sequence[Window], origins: Any, dtype: Any) -> jax.Array:
        part = local_spec([operand.shape for operand in parts], windows, dtype)
        places = _PlaneIndices(spec, part.input_shape[1:-1], origins)
        value = run(parts[0], *map(places.to_part, parts[1:]), spec=part)
        return (places.to_whole(value, padding_wins) if kind == "winner" else value).astype(dtype)

    fills = (fill, -1)[: len(operands)]
    return Split(tuple(operands), result, {}, _windows(spec), fills, dtype, local, (kind, spec), local_spec)


@dataclasses.dataclass(frozen=True)
class _PlaneIndices:
    """Converts flat indices of pixels between the plane of a whole image and that of one device's part.

    Args:
      spec: geometry of the whole pool.
      image: number of pixels of the part on each spatial axis.
      origins: pixel of the whole at which the part begins, on each spatial axis.
    """

    spec: PoolSpec
    image: tuple[int, ...]
    origins: Sequence[Any]

    def to_part(self, index: jax.Array) -> jax.Array:
        """Returns indices into the part; -1 for a pixel of another part, and for -1."""
        coordinates = jnp.unravel_index(jnp.maximum(index, 0), self.spec.input_shape[1:-1])
        shifted = [coordinate - origin for coordinate, origin in zip(coordinates, self.origins, strict=True)]
        return _flat_indices(shifted, self.image, index >= 0)

    def to_whole(self, index: jax.Array, padding_wins: bool) -> jax.Array:
        """Returns indices into the whole image; -1 for -1, and for a pixel of padding that `padding_wins`."""
        coordinates = []
        for coordinate, origin, gap in zip(
            jnp.unravel_index(jnp.maximum(index, 0), self.image), self.origins, self.spec.window_dilation, strict=True
        ):
            pixel = coordinate + origin
            # If a pixel of padding came first, the real pixels of its window equal the padding.
            winner = pixel if padding_wins else jnp.where(pixel < 0, pixel + -(pixel // gap) * gap, pixel)
            coordinates.append(winner)
        return _flat_indices(coordinates, self.spec.input_shape[1:-1], index >= 0)


def _flat_indices(coordinates: Sequence[jax.Array], sizes: Sequence[int], is_valid: jax.Array) -> jax.Array:
    """Returns flat indices of coordinates, -1 for those that lie outside or are not valid."""
    flat = jnp.zeros(is_valid.shape, jnp.int32)
    for coordinate, size in zip(coordinates, sizes, strict=True):
        is_valid &= (coordinate >= 0) & (coordinate < size)
        flat = flat * size + coordinate.astype(jnp.int32)
    return jnp.where(is_valid, flat, -1)


def _windows(spec: ConvSpec | PoolSpec) -> tuple[Window, ...]:
    """Returns the window on each spatial axis."""
    if isinstance(spec, ConvSpec):
        reaches = [(taps - 1) * gap for taps, gap in zip(spec.window, spec.kernel_dilation, strict=True)]
    else:
        reaches = [extent - 1 for extent in spec.extents]
    return tuple(
        Window(*axis)
        for axis in zip(
            spec.input_shape[1:-1], spec.output_shape[1:-1], reaches, spec.strides, spec.padding, strict=True
        )
    )
