"""Settings of every test: strict promotion, no rank promotion, quick compilation, four CPU devices, seeded examples.

Markers: `slow` tests are left out of `make test`. `optimized` ones are compiled as users' programs are; the others run
once, so most of XLA's optimizations are off. `without_native` ones see the process as it is with JAXCNN_NATIVE=0: the
choice among XLA's forms is tested so. `leaks` ones are run again by `make test-leaks`, under JAX's check for
leaked tracers, which bypasses JAX's caches and is off elsewhere.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported
# The fits of `stack` are many small solves, and BLAS threads on busy cores wait for each other: 108 s instead of 3.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import numpy as np
import pytest

from jaxcnn import native

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# A second run compiles nothing that has not changed. JAX_ENABLE_COMPILATION_CACHE=false switches this off.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

hypothesis.settings.register_profile(
    "jaxcnn", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("jaxcnn")


def pytest_addoption(parser):
    """Adds `--leaks`."""
    parser.addoption("--leaks", action="store_true", help="run the tests marked `leaks`, and look for leaked tracers")


def pytest_configure(config):
    """Switches the check for leaked tracers."""
    jax.config.update("jax_check_tracer_leaks", config.getoption("--leaks"))


def pytest_collection_modifyitems(config, items):
    """Compiles the examples of the documentation as users do; under `--leaks`, keeps the tests so marked."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("optimized")
    if config.getoption("--leaks"):
        config.hook.pytest_deselected(items=[item for item in items if not item.get_closest_marker("leaks")])
        items[:] = [item for item in items if item.get_closest_marker("leaks")]


_optimized = True
_with_native = True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Switches XLA's optimizations and the compiled kernels, before any fixture compiles something."""
    global _optimized, _with_native
    optimized = item.get_closest_marker("optimized") is not None
    with_native = item.get_closest_marker("without_native") is None
    if (optimized, with_native) == (_optimized, _with_native):
        return
    jax.config.update("jax_disable_most_optimizations", not optimized)
    if with_native != _with_native:
        # The library stays registered with XLA; the module forgets or looks for it.
        native._state = None if with_native else native._State(reason=native._SWITCHED_OFF)
    _optimized, _with_native = optimized, with_native
    jax.clear_caches()  # which know of neither


@pytest.fixture(autouse=True)
def layers_of_examples_are_not_timed(request, monkeypatch):
    """Lets the cost model stand for the clock of single layers in examples: two test processes share the processors."""
    if isinstance(request.node, pytest.DoctestItem):
        problem = importlib.import_module("jaxcnn.transform.substitution.problem").Problem
        monkeypatch.setattr(
            problem,
            "milliseconds",
            lambda self, index, chain: self.estimated_milliseconds(index, self.layers[index].shapes(chain)),
        )


@pytest.fixture
def x64():
    """64-bit types, for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def standard_promotion():
    """JAX's default dtype promotion, for one test."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def compilations():
    """The names of the programs compiled and of the functions traced since the test began, as two lists."""
    compiled, traced = [], []

    def listen(event: str, duration: float, **details: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(details.get("fun_name"))
        elif event == "/jax/core/compile/jaxpr_trace_duration":
            traced.append(details.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled, traced
    jax.monitoring.unregister_event_duration_listener(listen)
