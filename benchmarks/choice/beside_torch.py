"""jaxcnn and plain lax beside PyTorch, on seeded families of layers: `python -m benchmarks.choice.beside_torch`.

Every layer is computed by jaxcnn as `method="auto"` chooses, by `lax.conv_general_dilated` and its derivatives, and
by PyTorch with images in channels-last memory and two threads. Role `output` is the forward pass, `input` and `kernel`
are single gradients; in the family `transposed`, `input` is a transposed convolution's forward pass, and `output` is
the gradient by the image. Values are compared before anything is timed. Figures are medians over blocks of calls that
take turns, each of which begins with 10 ms of calls that are not counted: PyTorch's OpenMP threads look for work for
some milliseconds after a call. With `OMP_WAIT_POLICY=PASSIVE`, which `--busy` sets, the threads sleep at once. This
makes short layers slower on a machine where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.lowering.spec import ConvSpec, Role, spec_from_plain, spec_to_plain

from ..shared.arrays import relative_error
from ..shared.environment import keep_to_processors, torch_or_none
from ..shared.timing import block_milliseconds, geometric_mean
from .families import FAMILIES, ROLES, family, macs
from .layers import jaxcnn_function, lax_function, operands, program, short
from .torch_layers import as_lax, torch_function

THREADS = 2
"""Threads of PyTorch, and processors of all libraries, by default."""
HOPELESS_RATIO = 8.0
"""Ratio to the fastest library's time from which a library is timed by one or two calls and not by blocks."""
TOLERANCE = 1e-4
"""Largest relative error of jaxcnn's and PyTorch's results to lax's."""


