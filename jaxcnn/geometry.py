"""Integer arithmetic of windows that slide over an image: padding, output sizes, taps on real pixels.

All functions here compute with Python integers and know no arrays. A spatial size may also be a symbolic dimension of
`jax.export`; an option may not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

Ints = tuple[int, ...]
IntOrInts = int | Sequence[int]
Pair = tuple[int, int]
Padding = str | int | Sequence[int] | Sequence[Sequence[int]]

PADDING_NAMES = ("SAME", "SAME_LOWER", "VALID", "CAUSAL")


def whole_number(name: str, value: Any, minimum: int = 1) -> int:
    """Returns an option as an int, and refuses one below a minimum by the option's name."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def axis_values(name: str, value: Any, rank: int, minimum: int = 1) -> Ints:
    """Returns one integer for each of `rank` spatial axes, from an int or a sequence of `rank` ints."""
    message = f"{name} must be an int or a sequence of {rank} ints, got {value!r}"
    if isinstance(value, str):
        raise TypeError(message)
    try:
        values = (operator.index(value),) * rank
    except TypeError:
        try:
            values = tuple(operator.index(item) for item in value)
        except TypeError:
            raise TypeError(message) from None
    if len(values) != rank:
        raise ValueError(f"{message} with {len(values)} values, one for each of {rank} spatial axes needed")
    if any(item < minimum for item in values):
        raise ValueError(f"{name} must be at least {minimum} on every axis, got {value!r}")
    return values


def dilated_size(size: int, dilation: int) -> int:
    """Returns the extent of `size` points with `dilation - 1` holes between neighbours."""
    return (size - 1) * dilation + 1 if not _is_concrete(size) or size > 0 else 0


def _is_concrete(size: Any) -> bool:
    return hasattr(size, "__index__") and isinstance(size, int)


