"""Fits the cost model's coefficients to measured layers: `python -m benchmarks.choice.fit --write`.

The program writes the coefficients into `jaxcnn/lowering/costs.py`, or prints them. The coefficients are not negative.
They minimize a robust sum of squared logarithms of estimate over time on the layers of `results/seed0*.json`. With
`--judge` the program instead prints the cost of the choice of a method on the layers of `results/seed1*.json`, which
the fit does not use.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from scipy.optimize import least_squares, nnls

from jaxcnn import native as library
from jaxcnn.lowering import costs
from jaxcnn.lowering.choice import METHODS, choose
from jaxcnn.lowering.spec import ConvSpec, spec_from_plain

from ..shared.timing import geometric_mean
from .layers import short

RESULTS = Path(__file__).parent / "results"
FITTED, UNSEEN = sorted(RESULTS.glob("seed0*.json")), sorted(RESULTS.glob("seed1*.json"))
"""Files of measured layers: those that the coefficients are fitted to, and those that only judge the choice."""
WITH_LIBRARY = ("native", "winograd", "per_group")
"""Methods whose programs depend on the compiled library. The others are fitted to measurements without the library."""
FIRST, LAST = "native", "per_group"
"""The method that is fitted first, whose time of a call others use, and the last, which uses others' estimates."""
MIN_WEIGHT = 0.25
"""Least weight of a measurement in the fit."""
DIGITS = 3
"""Significant digits of a coefficient."""


class MeasuredLayer(NamedTuple):
    """Holds one measured layer.

    Args:
      family: name of the layer's family.
      spec: the convolution.
      milliseconds: time of each method.
      native: flag, True for a measurement with the compiled library.
    """

    family: str
    spec: ConvSpec
    milliseconds: dict[str, float]
    native: bool


