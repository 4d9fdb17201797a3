"""The kernels that chains may replace: which chains there are for each, and at which ranks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.factorization.responses.start import ResponseFits
from jaxcnn.transform.substitution import problem
from support.arrays import normal, relative_error
from support.planted import conv, planted
from support.substitutions import row_of, substituted, verified

pytestmark = pytest.mark.usefixtures("clock_of_macs")


def test_known_ranks_are_found():
    # Ranks 2 and 4 leave the noise, 0.02 and 0.05, and take 0.1052 of the multiply-accumulates.
    small = verified(substituted(macs=0.106, schemes="separable"))
    assert row_of(small, "low/kernel").rank == 2
    assert row_of(small, "high/kernel").rank == 4
    assert row_of(small, "low/kernel").error < 0.025


def test_schemes():
    for scheme in ("separable", "low_rank", "tucker2", "depthwise_separable"):
        small = substituted(macs=0.5, schemes=scheme)
        assert {row.scheme for row in small.report.rows} - {"dense"} == {scheme}


def test_ranks_are_multiples_of_eight_where_they_are_near_one():
    params, x = {"kernel": jnp.asarray(normal((5, 5, 64, 64)))}, jnp.ones((1, 12, 12, 64))
    subject = problem.Problem(
        lambda p, x: conv(x, p["kernel"]), params, (x,), lambda name: ("low_rank",), lambda name: False, 0
    )
    (layer,) = subject.layers.values()
    ranks = [option.rank for option in layer.options[1:]]
    assert {rank for rank in ranks if rank >= 32} == {32, 40, 48, 56}
    assert {1, 2, 3, 4, 5, 6} <= set(ranks)


def test_costly_ranks_of_a_scheme_that_another_one_beats_are_not_tried(monkeypatch):
    tried = {}
    at = ResponseFits.at

    def count(self, scheme, rank):
        tried.setdefault(scheme, []).append(rank)
        return at(self, scheme, rank)

    monkeypatch.setattr(ResponseFits, "at", count)

    def f(params, x):
        return conv(x, params["k"])

    def largest_rank(*schemes):
        tried.clear()
        params, images = (
            {"k": planted(5, 5, 8, 8, 1, noise=0.01)},
            [jnp.asarray(normal((1, 12, 12, 8), s)) for s in (0, 1)],
        )
        jaxcnn.substitute(f, params, images[0], macs=0.9, count="macs", calibration=images[1:], schemes=schemes)
        return max(tried["depthwise_separable"])

    # The kernel is separable, so no depthwise chain errs less than a separable one of its cost.
    beaten, first = largest_rank("separable", "depthwise_separable"), largest_rank("depthwise_separable", "separable")
    assert beaten < first


def test_a_shared_kernel_is_replaced_in_both_places():
    def f(params, x):
        return conv(jax.nn.relu(conv(x, params["k"])), params["k"])

    params, x = {"k": planted(5, 5, 8, 8, 1)}, jnp.asarray(normal((1, 12, 12, 8)))
    small = verified(jaxcnn.substitute(f, params, x, macs=0.5), f, params, (x,))
    assert small.report.rows[0].macs_before == 2 * 12 * 12 * 25 * 64
    assert small.report.error < 1e-5


def test_stacked_kernels_of_a_loop():
    def f(params, x):
        return lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), y.mean()), x, params)

    stack = jnp.stack([planted(5, 5, 8, 8, 2, seed=seed, noise=0.01) for seed in (0, 10, 20)])
    x = jnp.asarray(normal((1, 12, 12, 8)))
    small = jaxcnn.substitute(f, stack, x, macs=0.5, schemes="separable")
    assert small.report.macs_before == 3 * 12 * 12 * 25 * 64
    assert small.report.rows[0].name == "params"
    (y, means), (expected, expected_means) = small.apply(small.params, x), f(stack, x)
    assert relative_error(y, expected) < 0.05
    assert relative_error(means, expected_means) < 0.05
    assert [link.shape for link in small.params.kernels] == [
        (3, 5, 1, 8, 3),
        (3, 1, 5, 3, 8),
    ] or small.report.macs_share <= 0.5


def test_stacked_kernels_whose_best_pairs_of_ranks_differ():
    def f(params, x):
        return lax.scan(lambda y, k: (conv(y, k), None), x, params)[0]

    def narrow(seed, first, second):
        links = (normal((1, 1, 12, first), seed), normal((3, 3, first, second), seed + 1))
        dense = jaxcnn.compose(*map(jnp.asarray, links), jnp.asarray(normal((1, 1, second, 12), seed + 2)))
        return dense / jnp.linalg.norm(dense) + 0.001 * normal((3, 3, 12, 12), seed + 3)

    stack, x = jnp.stack([narrow(0, 2, 4), narrow(10, 4, 2)]), jnp.asarray(normal((1, 10, 10, 12)))
    small = verified(jaxcnn.substitute(f, stack, x, macs=0.3, schemes="tucker2"), f, stack, (x,))
    # One pair does for both: for 2, 4 and for 4, 2.
    assert small.report.rows[0].scheme == "tucker2"
    assert min(small.report.rows[0].rank) >= 4
    assert small.report.error < 0.1


def test_channels_first_grouped_and_transposed():
    def f(params, x):
        y = lax.conv_general_dilated(x, params["first"], (1, 1), "SAME", feature_group_count=2)
        return lax.conv_transpose(
            y, params["up"], (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"), transpose_kernel=True
        )

    halves = [planted(5, 5, 8, 8, 1, seed=seed) for seed in (0, 5)]
    first = jnp.concatenate([k.transpose(3, 2, 0, 1) for k in halves])
    params = {"first": first, "up": planted(4, 4, 6, 16, 2, seed=9).transpose(3, 2, 0, 1)}
    x = jnp.asarray(normal((1, 16, 10, 10)))
    small = jaxcnn.substitute(f, params, x, macs=0.6, schemes="separable")
    assert relative_error(small.apply(small.params, x), f(params, x)) < 1e-4
    assert {row.name: row.groups for row in small.report.rows} == {"first": 2, "up": 1}


def test_what_cannot_be_replaced_says_why():
    def f(params, x):
        return conv(conv(x, params["a"]), params["b"]), (params["b"] ** 2).sum()

    params = {"a": planted(5, 5, 8, 8, 1), "b": planted(5, 5, 8, 8, 1)}
    x = jnp.asarray(normal((1, 12, 12, 8)))
    small = jaxcnn.substitute(f, params, x, macs=0.8)
    assert row_of(small, "b").reason.startswith("it reaches integer_pow")
    text = str(small.report)
    assert "b stays dense: it reaches integer_pow" in text
    assert max(map(len, text.splitlines())) <= 100


def test_sixteen_bits_and_dead_filters():
    kernel = planted(5, 5, 8, 8, 2).at[..., 3].set(0).astype(jnp.bfloat16)
    x = jnp.asarray(normal((1, 12, 12, 8))).astype(jnp.bfloat16)
    small = jaxcnn.substitute(lambda k, x: conv(x, k), kernel, x, macs=0.5)
    assert small.params.dtype == jnp.bfloat16
    assert small.report.error < 0.05
    zero = jaxcnn.substitute(lambda k, x: conv(x, k) + 1, jnp.zeros((5, 5, 8, 8)), jnp.ones((1, 12, 12, 8)), macs=0.5)
    assert zero.report.error == 0


# Kernels of known rank, of signals and volumes


def composed(windows, features, rank):
    """A kernel that is a chain with these windows, of that many features between them."""
    between = [features, *[rank] * (len(windows) - 1), features]
    kernels = [
        normal((*window, inputs, outputs), seed)
        for seed, (window, inputs, outputs) in enumerate(zip(windows, between[:-1], between[1:], strict=True))
    ]
    kernel = jaxcnn.KernelChain(tuple(kernels)).dense()
    return jnp.asarray(kernel / np.linalg.norm(kernel), jnp.float32)


CASES = {
    "signal, low rank": (composed([(7,), (1,)], 12, 3), 5, "low_rank", 3),
    "signal, tucker2": (composed([(1,), (5,), (1,)], 12, 3), 5, "tucker2", (3, 3)),
    "volume, separable": (composed([(5, 1, 1), (1, 5, 1), (1, 1, 5)], 6, 2), 3, "separable", None),
    "volume, low rank": (composed([(3, 3, 3), (1, 1, 1)], 12, 2), 3, "low_rank", 2),
}


@pytest.mark.parametrize(
    ("case", "calibrated"),
    [*((case, False) for case in CASES), *(pytest.param(case, True, marks=pytest.mark.slow) for case in CASES)],
)
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
    small = jaxcnn.substitute(f, {"kernel": kernel}, image(0), tolerance=1e-3, schemes=scheme, **options)
    (row,) = small.report.rows
    assert row.scheme == scheme
    if rank is not None:
        assert row.rank == rank
    assert small.report.error <= 1e-3
    assert small.report.macs_share < 0.7
    unseen = image(7)
    assert relative_error(small.apply(small.params, unseen), f({"kernel": kernel}, unseen)) < 2e-3
