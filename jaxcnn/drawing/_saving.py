"""A figure as a file, the same byte for byte each time."""

from __future__ import annotations

import os

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def saved(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, saved if there is a path."""
    FigureCanvasAgg(figure)
    if path is not None:
        # Neither the date nor random identifiers, so that the file depends on the arguments alone.
        stamp = {"Date": None} if os.fspath(path).endswith((".svg", ".pdf")) else None
        with matplotlib.rc_context({"svg.hashsalt": "jaxcnn"}):
            figure.savefig(path, metadata=stamp, dpi=150)
    return figure
