"""The cost model: the estimated time of each method, and all coefficients of the estimates.

A method's `terms(spec)` returns the counts that the method's time grows with: calls, multiply-accumulates, numbers that
are moved. The estimate is the sum of the counts, each times its coefficient in `NANOSECONDS`. The coefficients are
fitted to measured layers: `python -m benchmarks.choice.fit --write` fits them again and writes this file. To change a
method, change its `terms`, measure the method again (`python -m benchmarks.choice.measure --again METHOD`), and fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import ModuleType

import numpy as np

from jaxcnn.lowering.spec import ConvSpec

Terms = Mapping[str, float]
"""Counts by the name of their coefficient."""

NEVER: Terms = {"never": math.inf}
"""Terms of a convolution for which a method is far too slow: the estimate is infinite."""

KNOWN, CLEARING = "known nanoseconds", "nanoseconds of clearing"
"""Names of the two terms that are times and not counts.

The first comes from another method's coefficients. The second is a time that a layer takes in a network but not in a
measurement of the layer alone, so the fit leaves this term out.
"""

VECTOR = 16
"""Channels that a kernel computes together: the cost grows in steps of this number of channels."""

CLIFF_BYTES = 32 << 20
"""Largest block of memory that the C library keeps between calls.

The library returns larger blocks to the system, which clears them at every call.
"""

MAX_KEPT_BYTES, MAX_KEPT_KERNEL_BYTES, CLEARING_NANOSECONDS = 8 << 20, 1 << 20, 0.75
"""Bytes of the largest temporary array, and of the largest copy of a kernel, whose clearing costs nothing.

The third value is the time to clear one byte of a larger temporary array or copy.
"""

OF_PRODUCTS, OTHER_DTYPES_FACTOR = ("matmul", "winograd"), 2.0
"""Methods whose time goes into XLA's products of matrices, and the factor on this time for dtypes but float32."""

COMPILED_MARGIN = 1.2
"""Ratio of the compiled kernels' estimate to that of a product of XLA's, up to which the kernels compute an image.

Where the two are near, the kernels are faster: XLA's products of few rows are slow on processors of short vectors.
"""

