"""A progress bar for searches and measurements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_BAR_AFTER_SECONDS = 2.0

Progress = bool | Callable[[float, float], Any]
"""True for a bar on a terminal, False for none, or a function of the number of steps done and their total."""


@contextmanager
def bar(title: str, total: int, progress: Progress) -> Iterator[Callable[[float], None]]:
    """Yields a function that adds to the number of steps done.

    A bar appears on a terminal once the steps take longer than two seconds.

    Args:
      title: text before the bar.
      total: number of steps expected.
      progress: flag for a bar, or a function of the number of steps done and their total.
    """
    if callable(progress):
        tell, done = progress, 0.0

        def add(steps: float) -> None:
            nonlocal done
            done += steps
            # A search may take more steps than it could announce.
            tell(done, max(float(total), done))

        tell(0.0, float(total))
        yield add
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ImportError:
        progress = False
    if not progress or not (console := Console(stderr=True)).is_terminal:
        yield lambda steps: None
        return
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bars.add_task(title, total=total)
    start = time.perf_counter()

    def advance(steps: float) -> None:
        bars.advance(task, steps)
        # A search may take more steps than it could announce.
        bars.update(task, total=max(total, bars.tasks[0].completed))
        if not bars.live.is_started and time.perf_counter() - start > _BAR_AFTER_SECONDS:
            bars.start()

    try:
        yield advance
    finally:
        bars.stop()
