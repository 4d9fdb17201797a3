"""`draw_kernels`: the windows of a kernel, or of each kernel of a chain, as images."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxcnn import KernelChain
from jaxcnn.drawing import _canvas as draw
from jaxcnn.drawing._saving import Path, save_if_path

COLOURS = "RdBu_r"
"""Colour map of matplotlib, from blue to red."""
INCHES_PER_WINDOW = 0.55
MAX_LABELLED_WINDOWS = 12
"""Number of rows or columns up to which each one is numbered."""


def draw_kernels(
    kernel: Any, *, max_inputs: int = 8, max_outputs: int = 16, dense: bool = True, path: Path | None = None
) -> Figure:
    """Draws each window of a kernel as an image: one row for each input channel, one column for each output channel.

    Weights above zero are red, below zero blue, zero is white; each kernel has its own scale, whose largest magnitude
    is written above it. A chain is drawn kernel by kernel, and after them the dense kernel that it stands for.

    Args:
      kernel: kernel, `(*window, C_in / groups, C_out)` with one or two spatial axes, or a `KernelChain` of such.
      max_inputs: largest number of input channels that are drawn.
      max_outputs: largest number of output channels that are drawn.
      dense: flag that adds the dense kernel of a chain.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure, with one axes object for each kernel.

    Raises:
      ValueError: a kernel that has not one or two spatial axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxcnn import KernelChain
      >>> chain = KernelChain((jnp.ones((5, 1, 3, 4)), jnp.ones((1, 5, 4, 8))))
      >>> [axes.get_title() for axes in draw_kernels(chain).axes]
      ['5×1, 3 to 4\\nup to 1', '1×5, 4 to 8\\nup to 1', 'dense 5×5, 3 to 8\\nup to 4']
    """
    if max_inputs < 1 or max_outputs < 1:
        raise ValueError(
            f"draw_kernels: max_inputs and max_outputs must be at least 1, got {max_inputs}, {max_outputs}"
        )
    named_kernels = [("", kernel)]
    if isinstance(kernel, KernelChain):
        named_kernels = [("", link) for link in kernel.kernels] + ([("dense ", kernel.dense())] if dense else [])
    weights = [(name, np.asarray(array, np.float32)) for name, array in named_kernels]
    for _, array in weights:
        if array.ndim not in (3, 4):
            raise ValueError(
                "draw_kernels: a kernel must have one or two spatial axes, input and output channels, got shape "
                f"{array.shape}"
            )
    grids = [_Grid(array, max_inputs, max_outputs) for _, array in weights]
    widths, heights = [grid.columns for grid in grids], [grid.rows for grid in grids]
    inches = (
        max(2.4 * len(grids), INCHES_PER_WINDOW * sum(widths)) + 0.8,
        max(1.4, INCHES_PER_WINDOW * max(heights)) + 1.2,
    )
    figure = Figure(figsize=inches, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(grids), gridspec_kw={"width_ratios": [max(w, 3) for w in widths]}))
    for axes, (name, array), grid in zip(panels, weights, grids, strict=True):
        largest = float(np.abs(array).max(initial=0)) or 1.0
        axes.imshow(grid.image, cmap=COLOURS, vmin=-largest, vmax=largest, interpolation="nearest")
        window = draw.sizes_text(array.shape[:-2])
        title = f"{name}{window}, {array.shape[-2]} to {array.shape[-1]}\nup to {largest:.3g}"
        axes.set_title(title, fontsize="small", color=draw.TEXT)
        axes.set_xlabel(grid.words("output channel", axis=1), fontsize="small")
        axes.set_ylabel(grid.words("input channel", axis=0), fontsize="small")
        for ticks, axis in ((axes.xaxis, 1), (axes.yaxis, 0)):
            places = grid.middles(axis)
            labels = [str(index) for index in range(len(places))] if len(places) <= MAX_LABELLED_WINDOWS else []
            ticks.set_ticks(places if labels else [], labels, fontsize="x-small")
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return save_if_path(figure, path)


class _Grid:
    """Holds an image of windows side by side, with an empty pixel between neighbours."""

    def __init__(self, kernel: np.ndarray, max_inputs: int, max_outputs: int) -> None:
        if kernel.ndim == 3:
            kernel = kernel[None]
        self.total = kernel.shape[2:]
        shown = kernel[:, :, :max_inputs, :max_outputs]
        self.height, self.width, self.rows, self.columns = shown.shape
        # Pixels that are NaN stay empty.
        image = np.full((self.rows, self.height + 1, self.columns, self.width + 1), np.nan, np.float32)
        image[:, : self.height, :, : self.width] = shown.transpose(2, 0, 3, 1)
        image = image.reshape(self.rows * (self.height + 1), self.columns * (self.width + 1))
        self.image = image[:-1, :-1]

    def middles(self, axis: int) -> list[float]:
        """Returns the middle of each row (axis 0) or column (axis 1) in pixels."""
        size, count = ((self.height, self.rows), (self.width, self.columns))[axis]
        return [index * (size + 1) + (size - 1) / 2 for index in range(count)]

    def words(self, name: str, axis: int) -> str:
        """Returns the label of an axis, with the number of channels that are drawn if some are not."""
        count = (self.rows, self.columns)[axis]
        total = self.total[axis]
        return name if count == total else f"{name}\n(the first {count} of {total})"
