"""The tracked set: what `make bench` records for a commit, in about a minute on two cores.

Each value is a ratio of two measurements that took turns in one process, an error, or a count, so that machines can be
compared. The lower a value, the better, since that is how airspeed velocity finds regressions: a third of lax's time is
three times faster. A class measures all of its values at once, in `setup_cache`, and each benchmark reads one of them.
What a commit cannot compute yet is NaN, a gap in its curve.
"""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import numpy as np

import jaxcnn
from benchmarks.shared import plain, small_network
from benchmarks.shared.arrays import array, decaying_kernel, kernel, relative_error
from benchmarks.shared.environment import require, torch_or_none
from benchmarks.shared.layers import Layer, in_role
from benchmarks.shared.network_layers import draw
from benchmarks.shared.networks import NETWORKS, QUICK, Network
from benchmarks.shared.timing import Program, compile_program, compile_seconds, timer
from benchmarks.shared.torch_layers import torch_function

Values = dict[str, float]

LEAST_ERROR = 1e-6
"""Errors below are rounding, and count as this: their steps mean nothing."""
MIN_BLOCKS = 3
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def reads(value: str, unit: str) -> Callable:
    """Returns a benchmark that reads one of the values that `setup_cache` has measured."""

    def track(self: Any, measured: dict[str, Values], name: str) -> float:
        return measured[name].get(value, math.nan)

    track.unit = unit
    return track


def ratio_to(other: str, of: str) -> Callable:
    """Returns a benchmark that reads a time over another's."""
    return reads(f"time_over_{other}", f"of {of}")


@dataclasses.dataclass(frozen=True)
class Case:
    """Holds what a name stands for.

    Args:
      calls: functions to time, of which the first is jaxcnn's.
      values: values that are known without these times.
    """

    calls: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    values: Values = dataclasses.field(default_factory=dict)


def best_seconds(cases: dict[str, Case], seconds: float) -> dict[str, Values]:
    """Returns the seconds of the best block of each function.

    The cases take turns, one block of each function at a time, until each case has had its seconds: what slows a shared
    processor for a while meets some blocks of every case, and the best one of none.
    """
    best: dict[str, Values] = {name: {} for name, case in cases.items() if case.calls}
    spent, blocks = dict.fromkeys(best, 0.0), 0
    while waiting := [name for name in best if spent[name] < seconds or blocks < MIN_BLOCKS]:
        blocks += 1
        for name in waiting:
            start = time.perf_counter()
            for form, times in timer.block_seconds(cases[name].calls, rounds=1).items():
                best[name][form] = min(times[0], best[name].get(form, math.inf))
            spent[name] += time.perf_counter() - start
    return best


def measured(make_case: Callable[[str], Case], names: Iterable[str], seconds: float = 0.0) -> dict[str, Values]:
    """Returns the values of each name; none where the commit lacks a public name that they need.

    A name whose case raises anything else is left out, so that its benchmarks fail and the others do not.
    """
    cases: dict[str, Case] = {}
    for name in names:
        jax.clear_caches()  # equal layers of the name before would be found traced
        try:
            cases[name] = make_case(name)
        except NotImplementedError:
            cases[name] = Case()
        except Exception:
            traceback.print_exc()
    by_name = {name: dict(case.values) for name, case in cases.items()}
    for name, best in best_seconds(cases, seconds).items():
        by_name[name] |= ratios(best, by_name[name].get("macs_share"))
    return by_name


def ratios(seconds: Values, macs_share: float | None) -> Values:
    """Returns the first function's time over that of each other one, and how the clock agrees with the arithmetic."""
    ours, *others = seconds
    values = {f"time_over_{other}": seconds[ours] / seconds[other] for other in others}
    if macs_share is not None and "exact" in seconds:
        values["clock_over_arithmetic"] = values["time_over_exact"] / macs_share
    return values


