"""Programs of several processes: one process's results, decisions that agree, and errors in place of endless waits."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcnn import native, processes
from support import process_worker

pytestmark = [pytest.mark.slow, pytest.mark.optimized]
ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(task, count, folder):
    """Exit codes and what was printed, by process, of a program that is stopped after `LIMIT_SECONDS`."""
    port = free_port()
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    worker = [sys.executable, str(ROOT / "tests" / "support" / "process_worker.py"), task]
    programs = [
        subprocess.Popen(
            [*worker, str(rank), str(count), str(port), str(folder)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    end = time.monotonic() + LIMIT_SECONDS
    try:
        texts = [program.communicate(timeout=max(end - time.monotonic(), 0.1))[0] for program in programs]
    finally:
        for program in programs:
            program.kill()
    return [program.returncode for program in programs], texts


@pytest.fixture(scope="module")
def one_process():
    """Results of one process with one device."""
    jax.clear_caches()
    with jax.default_device(jax.devices()[0]):
        return process_worker.trained(lambda params: params, lambda x: x)


@pytest.mark.parametrize("count", [2, 4])
def test_training_gives_one_processes_parameters(count, tmp_path, one_process):
    codes, texts = run("train", count, tmp_path)
    assert codes == [0] * count, "\n".join(texts)
    for rank in range(count):
        results = dict(np.load(tmp_path / f"{rank}.npz"))
        assert bool(results.pop("native")) == native.is_available()
        assert results.keys() == one_process.keys()
        for name, expected in one_process.items():
            np.testing.assert_allclose(results[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_all_processes_take_the_decision_of_one(tmp_path):
    codes, texts = run("decide", 2, tmp_path)
    assert codes == [0, 0], "\n".join(texts)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # measured times included
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in (0, 1))
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    errors = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert errors[0].startswith("substitute: macs=1e-09 is not met")


def test_different_tuning_tables_are_an_error(tmp_path):
    codes, texts = run("tables", 2, tmp_path)
    assert 0 not in codes, "\n".join(texts)
    for rank in (0, 1):
        error = (tmp_path / f"{rank}.txt").read_text()
        assert error.startswith("TuningTable: processes 0 and 1 activate different tables")


def test_a_tuning_table_of_one_process_alone_is_an_error(tmp_path):
    codes, texts = run("one_table", 2, tmp_path)
    assert codes[0] != 0, "\n".join(texts)
    assert "process 0 of 2 activates a TuningTable, and not all others do" in (tmp_path / "0.txt").read_text()


def test_a_killed_process_ends_the_others(tmp_path):
    start = time.monotonic()
    codes, texts = run("die", 2, tmp_path)
    assert codes[1] == -9
    assert codes[0] not in (0, -9), "\n".join(texts)
    assert [(tmp_path / f"{rank}.txt").exists() for rank in (0, 1)] == [True, True]
    assert time.monotonic() - start < LIMIT_SECONDS


def test_one_process_decides_by_itself():
    assert processes.decided_by_first(lambda: 3) == 3
    x = jax.numpy.ones(3)
    assert processes.whole(x) is x
