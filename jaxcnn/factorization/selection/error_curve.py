"""`curve`: the error that a scheme leaves, against the multiply-accumulates that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.errors import ErrorPrefix
from jaxcnn.factorization.selection.candidates import GivenKernel, SchemeCandidates
from jaxcnn.factorization.selection.workload import Workload
from jaxcnn.geometry import IntOrInts, Padding, whole_number
from jaxcnn.layout import Layout


@dataclasses.dataclass(frozen=True)
class RankCurve:
    """Holds error against multiply-accumulates of one scheme's chains for one kernel, from the cheapest on.

    Args:
      scheme: Name of the scheme.
      ranks: Rank of each chain, as the scheme's function takes it.
      macs: Multiply-accumulates of each chain.
      errors: Relative error of each chain.
      dense_macs: Multiply-accumulates of the kernel itself.

    Example:
      >>> RankCurve("low_rank", (1, 2), (100, 200), (0.5, 0.0), 400).shares
      (0.25, 0.5)
    """

    scheme: str
    ranks: tuple[Any, ...]
    macs: tuple[int, ...]
    errors: tuple[float, ...]
    dense_macs: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Returns the multiply-accumulates of each chain, as a share of the kernel's."""
        return tuple(macs / self.dense_macs for macs in self.macs)


@ErrorPrefix("curve")
def curve(
    kernel: Any,
    scheme: str,
    *,
    points: int = 16,
    input_shape: Sequence[int] | None = None,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
) -> RankCurve:
    r"""Returns the relative error that a scheme leaves, against the multiply-accumulates that it takes.

    The curve has up to `points` ranks, evenly spread in cost from the smallest rank to the largest that is no more
    expensive than the kernel. Where the scheme is a truncated singular value decomposition, all errors come from one;
    otherwise a chain is fitted at each point.

    Args:
      kernel: Kernel `(*window, I / feature_group_count, O)`, or as `layout` says.
      scheme: Name of the scheme: `"separable"`, `"low_rank"`, `"tucker2"`, `"depthwise_separable"`, `"cp"` or
        `"stack"` (of 3x3).
      points: Largest number of points of the curve.
      input_shape: Shape of x. Without it costs are multiply-accumulates of one output pixel at stride 1, borders left
        out: the numbers of weights.
      strides, padding, kernel_dilation: Options of the convolution, as in `conv`.
      feature_group_count: Number of groups of the kernel.
      layout: Layout of `kernel` and `input_shape`: None (channels-last, HWIO), a string such as `"NCHW"` (OIHW), or
        lax's triple.

    Returns:
      A `RankCurve`; its picture is `jaxcnn.drawing.draw_curves`.

    Raises:
      ValueError: an unknown scheme, or one that cannot represent the kernel; fewer than one point; strides
        without `input_shape`; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.diag(jnp.array([3.0, 0.0, 4.0])).reshape(3, 3, 1, 1)       # of rank 2, 9 weights
      >>> points = curve(kernel, "separable")
      >>> points.ranks, points.macs, [round(error, 3) for error in points.errors]
      ((1,), (6,), [0.6])

    References:
      The singular values left out: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    operation = "curve"
    points = whole_number("points", points)
    workload = Workload(operation, input_shape, strides, padding, kernel_dilation, layout)
    given_kernel = GivenKernel(operation, kernel, feature_group_count, layout)
    candidates = SchemeCandidates(given_kernel, scheme, workload.macs).require()
    dense_macs = workload.macs(given_kernel.dense)
    # The smallest rank is always a point, even if its chain is no cheaper than the kernel.
    last = max(candidates.count_affordable(dense_macs) - 1, 0)
    ends = [workload.macs(candidates.shapes_at(index)) for index in (0, last)]
    indices: Sequence[int] = range(last + 1)
    if points < len(indices):
        costs = np.linspace(ends[0], ends[1], points)
        indices = sorted({min(max(candidates.count_affordable(cost) - 1, 0), last) for cost in costs})
    if candidates.errors is not None and not candidates.scheme.has_pairs:
        errors = [float(candidates.errors[index]) for index in indices]
    else:
        errors = [given_kernel.error(candidates.fit(rank=candidates.ranks[index])) for index in indices]
    return RankCurve(
        scheme,
        tuple(candidates.ranks[index] for index in indices),
        tuple(workload.macs(candidates.shapes_at(index)) for index in indices),
        tuple(errors),
        dense_macs,
    )
