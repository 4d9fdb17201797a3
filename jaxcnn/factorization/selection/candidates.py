"""One scheme on one kernel: the chains that it can make of it, from the cheapest to the most exact."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks, grouped_kernel, merged_link
from jaxcnn.factorization.numerics.ranks import without_rounding
from jaxcnn.factorization.schemes import tucker2 as tucker
from jaxcnn.factorization.schemes.cp import CANCELLING, cancellation
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.layout import Layout

MULTIPLES = (8, 16)
"""What devices like numbers of channels to be multiples of: 5x5 over 56x56x64 as tucker2 of rank 23 takes 1.3 ms on
XLA:CPU, of rank 24 0.9."""

Table = tuple[np.ndarray, np.ndarray | None]
"""Ranks (N, number of ranks) and their relative errors (N,), or None where only a fit can tell."""


class Subject:
    """A kernel to be replaced: as it was given, by groups, and as a chain of one link."""

    def __init__(self, operation: str, kernel: Any, feature_group_count: int, layout: Layout):
        self.operation = operation
        self.kernel = kernel
        self.read = {"feature_group_count": feature_group_count, "layout": layout}
        self.blocks = grouped_kernel(operation, kernel, feature_group_count, layout)
        link = merged_link(self.blocks, np.asarray(kernel).dtype)
        self.dense = KernelChain((link,), (feature_group_count,))

    def error(self, chain: KernelChain) -> float:
        """The chain's relative error, in float64 and without a program to compile; 0 for a kernel of zeros."""
        norm = float(np.linalg.norm(self.blocks))
        return float(np.linalg.norm(dense_blocks(chain) - self.blocks)) / norm if norm else 0.0


