"""Transformed functions in pickles, as libraries make them that send work to other processes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from support.arrays import normal
from support.planted import clock_by_arithmetic

cloudpickle = pytest.importorskip("cloudpickle")

X, KERNEL = jnp.asarray(normal((1, 8, 8, 3))), jnp.asarray(normal((5, 5, 3, 4)))


def model(params, x):
    return jax.nn.relu(jaxcnn.conv(x, params["kernel"]))


def sent(value):
    return cloudpickle.loads(cloudpickle.dumps(value))


@pytest.mark.parametrize("transform", [jaxcnn.accelerate, jaxcnn.with_chains])
def test_a_transformed_function_survives_its_calls_and_a_pickle(transform):
    f = transform(model)
    expected = f({"kernel": KERNEL}, X)
    np.testing.assert_array_equal(sent(f)({"kernel": KERNEL}, X), expected)


def test_a_substitution_survives_a_pickle(monkeypatch):
    clock_by_arithmetic(monkeypatch)
    small = jaxcnn.substitute(model, {"kernel": KERNEL}, X, rank=2, schemes="separable")
    again = sent(small)
    assert str(again.report) == str(small.report)
    np.testing.assert_array_equal(again.apply(again.params, X), small.apply(small.params, X))


def test_another_process_runs_what_it_is_sent(tmp_path):
    path = tmp_path / "function.pickle"
    path.write_bytes(cloudpickle.dumps(jaxcnn.accelerate(lambda x: jaxcnn.conv(x, jnp.ones((3, 3, 1, 1))).sum())))
    program = f"import pickle, jax.numpy as jnp; print(pickle.load(open({str(path)!r}, 'rb'))(jnp.ones((1, 4, 4, 1))))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(run.stdout) == 100.0
