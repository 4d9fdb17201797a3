"""Tucker's decomposition of the two channel axes by higher-order orthogonal iteration: the numerical core of `tucker2`.

A tensor (G, k, I, O), whose k matrices are the taps of a window, is written as U (G, I, R), a core C (G, k, R, S) and
V (G, S, O), so that each tap is nearly U C V.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_MAX_SWEEPS = 30
_MIN_GAIN = 1e-4
"""Fall of the squared error in one sweep, relative to that error, below which the iteration ends."""

Ranks = tuple[int, int]
Bases = tuple[np.ndarray, np.ndarray]
Links = tuple[np.ndarray, np.ndarray, np.ndarray]


def full_ranks(shape: Sequence[int]) -> Ranks:
    """Returns the smallest ranks at which every (G, k, I, O) tensor is exact."""
    _, taps, in_features, out_features = shape
    return min(in_features, taps * out_features), min(out_features, taps * in_features)


def leading_bases(tensor: np.ndarray) -> Bases:
    """Returns singular vectors of both unfoldings of (G, k, I, O), leading ones first: (G, I, I) and (G, O, O)."""
    return _leading(np.moveaxis(tensor, 2, 1)), _leading(np.moveaxis(tensor, 3, 1).conj())


def _leading(unfolded: np.ndarray) -> np.ndarray:
    """Returns all left singular vectors (G, n, n) of (G, n, ...), leading ones first."""
    matrix = unfolded.reshape(*unfolded.shape[:2], -1)
    _, vectors = np.linalg.eigh(matrix @ np.swapaxes(matrix.conj(), 1, 2))
    return vectors[..., ::-1]


def start_errors(tensor: np.ndarray, bases: Bases) -> np.ndarray:
    """Returns the squared relative error of the truncated bases at all ranks: (I, O), entry [R - 1, S - 1]."""
    energy = np.square(np.abs(_core(tensor, *bases))).sum((0, 1))  # of each pair of channels, (I, O)
    total = energy.sum() or 1.0
    # The error is the energy of the rows after R, and of the columns after S in the other rows. All terms are positive.
    rows = np.append(np.cumsum(energy.sum(1)[::-1])[::-1][1:], 0.0)
    columns = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
    columns = np.concatenate([columns[:, 1:], np.zeros((len(energy), 1))], axis=1)
    return (rows[:, None] + np.cumsum(columns, axis=0)) / total


def weight_counts(shape: Sequence[int]) -> np.ndarray:
    """Returns the number of weights in each group of a (G, k, I, O) tensor's chain, for all pairs up to full ranks."""
    _, taps, in_features, out_features = shape
    full = full_ranks(shape)
    first, second = np.ogrid[1 : full[0] + 1, 1 : full[1] + 1]
    return in_features * first + taps * first * second + second * out_features


