"""Chains that one scheme can make of one kernel, from the cheapest to the most exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import chain_of_blocks, dense_blocks, grouped_kernel
from jaxcnn.factorization.numerics.ranks import tolerance_before_rounding
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import RankTable
from jaxcnn.layout import Layout
from jaxcnn.norms import relative_error

FAST_MULTIPLES = (8, 16)
"""Multiples that vector units prefer for numbers of channels."""


class GivenKernel:
    """Holds a kernel to be replaced in three forms: the user's argument, by groups, and as a chain of one link.

    Args:
      operation: Name of the caller in error texts.
      kernel, feature_group_count, layout: Arguments of the caller.
    """

    def __init__(self, operation: str, kernel: Any, feature_group_count: int, layout: Layout):
        self.operation = operation
        self.kernel = kernel
        self.layout_options: dict[str, Any] = {"feature_group_count": feature_group_count, "layout": layout}
        self.shape = self.blocks.shape
        """Shape by groups, (G, *window, I, O)."""

    @property
    def blocks(self) -> np.ndarray:
        """Returns the kernel by groups, (G, *window, I, O), in float64.

        The array is made anew at each call: kept for each layer of a network, they would take twice its parameters.
        """
        return grouped_kernel(self.operation, self.kernel, **self.layout_options)

    @cached_property
    def dense(self) -> KernelChain:
        """Returns the kernel as a chain of one link."""
        return chain_of_blocks([self.blocks], np.asarray(self.kernel).dtype)

    def error(self, chain: KernelChain) -> float:
        """Returns the chain's relative error, in float64 and without compiling a program."""
        return relative_error(dense_blocks(chain), self.blocks)


