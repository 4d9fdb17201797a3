"""What all benchmarks share: compile first, wait for the result, compare in one process.

JAX returns before a result is there and compiles at the first call, so each function here is jitted and called once
before anything is measured, and each measured call waits for its result. The names of parameters are strings that sort;
data are drawn from fixed seeds and in channels-last layout unless a benchmark is about layout. Tests run what is in a
class's `quick` in the place of its layers.
"""

import abc
import dataclasses
import importlib
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.norms import relative_error


def array(*shape: int, seed: int = 0) -> jax.Array:
    """Normal random numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def kernel(*shape: int, seed: int = 1) -> jax.Array:
    """A random kernel (*window, I, O) that keeps the size of what it is convolved with."""
    return array(*shape, seed=seed) / np.sqrt(np.prod(shape[:-1])).astype(np.float32)


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


def require(*names: str) -> None:
    """Skips the benchmark on commits of the library that lack one of the public names."""
    for name in names:
        if not hasattr(jaxcnn, name):
            raise NotImplementedError(f"this commit has no jaxcnn.{name}")


def processors() -> int:
    """Returns the number of processors that this process may use, which is how many threads each library takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to_processors(count: int) -> None:
    """Keeps this process to its first `count` processors, and libraries that are loaded later to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def native_available() -> bool:
    """Returns whether this process has the library's native kernels; older commits have none."""
    try:
        return bool(importlib.import_module("jaxcnn.native").is_available())
    except ImportError:
        return False


def blocked_seconds(function: Callable, args: tuple, calls: int) -> float:
    """Seconds for each of `calls` calls in a row, each waited for."""
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function(*args))
    return (time.perf_counter() - start) / calls


def speedup(ours: Callable, plain: Callable, *args: Any, seconds: float = 0.8) -> float:
    """How many times faster `ours` is than `plain`: the median ratio of neighbouring blocks of calls.

    Both must have been compiled. The blocks alternate, and so does which of the two goes first, so that a processor
    that slows down in the course of the measurement slows both.
    """
    first, second = blocked_seconds(ours, args, 1), blocked_seconds(plain, args, 1)
    rounds = int(np.clip(seconds / (first + second), 3, 11))
    share = seconds / (2 * rounds)
    calls = [max(1, int(share / once)) for once in (first, second)]
    ratios = []
    for index in range(rounds):
        times = {}
        for which in (0, 1) if index % 2 else (1, 0):
            times[which] = blocked_seconds((ours, plain)[which], args, calls[which])
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


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
        """The case of these parameters; it may raise NotImplementedError to be skipped."""

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
    """The same, and the multiply-accumulates."""

    def track_macs(self, *params: str) -> int:
        return self.cost.macs

    track_macs.unit = "MACs"


@dataclasses.dataclass(frozen=True)
class Substitution:
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
    """How many multiply-accumulates fewer a substitution takes, and how much of that the clock sees."""

    quick: ClassVar[dict[str, Any]] = {}
    timeout = 300
    speedup_seconds = 0.8

    @abc.abstractmethod
    def case(self, *params: Any) -> Substitution:
        """The substitution of these parameters."""

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