class Layers:
    """A layer of each family through jaxcnn."""

    layers: ClassVar[dict[str, tuple[Layer, str]]] = {
        "depthwise 3x3": (Layer("", (1, 56, 56, 144), (3, 3), 144, 1, 144), "forward"),
        "depthwise 3x3, gradient": (Layer("", (1, 28, 28, 144), (3, 3), 144, 1, 144), "gradient"),
        "1x1": (Layer("", (1, 28, 28, 192), (1, 1), 192), "forward"),
        "1x7": (Layer("", (1, 17, 17, 160), (1, 7), 160), "forward"),
        "7x1": (Layer("", (1, 17, 17, 160), (7, 1), 160), "forward"),
        "1-D, 9 taps": (Layer("", (1, 2048, 64), (9,), 64), "forward"),
        "3x3": (Layer("", (1, 56, 56, 64), (3, 3), 64), "forward"),
        "3x3 in 32 groups, gradient": (Layer("", (1, 14, 14, 256), (3, 3), 256, 1, 32), "gradient"),
        "max pool 3x3/2, gradient": (Layer("", (1, 112, 112, 64), (3, 3), 0, 2, pool="max"), "gradient"),
        "transposed 4x4/2": (Layer("", (1, 32, 32, 128), (4, 4), 64, 2, transposed=True), "forward"),
    }
    quick: ClassVar = {"layers": {"depthwise 3x3": (Layer("", (1, 6, 6, 4), (3, 3), 4, 1, 4), "gradient")}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]
    timeout = 300
    version = "1"
    seconds = 0.6

    def setup_cache(self):
        return measured(self.case, self.params[0], self.seconds)

    def case(self, name: str) -> Case:
        layer, role = self.layers[name]
        require("max_pool" if layer.pool else "conv_transpose" if layer.transposed else "conv")
        arguments = layer.arguments(role)
        calls = {
            "jaxcnn": compile_program(in_role(layer.by_jaxcnn, role), *arguments).call,
            "lax": compile_program(in_role(layer.by_lax, role), *arguments).call,
        }
        if torch_or_none() is not None:
            calls["torch"] = torch_function(layer, role, *arguments)
        return Case(calls)

    track_time_over_lax = ratio_to("lax", "lax's time")
    track_time_over_torch = ratio_to("torch", "PyTorch's time")


def of_rank(scheme: str, window: int, channels: int, **ranks: int) -> Callable[[], tuple[Any, Any]]:
    """Returns a function that draws a kernel and replaces it by a chain of a scheme."""

    def draw() -> tuple[Any, Any]:
        require(scheme)
        dense = decaying_kernel(window, window, channels, channels)
        return dense, getattr(jaxcnn, scheme)(dense, **ranks)

    return draw


def image_filter(size: int) -> tuple[Any, Any]:
    """Returns an image filter, and the column and the row that it equals."""
    profile = np.hanning(size + 2)[1:-1].astype(np.float32)
    dense = jax.numpy.asarray(np.outer(profile, profile).reshape(size, size, 1, 1))
    return dense, jaxcnn.separable(dense, rank=1)


def three_by_threes(channels: int) -> tuple[Any, Any]:
    """Returns a 5x5 kernel, and the two of 3x3 that it equals."""
    chain = jaxcnn.KernelChain(tuple(kernel(3, 3, channels, channels, seed=seed) for seed in range(2)), (1, 1))
    return chain.dense(), chain


