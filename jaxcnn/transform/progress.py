"""A progress bar for searches and measurements."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_BAR_AFTER_SECONDS = 2.0

Progress = bool | Callable[..., Any]
"""True for a bar on a terminal, False for none, or a function of the number of steps done and their total.

A function that takes a third argument is also told what is being done and how long the rest will take, as text."""


class Advance(Protocol):
    """Function that adds to the number of steps done."""

    def __call__(self, steps: float, task: str = "") -> None:
        """Adds steps; `task` says what comes next, in place of what was said before."""


@contextmanager
def bar(title: str, total: int, progress: Progress) -> Iterator[Advance]:
    """Yields a function that adds to the number of steps done.

    A bar appears on a terminal once the steps take longer than two seconds.

    Args:
      title: text before the bar.
      total: number of steps expected.
      progress: flag, True for a bar, or a function, as in `Progress`.
    """
    start = time.perf_counter()
    if callable(progress):
        tell, done, title_now = progress, 0.0, title
        takes_text = _takes_text(progress)

        def add(steps: float, task: str = "") -> None:
            nonlocal done, title_now
            if not steps and not takes_text:
                return
            done += steps
            title_now = task or title_now
            # A search may take more steps than it could announce.
            all_steps = max(float(total), done)
            text = (f"{title_now}{_time_left(time.perf_counter() - start, done, all_steps)}",) if takes_text else ()
            tell(done, all_steps, *text)

        tell(0.0, float(total), *((title,) if takes_text else ()))
        yield add
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ImportError:
        progress = False
    if not progress or not (console := Console(stderr=True)).is_terminal:
        yield lambda steps, task="": None
        return
    bars = rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=30),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    row = bars.add_task(title, total=total)

    def advance(steps: float, task: str = "") -> None:
        bars.advance(row, steps)
        # A search may take more steps than it could announce.
        bars.update(row, total=max(total, bars.tasks[0].completed), description=task or bars.tasks[0].description)
        if not bars.live.is_started and time.perf_counter() - start > _BAR_AFTER_SECONDS:
            bars.start()

    try:
        yield advance
    finally:
        bars.stop()


def _takes_text(progress: Callable[..., Any]) -> bool:
    """Returns whether a function takes a third argument."""
    try:
        inspect.signature(progress).bind(0.0, 1.0, "")
    except (TypeError, ValueError):
        return False
    return True


def _time_left(elapsed: float, done: float, total: float) -> str:
    """Returns the time that the rest will take as text, if some steps are done; "" else."""
    return f", about {elapsed * (total - done) / done:.0f} s left" if 0 < done < total else ""
