"""`Sliding`: the places of a window on an image, as integers on two axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxcnn import FieldLayer, conv_output_shape, receptive_field

Place = tuple[int, int]
"""Row and column, or a number for each of the two axes."""
MAX_PIXELS = 100_000
"""Largest image of a picture."""


@dataclasses.dataclass(frozen=True)
class Sliding:
    """Holds the places of a window on an image; one spatial axis is drawn as one row.

    Args:
      rank: number of spatial axes, one or two.
      sizes: number of pixels of the image on each axis.
      taps: number of taps of the window on each axis.
      strides: distance from one place to the next, in pixels.
      dilation: distance from one tap to the next, in pixels.
      padding: pair (low, high) of numbers of pixels around the image on each axis; negative where the image is cropped.
      outputs: number of places on each axis.
    """

    rank: int
    sizes: Place
    taps: Place
    strides: Place
    dilation: Place
    padding: tuple[Place, Place]
    outputs: Place

    @property
    def extents(self) -> Place:
        """Returns the number of pixels that the window spans on each axis."""
        rows, columns = ((taps - 1) * gap + 1 for taps, gap in zip(self.taps, self.dilation, strict=True))
        return rows, columns

    @property
    def before(self) -> Place:
        """Returns the number of pixels of padding before the image on each axis."""
        return max(self.padding[0][0], 0), max(self.padding[1][0], 0)

    @property
    def padded(self) -> Place:
        """Returns the number of pixels of the image with its padding on each axis."""
        rows, columns = (
            size + max(low, 0) + max(high, 0) for size, (low, high) in zip(self.sizes, self.padding, strict=True)
        )
        return rows, columns

    def start(self, place: Place) -> Place:
        """Returns the pixel on which the window's first tap stands; negative in the padding."""
        row, column = (
            index * step - low for index, step, (low, _) in zip(place, self.strides, self.padding, strict=True)
        )
        return row, column

    def pixels(self, place: Place) -> Iterator[Place]:
        """Yields the pixel under each tap of the window, row by row."""
        row, column = self.start(place)
        for down in range(self.taps[0]):
            for across in range(self.taps[1]):
                yield row + down * self.dilation[0], column + across * self.dilation[1]

    def holds(self, pixel: Place) -> bool:
        """Returns whether a pixel lies in the image, not in its padding."""
        return all(0 <= index < size for index, size in zip(pixel, self.sizes, strict=True))

    def shown(self, sizes: Sequence[int]) -> Sequence[int]:
        """Returns sizes without the axis that a picture of one axis does not have."""
        return sizes[2 - self.rank :]


def sliding(
    operation: str,
    sizes: Sequence[int],
    taps: Sequence[int],
    *,
    strides: Any,
    padding: Any,
    dilation: Any,
    names: tuple[str, str, str],
    outputs: Sequence[int] | None = None,
) -> Sliding:
    """Returns the places of a window on an image.

    Args:
      operation: name of the function for messages.
      sizes: number of pixels of the image, on one or two axes.
      taps: number of taps of the window, on as many axes.
      strides: step of the window; an int or one for each axis.
      padding: padding in any of the forms that `conv` takes.
      dilation: distance between taps; an int or one for each axis.
      names: words of the user for the image, the window and the dilation.
      outputs: number of places on each axis. None: the number of a convolution's outputs.

    Raises:
      ValueError: sizes that do not fit.
    """
    rank = len(sizes)
    if rank not in (1, 2):
        raise ValueError(f"{operation}: {names[0]} must have one or two spatial axes, got {tuple(sizes)}")
    if math.prod(sizes) > MAX_PIXELS:
        raise ValueError(f"{operation}: a picture shows at most {MAX_PIXELS} pixels, got {tuple(sizes)}")
    if len(taps) != rank:
        raise ValueError(f"{operation}: {names[1]} must have {rank} spatial axes as {names[0]}, got {tuple(taps)}")
    steps, gaps = (_ints(operation, *pair, rank) for pair in (("strides", strides), (names[2], dilation)))
    options: dict[str, Any] = {"strides": steps, "padding": padding}
    try:
        whole = conv_output_shape((*sizes, 1), (*taps, 1, 1), kernel_dilation=gaps, **options)[:-1]
    except (TypeError, ValueError) as error:
        message = str(error).replace("conv_output_shape", operation, 1)
        raise type(error)(message) from None
    extents = [(count - 1) * gap + 1 for count, gap in zip(taps, gaps, strict=True)]
    pairs = _padding_pairs(sizes, whole, extents, options)
    if outputs is None:
        outputs = whole
    # A last window that hangs over the end, as in a pool that rounds up, needs more padding.
    over = [
        (count - 1) * step + extent - size
        for count, step, extent, size in zip(outputs, steps, extents, sizes, strict=True)
    ]
    pairs = [
        (low, high if count == most else max(high, total - low))
        for (low, high), total, count, most in zip(pairs, over, whole, outputs, strict=True)
    ]
    lead = (1,) * (2 - rank)

    def two(values: Sequence[Any], first: Any = 1) -> Any:
        """Returns a value for each of two axes; `first` is that of the axis that the image does not have."""
        return (*(first for _ in lead), *values)

    return Sliding(rank, two(sizes), two(taps), two(steps), two(gaps), two(pairs, (0, 0)), two(outputs))


def _ints(operation: str, name: str, value: Any, rank: int) -> tuple[int, ...]:
    """Returns an option as an int for each axis."""
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"{operation}: {name} must be an int or {rank} ints, got {value!r}")
    return values


def _padding_pairs(
    sizes: Sequence[int], outputs: Sequence[int], extents: Sequence[int], options: dict[str, Any]
) -> list[Place]:
    """Returns the (low, high) padding on each axis, from any of the forms that `conv` takes."""
    padding, rank = options["padding"], len(sizes)
    name = padding.upper() if isinstance(padding, str) else ""
    pairs = []
    for axis, (size, output, extent) in enumerate(zip(sizes, outputs, extents, strict=True)):
        total = (output - 1) * options["strides"][axis] + extent - size
        if name in ("SAME", "SAME_LOWER"):
            total = max(total, 0)
            low = total - total // 2 if name == "SAME_LOWER" else total // 2
        elif name:
            total = low = extent - 1 if name == "CAUSAL" else 0
        else:
            low = receptive_field([FieldLayer((1,) * rank, padding=padding)]).offset[axis]
            unstrided = conv_output_shape((*sizes, 1), (*extents, 1, 1), padding=padding)[axis]
            total = unstrided - 1 + extent - size
        pairs.append((low, total - low))
    return pairs