class Schemes:
    """Each scheme: the textbooks' two exact ones, and the others at a quarter of a layer's multiply-accumulates."""

    layers: ClassVar[dict[str, tuple[tuple[int, ...], Callable[[], tuple[Any, Any]]]]] = {
        "3x3 by cp": ((1, 56, 56, 64), of_rank("cp", 3, 64, rank=64)),
        "3x3 by depthwise_separable": ((1, 56, 56, 64), of_rank("depthwise_separable", 3, 64, multiplier=2)),
        "3x3 by low_rank": ((1, 56, 56, 64), of_rank("low_rank", 3, 64, rank=14)),
        "3x3 by separable": ((1, 56, 56, 64), of_rank("separable", 3, 64, rank=24)),
        "3x3 by tucker2": ((1, 56, 56, 64), of_rank("tucker2", 3, 64, ranks=24)),
        "5x5 as two 3x3: 25 to 18": ((1, 35, 35, 64), lambda: three_by_threes(64)),
        "11x11 filter as 11x1, 1x11: 121 to 22": ((1, 512, 512, 1), lambda: image_filter(11)),
    }
    quick: ClassVar = {"layers": {"3x3 by low_rank": ((1, 6, 6, 4), of_rank("low_rank", 3, 4, rank=1))}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["scheme"]
    timeout = 300
    version = "1"
    seconds = 0.6

    def setup_cache(self):
        return measured(self.case, self.params[0], self.seconds)

    def case(self, name: str) -> Case:
        shape, draw = self.layers[name]
        x, (dense, chain) = array(*shape), draw()
        calls = {
            "chain": compile_program(lambda x, chain: jaxcnn.conv(x, chain), x, chain).call,
            "lax": compile_program(lambda x, dense: plain.conv(x, dense), x, dense).call,
            "exact": compile_program(lambda x, dense: jaxcnn.conv(x, dense), x, dense).call,
        }
        if torch_or_none() is not None:
            layer = Layer("", shape, dense.shape[:2], dense.shape[-1])
            calls["torch"] = torch_function(layer, "forward", x, dense)
        macs_share = jaxcnn.conv_cost(shape, chain).macs / jaxcnn.conv_cost(shape, dense.shape).macs
        error = relative_error(chain.dense(), dense)
        return Case(calls, {"macs_share": macs_share, "error": max(error, LEAST_ERROR)})

    track_time_over_lax = ratio_to("lax", "lax's time for the dense kernel")
    track_time_over_exact = ratio_to("exact", "jaxcnn's time for the dense kernel")
    track_time_over_torch = ratio_to("torch", "PyTorch's time for the dense kernel")
    track_macs_share = reads("macs_share", "of the dense kernel's MACs")
    track_clock_over_arithmetic = reads("clock_over_arithmetic", "share of the time over share of the MACs")
    track_error = reads("error", "relative error of the kernel")


class Accelerated:
    """Published networks through `accelerate`, forward: one of depthwise layers, one of dense ones."""

    networks: ClassVar[dict[str, Network]] = {name: NETWORKS[name] for name in ("MobileNetV2", "ResNet-50")}
    quick: ClassVar = {"networks": {"MobileNetV2": QUICK["one block"]}}
    params: ClassVar = [sorted(networks)]
    param_names: ClassVar = ["network"]
    timeout = 300
    version = "1"
    seconds = 1.5

    def setup_cache(self):
        return measured(self.case, self.params[0], self.seconds)

    def case(self, name: str) -> Case:
        require("accelerate")
        network = self.networks[name]
        weights = draw(network.weight_specs())
        arguments = list(map(jax.numpy.asarray, weights)), array(1, network.size, network.size, 3)
        in_lax = network.lax("forward")
        programs: dict[str, Program] = {}
        for form in ("lax", "jaxcnn"):
            jax.clear_caches()  # or a form would find the inner functions of the other already traced
            function = jaxcnn.accelerate(in_lax) if form == "jaxcnn" else lambda *arguments: in_lax(*arguments)
            programs[form] = compile_program(function, *arguments)
        calls = {form: programs[form].call for form in ("jaxcnn", "lax")}
        if torch_or_none() is not None:
            calls["torch"] = network.torch("forward", weights, arguments[1])
        first_call = programs["jaxcnn"].first_seconds / programs["lax"].first_seconds
        return Case(calls, {"first_call_over_lax": first_call})

    track_time_over_lax = ratio_to("lax", "lax's time")
    track_time_over_torch = ratio_to("torch", "PyTorch's time")
    track_first_call_over_lax = reads("first_call_over_lax", "of the first call's time in lax")


class Substituted:
    """Four layers through `substitute`, at a quarter of their multiply-accumulates, and the search for them."""

    networks: ClassVar = {"four layers": (small_network.LAYERS, small_network.SIZE)}
    quick: ClassVar = {"networks": {"four layers": (((3, 3, 6),), 12)}}
    params: ClassVar = [sorted(networks)]
    param_names: ClassVar = ["network"]
    timeout = 300
    version = "1"
    seconds = 1.0

    def setup_cache(self):
        return measured(self.case, self.params[0], self.seconds)

    def case(self, name: str) -> Case:
        require("substitute")
        layers, size = self.networks[name]
        network, dense, x = small_network.network, small_network.kernels(layers), array(1, size, size, 3)
        compilations: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compilations.append(event))
        start = time.perf_counter()
        substitution = jaxcnn.substitute(network, dense, x, macs=0.25, **small_network.any_result())
        search_seconds = time.perf_counter() - start
        values = {"compilations": float(compilations.count(COMPILE_EVENT))}
        calls = {
            "chains": compile_program(substitution.apply, substitution.params, x).call,
            "lax": compile_program(network, dense, x).call,
        }
        if hasattr(jaxcnn, "accelerate"):
            calls["exact"] = compile_program(jaxcnn.accelerate(network), dense, x).call
        error = relative_error(calls["chains"](), calls["lax"]())
        before = jaxcnn.summarize(network, dense, x).total.macs
        macs_share = jaxcnn.summarize(substitution.apply, substitution.params, x).total.macs / before
        compiling = min(compile_seconds(lambda dense, x: network(dense, x), dense, x) for _ in range(3))
        values |= {"macs_share": macs_share, "error": max(error, LEAST_ERROR)}
        return Case(calls, values | {"search_over_compilation": search_seconds / compiling})

    track_time_over_lax = ratio_to("lax", "lax's time for the dense kernels")
    track_time_over_exact = ratio_to("exact", "jaxcnn's time for the dense kernels")
    track_macs_share = reads("macs_share", "of the dense kernels' MACs")
    track_clock_over_arithmetic = reads("clock_over_arithmetic", "share of the time over share of the MACs")
    track_error = reads("error", "relative error of the results")
    track_search_over_compilation = reads("search_over_compilation", "times as long as to compile the network")
    track_compilations = reads("compilations", "programs compiled in the search")