class Family:
    """The chains of one scheme for one kernel.

    Args:
      subject: the kernel.
      name: of the scheme.
      macs: what a chain costs; the number of its weights if left out.
      multiple: of which each rank must be one, or the full rank.
      table: the scheme's ranks and errors where they are not this kernel's alone: kernels that must have one rank share
        those of all together.
    """

    def __init__(
        self,
        subject: Subject,
        name: str,
        macs: Callable[[KernelChain], float] | None = None,
        multiple: int = 1,
        table: Table | None = None,
    ):
        if name not in SCHEMES:
            known = ", ".join(map(repr, SCHEMES))
            raise ValueError(f"{subject.operation}: a scheme must be one of {known}, got {name!r}")
        self.subject = subject
        self.name = name
        self.scheme = SCHEMES[name]
        self.refusal = self.scheme.refusal(subject.blocks.shape)
        self.macs = macs or (lambda chain: chain.num_params)
        self.multiple = multiple
        self.ranks: list[Any] = []
        self.errors: np.ndarray | None = None
        if self.refusal is None:
            self.table = table or self.scheme.ranks(subject.blocks)
            self._list_ranks()

    def _list_ranks(self) -> None:
        ranks, errors = self.table
        kept = self._suits(ranks)
        if self.scheme.pairs and errors is not None:
            # Those that no other pair beats in cost and in error, from the cheapest on.
            order = np.lexsort((errors, self._costs.ravel()))
            order = order[kept[order]]
            best = np.append(np.inf, np.minimum.accumulate(errors[order])[:-1])
            chosen = order[errors[order] < best]
        else:
            chosen = np.flatnonzero(kept)
        self.ranks = [tuple(rank) if len(rank) > 1 else rank[0] for rank in ranks[chosen].tolist()]
        self.errors = None if errors is None else errors[chosen]

    def _suits(self, ranks: np.ndarray) -> np.ndarray:
        return ((ranks % self.multiple == 0) | (ranks == self.table[0].max(0))).all(1)

    @cached_property
    def _costs(self) -> np.ndarray:
        """Of all pairs of ranks, (R, S): linear in R for the first link, in R S for the second, in S for the third."""
        ranks = self.table[0]
        one, first, second = (
            self.macs(self.scheme.chain(self.subject.blocks.shape, pair)) for pair in ((1, 1), (2, 1), (1, 2))
        )
        both = (first - one) + (second - one) - one
        costs = (
            (first - one - both) * ranks[:, 0] + both * ranks[:, 0] * ranks[:, 1] + (second - one - both) * ranks[:, 1]
        )
        return costs.reshape(ranks.max(0))

    def suited(self, multiple: int) -> Family:
        """The family of those ranks alone that are multiples, or full."""
        return Family(self.subject, self.name, self.macs, multiple, self.table)

    def of(self, subject: Subject) -> Family:
        """The same ranks and errors for another kernel of the same shape."""
        other = copy.copy(self)
        other.subject = subject
        return other

    def require(self) -> Family:
        """Itself, where the scheme does for the kernel."""
        if self.refusal is not None:
            raise ValueError(f"{self.subject.operation}: {self.name!r} does not do for this kernel: {self.refusal}")
        return self

    def chain(self, index: int) -> KernelChain:
        """The shapes of the chain at one of the ranks."""
        return self.shapes(self.ranks[index])

    def shapes(self, rank: Any) -> KernelChain:
        """The shapes of the chain at a rank."""
        return self.scheme.chain(self.subject.blocks.shape, rank)

    def fit(self, **options: Any) -> KernelChain:
        """The chain at a rank, `index=` among the ranks or `rank=`, or within a `tolerance=`."""
        if "index" in options:
            options = {"rank": self.ranks[options["index"]]}
        if "rank" in options:
            options = {self.scheme.option: options["rank"]}
        settings = self.scheme.settings(self.subject.blocks.shape)
        return self.scheme.fit(self.subject.kernel, **options, **settings, **self.subject.read)

    def rank_of(self, chain: KernelChain) -> Any:
        """The rank of a chain of the scheme, as its function takes it."""
        groups = chain.feature_group_counts
        widths = [link.shape[-1] // count for link, count in zip(chain.kernels, groups, strict=True)]
        several = self.table[0].shape[1]
        return widths[0] if several == 1 else tuple(widths[:several])

    def rounded(self, rank: Any, multiple: int) -> Any:
        """The rank, or each of several, rounded up to a multiple, but not above the full one."""
        several = np.atleast_1d(rank)
        up = np.minimum(-(-several // multiple) * multiple, np.maximum(self.table[0].max(0), several)).tolist()
        return tuple(up) if isinstance(rank, tuple) else up[0]

    def allowed(self, rank: Any) -> Any:
        """The rank, or where the scheme takes several each of them, but not above the full one."""
        full = self.table[0].max(0)
        given = rank if isinstance(rank, tuple) else (rank,) * len(full)
        if len(given) != len(full):
            raise ValueError(
                f"{self.subject.operation}: {self.name!r} has {len(full)} ranks for a window of "
                f"{self.subject.blocks.shape[1:-2]}, got rank={rank}"
            )
        ranks = np.minimum(given, full).tolist()
        return tuple(ranks) if len(ranks) > 1 else ranks[0]

    def affordable(self, macs: float) -> int:
        """How many of the ranks, from the first on, take at most so many multiply-accumulates."""
        return count_while(len(self.ranks), lambda index: self.macs(self.chain(index)) <= macs)

    def cheapest(self, tolerance: float) -> KernelChain | None:
        """The chain of the cheapest rank that meets the tolerance; None where rounding of the links exceeds it."""
        for rank in self.ranks_within(tolerance):
            chain = self.fit(rank=rank)
            if self.error(chain) <= tolerance:
                return chain
        return None

    def ranks_within(self, tolerance: float) -> list[Any]:
        """The cheapest rank that meets the tolerance, or the full one, and one that does where rounding decides."""
        first = self.chain(0)
        bound = without_rounding(tolerance, len(first.kernels), self.subject.dense.dtype)
        if self.scheme.pairs:
            tensor = self._tensor
            links = tucker.cheapest(tensor, tucker.leading_bases(tensor), bound, self._wanted_costs)
            return [tuple(links[1].shape[-2:])]
        if self.errors is not None:
            index = int(np.argmax(np.append(self.errors[:-1] <= bound, True)))
            # A hair's breadth may decide: the errors known beforehand are those before rounding.
            return self.ranks[index : index + 2]
        return [self.rounded(self.rank_of(self.fit(tolerance=tolerance)), self.multiple)]

    @property
    def _tensor(self) -> np.ndarray:
        blocks = self.subject.blocks
        return blocks.reshape(len(blocks), -1, *blocks.shape[-2:])

    @property
    def _wanted_costs(self) -> np.ndarray:
        return np.where(self._suits(self.table[0]).reshape(self._costs.shape), self._costs, np.inf)

    def within(self, tolerance: float, count: int) -> KernelChain | None:
        """The chain of the smallest of the first `count` ranks whose fit meets the tolerance, by bisection."""
        if count == 0:
            return None
        # The largest first: where it fails, the search is over after one fit.
        found = self.fit(index=count - 1)
        if self.error(found) > tolerance:
            return None
        low, high = -1, count - 1
        while high - low > 1:
            middle = (low + high) // 2
            chain = self.fit(index=middle)
            if self.error(chain) <= tolerance:
                found, high = chain, middle
            else:
                low = middle
        return found

    def error(self, chain: KernelChain) -> float:
        """The chain's relative error; infinite where its terms cancel, for such a chain is worth nothing."""
        if self.name == "cp" and cancellation(chain, float(np.linalg.norm(self.subject.blocks))) > CANCELLING:
            return np.inf
        return self.subject.error(chain)

    def most_exact(self, cost: float) -> KernelChain | None:
        """The chain of the least error that takes at most so many multiply-accumulates; None if there is none."""
        count = self.affordable(cost)
        if count == 0:
            return None
        if self.scheme.pairs:
            tensor = self._tensor
            links = tucker.most_exact(tensor, tucker.leading_bases(tensor), cost, self._wanted_costs)
            return self.fit(rank=tuple(links[1].shape[-2:]))
        return self.best(count)

    def largest_timed(self, milliseconds: Callable[[KernelChain], float], limit: float, macs: float) -> Any:
        """The rank of the most multiply-accumulates, up to so many, that takes at most so long; None if none does.

        The multiples that the device likes are looked at by themselves too: one may be faster than a smaller rank.
        """
        found: list[Any] = []
        # A multiple asked for is the user's own: others are not offered.
        others = MULTIPLES if self.multiple == 1 else ()
        for family in (self, *(self.suited(multiple) for multiple in others)):

            def fast(index: int, family: Family = family) -> bool:
                return milliseconds(family.chain(index)) <= limit

            count = count_while(family.affordable(macs), fast)
            if count:
                found.append(family.ranks[count - 1])
        return max(found, key=lambda rank: self.macs(self.shapes(rank)), default=None)

    def best(self, count: int) -> KernelChain:
        """The chain of the least error among the first `count` ranks; of equally exact ones the smallest."""
        last = count - 1
        if self.errors is not None:
            last = int(np.argmax(self.errors[:count] <= self.errors[last] + 1e-7))
        return self.fit(index=last)


def count_while(size: int, holds: Callable[[int], bool]) -> int:
    """How many of 0, 1, ..., size - 1 hold, where those that do come first."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            low = middle + 1
        else:
            high = middle
    return low


def families(subject: Subject, names: Sequence[str], macs: Callable[[KernelChain], float]) -> list[Family]:
    """Those of the schemes that do for the kernel."""
    return [family for name in names if (family := Family(subject, name, macs)).refusal is None]
