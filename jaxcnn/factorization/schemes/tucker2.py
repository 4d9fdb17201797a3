"""`tucker2`: a kernel as 1x1, a smaller one of its window, 1x1, by higher-order orthogonal iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import grouped_kernel, merged_link
from jaxcnn.factorization.numerics.ranks import check_rank, chosen_tolerance
from jaxcnn.layout import Layout

_SWEEPS = 30
_SETTLED = 1e-4  # gain of a sweep, relative to the squared error, below which the iteration ends

Ranks = tuple[int, int]
Links = tuple[np.ndarray, np.ndarray, np.ndarray]


def tucker2(
    kernel: Any,
    *,
    ranks: int | Sequence[int] | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""A kernel as 1x1 from I to R channels, one of its window from R to S, and 1x1 from S to O.

    $K[w] \approx U C[w] V$, matrix products over channels: Tucker's decomposition of the two channel axes. It starts
    from the leading singular vectors of each unfolding and improves them in turn (HOOI): a local minimum, never worse
    than the start, whose error is at most $\sqrt 2$ times the best. It takes fewer multiplications than the kernel
    where $I R + k R S + S O < k I O$ for k taps.

    Args:
      kernel: `(*window, I / feature_group_count, O)` with one or more window axes, or as `layout` says.
      ranks: (R, S) of each group, or one int for both. Full ranks, which are exact, if neither ranks nor tolerance is
        given: $\min(I, k O)$ and $\min(O, k I)$.
      tolerance: relative error allowed, norm(chain - kernel) / norm(kernel). The pair of ranks with the fewest weights
        that meets it is taken: up to 60 pairs are tried, the likeliest first, which for a dozen channels are all that
        may; down to 4 for kernels of more than 250,000 weights.
      feature_group_count: number of groups of the kernel; each is decomposed by itself, all at the same ranks.
      layout: how `kernel` is to be read: None (HWIO), a string such as `"NCHW"` (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups, of `(1, ..., 1, I, R)`, `(*window, R, S)` and
      `(1, ..., 1, S, O)` in each group.

    Raises:
      ValueError: a rank or tolerance out of range; both ranks and tolerance; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> sobel = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]).reshape(3, 3, 1, 1)
      >>> mixing = jnp.outer(jnp.arange(1.0, 5.0), jnp.arange(1.0, 4.0)).reshape(1, 1, 4, 3)     # 4 channels to 3
      >>> chain = tucker2(sobel * mixing, ranks=1)
      >>> [link.shape for link in chain.kernels], float(chain.relative_error(sobel * mixing)) < 1e-6
      ([(1, 1, 4, 1), (3, 3, 1, 1), (1, 1, 1, 3)], True)

    References:
      Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications", 2016.
      De Lathauwer, De Moor and Vandewalle, "On the best rank-1 and rank-(R1, R2, ..., RN) approximation of
      higher-order tensors", 2000. `tensorly.decomposition.partial_tucker` on the channel axes.
    """
    operation = "tucker2"
    blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
    dtype = np.asarray(kernel).dtype
    groups, *window, in_features, out_features = blocks.shape
    tensor = blocks.reshape(groups, -1, in_features, out_features)  # (G, k, I, O)
    error = chosen_tolerance(operation, "ranks", ranks, tolerance, 3, dtype)
    basis = leading_bases(tensor)
    full = full_ranks(tensor.shape)
    if error is not None:
        first, second = np.ogrid[1 : full[0] + 1, 1 : full[1] + 1]
        links = cheapest(tensor, basis, error, weights(tensor.shape, first, second))
    elif ranks is None:
        links = iterated(tensor, basis, full)
    else:
        pair = tuple(ranks) if isinstance(ranks, Sequence) else (ranks, ranks)
        if len(pair) != 2:
            raise ValueError(f"{operation}: ranks must be an int or a pair of ints, got {ranks!r}")
        wanted = (
            check_rank(operation, "ranks[0]", pair[0], full[0]),
            check_rank(operation, "ranks[1]", pair[1], full[1]),
        )
        links = iterated(tensor, basis, wanted)
    first, core, last = _evened(*links)
    ones = [1] * len(window)
    shaped = (
        first.reshape(groups, *ones, in_features, -1),
        core.reshape(groups, *window, *core.shape[-2:]),
        last.reshape(groups, *ones, -1, out_features),
    )
    return KernelChain(tuple(merged_link(link, dtype) for link in shaped), (groups,) * 3)


