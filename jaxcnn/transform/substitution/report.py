"""The report of `substitute` on each layer and on the whole function, as a table."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from jaxcnn.transform.tables import Table, with_unit

_HEADER = ("layer", "kernel", "scheme", "rank", "MACs before", "after", "ms before", "after", "error")
MAX_ERROR = 0.3
"""Error of the results above which a result is refused, unless the user allows more."""
MIN_SPEEDUP = 0.98
"""Speedup below which a function is said to be slower; two runs of one function differ by as much."""
_TEXT_COLUMNS = 4
"""Number of columns, the first ones, that are aligned to the left."""


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One kernel among the parameters.

    Args:
      name: path of the kernel in the parameters.
      kernel: shape of the kernel, `(*window, I / groups, O)`.
      groups: number of groups.
      scheme: scheme of the chain, or "dense".
      rank: rank of the chain, or None.
      macs_before, macs_after: multiply-accumulates of all convolutions that use the kernel.
      ms_before, ms_after: milliseconds of these convolutions alone, as they were and with the chain; None if they were
        not measured.
      error: relative error of the chain: of the layer's responses behind its nonlinearity if the layer was
        calibrated, else of the kernel.
      reason: reason why the kernel stayed dense or has a chain that is slower, or "".

    Example:
      >>> row = LayerReport("stem", (5, 5, 8, 8), 1, "separable", 2, 1600, 160, 2.0, 0.5, 0.01)
      >>> row.macs_after / row.macs_before, row.ms_after / row.ms_before, row.reason
      (0.1, 0.25, '')
    """

    name: str
    kernel: tuple[int, ...]
    groups: int
    scheme: str
    rank: Any
    macs_before: int
    macs_after: int
    ms_before: float | None
    ms_after: float | None
    error: float
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class SubstitutionReport:
    """The result of a substitution, for each kernel and for the whole function; `print` shows a table.

    Args:
      rows: one `LayerReport` for each kernel among the parameters.
      macs_before, macs_after: multiply-accumulates of all convolutions.
      ms_before, ms_after: milliseconds of a call, jitted, as it was and with the chains.
      error: relative error of the results, norm(after - before) / norm(before).
      held_out_error: relative error of the results for the calibration inputs that were held out; None if none were.
      score_before, score_after: score that the user's `measure` gave before and after; None without `measure`.
      error_before_training: error of the results before `Substitution.distill`; None if the chains were not trained.
      parameter_bytes_before, parameter_bytes_after: bytes of all parameters; 0 in a report that does not tell them.

    Example:
      >>> report = SubstitutionReport(rows=(), macs_before=400, macs_after=100, ms_before=2.0, ms_after=0.8, error=0.02)
      >>> report.macs_share, report.speedup
      (0.25, 2.5)
    """

    rows: tuple[LayerReport, ...]
    macs_before: int
    macs_after: int
    ms_before: float
    ms_after: float
    error: float
    held_out_error: float | None = None
    score_before: float | None = None
    score_after: float | None = None
    error_before_training: float | None = None
    parameter_bytes_before: int = 0
    parameter_bytes_after: int = 0

    @property
    def largest_error(self) -> float:
        """Largest error of the results, for the arguments and for the held-out inputs."""
        return max(self.error, self.held_out_error or 0.0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what is worse than one would expect: a slower function, and results that differ much."""
        texts = []
        if self.speedup < MIN_SPEEDUP:
            texts.append(
                f"SLOWER: a call takes {1 / self.speedup:.2f} times as long as before "
                f"({self.ms_before:.2f} ms before, {self.ms_after:.2f} ms after)"
            )
        if self.largest_error > MAX_ERROR:
            texts.append(f"LARGE ERROR: the results differ by {self.largest_error:.2f} of their norm")
        return tuple(texts)

    @property
    def macs_share(self) -> float:
        """Share of the multiply-accumulates that remains."""
        return self.macs_after / self.macs_before if self.macs_before else 1.0

    @property
    def speedup(self) -> float:
        """Ratio of the time of a call before to the time after."""
        return self.ms_before / self.ms_after

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SubstitutionReport:
        """Returns the report that `to_json` wrote."""
        content = json.loads(text)
        rows = tuple(
            LayerReport(**{**row, "kernel": tuple(row["kernel"]), "rank": _rank(row["rank"])})
            for row in content["rows"]
        )
        return cls(**{**content, "rows": rows})

    def __str__(self) -> str:
        table = self._table.text([*self._totals(), *self._reasons()])
        return "\n".join([*self.warnings, *([""] if self.warnings else []), table])

    def _repr_html_(self) -> str:
        return self._table.html([*self.warnings, *self._totals()])

    @property
    def _table(self) -> Table:
        tooltips = [dict.fromkeys(range(len(_HEADER)), row.reason) for row in self.rows]
        numbers = range(_TEXT_COLUMNS, len(_HEADER))
        return Table(_HEADER, [_cells(row) for row in self.rows], numbers, ((0, 8),), tooltips)

    def _totals(self) -> list[str]:
        return [
            f"{with_unit(self.macs_before)} MACs of convolutions before, {with_unit(self.macs_after)} after: "
            f"{self.macs_share:.3f} of them",
            *(
                [
                    f"{with_unit(self.parameter_bytes_before)} bytes of parameters before, "
                    f"{with_unit(self.parameter_bytes_after)} after"
                ]
                if self.parameter_bytes_before
                else []
            ),
            f"{self.ms_before:.2f} ms a call before, {self.ms_after:.2f} ms after: {self.speedup:.2f} times faster",
            f"relative error of the results: {self.error:.4f}"
            + (
                ""
                if self.error_before_training is None
                else f" after training, {self.error_before_training:.4f} before"
            )
            + ("" if self.held_out_error is None else f", for held-out calibration inputs {self.held_out_error:.4f}"),
            *(
                []
                if self.score_before is None or self.score_after is None
                else [f"score {self.score_before:.6g} before, {self.score_after:.6g} after"]
            ),
        ]

    def _reasons(self) -> list[str]:
        alike: dict[tuple[bool, str], list[str]] = {}
        for row in self.rows:
            if row.reason:
                alike.setdefault((row.scheme == "dense", row.reason), []).append(row.name)
        return [_reason(names, *key) for key, names in alike.items()]


def _reason(names: list[str], is_dense: bool, reason: str) -> str:
    first, *other_names = names
    if other_names:
        first += f" and {len(other_names)} other{'s' * (len(other_names) > 1)}"
    return f"{first} {'stay' if other_names else 'stays'} dense: {reason}" if is_dense else f"{first}: {reason}"


def _rank(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cells(row: LayerReport) -> tuple[str, ...]:
    *window, inputs, outputs = row.kernel
    groups = f" g{row.groups}" if row.groups > 1 else ""
    rank = "x".join(map(str, row.rank)) if isinstance(row.rank, tuple) else str(row.rank or "")
    return (
        row.name,
        f"{'x'.join(map(str, window))} {inputs * row.groups}->{outputs}{groups}",
        row.scheme,
        rank,
        with_unit(row.macs_before),
        with_unit(row.macs_after),
        "" if row.ms_before is None else f"{row.ms_before:.2f}",
        "" if row.ms_after is None else f"{row.ms_after:.2f}",
        f"{row.error:.4f}" if row.scheme != "dense" else "",
    )
