"""Receptive fields of layers in a row and of parallel branches."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Ints, Padding, axis_values, dilated_size, resolve_padding


@dataclasses.dataclass(frozen=True)
class FieldLayer:
    """Describes one convolution or pool, as far as its receptive field depends on it.

    Args:
      window: taps of the kernel or pool; an int for one spatial axis, or one int for each axis.
      strides: step of the window, in pixels.
      padding: int, one int or one (low, high) pair for each axis, `"VALID"`, or `"SAME"` / `"SAME_LOWER"`, which
        with a stride means an input whose size is a multiple of the stride.
      dilation: distance between neighbouring taps of the window, in pixels.

    Example:
      >>> FieldLayer(3, strides=2, padding=1)
      FieldLayer(window=3, strides=2, padding=1, dilation=1)
    """

    window: IntOrInts
    strides: IntOrInts = 1
    padding: Padding = 0
    dilation: IntOrInts = 1


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Holds which input pixels one output pixel sees.

    Output `o` sees the pixels from `o * stride - offset` to `o * stride - offset + size - 1` on each axis.

    Args:
      size: number of input pixels that an output pixel sees, by axis.
      stride: distance in input pixels between the fields of neighbouring outputs, by axis.
      offset: distance in input pixels by which the first output's field begins before the image, by axis.

    Example:
      >>> field = ReceptiveField(size=(7,), stride=(2,), offset=(3,))
      >>> first, third = (o * field.stride[0] - field.offset[0] for o in (0, 2))
      >>> first, third, third + field.size[0] - 1
      (-3, 1, 7)
    """

    size: Ints
    stride: Ints
    offset: Ints


def _is_branches(item: Any) -> bool:
    return not isinstance(item, FieldLayer)


def _check_sequence(value: Any, name: str, parts: str) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of {parts}, got {value!r}")


def _layers_rank(layers: Sequence[Any], name: str = "layers") -> int:
    """Returns the number of spatial axes that some layers agree on; refuses layers that do not agree."""
    _check_sequence(layers, name, "layers")
    ranks = {1}
    for item in layers:
        if _is_branches(item):
            _check_sequence(item, "what is not a FieldLayer", "parallel branches")
            ranks.update(_layers_rank(branch, "a branch") for branch in item)
        else:
            for value in (item.window, item.strides, item.dilation):
                if not hasattr(value, "__index__"):
                    ranks.add(len(value))
            if not isinstance(item.padding, str) and not hasattr(item.padding, "__index__"):
                ranks.add(len(item.padding))
    if len(ranks - {1}) > 1:
        raise ValueError(f"the layers have different numbers of spatial axes: {sorted(ranks)}")
    return max(ranks)


def _layer_field(layer: FieldLayer, rank: int) -> ReceptiveField:
    window = axis_values("window", layer.window, rank)
    strides = axis_values("strides", layer.strides, rank)
    dilation = axis_values("dilation", layer.dilation, rank)
    size = tuple(dilated_size(w, d) for w, d in zip(window, dilation, strict=True))
    # An input of one stride stands for every multiple of it.
    padding = resolve_padding(layer.padding, strides, size, strides)
    return ReceptiveField(size, strides, tuple(low for low, _ in padding))


def _branches_field(branches: Sequence[Any], rank: int) -> ReceptiveField:
    fields = [_chain_field(branch, rank) for branch in branches]
    if not fields:
        raise ValueError("a list of parallel branches is empty")
    strides = {field.stride for field in fields}
    if len(strides) > 1:
        raise ValueError(f"parallel branches must have the same stride, got {sorted(strides)}")
    offset = tuple(max(field.offset[axis] for field in fields) for axis in range(rank))
    end = tuple(max(field.size[axis] - field.offset[axis] for field in fields) for axis in range(rank))
    return ReceptiveField(tuple(map(operator.add, offset, end)), fields[0].stride, offset)


def _chain_field(layers: Sequence[Any], rank: int) -> ReceptiveField:
    size, stride, offset = (1,) * rank, (1,) * rank, (0,) * rank
    for item in layers:
        field = _branches_field(item, rank) if _is_branches(item) else _layer_field(item, rank)
        size = tuple(size[a] + (field.size[a] - 1) * stride[a] for a in range(rank))
        offset = tuple(offset[a] + field.offset[a] * stride[a] for a in range(rank))
        stride = tuple(stride[a] * field.stride[a] for a in range(rank))
    return ReceptiveField(size, stride, offset)


def receptive_field(layers: Sequence[Any]) -> ReceptiveField:
    r"""Computes the receptive field of the last of some layers, in input pixels.

    With $s_l$, $k_l$, $p_l$ the stride, dilated window and low padding of layer $l$ and $j_l = \prod_{m<l} s_m$:
    size $= 1 + \sum_l (k_l - 1) j_l$, stride $= \prod_l s_l$, offset $= \sum_l p_l j_l$. Parallel branches give the
    union of their fields.

    Args:
      layers: sequence of `FieldLayer`s from input to output. A list of such sequences in the place of a layer stands
        for parallel branches whose results are added or concatenated; an empty branch is the identity.

    Returns:
      `ReceptiveField(size, stride, offset)`, each with one integer for each spatial axis.

    Raises:
      ValueError: parallel branches of different stride, or layers of different spatial rank.
      TypeError: another object in the place of a layer, of branches or of a branch.

    Example:
      >>> receptive_field([FieldLayer(3, padding=1), FieldLayer(2, strides=2), FieldLayer(3, padding=1)])
      ReceptiveField(size=(8,), stride=(2,), offset=(3,))
      >>> receptive_field([[[FieldLayer(3, padding=1), FieldLayer(3, padding=1)], []]])   # a residual block
      ReceptiveField(size=(5,), stride=(1,), offset=(2,))

    References:
      Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", Distill 2019; `offset` is
      their padding.
    """
    with ErrorPrefix("receptive_field"):
        return _chain_field(layers, _layers_rank(layers))