NANOSECONDS: dict[str, dict[str, float]] = {
    "native": {
        "call": 8830.0,
        "channel macs": 0.00353,
        "dilated channel macs": 0.00829,
        "few channel macs": 0.00393,
        "floats": 0.0561,
        "grouped macs": 0.00365,
        "grouped narrow macs": 0.00779,
        "grouped narrow taps": 0.00575,
        "grouped taps": 0.0112,
        "kernel call": 9290.0,
        "kernel channel macs": 0.0067,
        "kernel dilated channel macs": 0.0155,
        "kernel few channel macs": 0.00653,
        "kernel floats": 0.067,
        "kernel grouped macs": 0.00505,
        "kernel grouped narrow macs": 0.00422,
        "kernel grouped narrow taps": 0.0312,
        "kernel macs": 0.00486,
        "kernel narrow macs": 0.00339,
        "kernel strided channel macs": 0.000653,
        "kernel volume channel macs": 0.00564,
        "macs": 0.0039,
        "narrow macs": 0.00414,
        "narrow taps": 0.00152,
        "strided channel macs": 0.00274,
        "taps": 0.000528,
        "volume channel macs": 0.00568,
    },
    "direct": {
        "call": 31400.0,
        "channel input macs": 1.52,
        "channel input packed": 1.52,
        "channel kernel macs": 0.533,
        "channel kernel packed": 0.533,
        "channel output macs": 1.07,
        "channel output packed": 1.07,
        "dilated call": 76800.0,
        "dilated macs": 0.00373,
        "dilated packed": 0.158,
        "few results' macs": 0.00462,
        "floats": 0.0991,
        "grouped input call": 914000.0,
        "grouped input macs": 0.0401,
        "grouped input packed": 0.556,
        "grouped kernel call": 1320000.0,
        "grouped kernel macs": 3.47,
        "grouped kernel packed": 25.0,
        "grouped output packed": 1.25,
        "kernel floats": 0.357,
        "kernel macs": 0.0101,
        "kernel packed": 0.0408,
        "kernel runs": 0.326,
        "line kernel call": 355000.0,
        "line kernel floats": 1.83,
        "macs": 0.0064,
        "packed": 0.0472,
        "runs": 0.931,
        "single kernel call": 61500.0,
        "single kernel few results' macs": 0.0756,
        "single kernel floats": 0.0964,
        "single kernel macs": 0.00543,
        "single kernel packed": 0.289,
        "single kernel runs": 0.289,
        "stretched call": 121000.0,
        "stretched few results' macs": 0.0161,
        "stretched floats": 0.0547,
        "stretched macs": 0.00693,
        "stretched runs": 0.15,
        "stretched zeros": 0.000194,
        "volume call": 220000.0,
        "volume floats": 1.84,
        "volume kernel call": 515000.0,
        "volume kernel few results' macs": 0.0707,
        "volume kernel floats": 1.38,
        "volume kernel macs": 0.119,
        "volume kernel packed": 0.344,
        "volume kernel runs": 0.344,
        "volume macs": 0.00253,
        "volume packed": 0.855,
        "volume runs": 1.71,
    },
    "shift": {
        "block macs": 0.00989,
        "block products": 511.0,
        "channel block macs": 0.0381,
        "channel block products": 67.6,
        "channel floats": 0.0454,
        "channel line tile floats": 0.526,
        "channel loop call": 30800.0,
        "channel loop macs": 0.0263,
        "channel tile floats": 0.0935,
        "channel tile macs": 0.00654,
        "floats": 0.126,
        "interleaved": 0.141,
        "large": 0.0137,
        "loop macs": 0.0662,
        "loop products": 1030.0,
        "narrow tile call": 21700.0,
        "narrow tile floats": 0.0485,
        "narrow tile macs": 0.0126,
        "tile call": 14100.0,
        "tile floats": 0.0883,
        "tile macs": 0.0118,
    },
    "matmul": {
        "call": 41200.0,
        "few results' macs": 0.000477,
        "floats": 0.00481,
        "floats in turn": 0.312,
        "grouped kernel moved": 1.6,
        "grouped moved": 0.838,
        "kernel call": 37200.0,
        "kernel floats": 0.347,
        "kernel macs": 0.00476,
        "kernel moved": 0.328,
        "kernel taps call": 5850.0,
        "kernel taps few results' macs": 0.0197,
        "kernel taps macs": 0.00476,
        "kernel taps moved": 0.302,
        "large": 0.069,
        "macs": 0.00417,
        "moved": 0.125,
        "phases": 6240.0,
    },
    "winograd": {
        "call": 40100.0,
        "kernel floats": 0.196,
        "large": 0.28,
        "macs": 0.00468,
        "native kernel floats": 0.121,
        "native macs": 0.00344,
        "native tile floats": 0.0932,
        "tile floats": 0.42,
    },
    "fft": {
        "call": 230000.0,
        "large": 0.0452,
        "transformed": 0.47,
    },
    "per_group": {
        "floats": 0.181,
        "groups' nanoseconds": 1.21,
        "looped floats": 1.55,
        "looped groups": 21.3,
        "looped groups' nanoseconds": 0.233,
    },
}
"""Nanoseconds of each term, by method."""


def seconds(method: ModuleType, spec: ConvSpec) -> float:
    """Returns the estimated time of a method that supports a convolution."""
    coefficients, terms = NANOSECONDS[method.NAME], method.terms(spec)
    if terms is NEVER:
        return math.inf
    estimate = 1e-9 * sum(
        coefficients.get(name, float(name in (KNOWN, CLEARING))) * count for name, count in terms.items()
    )
    is_slower = method.NAME in OF_PRODUCTS and not spec.lhs_dtype == spec.rhs_dtype == np.float32
    return OTHER_DTYPES_FACTOR * estimate if is_slower else estimate


def fastest_method(methods: Iterable[ModuleType], spec: ConvSpec) -> tuple[ModuleType, float]:
    """Returns the method with the least estimated time among those that support a convolution, and this time."""
    estimates = [(method, seconds(method, spec)) for method in methods if method.refusal(spec) is None]
    return min(estimates, key=lambda estimate: estimate[1])


