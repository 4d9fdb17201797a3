"""Samples of what a layer meets and of its responses, in blocks of neighbouring positions at random places."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.transform.chains.convolve import direction, is_forward
from jaxcnn.transform.chains.find_kernels import KernelUses
from jaxcnn.transform.jaxpr.convolutions import forward_axes, forward_options
from jaxcnn.transform.jaxpr.equations import avals

_MAX_PIECE_BYTES = 32 << 20
"""Bytes of all pieces of images that blocks are to stay within.

Larger blocks take less memory for as many positions, but show fewer parts of the images."""


def is_fitted(uses: KernelUses) -> bool:
    """Returns whether a kernel's chain can be fitted: calibration reaches all convolutions, and all use one kernel."""
    if uses.refusal or any(site.hidden for site in uses.sites):
        return False
    # Convolutions in opposite directions have no samples in common.
    return len({direction(site, uses.placement) for site in uses.sites}) == 1


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Output positions of a convolution in blocks of neighbours, whose patches overlap and are kept as one piece.

    Args:
      images: number of the image of each block, (N,).
      starts: first output position of each block on each axis, (rank, N).
      sides: output positions of a block on each axis.
    """

    images: np.ndarray
    starts: np.ndarray
    sides: tuple[int, ...]

    @classmethod
    def chosen(cls, equation: JaxprEqn, count: int, sides: Sequence[int], generator: np.random.Generator) -> Blocks:
        """Returns blocks at random and in order, with at most `count` output positions if that is one block or more."""
        num_images, *sizes = _output_sizes(equation)
        # The last block of an axis may overlap the one before, so that all have one size.
        starts = [np.minimum(np.arange(0, size, side), size - side) for size, side in zip(sizes, sides, strict=True)]
        grid = num_images, *map(len, starts)
        total, num_blocks = math.prod(grid), max(1, count // math.prod(sides))
        cells = np.arange(total)
        if total > num_blocks:
            cells = np.sort(generator.choice(total, num_blocks, replace=False))
        images, *numbers = np.unravel_index(cells, grid)
        of_axes = [axis[number] for axis, number in zip(starts, numbers, strict=True)]
        return cls(images, np.array(of_axes).reshape(len(sides), -1), tuple(sides))

    def positions(self, axis: int) -> np.ndarray:
        """Returns the output positions of each block on an axis, (N, side)."""
        return self.starts[axis][:, None] + np.arange(self.sides[axis])


def block_sides(equation: JaxprEqn, count: int, total: int) -> tuple[int, ...]:
    """Returns how many output positions a block has on each axis: as few as `_MAX_PIECE_BYTES` lets them be.

    Blocks extend along the axes on which neighbouring patches overlap.

    Args:
      equation: convolution.
      count: largest number of positions of a block.
      total: number of positions of all blocks.
    """
    options, window, sizes = forward_options(equation), _window(equation), _output_sizes(equation)[1:]
    steps = zip(*(options[name] for name in ("strides", "input_dilation", "kernel_dilation")), strict=True)
    overlaps = [
        size > 1 and max(of_axis) == 1 and is_forward(equation) for size, of_axis in zip(window, steps, strict=True)
    ]
    channels = avals(equation)[0].shape[forward_axes(equation)[0][-1]]
    pixel_bytes = channels * np.dtype(np.float32).itemsize

    def piece_bytes(sides: Sequence[int]) -> int:
        extents = (side + size - 1 for side, size in zip(sides, window, strict=True))
        return pixel_bytes * math.prod(extents)

    sides = (1,) * len(window)
    while piece_bytes(sides) * total > _MAX_PIECE_BYTES * math.prod(sides):
        larger = tuple(
            min(2 * side, size) if overlap else 1 for side, size, overlap in zip(sides, sizes, overlaps, strict=True)
        )
        if larger == sides or math.prod(larger) > count:
            break
        sides = larger
    return sides


def _output_sizes(equation: JaxprEqn) -> tuple[int, ...]:
    """Returns the number of images, and of output pixels on each axis."""
    shape = avals(equation)[-1].shape
    return tuple(shape[axis] for axis in forward_axes(equation)[2][:-1])


def _window(equation: JaxprEqn) -> tuple[int, ...]:
    shape = avals(equation)[1].shape
    return tuple(shape[axis] for axis in forward_axes(equation)[1][:-2])


def responses_at(equation: JaxprEqn, response: Any, blocks: Blocks) -> np.ndarray:
    """Returns the responses at the output positions of blocks, (N, *sides, C_out)."""
    array = np.asarray(response).transpose(forward_axes(equation)[2])
    positions = [blocks.positions(axis) for axis in range(len(blocks.sides))]
    return array[_places(blocks.images, positions)].astype(np.float32)


def patches_at(equation: JaxprEqn, image: Any, blocks: Blocks) -> np.ndarray:
    """Returns the pieces of the image under the kernel at the output positions of blocks, (N, *extents, C_in).

    A convolution that is the transpose of another one sees its image with zeros between the pixels.
    """
    array = np.asarray(image).transpose(forward_axes(equation)[0])
    places, inside = [], np.ones((len(blocks.images), *(1,) * len(blocks.sides)), bool)
    for axis, size in enumerate(array.shape[1:-1]):
        pixels, exists = _pixels(equation, axis, blocks, size)
        places.append(pixels)
        inside = inside & _along(axis, exists, len(blocks.sides))
    return array[_places(blocks.images, places)].astype(np.float32) * inside[..., None]


def _places(images: np.ndarray, positions: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Returns an index of all combinations of each block's positions (N, side) on the axes, (N, *sides)."""
    rank = len(positions)
    return images.reshape(-1, *(1,) * rank), *(_along(axis, of_axis, rank) for axis, of_axis in enumerate(positions))


def _along(axis: int, array: np.ndarray, rank: int) -> np.ndarray:
    """Returns (N, size) with the second axis as one of `rank` axes."""
    return array.reshape(len(array), *(1,) * axis, -1, *(1,) * (rank - axis - 1))


def _pixels(equation: JaxprEqn, axis: int, blocks: Blocks, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of an axis under the taps for each block, (N, extent), and a mask of those that exist."""
    options = forward_options(equation)
    steps, gaps = (options[name][axis] for name in ("strides", "input_dilation"))
    low, _ = options["padding"][axis]
    # A block of several positions has no strides and no dilation, so the taps of its last one follow on.
    taps = np.arange(blocks.sides[axis] + _window(equation)[axis] - 1) * options["kernel_dilation"][axis]
    outputs = blocks.starts[axis][:, None]
    if is_forward(equation):
        place = outputs * steps - low + taps
    else:
        # y[o] k[t] is added to input pixel p with o s + t d = p e + low.
        place, gaps = outputs * gaps + low - taps, steps
    pixels, between = np.divmod(place, gaps)
    exists = (between == 0) & (pixels >= 0) & (pixels < size)
    return np.where(exists, pixels, 0), exists