def full_ranks(shape: Sequence[int]) -> Ranks:
    """The ranks beyond which nothing is gained, of a (G, k, I, O) tensor."""
    _, taps, in_features, out_features = shape
    return min(in_features, taps * out_features), min(out_features, taps * in_features)


def leading_bases(tensor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular vectors of both unfoldings of (G, k, I, O), leading ones first: (G, I, I) and (G, O, O)."""
    return _leading(np.moveaxis(tensor, 2, 1)), _leading(np.moveaxis(tensor, 3, 1).conj())


def _leading(unfolded: np.ndarray) -> np.ndarray:
    """Left singular vectors of (G, n, ...), all n of them, leading ones first."""
    matrix = unfolded.reshape(*unfolded.shape[:2], -1)
    _, vectors = np.linalg.eigh(matrix @ np.swapaxes(matrix.conj(), 1, 2))
    return vectors[..., ::-1]


def truncation_errors(tensor: np.ndarray, basis: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Squared error of the start at all ranks, relative to the tensor: (I, O), entry [R - 1, S - 1]."""
    core = _core(tensor, *basis)
    energy = np.square(np.abs(core)).sum((0, 1))  # of each pair of channels, (I, O)
    total = energy.sum() or 1.0
    # Left out are all rows after R, and of the rows before it the columns after S: sums of positive terms only.
    rows = np.append(np.cumsum(energy.sum(1)[::-1])[::-1][1:], 0.0)
    columns = np.cumsum(energy[:, ::-1], axis=1)[:, ::-1]
    columns = np.concatenate([columns[:, 1:], np.zeros((len(energy), 1))], axis=1)
    return (rows[:, None] + np.cumsum(columns, axis=0)) / total


def weights(shape: Sequence[int], first: Any, second: Any) -> Any:
    """Number of weights in each group of a (G, k, I, O) tensor's chain, at those ranks."""
    _, taps, in_features, out_features = shape
    return in_features * first + taps * first * second + second * out_features


def _core(tensor: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(G, k, I, O) in the bases (G, I, R) and (G, O, S): (G, k, R, S)."""
    return np.swapaxes(left.conj(), 1, 2)[:, None] @ (tensor @ right[:, None])


def iterated(
    tensor: np.ndarray, basis: tuple[np.ndarray, np.ndarray], ranks: Ranks
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (G, I, R), C (G, k, R, S) and V (G, S, O) by higher-order orthogonal iteration from the leading vectors."""
    left, right = basis[0][..., : ranks[0]], basis[1][..., : ranks[1]]
    total = np.square(np.abs(tensor)).sum()
    kept = np.square(np.abs(_core(tensor, left, right))).sum()
    for _ in range(_SWEEPS if ranks != full_ranks(tensor.shape) else 0):
        left = _leading(np.moveaxis(tensor @ right[:, None], 2, 1))[..., : ranks[0]]
        inner = np.swapaxes(left.conj(), 1, 2)[:, None] @ tensor  # (G, k, R, O)
        right = _leading(np.moveaxis(inner, 3, 1).conj())[..., : ranks[1]]
        before, kept = kept, np.square(np.abs(inner @ right[:, None])).sum()
        if kept - before <= _SETTLED * (total - kept):
            break
    return left, _core(tensor, left, right), np.swapaxes(right.conj(), 1, 2)


def cheapest(tensor: np.ndarray, basis: tuple[np.ndarray, np.ndarray], tolerance: float, costs: np.ndarray) -> Links:
    """The links of the ranks with the least cost that meet a tolerance.

    Every pair whose start meets it does. Of cheaper ones the iteration has to say, the likeliest first: for small
    kernels all those are tried that the singular values leave possible, for large ones a few.

    Args:
      tensor: (G, k, I, O).
      basis: `leading_bases` of it.
      tolerance: relative error allowed.
      costs: (R, S), up to the full ranks; infinite for pairs that are not wanted.
    """
    limit = tolerance**2
    starts = truncation_errors(tensor, basis)[: costs.shape[0], : costs.shape[1]]
    meets = starts <= limit
    meets[-1, -1] = True
    found = _argmin(np.where(meets, costs, np.inf))
    links = iterated(tensor, basis, _ranks(found))
    ratio = _squared_error(tensor, links) / starts[found] if starts[found] > 0 else 1.0
    # Less than what one unfolding alone leaves out is never left: these bound the pairs worth a try from below.
    possible = (starts[:, -1:] <= limit) & (starts[-1:, :] <= limit) & (costs < costs[found])
    for _ in range(_attempts(tensor)):
        if not possible.any():
            break
        likely = possible & (ratio * starts <= limit)  # if the iteration gains there what it gained here
        tried = (
            _argmin(np.where(likely, costs, np.inf)) if likely.any() else _argmin(np.where(possible, starts, np.inf))
        )
        attempt = iterated(tensor, basis, _ranks(tried))
        square = _squared_error(tensor, attempt)
        ratio = square / starts[tried]
        if square <= limit:
            links = attempt
            possible &= costs < costs[tried]
        else:
            possible[: tried[0] + 1, : tried[1] + 1] = False
    return links


def most_exact(tensor: np.ndarray, basis: tuple[np.ndarray, np.ndarray], cost: float, costs: np.ndarray) -> Links:
    """The links of the least error among the ranks, at least one pair, whose `costs` (R, S) are at most `cost`.

    The likeliest pairs first, as in `cheapest`.
    """
    affordable = costs <= cost
    starts = truncation_errors(tensor, basis)[: costs.shape[0], : costs.shape[1]]
    bounds = np.maximum(starts[:, -1:], starts[-1:, :])
    # Only pairs that no affordable pair exceeds in both ranks.
    larger = np.logical_or.accumulate(np.logical_or.accumulate(affordable[::-1, ::-1], 0), 1)[::-1, ::-1]
    possible = affordable.copy()
    possible[:-1] &= ~larger[1:]
    possible[:, :-1] &= ~larger[:, 1:]
    best: Links | None = None
    lowest = np.inf
    for _ in range(_attempts(tensor)):
        possible &= bounds < lowest
        if not possible.any():
            break
        tried = _argmin(np.where(possible, starts, np.inf))
        possible[tried] = False
        attempt = iterated(tensor, basis, _ranks(tried))
        square = _squared_error(tensor, attempt)
        if square < lowest:
            best, lowest = attempt, square
    if best is None:
        raise ValueError(f"tucker2: no pair of ranks costs {cost:g} or less")
    # Of equally exact ones the cheapest: a kernel of low rank needs no more.
    cheapest_start = _argmin(np.where(starts <= lowest + 1e-14, costs, np.inf))
    equal = bool(costs[cheapest_start] <= cost and starts[cheapest_start] <= lowest + 1e-14)
    return iterated(tensor, basis, _ranks(cheapest_start)) if equal else best


def _attempts(tensor: np.ndarray) -> int:
    # An attempt takes a millisecond for 8 to 12 channels at 3 x 3, and half a second for 512 to 512.
    return int(np.clip(1_000_000 // tensor.size, 4, 60))


def _argmin(values: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(np.argmin(values), values.shape)
    return int(row), int(column)


def _ranks(index: tuple[int, int]) -> Ranks:
    return index[0] + 1, index[1] + 1


def _squared_error(tensor: np.ndarray, links: Links) -> float:
    """Relative to the tensor's square; 0 for a tensor of zeros."""
    missing = tensor - links[0][:, None] @ links[1] @ links[2][:, None]
    return float(np.square(np.abs(missing)).sum() / (np.square(np.abs(tensor)).sum() or 1.0))


def _evened(first: np.ndarray, core: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same product, the whole norm in three equal factors, the norm of each channel between them shared evenly."""
    norm = np.linalg.norm(core) or 1.0
    core = core / norm
    rows = np.linalg.norm(core, axis=(1, 3), keepdims=True)  # (G, 1, R, 1), where first's columns have norm 1
    scale = np.sqrt(np.where(rows > 0, rows, 1.0))
    first, core = first * scale[:, 0].swapaxes(1, 2), core / scale
    columns = np.linalg.norm(core, axis=(1, 2), keepdims=True)  # (G, 1, 1, S), where last's rows have norm 1
    scale = np.sqrt(np.where(columns > 0, columns, 1.0))
    share = norm ** (1 / 3)
    return share * first, share * core / scale, share * last * scale[:, 0].swapaxes(1, 2)
