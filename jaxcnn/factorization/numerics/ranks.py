"""Checks of ranks and tolerances, and the rank that a tolerance or the noise asks for."""

from __future__ import annotations

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.geometry import whole_number


def check_rank(operation: str, name: str, rank: Any, largest: int | None) -> int:
    """Returns the rank as an int, and refuses one below 1 or above `largest`; None sets no upper limit."""
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
    """Returns the tolerance as a float, and refuses a negative one."""
    value = check_number(f"{operation}: tolerance", tolerance)
    if not value >= 0:
        raise ValueError(f"{operation}: tolerance must not be negative, got {tolerance!r}")
    return value


def check_number(name: str, number: Any) -> float:
    """Returns an option as a float, and refuses what is no number."""
    try:
        return float(number)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {number!r}") from None
    except OverflowError:
        raise ValueError(f"{name} is too large") from None


def check_seed(seed: Any) -> int:
    """Returns a seed as an int, and refuses what NumPy's generators do not take."""
    return whole_number("seed", seed, 0)


def chosen_tolerance(operation: str, name: str, rank: Any, tolerance: Any, links: int, dtype: Any) -> float | None:
    """Returns the relative error that a fit may leave before its links are rounded; None without a tolerance.

    A rank and a tolerance together are refused.

    Args:
      operation, name: Names of the caller and of its rank option in error texts.
      rank, tolerance: Options of the caller.
      links: Number of links that are rounded.
      dtype: Dtype that the links are rounded to.
    """
    if tolerance is None:
        return None
    if rank is not None:
        raise ValueError(f"{operation}: give {name} or tolerance, not both, got {rank!r} and {tolerance!r}")
    return tolerance_before_rounding(check_tolerance(operation, tolerance), links, dtype)


def tolerance_before_rounding(tolerance: float, links: int, dtype: Any) -> float:
    """Returns the relative error that a fit may leave, so that its rounded links still meet the tolerance.

    The error of a fit and those of rounding are independent, so their squares add up.
    """
    rounding = float(jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).eps) / 2
    return math.sqrt(max(tolerance**2 - links * rounding**2, 0.0))


def smallest_rank(singular_values: np.ndarray, tolerance: float) -> int:
    r"""Returns the smallest R with $\sqrt{\sum_{r>R} s_r^2} \le$ tolerance $\cdot \lVert s \rVert$, at least 1.

    Args:
      singular_values: Singular values of each group, (G, n), descending. All groups have one rank together.
      tolerance: Relative error allowed, of all groups together.
    """
    return int(np.argmax(truncation_errors(singular_values) <= tolerance)) + 1


def truncation_errors(singular_values: np.ndarray) -> np.ndarray:
    """Returns the relative error of truncating to rank 1, 2, ..., n, (n,), of all groups of (G, n) together."""
    energy = np.square(singular_values).sum(0)
    # The sums start at the small end, so that tiny tails are not lost.
    discarded = np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0)
    return np.sqrt(discarded / (energy.sum() or 1.0))


def evbmf_rank(singular_values: np.ndarray, rows: int, columns: int) -> int:
    r"""Returns the number of singular values that stand out of noise, 0 or more, by empirical variational Bayes.

    With L <= M the sides, $\alpha = L / M$ and noise of variance $\sigma^2$, those with
    $s_h^2 > M \sigma^2 (1 + \tau) (1 + \alpha / \tau)$ stay, where $\tau$ solves $\Phi(\tau) + \Phi(\tau / \alpha) = 0$
    with $\Phi(z) = \log(z + 1) / z - 1/2$. The variance is the one that minimises the free energy.

    Args:
      singular_values: Singular values of the matrix, (min(rows, columns),), descending.
      rows, columns: Shape of the matrix.

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
        # log(squares) does not depend on the variance and is left out, so that singular values may be 0.
        x = squares / variance
        signals = x[x > threshold]
        t = 0.5 * (signals - 1 - alpha + np.sqrt((signals - 1 - alpha) ** 2 - 4 * alpha))
        gain = np.log1p(t) + alpha * np.log1p(t / alpha) - t
        return float(x.sum() + short * np.log(variance) + gain.sum())

    # More components than this cannot be told from noise, so the others bound its variance from below.
    max_rank = min(math.ceil(short / (1 + alpha)) - 1, short - 1)
    highest = squares.sum() / short
    lowest = max(squares[max_rank] / threshold, squares[max_rank:].mean(), 1e-12 * highest)
    # The energy has kinks and may have several minima, so the search starts from the best point of a grid.
    grid = np.geomspace(min(lowest, highest), highest, 200)
    best = int(np.argmin([free_energy(variance) for variance in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    variance = grid[best]
    if high > low:
        nearby = optimize.minimize_scalar(free_energy, bounds=(low, high), method="bounded").x
        variance = min(variance, nearby, key=free_energy)
    return int((squares > threshold * variance).sum())
