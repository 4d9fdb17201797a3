"""`select_rank`: the rank of a scheme, by one of several rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.numerics.ranks import check_number, check_tolerance, evbmf_rank
from jaxcnn.factorization.numerics.svd import singular_values
from jaxcnn.factorization.selection.candidates import GivenKernel, SchemeCandidates
from jaxcnn.factorization.selection.workload import Workload
from jaxcnn.geometry import IntOrInts, Padding, whole_number
from jaxcnn.layout import Layout


@ErrorPrefix("select_rank")
def select_rank(
    kernel: Any,
    scheme: str,
    *,
    tolerance: float | None = None,
    energy: float | None = None,
    macs: float | None = None,
    milliseconds: float | None = None,
    multiple: int = 1,
    input_shape: Sequence[int] | None = None,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> Any:
    r"""Returns the rank at which a scheme meets a rule: an error, an energy, a share of the cost, a time, or the noise.

    With none of the rules, the rank is the number of singular values that stand out of noise by empirical variational
    Bayes (EVBMF): those with $s^2 > M \sigma^2 (1 + \tau) (1 + \alpha / \tau)$ for an L x M matrix, L <= M,
    $\alpha = L / M$, noise variance $\sigma^2$ estimated from the matrix, and $\tau \approx 2.51 \sqrt{\alpha}$; at
    least 1.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)`, or as `layout` says.
      scheme: Name of the scheme: `"separable"`, `"low_rank"`, `"tucker2"`, `"depthwise_separable"`, `"cp"` or
        `"stack"` (of 3x3).
      tolerance: Relative error allowed; the smallest rank that meets it.
      energy: Share of the squared norm to keep; the smallest rank that does, at tolerance
        $\sqrt{1 - \mathrm{energy}}$.
      macs: Share of the kernel's multiply-accumulates allowed; the largest rank within it.
      milliseconds: Longest time allowed for one call, measured on this device; the largest rank within it.
      multiple: Number of which the rank must be a multiple, unless it is the full rank: 8 or 16 suit vector units. For
        an error, an energy or the noise the rank is rounded up, for a share or a time down, but not below one multiple.
        If `multiple` is 1, the rule `milliseconds` also tries the multiples of 8 and 16, which may be faster than a
        smaller rank.
      input_shape: Shape of x, for `macs` and `milliseconds`. Without it costs are those of one output pixel.
      strides, padding, kernel_dilation: Options of the convolution, as in `conv`.
      feature_group_count: Number of groups of the kernel; the rank is the same for all, the largest where the rule is
        the noise.
      layout: Layout of `kernel` and `input_shape`: None (channels-last, HWIO), a string such as `"NCHW"` (OIHW), or
        lax's triple.

    Returns:
      An int; a tuple for tucker2 and for separable kernels of more than two axes. The scheme's function takes it as
      `rank`, `ranks`, `multiplier` or `features`. It is at least 1, or one multiple, even where that is more than the
      rule allows.

    Raises:
      ValueError: more than one rule, or one out of range; a scheme that cannot represent the kernel; a tolerance that
        no rank meets; no rule for cp and stack, which truncate no matrix whose noise could be told; strides,
        padding or milliseconds without `input_shape`.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.diag(jnp.array([4.0, 3.0, 0.0])).reshape(3, 3, 1, 1)       # singular values 4, 3, 0
      >>> select_rank(kernel, "separable", energy=0.6), select_rank(kernel, "separable", energy=0.9)
      (1, 2)

    References:
      Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
      factorization", 2013; Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
      applications", 2016, who choose Tucker ranks with it.
    """
    operation = "select_rank"
    rules = {"tolerance": tolerance, "energy": energy, "macs": macs, "milliseconds": milliseconds}
    chosen = [name for name, value in rules.items() if value is not None]
    if len(chosen) > 1:
        raise ValueError(f"{operation}: give one rule, got {' and '.join(chosen)}")
    multiple = whole_number(f"{operation}: multiple", multiple)
    energy, macs, milliseconds = (
        None if number is None else check_number(name, number)
        for name, number in (("energy", energy), ("macs", macs), ("milliseconds", milliseconds))
    )
    if milliseconds is not None and math.isnan(milliseconds):
        raise ValueError(f"{operation}: milliseconds must be a number, got {milliseconds!r}")
    if energy is not None and not 0 <= energy <= 1:
        raise ValueError(f"{operation}: energy must be between 0 and 1, got {energy!r}")
    if macs is not None and not 0 < macs <= 1:
        raise ValueError(f"{operation}: macs must be a share in (0, 1], got {macs!r}")
    workload = Workload(operation, input_shape, strides, padding, kernel_dilation, layout)
    given_kernel = GivenKernel(operation, kernel, feature_group_count, layout)
    candidates = SchemeCandidates(given_kernel, scheme, workload.macs, multiple).require()
    if energy is not None or tolerance is not None:
        error = math.sqrt(1 - energy) if energy is not None else check_tolerance(operation, tolerance)
        return candidates.ranks_within(error)[0]
    dense_macs = workload.macs(given_kernel.dense)
    if macs is not None:
        return candidates.ranks[max(candidates.count_affordable(macs * dense_macs) - 1, 0)]
    if milliseconds is not None:
        rank = candidates.largest_within_time(workload.milliseconds, milliseconds, dense_macs)
        return candidates.ranks[0] if rank is None else rank
    return candidates.round_up(_rank_above_noise(candidates), multiple)


def _rank_above_noise(candidates: SchemeCandidates) -> Any:
    """Returns, for each rank of the scheme, the largest number of singular values above the noise in any group."""
    kernel, matrices = candidates.kernel, candidates.scheme.matrices
    if matrices is None:
        raise ValueError(
            f"{kernel.operation}: {candidates.name!r} truncates no matrix whose noise could be told; "
            "give tolerance, energy, macs or milliseconds"
        )
    ranks = []
    for stack in matrices(kernel.blocks):
        values = singular_values(stack)
        ranks.append(max(1, *(evbmf_rank(row, *stack.shape[1:]) for row in values)))
    return tuple(ranks) if isinstance(candidates.ranks[0], tuple) else ranks[0]
