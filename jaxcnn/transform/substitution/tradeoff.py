"""Gains and costs of several substitutions of one function."""

from __future__ import annotations

import dataclasses
import importlib
import os
from typing import Any

from jaxcnn.transform.tables import Table


@dataclasses.dataclass(frozen=True)
class TradeOff:
    """Gains and costs of several substitutions of one function; `plot` draws them.

    `print` shows a table.

    Args:
      points: (share of multiply-accumulates, speedup, relative error) of each substitution.
      milliseconds: milliseconds of a call of each substitution.
      scores: score of each by the user's `measure`; empty without `measure`.

    Example:
      >>> tradeoff = TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06)))
      >>> [share for share, speedup, error in tradeoff.points if error < 0.05]
      [0.5]
    """

    points: tuple[tuple[float, float, float], ...]
    milliseconds: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()

    def __str__(self) -> str:
        header = ["share of MACs", "times faster", "error", *(["ms"] if self.milliseconds else [])]
        columns = [*zip(*self.points, strict=True), *([self.milliseconds] if self.milliseconds else [])]
        if self.scores:
            header, columns = [*header, "score"], [*columns, self.scores]
        rows = [tuple(f"{value:.4g}" for value in row) for row in zip(*columns, strict=True)]
        return Table(tuple(header), rows, range(len(header)), (), [{}] * len(rows)).text([])

    def plot(self, *, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws the error of the results against the gain of time, as `jaxcnn.drawing.draw_tradeoff` does.

        Args:
          path: file to save the picture to; its ending says the format (`.png`, `.svg`, `.pdf`).

        Returns:
          The `matplotlib.figure.Figure`.

        Raises:
          ImportError: matplotlib is not installed.
        """
        return importlib.import_module("jaxcnn.drawing").draw_tradeoff(self, path=path)
