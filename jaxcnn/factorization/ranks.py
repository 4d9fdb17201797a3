"""How large a rank must be."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def check_rank(operation: str, name: str, rank: Any, largest: int) -> int:
    """A rank between 1 and the largest that makes sense."""
    try:
        value = operator.index(rank)
    except TypeError:
        raise TypeError(f"{operation}: {name} must be an int, got {rank!r}") from None
    if not 1 <= value <= largest:
        raise ValueError(f"{operation}: {name} must be between 1 and {largest}, the full rank, got {value}")
    return value


def check_tolerance(operation: str, tolerance: Any) -> float:
    """A relative error that is not negative."""
    value = float(tolerance)
    if not value >= 0:
        raise ValueError(f"{operation}: tolerance must not be negative, got {tolerance!r}")
    return value


def chosen_tolerance(operation: str, name: str, rank: Any, tolerance: Any) -> float | None:
    """The tolerance, checked, or None; a rank and a tolerance together are refused."""
    if tolerance is None:
        return None
    if rank is not None:
        raise ValueError(f"{operation}: give {name} or tolerance, not both, got {rank!r} and {tolerance!r}")
    return check_tolerance(operation, tolerance)


def smallest_rank(singular_values: np.ndarray, tolerance: float) -> int:
    r"""The smallest rank R with $\sqrt{\sum_{r>R} s_r^2} \le$ tolerance $\cdot \lVert s \rVert$, at least 1.

    Args:
      singular_values: (G, R), descending; R is the same for all groups and the error is that of all together.
      tolerance: relative error allowed.
    """
    energy = np.square(singular_values).sum(0)
    total = energy.sum()
    # What is left after 1, 2, ... terms; summed from the small end, so that tiny tails are not lost.
    left = np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0)
    return int(np.argmax(left <= tolerance**2 * total)) + 1
