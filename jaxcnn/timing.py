"""The one timer of the library: functions that take turns, block by block, and the median over the blocks.

A ratio of two functions that are measured in turn says more than two times: what slows the machine slows both.
The file imports nothing of jaxcnn, so that benchmarks can take it from one commit to measure another.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

REST_SECONDS = 0.01
"""Calls that begin a block and are not counted: the threads of the library that ran before come to rest meanwhile."""
COUNTED_SECONDS = 0.005
"""Calls of a block that are counted, where a call is short."""
LONG_CALL_SECONDS = 0.1
"""A call that takes longer is a block by itself: threads that come to rest are nothing to it."""
MIN_COUNTED_CALLS, MAX_COUNTED_CALLS = 3, 50
MIN_ROUNDS, MAX_ROUNDS = 3, 25

Clock = Callable[[], float]


def block_seconds(
    functions: Mapping[str, Callable[[], Any]],
    seconds: float = math.inf,
    *,
    rounds: int | None = None,
    hopeless: float = math.inf,
    clock: Clock | None = None,
    after_round: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Returns the seconds of the best call of each block, for each function; the functions' blocks take turns.

    A block is 10 ms of calls that are not counted, at least one, and then three calls that are, or as many as 5 ms
    hold. A function whose call takes longer than 0.1 s has blocks of a single call, and so has every function where
    `seconds` do not hold one call of each. Every other round goes through the functions in the opposite order, so that
    none always follows the same neighbour.

    Args:
      functions: functions of no arguments, by name; their results are waited for. With `hopeless` they must have been
        called before, or the time to compile them would count.
      seconds: time for all blocks, of which each function has 3 to 25.
      rounds: number of blocks of each function, whatever time they take.
      hopeless: times of the fastest function's call from which a function has a single block of one or two calls.
      clock: seconds by which a call is timed, `time.perf_counter` by default; `time.process_time` leaves out what other
        programs take of a processor.
      after_round: a function that is called after each round, for a progress bar.

    Raises:
      ValueError: `rounds` is less than 1.
    """
    if rounds is not None and rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    clock = clock or time.perf_counter
    once: dict[str, float] = {}
    for name, function in functions.items():
        first = _seconds(function, clock)
        # A first call is slower than those after it, but not by so much.
        is_slow = bool(once) and first > 4 * hopeless * min(once.values())
        once[name] = first if is_slow else min(first, _seconds(function, clock))
    limit = hopeless * max(min(once.values(), default=0.0), 1e-9)
    blocks = {name: [call] if call > limit else [] for name, call in once.items()}
    once = {name: call for name, call in once.items() if call <= limit}
    out_of_time = sum(once.values()) > seconds
    single = {name for name, call in once.items() if out_of_time or call > LONG_CALL_SECONDS}
    counts = {name: 1 if name in single else _counted_calls(call) for name, call in once.items()}
    if rounds is None:
        rest_seconds = {name: 0.0 if name in single else max(call, REST_SECONDS) for name, call in once.items()}
        block = sum(rest_seconds[name] + counts[name] * call for name, call in once.items())
        rounds = int(np.clip(seconds / max(block, 1e-9), MIN_ROUNDS, MAX_ROUNDS))
    for number in range(rounds):
        for name in list(once)[:: 1 if number % 2 == 0 else -1]:
            if name not in single:
                _rest(functions[name])
            blocks[name].append(min(_seconds(functions[name], clock) for _ in range(counts[name])))
        after_round()
    return blocks


def median_seconds(
    functions: Mapping[str, Callable[[], Any]], seconds: float = math.inf, **options: Any
) -> dict[str, float]:
    """Returns the seconds of one call of each function: the median over the blocks of `block_seconds`.

    Args:
      functions: functions of no arguments, by name.
      seconds: time for all blocks.
      **options: the options of `block_seconds`.
    """
    return {name: statistics.median(times) for name, times in block_seconds(functions, seconds, **options).items()}


def _counted_calls(call: float) -> int:
    """Returns how many calls of a block are counted where one takes `call` seconds."""
    return int(np.clip(COUNTED_SECONDS / max(call, 1e-9), MIN_COUNTED_CALLS, MAX_COUNTED_CALLS))


def _rest(function: Callable[[], Any]) -> None:
    """Calls the function for as long as threads need to come to rest, at least once."""
    start = time.perf_counter()
    while True:
        jax.block_until_ready(function())
        if time.perf_counter() - start > REST_SECONDS:
            return


def _seconds(function: Callable[[], Any], clock: Clock) -> float:
    """Returns the seconds of one call, whose result is waited for."""
    start = clock()
    jax.block_until_ready(function())
    return clock() - start
