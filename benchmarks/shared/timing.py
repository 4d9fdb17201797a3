"""The timer of `jaxcnn/timing.py`, and compiled programs to time.

The timer comes from the file of this checkout, not from the installed package: asv measures older commits, which have
another timer or none, and the same timer must measure all commits.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

_spec = importlib.util.spec_from_file_location(
    "benchmarks.shared.timer", Path(__file__).parents[2] / "jaxcnn/timing.py"
)
timer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(timer)

Functions = dict[str, Callable[[], Any]]
Statistic = Callable[[list[float]], float]


def block_milliseconds(functions: Functions, seconds: float, **options: Any) -> dict[str, list[float]]:
    """Returns the milliseconds of the best call of each block, for each function; options are those of the timer."""
    blocks = timer.block_seconds(functions, seconds, **options)
    return {name: [1e3 * value for value in values] for name, values in blocks.items()}


def milliseconds(functions: Functions, seconds: float, statistic: Statistic = statistics.median) -> dict[str, float]:
    """Returns the median, or another statistic, of the blocks of each function."""
    return {name: statistic(values) for name, values in block_milliseconds(functions, seconds).items()}


def speedup(ours: Callable, plain: Callable, *args: Any, seconds: float = 0.8) -> float:
    """Returns the time of `plain` over the time of `ours`: the ratio of the medians of blocks that take turns."""
    times = timer.median_seconds({"ours": lambda: ours(*args), "plain": lambda: plain(*args)}, seconds)
    return times["plain"] / times["ours"]


def geometric_mean(values: Iterable[float]) -> float:
    """Returns the geometric mean of positive values, the mean for ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds a function under `jax.jit` that has been called once.

    Args:
      call: function that runs the program again and waits for the result.
      first_seconds: seconds of the first call: tracing, compiling, running.
      megabytes: memory of the temporaries, which are neither arguments nor results.
    """

    call: Callable[[], Any]
    first_seconds: float
    megabytes: float


def compile_program(function: Callable, *args: Any) -> Program:
    """Compiles a function for these arguments, and calls it once."""
    jitted = jax.jit(function)
    start = time.perf_counter()
    jax.block_until_ready(jitted(*args))
    seconds = time.perf_counter() - start
    # This is the program compiled above, kept beyond `jax.clear_caches`.
    compiled = jitted.lower(*args).compile()
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return Program(lambda: jax.block_until_ready(compiled(*args)), seconds, megabytes)


def compile_seconds(function: Callable, *args: Any) -> float:
    """Returns the seconds to trace, lower and compile a function that JAX has not seen."""
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(function).lower(*args).compile()
    return time.perf_counter() - start
