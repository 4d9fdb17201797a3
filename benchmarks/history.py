"""Reads the records of the commits that are named in `results/capabilities.json`: what each brought, what it gained.

`python -m benchmarks.history` prints the largest steps; `make tables` writes the table of docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .airspeed import RESULTS

MACHINE = "two-core-x86"
TIMES = ("track_time_over_lax", "track_time_over_exact", "track_time_over_torch", "track_compilation_over_lax")
"""The benchmarks of which steps are listed: ratios of times."""

Values = dict[tuple[str, str], float]
"""Values by benchmark, as `Layers.track_time_over_lax`, and by the name of a layer, a scheme or a network."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds what is recorded of a commit.

    Args:
      commit: full hash.
      label: what the commit brought.
      values: values that it has; gaps are left out.
    """

    commit: str
    label: str
    values: Values

    def mean(self, benchmark: str, names: Iterable[str]) -> float | None:
        """Returns the geometric mean of a benchmark's values of some names; None if one of them is missing."""
        values = [self.values.get((benchmark, name)) for name in names]
        if not values or None in values:
            return None
        return math.exp(sum(math.log(value) for value in values) / len(values))


def values_of(content: dict[str, Any]) -> Values:
    """Returns the values in a file of asv's results."""
    values: Values = {}
    for benchmark, (column, parameters, *_) in content["results"].items():
        names = [name.strip("'") for name in parameters[0]]
        for name, value in zip(names, column or [], strict=False):
            if value is not None and not math.isnan(value):
                values[benchmark.removeprefix("tracked."), name] = value
    return values


def records(results: Path = RESULTS, machine: str = MACHINE) -> list[Record]:
    """Returns the records of the labelled commits, from the oldest on."""
    labels = json.loads((results / "capabilities.json").read_text())
    paths = {commit: list((results / machine).glob(f"{commit[:8]}-*.json")) for commit in labels}
    return [
        Record(commit, label, values_of(json.loads(paths[commit][0].read_text())))
        for commit, label in labels.items()
        if paths[commit]
    ]


def largest_steps(history: list[Record], count: int = 10) -> list[tuple[float, Record, tuple[str, str], float, float]]:
    """Returns the largest falls between two commits: how many times, the later commit, the value's key, both values."""
    steps = [
        (before.values[key] / after.values[key], after, key, before.values[key], after.values[key])
        for before, after in itertools.pairwise(history)
        for key in before.values.keys() & after.values.keys()
        if key[0].split(".")[1] in TIMES
    ]
    return sorted(steps, key=lambda step: -step[0])[:count]


COLUMNS: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "layers / lax": ("Layers.track_time_over_lax", None),
    "layers / PyTorch": ("Layers.track_time_over_torch", None),
    "121 to 22 / dense": ("Schemes.track_time_over_exact", ("11x11 filter as 11x1, 1x11: 121 to 22",)),
    "25 to 18 / dense": ("Schemes.track_time_over_exact", ("5x5 as two 3x3: 25 to 18",)),
    "MobileNetV2 / lax": ("Accelerated.track_time_over_lax", ("MobileNetV2",)),
    "ResNet-50 / lax": ("Accelerated.track_time_over_lax", ("ResNet-50",)),
    "substituted / lax": ("Substituted.track_time_over_lax", ("four layers",)),
}
"""The columns of the table: a benchmark, and the names whose geometric mean is shown, or all."""


def table(history: list[Record]) -> str:
    """Returns the table of commits in Markdown."""
    lines = ["| commit | what it brought | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    keys = dict.fromkeys(key for record in history for key in record.values)
    columns = [
        (benchmark, names or tuple(name for other, name in keys if other == benchmark))
        for benchmark, names in COLUMNS.values()
    ]
    for record in history:
        means = [record.mean(benchmark, names) for benchmark, names in columns]
        cells = ["" if mean is None else f"{mean:.2g}" if mean < 1 else f"{mean:.2f}" for mean in means]
        lines.append(f"| `{record.commit[:8]}` | {record.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prints the largest steps."""
    for times, record, (benchmark, name), before, after in largest_steps(records(), 40):
        print(f"{times:6.1f}x  {record.commit[:8]} {record.label:42s} {benchmark}, {name}: {before:.3g} to {after:.3g}")


if __name__ == "__main__":
    main()
