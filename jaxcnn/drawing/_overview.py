"""Picture of a convolution or a pool as a whole: the image, its padding, three places of the window, the output."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._sliding import Sliding

GAP = 3.0
"""Distance between the image and the output, in cells."""
INSET = 0.09
"""Inset of the second window, in cells, with which its neighbours' outlines stay visible."""


def draw_overview(
    slide: Sliding, values: np.ndarray | None, results: np.ndarray | None, *, transposed: bool = False
) -> Figure:
    """Draws the first, the second and the last window on the image, and the outputs that belong to them.

    Args:
      slide: places of the window.
      values: numbers of the image. None: cells without numbers.
      results: numbers of the output. None: cells without numbers.
      transposed: flag, True for a transposed convolution: the side with the padding is the output, and one pixel of
        the input makes a window of it.
    """
    image = None if values is None else np.reshape(values, slide.sizes)
    outputs = None if results is None else np.reshape(results, slide.outputs)
    (padded_rows, padded_columns), (out_rows, out_columns) = slide.padded_sizes, slide.outputs
    (above, before), extents = slide.before, slide.extents
    height = max(padded_rows, out_rows)
    figure, axes = draw.canvas(padded_columns + out_columns + GAP + 2 * draw.MARGIN, height + draw.TITLE + draw.MARGIN)
    # `cells_left` is the left end of the side with one cell for each window, `image_left` that of the other side.
    cells_left, image_left = draw.MARGIN + padded_columns + GAP, draw.MARGIN
    if transposed:
        cells_left, image_left = draw.MARGIN, draw.MARGIN + out_columns + GAP
    cells_top = draw.TITLE + (height - out_rows) / 2
    top, left = draw.TITLE + (height - padded_rows) / 2 + above, image_left + before
    for row in range(-above, padded_rows - above):
        for column in range(-before, padded_columns - before):
            if slide.holds((row, column)):
                draw.cell(axes, left + column, top + row, "" if image is None else draw.number(image[row, column]))
            else:
                draw.padding_cell(axes, left + column, top + row)
    last = (out_rows - 1, out_columns - 1)
    second = (0, 1) if out_columns > 1 else (1, 0) if out_rows > 1 else (0, 0)
    first_colour, second_colour, last_colour = draw.WINDOWS
    # A place that is first and last at once keeps the colour of the first.
    colours = {second: second_colour, last: last_colour, (0, 0): first_colour}
    for place in dict.fromkeys((second, last, (0, 0))):
        colour = colours[place]
        row, column = slide.start(place)
        inset = INSET if colour == second_colour else 0.0
        if place == (0, 0) or max(slide.dilation) > 1:
            for down, across in slide.pixels(place):
                draw.fill(axes, left + across, top + down, colour, 0.35 if place == (0, 0) else 0.2)
        box = (left + column + inset, top + row + inset, extents[1] - 2 * inset, extents[0] - 2 * inset)
        draw.frame(axes, *box, colour)
    for row, column in np.ndindex(out_rows, out_columns):
        label = "" if outputs is None else draw.number(outputs[row, column])
        draw.cell(axes, cells_left + column, cells_top + row, label)
        if (row, column) in colours:
            draw.fill(axes, cells_left + column, cells_top + row, colours[row, column])
            draw.frame(axes, cells_left + column, cells_top + row, 1, 1, colours[row, column])
    names = ("output", "input") if transposed else ("input", "output")
    first_sizes = draw.sizes_text(slide.shown(slide.sizes))
    draw.text(axes, image_left + padded_columns / 2, 0.55, f"{names[0]} {first_sizes}")
    second_sizes = draw.sizes_text(slide.shown(slide.outputs))
    draw.text(axes, cells_left + out_columns / 2, 0.55, f"{names[1]} {second_sizes}")
    middle = draw.TITLE + height / 2
    end = max(cells_left, image_left) - 0.7
    draw.arrow(axes, (end - GAP + 1.4, middle), (end, middle))
    return figure
