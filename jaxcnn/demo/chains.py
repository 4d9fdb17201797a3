"""Shapes of chains, and the greatest width that a budget allows, before any numbers are fitted."""

from collections.abc import Callable, Sequence

import jaxcnn
from jaxcnn.factorization.schemes.registry import SCHEMES


def chain_shapes(scheme: str, kernel_shape: Sequence[int], rank: int, *, groups: int = 1) -> jaxcnn.KernelChain:
    """Returns the chain that a scheme makes of a kernel at a rank (of each group), without its numbers."""
    *inner, features = kernel_shape
    return SCHEMES[scheme].shapes((groups, *inner, features // groups), rank)


def widest_within(macs: Callable[[int], int], budget: float) -> int:
    """Returns the greatest width, 0 if there is none, at which a cost that grows with the width is within a budget."""
    if macs(1) > budget:
        return 0
    low, high = 1, 2
    while macs(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if macs(middle) <= budget else (low, middle)
    return low
