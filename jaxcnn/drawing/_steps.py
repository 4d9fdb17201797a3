"""Picture of one step of a sliding window: the window on the image, the numbers under the window, their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._saving import MAX_FRAMES, Path, save_animation, save_if_path
from jaxcnn.drawing._sliding import Place, Sliding

GAP = 1.5
"""Distance between the parts of a step, in cells; the sign between them stands there."""
FADED = 0.25
"""Opacity of channels that a step does not read, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds one channel of a step: its image, and the numbers between the image and the sum.

    Args:
      image: numbers of the image's channel, `(height, width)`.
      factors: numbers that the window's pixels are multiplied with; None for a pool.
      terms: numbers that the step adds up or compares, `(taps, taps)`.
      used: flag, True for a channel that the step reads.
    """

    image: np.ndarray
    factors: np.ndarray | None
    terms: np.ndarray
    used: bool = True


@dataclasses.dataclass(frozen=True)
class Step:
    """Holds the numbers of one output pixel: the channels that the pixel is made of, and the outputs so far.

    Args:
      rows: channels of the input.
      place: output pixel.
      channel: output channel.
      total: value of the output pixel in words.
      outputs: numbers of each output channel, `(channels, height, width)`; NaN for pixels of later steps.
      start: input pixel under the window's first tap.
    """

    rows: Sequence[Row]
    place: Place
    channel: int
    total: str
    outputs: np.ndarray
    start: Place


def steps_picture(
    operation: str,
    count: int,
    make: Callable[[int], Figure],
    step: int | None,
    path: Path | None,
    milliseconds: int,
    animate: bool,
) -> Figure:
    """Returns the picture of one step, or of the last step of an animation, and saves the picture or the animation.

    Args:
      operation: name of the function for messages.
      count: number of steps.
      make: function from the number of a step to its picture.
      step: number of the only step that is drawn, negative from the end; None for an animation.
      path: file to save to. None: a picture is not saved, and an animation is refused.
      milliseconds: time that each step of an animation is shown.
      animate: flag, True for an animation of all steps.

    Raises:
      ValueError: a step that does not exist; an animation with a step, without a path or of too many steps.
    """
    if not animate:
        if step is None or not -count <= step < count:
            raise ValueError(f"{operation}: step must be from 0 to {count - 1}, as there are {count}, got {step}")
        return save_if_path(make(step % count), path)
    if step is not None:
        raise ValueError(f"{operation}: an animation shows all steps, so step must be left out, got {step}")
    if path is None:
        raise ValueError(f"{operation}: an animation needs a path to be saved to")
    if count > MAX_FRAMES:
        raise ValueError(f"{operation}: an animation has at most {MAX_FRAMES} steps, these sizes make {count}")
    figures = [make(index) for index in range(count)]
    save_animation(operation, figures, path, milliseconds)
    return figures[-1]


def draw_step(slide: Sliding, step: Step, *, letters: int, border: str = "0") -> Figure:
    """Draws the step that computes one output pixel.

    Args:
      slide: places of the window.
      step: numbers of this step.
      letters: length of the longest total, so that the pictures of all steps have one size.
      border: number that is written into padding.
    """
    (padded_rows, padded_columns), (taps_down, taps_across) = slide.padded_sizes, slide.taps
    channels, (out_rows, out_columns) = len(step.outputs), slide.outputs
    has_factors = step.rows[0].factors is not None
    band = max(padded_rows, taps_down) + GAP
    outputs_band = out_rows + GAP
    height = max(len(step.rows) * band, channels * outputs_band) - GAP
    many = len(step.rows) > 1
    sizes = draw.sizes_text(slide.shown(slide.sizes))
    image_title = f"input {sizes}" + (f", {len(step.rows)} channels" if many else "")
    sizes = draw.sizes_text(slide.shown(slide.outputs))
    output_title = f"output {sizes}" + (f", {channels} channels" if channels > 1 else "")
    image_width, out_width = draw.title_width(padded_columns, image_title), draw.title_width(out_columns, output_title)
    factors_left = draw.MARGIN + image_width + GAP
    terms_left = factors_left + (taps_across + GAP if has_factors else 0)
    sum_left = terms_left + taps_across
    sum_width = max(3.0, 0.3 * letters + 1.4)
    out_middle = sum_left + sum_width + out_width / 2
    out_left, image_left = out_middle - out_columns / 2, draw.MARGIN + (image_width - padded_columns) / 2
    figure, axes = draw.canvas(out_middle + out_width / 2 + draw.MARGIN, draw.TITLE + height + draw.MARGIN)
    first_band = draw.TITLE + (height - (len(step.rows) * band - GAP)) / 2
    colour = draw.WINDOWS[0]
    for index, row in enumerate(step.rows):
        middle = first_band + index * band + (band - GAP) / 2
        top = middle - padded_rows / 2 + slide.before[0]
        left = image_left + slide.before[1]
        _draw_image(axes, slide, row, left, top, border)
        if row.used:
            for down, across in slide.pixels(step.place):
                draw.fill(axes, left + across, top + down, colour)
            extents = slide.extents
            draw.frame(axes, left + step.start[1], top + step.start[0], extents[1], extents[0], colour)
            terms_top = middle - taps_down / 2
            if row.factors is not None:
                draw.text(axes, factors_left - GAP / 2, middle, draw.TIMES, fontsize=14)
                draw.numbers_grid(axes, row.factors, factors_left, terms_top)
                draw.text(axes, terms_left - GAP / 2, middle, "=", fontsize=14)
            else:
                draw.text(axes, terms_left - GAP / 2, middle, draw.ARROW, fontsize=14)
            _draw_terms(axes, row.terms, terms_left, terms_top)
    middle = draw.TITLE + height / 2
    draw.text(axes, sum_left + sum_width / 2, middle - 0.6, step.total, fontweight="bold")
    draw.arrow(axes, (sum_left + 0.4, middle), (out_left - 0.4, middle))
    first_output = draw.TITLE + (height - (channels * outputs_band - GAP)) / 2
    for channel in range(channels):
        top = first_output + channel * outputs_band
        for row_index, column in np.ndindex(out_rows, out_columns):
            value = step.outputs[channel, row_index, column]
            label, style = ("", {"facecolor": draw.PADDING}) if np.isnan(value) else (draw.number(value), {})
            draw.cell(axes, out_left + column, top + row_index, label, **style)
        if channel == step.channel:
            x, y = out_left + step.place[1], top + step.place[0]
            draw.fill(axes, x, y, colour)
            draw.frame(axes, x, y, 1, 1, colour)
    draw.text(axes, image_left + padded_columns / 2, first_band - 0.55, image_title)
    if has_factors:
        first_used = next(index for index, row in enumerate(step.rows) if row.used)
        words_top = first_band + first_used * band + (band - GAP - taps_down) / 2 - 0.55
        draw.text(axes, factors_left + taps_across / 2, words_top, "kernel")
        draw.text(axes, terms_left + taps_across / 2, words_top, "products")
    draw.text(axes, out_middle, first_output - 0.55, output_title)
    return figure


def _draw_image(axes: Any, slide: Sliding, row: Row, left: float, top: float, border: str) -> None:
    """Draws one channel of the image and its padding."""
    (above, before), (height, width) = slide.before, slide.padded_sizes
    for down in range(-above, height - above):
        for across in range(-before, width - before):
            if slide.holds((down, across)):
                style = {} if row.used else {"alpha": FADED}
                label = draw.number(row.image[down, across]) if row.used else ""
                draw.cell(axes, left + across, top + down, label, **style)
            else:
                draw.padding_cell(axes, left + across, top + down, border if row.used else "")


def _draw_terms(axes: Any, terms: np.ndarray, left: float, top: float) -> None:
    """Draws the numbers of a window; NaN stands for a tap that takes no part."""
    largest = float(np.nanmax(np.abs(terms), initial=0)) if np.isfinite(terms).any() else 1.0
    for row, column in np.ndindex(*terms.shape):
        value = float(terms[row, column])
        if np.isnan(value):
            draw.padding_cell(axes, left + column, top + row)
        else:
            colour = draw.signed_colour(value, largest)
            draw.cell(axes, left + column, top + row, draw.number(value), facecolor=colour)
