"""Parts that all pictures of arithmetic are made of: cells, numbers and words, in units of one cell."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

PIXEL, PADDING, EDGE, TEXT = "#dbe7f5", "#ffffff", "#5b6b80", "#1f2933"
"""Colours of pixels, of padding, of the edges of cells, and of text."""
NEGATIVE = "#2f6db5"
"""Colour of numbers below zero."""
WINDOWS = ("#e07a1f", "#1b8a7a", "#7d4bb3")
"""Colours of the first, the second and the last window, and of the outputs that they make."""
CELL_INCHES = 0.42
"""Side of one cell, in inches."""
TITLE, MARGIN = 1.1, 0.4
"""Height of the titles above a picture and width of the margin around it, in cells."""
CELLS_PER_LETTER = 0.27
"""Width of one letter of a title, in cells."""
TIMES, MINUS, ARROW = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"


def canvas(width: float, height: float, scale: float = CELL_INCHES) -> tuple[Figure, Any]:
    """Returns a figure of `width` x `height` cells, `scale` inches each, with the first row on top."""
    figure = Figure(figsize=(width * scale, height * scale))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.axis("off")
    return figure, axes


def cell(axes: Any, x: float, y: float, label: str = "", **style: Any) -> None:
    """Draws one cell with its upper left corner at (x, y)."""
    axes.add_patch(Rectangle((x, y), 1, 1, **{"facecolor": PIXEL, "edgecolor": EDGE, "linewidth": 0.8, **style}))
    if label:
        size = 11 if len(label) <= 3 else 9 if len(label) <= 5 else 7
        axes.text(x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=size, color=TEXT)


def padding_cell(axes: Any, x: float, y: float, label: str = "") -> None:
    """Draws one cell of padding."""
    cell(axes, x, y, label, facecolor=PADDING, linestyle=(0, (3, 2)), linewidth=0.7)


def text(axes: Any, x: float, y: float, words: str, **style: Any) -> None:
    """Writes words with their middle at (x, y)."""
    axes.text(x, y, words, **{"ha": "center", "va": "center", "fontsize": 11, "color": TEXT, **style})


def fill(axes: Any, x: float, y: float, color: str, alpha: float = 0.35) -> None:
    """Colours one cell."""
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, alpha=alpha, linewidth=0))


def frame(axes: Any, x: float, y: float, width: float, height: float, color: str) -> None:
    """Draws a thick outline."""
    outline: dict[str, Any] = {"facecolor": "none", "edgecolor": color, "linewidth": 2.4, "zorder": 3}
    axes.add_patch(Rectangle((x, y), width, height, **outline))


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draws an arrow between two points."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=EDGE, linewidth=1.2))


def number(value: Any) -> str:
    """Returns a number in three digits, a large integer in full."""
    value = float(value) + 0.0  # no sign before zero
    written = f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"
    return written.replace("-", MINUS)


def sizes_text(sizes: Any) -> str:
    """Returns sizes with a multiplication sign between them, as in 5×3."""
    return TIMES.join(map(str, sizes))


def title_width(cells: float, words: str) -> float:
    """Returns the width of a plane with the title above it, in cells."""
    return max(cells, CELLS_PER_LETTER * len(words))


def signed_colour(value: float, largest: float) -> tuple[float, ...]:
    """Returns the colour of a number: blue below zero, orange above, and stronger for a larger magnitude."""
    strength = 0.12 + 0.5 * abs(value) / (largest or 1.0) if value else 0.0
    return (*matplotlib.colors.to_rgb(WINDOWS[0] if value > 0 else NEGATIVE), strength)


def numbers_grid(axes: Any, grid: np.ndarray, x: float, y: float, *, labelled: bool = True) -> None:
    """Draws a plane of numbers, coloured by their sign and size, with its upper left corner at (x, y)."""
    largest = float(np.abs(grid).max(initial=0)) or 1.0
    for row, column in np.ndindex(*grid.shape):
        value = float(grid[row, column])
        style: dict[str, Any] = {"facecolor": signed_colour(value, largest), "linewidth": 0.8 if labelled else 0.4}
        cell(axes, x + column, y + row, number(value) if labelled else "", **style)