def layers(path: Path) -> list[MeasuredLayer]:
    """Returns the measured layers of a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        MeasuredLayer(record["family"], spec_from_plain(record["spec"]), record["milliseconds"], content["native"])
        for record in content["layers"]
    ]


def measured_library(layer: Any) -> AbstractContextManager[object]:
    """Returns a context in which the compiled library is available if it was in the measurement of a layer."""
    return mock.patch.object(library, "is_available", return_value=layer.native)


class Sample(NamedTuple):
    """Holds one measurement of a method.

    Args:
      terms: counts of the layer.
      nanoseconds: time of the method.
      weight: weight in the fit, smaller for a method that takes many times as long as the best one.
    """

    terms: costs.Terms
    nanoseconds: float
    weight: float


def samples(method: str, measured: Iterable[MeasuredLayer]) -> list[Sample]:
    """Returns the measurements that a method is fitted to."""
    selected = []
    for layer in measured:
        if method in layer.milliseconds and layer.native <= (method in WITH_LIBRARY):
            with measured_library(layer):
                terms = METHODS[method].terms(layer.spec)
            time = layer.milliseconds[method]
            weight = max(min(layer.milliseconds.values()) / time, MIN_WEIGHT)
            if terms is not costs.NEVER:
                selected.append(Sample(terms, 1e6 * time, weight))
    return selected


def fit_method(measured: Sequence[Sample]) -> dict[str, float]:
    """Returns the fitted nanoseconds of each term of a method."""
    names = sorted(
        {name for terms, *_ in measured for name, count in terms.items() if count} - {costs.KNOWN, costs.CLEARING}
    )
    relative = np.array([[terms.get(name, 0.0) / time for name in names] for terms, time, _ in measured])
    known = np.array([terms.get(costs.KNOWN, 0.0) / time for terms, time, _ in measured])
    weights = np.array([weight for *_, weight in measured])
    scale = relative.max(axis=0)
    relative /= scale
    start, _ = nnls(relative * weights[:, None], weights * np.maximum(1 - known, 0.0))

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        return weights * np.log(known + relative @ np.exp(logarithms))

    def jacobian(logarithms: np.ndarray) -> np.ndarray:
        parts = relative * np.exp(logarithms)
        return weights[:, None] * parts / (known + parts.sum(axis=1))[:, None]

    starts = (np.maximum(start, 0.01), np.full(len(names), 0.3 / len(names)), np.full(len(names), 0.3))
    fits = [least_squares(residuals, np.log(values), jac=jacobian, loss="soft_l1", f_scale=0.5) for values in starts]
    solution = np.exp(min(fits, key=lambda fit: fit.cost).x)
    rounded = {name: float(f"{value:.{DIGITS}g}") for name, value in zip(names, solution / scale, strict=True)}
    return {name: value for name, value in rounded.items() if value * scale[names.index(name)] > 1e-3}


def coefficients(measured: Sequence[MeasuredLayer]) -> dict[str, dict[str, float]]:
    """Returns the fitted nanoseconds of each term, by method."""
    fitted: dict[str, dict[str, float]] = {}
    for method in sorted(METHODS, key=lambda method: (method != FIRST, method == LAST)):
        with mock.patch.dict(costs.NANOSECONDS, fitted):
            fitted[method] = fit_method(samples(method, measured))
    return fitted


class Outcome(NamedTuple):
    """Ratio of the time of the chosen method to that of the best method on a layer: the cost of the choice.

    Args:
      ratio: time of the chosen method over that of the best.
      spec: the convolution.
      chosen: method that is chosen.
      best: method that takes the least time.
    """

    ratio: float
    spec: ConvSpec
    chosen: str
    best: str


def outcomes_by_family(measured: Iterable[MeasuredLayer]) -> dict[str, list[Outcome]]:
    """Returns the cost of the choice on each layer, by family."""
    table: dict[str, list[Outcome]] = {}
    for layer in measured:
        with measured_library(layer):
            chosen = choose(layer.spec, "auto", "cpu").method
        times = layer.milliseconds
        best = min(times, key=lambda name: times[name])
        # A method without a measurement, whose program is too large, counts as slow as the slowest.
        ratio = times.get(chosen, max(times.values())) / times[best]
        table.setdefault(layer.family, []).append(Outcome(ratio, layer.spec, chosen, best))
    return table


def judge(measured: Sequence[MeasuredLayer]) -> None:
    """Prints a line for each family: the geometric mean of the cost of the choice, and the layer with the highest."""
    for family, rows in outcomes_by_family(measured).items():
        worst = max(rows, key=lambda row: row.ratio)
        mean = geometric_mean(row.ratio for row in rows)
        layer = f"{worst.spec.role} {short(worst.spec)}: {worst.chosen}, best {worst.best}"
        print(f"{family:16} {len(rows):3} {mean:.3f} {worst.ratio:.2f} {layer}")


def table_text(name: str, fitted: dict[str, dict[str, float]]) -> str:
    """Returns the coefficients as Python text for the variable of this name in `costs.py`."""
    lines = [f"{name}: dict[str, dict[str, float]] = {{"]
    for method, terms in fitted.items():
        lines.append(f'    "{method}": {{')
        lines += [f'        "{name}": {value!r},' for name, value in terms.items()]
        lines.append("    },")
    return "\n".join([*lines, "}\n"])


def write_table(name: str, fitted: dict[str, dict[str, float]], path: Path | None) -> None:
    """Writes the coefficients in place of a variable's old ones in a file of Python, or prints them without a file."""
    text = table_text(name, fitted)
    if path is None:
        print(text, end="")
        return
    before, rest = path.read_text(encoding="utf-8").split(f"\n{name}: dict", 1)
    path.write_text(f"{before}\n{text}" + rest.split("\n}\n", 1)[1], encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Fits the coefficients, or judges the choice."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice.fit", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="measured layers in place of the committed ones")
    parser.add_argument("--judge", action="store_true", help="print what the choice of a method costs on these layers")
    parser.add_argument("--write", action="store_true", help="write the coefficients into costs.py")
    options = parser.parse_args(arguments)
    files = options.files or (UNSEEN if options.judge else FITTED)
    if options.judge:
        for path in files:
            print(path.name)
            judge(layers(path))
        return
    fitted = coefficients([layer for path in files for layer in layers(path)])
    write_table("NANOSECONDS", fitted, Path(costs.__file__) if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
