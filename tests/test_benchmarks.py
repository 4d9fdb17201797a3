"""The benchmarks run, and leave no public array function out."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from benchmarks import asv, shared
from benchmarks.asv import bench_literature, bench_substitute_network
from benchmarks.asv.suite import Claim, quick
from benchmarks.peers import literature
from benchmarks.shared import timing
from benchmarks.shared.arrays import relative_error
from benchmarks.shared.environment import torch_or_none
from support.clocks import Clock

MODULES = [
    importlib.import_module(f"benchmarks.asv.{module.name}")
    for module in pkgutil.iter_modules(asv.__path__)
    if module.name != "suite"
]

CLASSES = [
    cls
    for module in MODULES
    for _, cls in sorted(inspect.getmembers(module, inspect.isclass))
    if cls.__module__ == module.__name__ and not inspect.isabstract(cls) and not dataclasses.is_dataclass(cls)
]

ROOT = Path(__file__).parent.parent

NOT_MEASURED = {
    "ComputedKernels": "a record",
    "RankCurve": "a record",
    "LayerReport": "a row of a report",
    "FieldLayer": "arithmetic on integers",
    "ReceptiveField": "arithmetic on integers",
    "SubstitutionReport": "what substitute says of its result",
    "SummaryRow": "a row of what summarize returns",
    "Substitution": "what substitute returns",
    "Summary": "what summarize returns",
    "TradeOff": "a record",
    "TuningTable": "what tune returns",
    "conv_output_shape": "arithmetic on integers",
    "pool_output_shape": "arithmetic on integers",
    "receptive_field": "arithmetic on integers",
    "tune": "a measurement itself, for as long as the user allows",
}


def measured_names(cls):
    return [name for name in dir(cls) if re.match("(time|track|peakmem|timeraw)_", name)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_helpers_are_not_taken_for_benchmarks(module):
    assert not measured_names(module)


def test_every_public_function_is_measured():
    folders = Path(asv.__file__).parent, Path(shared.__file__).parent
    source = "".join(path.read_text() for folder in folders for path in folder.glob("*.py"))
    measured = {name for name in jaxcnn.__all__ if re.search(rf"jaxcnn\.{name}\b", source)}
    assert set(jaxcnn.__all__) - measured == set(NOT_MEASURED)


@pytest.fixture
def standard_jax():
    """JAX's defaults, as where benchmarks run."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.check_tracer_leaks(False):
        yield


def class_id(cls):
    return f"{cls.__module__.split('.')[-1]}.{cls.__name__}"


SLOW = {bench_literature.Digits, bench_substitute_network.FindSubstitution}
"""Benchmarks that take long on the smallest layers, of which there are tests elsewhere."""


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls not in SLOW], ids=class_id)
def test_benchmark_runs_on_small_layers(cls, standard_jax):
    benchmark = check_run(quick(cls))
    if isinstance(benchmark, Claim):
        check_equal(benchmark, *benchmark.args)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("cls", CLASSES, ids=class_id)
def test_benchmark_runs(cls, standard_jax):
    check_run(quick(cls) if cls is bench_literature.Digits else cls)


def check_run(cls):
    params = [values[0] for values in getattr(cls, "params", [])]
    assert len(params) == len(getattr(cls, "param_names", params))
    assert all(isinstance(name, str) for values in getattr(cls, "params", []) for name in values)
    assert all(list(values) == sorted(values) for values in getattr(cls, "params", []))
    benchmark = cls()
    for attribute in {"speedup_seconds", "seconds"} & set(dir(cls)):
        setattr(benchmark, attribute, 0.0)
    if hasattr(benchmark, "setup_cache"):
        params.insert(0, benchmark.setup_cache())
    if hasattr(benchmark, "setup"):
        benchmark.setup(*params)
    names = measured_names(cls)
    assert names
    for name in names:
        value = getattr(benchmark, name)(*params)
        if name.startswith("track_"):
            assert value >= 0 or ("torch" in name and torch_or_none() is None)
            assert not np.isinf(value)
            assert isinstance(getattr(cls, name).unit, str)
    return benchmark


