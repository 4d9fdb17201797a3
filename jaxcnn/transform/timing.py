"""Times of calls that take turns, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 25
"""Blocks of calls for each function, of which the median is taken."""
_BLOCK_SECONDS = 0.02
"""Longest block aimed at, unless a single call takes longer."""
_SECONDS_BEFORE_BAR = 2.0

Progress = bool | Callable[[float, float], Any]
"""A bar on a terminal or none; or a function that is told how many steps are done, and of how many."""


def seconds_of(call: Callable[[], Any], count: int) -> float:
    """Mean seconds of so many calls, each of which waits for its results."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def medians(calls: Mapping[str, Callable[[], Any]], end: float, advance: Callable[[float], None]) -> dict[str, float]:
    """Median seconds of a call of each function, over blocks that take turns until the time is up."""
    seconds = {name: seconds_of(call, 1) for name, call in calls.items()}
    block = min(_BLOCK_SECONDS, max(end - time.perf_counter(), 0.0) / len(calls) / _FEWEST_ROUNDS)
    counts = {name: max(1, round(block / max(each, 1e-6))) for name, each in seconds.items()}
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(_MOST_ROUNDS):
        if number >= _FEWEST_ROUNDS and time.perf_counter() > end:
            break
        # Every other round in the opposite order, so that none always follows the same neighbour.
        for name in list(calls)[:: 1 if number % 2 == 0 else -1]:
            blocks[name].append(seconds_of(calls[name], counts[name]))
        advance(0)
    return {name: float(np.median(times)) for name, times in blocks.items()}


@contextmanager
def bar(title: str, total: int, wanted: Progress) -> Iterator[Callable[[float], None]]:
    """Yields a function that counts what is done, and shows it on a terminal once it takes long, or tells a caller."""
    if callable(wanted):
        tell, done = wanted, 0.0

        def add(steps: float) -> None:
            nonlocal done
            done += steps
            # A search may take more steps than it could announce.
            tell(done, max(float(total), done))

        tell(0.0, float(total))
        yield add
        return
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        wanted = False
    if not wanted or not (console := Console(stderr=True)).is_terminal:
        yield lambda done: None
        return
    bars = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bars.add_task(title, total=total)
    start = time.perf_counter()

    def advance(done: float) -> None:
        bars.advance(task, done)
        # A search may take more steps than it could announce.
        bars.update(task, total=max(total, bars.tasks[0].completed))
        if not bars.live.is_started and time.perf_counter() - start > _SECONDS_BEFORE_BAR:
            bars.start()

    try:
        yield advance
    finally:
        bars.stop()
