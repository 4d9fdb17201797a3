"""jaxcnn beside plain lax, Flax, PyTorch, ONNX Runtime and OpenVINO (SciPy and OpenCV for image filters): `make peers`.

Layer by layer, of named networks and of the seeded families, and whole networks as they are and accelerated. Each
library's calls run in blocks that take turns, since thread pools that take turns call by call slow each other down. All
run in one process, but for "without library": jaxcnn in a process of its own that has no native library. Every figure
is the median of the blocks' best calls; ratios are jaxcnn's time over that of the same in the other library. What is
not installed is left out. MB is memory for what is neither argument nor result; the first call is tracing, compiling
and running. The last column of a layer is the share of the machine's own ceilings, measured at the start: the larger of
operations over its matrix product's rate and bytes over its copying rate, divided by the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from ..choice.families import FAMILIES as SEEDED_FAMILIES
from ..choice.families import ROLES as SEEDED_ROLES
from ..choice.families import family
from ..choice.layers import short
from ..shared.environment import keep_to_processors, native_available, processors, torch_or_none
from ..shared.layers import FAMILIES
from ..shared.networks import NETWORKS
from ..shared.timing import Statistic, geometric_mean
from . import families, layers, networks, runtimes

NETWORKS_GROUP = "networks"
SEEDED = {f"seeded {name}": name for name in SEEDED_FAMILIES}
"""The groups of layers that are drawn, and the family of each."""
ROLES = ("forward", "gradient")
_LONGER = 10  # a network's calls take as many times longer than a layer's


def measure_layers(
    groups: Iterable[str], roles: Iterable[str], seconds: float, statistic: Statistic = statistics.median
) -> Iterator[dict[str, Any]]:
    """Yields a record for each layer and role. Where there is nothing to measure, no ceiling is measured either."""
    work = [(group, layer, role) for group in groups for layer in FAMILIES[group] for role in roles]
    work = [(group, layer, role) for group, layer, role in work if (group, role) != ("filter", "gradient")]
    if work:
        ceilings = layers.ceilings()
    for group, layer, role in _tracked(work, "layers"):
        figures = layers.measure(layer, role, seconds, *ceilings, statistic)
        yield {"group": group, "role": role, "layer": layer.name_and_shape, **figures}


def measure_families(
    groups: Iterable[str],
    roles: Iterable[str],
    seed: int,
    count: int,
    seconds: float,
    statistic: Statistic = statistics.median,
) -> Iterator[dict[str, Any]]:
    """Yields a record for each layer of the seeded families, `count` of each group and role."""
    work = [
        (group, role, spec)
        for group in groups
        for role in SEEDED_ROLES
        if ("forward" if role == _forward_role(group) else "gradient") in roles
        for spec in family(SEEDED[group], seed, count, (role,))
    ]
    if work:
        ceilings = layers.ceilings()
    for group, role, spec in _tracked(work, "seeded layers"):
        figures = families.measure(SEEDED[group], spec, seconds, *ceilings, statistic)
        title = "forward" if role == _forward_role(group) else f"gradient by the {_BY[role]}"
        yield {"group": group, "role": title, "layer": short(spec), **figures}


def _forward_role(group: str) -> str:
    return "input" if SEEDED[group] == "transposed" else "output"


_BY = {"input": "image", "output": "image", "kernel": "kernel"}


def measure_networks(
    names: Iterable[str],
    batches: Iterable[int],
    roles: Iterable[str],
    seconds: float,
    statistic: Statistic = statistics.median,
) -> Iterator[dict[str, Any]]:
    """Yields a record for each network, batch and role."""
    work = [(name, batch, role) for name in names for batch in batches for role in roles]
    for name, batch, role in _tracked(work, "networks"):
        size = NETWORKS[name].size
        figures = networks.measure(NETWORKS[name], batch, role, seconds, statistic)
        yield {"group": NETWORKS_GROUP, "role": role, "layer": f"{name} {batch}x{size}x{size}x3", **figures}


def _tracked(work: list[Any], what: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    return track(work, f"Measuring {what}", console=Console(stderr=True)) if work else ()


def report(records: list[dict[str, Any]], console: Any) -> None:
    """Prints a table for each group and role, with the geometric means of the ratios."""
    from rich.table import Table

    for group, role in dict.fromkeys((record["group"], record["role"]) for record in records):
        rows = [record for record in records if (record["group"], record["role"]) == (group, role)]
        peers = list(dict.fromkeys(name for row in rows for name in row["milliseconds"] if name != "jaxcnn"))
        ratios = {f"/ {peer}": [_ratio(row["milliseconds"], peer) for row in rows] for peer in peers}
        columns = {f"{name} ms": [f"{row['milliseconds'][name]:.3f}" for row in rows] for name in ("jaxcnn", *peers)}
        columns |= _formatted(ratios)
        columns |= {f"{name} MB": [f"{row['megabytes'][name]:.1f}" for row in rows] for name in ("jaxcnn", "lax")}
        first = {"first / lax": [_ratio(row["first_seconds"], "lax") for row in rows]}
        for name in ("jaxcnn", "lax"):
            columns[f"{name} first s"] = [f"{row['first_seconds'][name]:.2f}" for row in rows]
        columns |= _formatted(first)
        ratios |= first
        if group != NETWORKS_GROUP:
            columns["roofline"] = [f"{row['roofline']:.0%}" for row in rows]
        means = {name: f"{geometric_mean(values):.2f}" for name, values in ratios.items()}
        table = Table(title=f"{group}, {role}", title_justify="left")
        table.add_column("network" if group == NETWORKS_GROUP else "layer", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right")
        for row, values in zip(rows, zip(*columns.values(), strict=True), strict=True):
            table.add_row(row["layer"], *values)
        table.add_section()
        table.add_row("geometric mean", *(means.get(name, "") for name in columns))
        console.print(table)


def _ratio(values: dict[str, float], peer: str) -> float:
    return values["jaxcnn"] / values[peer]


def _formatted(columns: dict[str, list[float]]) -> dict[str, list[str]]:
    return {name: [f"{value:.2f}" for value in values] for name, values in columns.items()}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.splitlines()[0])
    groups = [*FAMILIES, *SEEDED, NETWORKS_GROUP]
    parser.add_argument("--group", action="append", choices=groups, help="only this group; may be repeated, as all")
    parser.add_argument("--role", action="append", choices=ROLES, help="only this direction")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="only this of the networks")
    parser.add_argument("--batch", action="append", type=int, help="images for a network at once (1 and 8)")
    parser.add_argument("--seed", type=int, default=1, help="seed for the drawn layers")
    parser.add_argument("--count", type=int, default=4, help="drawn layers of each family and role")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="for each layer and direction; ten times for networks"
    )
    parser.add_argument("--json", help="also write the records to this file, as they come")
    parser.add_argument("--busy", action="store_true", help="best blocks in place of medians, where other programs run")
    parser.add_argument("--threads", type=int, default=processors(), help="threads, and processors, of all libraries")
    options = parser.parse_args(arguments)
    keep_to_processors(options.threads)
    statistic = min if options.busy else statistics.median
    if options.busy:  # read when PyTorch is imported
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    chosen, roles = options.group or groups, options.role or ROLES
    records: list[dict[str, Any]] = []
    named = measure_layers([group for group in chosen if group in FAMILIES], roles, options.seconds, statistic)
    drawn = [group for group in chosen if group in SEEDED]
    seeded = measure_families(drawn, roles, options.seed, options.count, options.seconds, statistic)
    names = (options.network or NETWORKS) if NETWORKS_GROUP in chosen else ()
    whole = measure_networks(names, options.batch or (1, 8), roles, options.seconds * _LONGER, statistic)
    for record in itertools.chain(named, seeded, whole):
        records.append(record)
        if options.json:  # after each: a whole run takes an hour, and may be interrupted
            Path(options.json).write_text(json.dumps(records, indent=1))
    console = Console(width=max(Console().width, 220))
    console.print(f"jax {jax.__version__}, {'torch ' + torch_or_none().__version__ if torch_or_none() else 'no torch'}")
    console.print(f"jaxcnn's native library is {'' if native_available() else 'not '}here")
    if NETWORKS_GROUP in chosen and "forward" in roles:
        for reason in runtimes.missing().values():
            console.print(reason, markup=False)  # it has brackets
    report(records, console)


if __name__ == "__main__":
    sys.exit(main())
