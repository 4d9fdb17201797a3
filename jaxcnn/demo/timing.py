"""First calls of the demo's functions, and the words of its reports about timing."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich.progress

#: Description of the timing for the readers of a report.
HOW_TIMED = (
    "Timed on this machine in one process: the functions compared run in turn, a block of calls at a time, each "
    "call waited for with block_until_ready; compilation and first calls are left out. A figure is the median over "
    "the blocks of the best call of each."
)


def compile_all(
    functions: Mapping[str, Callable[[], Any]], bars: rich.progress.Progress, label: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the seconds of each function's first call, which compiles the function, and the result of the call.

    Args:
      functions: functions without arguments, by name.
      bars: progress bars, one of which shows the calls.
      what: words for the functions in the bar's description.
    """
    seconds, results = {}, {}
    for name, function in bars.track(functions.items(), description=f"Compiling {label}"):
        start = time.perf_counter()
        results[name] = jax.block_until_ready(function())
        seconds[name] = time.perf_counter() - start
    return seconds, results
