"""`substitute` on signals and volumes, where fewer schemes make sense."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform import problem, searching
from support.arrays import normal, relative_error


@pytest.fixture(autouse=True)
def a_clock_by_arithmetic(monkeypatch):
    monkeypatch.setattr(problem.Problem, "milliseconds", lambda self, index, chain: (1.0, 0.5))
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


def planted(windows, features, rank):
    """A kernel that is a chain with these windows, of that many features between them."""
    between = [features, *[rank] * (len(windows) - 1), features]
    kernels = [
        normal((*window, inputs, outputs), seed)
        for seed, (window, inputs, outputs) in enumerate(zip(windows, between[:-1], between[1:], strict=True))
    ]
    kernel = jaxcnn.KernelChain(tuple(kernels)).dense()
    return jnp.asarray(kernel / np.linalg.norm(kernel), jnp.float32)


CASES = {
    "signal, low rank": (planted([(7,), (1,)], 12, 3), 5, "low_rank", 3),
    "signal, tucker2": (planted([(1,), (5,), (1,)], 12, 3), 5, "tucker2", (3, 3)),
    "volume, separable": (planted([(5, 1, 1), (1, 5, 1), (1, 1, 5)], 6, 2), 3, "separable", None),
    "volume, low rank": (planted([(3, 3, 3), (1, 1, 1)], 12, 2), 3, "low_rank", 2),
}


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_planted_ranks_are_found(case, calibrated):
    kernel, _, scheme, rank = CASES[case]
    spatial = kernel.ndim - 2
    letters = "DHW"[-spatial:]
    numbers = ("N" + letters + "C", letters + "IO", "N" + letters + "C")

    def f(params, x):
        y = lax.conv_general_dilated(x, params["kernel"], (1,) * spatial, "SAME", dimension_numbers=numbers)
        return jax.nn.relu(y)

    def image(seed):
        return jnp.asarray(normal((2, *[9] * spatial, kernel.shape[-2]), seed))

    options = {"calibration": [image(1), image(2)]} if calibrated else {}
    found = jaxcnn.substitute(f, {"kernel": kernel}, image(0), tolerance=1e-3, schemes=scheme, **options)
    (row,) = found.report.rows
    assert row.scheme == scheme
    if rank is not None:
        assert row.rank == rank
    assert found.report.error <= 1e-3
    assert found.report.macs < 0.7
    unseen = image(7)
    assert relative_error(found.apply(found.params, unseen), f({"kernel": kernel}, unseen)) < 2e-3
