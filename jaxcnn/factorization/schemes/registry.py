"""All schemes under one form: their ranks from the cheapest on, the chains these make, the errors known beforehand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.cp_als import full_rank
from jaxcnn.factorization.numerics.svd import singular_values
from jaxcnn.factorization.schemes import tucker2 as tucker
from jaxcnn.factorization.schemes.cp import fitted
from jaxcnn.factorization.schemes.depthwise_separable import depthwise_separable
from jaxcnn.factorization.schemes.low_rank import low_rank
from jaxcnn.factorization.schemes.separable import separable
from jaxcnn.factorization.schemes.stack import stack
from jaxcnn.factorization.selection.workload import shapes_of
from jaxcnn.layout import Layout

Shape = tuple[int, ...]
"""(G, *window, I, O): of a kernel by groups."""


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way to make chains of one kernel, from rank to rank.

    Args:
      fit: the public function, or the same without its warnings.
      option: its keyword for the rank.
      refusal: why it does not do for a kernel of that shape, or None.
      chain: the shapes of the chain at a rank.
      ranks: of a kernel by groups, all ranks (N, 1), or (N, 2) where there are two and so on, and the relative error of
        each, or None where only a fit can tell. One after the other costs more, but for pairs that are any.
      pairs: whether the ranks are all pairs, in the order of a table, whose errors are upper bounds; otherwise they are
        the fits' own.
      matrices: (N, m, n) whose truncation is the scheme's, one for each of its ranks; None for a scheme of another
        kind.
      searches: whether a fit is a search, which takes seconds to minutes for large kernels.
      settings: further arguments for a kernel of that shape.
    """

    fit: Callable[..., KernelChain]
    option: str
    refusal: Callable[[Shape], str | None]
    chain: Callable[[Shape, Any], KernelChain]
    ranks: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    pairs: bool = False
    matrices: Callable[[np.ndarray], list[np.ndarray]] | None = None
    searches: bool = False
    settings: Callable[[Shape], dict[str, Any]] = lambda shape: {}


def _any_shape(shape: Shape) -> str | None:
    return None


def _parts(shape: Shape) -> tuple[int, Shape, int, int, Shape]:
    groups, *window, in_features, out_features = shape
    return groups, tuple(window), in_features, out_features, (1,) * len(window)


def _truncation_errors(matrix: np.ndarray) -> np.ndarray:
    """Relative error of rank 1, 2, ... of (N, m, n), all together."""
    energy = np.square(singular_values(matrix)).sum(0)
    left = np.append(np.cumsum(energy[::-1])[::-1][1:], 0.0)
    return np.sqrt(left / (energy.sum() or 1.0))


def _up_to(most: int) -> np.ndarray:
    return np.arange(1, most + 1)[:, None]


def _by_truncation(matrices: Callable[[np.ndarray], list[np.ndarray]]) -> Callable:
    def ranks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        errors = _truncation_errors(matrices(blocks)[0])
        return _up_to(len(errors)), errors

    return ranks


# separable: one link for each axis


def _separable_refusal(shape: Shape) -> str | None:
    window = shape[1:-2]
    return None if len(window) > 1 else f"it needs two or more window axes, and the kernel's window is {window}"


def _separable_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, ones = _parts(shape)
    widths = (in_features, *(rank if isinstance(rank, Sequence) else (rank,)), out_features)
    links = []
    for axis, size in enumerate(window):
        extent = (*ones[:axis], size, *ones[axis + 1 :])
        links.append(((*extent, widths[axis], groups * widths[axis + 1]), groups))
    return shapes_of(*links)


def _separable_matrices(blocks: np.ndarray) -> list[np.ndarray]:
    inputs_first = np.moveaxis(blocks, -2, 1)  # (G, I, *window, O)
    sizes = np.cumprod(inputs_first.shape[1:-2])[1:]
    return [inputs_first.reshape(len(blocks), size, -1) for size in sizes]


def _separable_ranks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    _, window, in_features, out_features, _ = _parts(blocks.shape)
    if len(window) == 2:
        return _by_truncation(_separable_matrices)(blocks)

    # More axes: one rank for all gaps, as far as each can take it.
    def widths(rank: int) -> tuple[int, ...]:
        found, width = [], in_features
        for axis in range(len(window) - 1):
            width = min(rank, width * window[axis], math.prod(window[axis + 1 :]) * out_features)
            found.append(width)
        return tuple(found)

    ranks = [widths(1)]
    while (wider := widths(max(ranks[-1]) + 1)) != ranks[-1]:
        ranks.append(wider)
    return np.array(ranks), None


# low_rank, depthwise_separable


