"""The cost model: estimates of a method's time by what a convolution holds, and all of its coefficients.

A method's `terms(spec)` counts what takes time: calls, products, numbers that are moved. Each count has a coefficient
in nanoseconds. `python -m benchmarks.choice.fit` prints the coefficients that fit the measured layers best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from jaxcnn.lowering.spec import ConvSpec

VECTOR = 16
"""Channels that a kernel computes together: its cost grows in steps of as many."""

NANOSECONDS: dict[str, dict[str, float]] = {
    "native": {
        "call": 12200.0,
        "floats": 0.0899,
        "channel macs": 0.00528,
        "macs": 0.00588,
        "taps": 0.0192,
        "dilated channel macs": 0.0396,
        "volume channel macs": 0.0151,
        "narrow macs": 0.00943,
        "spread channel macs": 0.00177,
    },
    "shift": {
        "call": 21500.0,
        "taps": 128.0,
        "channel macs": 0.021,
        "floats": 0.0748,
        "few channels": 51400.0,
        "few channels' macs": 0.0127,
    },
    "matmul": {
        "call": 11700.0,
        "macs": 0.00538,
        "moved": 0.218,
        "wide call": 44100.0,
        "wide macs": 0.00625,
        "wide moved": 0.099,
    },
}
"""Nanoseconds of each term, by method."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Counts of a convolution in the roles `"output"` and `"input"`.

    Args:
      taps: elements of the window.
      groups: groups of channels.
      summed: channels of a group that a result adds up.
      results: channels of a group of the result.
      macs: multiply-accumulates, without those on what an image's gradient is padded with.
      slid: multiply-accumulates of a window that slides over all of the result.
      floats: elements of both operands and the result.
    """

    taps: int
    groups: int
    summed: int
    results: int
    macs: float
    slid: float
    floats: float

    @property
    def by_channel(self) -> bool:
        """Returns whether each channel is convolved by itself."""
        return self.summed == self.results == 1

    @property
    def filled(self) -> float:
        """Returns the multiply-accumulates where vectors of the result's channels are filled up."""
        channels = self.groups if self.by_channel else self.results
        return self.slid * -(-channels // VECTOR) * VECTOR / channels


def work(spec: ConvSpec) -> Work | None:
    """Returns the counts of a convolution; None of one that computes a kernel, of which no method has an estimate."""
    if spec.role == "kernel":
        return None
    *window, kernel_in, features = spec.kernel_shape
    kernel_out = features // spec.feature_group_count
    summed, results = (kernel_out, kernel_in) if spec.role == "input" else (kernel_in, kernel_out)
    taps = math.prod(window)
    macs = float(math.prod(spec.output_shape) * taps * kernel_in)
    pixels = math.prod(spec.input_shape[1:-1]) / math.prod((*spec.strides, *spec.output_shape[1:-1]))
    return Work(
        taps=taps,
        groups=spec.feature_group_count,
        summed=summed,
        results=results,
        macs=macs,
        slid=macs * max(pixels, 1.0) if spec.role == "input" else macs,
        floats=float(sum(map(math.prod, (spec.input_shape, spec.kernel_shape, spec.output_shape)))),
    )


def seconds(method: str, terms: Mapping[str, float] | None) -> float:
    """Returns the estimated time of a method; infinity where it has no terms."""
    if terms is None:
        return math.inf
    return 1e-9 * sum(NANOSECONDS[method][name] * count for name, count in terms.items())