def _core(tensor: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns (G, k, I, O) in the bases (G, I, R) and (G, O, S): (G, k, R, S)."""
    return np.swapaxes(left.conj(), 1, 2)[:, None] @ (tensor @ right[:, None])


def decompose(tensor: np.ndarray, bases: Bases, ranks: Ranks) -> Links:
    """Returns U (G, I, R), C (G, k, R, S) and V (G, S, O), found by orthogonal iteration from the leading vectors."""
    left, right = bases[0][..., : ranks[0]], bases[1][..., : ranks[1]]
    total = np.square(np.abs(tensor)).sum()
    energy = np.square(np.abs(_core(tensor, left, right))).sum()
    for _ in range(_MAX_SWEEPS if ranks != full_ranks(tensor.shape) else 0):
        left = _leading(np.moveaxis(tensor @ right[:, None], 2, 1))[..., : ranks[0]]
        inner = np.swapaxes(left.conj(), 1, 2)[:, None] @ tensor  # (G, k, R, O)
        right = _leading(np.moveaxis(inner, 3, 1).conj())[..., : ranks[1]]
        before, energy = energy, np.square(np.abs(inner @ right[:, None])).sum()
        if energy - before <= _MIN_GAIN * (total - energy):
            break
    return left, _core(tensor, left, right), np.swapaxes(right.conj(), 1, 2)


def cheapest(tensor: np.ndarray, bases: Bases, tolerance: float, costs: np.ndarray) -> Links:
    """Returns the links of the ranks with the least cost that meet a tolerance.

    A pair of ranks meets the tolerance if its truncated bases do. Cheaper pairs have to be decomposed, the most
    promising first: of small kernels all pairs that the singular values leave possible, of large ones a few.

    Args:
      tensor: Tensor (G, k, I, O).
      bases: Bases of the tensor, from `leading_bases`.
      tolerance: Relative error allowed.
      costs: Cost of each pair of ranks, (R, S), up to the full ranks; infinite for pairs that are not allowed.
    """
    limit = tolerance**2
    starts = start_errors(tensor, bases)[: costs.shape[0], : costs.shape[1]]
    meets = starts <= limit
    meets[-1, -1] = True
    best = _argmin(np.where(meets, costs, np.inf))
    links = decompose(tensor, bases, _ranks(best))
    ratio = _squared_error(tensor, links) / starts[best] if starts[best] > 0 else 1.0
    # The error of a pair is at least that of either unfolding truncated alone, which rules pairs out.
    possible = (starts[:, -1:] <= limit) & (starts[-1:, :] <= limit) & (costs < costs[best])
    for _ in range(_max_attempts(tensor)):
        if not possible.any():
            break
        likely = possible & (ratio * starts <= limit)  # if the iteration gains as much as in the last attempt
        index = (
            _argmin(np.where(likely, costs, np.inf)) if likely.any() else _argmin(np.where(possible, starts, np.inf))
        )
        attempt = decompose(tensor, bases, _ranks(index))
        square = _squared_error(tensor, attempt)
        ratio = square / starts[index]
        if square <= limit:
            links = attempt
            possible &= costs < costs[index]
        else:
            possible[: index[0] + 1, : index[1] + 1] = False
    return links


def most_exact(tensor: np.ndarray, bases: Bases, cost: float, costs: np.ndarray) -> Links:
    """Returns the links of the least error among the ranks whose `costs` (R, S) are at most `cost`.

    As in `cheapest`, the most promising pairs are decomposed first.
    """
    affordable = costs <= cost
    starts = start_errors(tensor, bases)[: costs.shape[0], : costs.shape[1]]
    bounds = np.maximum(starts[:, -1:], starts[-1:, :])
    # The pairs that remain are those that no affordable pair exceeds in both ranks.
    larger = np.logical_or.accumulate(np.logical_or.accumulate(affordable[::-1, ::-1], 0), 1)[::-1, ::-1]
    possible = affordable.copy()
    possible[:-1] &= ~larger[1:]
    possible[:, :-1] &= ~larger[:, 1:]
    best: Links | None = None
    lowest = np.inf
    for _ in range(_max_attempts(tensor)):
        possible &= bounds < lowest
        if not possible.any():
            break
        index = _argmin(np.where(possible, starts, np.inf))
        possible[index] = False
        attempt = decompose(tensor, bases, _ranks(index))
        square = _squared_error(tensor, attempt)
        if square < lowest:
            best, lowest = attempt, square
    if best is None:
        raise ValueError(f"tucker2: no pair of ranks costs {cost:g} or less")
    # A kernel of low rank needs no more than the cheapest of the equally exact pairs.
    smallest = _argmin(np.where(starts <= lowest + 1e-14, costs, np.inf))
    equally_exact = bool(costs[smallest] <= cost and starts[smallest] <= lowest + 1e-14)
    return decompose(tensor, bases, _ranks(smallest)) if equally_exact else best


def _max_attempts(tensor: np.ndarray) -> int:
    """Returns the number of pairs of ranks to decompose: fewer for larger tensors, which take longer."""
    return int(np.clip(1_000_000 // tensor.size, 4, 60))


def _argmin(values: np.ndarray) -> tuple[int, int]:
    """Returns the row and column of the least value."""
    row, column = np.unravel_index(np.argmin(values), values.shape)
    return int(row), int(column)


def _ranks(index: tuple[int, int]) -> Ranks:
    """Returns the pair of ranks at a row and column of a table of all pairs."""
    return index[0] + 1, index[1] + 1


def _squared_error(tensor: np.ndarray, links: Links) -> float:
    """Returns the squared relative error of links; 0 for a tensor of zeros."""
    difference = tensor - links[0][:, None] @ links[1] @ links[2][:, None]
    return float(np.square(np.abs(difference)).sum() / (np.square(np.abs(tensor)).sum() or 1.0))


def even_norms(links: Links) -> Links:
    """Returns links of the same product whose norms are even: those of the three links, and of each channel's sides."""
    first, core, last = links
    norm = np.linalg.norm(core) or 1.0
    core = core / norm
    rows = np.linalg.norm(core, axis=(1, 3), keepdims=True)  # (G, 1, R, 1); first's columns have norm 1
    scale = np.sqrt(np.where(rows > 0, rows, 1.0))
    first, core = first * scale[:, 0].swapaxes(1, 2), core / scale
    columns = np.linalg.norm(core, axis=(1, 2), keepdims=True)  # (G, 1, 1, S); last's rows have norm 1
    scale = np.sqrt(np.where(columns > 0, columns, 1.0))
    share = norm ** (1 / 3)
    return share * first, share * core / scale, share * last * scale[:, 0].swapaxes(1, 2)
