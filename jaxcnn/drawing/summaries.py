"""`draw_summary`: the share of each layer in the arithmetic of a function."""

from __future__ import annotations

from matplotlib.figure import Figure

from jaxcnn import Summary, SummaryRow
from jaxcnn.drawing._canvas import TEXT, sizes_text
from jaxcnn.drawing._saving import Path, save_if_path

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5b6b80")
"""Colours of methods, which readers who confuse red and green can tell apart."""
MAX_ROWS = 60
"""Largest number of layers with a bar of their own."""


def draw_summary(summary: Summary, *, max_rows: int = MAX_ROWS, path: Path | None = None) -> Figure:
    """Draws a bar for each layer of a summary: its multiply-accumulates, coloured by the method that computes it.

    Args:
      summary: summary of `jaxcnn.summarize`.
      max_rows: largest number of bars; the layers with the fewest multiply-accumulates are put together in one.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: a summary without multiply-accumulates.

    Example:
      >>> import jax, jaxcnn
      >>> x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((3, 3, 3, 4), "float32")
      >>> figure = draw_summary(jaxcnn.summarize(jaxcnn.conv, x, kernel))
      >>> len(figure.axes[0].patches)
      1
    """
    if max_rows < 1:
        raise ValueError(f"draw_summary: max_rows must be at least 1, got {max_rows}")
    rows = [row for row in summary.rows if row.cost.macs > 0]
    if not rows:
        raise ValueError("draw_summary: the summary has no convolution, pool or product with multiply-accumulates")
    bar_rows = rows
    if len(rows) > max_rows:
        largest = sorted(range(len(rows)), key=lambda index: -rows[index].cost.macs)[: max_rows - 1]
        bar_rows = [rows[index] for index in sorted(largest)]
    total = sum(row.cost.macs for row in rows)
    names = [_name(row) for row in bar_rows]
    macs = [row.cost.macs for row in bar_rows]
    methods = [row.method for row in bar_rows]
    if len(bar_rows) < len(rows):
        names.append(f"{len(rows) - len(bar_rows)} smaller layers")
        macs.append(total - sum(macs))
        methods.append("several")
    order = list(dict.fromkeys(methods))
    figure = Figure(figsize=(7.6, 1.1 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for method in order:
        places = [index for index, name in enumerate(methods) if name == method]
        colour = COLOURS[order.index(method) % len(COLOURS)]
        axes.barh(places, [macs[place] for place in places], color=colour, label=method, height=0.7)
    for place, count in enumerate(macs):
        axes.annotate(
            f"{100 * count / total:.2g} %",
            (count, place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=TEXT,
        )
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max(macs))
    axes.set_xlabel(f"multiply-accumulates, of {total:,} in all")
    axes.ticklabel_format(axis="x", style="sci", scilimits=(0, 0))
    axes.grid(axis="x", alpha=0.3)
    axes.legend(title="method", fontsize="small")
    return save_if_path(figure, path)


def _name(row: SummaryRow) -> str:
    """Returns the last parts of a layer's name, or its kind where it has none, with its window."""
    name = "/".join((row.name or row.kind).split("/")[-3:])
    return f"{name}  {sizes_text(row.kernel)}" if row.kernel else name