def _low_rank_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, ones = _parts(shape)
    return shapes_of(((*window, in_features, groups * rank), groups), ((*ones, rank, groups * out_features), groups))


def _low_rank_matrices(blocks: np.ndarray) -> list[np.ndarray]:
    return [blocks.reshape(len(blocks), -1, blocks.shape[-1])]


def _depthwise_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, ones = _parts(shape)
    channels = groups * in_features
    return shapes_of(
        ((*window, 1, channels * rank), channels), ((*ones, in_features * rank, groups * out_features), groups)
    )


def _depthwise_matrices(blocks: np.ndarray) -> list[np.ndarray]:
    channels = len(blocks) * blocks.shape[-2]
    return [np.moveaxis(blocks, -2, 1).reshape(channels, -1, blocks.shape[-1])]


# tucker2: two ranks


def _tucker_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, ones = _parts(shape)
    first, second = rank
    return shapes_of(
        ((*ones, in_features, groups * first), groups),
        ((*window, first, groups * second), groups),
        ((*ones, second, groups * out_features), groups),
    )


def _tucker_tensor(blocks: np.ndarray) -> np.ndarray:
    return blocks.reshape(len(blocks), -1, *blocks.shape[-2:])


def _tucker_matrices(blocks: np.ndarray) -> list[np.ndarray]:
    tensor = _tucker_tensor(blocks)
    return [np.moveaxis(tensor, axis, 1).reshape(len(tensor), tensor.shape[axis], -1) for axis in (2, 3)]


def _tucker_ranks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    tensor = _tucker_tensor(blocks)
    full = tucker.full_ranks(tensor.shape)
    squares = tucker.truncation_errors(tensor, tucker.leading_bases(tensor))[: full[0], : full[1]]
    return np.indices(full).reshape(2, -1).T + 1, np.sqrt(squares.ravel())


# cp, stack: searches


def _cp_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, ones = _parts(shape)
    links = [((*ones, in_features, groups * rank), groups)]
    for axis, size in enumerate(window):
        links.append(((*ones[:axis], size, *ones[axis + 1 :], 1, groups * rank), groups * rank))
    return shapes_of(*links, ((*ones, rank, groups * out_features), groups))


def _fit_cp(
    kernel: Any,
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    return fitted(kernel, rank, tolerance, feature_group_count, layout, 0)


def _cp_ranks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return _up_to(full_rank(blocks.shape[1:])), None


def _stack_windows(window: Shape) -> list[Shape]:
    """3x3 windows in a row that make up the window, 1 on the axes that are complete."""
    return [tuple(3 if 2 * link + 1 < size else 1 for size in window) for link in range(max(window) // 2)]


def _stack_refusal(shape: Shape) -> str | None:
    window = shape[1:-2]
    if max(window) < 5 or any(size % 2 == 0 for size in window):
        return f"it needs a window of odd sizes, one of them 5 or more, and the kernel's is {window}"
    return None


def _stack_chain(shape: Shape, rank: Any) -> KernelChain:
    groups, window, in_features, out_features, _ = _parts(shape)
    sizes = _stack_windows(window)
    widths = (in_features, *(rank,) * (len(sizes) - 1), out_features)
    return shapes_of(*(((*size, a, groups * b), groups) for size, a, b in zip(sizes, widths, widths[1:], strict=False)))


def _stack_ranks(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    # At the width of the dense kernel's weights a row of two links is exact; it pays long before.
    return _up_to(math.prod(blocks.shape[1:-1])), None


SCHEMES = {
    "separable": Scheme(
        separable, "rank", _separable_refusal, _separable_chain, _separable_ranks, matrices=_separable_matrices
    ),
    "low_rank": Scheme(
        low_rank, "rank", _any_shape, _low_rank_chain, _by_truncation(_low_rank_matrices), matrices=_low_rank_matrices
    ),
    "tucker2": Scheme(
        tucker.tucker2, "ranks", _any_shape, _tucker_chain, _tucker_ranks, pairs=True, matrices=_tucker_matrices
    ),
    "depthwise_separable": Scheme(
        depthwise_separable,
        "multiplier",
        _any_shape,
        _depthwise_chain,
        _by_truncation(_depthwise_matrices),
        matrices=_depthwise_matrices,
    ),
    "cp": Scheme(_fit_cp, "rank", _any_shape, _cp_chain, _cp_ranks, searches=True),
    "stack": Scheme(
        stack,
        "features",
        _stack_refusal,
        _stack_chain,
        _stack_ranks,
        searches=True,
        settings=lambda shape: {"windows": _stack_windows(shape[1:-2])},
    ),
}
