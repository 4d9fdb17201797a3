"""The cost model: the estimated time of each method, and all coefficients that the estimates have.

A method's `terms(spec)` counts what its time grows with: calls, multiply-accumulates, numbers that are moved. The
estimate is the sum of the counts, each times its coefficient in `NANOSECONDS`. The coefficients are fitted to measured
layers: `python -m benchmarks.choice.fit --write` fits them again and writes this file. To change a method, change its
`terms`, measure the method again (`python -m benchmarks.choice.measure --again METHOD`), and fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import ModuleType

from jaxcnn.lowering.spec import ConvSpec

Terms = Mapping[str, float]
"""Counts by the name of their coefficient."""

NEVER: Terms = {"never": math.inf}
"""Terms of a convolution that a method is too slow for."""

VECTOR = 16
"""Channels that a kernel computes together: its cost grows in steps of as many."""

CLIFF_BYTES = 32 << 20
"""Largest memory that the C library keeps between calls. It returns larger memory, which the system clears again."""

# Written by `benchmarks.choice.fit`.
NANOSECONDS: dict[str, dict[str, float]] = {
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
        "kernel floats": 0.366,
        "kernel macs": 0.00987,
        "kernel packed": 0.0419,
        "kernel runs": 0.335,
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
        "line tile call": 3310.0,
        "line tile floats": 2.98,
        "line tile macs": 0.0173,
        "loop macs": 0.0662,
        "loop products": 1030.0,
        "narrow tile call": 39300.0,
        "narrow tile macs": 0.0327,
        "tile call": 13200.0,
        "tile floats": 0.0497,
        "tile macs": 0.0133,
    },
    "matmul": {
        "call": 46800.0,
        "few results' macs": 0.000431,
        "floats in turn": 0.31,
        "grouped kernel moved": 1.61,
        "grouped moved": 0.858,
        "kernel call": 37200.0,
        "kernel macs": 0.00477,
        "kernel moved": 0.328,
        "kernel taps call": 5850.0,
        "kernel taps few results' macs": 0.0197,
        "kernel taps macs": 0.00476,
        "kernel taps moved": 0.302,
        "large": 0.0664,
        "macs": 0.00469,
        "moved": 0.11,
        "phases": 10000.0,
    },
    "winograd": {
        "call": 41800.0,
        "kernel floats": 0.212,
        "large": 0.296,
        "macs": 0.00342,
        "native call": 3590.0,
        "native kernel floats": 0.222,
        "native macs": 0.00176,
        "native tile floats": 0.137,
        "tile floats": 0.428,
    },
    "fft": {
        "call": 230000.0,
        "large": 0.0452,
        "transformed": 0.47,
    },
    "native": {
        "call": 12100.0,
        "channel macs": 0.00349,
        "dilated channel macs": 0.0299,
        "few channel macs": 0.00594,
        "few channel pixels": 0.855,
        "floats": 0.102,
        "grouped macs": 0.0108,
        "grouped narrow macs": 0.00829,
        "grouped narrow taps": 0.0126,
        "kernel channel macs": 0.00622,
        "kernel dilated channel macs": 0.0191,
        "kernel few channel macs": 0.0142,
        "kernel few channel pixels": 12.7,
        "kernel floats": 0.129,
        "kernel grouped narrow macs": 0.00603,
        "kernel grouped narrow taps": 0.0352,
        "kernel macs": 0.00527,
        "kernel narrow macs": 0.00298,
        "kernel narrow taps": 0.181,
        "kernel strided channel macs": 0.00226,
        "kernel taps": 0.0341,
        "kernel volume channel macs": 0.00631,
        "macs": 0.00543,
        "narrow macs": 0.00845,
        "narrow taps": 0.03,
        "strided channel macs": 0.00364,
        "taps": 0.0167,
        "volume channel macs": 0.0126,
    },
    "per_group": {
        "groups' nanoseconds": 1.41,
        "looped floats": 1.81,
        "looped groups' nanoseconds": 0.154,
    },
}
"""Nanoseconds of each term, by method."""
# End of what is written.


def seconds(method: ModuleType, spec: ConvSpec) -> float:
    """Returns the estimated time of a method that supports a convolution."""
    coefficients, terms = NANOSECONDS[method.NAME], method.terms(spec)
    if terms is NEVER:
        return math.inf
    return 1e-9 * sum(coefficients.get(name, 0.0) * count for name, count in terms.items())


def least(methods: Iterable[ModuleType], spec: ConvSpec) -> tuple[ModuleType, float]:
    """Returns the method with the least estimated time among those that support a convolution, and this time."""
    estimates = [(method, seconds(method, spec)) for method in methods if method.supports(spec) is None]
    return min(estimates, key=lambda estimate: estimate[1])


@dataclasses.dataclass(frozen=True)
class Work:
    """Counts of one convolution.

    Args:
      stack: convolutions in the stack.
      taps: elements of the window.
      groups: groups of channels.
      summed: channels of a group that a result adds up; of x, in the role `"kernel"`.
      results: channels of a group of the result; of y, in the role `"kernel"`.
      pixels: positions of the result, or of y in the role `"kernel"`, in all images.
      macs: multiply-accumulates, without those on the zeros between the pixels of a strided y.
      slid: multiply-accumulates of a window that slides over all pixels of the result, padding counted.
      floats: elements of both operands and the result.
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
    def gathered(self) -> float:
        """Returns the pixels under all taps, each as often as a tap meets it."""
        return self.slid / self.results

    def filled(self, macs: float, vector: int = VECTOR) -> float:
        """Returns the multiply-accumulates where vectors of the result's channels are filled up."""
        channels = self.groups if self.by_channel else self.results
        return macs * filled(channels, vector) / channels


def work(spec: ConvSpec) -> Work:
    """Returns the counts of a convolution."""
    *window, kernel_in, features = spec.kernel_shape
    kernel_out = features // spec.feature_group_count
    summed, results = (kernel_out, kernel_in) if spec.role == "input" else (kernel_in, kernel_out)
    stack, taps = spec.stacked or 1, math.prod(window)
    shape = spec.input_shape if spec.role == "input" else spec.output_shape
    macs = float(stack * math.prod(spec.output_shape) * taps * kernel_in)
    met = math.prod(spec.output_shape[1:-1]) * math.prod(spec.strides)
    return Work(
        stack=stack,
        taps=taps,
        groups=spec.feature_group_count,
        summed=summed,
        results=results,
        pixels=math.prod(shape[:-1]),
        macs=macs,
        slid=macs * max(math.prod(spec.input_shape[1:-1]) / met, 1.0) if spec.role == "input" else macs,
        floats=float(stack * sum(map(math.prod, (spec.input_shape, spec.kernel_shape, spec.output_shape)))),
        result=float(stack * math.prod(spec.result_shape)),
    )


def filled(channels: int, vector: int = VECTOR) -> int:
    """Returns the channels of whole vectors."""
    return -(-channels // vector) * vector


def above_cliff(size: float) -> float:
    """Returns the bytes of a temporary that is larger than the memory that is kept, else 0."""
    return size if size > CLIFF_BYTES else 0.0
