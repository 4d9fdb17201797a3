"""`Sliding`: the places of a window on an image, as integers on two axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from jaxcnn.options import ConvGeometry, PoolGeometry

Place = tuple[int, int]
"""Row and column, or a number for each of the two axes."""
MAX_PIXELS = 100_000
"""Largest number of pixels of an array that a picture shows, padding included."""


def check_pixels(name: str, shape: Sequence[int]) -> None:
    """Raises a ValueError for an array with more pixels than a picture shows."""
    if math.prod(shape) > MAX_PIXELS:
        raise ValueError(f"a picture shows at most {MAX_PIXELS} pixels, {name} has shape {tuple(shape)}")


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

    @classmethod
    def of(cls, geometry: ConvGeometry | PoolGeometry) -> Sliding:
        """Returns the places of the window of a convolution or a pool of one or two spatial axes.

        Raises a ValueError for images that are too large for a picture.
        """
        rank, padding = geometry.order.rank, geometry.padding
        if isinstance(geometry, PoolGeometry):
            # A last window that hangs over the end needs more padding than was declared, and never less is drawn.
            pairs = zip(geometry.padding, geometry.declared_padding, strict=True)
            padding = tuple((low, max(high, declared_high)) for (low, high), (_, declared_high) in pairs)
        dilation = geometry.window_dilation if isinstance(geometry, PoolGeometry) else geometry.kernel_dilation

        def two_axes(values: Sequence[Any], missing_axis: Any = 1) -> Any:
            return (*[missing_axis] * (2 - rank), *values)

        slide = cls(
            rank=rank,
            sizes=two_axes(geometry.sizes),
            taps=two_axes(geometry.window),
            strides=two_axes(geometry.strides),
            dilation=two_axes(dilation),
            padding=two_axes(padding, (0, 0)),
            outputs=two_axes(geometry.output_sizes),
        )
        check_pixels("the image with its padding", slide.shown(slide.padded_sizes))
        check_pixels("the array of the window's places", slide.shown(slide.outputs))
        return slide

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
    def padded_sizes(self) -> Place:
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
