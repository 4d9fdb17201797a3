"""Every method, forced on every case that it supports; and the share of the cases that each one supports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxcnn.lowering import choice

METHODS = ("auto", *choice.METHODS)
"""What `method=` may be; a method that is added to the registry is tested by all tests that use this list."""

OF_ONE_GROUP = tuple(method for method in METHODS if method != "groups")
"""What `method=` may be where there is one group."""

FLOORS = {"auto": 1.0, "direct": 1.0, "shift": 0.9, "matmul": 0.9, "winograd": 0.05, "fft": 0.9, "groups": 0.2}
"""The least share of the drawn cases that a method must support; raise it when a method learns more.

Other seeds, as another release of Hypothesis may have, gave 0.94 to 1, and 0.08 to 0.29 for `winograd`: what they lack
are dilated inputs.
"""

SPREADS = ("winograd", "fft", "groups", "auto")
"""The methods in which one NaN may reach outputs that do not see it."""

TOLERANCES = {"winograd": 2e-5, "fft": 1e-4, "groups": 2e-5}
"""Error relative to the largest result in float32; those not named have `TOLERANCE`."""
TOLERANCE = 2e-6

_ENOUGH = 80  # cases, below which shares say nothing (one test run alone): a whole run draws 90
_asked: Counter[str] = Counter()
_supported: Counter[str] = Counter()


def tolerance(method: str) -> float:
    """The error of float32 results, relative to the largest one."""
    return TOLERANCES.get(method, TOLERANCE)


def by_each_method(
    function: Callable[..., Any], *args: Any, counted: bool = False, **options: Any
) -> Iterator[tuple[str, Any]]:
    """Each method's name and result, without the methods that do not support the case.

    Args:
      function: a public function that takes `method`.
      *args: its arrays.
      counted: whether the case is one of those drawn, whose shares are reported.
      **options: its other options.
    """
    results = _all_methods(function, args, options)
    for method in METHODS:
        _asked[method] += counted
        _supported[method] += counted and method in results
    yield from results.items()


def _all_methods(function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    # One program for all methods: compilation is what takes the time.
    @jax.jit
    def run(*args: Any) -> dict[str, Any]:
        results = {}
        for method in METHODS:
            try:
                results[method] = function(*args, method=method, **options)
            except ValueError as error:
                if f"method {method!r} does not support" not in str(error):
                    raise
        return results

    return run(*args)


def counts() -> dict[str, dict[str, int]]:
    """What this process has counted, for the one that adds up."""
    return {"asked": dict(_asked), "supported": dict(_supported)}


def add_counts(others: dict[str, dict[str, int]]) -> None:
    """Adds what another process has counted."""
    _asked.update(others["asked"])
    _supported.update(others["supported"])


def _shares() -> dict[str, float]:
    return {method: _supported[method] / _asked[method] for method in METHODS if _asked[method] >= _ENOUGH}


def share_report() -> list[str]:
    """One line for each method."""
    fallen = fallen_shares()
    return [
        f"method {method}: {share:.0%} of {_asked[method]} drawn cases"
        + (f", but it was {FLOORS[method]:.0%}: FAILED" if method in fallen else "")
        for method, share in _shares().items()
    ]


def fallen_shares() -> list[str]:
    """The methods that support fewer of the drawn cases than `FLOORS` says."""
    return [method for method, share in _shares().items() if share < FLOORS.get(method, 0)]