def measure(
    name: str,
    spec: ConvSpec,
    seconds: float,
    threads: int = THREADS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the milliseconds of each block's best call, by library.

    Args:
      name: the layer's family.
      spec: the layer.
      seconds: time for the blocks of all libraries.
      threads: number of PyTorch's threads.
      clock: function that returns the seconds by which a call is timed.

    Raises:
      ArithmeticError: two libraries have different results.
    """
    arrays = operands(spec)
    calls = {"jaxcnn": program(jaxcnn_function(spec), arrays), "lax": program(lax_function(spec), arrays)}
    results = {form: np.asarray(call()) for form, call in calls.items()}
    if torch_or_none() is not None:
        torch_or_none().set_num_threads(threads)
        calls["torch"] = torch_function(spec, *arrays, transposed=name == "transposed")
        results["torch"] = as_lax(spec, calls["torch"]())
    for form, result in results.items():
        error = relative_error(result, results["lax"])
        if not error < TOLERANCE:
            raise ArithmeticError(f"{form} and lax differ by {error:.1e}, more than {TOLERANCE:.0e}: {name} {spec}")
    return block_milliseconds(calls, seconds, hopeless=HOPELESS_RATIO, clock=clock)


def records(
    names: Sequence[str],
    roles: Sequence[Role],
    seed: int,
    count: int,
    seconds: float,
    threads: int = THREADS,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[dict[str, Any]]:
    """Yields a record for each layer: `count` layers of each family in each role."""
    from rich.console import Console
    from rich.progress import track

    work = [(name, spec) for name in names for role in roles for spec in family(name, seed, count, (role,))]
    for name, spec in track(work, "Measuring layers", console=Console(stderr=True)):
        blocks = measure(name, spec, seconds, threads, clock)
        median = {form: statistics.median(times) for form, times in blocks.items()}
        best = {form: min(times) for form, times in blocks.items()}
        yield {"family": name, "spec": spec_to_plain(spec), "milliseconds": median, "best_milliseconds": best}
        jax.clear_caches()


def report(rows: list[dict[str, Any]], console: Any, statistic: str = "milliseconds", layers: bool = False) -> None:
    """Prints a line for each family and role: geometric means, medians, and the layers at which jaxcnn does worst.

    Args:
      rows: records of layers.
      console: console of rich.
      statistic: name of the times to use, `"milliseconds"` or `"best_milliseconds"`.
      layers: flag, True for a line about each layer too.
    """
    from rich.table import Table

    names = (
        "family",
        "role",
        "layers",
        "jaxcnn/torch",
        "median",
        "worst",
        "where",
        "lax/jaxcnn",
        "median",
        "worst",
        "where",
    )
    table = Table(box=None, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in ("family", "role", "where") else "right", no_wrap=True)
    means: dict[str, list[float]] = {"torch": [], "lax": []}
    for key in dict.fromkeys((row["family"], row["spec"]["role"]) for row in rows):
        group = [row for row in rows if (row["family"], row["spec"]["role"]) == key]
        cells = [*key, str(len(group))]
        for peer in means:
            pairs = [
                (row[statistic]["jaxcnn"] / row[statistic][peer], spec_from_plain(row["spec"]))
                for row in group
                if peer in row[statistic]
            ]
            if not pairs:
                cells += [""] * 4
                continue
            mean, middle = (f(ratio for ratio, _ in pairs) for f in (geometric_mean, statistics.median))
            worst, where = max(pairs, key=lambda pair: pair[0])
            means[peer].append(mean)
            figures = [1 / figure if peer == "lax" else figure for figure in (mean, middle, worst)]
            cells += [*(f"{figure:.2f}" for figure in figures), short(where)]
        table.add_row(*cells)
    total = geometric_mean(means["torch"]) if means["torch"] else float("nan")
    table.add_row("all", "", str(len(rows)), f"{total:.2f}", "", "", "", f"{1 / geometric_mean(means['lax']):.2f}")
    if layers:
        lines = Table(box=None)
        columns = ("family", "role", "layer", "million MACs", "jaxcnn ms", "torch ms", "lax ms", "jaxcnn/torch")
        for name in columns:
            lines.add_column(name, justify="left" if name in ("family", "role", "layer") else "right", no_wrap=True)
        for row in rows:
            spec, times = spec_from_plain(row["spec"]), row[statistic]
            milliseconds = [times.get(form, float("nan")) for form in ("jaxcnn", "torch", "lax")]
            cells = [row["family"], spec.role, short(spec), f"{macs(spec) / 1e6:.1f}"]
            cells += [f"{value:.3f}" for value in milliseconds] + [f"{milliseconds[0] / milliseconds[1]:.2f}"]
            lines.add_row(*cells)
        console.print(lines)
    console.print(table)


def main(arguments: list[str] | None = None) -> None:
    """Measures the layers and prints the report."""
    from rich.console import Console

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice.beside_torch", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=1, help="seed for the families")
    parser.add_argument("--count", type=int, default=6, help="layers of each family in each role")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only this; may be repeated")
    parser.add_argument("--role", action="append", choices=ROLES, help="only this; may be repeated")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each layer, without compiling")
    parser.add_argument("--json", help="also write the records to this file, as they come")
    parser.add_argument("--layers", action="store_true", help="print a line for each layer too")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads, and processors, of all libraries")
    parser.add_argument(
        "--busy",
        action="store_true",
        help="where other programs run: best calls in place of medians, and PyTorch's threads sleep while they wait; "
        "with --threads 1 also processor time in place of time",
    )
    options = parser.parse_args(arguments)
    if options.busy:  # before the import of PyTorch, which reads the variable
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_to_processors(options.threads)
    # With one thread, the processor time of a call is the wall time on a machine that is not busy.
    clock = time.process_time if options.busy and options.threads == 1 else time.perf_counter
    rows: list[dict[str, Any]] = []
    names, roles = options.family or list(FAMILIES), options.role or list(ROLES)
    for row in records(names, roles, options.seed, options.count, options.seconds, options.threads, clock):
        rows.append(row)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1))
    console = Console(width=max(Console().width, 160))
    report(rows, console, "best_milliseconds" if options.busy else "milliseconds", options.layers)


if __name__ == "__main__":
    sys.exit(main())
