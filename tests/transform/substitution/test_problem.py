"""A function whose kernels are to be replaced: its layers, what its results weigh, and the clock."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform.substitution import problem
from jaxcnn.transform.substitution.budget import Harm
from support.arrays import normal, relative_error
from support.substitutions import IMAGE, PARAMS, SMALL, F, X, two_layers


def test_the_clock_of_this_device_is_asked(no_long_clock):
    small = jaxcnn.substitute(F, PARAMS, X, macs=0.5)
    for row in small.report.rows:
        if row.scheme != "dense":
            assert row.ms_before > 0
            assert row.ms_after > 0
    assert small.report.ms_before > 0
    assert small.report.ms_after > 0


def test_the_least_share_can_be_met():
    subject = problem.Problem(F, PARAMS, (X,), lambda name: ("low_rank",), lambda name: False, 0)
    subject.harms = dict.fromkeys(subject.layers, Harm((1.0,), (1.0,)))
    # With some more convolutions that have no chains, until the product of the share falls short of what it came from.
    total, saved = subject.total_macs, round(subject.total_macs * (1 - subject.least_share(())))
    subject.total_macs = next(t for t in range(total, 2 * total) if (t - saved) / t * t < t - saved)
    assert subject.choose(subject.least_share(()), ()) is not None


def test_harm_is_the_squared_error_of_the_results_where_one_layer_errs():
    params = {name: jnp.asarray(normal((5, 5, 4, 4), seed)) for seed, name in enumerate(SMALL)}  # of no low rank
    subject = problem.Problem(two_layers, params, (IMAGE,), lambda name: ("separable",), lambda name: False, 0)
    subject.weigh(lambda steps, task="": None)
    expected = two_layers(params, IMAGE)
    for index, layer in subject.layers.items():
        assert len(layer.probes) == 2
        squares = []
        for chain, error in sorted(layer.probes, key=lambda probe: probe[1]):
            results = two_layers({**params, layer.name: chain.dense()}, IMAGE)
            squares.append(relative_error(results, expected) ** 2)
            assert subject.harms[index].squared_error(error) == pytest.approx(max(squares), rel=1e-3)


def test_floats_are_the_floating_results_alone_and_complex_ones_twice():
    expected = problem.floats([np.array([3.0, np.inf], np.float32), np.complex64(4j), np.arange(3)])
    assert [array.tolist() for array in expected] == [[3, np.inf], 0, 4]
