"""`draw_convolution`: the picture of a convolution, of one of its steps, or of all steps in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxcnn import conv, conv_transpose
from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._overview import draw_overview
from jaxcnn.drawing._saving import Path, save_if_path
from jaxcnn.drawing._sliding import Place, Sliding, check_pixels
from jaxcnn.drawing._spread import Spread, draw_spread
from jaxcnn.drawing._steps import Row, Step, draw_step, steps_picture
from jaxcnn.errors import ErrorPrefix
from jaxcnn.options import ConvOptions

_OPERATION = "draw_convolution"
"""Name of the function in messages."""


def draw_convolution(
    x: Any,
    kernel: Any,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    kernel_dilation: int | Sequence[int] = 1,
    feature_group_count: int = 1,
    transposed: bool = False,
    step: int | None = None,
    animate: bool | None = None,
    milliseconds: int = 700,
    seed: int = 0,
    path: Path | None = None,
) -> Figure:
    r"""Draws a convolution: all of it, one step of it, or all steps in turn as an animation.

    Without `step` the picture shows the input, its padding, three places of the window and the output: orange is the
    first window, green the second, violet the last, and the output pixels that they make have the same colours. With
    `step` the picture shows the computation of one output pixel: the pixels under the window, the kernel, the products
    and their sum.
    A transposed convolution's step is one input pixel: its products with the kernel are added to a window of the
    output.

    Args:
      x: image as an array, `(*spatial)` or `(*spatial, C_in)` with one or two spatial axes; or its shape, a tuple of
        ints. An int stands for one spatial axis.
      kernel: kernel as an array or its shape, `(*window)` for one channel in and out, or
        `(*window, C_in / feature_group_count, C_out)`.
      strides: step of the window, in pixels; an int or one for each axis.
      padding: padding in any of the forms that `conv` takes.
      kernel_dilation: distance between neighbouring taps, in pixels.
      feature_group_count: number of groups of channels; channels that a step does not read are pale.
      transposed: flag, True for the picture of `conv_transpose` of the same arguments.
      step: number of the step in the picture: its output pixel, row by row and channel by channel, or the input pixel
        of a transposed convolution; negative from the end.
      animate: flag, True for an animation of all steps. None: only if `path` ends in `.gif` and there is no `step`.
      milliseconds: time that each step of an animation is shown.
      seed: seed of the small random integers that take the place of an array of which only the shape is given.
      path: file to save the picture to; its ending says the format: `.png`, `.svg`, `.pdf`, and `.gif` or `.svg` of an
        animation.

    Returns:
      The figure; the last step of an animation.

    Raises:
      ValueError: more than two spatial axes; sizes that `conv` refuses; an array of more than 100000 pixels, padding
        included; a step that does not exist.

    Example:
      >>> figure = draw_convolution((5, 5), (3, 3), strides=2)
      >>> len(figure.axes)
      1

    References:
      Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, whose pictures show the same.
    """
    image, weights = _Operand(x, "x"), _Operand(kernel, "kernel")
    rank = len(weights.shape) if len(weights.shape) <= 2 else len(weights.shape) - 2
    if rank > 2:
        raise ValueError(f"{_OPERATION}: kernel must have one or two spatial axes, got shape {weights.shape}")
    has_channels = len(weights.shape) > 2
    if len(image.shape) != rank + has_channels:
        expected_shape = "(*spatial, C_in)" if has_channels else "(*spatial)"
        raise ValueError(
            f"{_OPERATION}: x must have shape {expected_shape} with {rank} spatial axes, as the kernel's shape is "
            f"{weights.shape}, got {image.shape}"
        )
    taps = weights.shape[:rank]
    options = {"strides": strides, "padding": padding, "kernel_dilation": kernel_dilation}
    if has_channels:
        options["feature_group_count"] = feature_group_count
    full_image = image.shape if has_channels else (*image.shape, 1)
    full_kernel = weights.shape if has_channels else (*taps, 1, 1)
    function = conv_transpose if transposed else conv
    conv_options = ConvOptions.of(**options)
    geometry_of = conv_options.transposed_geometry if transposed else conv_options.geometry
    with ErrorPrefix(_OPERATION):
        slide = Sliding.of(geometry_of((1, *full_image), full_kernel))
    if animate is None:
        animate = step is None and path is not None and str(path).lower().endswith(".gif")
    if step is None and not animate:
        single = full_image[-1] == full_kernel[-1] == 1 and not transposed
        values = image.values if single else None
        results = None
        if single and image.values is not None and weights.values is not None:
            results = _result(function, image.values, weights.values, full_image, full_kernel, options)[..., 0]
        return save_if_path(draw_overview(slide, values, results, transposed=transposed), path)
    generator = np.random.default_rng(seed)
    values = image.numbers(generator, 0).reshape(full_image)
    kernel_values = weights.numbers(generator, -1).reshape(full_kernel)
    results = _result(function, values, kernel_values, full_image, full_kernel, options)
    planes = values.reshape(*_two_axes(slide, image.shape[:rank]), -1)
    blocks = kernel_values.reshape(*slide.taps, *full_kernel[-2:])
    make: Callable[[int], Figure]
    if transposed:
        spread = Spread(slide, planes, blocks, feature_group_count)
        count, make = spread.count, lambda index: draw_spread(spread, index)
    else:
        output_planes = np.moveaxis(results.reshape(*slide.outputs, -1), -1, 0)
        count = output_planes.size
        letters = max(len(_total(value)) for value in output_planes.ravel())

        def make(index: int) -> Figure:
            pixel = _step(slide, planes, blocks, output_planes, feature_group_count, index)
            return draw_step(slide, pixel, letters=letters)

    return steps_picture(_OPERATION, count, make, step, path, milliseconds, animate)


class _Operand:
    """Holds an array, or only its shape."""

    def __init__(self, array: Any, name: str) -> None:
        is_shape = isinstance(array, int) or (isinstance(array, tuple) and all(isinstance(size, int) for size in array))
        self.values = None if is_shape else np.asarray(array, np.float32)
        self.shape = ((array,) if isinstance(array, int) else array) if self.values is None else self.values.shape
        with ErrorPrefix(_OPERATION):
            check_pixels(name, self.shape)
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"{_OPERATION}: {name} must have sizes of at least 1, got {array!r}")

    def numbers(self, generator: np.random.Generator, low: int) -> np.ndarray:
        """Returns the array, or random integers from `low` to `low` + 3 in its place."""
        if self.values is not None:
            return self.values
        return generator.integers(low, low + 4, self.shape).astype(np.float32)


def _two_axes(slide: Sliding, sizes: Sequence[int]) -> Sequence[int]:
    """Returns sizes on two axes: (1, size) for an image of one axis."""
    return (*(1 for _ in range(2 - slide.rank)), *sizes)


def _result(
    function: Any,
    x: np.ndarray,
    kernel: np.ndarray,
    image_shape: Sequence[int],
    kernel_shape: Sequence[int],
    options: Any,
) -> np.ndarray:
    """Returns the result (*spatial, C_out) of `conv` or `conv_transpose` for one image and kernel of these shapes."""
    result = function(jnp.asarray(x.reshape(1, *image_shape)), jnp.asarray(kernel.reshape(kernel_shape)), **options)
    return np.asarray(result)[0]


def _step(slide: Sliding, image: np.ndarray, kernel: np.ndarray, outputs: np.ndarray, groups: int, index: int) -> Step:
    """Returns the step that computes one output pixel.

    Args:
      slide: places of the window.
      image: image, (height, width, C_in).
      kernel: kernel, (*window, C_in / groups, C_out).
      outputs: numbers of each output channel, (C_out, height, width).
      groups: number of groups of channels.
      index: number of the output pixel, row by row and channel by channel.
    """
    channels, rows, columns = outputs.shape
    channel, place = divmod(index, rows * columns)
    pixel_place: Place = divmod(place, columns)
    outputs_so_far = np.where(np.arange(outputs.size).reshape(outputs.shape) <= index, outputs, np.nan)
    width = kernel.shape[2]
    first = channel // (channels // groups) * width
    input_rows = []
    for number in range(image.shape[-1]):
        is_read = first <= number < first + width
        plane = image[..., number]
        if not is_read:
            input_rows.append(Row(plane, kernel[:, :, 0, channel], np.zeros(slide.taps), used=False))
            continue
        pixels = [plane[pixel] if slide.holds(pixel) else 0.0 for pixel in slide.pixels(pixel_place)]
        factors = kernel[:, :, number - first, channel]
        input_rows.append(Row(plane, factors, np.reshape(pixels, slide.taps) * factors))
    total = _total(outputs[channel][pixel_place])
    return Step(input_rows, pixel_place, channel, total, outputs_so_far, slide.start(pixel_place))


def _total(value: Any) -> str:
    return f"sum = {draw.number(value)}"