class SchemeCandidates:
    """Holds the chains of one scheme for one kernel.

    Args:
      kernel: Kernel to be replaced.
      name: Name of the scheme.
      macs: Function that returns the cost of a chain. None: the number of its weights.
      multiple: Number of which each rank must be a multiple, unless it is the full rank.
      table: Ranks and errors of the scheme. None: those of this kernel. Several kernels that must have the same rank
        share one table, with the errors of all these kernels together.
    """

    def __init__(
        self,
        kernel: GivenKernel,
        name: str,
        macs: Callable[[KernelChain], float] | None = None,
        multiple: int = 1,
        table: RankTable | None = None,
    ):
        if not isinstance(name, str) or name not in SCHEMES:
            names = ", ".join(map(repr, SCHEMES))
            raise ValueError(f"{kernel.operation}: a scheme must be one of {names}, got {name!r}")
        self.kernel = kernel
        self.name = name
        self.scheme = SCHEMES[name]
        self.refusal = self.scheme.refusal(kernel.shape)
        self.macs = macs or (lambda chain: chain.num_params)
        self.multiple = multiple
        self.ranks: list[Any] = []
        self.errors: np.ndarray | None = None
        if self.refusal is None:
            self.table = table or self.scheme.ranks(kernel.blocks)
            self._list_ranks()

    def _list_ranks(self) -> None:
        """Sets `ranks`, the allowed ranks from the cheapest on, and `errors`, the error at each rank, or None.

        Pairs that another pair beats in both cost and error are left out.
        """
        ranks, errors = self.table
        allowed = self._is_allowed(ranks)
        if self.scheme.has_pairs and errors is not None:
            # The pairs that no other pair beats in both cost and error are listed, from the cheapest on.
            order = np.lexsort((errors, self._costs.ravel()))
            order = order[allowed[order]]
            least_before = np.append(np.inf, np.minimum.accumulate(errors[order])[:-1])
            indices = order[errors[order] < least_before]
        else:
            indices = np.flatnonzero(allowed)
        self.ranks = [tuple(rank) if len(rank) > 1 else rank[0] for rank in ranks[indices].tolist()]
        self.errors = None if errors is None else errors[indices]

    @cached_property
    def _full_ranks(self) -> np.ndarray:
        """Returns the largest value of each of the scheme's ranks."""
        return self.table[0].max(0)

    def _is_allowed(self, ranks: np.ndarray) -> np.ndarray:
        """Returns the mask (N,) of the ranks (N, number of ranks) that are multiples, or full."""
        return ((ranks % self.multiple == 0) | (ranks == self._full_ranks)).all(1)

    @cached_property
    def _costs(self) -> np.ndarray:
        """Returns the costs of all pairs of ranks, (R, S). The links cost in proportion to R, to R S and to S."""
        ranks = self.table[0]
        unit_cost, first, second = (self.macs(self.shapes(pair)) for pair in ((1, 1), (2, 1), (1, 2)))
        core_cost = (first - unit_cost) + (second - unit_cost) - unit_cost
        costs = (
            (first - unit_cost - core_cost) * ranks[:, 0]
            + core_cost * ranks[:, 0] * ranks[:, 1]
            + (second - unit_cost - core_cost) * ranks[:, 1]
        )
        return costs.reshape(self._full_ranks)

    @property
    def _allowed_costs(self) -> np.ndarray:
        """Returns the costs of all pairs of ranks, infinite for those that are not allowed."""
        return np.where(self._is_allowed(self.table[0]).reshape(self._costs.shape), self._costs, np.inf)

    def at_multiples(self, multiple: int) -> SchemeCandidates:
        """Returns the candidates at the ranks that are multiples, or full."""
        return SchemeCandidates(self.kernel, self.name, self.macs, multiple, self.table)

    def for_kernel(self, kernel: GivenKernel) -> SchemeCandidates:
        """Returns candidates of the same ranks and errors for another kernel of the same shape."""
        other = copy.copy(self)
        other.kernel = kernel
        return other

    def require(self) -> SchemeCandidates:
        """Returns the candidates themselves; refuses a kernel that the scheme cannot represent."""
        self.scheme.require(self.kernel.operation, self.kernel.shape)
        return self

    def shapes(self, rank: Any) -> KernelChain:
        """Returns the chain at a rank without its numbers."""
        return self.scheme.shapes(self.kernel.shape, rank)

    def shapes_at(self, index: int) -> KernelChain:
        """Returns the chain at one of `ranks`, by its index, without its numbers."""
        return self.shapes(self.ranks[index])

    def fit(self, *, rank: Any = None, tolerance: float | None = None) -> KernelChain:
        """Returns the chain at a rank, or at the smallest rank within a tolerance."""
        return self.scheme.fit(
            self.kernel.kernel, self.kernel.shape, rank=rank, tolerance=tolerance, **self.kernel.layout_options
        )

    def error(self, chain: KernelChain) -> float:
        """Returns the chain's relative error; infinity for a chain of which no use should be made."""
        if self.scheme.is_worthless(chain, float(np.linalg.norm(self.kernel.blocks))):
            return np.inf
        return self.kernel.error(chain)

    def rank_of(self, chain: KernelChain) -> Any:
        """Returns the rank of a chain of the scheme, as its function takes it."""
        groups = chain.feature_group_counts
        widths = [link.shape[-1] // count for link, count in zip(chain.kernels, groups, strict=True)]
        number = len(self._full_ranks)
        return widths[0] if number == 1 else tuple(widths[:number])

    def round_up(self, rank: Any, multiple: int) -> Any:
        """Returns a rank, or several, rounded up to a multiple, but not above the full rank."""
        ranks = np.atleast_1d(rank)
        multiples = np.minimum(-(-ranks // multiple) * multiple, np.maximum(self._full_ranks, ranks)).tolist()
        return tuple(multiples) if isinstance(rank, tuple) else multiples[0]

    def clip_rank(self, rank: Any) -> Any:
        """Returns the rank, or a tuple for a scheme of several, with the full rank in place of larger ones."""
        full = self._full_ranks
        ranks = rank if isinstance(rank, tuple) else (rank,) * len(full)
        if len(ranks) != len(full):
            raise ValueError(
                f"{self.kernel.operation}: {self.name!r} has {len(full)} ranks for a window of "
                f"{self.kernel.shape[1:-2]}, got rank={rank}"
            )
        bounded_ranks = np.minimum(ranks, full).tolist()
        return tuple(bounded_ranks) if len(bounded_ranks) > 1 else bounded_ranks[0]

    def count_affordable(self, macs: float) -> int:
        """Returns the number of ranks, from the first on, that take at most `macs` multiply-accumulates."""
        return count_while(len(self.ranks), lambda index: self.macs(self.shapes_at(index)) <= macs)

    def cheapest_within(self, tolerance: float) -> KernelChain | None:
        """Returns the chain of the cheapest rank that meets the tolerance; None if rounding of the links exceeds it."""
        for rank in self.ranks_within(tolerance):
            chain = self.fit(rank=rank)
            if self.error(chain) <= tolerance:
                return chain
        return None

    def ranks_within(self, tolerance: float) -> list[Any]:
        """Returns the cheapest rank that meets the tolerance, or the full one; and the next, if rounding may decide."""
        bound = tolerance_before_rounding(tolerance, len(self.shapes_at(0).kernels), self.kernel.dense.dtype)
        if self.scheme.cheapest_pair is not None:
            return [self.scheme.cheapest_pair(self.kernel.blocks, bound, self._allowed_costs)]
        if self.errors is not None:
            index = int(np.argmax(np.append(self.errors[:-1] <= bound, True)))
            return self.ranks[index : index + 2]
        return [self.round_up(self.rank_of(self.fit(tolerance=tolerance)), self.multiple)]

    def smallest_within(self, tolerance: float, count: int) -> KernelChain | None:
        """Returns the chain of the smallest of the first `count` ranks whose fit meets the tolerance, by bisection."""
        if count == 0:
            return None
        # If the fit at the largest rank fails, no other fit is tried.
        best = self.fit(rank=self.ranks[count - 1])
        if self.error(best) > tolerance:
            return None
        low, high = -1, count - 1
        while high - low > 1:
            middle = (low + high) // 2
            chain = self.fit(rank=self.ranks[middle])
            if self.error(chain) <= tolerance:
                best, high = chain, middle
            else:
                low = middle
        return best

    def most_exact(self, macs: float) -> KernelChain | None:
        """Returns the chain of the least error that takes at most `macs` multiply-accumulates; None if none does."""
        count = self.count_affordable(macs)
        if count == 0:
            return None
        if self.scheme.most_exact_pair is not None:
            return self.fit(rank=self.scheme.most_exact_pair(self.kernel.blocks, macs, self._allowed_costs))
        last = count - 1
        if self.errors is not None:
            # Of equally exact ranks the smallest is taken.
            last = int(np.argmax(self.errors[:count] <= self.errors[last] + 1e-7))
        return self.fit(rank=self.ranks[last])

    def largest_within_time(self, milliseconds: Callable[[KernelChain], float], limit: float, macs: float) -> Any:
        """Returns the rank of the most multiply-accumulates, up to `macs`, whose chain meets a limit of time.

        Multiples that vector units prefer are searched by themselves too, as one may be faster than a smaller rank. The
        result is None if no rank is fast enough.
        """
        ranks: list[Any] = []
        # A user who asked for a multiple wants no other.
        multiples = FAST_MULTIPLES if self.multiple == 1 else ()
        for candidates in (self, *map(self.at_multiples, multiples)):

            def is_fast(index: int, candidates: SchemeCandidates = candidates) -> bool:
                return milliseconds(candidates.shapes_at(index)) <= limit

            count = count_while(candidates.count_affordable(macs), is_fast)
            if count:
                ranks.append(candidates.ranks[count - 1])
        return max(ranks, key=lambda rank: self.macs(self.shapes(rank)), default=None)


def count_while(size: int, holds: Callable[[int], bool]) -> int:
    """Returns the first index below `size` for which `holds` is False, else `size`, by bisection.

    `holds` must be True up to some index and False from there on.
    """
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low


def candidates_of(
    kernel: GivenKernel, names: Sequence[str], macs: Callable[[KernelChain], float]
) -> list[SchemeCandidates]:
    """Returns the candidates of each named scheme that can represent the kernel."""
    all_candidates = (SchemeCandidates(kernel, name, macs) for name in names)
    return [candidates for candidates in all_candidates if candidates.refusal is None]
