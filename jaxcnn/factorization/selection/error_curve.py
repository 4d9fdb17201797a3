"""`curve`: what error a scheme leaves for how many multiply-accumulates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.factorization.selection.candidates import Family, Subject
from jaxcnn.factorization.selection.workload import Usage
from jaxcnn.geometry import IntOrInts, Padding
from jaxcnn.layout import Layout


@dataclasses.dataclass(frozen=True)
class Curve:
    """Error against multiply-accumulates of one scheme's chains for one kernel, from the cheapest on.

    Args:
      scheme: name of the scheme.
      ranks: rank of each chain, as the scheme's function takes it.
      macs: multiply-accumulates of each chain.
      errors: relative error of each chain.
      dense_macs: multiply-accumulates of the kernel itself.

    Example:
      >>> Curve("low_rank", (1, 2), (100, 200), (0.5, 0.0), 400).shares
      (0.25, 0.5)
    """

    scheme: str
    ranks: tuple[Any, ...]
    macs: tuple[int, ...]
    errors: tuple[float, ...]
    dense_macs: int

    @property
    def shares(self) -> tuple[float, ...]:
        """Multiply-accumulates of each chain, as a share of the kernel's."""
        return tuple(macs / self.dense_macs for macs in self.macs)


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
) -> Curve:
    r"""The relative error that a scheme leaves, against the multiply-accumulates that it takes.

    Up to `points` ranks, evenly spread in cost from the smallest rank to the largest that is no more expensive than the
    kernel. Where the scheme is a truncated singular value decomposition, all errors come from one; otherwise a chain is
    fitted at each point.

    Args:
      kernel: `(*window, I / feature_group_count, O)`, or as `layout` says.
      scheme: `"separable"`, `"low_rank"`, `"tucker2"`, `"depthwise_separable"`, `"cp"` or `"stack"` (of 3x3).
      points: most points of the curve.
      input_shape: shape of x. Without it costs are multiply-accumulates for one output pixel at stride 1, borders left
        out: the numbers of weights.
      strides, padding, kernel_dilation: of the convolution, as in `conv`.
      feature_group_count: number of groups of the kernel.
      layout: how `kernel` and `input_shape` are to be read: None (channels-last, HWIO), a string such as `"NCHW"`
        (OIHW), or lax's triple.

    Returns:
      A `Curve`; its picture is `jaxcnn.drawing.draw_curves`.

    Raises:
      ValueError: an unknown scheme, or one that does not do for the kernel's window; fewer than one point; strides
        without `input_shape`; NaN or infinity.
      TypeError: a kernel of integers.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.diag(jnp.array([3.0, 0.0, 4.0])).reshape(3, 3, 1, 1)       # of rank 2, 9 weights
      >>> found = curve(kernel, "separable")
      >>> found.ranks, found.macs, [round(error, 3) for error in found.errors]
      ((1,), (6,), [0.6])

    References:
      The singular values left out: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    operation = "curve"
    if points < 1:
        raise ValueError(f"{operation}: points must be at least 1, got {points!r}")
    usage = Usage(operation, input_shape, strides, padding, kernel_dilation, layout)
    subject = Subject(operation, kernel, feature_group_count, layout)
    family = Family(subject, scheme, usage.macs).require()
    dense_macs = usage.macs(subject.dense)
    # The smallest rank is always there, even if it is no cheaper than the kernel.
    last = max(family.affordable(dense_macs) - 1, 0)
    ends = [usage.macs(family.chain(index)) for index in (0, last)]
    wanted = np.linspace(ends[0], ends[1], points)
    indices = sorted({min(max(family.affordable(macs) - 1, 0), last) for macs in wanted})
    if family.errors is not None and not family.scheme.pairs:
        errors = [float(family.errors[index]) for index in indices]
    else:
        errors = [subject.error(family.fit(index=index)) for index in indices]
    return Curve(
        scheme,
        tuple(family.ranks[index] for index in indices),
        tuple(usage.macs(family.chain(index)) for index in indices),
        tuple(errors),
        dense_macs,
    )
