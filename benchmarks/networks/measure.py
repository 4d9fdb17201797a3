"""A substitution of one trained network, with what its search takes, and the same network in other compilers."""

from __future__ import annotations

import math
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import monitoring

import jaxcnn

from ..peers.runtimes import onnxruntime_session
from ..shared.timing import compile_program, milliseconds
from .trained import Entry, Trained

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_SAMPLE_SECONDS = 0.02
"""Time between two looks at the memory of this process."""


class Compilations:
    """Counts the programs that XLA compiles, and their seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: Any) -> None:
        if event == _COMPILE_EVENT:
            self.count, self.seconds = self.count + 1, self.seconds + duration


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Gives a function to the largest number of megabytes that this process had beyond those at the start."""
    page = resource.getpagesize()

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page / 1e6

    start, done = resident(), threading.Event()
    peak = [start]

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(peak[0], resident()) - start
    finally:
        done.set()
        thread.join()


def search(entry: Entry, options: dict[str, Any], steps: int = 0) -> dict[str, Any]:
    """Returns a record of one substitution, verified on inputs that it did not see.

    Args:
      entry: network.
      options: options of `jaxcnn.substitute`.
      steps: number of steps by which the chains are then trained to the dense network's results.
    """
    network = entry.load()
    compilations = Compilations()
    with peak_memory() as dense_peak:
        before = _results(network.function, network.params, network)
        dense_megabytes = dense_peak()
    record: dict[str, Any] = {"network": entry.title, "package": entry.package, "task": entry.task}
    record["dense_megabytes"] = dense_megabytes
    record["calibration_megabytes"] = (
        sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(network.calibration)) / 1e6
    )
    phases: dict[str, list[float]] = {}
    count, compile_seconds, clock = compilations.count, compilations.seconds, _Clock(phases)
    wall, processor = time.perf_counter(), time.process_time()
    try:
        with peak_memory() as peak:
            small = jaxcnn.substitute(
                network.function,
                network.params,
                *network.args,
                calibration=list(network.calibration),
                progress=clock,
                **options,
            )
            record["search_megabytes"] = peak()
    except ValueError as error:
        record["refusal"] = str(error)
        small = None
    clock.stop()
    record |= {
        "wall_seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "compilations": compilations.count - count,
        "compile_seconds": compilations.seconds - compile_seconds,
        "phases": phases,
    }
    if small is None:
        return record
    if steps:
        record["before_training"] = _unseen(network, small, before)
        wall, processor = time.perf_counter(), time.process_time()
        small = small.distill(network.training() if network.training else list(network.calibration), steps=steps)
        record["training_processor_seconds"] = time.process_time() - processor
        record["training_wall_seconds"] = time.perf_counter() - wall
    report = small.report
    record |= _unseen(network, small, before)
    record |= {
        "macs_share": report.macs_share,
        "report_speedup": report.speedup,
        "report_error": report.error,
        "held_out_error": report.held_out_error,
        "layers": [
            [row.name, row.kernel, row.scheme, str(row.rank), row.ms_before, row.ms_after, row.error, row.reason]
            for row in report.rows
        ],
    }
    record["milliseconds"] = _times(network, small)
    return record


class _Clock:
    """Notes the wall-clock and processor seconds of each phase of a search, as its progress names them."""

    def __init__(self, phases: dict[str, list[float]]) -> None:
        self.phases, self._name = phases, "Tracing"
        self._start = time.perf_counter(), time.process_time()

    def __call__(self, done: float, total: float, what: str) -> None:
        self.stop()
        self._name = what.split()[0] if what else self._name

    def stop(self) -> None:
        now = time.perf_counter(), time.process_time()
        spent = self.phases.setdefault(self._name, [0.0, 0.0])
        spent[:] = [a + b - c for a, b, c in zip(spent, now, self._start, strict=True)]
        self._start = now


def _results(function: Callable[..., Any], params: Any, network: Trained) -> list[Any]:
    """Returns a function's results for each of the inputs that are unseen."""
    jitted = jax.jit(function)
    return [jax.tree.map(np.asarray, jitted(params, *batch)) for batch in network.unseen]


def _unseen(network: Trained, small: jaxcnn.Substitution, before: list[Any]) -> dict[str, Any]:
    """Returns the relative error for all unseen inputs together, and the shares of the tasks that are kept."""
    after = _results(small.apply, small.params, network)
    pairs = list(zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    error = sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in pairs)
    scale = sum(float(np.square(a, dtype=np.float64).sum()) for a, _ in pairs)
    further = {name: task(before, after) for name, task in network.further_tasks.items()}
    return {"error": math.sqrt(error / scale), "kept": network.task(before, after), "further": further}


def _times(network: Trained, small: jaxcnn.Substitution, seconds: float = 3.0) -> dict[str, float]:
    """Returns milliseconds of a call with kernels and with chains, each under `jax.jit` and `jaxcnn.accelerate`."""
    dense, chains = jax.jit(network.function), jax.jit(small.apply)
    fast = jax.jit(jaxcnn.accelerate(small.apply))
    calls = {
        "jit": lambda: jax.block_until_ready(dense(network.params, *network.args)),
        "chains": lambda: jax.block_until_ready(chains(small.params, *network.args)),
        "chains accelerated": lambda: jax.block_until_ready(fast(small.params, *network.args)),
    }
    return milliseconds(calls, seconds)


def acceleration(entry: Entry, seconds: float) -> dict[str, Any]:
    """Returns a record of one network through `jax.jit`, `jaxcnn.accelerate` and, of a graph, ONNX Runtime."""
    network = entry.load()
    arguments = network.params, *network.args
    programs, functions = {}, {}
    for name, function in (("jit", network.function), ("accelerate", jaxcnn.accelerate(network.function))):
        jax.clear_caches()
        programs[name] = compile_program(function, *arguments)
        functions[name] = programs[name].call
    if network.path is not None:
        functions["onnxruntime"] = onnxruntime_session(network.path.read_bytes(), network.args)
    return {
        "network": entry.title,
        "package": entry.package,
        "milliseconds": milliseconds(functions, seconds, statistics.median),
        "first_seconds": {name: program.first_seconds for name, program in programs.items()},
        "megabytes": {name: program.megabytes for name, program in programs.items()},
    }