@pytest.mark.parametrize("cls", literature.LAYERS, ids=lambda cls: cls.__name__)
def test_a_claim_is_of_the_layer_that_it_names(cls):
    for layer, (shape, links) in (cls.layers | quick(cls).layers).items():
        window, named = (tuple(map(int, part.split("x"))) for part in layer.split(",")[0].split()[:2])
        features = int(layer.split(",")[0].split()[-1]) if " to " in layer else shape[-1]
        assert shape == named
        assert window == tuple(1 + sum(link[axis] - 1 for link, _ in links) for axis in (0, 1))
        assert features == links[-1][0][-1]


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("cls", literature.LAYERS, ids=lambda cls: cls.__name__)
def test_a_claim_compares_equal_values(cls, standard_jax):
    for layer in cls.layers:
        case = cls().case(layer)
        x, dense, chain = case.args
        assert case.macs < case.dense_macs
        check_equal(case, x[:, :9, :9, :], dense, chain)


def check_equal(case, *args):
    results = [function(*args) for function in (case.chained, case.lax, case.exact)]
    assert relative_error(results[0], results[1]) < 1e-5
    assert relative_error(results[2], results[1]) < 1e-5


def test_claims_take_the_multiplications_that_the_papers_say():
    def ratio(shape, links):
        kernels = tuple(jnp.zeros(link) for link, _ in links)
        chain = jaxcnn.KernelChain(kernels, tuple(groups for _, groups in links))
        return jaxcnn.conv_cost(shape, chain.shape).macs / jaxcnn.conv_cost(shape, chain).macs

    def ratios(cls):
        return [ratio(*layer) for layer in cls.layers.values()]

    np.testing.assert_allclose(ratios(bench_literature.Jaderberg2014), [4.5, 2.5, 4.5, 2.5], rtol=0.02)
    np.testing.assert_allclose(ratios(bench_literature.Szegedy2016Pair), [1.5, 3.5], rtol=1e-6)
    shares = [1 / 512 + 1 / 9, 1 / 128 + 1 / 9]
    np.testing.assert_allclose(ratios(bench_literature.Howard2017), np.reciprocal(shares), rtol=1e-6)


def test_a_row_of_the_literature(capsys):
    class Even(Claim):
        case = None
        macs_ratio = 2.0

        def track_speedup_over_lax(self, layer):
            return 3.0

        def track_speedup_over_exact(self, layer):
            return 1.0

    spreads = []
    literature.print_table(("a", "b", "c"), [literature.ratios(Even(), ("layer",), spreads)])
    assert capsys.readouterr().out == "| a | b | c |\n| --- | --- | --- |\n| 2.00 | 3.00 | 1.00 |\n\n"
    assert spreads == [0, 0]
    assert literature.with_error([96.0, 98.0]) == "97.0 ± 1.0"


def test_a_speedup_is_the_ratio_of_two_times(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.timer.time, "perf_counter", clock)

    def lasting(name, seconds):
        def function(x):
            clock.calls.append(name)
            # As in a processor that slows down: both take longer and longer.
            clock.now += seconds * (1 + clock.now)

        return function

    ours, plain = lasting("ours", 1e-4), lasting("plain", 3e-4)
    assert timing.speedup(ours, plain, 1, seconds=0.5) == pytest.approx(3, rel=0.05)
    assert clock.calls.count("ours") > 2 * clock.calls.count("plain") > 20


def test_benchmarks_measure_with_the_timer_of_this_checkout():
    assert Path(timing.timer.__file__) == Path(jaxcnn.__file__).parent / "timing.py"


def test_relative_error():
    assert relative_error((np.array([3.0]), np.array([4.0])), (np.array([0.0]), np.array([0.0]))) == 5
    assert relative_error(np.array([1.5]), np.array([1.0])) == 0.5


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="other releases of XLA split programs of lax otherwise")
def test_the_tables_of_several_devices_are_those_of_the_compiled_programs():
    subprocess.run([sys.executable, "-m", "benchmarks.devices", "--check"], check=True, cwd=ROOT)
