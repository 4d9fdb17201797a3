"""One scheme on one kernel: the chains that it can make of it, from the cheapest to the most exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization._schemes import SCHEMES
from jaxcnn.factorization._usage import Usage
from jaxcnn.factorization.cp import CANCELLING, cancellation
from jaxcnn.factorization.kernels import grouped_kernel, merged_link
from jaxcnn.layout import Layout


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
        """The chain's relative error."""
        return float(chain.relative_error(self.dense.kernels[0]))


class Family:
    """The chains of one scheme for one kernel."""

    def __init__(self, subject: Subject, name: str):
        if name not in SCHEMES:
            known = ", ".join(map(repr, SCHEMES))
            raise ValueError(f"{subject.operation}: a scheme must be one of {known}, got {name!r}")
        self.subject = subject
        self.name = name
        self.scheme = SCHEMES[name]
        self.refusal = self.scheme.refusal(subject.blocks.shape)
        self.ranks: list[Any] = []
        self.errors: np.ndarray | None = None
        if self.refusal is None:
            self.ranks, self.errors = self.scheme.ranks(subject.blocks)

    def require(self) -> Family:
        """Itself, where the scheme does for the kernel."""
        if self.refusal is not None:
            raise ValueError(f"{self.subject.operation}: {self.name!r} does not do for this kernel: {self.refusal}")
        return self

    def chain(self, index: int) -> KernelChain:
        """The shapes of the chain at a rank."""
        return self.scheme.chain(self.subject.blocks.shape, self.ranks[index])

    def fit(self, **options: Any) -> KernelChain:
        """The chain at a rank, `index=`, or within a `tolerance=`."""
        if "index" in options:
            options = {self.scheme.option: self.ranks[options["index"]]}
        settings = self.scheme.settings(self.subject.blocks.shape)
        return self.scheme.fit(self.subject.kernel, **options, **settings, **self.subject.read)

    def affordable(self, usage: Usage, macs: float) -> int:
        """How many of the ranks, from the first on, take at most so many multiply-accumulates."""
        return count_while(len(self.ranks), lambda index: usage.macs(self.chain(index)) <= macs)

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


def families(subject: Subject, names: Sequence[str]) -> list[Family]:
    """Those of the schemes that do for the kernel."""
    return [family for name in names if (family := Family(subject, name)).refusal is None]
