"""Picture of one step of a transposed convolution: a pixel times the kernel, added to a window of the output."""

from __future__ import annotations

import dataclasses

import numpy as np
from matplotlib.figure import Figure

from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._sliding import Place, Sliding
from jaxcnn.drawing._steps import FADED, GAP


@dataclasses.dataclass(frozen=True)
class Spread:
    """Holds a transposed convolution with its numbers.

    Args:
      slide: places of the window on the output, one for each input pixel.
      planes: input, `(height, width, C_out)`.
      kernel: kernel, `(*taps, C_in / groups, C_out)`.
      groups: number of groups of channels.
    """

    slide: Sliding
    planes: np.ndarray
    kernel: np.ndarray
    groups: int

    @property
    def count(self) -> int:
        """Returns the number of steps: one for each pixel of each input channel."""
        return self.planes.size

    def source(self, index: int) -> tuple[int, Place]:
        """Returns the channel and the pixel that a step spreads."""
        rows, columns, _ = self.planes.shape
        channel, pixel = divmod(index, rows * columns)
        return channel, divmod(pixel, columns)

    def products(self, index: int) -> tuple[int, np.ndarray]:
        """Returns the first output channel that a step adds to, and its products, `(channels, *taps)`."""
        channel, pixel = self.source(index)
        width = self.kernel.shape[2]
        first = channel // (self.planes.shape[2] // self.groups) * width
        return first, np.moveaxis(self.kernel[..., channel], -1, 0) * self.planes[(*pixel, channel)]

    def sums(self, index: int) -> np.ndarray:
        """Returns the output after a step, `(channels, height, width)`."""
        sums = np.zeros((self.kernel.shape[2] * self.groups, *self.slide.sizes))
        for number in range(index + 1):
            first, products = self.products(number)
            pixels = self.slide.pixels(self.source(number)[1])
            for pixel, terms in zip(pixels, products.reshape(len(products), -1).T, strict=True):
                if self.slide.holds(pixel):
                    sums[(slice(first, first + len(products)), *pixel)] += terms
        return sums


def draw_spread(spread: Spread, index: int) -> Figure:
    """Draws the picture of one input pixel's part in the output."""
    slide, colour = spread.slide, draw.WINDOWS[0]
    channel, pixel = spread.source(index)
    first, products = spread.products(index)
    sums = spread.sums(index)
    (rows, columns, inputs), (taps_down, taps_across) = spread.planes.shape, slide.taps
    (padded_rows, padded_columns), (above, before) = slide.padded_sizes, slide.before
    input_band, output_band = rows + GAP, max(padded_rows, taps_down) + GAP
    height = max(inputs * input_band, len(sums) * output_band) - GAP
    sizes = draw.sizes_text(slide.shown((rows, columns)))
    input_title = f"input {sizes}" + (f", {inputs} channels" if inputs > 1 else "")
    sizes = draw.sizes_text(slide.shown(slide.sizes))
    output_title = f"output {sizes}" + (f", {len(sums)} channels" if len(sums) > 1 else "")
    input_width, out_width = draw.title_width(columns, input_title), draw.title_width(padded_columns, output_title)
    input_left = draw.MARGIN + (input_width - columns) / 2
    kernel_left = draw.MARGIN + input_width + GAP
    products_left = kernel_left + taps_across + GAP
    out_middle = products_left + taps_across + 2 * GAP + out_width / 2
    out_left = out_middle - padded_columns / 2
    figure, axes = draw.canvas(out_middle + out_width / 2 + draw.MARGIN, draw.TITLE + height + draw.MARGIN)
    first_input = draw.TITLE + (height - (inputs * input_band - GAP)) / 2
    for number in range(inputs):
        top = first_input + number * input_band
        for row, column in np.ndindex(rows, columns):
            is_source = number == channel
            label = draw.number(spread.planes[row, column, number]) if is_source else ""
            style = {} if is_source else {"alpha": FADED}
            draw.cell(axes, input_left + column, top + row, label, **style)
        if number == channel:
            draw.fill(axes, input_left + pixel[1], top + pixel[0], colour)
            draw.frame(axes, input_left + pixel[1], top + pixel[0], 1, 1, colour)
    start, extents = slide.start(pixel), slide.extents
    first_output = draw.TITLE + (height - (len(sums) * output_band - GAP)) / 2
    for number, plane in enumerate(sums):
        middle = first_output + number * output_band + (output_band - GAP) / 2
        top, left = middle - padded_rows / 2 + above, out_left + before
        for down in range(-above, padded_rows - above):
            for across in range(-before, padded_columns - before):
                if slide.holds((down, across)):
                    draw.cell(axes, left + across, top + down, draw.number(plane[down, across]))
                else:
                    draw.padding_cell(axes, left + across, top + down)
        if not first <= number < first + len(products):
            continue
        for down, across in slide.pixels(pixel):
            draw.fill(axes, left + across, top + down, colour)
        draw.frame(axes, left + start[1], top + start[0], extents[1], extents[0], colour)
        terms_top = middle - taps_down / 2
        draw.text(axes, kernel_left - GAP / 2, middle, draw.TIMES, fontsize=14)
        draw.numbers_grid(axes, spread.kernel[..., number - first, channel], kernel_left, terms_top)
        draw.text(axes, products_left - GAP / 2, middle, "=", fontsize=14)
        draw.numbers_grid(axes, products[number - first], products_left, terms_top)
        draw.text(axes, out_left - GAP, middle - 0.6, "added")
        draw.arrow(axes, (products_left + taps_across + 0.4, middle), (out_left - 0.4, middle))
    draw.text(axes, input_left + columns / 2, first_input - 0.55, input_title)
    words_top = first_output + first * output_band + (output_band - GAP - taps_down) / 2 - 0.55
    draw.text(axes, kernel_left + taps_across / 2, words_top, "kernel")
    draw.text(axes, products_left + taps_across / 2, words_top, "products")
    draw.text(axes, out_middle, first_output - 0.55, output_title)
    return figure
