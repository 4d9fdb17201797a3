"""Compare the speed of functions: alternating blocks of calls in one process, and the median of each.

On a shared machine the time of one call says little: clocks change, neighbours come and go, caches start cold.
A ratio of two functions measured in turn, over and over, says much more, because whatever slows the machine
slows both.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich.progress

#: How the timings of every report were taken, in the reader's words.
HOW_TIMED = (
    "Timed on this machine in one process: the functions compared run in turn, a block of calls at a time, each "
    "call waited for with block_until_ready; compilation and a first call are left out. A figure is the median "
    "over the blocks."
)


def compare(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 5,
    block_seconds: float = 0.1,
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Median seconds for one call of each function, measured in alternating blocks.

    Each function is called twice before the measurement: the first call compiles, and is left out with `compiled`;
    the second decides how many calls make a block of about `block_seconds`.  Then, `rounds` times over, each function
    runs one block; every other round goes through them in the opposite order, so that none always follows the same
    neighbour.

    Args:
      functions: name to function; a function takes no arguments, and what it returns is waited for.
      rounds: the number of blocks for each function, at least 1.
      block_seconds: the length of a block aimed at; a function slower than this is called once in each block.
      compiled: whether each function has been called before.
      clock: a function returning seconds, for tests.
      after_round: called after each round, for a progress bar.

    Returns:
      Name to seconds for one call, in the order of `functions`: the median over its blocks.

    Raises:
      ValueError: for `rounds` less than 1.

    Example:
      ``seconds = compare({"dense": lambda: dense(x), "chain": lambda: chain(x)})`` and then
      ``seconds["dense"] / seconds["chain"]`` is the speed-up.
    """
    if rounds < 1:
        raise ValueError(f"compare: rounds must be at least 1, got {rounds}")
    if not compiled:
        for function in functions.values():
            jax.block_until_ready(function())
    calls = {name: _calls_in_block(function, block_seconds, clock) for name, function in functions.items()}
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(rounds):
        order = list(functions) if round_number % 2 == 0 else list(functions)[::-1]
        for name in order:
            measured[name].append(_seconds(functions[name], calls[name], clock) / calls[name])
        after_round()
    return {name: statistics.median(blocks) for name, blocks in measured.items()}


def compile_all(
    functions: Mapping[str, Callable[[], Any]], bars: rich.progress.Progress, what: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the seconds of each function's first call, which compiles it, and its result, and shows a bar meanwhile.

    Args:
      functions: name to function; a function takes no arguments.
      bars: where progress is shown.
      what: words for what is compiled.
    """
    seconds, results = {}, {}
    for name, function in bars.track(functions.items(), description=f"Compiling {what}"):
        start = time.perf_counter()
        results[name] = jax.block_until_ready(function())
        seconds[name] = time.perf_counter() - start
    return seconds, results


def _calls_in_block(function: Callable[[], Any], block_seconds: float, clock: Callable[[], float]) -> int:
    """Returns the number of calls that fill a block, by the time of one call."""
    seconds = _seconds(function, 1, clock)
    return max(1, min(1000, round(block_seconds / max(seconds, 1e-6))))


def _seconds(function: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Seconds that this number of calls takes, each waited for."""
    start = clock()
    for _ in range(calls):
        jax.block_until_ready(function())
    return clock() - start
