"""`draw_arrays`: arrays of numbers in a row, with words or signs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._saving import Path, save_if_path

_MAX_LABELLED_CELLS = 250
"""Cells of an array up to which its numbers are written in."""


def draw_arrays(*items: Any, titles: Sequence[str] = (), path: Path | None = None) -> Figure:
    """Draws arrays in a row, with words or signs between them: an equation of images and kernels.

    Cells are coloured by value, blue below zero and orange above, white at zero; arrays of up to 250 cells have their
    numbers written in.

    Args:
      *items: arrays of one or two axes, and strings.
      titles: title of each array, in order; the last arrays may have none.
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
    widths = [draw.title_width(width, word) for width, word in zip(widths, words, strict=True)]
    height = max(grid.shape[0] for grid in grids)
    figure, axes = draw.canvas(sum(widths) + 2 * margin, height + headline + margin)
    x = margin
    for item, width, word in zip(arrays, widths, words, strict=True):
        if isinstance(item, str):
            draw.text(axes, x + width / 2, headline + height / 2, item, fontsize=14 if len(item) == 1 else 11)
        else:
            corner = (x + (width - item.shape[1]) / 2, headline + (height - item.shape[0]) / 2)
            draw.numbers_grid(axes, item, *corner, labelled=item.size <= _MAX_LABELLED_CELLS)
            draw.text(axes, x + width / 2, corner[1] - (headline - 0.55), word)
        x += width
    return save_if_path(figure, path)