def _same_padding(size: int, window: int, stride: int, lower: bool) -> Pair:
    """Returns the (low, high) padding of one axis that makes ceil(size / stride) outputs."""
    # As (output - 1) * stride < size <= output * stride, the total is at least window - stride: only where that is
    # negative is a maximum needed (symbolic sizes cannot always take one).
    if window == 1:
        return 0, 0
    output = -(-size // stride)
    total = (output - 1) * stride + window - size
    if window < stride:
        total = max(total, 0)
    half = total // 2
    return (total - half, half) if lower else (half, total - half)


def padding_name(padding: str, rank: int) -> str:
    """Returns the canonical spelling of a padding given by name, in any case; refuses unknown names."""
    name = padding.upper()
    if name not in PADDING_NAMES:
        spellings = ", ".join(map(repr, PADDING_NAMES))
        raise ValueError(f"padding must be one of {spellings}, ints or (low, high) pairs, got {padding!r}")
    if name == "CAUSAL" and rank != 1:
        raise ValueError(f"padding 'CAUSAL' is for one spatial axis, but there are {rank}")
    return name


def padding_pairs(padding: Any, rank: int) -> tuple[Pair, ...]:
    """Returns (low, high) for each axis, from an int, one int for each axis or one pair for each axis."""
    message = (
        f"padding must be a name, an int, one int for each of {rank} spatial axes "
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
        raise TypeError(message) from None
    if rank == 1 and len(items) == 2 and all(hasattr(item, "__index__") for item in items):
        raise ValueError(f"{message}; for one axis write ((low, high),)")
    pairs: list[Pair] = []
    kinds = set()
    for item in items:
        try:
            edge = operator.index(item)
        except TypeError:
            try:
                values = [operator.index(part) for part in item]
            except TypeError:
                raise TypeError(message) from None
            if len(values) != 2:
                raise ValueError(message) from None
            pairs.append((values[0], values[1]))
            kinds.add("pair")
        else:
            pairs.append((edge, edge))
            kinds.add("int")
    if len(pairs) != rank or len(kinds) > 1:
        raise ValueError(message)
    return tuple(pairs)


def resolve_padding(
    padding: Padding,
    sizes: Sequence[int],
    windows: Sequence[int],
    strides: Sequence[int],
) -> tuple[Pair, ...]:
    """Returns the explicit (low, high) padding of each axis.

    Args:
      padding: name (`"SAME"`, `"SAME_LOWER"`, `"VALID"`, `"CAUSAL"`, any case), int, one int for each axis, or one
        (low, high) pair for each axis.
      sizes: number of input pixels on each axis, after input dilation.
      windows: extent of the window on each axis, after dilation.
      strides: step of the window on each axis.

    Returns:
      One (low, high) pair for each axis.

    References:
      `"SAME"` follows `lax.padtype_to_pads`: ceil(size / stride) outputs, the odd pixel last.
    """
    rank = len(sizes)
    if not isinstance(padding, str):
        return padding_pairs(padding, rank)
    name = padding_name(padding, rank)
    if name == "VALID":
        return ((0, 0),) * rank
    if name == "CAUSAL":
        return ((windows[0] - 1, 0),)
    return tuple(
        _same_padding(size, window, stride, lower=name == "SAME_LOWER")
        for size, window, stride in zip(sizes, windows, strides, strict=True)
    )


def output_sizes(
    sizes: Sequence[int],
    padding: Sequence[Pair],
    windows: Sequence[int],
    strides: Sequence[int],
) -> Ints:
    """Returns the output sizes, floor((size + low + high - window) / stride) + 1 for each axis.

    Refuses a window larger than its padded input.
    """
    outputs = []
    for axis, (size, (low, high), window, stride) in enumerate(zip(sizes, padding, windows, strides, strict=True)):
        padded = size + low + high
        if _is_concrete(padded) and padded < window:
            raise ValueError(
                f"the window is larger than its padded input on spatial axis {axis}: it spans {window} "
                f"(dilation included), the input has {size} + padding {low} + {high} = {padded}"
            )
        outputs.append((padded - window) // stride + 1)
    return tuple(outputs)


def ceil_sizes(
    sizes: Sequence[int],
    padding: Sequence[Pair],
    windows: Sequence[int],
    strides: Sequence[int],
) -> Ints:
    """Returns the output sizes when the last window may hang over the end (PyTorch's `ceil_mode`).

    A size is ceil((size + low + high - window) / stride) + 1, less one where the last window would start in the high
    padding.
    """
    outputs = []
    for axis, (size, (low, high), window, stride) in enumerate(zip(sizes, padding, windows, strides, strict=True)):
        output = -((window - size - low - high) // stride) + 1
        if _is_concrete(output):
            if (output - 1) * stride >= size + low + min(high, 0):
                output -= 1
            if output < 1:
                raise ValueError(
                    f"with ceil_mode no window starts inside the input on spatial axis {axis}: it spans "
                    f"{window} (dilation included), the input has {size} + padding {low} + {high}"
                )
        outputs.append(output)
    return tuple(outputs)


def transposed_sizes(
    sizes: Sequence[int],
    padding: Padding,
    windows: Sequence[int],
    strides: Sequence[int],
    output_padding: Sequence[int],
) -> Ints:
    """Returns the output sizes of a transposed convolution, which are the input sizes of the convolution it transposes.

    An output size is (size - 1) * stride + window - low - high + output_padding for explicit padding, and size * stride
    for `"SAME"`.
    """
    rank = len(sizes)
    if isinstance(padding, str) and padding_name(padding, rank) in ("SAME", "SAME_LOWER"):
        if any(output_padding):
            raise ValueError(
                f"padding {padding!r} already sets the output to input size * stride; "
                f"output_padding {tuple(output_padding)} needs explicit padding"
            )
        return tuple(size * stride for size, stride in zip(sizes, strides, strict=True))
    pairs = resolve_padding(padding, sizes, windows, strides)
    outputs = []
    for axis in range(rank):
        (low, high), extra = pairs[axis], output_padding[axis]
        output = (sizes[axis] - 1) * strides[axis] + windows[axis] - low - high + extra
        if _is_concrete(output) and output < 1:
            raise ValueError(
                f"no output is left on spatial axis {axis}: ({sizes[axis]} - 1) * stride {strides[axis]} "
                f"+ window {windows[axis]} - padding {low} - {high} + output_padding {extra} = {output}"
            )
        outputs.append(output)
    return tuple(outputs)


def window_hits(
    size: int, output: int, window: int, stride: int, low: int, dilation: int = 1, input_dilation: int = 1
) -> int:
    """Counts the pairs of an output pixel and a tap whose input pixel is neither padding nor a hole of input dilation.

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
        # Those that fall on a pixel solve o * stride = -shift modulo input_dilation: every period-th, or none.
        divisor = math.gcd(stride, input_dilation)
        if shift % divisor:
            continue
        period = input_dilation // divisor
        solution = -shift // divisor * pow(stride // divisor, -1, period) % period
        first_hit = first_output + (solution - first_output) % period
        if first_hit <= last_output:
            count += (last_output - first_hit) // period + 1
    return count
