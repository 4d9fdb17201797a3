"""Fits the cost model's coefficients to measured layers: `python -m benchmarks.choice.fit FILE`, of `measure`.

Prints the coefficients as they stand in `jaxcnn/lowering/costs.py`. They are not negative, and make the sum of the
squared relative errors of the estimates least, an estimate above the measured time counted relative to itself.
With `--judge` it prints instead what the choice of a method costs on these layers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from jaxcnn.lowering.choice import METHODS, choose
from jaxcnn.lowering.spec import ConvSpec, spec_from_plain

from ..shared.timing import geometric_mean
from .layers import short

ESTIMATED = ("native", "shift", "matmul")
"""The methods that have terms."""
ROUNDS = 30
DIGITS = 3

Layer = tuple[str, ConvSpec, dict[str, float]]
"""A family, a layer of it, and milliseconds by method."""


def layers(path: Path) -> list[Layer]:
    """Returns the measured layers of a file."""
    records = json.loads(path.read_text(encoding="utf-8"))["layers"]
    return [(record["family"], spec_from_plain(record["spec"]), record["milliseconds"]) for record in records]


def coefficients(measured: Iterable[Layer]) -> dict[str, dict[str, float]]:
    """Returns nanoseconds of each term by method."""
    measured = list(measured)
    fitted = {}
    for method in ESTIMATED:
        pairs = [(METHODS[method].terms(spec), times[method]) for _, spec, times in measured if method in times]
        pairs = [(terms, 1e6 * time) for terms, time in pairs if terms is not None]
        names = list(dict.fromkeys(name for terms, _ in pairs for name in terms))
        relative = np.array([[terms.get(name, 0.0) / time for name in names] for terms, time in pairs])
        scale = relative.max(axis=0)
        relative /= scale
        weights = np.ones(len(pairs))
        for _ in range(ROUNDS):
            solution, _ = nnls(relative * weights[:, None], weights)
            weights = 1 / np.maximum(relative @ solution, 1.0)
        fitted[method] = {
            name: float(f"{value:.{DIGITS}g}") for name, value in zip(names, solution / scale, strict=True)
        }
    return fitted


def costs_by_family(measured: Iterable[Layer]) -> dict[str, list[tuple[float, ConvSpec, str, str]]]:
    """Returns for each family the layers with the chosen method's time over the best one's, and both methods."""
    table: dict[str, list[tuple[float, ConvSpec, str, str]]] = {}
    for family, spec, times in measured:
        chosen, best = choose(spec, "auto", "cpu").method, min(times, key=lambda name: times[name])
        # A method that was not measured, as its program is too large, is as slow as the slowest.
        ratio = times.get(chosen, max(times.values())) / times[best]
        table.setdefault(family, []).append((ratio, spec, chosen, best))
    return table


def judge(measured: Sequence[Layer]) -> None:
    """Prints a line for each family: what the choice costs in the geometric mean, and where it costs most."""
    for family, rows in costs_by_family(measured).items():
        worst, spec, chosen, best = max(rows, key=lambda row: row[0])
        mean = geometric_mean(ratio for ratio, *_ in rows)
        print(f"{family:16} {len(rows):3} {mean:.3f} {worst:.2f} {spec.role} {short(spec)}: {chosen}, best {best}")


def main(arguments: list[str] | None = None) -> None:
    """Fits, or judges."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice.fit", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="measured layers")
    parser.add_argument("--judge", action="store_true", help="print what the choice costs on these layers")
    options = parser.parse_args(arguments)
    if options.judge:
        judge(layers(options.file))
        return
    lines: list[Any] = ["NANOSECONDS: dict[str, dict[str, float]] = {"]
    for method, terms in coefficients(layers(options.file)).items():
        lines.append(f'    "{method}": {{')
        lines += [f'        "{name}": {value!r},' for name, value in terms.items()]
        lines.append("    },")
    print("\n".join([*lines, "}"]))


if __name__ == "__main__":
    sys.exit(main())
