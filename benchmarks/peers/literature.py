"""Prints the tables of docs/literature.md, in Markdown: `make literature`, some five minutes.

The benchmarks are those of `asv/bench_literature.py`. Each ratio of times is the median of several measurements, each
of which compares medians over blocks of calls that take turns.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

from ..asv import bench_literature as claims
from ..asv.suite import Claim

LAYERS = (
    claims.Jaderberg2014,
    claims.Szegedy2016Stack,
    claims.Szegedy2016Pair,
    claims.Howard2017,
    claims.Lebedev2015,
    claims.Kim2016,
)
REPEATS = 5
SECONDS = 0.4  # for each measurement of a ratio
SEEDS = range(5)


def main() -> None:
    """Measures and prints."""
    import threadpoolctl

    spreads: list[float] = []
    print(f"Measured with jax {jax.__version__} on {machine()}.\n")
    print_table(
        ("paper", "claim", "layer", "times fewer MACs", "times faster than lax", "times faster than jaxcnn's exact"),
        layer_rows(spreads),
    )
    header = (
        "substitution in LeNet-5",
        "times fewer MACs",
        "times faster than lax",
        "times faster than jaxcnn's exact",
        "accuracy as replaced, %",
        "accuracy fine-tuned, %",
    )
    with threadpoolctl.threadpool_limits(1, "blas"):  # the fits are many small solves, in which threads wait
        print_table(header, digit_rows(spreads))
    print(
        f"Times: medians of {REPEATS} measurements, half of which lay within {statistics.median(spreads):.0%} of each "
        f"other (median over the ratios; at most {max(spreads):.0%}). Accuracies: means over {len(SEEDS)} seeds, ± "
        "their standard error."
    )


def layer_rows(spreads: list[float]) -> Iterable[tuple[str, ...]]:
    """Yields a row for each layer; the first one of a paper names the paper and its claim."""
    for cls in LAYERS:
        paper, claim = cls.__doc__.splitlines()[0].rstrip(".").split(": ", 1)
        for layer in cls.layers:
            benchmark = cls()
            benchmark.setup(layer)
            yield paper, claim, layer, *ratios(benchmark, (layer,), spreads)
            paper = claim = ""


def digit_rows(spreads: list[float]) -> Iterable[tuple[str, ...]]:
    """Yields a row for each substitution in the network that reads digits."""
    networks = []
    for seed in SEEDS:
        benchmark = claims.Digits()
        benchmark.seed = seed
        networks.append((benchmark, benchmark.setup_cache()))
    for name in sorted(claims.Digits.substitutions, key=lambda name: name != "dense"):
        replaced, tuned = [], []
        for benchmark, dense in networks:
            benchmark.case(dense, name)
            replaced.append(100 * benchmark.track_accuracy_replaced(dense, name))
            tuned.append(100 * benchmark.track_accuracy_fine_tuned(dense, name))
        benchmark, dense = networks[0]
        benchmark.setup(dense, name)
        yield name, *ratios(benchmark, (dense, name), spreads), with_error(replaced), with_error(tuned)


def ratios(benchmark: Claim, params: tuple, spreads: list[float]) -> tuple[str, ...]:
    """Returns multiply-accumulates and times, as texts, and adds the spread of the times to `spreads`."""
    benchmark.speedup_seconds = SECONDS
    texts = [f"{benchmark.track_macs_ratio(*params):.2f}"]
    for track in (benchmark.track_speedup_over_lax, benchmark.track_speedup_over_exact):
        values = [track(*params) for _ in range(REPEATS)]
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        spreads.append((high - low) / middle)
        texts.append(f"{middle:.2f}")
    return tuple(texts)


def with_error(values: list[float]) -> str:
    """Returns the mean and its standard error, as text."""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def print_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table in Markdown, row by row as they are measured."""
    for row in (header, ("---",) * len(header)):
        print_row(row)
    for row in rows:
        print_row(row)
    print()


def print_row(row: tuple[str, ...]) -> None:
    """Prints a row of a table in Markdown."""
    print("|", " | ".join(row), "|", flush=True)


def machine() -> str:
    """Returns the kind of machine this is."""
    described = Path("/proc/cpuinfo")
    wide = " with AVX-512" if described.exists() and "avx512f" in described.read_text() else ""
    return f"{os.cpu_count()} cores of {platform.machine()}{wide}"


if __name__ == "__main__":
    sys.exit(main())
