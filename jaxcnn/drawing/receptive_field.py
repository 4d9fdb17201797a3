"""`draw_receptive_field`: the pixels that one output pixel depends on, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from jaxcnn import FieldLayer, Summary, receptive_field
from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._canvas import EDGE, PADDING, WINDOWS
from jaxcnn.drawing._saving import Path, save_if_path


def draw_receptive_field(layers: Sequence[FieldLayer] | Summary, *, path: Path | None = None) -> Figure:
    """Draws the pixels that one output pixel depends on, layer by layer, along the first spatial axis.

    Each layer is one row of pixels, with the output on top and the input below. The pixels that the one output pixel
    depends on are filled, and their number is written beside them. A summary is drawn as one bar for each layer whose
    field is known, as long as the field in pixels of the function's argument.

    Args:
      layers: `FieldLayer`s from input to output, without parallel branches; or a summary of `jaxcnn.summarize`.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: no layers, or parallel branches; a summary without a known field.

    Example:
      >>> from jaxcnn import FieldLayer
      >>> figure = draw_receptive_field([FieldLayer(3, padding=1), FieldLayer(3, strides=2, padding=1)])
      >>> len(figure.axes)
      1
    """
    if isinstance(layers, Summary):
        return save_if_path(_fields(layers), path)
    layers = list(layers)
    if not layers or not all(isinstance(layer, FieldLayer) for layer in layers):
        raise ValueError(f"draw_receptive_field: layers must be one or more `FieldLayer`s in a row, got {layers!r}")
    count = len(layers)
    rows = []  # from the input on: (stride, centre of pixel 0, first pixel of the field, size of the field)
    for index in range(count + 1):
        below, above = receptive_field(layers[:index]), receptive_field(layers[index:])
        centre = (below.size[0] - 1) / 2 - below.offset[0]
        rows.append((below.stride[0], centre, -above.offset[0], above.size[0]))
    lowest = min(centre + first * stride for stride, centre, first, _ in rows)
    highest = max(centre + (first + size - 1) * stride for stride, centre, first, size in rows)
    span = highest - lowest + 3
    # The lengths are in inches; a pixel is as wide as the figure allows.
    unit = min(0.32, 7.0 / span)
    label, remark, step = 2.3, 1.3, 0.72
    figure = Figure(figsize=(label + span * unit + remark, (count + 1) * step + 0.1))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, label + span * unit + remark), ylim=(0, (count + 1) * step + 0.1))
    axes.axis("off")

    def place(row: int, pixel: int) -> tuple[float, float]:
        """Returns the centre of a pixel."""
        stride, centre, _, _ = rows[row]
        return label + (centre + pixel * stride - lowest + 1.5) * unit, row * step + step / 2

    def half(row: int) -> float:
        """Returns half the width of a row's pixels."""
        return 0.42 * unit * rows[row][0]

    for row in range(count, -1, -1):
        stride, centre, first, size = rows[row]
        height = 0.15
        field_squares: list[Rectangle] = []
        other_squares: list[Rectangle] = []
        for pixel in range(first - int(span / stride) - 1, first + size + int(span / stride) + 1):
            x, y = place(row, pixel)
            if label <= x - half(row) and x + half(row) <= label + span * unit:
                square = Rectangle((x - half(row), y - height), 2 * half(row), 2 * height)
                (field_squares if first <= pixel < first + size else other_squares).append(square)
        edge: dict[str, Any] = {"edgecolor": EDGE, "linewidths": 0.8 if unit > 0.1 else 0.3}
        axes.add_collection(PatchCollection(other_squares, facecolor=PADDING, **edge))
        axes.add_collection(PatchCollection(field_squares, facecolor=WINDOWS[0] + "90", **edge))
        if row:
            # The polygon joins the ends of the field in this row to those in the row below.
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
        draw.text(axes, label - 0.1, y, name, ha="right", fontsize=10)
        draw.text(axes, label + span * unit + 0.1, y, f"{size} pixel{'s' * (size > 1)}", ha="left", fontsize=10)
    return save_if_path(figure, path)


def _fields(summary: Summary) -> Figure:
    """Draws one bar for each layer of a summary whose receptive field is known."""
    rows = [row for row in summary.rows if row.receptive_field is not None and row.receptive_field.size]
    if not rows:
        raise ValueError("draw_receptive_field: the summary knows no layer's receptive field")
    fields = [row.receptive_field for row in rows if row.receptive_field is not None]
    figure = Figure(figsize=(7.6, 1.0 + 0.24 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    sizes = [field.size[0] for field in fields]
    # Each bar is centred, like the field of the pixel in the middle of an image.
    axes.barh(range(len(rows)), sizes, left=[-size / 2 for size in sizes], color=WINDOWS[0], alpha=0.6, height=0.7)
    for place, (field, size) in enumerate(zip(fields, sizes, strict=True)):
        step = f", every {field.stride[0]}" if field.stride[0] > 1 else ""
        axes.annotate(
            f"{size} pixel{'s' * (size > 1)}{step}",
            (size / 2, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=draw.TEXT,
        )
    names = [f"{(row.name or row.kind).split('/')[-1]}  {draw.sizes_text(row.kernel)}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize="x-small")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.55 * max(sizes), 0.85 * max(sizes))
    axes.set_xlabel("pixels of the input, from the middle of the field")
    axes.grid(axis="x", alpha=0.3)
    return figure
