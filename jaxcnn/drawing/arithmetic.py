"""Pictures of convolution arithmetic: windows on an image, receptive fields, arrays of numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from jaxcnn import FieldLayer, conv_output_shape, receptive_field
from jaxcnn.drawing._saving import saved

PIXEL, PADDING, EDGE, TEXT = "#dbe7f5", "#ffffff", "#5b6b80", "#1f2933"
WINDOWS = ("#e07a1f", "#1b8a7a", "#7d4bb3")
"""Colours of the first, the second and the last window, and of the outputs that they make."""

_LARGEST_LABELLED = 250
"""Arrays of more cells than this are drawn without their numbers."""


def _canvas(width: float, height: float, scale: float) -> tuple[Figure, Any]:
    """A figure of `width` x `height` cells, `scale` inches each, with the first row on top."""
    figure = Figure(figsize=(width * scale, height * scale))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return figure, axes


def _cell(axes: Any, x: float, y: float, label: str = "", **style: Any) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, **{"facecolor": PIXEL, "edgecolor": EDGE, "linewidth": 0.8, **style}))
    if label:
        size = 11 if len(label) <= 3 else 9 if len(label) <= 5 else 7
        axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=size, color=TEXT)


def _text(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 11, "color": TEXT, **style})


def _number(value: Any) -> str:
    return f"{float(value):.3g}".replace("-", "\N{MINUS SIGN}")


def _ints(name: str, value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(values) != rank:
        raise ValueError(f"draw_convolution: {name} must be an int or {rank} ints, got {value!r}")
    return values


def _resolved_padding(
    sizes: Sequence[int], outputs: Sequence[int], extents: Sequence[int], options: dict[str, Any]
) -> list[tuple[int, int]]:
    """(low, high) on each axis of a padding in any of the forms that `conv` takes."""
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


def draw_convolution(
    input_size: int | Sequence[int],
    window: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "VALID",
    dilation: int | Sequence[int] = 1,
    values: Any = None,
    results: Any = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    r"""Picture of one convolution or pool: the input, its padding, three of the window's places, and the output.

    Pixels are blue, padding is dashed. Filled orange are the taps of the first window, outlined green those of the
    second and violet those of the last; the output pixels that these windows make have the same colours.

    Args:
      input_size: pixels of the input: an int for one spatial axis, or one int for each of one or two.
      window: taps of the window, on as many axes as the input.
      strides: step of the window, in pixels; an int or one for each axis.
      padding: as in `conv`.
      dilation: distance between neighbouring taps, in pixels.
      values: numbers to write into the input's pixels, of shape `input_size`.
      results: numbers to write into the output's pixels.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: more than two axes; numbers of another shape than the pixels; sizes that `conv` refuses.

    Example:
      >>> figure = draw_convolution((5, 5), (3, 3), strides=2, padding="SAME")
      >>> len(figure.axes)
      1

    References:
      Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, whose pictures show the same.
    """
    sizes = (input_size,) if isinstance(input_size, int) else tuple(input_size)
    rank = len(sizes)
    if rank not in (1, 2):
        raise ValueError(f"draw_convolution: input_size must have one or two axes, got {input_size!r}")
    taps, steps, gaps = (
        _ints("window", window, rank),
        _ints("strides", strides, rank),
        _ints("dilation", dilation, rank),
    )
    options = {"strides": steps, "padding": padding}
    outputs = conv_output_shape((*sizes, 1), (*taps, 1, 1), kernel_dilation=gaps, **options)[:-1]
    extents = tuple((count - 1) * gap + 1 for count, gap in zip(taps, gaps, strict=True))
    pairs = _resolved_padding(sizes, outputs, extents, options)
    labels = {}
    for name, numbers, shape in (("values", values, sizes), ("results", results, outputs)):
        if numbers is not None:
            labels[name] = np.asarray(numbers)
            if labels[name].shape != shape:
                raise ValueError(f"draw_convolution: {name} must have shape {shape}, got {labels[name].shape}")
    # From here on everything has two axes; one axis is drawn as one row.
    lead = (1,) * (2 - rank)
    sizes, taps, steps, gaps = lead + sizes, lead + taps, lead + steps, lead + gaps
    outputs, extents, pairs = lead + outputs, lead + extents, [(0, 0)] * (2 - rank) + pairs
    labels = {name: numbers.reshape(lead + numbers.shape) for name, numbers in labels.items()}

    padded = [size + max(low, 0) + max(high, 0) for size, (low, high) in zip(sizes, pairs, strict=True)]
    gap, margin, title = 3.0, 0.4, 1.1
    height = max(padded[0], outputs[0])
    figure, axes = _canvas(padded[1] + outputs[1] + gap + 2 * margin, height + title + margin, 0.42)
    # The input's pixel (0, 0) and the output's.
    top = title + (height - padded[0]) / 2 + max(pairs[0][0], 0)
    left = margin + max(pairs[1][0], 0)
    out_top, out_left = title + (height - outputs[0]) / 2, margin + padded[1] + gap

    for row in range(-max(pairs[0][0], 0), sizes[0] + max(pairs[0][1], 0)):
        for column in range(-max(pairs[1][0], 0), sizes[1] + max(pairs[1][1], 0)):
            if 0 <= row < sizes[0] and 0 <= column < sizes[1]:
                label = _number(labels["values"][row, column]) if "values" in labels else ""
                _cell(axes, left + column, top + row, label)
            else:
                _cell(axes, left + column, top + row, facecolor=PADDING, linestyle=(0, (3, 2)), linewidth=0.7)

    last = (outputs[0] - 1, outputs[1] - 1)
    second = (0, 1) if outputs[1] > 1 else (1, 0) if outputs[0] > 1 else (0, 0)
    places = dict(zip(dict.fromkeys([(0, 0), last, second]), (WINDOWS[0], WINDOWS[2], WINDOWS[1]), strict=False))
    for (row, column), color in reversed(places.items()):
        y, x = (place * step - low for place, step, (low, _) in zip((row, column), steps, pairs, strict=True))
        first = (row, column) == (0, 0)
        inset = {WINDOWS[0]: 0.0, WINDOWS[1]: 0.09, WINDOWS[2]: 0.0}[color]
        if first or max(gaps) > 1:
            for tap in np.ndindex(*taps):
                corner = (left + x + tap[1] * gaps[1], top + y + tap[0] * gaps[0])
                axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=0.35 if first else 0.2, linewidth=0))
        frame = (left + x + inset, top + y + inset)
        outline: dict[str, Any] = {"facecolor": "none", "edgecolor": color, "linewidth": 2.4, "zorder": 3}
        axes.add_patch(Rectangle(frame, extents[1] - 2 * inset, extents[0] - 2 * inset, **outline))
    for row, column in np.ndindex(*outputs):
        label = _number(labels["results"][row, column]) if "results" in labels else ""
        _cell(axes, out_left + column, out_top + row, label)
        if (row, column) in places:
            color = places[row, column]
            corner = (out_left + column, out_top + row)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, alpha=0.35, linewidth=0))
            axes.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=color, linewidth=2.4, zorder=3))

    shown = slice(2 - rank, None)
    times = "\N{MULTIPLICATION SIGN}"
    _text(axes, margin + padded[1] / 2, 0.55, f"input {times.join(map(str, sizes[shown]))}")
    _text(axes, out_left + outputs[1] / 2, 0.55, f"output {times.join(map(str, outputs[shown]))}")
    middle = title + height / 2
    arrow = {"arrowstyle": "-|>", "color": EDGE, "linewidth": 1.2}
    axes.annotate("", (out_left - 0.7, middle), (margin + padded[1] + 0.7, middle), arrowprops=arrow)
    return saved(figure, path)


def draw_receptive_field(layers: Sequence[FieldLayer], *, path: str | os.PathLike[str] | None = None) -> Figure:
    """Picture of what one output pixel sees, layer by layer, along the first spatial axis.

    One row of pixels for each layer, the output on top and the input below. Filled are the pixels that the one output
    pixel depends on; what it sees of each row is written beside it.

    Args:
      layers: `FieldLayer`s from input to output, without parallel branches.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: no layers, or parallel branches.

    Example:
      >>> from jaxcnn import FieldLayer
      >>> figure = draw_receptive_field([FieldLayer(3, padding=1), FieldLayer(3, strides=2, padding=1)])
      >>> len(figure.axes)
      1
    """
    layers = list(layers)
    if not layers or not all(isinstance(layer, FieldLayer) for layer in layers):
        raise ValueError(f"draw_receptive_field: layers must be one or more `FieldLayer`s in a row, got {layers!r}")
    count = len(layers)
    rows = []  # the input first: (seen below, stride, centre of pixel 0, first pixel seen, pixels seen)
    for index in range(count + 1):
        below, above = receptive_field(layers[:index]), receptive_field(layers[index:])
        centre = (below.size[0] - 1) / 2 - below.offset[0]
        rows.append((below.stride[0], centre, -above.offset[0], above.size[0]))
    lowest = min(centre + first * stride for stride, centre, first, _ in rows)
    highest = max(centre + (first + size - 1) * stride for stride, centre, first, size in rows)
    span = highest - lowest + 3
    # In inches: a row each, and as wide a pixel as fits.
    unit = min(0.32, 7.0 / span)
    label, remark, step = 2.3, 1.3, 0.72
    figure = Figure(figsize=(label + span * unit + remark, (count + 1) * step + 0.1))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, label + span * unit + remark), ylim=(0, (count + 1) * step + 0.1))
    axes.axis("off")

    def place(row: int, pixel: int) -> tuple[float, float]:
        stride, centre, _, _ = rows[row]
        return label + (centre + pixel * stride - lowest + 1.5) * unit, row * step + step / 2

    def half(row: int) -> float:
        return 0.42 * unit * rows[row][0]

    for row in range(count, -1, -1):
        stride, centre, first, size = rows[row]
        height = 0.15
        seen: list[Rectangle] = []
        around: list[Rectangle] = []
        for pixel in range(first - int(span / stride) - 1, first + size + int(span / stride) + 1):
            x, y = place(row, pixel)
            if label <= x - half(row) and x + half(row) <= label + span * unit:
                square = Rectangle((x - half(row), y - height), 2 * half(row), 2 * height)
                (seen if first <= pixel < first + size else around).append(square)
        edge: dict[str, Any] = {"edgecolor": EDGE, "linewidths": 0.8 if unit > 0.1 else 0.3}
        axes.add_collection(PatchCollection(around, facecolor=PADDING, **edge))
        axes.add_collection(PatchCollection(seen, facecolor=WINDOWS[0] + "90", **edge))
        if row:
            # From the ends of what is seen in this row to the ends of what is seen below.
            _, _, low, length = rows[row - 1]
            ends = [
                place(row, first),
                place(row, first + size - 1),
                place(row - 1, low + length - 1),
                place(row - 1, low),
            ]
            shift = (-half(row), half(row), half(row - 1), -half(row - 1))
            lift = (-height, -height, height, height)
            corners = [(x + dx, y + dy) for (x, y), dx, dy in zip(ends, shift, lift, strict=True)]
            axes.add_patch(Polygon(corners, facecolor=WINDOWS[0], alpha=0.12, linewidth=0))
        y = row * step + step / 2
        name = "input"
        if row:
            layer = layers[row - 1]
            parts = [("window", layer.window), ("stride", layer.strides), ("dilation", layer.dilation)]
            parts = [(part, value if isinstance(value, int) else next(iter(value))) for part, value in parts]
            name = ", ".join(f"{part} {value}" for part, value in parts if part == "window" or value != 1)
        _text(axes, label - 0.1, y, name, ha="right", fontsize=10)
        _text(axes, label + span * unit + 0.1, y, f"{size} pixel{'s' * (size > 1)}", ha="left", fontsize=10)
    return saved(figure, path)


def draw_arrays(*items: Any, titles: Sequence[str] = (), path: str | os.PathLike[str] | None = None) -> Figure:
    """Picture of arrays in a row, with words or signs between them: an equation of images and kernels.

    Cells are coloured by value, blue below zero and orange above, white at zero; arrays of up to 250 cells have their
    numbers written in.

    Args:
      *items: arrays of one or two axes, and strings.
      titles: a title for each array, in order; may be shorter.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: no array, or an array that has not one or two axes.

    Example:
      >>> import numpy as np
      >>> column, row = np.array([[1], [2], [1]]), np.array([[1, 0, -1]])
      >>> figure = draw_arrays(column, "times", row, "=", column * row)
      >>> len(figure.axes)
      1
    """
    arrays = [item if isinstance(item, str) else np.atleast_2d(np.asarray(item)) for item in items]
    grids = [item for item in arrays if not isinstance(item, str)]
    if not grids or any(grid.ndim != 2 for grid in grids):
        shapes = [np.shape(item) for item in items if not isinstance(item, str)]
        raise ValueError(f"draw_arrays: there must be arrays of one or two axes, got shapes {shapes}")
    headline, margin = 1.1 if titles else 0.4, 0.4
    widths = [max(1.4, 0.28 * len(item) + 0.6) if isinstance(item, str) else item.shape[1] for item in arrays]
    captions = iter([*titles, *[""] * len(grids)])
    words = ["" if isinstance(item, str) else next(captions) for item in arrays]
    # A title may be wider than its array.
    widths = [max(width, 0.27 * len(word)) for width, word in zip(widths, words, strict=True)]
    height = max(grid.shape[0] for grid in grids)
    figure, axes = _canvas(sum(widths) + 2 * margin, height + headline + margin, 0.42)
    x = margin
    for item, width, word in zip(arrays, widths, words, strict=True):
        if isinstance(item, str):
            _text(axes, x + width / 2, headline + height / 2, item, fontsize=14 if len(item) == 1 else 11)
        else:
            _draw_grid(axes, item, x + (width - item.shape[1]) / 2, headline + (height - item.shape[0]) / 2)
            _text(axes, x + width / 2, 0.55, word)
        x += width
    return saved(figure, path)


def _draw_grid(axes: Any, grid: np.ndarray, left: float, top: float) -> None:
    largest = float(np.abs(grid).max(initial=0)) or 1.0
    for row, column in np.ndindex(*grid.shape):
        value = float(grid[row, column])
        strength = 0.12 + 0.5 * abs(value) / largest if value else 0.0
        colour = (*matplotlib.colors.to_rgb(WINDOWS[0] if value > 0 else "#2f6db5"), strength)
        label = _number(value) if grid.size <= _LARGEST_LABELLED else ""
        _cell(axes, left + column, top + row, label, facecolor=colour, linewidth=0.8 if label else 0.4)
