"""`Scheme`: the record of one way of writing a kernel as a chain, and all that the rest of the library knows of it.

A new scheme is a new file beside this one, with the public function and its `Scheme`, and one line in `registry.py`.
`docs/contributing.md` has a complete example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.metric_svd import MetricSvd, second_moments
from jaxcnn.factorization.numerics.ranks import truncation_errors
from jaxcnn.factorization.numerics.svd import singular_values
from jaxcnn.factorization.numerics.windows import window_rows
from jaxcnn.layout import Layout

Shape = tuple[int, ...]
"""Shape of a kernel by groups, (G, *window, I, O)."""

RankTable = tuple[np.ndarray, np.ndarray | None]
"""Ranks and the relative error at each. None in place of the errors: only a fit can tell them.

The ranks are (N, 1), or (N, 2) for a scheme of two ranks, and so on. They rise in cost one after the other, except for
pairs, which may stand in any order."""

Blocks = Sequence[np.ndarray]
"""Links by groups, each (G, *window, I, O) with its own number of groups."""


@dataclasses.dataclass(frozen=True)
class LayerSamples:
    """Holds a kernel, and samples of the inputs and of the wanted outputs of its convolution, by groups.

    Args:
      kernel: Kernel of each group, (G, *window, I, O), float64.
      patches: N sampled pieces of images, at least as large as the window, (*extents, N, C), C channels of all groups.
      responses: Outputs that the convolution should have, (G, n, O).
      ridge: Weight of the kernel's own error beside that of the responses, relative to the samples' mean square.
    """

    kernel: np.ndarray
    patches: np.ndarray
    responses: np.ndarray
    ridge: float

    def rows(self, window: Shape) -> np.ndarray:
        """Returns the inputs of a window at all places of the pieces, (G, n, taps * I)."""
        return window_rows(self.patches, window, len(self.kernel))

    @cached_property
    def response_directions(self) -> np.ndarray:
        """Returns the principal directions of the responses, (G, O, O), leading ones first."""
        _, vectors = np.linalg.eigh(second_moments(self.responses))
        return vectors[..., ::-1]

    def svd(self, rows: np.ndarray, matrix: np.ndarray) -> MetricSvd:
        """Returns the decomposition of matrices (g, m, n) whose error is least for sampled rows (g, N, m)."""
        return MetricSvd(second_moments(rows), matrix, self.ridge)


def _represents_all(shape: Shape) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Scheme:
    """Holds a way to write a kernel as a chain, at any of several ranks.

    The fields after `ranks` have defaults that suit most schemes.

    Args:
      name: Name of the scheme and of its public function.
      function: Public function, or the same without its warnings. The function takes `rank_option`, `tolerance`,
        `feature_group_count` and `layout`.
      rank_option: Keyword of the function for the rank.
      shapes: Function of a shape and a rank that returns the chain without its numbers, see `KernelChain.of_shapes`.
      ranks: Function of a kernel by groups that returns its `RankTable`.
      refusal: Function of a shape that returns why the scheme cannot represent such a kernel, or None. The reason is a
        sentence about the scheme: "it needs ...".
      several_ranks: flag, True if a rank may be a tuple.
      matrices: Function of a kernel by groups that returns the matrices (N, m, n) that are truncated, one stack for
        each rank; None for a scheme that truncates none.
      is_search: flag, True if a fit is a search for a local minimum, which takes seconds to minutes for large kernels.
      options: Function of a shape that returns further arguments of the function.
      cheapest_pair, most_exact_pair: For a scheme whose ranks are all pairs (R, S), and whose table has upper bounds of
        their errors: functions of a kernel by groups, a tolerance or a cost, and the cost of each pair (R, S), that
        return the pair to take. None for other schemes, whose tables have the errors of the fits themselves.
      is_sliceable: Function of a shape that tells if a chain of two links at a rank is the beginning of the one at full
        rank, see `first_channels`.
      is_worthless: Function of a chain and the norm of its kernel that tells if no use should be made of the chain,
        however small its error.
      start: Function of `LayerSamples` that returns a function from a rank to the links at which a fit to responses
        starts. None: the fit starts at the links of the fit to the kernel.
    """

    name: str
    function: Callable[..., KernelChain]
    rank_option: str
    shapes: Callable[[Shape, Any], KernelChain]
    ranks: Callable[[np.ndarray], RankTable]
    refusal: Callable[[Shape], str | None] = _represents_all
    several_ranks: bool = False
    matrices: Callable[[np.ndarray], list[np.ndarray]] | None = None
    is_search: bool = False
    options: Callable[[Shape], dict[str, Any]] = lambda shape: {}
    cheapest_pair: Callable[[np.ndarray, float, np.ndarray], tuple[int, int]] | None = None
    most_exact_pair: Callable[[np.ndarray, float, np.ndarray], tuple[int, int]] | None = None
    is_sliceable: Callable[[Shape], bool] = lambda shape: False
    is_worthless: Callable[[KernelChain, float], bool] = lambda chain, norm: False
    start: Callable[[LayerSamples], Callable[[Any], Blocks]] | None = None

    @property
    def has_pairs(self) -> bool:
        """Returns whether the ranks are all pairs, whose errors are known as upper bounds only."""
        return self.cheapest_pair is not None

    def ranks_alone(self, blocks: np.ndarray) -> RankTable:
        """Returns the ranks of a kernel by groups without their errors, for a scheme that truncates one matrix."""
        if self.matrices is None or len(matrices := self.matrices(blocks)) != 1:
            return self.ranks(blocks)
        return all_up_to(min(matrices[0].shape[1:])), None

    def require(self, operation: str, shape: Shape) -> None:
        """Refuses a shape that the scheme cannot represent."""
        reason = self.refusal(shape)
        if reason is not None:
            scheme = "" if operation == self.name else f"{self.name!r} "
            raise ValueError(f"{operation}: {scheme}cannot represent this kernel: {reason}")

    def fit(
        self,
        kernel: Any,
        shape: Shape,
        *,
        rank: Any = None,
        tolerance: float | None = None,
        feature_group_count: int = 1,
        layout: Layout = None,
    ) -> KernelChain:
        """Returns the chain of a kernel at a rank, or at the smallest rank within a tolerance.

        Args:
          kernel: Kernel in the given layout.
          shape: Shape of the kernel by groups, (G, *window, I, O).
          rank, tolerance, feature_group_count, layout: Arguments of the public function.
        """
        return self.function(
            kernel,
            **{self.rank_option: rank},
            tolerance=tolerance,
            feature_group_count=feature_group_count,
            layout=layout,
            **self.options(shape),
        )


def split_shape(shape: Shape) -> tuple[int, Shape, int, int, Shape]:
    """Returns the groups, window, input and output channels of a (G, *window, I, O) shape, and a window of ones."""
    groups, *window, in_features, out_features = shape
    return groups, tuple(window), in_features, out_features, (1,) * len(window)


def window_along(axis: int, size: int, axes: int) -> Shape:
    """Returns a window with extent along one of several axes."""
    return tuple(size if axis == other else 1 for other in range(axes))


def all_up_to(largest: int) -> np.ndarray:
    """Returns the ranks 1, 2, ..., largest of a `RankTable`."""
    return np.arange(1, largest + 1)[:, None]


def ranks_of_truncation(matrices: Callable[[np.ndarray], list[np.ndarray]]) -> Callable[[np.ndarray], RankTable]:
    """Returns the `ranks` of a scheme that truncates one stack of matrices: all its ranks, and their exact errors."""

    def ranks(blocks: np.ndarray) -> RankTable:
        errors = truncation_errors(singular_values(matrices(blocks)[0]))
        return all_up_to(len(errors)), errors

    return ranks


def first_channels(chain: KernelChain, count: int) -> KernelChain:
    """Returns a chain of two links with the first channels of each group between them alone."""
    # In NumPy, because JAX would compile a program for each count.
    first, second = map(np.asarray, chain.kernels)
    groups = chain.feature_group_counts[-1]
    between = first.reshape(*first.shape[:-1], groups, -1)[..., :count]  # (*window, I, G, R)
    links = between.reshape(*first.shape[:-1], -1), second[..., :count, :]
    return KernelChain(tuple(map(jax.device_put, links)), chain.feature_group_counts)