@dataclasses.dataclass(frozen=True)
class Work:
    """Counts of one convolution.

    Args:
      stack: convolutions in the stack.
      taps: elements of the window.
      groups: groups of channels.
      summed: channels of a group over which a result sums; channels of x in the role `"kernel"`.
      results: channels of a group of the result; channels of y in the role `"kernel"`.
      pixels: positions of the result, or of y in the role `"kernel"`, in all images.
      macs: multiply-accumulates, without those on the zeros between the pixels of a strided y.
      slid: multiply-accumulates of a method that computes the full window at every pixel of the result. This is
        `macs`, except in the role `"input"`: there products with the zeros around y count too, those with the zeros
        between the pixels of y do not.
      floats: elements of both operands and the result. Pixels that a stride larger than the window skips count in the
        role `"input"` alone.
      result: elements of the result.
    """

    stack: int
    taps: int
    groups: int
    summed: int
    results: int
    pixels: int
    macs: float
    slid: float
    floats: float
    result: float

    @property
    def by_channel(self) -> bool:
        """Returns whether each channel is convolved by itself."""
        return self.summed == self.results == 1

    @property
    def gathered_numbers(self) -> float:
        """Returns the number of (window, tap, channel) triples: the numbers in a matrix of gathered pixels."""
        return self.slid / self.results

    def macs_of_whole_vectors(self, macs: float, vector: int = VECTOR) -> float:
        """Returns multiply-accumulates with the result's channels rounded up to whole vectors."""
        channels = self.groups if self.by_channel else self.results
        return macs * whole_vectors(channels, vector) / channels


def work(spec: ConvSpec) -> Work:
    """Returns the counts of a convolution."""
    *window, kernel_in, features = spec.kernel_shape
    kernel_out = features // spec.feature_group_count
    summed, results = (kernel_out, kernel_in) if spec.role == "input" else (kernel_in, kernel_out)
    stack, taps = spec.stacked or 1, math.prod(window)
    shape = spec.input_shape if spec.role == "input" else spec.output_shape
    macs = float(stack * math.prod(spec.output_shape) * taps * kernel_in)
    spanned = math.prod(spec.output_shape[1:-1]) * math.prod(spec.strides)
    # Strides larger than the window skip a part of the image.
    steps = zip(window, spec.strides, strict=True)
    read_share = 1.0 if spec.role == "input" else math.prod(min(1.0, tap_count / step) for tap_count, step in steps)
    floats = read_share * math.prod(spec.input_shape) + math.prod(spec.kernel_shape) + math.prod(spec.output_shape)
    return Work(
        stack=stack,
        taps=taps,
        groups=spec.feature_group_count,
        summed=summed,
        results=results,
        pixels=math.prod(shape[:-1]),
        macs=macs,
        slid=macs * max(math.prod(spec.input_shape[1:-1]) / spanned, 1.0) if spec.role == "input" else macs,
        floats=float(stack * floats),
        result=float(stack * math.prod(spec.result_shape)),
    )


def whole_vectors(channels: int, vector: int = VECTOR) -> int:
    """Returns the number of channels, rounded up to whole vectors."""
    return -(-channels // vector) * vector


def clearing_nanoseconds(size: float) -> float:
    """Returns the nanoseconds in which the system clears a temporary of this many bytes, 0 for a small one.

    Only a large temporary adds to the memory of a network. The measurement of a single layer does not show this time,
    since the C library keeps the memory of a small program between calls.
    """
    return CLEARING_NANOSECONDS * size if size > MAX_KEPT_BYTES else 0.0


def kernel_clearing_nanoseconds(size: float) -> float:
    """Returns the nanoseconds in which the system clears a copy of a kernel of this many bytes, 0 for a small one.

    The limit is lower than that of `clearing_nanoseconds`, since a program holds the copies of all its kernels at
    once: XLA:CPU makes them at the start, when the program's arguments are all it needs, and keeps each until its use.
    """
    return CLEARING_NANOSECONDS * size if size > MAX_KEPT_KERNEL_BYTES else 0.0


def above_cliff(size: float) -> float:
    """Returns the bytes of a temporary that is larger than `CLIFF_BYTES`, 0 for a smaller one."""
    return size if size > CLIFF_BYTES else 0.0
