"""Settings of every test: strict promotion, no rank promotion, leaks checked, four CPU devices, seeded examples."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")  # read when Keras is imported
# The fits of `stack` are many small solves, and BLAS threads on busy cores wait for each other: 108 s instead of 3.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import methods
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_check_tracer_leaks", True)

hypothesis.settings.register_profile(
    "jaxcnn", deadline=None, derandomize=True, max_examples=25, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("jaxcnn")


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


def pytest_terminal_summary(terminalreporter):
    """Prints the share of the drawn cases that each method supports."""
    for line in methods.share_report():
        terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Takes over the counts of a process that has ended."""
    methods.add_counts(getattr(node, "workeroutput", {}).get("method_counts", {"asked": {}, "supported": {}}))


def pytest_sessionfinish(session):
    """Fails the run if a method supports fewer of the drawn cases than it did."""
    if hasattr(session.config, "workeroutput"):  # one of several processes: the counts go to the one that reports
        session.config.workeroutput["method_counts"] = methods.counts()
        return
    if methods.fallen_shares() and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
