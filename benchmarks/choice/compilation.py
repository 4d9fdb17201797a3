"""Measures how long each method compiles, and fits the coefficients: `python -m benchmarks.choice.compilation --write`.

A measurement is the processor time to trace, lower and compile one layer of the seeded families by one method. The
choice of a method weighs this time against the time of a call, see `jaxcnn/lowering/costs.py`. `--measure` measures
again and writes `results/compilation.json`; `--write` writes the coefficients into `costs.py`. Without these options
the program prints the coefficients.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from scipy.optimize import nnls

from jaxcnn import native as library
from jaxcnn.lowering import choice, costs
from jaxcnn.lowering.choice import METHODS
from jaxcnn.lowering.spec import ConvSpec, spec_from_plain, spec_to_plain

from .families import FAMILIES, ROLES, layer
from .fit import DIGITS, FIRST, LAST, RESULTS, WITH_LIBRARY, measured_library, write_table

PATH = RESULTS / "compilation.json"
SEEDS = (2, 3)
"""Seeds for the layers: one of each family and role for each seed, with 1 and with 8 images."""
HOPELESS_RATIO = 6.0
"""Ratio of estimated times from which a method is not measured, since it is not chosen."""
REPEATS = 2
"""Number of compilations, of which the fastest counts."""


class Compilation(NamedTuple):
    """Holds the measurement of one layer.

    Args:
      spec: the convolution.
      native: flag, True for a measurement with the compiled library.
      milliseconds: processor time to compile, by method.
    """

    spec: ConvSpec
    native: bool
    milliseconds: dict[str, float]


def compile_milliseconds(spec: ConvSpec, method: str) -> float:
    """Returns the processor time to trace, lower and compile a method's program for a CPU."""
    spec = dataclasses.replace(spec, platform="cpu")
    operands = [jax.ShapeDtypeStruct(shape, np.float32) for shape in spec.operand_shapes]
    times = []
    for _ in range(REPEATS):
        jax.clear_caches()
        start = time.process_time()
        jax.jit(lambda lhs, rhs: METHODS[method].lower(lhs, rhs, spec)).lower(*operands).compile()
        times.append(1e3 * (time.process_time() - start))
    return round(min(times), 2)


def measure() -> Iterator[dict[str, Any]]:
    """Gives a record for each layer, with the compiled library and without it."""
    from rich.console import Console
    from rich.progress import track

    specs = [layer(name, seed, seed % 2, role) for seed in SEEDS for name in FAMILIES for role in ROLES]
    library.is_available()  # registers the kernels
    compile_milliseconds(specs[0], "direct")  # the first compilation of a process starts the compiler
    for spec in track(specs, "Measuring layers", console=Console(stderr=True)):
        for native in (True, False):
            with mock.patch.object(library, "is_available", return_value=native):
                methods = [name for name in METHODS if METHODS[name].refusal(spec) is None]
                estimates = {name: choice.seconds(spec, name) for name in methods}
                limit = HOPELESS_RATIO * min(estimates.values())
                times = {
                    name: compile_milliseconds(spec, name)
                    for name in methods
                    if estimates[name] < limit and (name in WITH_LIBRARY or not native)
                }
            yield {"spec": spec_to_plain(spec), "native": native, "milliseconds": times}


def read() -> list[Compilation]:
    """Returns the committed measurements."""
    content = json.loads(PATH.read_text(encoding="utf-8"))
    return [
        Compilation(spec_from_plain(record["spec"]), record["native"], record["milliseconds"])
        for record in content["layers"]
    ]


def coefficients(measured: Sequence[Compilation]) -> dict[str, dict[str, float]]:
    """Returns the fitted milliseconds of each count of a method's program, by method."""
    fitted: dict[str, dict[str, float]] = {}
    for method in sorted(METHODS, key=lambda method: (method != FIRST, method == LAST)):
        with mock.patch.dict(costs.MILLISECONDS_TO_COMPILE, fitted):
            fitted[method] = _fit_method(list(_samples(method, measured)))
    return {method: fitted[method] for method in METHODS}


def _samples(method: str, measured: Iterable[Compilation]) -> Iterator[tuple[costs.Terms, float]]:
    """Gives the counts and the milliseconds of each measurement of a method."""
    for compilation in measured:
        if method in compilation.milliseconds:
            with measured_library(compilation):
                yield METHODS[method].program(compilation.spec), compilation.milliseconds[method]


def _fit_method(samples: Sequence[tuple[costs.Terms, float]]) -> dict[str, float]:
    """Returns the coefficients, not negative, with the least sum of squared relative errors."""
    names = sorted(
        {name for counts, _ in samples for name, count in counts.items() if count} - {costs.KNOWN_TO_COMPILE}
    )
    known = np.array([counts.get(costs.KNOWN_TO_COMPILE, 0.0) / time for counts, time in samples])
    shares = np.array([[counts.get(name, 0.0) / time for name in names] for counts, time in samples])
    values, _ = nnls(shares, np.maximum(1.0 - known, 0.0))
    return {name: float(f"{value:.{DIGITS}g}") for name, value in zip(names, values, strict=True) if value > 0}


def main(arguments: list[str] | None = None) -> None:
    """Measures, or fits the coefficients."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice.compilation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--measure", action="store_true", help="measure all layers again first")
    parser.add_argument("--write", action="store_true", help="write the coefficients into costs.py")
    options = parser.parse_args(arguments)
    if options.measure:
        lines = ",\n".join(map(json.dumps, measure()))
        head = json.dumps({"jax": jax.__version__})[:-1]
        PATH.write_text(f'{head}, "layers": [\n{lines}\n]}}\n', encoding="utf-8")
    write_table("MILLISECONDS_TO_COMPILE", coefficients(read()), Path(costs.__file__) if options.write else None)


if __name__ == "__main__":
    sys.exit(main())
