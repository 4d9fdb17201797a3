"""Base classes of the suites: compile first, wait for the result, compare in one process.

JAX returns before a result is there and compiles at the first call, so each function here is jitted and called once
before anything is measured, and each measured call waits for its result. The names of parameters are strings that sort;
data are drawn from fixed seeds and in channels-last layout unless a benchmark is about layout. Tests run what is in a
class's `quick` in the place of its layers.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from benchmarks.shared.arrays import relative_error
from benchmarks.shared.layers import Layer, in_role
from benchmarks.shared.timing import speedup


def quick(cls: type) -> type:
    """Returns the benchmark on what is small enough for a test, with the attributes that its `quick` holds.

    Where one of these is the table whose names are the first parameter, so are the names of the new table.
    """
    attributes = dict(getattr(cls, "quick", {}))
    first, *others = getattr(cls, "params", None) or [[]]
    for name, table in attributes.items():
        if isinstance(table, dict) and sorted(getattr(cls, name)) == list(first):
            return type(cls.__name__, (cls,), {"params": [sorted(table), *others], **attributes})
    return type(cls.__name__, (cls,), attributes)


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer computed in two ways.

    Args:
      ours: through jaxcnn.
      plain: what one would write without it, with `lax` or `jnp`; takes the same arguments.
      args: the arguments.
      cost: what `ours` takes, as `jaxcnn.Cost`.
    """

    ours: Callable
    plain: Callable
    args: tuple
    cost: Any = None


class Benchmark(abc.ABC):
    """Makes a case ready: jitted, called once, waited for.

    `quick` holds attributes that take the place of the class's in tests: smaller layers, fewer examples.
    """

    quick: ClassVar[dict[str, Any]] = {}
    params: ClassVar[list] = []
    param_names: ClassVar[list] = ["layer"]
    timeout = 120
    rounds = 1
    repeat = (3, 15, 0.6)
    warmup_time = 0.05

    @abc.abstractmethod
    def case(self, *params: str) -> Case:
        """Returns the case of these parameters; raises NotImplementedError to be skipped."""

    def setup(self, *params: str) -> None:
        # asv calls this again before each sample: only the first time is there anything to do.
        if getattr(self, "_ready", None) == params:
            return
        case = self.case(*params)
        self.ours, self.plain, self.args, self.cost = jax.jit(case.ours), jax.jit(case.plain), case.args, case.cost
        jax.block_until_ready((self.args, self.ours(*self.args), self.plain(*self.args)))
        self._ready = params


class Comparison(Benchmark):
    """Time, speed-up and error of a case."""

    speedup_seconds = 0.8

    def time_jaxcnn(self, *params: str) -> None:
        jax.block_until_ready(self.ours(*self.args))

    def time_lax(self, *params: str) -> None:
        jax.block_until_ready(self.plain(*self.args))

    def track_speedup(self, *params: str) -> float:
        return speedup(self.ours, self.plain, *self.args, seconds=self.speedup_seconds)

    def track_error(self, *params: str) -> float:
        return relative_error(self.ours(*self.args), self.plain(*self.args))

    track_speedup.unit = "times faster than lax"
    track_error.unit = "relative error"


class ConvComparison(Comparison):
    """Time, speed-up and error of a convolution, and its multiply-accumulates."""

    def track_macs(self, *params: str) -> int:
        return self.cost.macs

    track_macs.unit = "MACs"


class LayerComparison(ConvComparison):
    """Layers of the table of all families, in one role: "forward", or "gradient" by all operands."""

    layers: ClassVar[dict[str, Layer]] = {}
    role: ClassVar[str] = "forward"

    def case(self, name: str) -> Case:
        layer = self.layers[name]
        # A gradient by images and by a kernel is two convolutions.
        cost = layer.cost if self.role == "forward" else layer.cost + layer.cost
        forms = in_role(layer.by_jaxcnn, self.role), in_role(layer.by_lax, self.role)
        return Case(*forms, layer.arguments(self.role), cost)


@dataclasses.dataclass(frozen=True)
class ChainCase:
    """One function computed in three ways.

    Args:
      chained, lax, exact: functions of the same arguments: with the small kernels; with the dense kernel in lax; with
        the dense kernel by the method that `jaxcnn.conv` chooses.
      args: the arguments.
      macs, dense_macs: multiply-accumulates with the small kernels and with the dense one.
    """

    chained: Callable
    lax: Callable
    exact: Callable
    args: tuple
    macs: int
    dense_macs: int


class Claim(abc.ABC):
    """Share of multiply-accumulates that a substitution saves, and how much of it the clock sees."""

    quick: ClassVar[dict[str, Any]] = {}
    timeout = 300
    speedup_seconds = 0.8

    @abc.abstractmethod
    def case(self, *params: Any) -> ChainCase:
        """Returns the case of these parameters."""

    def setup(self, *params: Any) -> None:
        case = self.case(*params)
        self.args, self.macs_ratio = case.args, case.dense_macs / case.macs
        self.chained, self.lax, self.exact = jax.jit(case.chained), jax.jit(case.lax), jax.jit(case.exact)
        jax.block_until_ready([function(*self.args) for function in (self.chained, self.lax, self.exact)])

    def track_macs_ratio(self, *params: Any) -> float:
        return self.macs_ratio

    def track_speedup_over_lax(self, *params: Any) -> float:
        return speedup(self.chained, self.lax, *self.args, seconds=self.speedup_seconds)

    def track_speedup_over_exact(self, *params: Any) -> float:
        return speedup(self.chained, self.exact, *self.args, seconds=self.speedup_seconds)

    track_macs_ratio.unit = "times fewer MACs"
    track_speedup_over_lax.unit = "times faster than lax"
    track_speedup_over_exact.unit = "times faster than jaxcnn's exact methods"
