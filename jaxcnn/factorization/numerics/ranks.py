"""How large a rank must be."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_rank(operation: str, name: str, rank: Any, largest: int | None) -> int:
    """A rank between 1 and the largest that makes sense, if there is one."""
    try:
        value = operator.index(rank)
    except TypeError:
        raise TypeError(f"{operation}: {name} must be an int, got {rank!r}") from None
    if largest is None and value < 1:
        raise ValueError(f"{operation}: {name} must be at least 1, got {value}")
    if largest is not None and not 1 <= value <= largest:
        raise ValueError(f"{operation}: {name} must be between 1 and {largest}, the full rank, got {value}")
    return value


def check_tolerance(operation: str, tolerance: Any) -> float:
    """A relative error that is not negative."""
    try:
        value = float(tolerance)
    except (TypeError, ValueError):
        raise TypeError(f"{operation}: tolerance must be a number, got {tolerance!r}") from None
    if not value >= 0:
        raise ValueError(f"{operation}: tolerance must not be negative, got {tolerance!r}")
    return value


def chosen_tolerance(operation: str, name: str, rank: Any, tolerance: Any, links: int, dtype: Any) -> float | None:
    """The tolerance, checked, that is left to the fit, or None; a rank and a tolerance together are refused."""
    if tolerance is None:
        return None
    if rank is not None:
        raise ValueError(f"{operation}: give {name} or tolerance, not both, got {rank!r} and {tolerance!r}")
    return without_rounding(check_tolerance(operation, tolerance), links, dtype)


def without_rounding(tolerance: float, links: int, dtype: Any) -> float:
    """What a relative error leaves to a fit whose links are then rounded: 0.003 goes to two of bfloat16.

    Rounding knows nothing of the fit's error, so that their squares add up.
    """
    rounding = float(jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).eps) / 2
    return math.sqrt(max(tolerance**2 - links * rounding**2, 0.0))


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


def evbmf_rank(singular_values: np.ndarray, rows: int, columns: int) -> int:
    r"""The number of singular values that stand out of noise, by empirical variational Bayes; it may be 0.

    With L <= M the sides, $\alpha = L / M$ and noise of variance $\sigma^2$, those with
    $s_h^2 > M \sigma^2 (1 + \tau) (1 + \alpha / \tau)$ stay, where $\tau$ solves $\Phi(\tau) + \Phi(\tau / \alpha) = 0$
    with $\Phi(z) = \log(z + 1) / z - 1/2$. The variance is the one that minimises the free energy.

    Args:
      singular_values: (min(rows, columns),), descending.
      rows, columns: shape of the matrix.

    References:
      Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
      factorization", 2013.
    """
    from scipy import optimize

    short, long = sorted((rows, columns))
    alpha = short / long
    squares = np.square(singular_values) / long
    if squares.sum() == 0:
        return 0

    def phi(z: float) -> float:
        return float(np.log1p(z)) / z - 0.5

    tau = optimize.brentq(lambda t: phi(t) + phi(t / alpha), 1e-9, 100.0)
    threshold = (1 + tau) * (1 + alpha / tau)

    def free_energy(variance: float) -> float:
        # Terms that do not depend on the variance, log(squares), are left out: singular values of 0 are no trouble.
        x = squares / variance
        kept = x[x > threshold]
        t = 0.5 * (kept - 1 - alpha + np.sqrt((kept - 1 - alpha) ** 2 - 4 * alpha))
        gain = np.log1p(t) + alpha * np.log1p(t / alpha) - t
        return float(x.sum() + short * np.log(variance) + gain.sum())

    # At most this many components can be told from noise: the rest bounds its variance from below.
    most = min(math.ceil(short / (1 + alpha)) - 1, short - 1)
    highest = squares.sum() / short
    lowest = max(squares[most] / threshold, squares[most:].mean(), 1e-12 * highest)
    # The energy has kinks and may have several minima: the best of a grid, and then the best near it.
    grid = np.geomspace(min(lowest, highest), highest, 200)
    best = int(np.argmin([free_energy(variance) for variance in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    variance = grid[best]
    if high > low:
        nearby = optimize.minimize_scalar(free_energy, bounds=(low, high), method="bounded").x
        variance = min(variance, nearby, key=free_energy)
    return int((squares > threshold * variance).sum())