class Compilation:
    """Time to compile a layer through jaxcnn."""

    layers: ClassVar = {
        "3x3": (Layer("", (1, 16, 16, 16), (3, 3), 16), "forward"),
        "3x3, gradient": (Layer("", (1, 16, 16, 16), (3, 3), 16), "gradient"),
        "depthwise 3x3, gradient": (Layer("", (1, 16, 16, 16), (3, 3), 16, 1, 16), "gradient"),
    }
    quick: ClassVar = {"layers": {"3x3": (Layer("", (1, 6, 6, 3), (3, 3), 3), "forward")}}
    params: ClassVar = [sorted(layers)]
    param_names: ClassVar = ["layer"]
    timeout = 300
    version = "1"
    rounds = 3

    def setup_cache(self):
        return measured(self.case, self.params[0])

    def case(self, name: str) -> Case:
        layer, role = self.layers[name]
        forms = {"jaxcnn": in_role(layer.by_jaxcnn, role), "lax": in_role(layer.by_lax, role)}
        arguments = layer.arguments(role)
        rounds = [
            {form: compile_seconds(function, *arguments) for form, function in forms.items()}
            for _ in range(self.rounds)
        ]
        best = {form: min(seconds[form] for seconds in rounds) for form in forms}
        return Case(values={"compilation_over_lax": best["jaxcnn"] / best["lax"]})

    track_compilation_over_lax = reads("compilation_over_lax", "of lax's time to compile")
