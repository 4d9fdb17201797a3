"""The benchmarks run, and leave no public array function out."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import benchmarks
import jaxcnn
from benchmarks.common import relative_error, speedup

MODULES = [
    importlib.import_module(f"benchmarks.{module.name}")
    for module in pkgutil.iter_modules(benchmarks.__path__)
    if module.name.startswith("bench_")
]

CLASSES = [
    cls
    for module in MODULES
    for _, cls in sorted(inspect.getmembers(module, inspect.isclass))
    if cls.__module__ == module.__name__ and not inspect.isabstract(cls)
]

NOT_MEASURED = {
    "Curve": "a record",
    "Layer": "arithmetic on integers",
    "ReceptiveField": "arithmetic on integers",
    "Row": "a row of what summarize returns",
    "Summary": "what summarize returns",
    "TuningTable": "what tune returns",
    "conv_output_shape": "arithmetic on integers",
    "pool_output_shape": "arithmetic on integers",
    "receptive_field": "arithmetic on integers",
    "tune": "a measurement itself, for as long as the user allows",
}


def measured_names(cls):
    return [name for name in dir(cls) if re.match("(time|track|peakmem|timeraw)_", name)]


def test_every_public_function_is_measured():
    source = "".join(path.read_text() for path in Path(benchmarks.__path__[0]).glob("bench_*.py"))
    measured = {name for name in jaxcnn.__all__ if re.search(rf"jaxcnn\.{name}\b", source)}
    assert set(jaxcnn.__all__) - measured == set(NOT_MEASURED)


@pytest.fixture
def standard_jax():
    """JAX's defaults, as where benchmarks run."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.check_tracer_leaks(False):
        yield


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__.split('.')[-1]}.{cls.__name__}")
def test_benchmark_runs(cls, standard_jax):
    params = [values[0] for values in getattr(cls, "params", [])]
    assert len(params) == len(getattr(cls, "param_names", params))
    assert all(isinstance(name, str) for values in getattr(cls, "params", []) for name in values)
    assert all(list(values) == sorted(values) for values in getattr(cls, "params", []))
    benchmark = cls()
    if hasattr(benchmark, "speedup_seconds"):
        benchmark.speedup_seconds = 0.0
    if hasattr(benchmark, "epochs"):
        benchmark.epochs = 1
    if hasattr(benchmark, "setup_cache"):
        params.insert(0, benchmark.setup_cache())
    if hasattr(benchmark, "setup"):
        benchmark.setup(*params)
    names = measured_names(cls)
    assert names
    for name in names:
        value = getattr(benchmark, name)(*params)
        if name.startswith("track_"):
            assert np.isfinite(value)
            assert value >= 0
            assert isinstance(getattr(cls, name).unit, str)


def test_speedup_of_a_function_over_itself_is_one():
    calls = []

    def function(x):
        calls.append(x)
        return sum(range(20000))

    assert 0.5 < speedup(function, function, 1, seconds=0.2) < 2
    assert len(calls) > 20


def test_relative_error():
    assert relative_error((np.array([3.0]), np.array([4.0])), (np.array([0.0]), np.array([0.0]))) == 5
    assert relative_error(np.array([1.5]), np.array([1.0])) == 0.5
