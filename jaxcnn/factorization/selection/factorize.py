"""`factorize`: the best chain of all schemes within an error or a cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.ranks import check_tolerance
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.selection.candidates import MULTIPLES, Family, Subject, families
from jaxcnn.factorization.selection.workload import Usage
from jaxcnn.geometry import IntOrInts, Padding
from jaxcnn.layout import Layout

_LARGEST_SEARCHED = 10_000
"""Weights of a kernel up to which `cp` and `stack` are tried without being asked for: 32 to 32 channels at 3x3. Their
fits take a second there, and a search takes several."""


def factorize(
    kernel: Any,
    *,
    tolerance: float | None = None,
    cost: float | None = None,
    unit: str = "macs",
    input_shape: Sequence[int] | None = None,
    schemes: str | Sequence[str] | None = None,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> KernelChain:
    r"""The cheapest chain within an error, or the most exact one within a cost.

    Every scheme is asked for its cheapest or its most exact chain, and the best of these is returned. Schemes of
    singular values are asked at all ranks, `tucker2` at the likeliest pairs of ranks (all that may do for a dozen
    channels), `separable` of three axes at one rank for both gaps where a cost is given, `cp` and `stack`, whose fits
    are local minima, by bisection.

    A chain that takes as many multiply-accumulates as the kernel, or more, is never offered, nor one of `cp` whose
    terms cancel, nor one that meets the error only before its links are rounded to the kernel's dtype. Where none is
    better, the result is the kernel itself as a chain of one link: `len(chain.kernels) == 1`.

    Args:
      kernel: `(*window, I / feature_group_count, O)`, or as `layout` says.
      tolerance: relative error allowed, norm(chain - kernel) / norm(kernel). Give this or `cost`.
      cost: what the chain may cost at most, in `unit`.
      unit: of costs: `"macs"`, multiply-accumulates by `conv_cost`, or `"ms"`, milliseconds of one call measured on
        this device. The clock is asked for each candidate, which takes seconds to a minute: for each scheme's rank, and
        for multiples of 8 and of 16, which may be faster than a smaller rank.
      input_shape: shape of x. Without it costs are multiply-accumulates for one output pixel at stride 1, borders left
        out: the numbers of weights.
      schemes: names of the schemes to try: `"separable"`, `"low_rank"`, `"tucker2"`, `"depthwise_separable"`, `"cp"`,
        `"stack"` (of 3x3); those that do not do for the kernel's window are passed over. None: all of them, but cp and
        stack only up to 10,000 weights: their searches take seconds there, and minutes far beyond.
      strides, padding, kernel_dilation: of the convolution, as in `conv`; a chain's strides are done by its last link
        that has extent on the axis, so it gains less.
      feature_group_count: number of groups of the kernel.
      layout: how `kernel` and `input_shape` are to be read: None (channels-last, HWIO), a string such as `"NCHW"`
        (OIHW), or lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups.

    Raises:
      ValueError: neither tolerance nor cost, or both; a cost that no chain meets; an unknown scheme or unit; no scheme;
        strides or milliseconds without `input_shape`; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> ramp = jnp.array([1.0, 2.0, 3.0, 2.0, 1.0])
      >>> kernel = jnp.outer(ramp, ramp).reshape(5, 5, 1, 1)        # 25 weights, of rank one
      >>> chain = factorize(kernel, tolerance=1e-3)
      >>> [link.shape for link in chain.kernels]
      [(5, 1, 1, 1), (1, 5, 1, 1)]
      >>> diagonal = jnp.eye(5).reshape(5, 5, 1, 1)                 # of full rank: no pair is cheaper
      >>> factorize(diagonal, tolerance=1e-3, schemes="separable").windows
      ((5, 5),)

    References:
      Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications", 2016,
      choose ranks; no other library chooses between schemes, or asks the clock.
    """
    operation = "factorize"
    if (tolerance is None) == (cost is None):
        raise ValueError(f"{operation}: give either tolerance or cost, got {tolerance!r} and {cost!r}")
    if unit not in ("macs", "ms"):
        raise ValueError(f"{operation}: unit must be 'macs' or 'ms', got {unit!r}")
    usage = Usage(operation, input_shape, strides, padding, kernel_dilation, layout)
    if unit == "ms" and input_shape is None:
        raise ValueError(f"{operation}: milliseconds are measured on an image, so unit='ms' needs input_shape")
    subject = Subject(operation, kernel, feature_group_count, layout)
    candidates = families(subject, _names(schemes, subject), usage.macs)
    if cost is not None:
        return _most_exact(subject, candidates, usage, unit, float(cost))
    return _cheapest(subject, candidates, usage, unit, check_tolerance(operation, tolerance))


def _names(schemes: str | Sequence[str] | None, subject: Subject) -> list[str]:
    if schemes is not None:
        names = [schemes] if isinstance(schemes, str) else list(schemes)
        if not names:
            raise ValueError(f"{subject.operation}: schemes must hold at least one scheme, got none")
        return names
    real = not np.iscomplexobj(subject.blocks)
    searched = real and subject.blocks.size <= _LARGEST_SEARCHED
    return [name for name, scheme in SCHEMES.items() if searched or not scheme.searches]


def _cheapest(subject: Subject, candidates: list[Family], usage: Usage, unit: str, tolerance: float) -> KernelChain:
    measure = usage.macs if unit == "macs" else usage.milliseconds
    best = subject.dense
    dense_macs, lowest = usage.macs(best), measure(best)
    for family in candidates:
        if family.scheme.searches:
            # Only ranks that would be better are worth a search.
            limit = min(dense_macs, lowest) if unit == "macs" else dense_macs
            chain = family.within(tolerance, family.affordable(limit - 1))
        else:
            chain = family.cheapest(tolerance)
        if chain is None or usage.macs(chain) >= dense_macs:
            continue
        found = measure(chain)
        if found < lowest:
            best, lowest = chain, found
        if unit == "ms":
            # More channels than are needed may be faster, where the device likes their number.
            first = family.rank_of(chain)
            for rank in sorted({family.rounded(first, multiple) for multiple in MULTIPLES} - {first}):
                shapes = family.shapes(rank)
                if usage.macs(shapes) >= dense_macs or (found := measure(shapes)) >= lowest:
                    continue
                chain = family.fit(rank=rank)
                if family.error(chain) <= tolerance:
                    best, lowest = chain, found
    return best


def _most_exact(subject: Subject, candidates: list[Family], usage: Usage, unit: str, cost: float) -> KernelChain:
    measure = usage.macs if unit == "macs" else usage.milliseconds
    dense_cost = measure(subject.dense)
    if dense_cost <= cost:
        return subject.dense
    dense_macs = usage.macs(subject.dense)
    best: KernelChain | None = None
    lowest, least = np.inf, dense_cost
    for family in candidates:
        chain: KernelChain | None
        if unit == "macs":
            chain = family.most_exact(min(cost, dense_macs - 1))
        else:
            rank = family.largest_timed(measure, cost, dense_macs - 1)
            chain = None if rank is None else family.fit(rank=rank)
        if chain is None:
            least = min(least, measure(family.chain(0)))
            continue
        error = family.error(chain)
        if error < lowest:
            best, lowest = chain, error
    if best is None:
        tried = ", ".join(family.name for family in candidates) or "no scheme that does for this kernel"
        raise ValueError(
            f"{subject.operation}: nothing costs {cost:g} {unit} or less: the kernel costs {dense_cost:g}, the "
            f"cheapest chain of {tried} costs {least:g}"
        )
    return best
