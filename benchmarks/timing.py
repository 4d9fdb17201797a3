"""What the comparison with other libraries measures with."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


@functools.cache
def torch_or_none() -> Any:
    """PyTorch, or None where it is not installed; imported when first needed, since asv imports all files here."""
    try:
        import torch
    except ImportError:
        return None
    return torch


_REST = 0.01
"""Seconds of calls that are not counted before those that are."""
_COUNTED = 0.005
"""Seconds of calls that are counted in a block, where a call is short."""


def block_milliseconds(
    functions: dict[str, Callable[[], Any]],
    seconds: float,
    hopeless: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the milliseconds of the best call of each block, for each function; the functions' blocks take turns.

    A block is calls that are not counted, at least one and 10 ms of them, in which the threads of the library before
    come to rest, and then those that are: three, or as many as 5 ms hold. Where one call of each takes longer than all
    of `seconds`, it is a single call: the threads are then nothing to it.

    Args:
      functions: functions of no arguments, which wait for their results.
      seconds: time for all blocks.
      hopeless: times of the fastest function's call from which a function has a single block of one or two calls.
      clock: seconds by which a call is timed; `time.process_time` leaves out what other programs take of a processor.
    """
    once: dict[str, float] = {}
    for name, function in functions.items():
        first = _seconds(function, clock)
        # A first call is slower than the others, but not by so much.
        slow = once and first > 4 * hopeless * min(once.values())
        once[name] = first if slow else min(_seconds(function, clock) for _ in range(2))
    limit = hopeless * min(once.values())
    times = {name: [1e3 * call] if call > limit else [] for name, call in once.items()}
    functions = {name: function for name, function in functions.items() if not times[name]}
    once = {name: once[name] for name in functions}
    long = sum(once.values()) > seconds
    calls = {name: 1 if long else int(np.clip(_COUNTED / call, 3, 50)) for name, call in once.items()}
    block = sum(max(call, _REST) + calls[name] * call for name, call in once.items())
    rounds = int(np.clip(seconds / block, 3, 25))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            while not long:
                function()
                if time.perf_counter() - start > _REST:
                    break
            times[name].append(1e3 * min(_seconds(function, clock) for _ in range(calls[name])))
    return times


def _seconds(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


Statistic = Callable[[list[float]], float]


def milliseconds(
    functions: dict[str, Callable[[], Any]], seconds: float, statistic: Statistic = statistics.median
) -> dict[str, float]:
    """Returns the median, or another statistic, of the blocks of `block_milliseconds`, for each function."""
    return {name: statistic(values) for name, values in block_milliseconds(functions, seconds).items()}


def geometric_mean(values: Iterable[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, values)))


@dataclasses.dataclass(frozen=True)
class Program:
    """A function under `jax.jit` that has been called once.

    Args:
      call: computes it again and waits.
      first_seconds: what the first call took: tracing, compiling, running.
      megabytes: memory for what is neither argument nor result.
    """

    call: Callable[[], Any]
    first_seconds: float
    megabytes: float


def program(function: Callable, *args: Any) -> Program:
    """A function of these arguments as a program."""
    jitted = jax.jit(function)
    start = time.perf_counter()
    jax.block_until_ready(jitted(*args))
    seconds = time.perf_counter() - start
    # The same program, not compiled again; it outlives `jax.clear_caches`.
    compiled = jitted.lower(*args).compile()
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return Program(lambda: jax.block_until_ready(compiled(*args)), seconds, megabytes)
