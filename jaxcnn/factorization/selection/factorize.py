"""`factorize`: the best chain of all schemes, within an error or a cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.ranks import check_number, check_tolerance
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.selection.candidates import FAST_MULTIPLES, GivenKernel, SchemeCandidates, candidates_of
from jaxcnn.factorization.selection.workload import Workload
from jaxcnn.geometry import IntOrInts, Padding
from jaxcnn.layout import Layout

_MAX_SEARCHED_WEIGHTS = 10_000
"""Weights of a kernel up to which `cp` and `stack` are tried without being asked for: 32 to 32 channels at 3x3."""


@ErrorPrefix("factorize")
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
    r"""Returns the cheapest chain within an error, or the most exact one within a cost.

    Each scheme gives its cheapest or its most exact chain, and the best of these is returned. Schemes of singular
    values are searched at all ranks, `tucker2` at the most promising pairs of ranks (all that may serve for a dozen
    channels), `separable` of three axes at one rank for both gaps where a cost is given, `cp` and `stack`, whose fits
    are local minima, by bisection.

    Chains that take as many multiply-accumulates as the kernel, or more, are never offered. Neither are chains of `cp`
    whose terms cancel, or those that meet the error only before their links are rounded to the kernel's dtype. Where no
    chain is better, the result is the kernel itself as a chain of one link: `len(chain.kernels) == 1`.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)`, or as `layout` says.
      tolerance: Relative error allowed, norm(chain - kernel) / norm(kernel). Give this or `cost`.
      cost: Largest cost allowed, in `unit`.
      unit: Unit of costs: `"macs"`, multiply-accumulates by `conv_cost`, or `"ms"`, milliseconds of one call measured
        on this device. Measuring takes seconds to a minute: each scheme's rank is timed, and multiples of 8 and of 16,
        which may be faster than a smaller rank.
      input_shape: Shape of x. Without it costs are multiply-accumulates of one output pixel at stride 1, borders left
        out: the numbers of weights.
      schemes: Names of the schemes to try: `"separable"`, `"low_rank"`, `"tucker2"`, `"depthwise_separable"`, `"cp"`,
        `"stack"` (of 3x3); those that cannot represent the kernel are passed over. None: all of them, but cp and stack
        only up to 10,000 weights: their searches take seconds there, and minutes far beyond.
      strides, padding, kernel_dilation: Options of the convolution, as in `conv`. A chain gains less where there are
        strides, because only the last link that has extent on an axis can take them.
      feature_group_count: Number of groups of the kernel.
      layout: Layout of `kernel` and `input_shape`: None (channels-last, HWIO), a string such as `"NCHW"` (OIHW), or
        lax's triple.

    Returns:
      A `KernelChain` of the kernel's dtype and groups.

    Raises:
      ValueError: neither tolerance nor cost, or both; a cost that no chain meets; an unknown scheme or unit; no scheme;
        strides, padding or milliseconds without `input_shape`; NaN or infinity.
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
      choose ranks; no other library chooses between schemes, or measures the time.
    """
    operation = "factorize"
    if (tolerance is None) == (cost is None):
        raise ValueError(f"{operation}: give either tolerance or cost, got {tolerance!r} and {cost!r}")
    limit = math.inf if cost is None else check_number("cost", cost)
    if math.isnan(limit):
        raise ValueError(f"{operation}: cost must be a number, got {cost!r}")
    if unit not in ("macs", "ms"):
        raise ValueError(f"{operation}: unit must be 'macs' or 'ms', got {unit!r}")
    workload = Workload(operation, input_shape, strides, padding, kernel_dilation, layout)
    if unit == "ms" and input_shape is None:
        raise ValueError(f"{operation}: milliseconds are measured on an image, so unit='ms' needs input_shape")
    given_kernel = GivenKernel(operation, kernel, feature_group_count, layout)
    schemes_to_try = candidates_of(given_kernel, _scheme_names(schemes, given_kernel), workload.macs)
    if cost is not None:
        return _most_exact(given_kernel, schemes_to_try, workload, unit, limit)
    return _cheapest(given_kernel, schemes_to_try, workload, unit, check_tolerance(operation, tolerance))


def _scheme_names(schemes: str | Sequence[str] | None, kernel: GivenKernel) -> list[str]:
    """Returns the names of the schemes to try."""
    if schemes is not None:
        names = [schemes] if isinstance(schemes, str) else list(schemes)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"schemes must be names of schemes, got {schemes!r}")
        if not names:
            raise ValueError(f"{kernel.operation}: schemes must hold at least one scheme, got none")
        return names
    is_real = not np.iscomplexobj(kernel.blocks)
    with_searches = is_real and kernel.blocks.size <= _MAX_SEARCHED_WEIGHTS
    return [name for name, scheme in SCHEMES.items() if with_searches or not scheme.is_search]


def _cheapest(
    kernel: GivenKernel, schemes: list[SchemeCandidates], workload: Workload, unit: str, tolerance: float
) -> KernelChain:
    """Returns the cheapest of the schemes' chains within the tolerance, or the kernel itself."""
    measure = workload.macs if unit == "macs" else workload.milliseconds
    best = kernel.dense
    dense_macs, lowest = workload.macs(best), measure(best)
    for candidates in schemes:
        if candidates.scheme.is_search:
            # Only ranks whose chains would be cheaper than the best one are worth a search.
            limit = min(dense_macs, lowest) if unit == "macs" else dense_macs
            chain = candidates.smallest_within(tolerance, candidates.count_affordable(limit - 1))
        else:
            chain = candidates.cheapest_within(tolerance)
        if chain is None or workload.macs(chain) >= dense_macs:
            continue
        cost = measure(chain)
        if cost < lowest:
            best, lowest = chain, cost
        if unit == "ms":
            # A larger number of channels may be faster, where vector units prefer it.
            rank = candidates.rank_of(chain)
            for wider in sorted({candidates.round_up(rank, multiple) for multiple in FAST_MULTIPLES} - {rank}):
                shapes = candidates.shapes(wider)
                if workload.macs(shapes) >= dense_macs or (cost := measure(shapes)) >= lowest:
                    continue
                chain = candidates.fit(rank=wider)
                if candidates.error(chain) <= tolerance:
                    best, lowest = chain, cost
    return best


def _most_exact(
    kernel: GivenKernel, schemes: list[SchemeCandidates], workload: Workload, unit: str, limit: float
) -> KernelChain:
    """Returns the most exact of the schemes' chains that cost at most `limit`, or the kernel itself."""
    measure = workload.macs if unit == "macs" else workload.milliseconds
    dense_cost = measure(kernel.dense)
    if dense_cost <= limit:
        return kernel.dense
    dense_macs = workload.macs(kernel.dense)
    best: KernelChain | None = None
    lowest_error, lowest_cost = np.inf, dense_cost
    for candidates in schemes:
        chain: KernelChain | None
        if unit == "macs":
            chain = candidates.most_exact(min(limit, dense_macs - 1))
        else:
            rank = candidates.largest_within_time(measure, limit, dense_macs - 1)
            chain = None if rank is None else candidates.fit(rank=rank)
        if chain is None:
            lowest_cost = min(lowest_cost, measure(candidates.shapes_at(0)))
            continue
        error = candidates.error(chain)
        if error < lowest_error:
            best, lowest_error = chain, error
    if best is None:
        tried = ", ".join(candidates.name for candidates in schemes) or "no scheme that can represent this kernel"
        raise ValueError(
            f"{kernel.operation}: nothing costs {limit:g} {unit} or less: the kernel costs {dense_cost:g}, the "
            f"cheapest chain of {tried} costs {lowest_cost:g}"
        )
    return best
