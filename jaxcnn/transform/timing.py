"""Times of calls that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25
"""Blocks of calls for each function, of which the median is taken."""
_BLOCK_SECONDS = 0.02
"""Longest block aimed at, unless a single call takes longer."""


def seconds_of(call: Callable[[], Any], count: int) -> float:
    """Returns the mean seconds of so many calls, each of which waits for its results."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def medians(calls: Mapping[str, Callable[[], Any]], end: float, advance: Callable[[float], None]) -> dict[str, float]:
    """Returns the median seconds of a call of each function, over blocks that take turns until the time is up."""
    seconds = {name: seconds_of(call, 1) for name, call in calls.items()}
    block = min(_BLOCK_SECONDS, max(end - time.perf_counter(), 0.0) / len(calls) / _FEWEST_ROUNDS)
    counts = {name: max(1, round(block / max(first, 1e-6))) for name, first in seconds.items()}
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() > end:
            break
        # Every other round in the opposite order, so that none always follows the same neighbour.
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            blocks[name].append(seconds_of(calls[name], counts[name]))
        advance(0)
    return {name: float(np.median(times)) for name, times in blocks.items()}
