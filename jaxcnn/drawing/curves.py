"""Pictures of the errors and the gains of substitutions."""

from __future__ import annotations

import os

from matplotlib.figure import Figure

from jaxcnn import RankCurve, TradeOff
from jaxcnn.drawing._saving import save_if_path


def draw_curves(*curves: RankCurve, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws the error that each scheme leaves, against the share of the kernel's multiply-accumulates that it takes.

    Args:
      *curves: curves of `jaxcnn.curve`, one line each.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: no curve.

    Example:
      >>> figure = draw_curves(RankCurve("low_rank", (1, 2), (100, 200), (0.5, 0.1), 400))
      >>> [line.get_label() for line in figure.axes[0].lines]
      ['low_rank']
    """
    if not curves:
        raise ValueError("draw_curves: there must be at least one curve")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(curve.shares, curve.errors, ".-", label=curve.scheme)
    axes.set(xlabel="share of the kernel's multiply-accumulates", ylabel="relative error", xlim=(0, None), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    return save_if_path(figure, path)


def draw_tradeoff(*tradeoffs: TradeOff, path: str | os.PathLike[str] | None = None) -> Figure:
    """Draws the error of substitutions against their gain of time, each point with its share of the MACs.

    Args:
      *tradeoffs: curves of `jaxcnn.Substitution.curve`, one line each.
      path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

    Returns:
      The figure.

    Raises:
      ValueError: no curve.

    Example:
      >>> figure = draw_tradeoff(TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06))))
      >>> figure.axes[0].get_xlabel()
      'times faster'
    """
    if not tradeoffs:
        raise ValueError("draw_tradeoff: there must be at least one curve")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for tradeoff in tradeoffs:
        _, speedups, errors = zip(*tradeoff.points, strict=True)
        axes.plot(speedups, errors, ".-")
        # Budgets that end at the same chains are measured one by one, and share a label.
        labels = {f"{share:.2g}": (speedup, error) for share, speedup, error in tradeoff.points}
        for label, place in labels.items():
            axes.annotate(label, place, xytext=(5, 5), textcoords="offset points", fontsize="small")
    axes.set_title("beside each point: the share of the MACs that stays", fontsize="small")
    axes.set(xlabel="times faster", ylabel="relative error of the results", ylim=(0, None))
    axes.grid(alpha=0.3)
    return save_if_path(figure, path)
