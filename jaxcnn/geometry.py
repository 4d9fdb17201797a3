"""Integer arithmetic of windows that slide over an image: padding, output sizes, receptive fields.

Everything here is arithmetic on Python integers and knows no arrays. A spatial size may also be a symbolic dimension
of `jax.export`; only sizes, never options, may be symbolic.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

Ints = tuple[int, ...]
Pair = tuple[int, int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]

PADDING_NAMES = ("SAME", "SAME_LOWER", "VALID", "CAUSAL")


def axis_values(operation: str, name: str, value: Any, rank: int, minimum: int = 1) -> tuple[int, ...]:
    """One integer for each of `rank` spatial axes, from an int or a sequence of `rank` ints."""
    described = f"{operation}: {name} must be an int or a sequence of {rank} ints, got {value!r}"
    if isinstance(value, str):
        raise TypeError(described)
    try:
        values = (operator.index(value),) * rank
    except TypeError:
        try:
            values = tuple(operator.index(item) for item in value)
        except TypeError:
            raise TypeError(described) from None
    if len(values) != rank:
        raise ValueError(f"{described} with {len(values)} values, one for each of {rank} spatial axes needed")
    if any(item < minimum for item in values):
        raise ValueError(f"{operation}: {name} must be at least {minimum} on every axis, got {value!r}")
    return values


def dilated_size(size: int, dilation: int) -> int:
    """The extent that `size` points have when `dilation - 1` holes lie between neighbours."""
    return (size - 1) * dilation + 1 if not _is_concrete(size) or size > 0 else 0


def _is_concrete(size: Any) -> bool:
    return hasattr(size, "__index__") and isinstance(size, int)


def _same_padding(size: int, window: int, stride: int, lower: bool) -> Pair:
    # ceil(size / stride) outputs. As (output - 1) * stride < size <= output * stride, the total is at least
    # window - stride: only where that is negative is a maximum needed (symbolic sizes cannot always take one).
    if window == 1:
        return 0, 0
    output = -(-size // stride)
    total = (output - 1) * stride + window - size
    if window < stride:
        total = max(total, 0)
    half = total // 2
    return (total - half, half) if lower else (half, total - half)


def padding_name(operation: str, padding: str, rank: int) -> str:
    """The canonical spelling of a padding given by name, in any case; refuses unknown names."""
    name = padding.upper()
    if name not in PADDING_NAMES:
        known = ", ".join(repr(known) for known in PADDING_NAMES)
        raise ValueError(f"{operation}: padding must be one of {known}, ints or (low, high) pairs, got {padding!r}")
    if name == "CAUSAL" and rank != 1:
        raise ValueError(f"{operation}: padding 'CAUSAL' is for one spatial axis, but there are {rank}")
    return name


def padding_pairs(operation: str, padding: Any, rank: int) -> tuple[Pair, ...]:
    """(low, high) for each axis, from an int, one int for each axis or one pair for each axis."""
    refused = (
        f"{operation}: padding must be a name, an int, one int for each of {rank} spatial axes "
        f"or one (low, high) pair for each, got {padding!r}"
    )
    try:
        value = operator.index(padding)
    except TypeError:
        pass
    else:
        return ((value, value),) * rank
    try:
        items = list(padding)
    except TypeError:
        raise TypeError(refused) from None
    if rank == 1 and len(items) == 2 and all(hasattr(item, "__index__") for item in items):
        raise ValueError(f"{refused}; for one axis write ((low, high),)")
    pairs: list[Pair] = []
    kinds = set()
    for item in items:
        try:
            both = operator.index(item)
        except TypeError:
            try:
                values = [operator.index(part) for part in item]
            except TypeError:
                raise TypeError(refused) from None
            if len(values) != 2:
                raise ValueError(refused) from None
            pairs.append((values[0], values[1]))
            kinds.add("pair")
        else:
            pairs.append((both, both))
            kinds.add("int")
    if len(pairs) != rank or len(kinds) > 1:
        raise ValueError(refused)
    return tuple(pairs)


def resolve_padding(
    operation: str,
    padding: Padding,
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
) -> tuple[Pair, ...]:
    """Explicit (low, high) padding of each axis.

    Args:
      operation: the name to put before an error.
      padding: a name (`"SAME"`, `"SAME_LOWER"`, `"VALID"`, `"CAUSAL"`, any case), an int, one int for each axis, or
        one (low, high) pair for each axis.
      sizes: input pixels on each axis, after input dilation.
      windows: extent of the window on each axis, after dilation.
      strides: step of the window on each axis.

    Returns:
      One (low, high) pair for each axis.

    References:
      `"SAME"` follows `lax.padtype_to_pads`: ceil(size / stride) outputs, the odd pixel last.
    """
    rank = len(sizes)
    if not isinstance(padding, str):
        return padding_pairs(operation, padding, rank)
    name = padding_name(operation, padding, rank)
    if name == "VALID":
        return ((0, 0),) * rank
    if name == "CAUSAL":
        return ((windows[0] - 1, 0),)
    return tuple(
        _same_padding(size, window, stride, lower=name == "SAME_LOWER")
        for size, window, stride in zip(sizes, windows, strides, strict=True)
    )


def output_sizes(
    operation: str,
    sizes: Sequence[int],
    padding: Sequence[Pair],
    windows: Sequence[int],
    strides: Sequence[int],
) -> tuple[int, ...]:
    """floor((size + low + high - window) / stride) + 1 for each axis; refuses a window larger than its input."""
    outputs = []
    for axis, (size, (low, high), window, stride) in enumerate(zip(sizes, padding, windows, strides, strict=True)):
        padded = size + low + high
        if _is_concrete(padded) and padded < window:
            raise ValueError(
                f"{operation}: the window is larger than its padded input on spatial axis {axis}: it spans {window} "
                f"(dilation included), the input has {size} + padding {low} + {high} = {padded}"
            )
        outputs.append((padded - window) // stride + 1)
    return tuple(outputs)


def ceil_sizes(
    operation: str,
    sizes: Sequence[int],
    padding: Sequence[Pair],
    windows: Sequence[int],
    strides: Sequence[int],
) -> tuple[int, ...]:
    """Output sizes when the last window may hang over the end (PyTorch's `ceil_mode`).

    ceil((size + low + high - window) / stride) + 1, less one where the last window would start in the high padding.
    """
    outputs = []
    for axis, (size, (low, high), window, stride) in enumerate(zip(sizes, padding, windows, strides, strict=True)):
        output = -((window - size - low - high) // stride) + 1
        if _is_concrete(output):
            if (output - 1) * stride >= size + low + min(high, 0):
                output -= 1
            if output < 1:
                raise ValueError(
                    f"{operation}: with ceil_mode no window starts inside the input on spatial axis {axis}: it spans "
                    f"{window} (dilation included), the input has {size} + padding {low} + {high}"
                )
        outputs.append(output)
    return tuple(outputs)


def transposed_sizes(
    operation: str,
    sizes: Sequence[int],
    padding: Padding,
    windows: Sequence[int],
    strides: Sequence[int],
    output_padding: Sequence[int],
) -> tuple[int, ...]:
    """Output pixels of a transposed convolution: the input pixels of the convolution that it is the adjoint of.

    (size - 1) * stride + window - low - high + output_padding for explicit padding, size * stride for `"SAME"`.
    """
    rank = len(sizes)
    if isinstance(padding, str) and padding_name(operation, padding, rank) in ("SAME", "SAME_LOWER"):
        if any(output_padding):
            raise ValueError(
                f"{operation}: padding {padding!r} already sets the output to input size * stride; "
                f"output_padding {tuple(output_padding)} needs explicit padding"
            )
        return tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    pairs = resolve_padding(operation, padding, sizes, windows, strides)
    outputs = []
    for axis in range(rank):
        (low, high), extra = pairs[axis], output_padding[axis]
        output = (sizes[axis] - 1) * strides[axis] + windows[axis] - low - high + extra
        if _is_concrete(output) and output < 1:
            raise ValueError(
                f"{operation}: no output is left on spatial axis {axis}: ({sizes[axis]} - 1) * stride {strides[axis]} "
                f"+ window {windows[axis]} - padding {low} - {high} + output_padding {extra} = {output}"
            )
        outputs.append(output)
    return tuple(outputs)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution or pool, as far as its receptive field goes.

    Args:
      window: pixels of the kernel or pool; an int for one spatial axis, or one int for each axis.
      strides: step of the window, in pixels.
      padding: an int, one int or one (low, high) pair for each axis, `"VALID"`, or `"SAME"` / `"SAME_LOWER"`, which
        with a stride means an input whose size is a multiple of the stride.
      dilation: distance between neighbouring taps of the window, in pixels.

    Example:
      >>> Layer(3, strides=2, padding=1)
      Layer(window=3, strides=2, padding=1, dilation=1)
    """

    window: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = 0
    dilation: int | Sequence[int] = 1


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """Which input pixels one output pixel sees: on each axis `o * stride - offset` to `... + size - 1` for output `o`.

    Args:
      size: input pixels that an output pixel sees, by axis.
      stride: input pixels between the fields of neighbouring outputs, by axis.
      offset: input pixels by which the first output's field begins before the image (Araujo et al.'s padding), by axis.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: tuple[int, ...]


def _is_branches(item: Any) -> bool:
    return not isinstance(item, Layer)


def _check_sequence(value: Any, name: str, parts: str) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"receptive_field: {name} must be a sequence of {parts}, got {value!r}")


def _layers_rank(layers: Sequence[Any], name: str = "layers") -> int:
    _check_sequence(layers, name, "layers")
    ranks = {1}
    for item in layers:
        if _is_branches(item):
            _check_sequence(item, "what is not a Layer", "parallel branches")
            ranks.update(_layers_rank(branch, "a branch") for branch in item)
        else:
            for value in (item.window, item.strides, item.dilation):
                if not hasattr(value, "__index__"):
                    ranks.add(len(value))
            if not isinstance(item.padding, str) and not hasattr(item.padding, "__index__"):
                ranks.add(len(item.padding))
    if len(ranks - {1}) > 1:
        raise ValueError(f"receptive_field: the layers have different numbers of spatial axes: {sorted(ranks)}")
    return max(ranks)


def _layer_field(layer: Layer, rank: int) -> ReceptiveField:
    window = axis_values("receptive_field", "window", layer.window, rank)
    strides = axis_values("receptive_field", "strides", layer.strides, rank)
    dilation = axis_values("receptive_field", "dilation", layer.dilation, rank)
    size = tuple(dilated_size(w, d) for w, d in zip(window, dilation, strict=True))
    # An input of one stride stands for every multiple of it.
    padding = resolve_padding("receptive_field", layer.padding, strides, size, strides)
    return ReceptiveField(size, strides, tuple(low for low, _ in padding))


def _branches_field(branches: Sequence[Any], rank: int) -> ReceptiveField:
    fields = [_chain_field(branch, rank) for branch in branches]
    if not fields:
        raise ValueError("receptive_field: a list of parallel branches is empty")
    strides = {field.stride for field in fields}
    if len(strides) > 1:
        raise ValueError(f"receptive_field: parallel branches must have the same stride, got {sorted(strides)}")
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
    r"""Receptive field of the last of some layers, in input pixels.

    With $s_l$, $k_l$, $p_l$ the stride, dilated window and low padding of layer $l$ and $j_l = \prod_{m<l} s_m$:
    size $= 1 + \sum_l (k_l - 1) j_l$, stride $= \prod_l s_l$, offset $= \sum_l p_l j_l$. Parallel branches give the
    union of their fields.

    Args:
      layers: `Layer`s from input to output. In the place of a layer there may be a list of such sequences: parallel
        branches whose results are added or concatenated; an empty branch is the identity.

    Returns:
      `ReceptiveField(size, stride, offset)`, each with one integer for each spatial axis.

    Raises:
      ValueError: parallel branches of different stride, or layers of different spatial rank.
      TypeError: something else in the place of a layer, of branches or of a branch.

    Example:
      >>> receptive_field([Layer(3, padding=1), Layer(2, strides=2), Layer(3, padding=1)])
      ReceptiveField(size=(8,), stride=(2,), offset=(3,))
      >>> receptive_field([[[Layer(3, padding=1), Layer(3, padding=1)], []]])   # a residual block
      ReceptiveField(size=(5,), stride=(1,), offset=(2,))

    References:
      Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", Distill 2019; `offset` is
      their padding.
    """
    return _chain_field(layers, _layers_rank(layers))


def window_hits(
    size: int, output: int, window: int, stride: int, low: int, dilation: int = 1, input_dilation: int = 1
) -> int:
    """Pairs of an output pixel and a tap whose input pixel is real: neither padding nor a hole of input dilation.

    Tap `t` of output `o` reads position `o * stride - low + t * dilation` of an input that is real at the multiples of
    `input_dilation` up to `(size - 1) * input_dilation`.
    """
    last = (size - 1) * input_dilation
    count = 0
    for tap in range(window):
        shift = tap * dilation - low
        # Outputs o with 0 <= o * stride + shift <= last.
        first_output = max(0, -(shift // stride))
        last_output = min(output - 1, (last - shift) // stride)
        if last_output < first_output:
            continue
        if input_dilation == 1:
            count += last_output - first_output + 1
            continue
        # Of these, the ones that fall on a pixel: the residues repeat every input_dilation / gcd outputs.
        period = input_dilation // math.gcd(stride, input_dilation)
        for output_index in range(first_output, min(first_output + period, last_output + 1)):
            if (output_index * stride + shift) % input_dilation == 0:
                count += (last_output - output_index) // period + 1
    return count
