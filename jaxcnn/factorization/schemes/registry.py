"""The schemes by name, in the order in which they are tried."""

from __future__ import annotations

from jaxcnn.factorization.schemes import cp, depthwise_separable, low_rank, separable, stack, tucker2
from jaxcnn.factorization.schemes.scheme import Scheme

SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        separable.SCHEME,
        low_rank.SCHEME,
        tucker2.SCHEME,
        depthwise_separable.SCHEME,
        cp.SCHEME,
        stack.SCHEME,
    )
}
