"""Dense layers as pairs of products, in `substitute`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from support.arrays import normal, relative_error
from support.planted import conv

pytestmark = pytest.mark.usefixtures("clock_of_macs")


def matrix(inputs, outputs, rank, seed):
    """A matrix of low rank."""
    pair = normal((inputs, rank), seed) @ normal((rank, outputs), seed + 1)
    return jnp.asarray(pair / (inputs * rank) ** 0.5, jnp.float32)


def network(params, x):
    x = jax.nn.relu(conv(x, params["conv"])).reshape(len(x), -1)
    x = jax.nn.relu(x @ params["first"] + params["bias"][None])
    return (params["last"] @ x.T).T


PARAMS = {
    "conv": jnp.asarray(normal((3, 3, 3, 4))),
    "first": matrix(100, 32, 3, 1),
    "bias": jnp.arange(32.0),
    "last": matrix(24, 32, 2, 3),
}
X = jnp.asarray(normal((6, 5, 5, 3), 9))


@pytest.mark.parametrize("calibrated", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_dense_layers_become_pairs(calibrated):
    options = {"calibration": jnp.asarray(normal((200, 5, 5, 3), 10))} if calibrated else {}
    small = jaxcnn.substitute(network, PARAMS, X, rank=3, schemes="low_rank", skip="conv", dense=True, **options)
    rows = {row.name: row for row in small.report.rows}
    assert rows["first"].kernel == (1, 100, 32)
    assert (rows["first"].macs_before, rows["first"].macs_after) == (6 * 100 * 32, 6 * 3 * 132)
    assert [link.shape for link in small.params["last"].kernels] == [(1, 32, 3), (1, 3, 24)]
    assert small.report.macs_before == 6 * (25 * 27 * 4 + 100 * 32 + 32 * 24)
    assert relative_error(small.apply(small.params, X), network(PARAMS, X)) < 1e-3


def test_dense_layers_stay_by_default():
    small = jaxcnn.substitute(network, PARAMS, X, rank=3, schemes="low_rank")
    assert [row.name for row in small.report.rows] == ["conv"]
