"""`substitute`: budgets, what stays dense and why, that the result is what it says, saving."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform import problem, searching
from jaxcnn.transform.allocation import Harm
from support.arrays import normal, relative_error
from support.chains import is_chain
from support.planted import clock_by_arithmetic, conv, network, planted

F, PARAMS, X = network()


@pytest.fixture
def real_clock():
    """Of tests that are to have the real clock."""


@pytest.fixture(autouse=True)
def every_chain_is_faster(monkeypatch, request):
    if "real_clock" not in request.fixturenames:
        clock_by_arithmetic(monkeypatch)
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


def row_of(found, name):
    return next(row for row in found.report.rows if row.name == name)


def verified(found, f=F, params=PARAMS, args=(X,)):
    """The substitution, of which the report's figures are checked."""
    report = found.report
    expected, actual = f(params, *args), found.apply(found.params, *args)
    assert relative_error(actual, expected) == pytest.approx(report.error, rel=1e-3, abs=1e-6)
    left = jaxcnn.summarize(found.apply, found.params, *args).total.macs - jaxcnn.summarize(f, params, *args).total.macs
    assert left == report.macs_after - report.macs_before
    chains = [leaf for leaf in jax.tree.leaves(found.params, is_leaf=is_chain) if is_chain(leaf)]
    assert len(chains) == sum(row.scheme != "dense" for row in report.rows)
    return found


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.2])
def test_share_of_macs(share):
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=share))
    assert found.report.macs <= share
    assert [row.name for row in found.report.rows] == ["high/kernel", "low/kernel", "stem/kernel"]


def test_known_ranks_are_found():
    # Ranks 2 and 4 leave the noise, 0.02 and 0.05, and take 0.1052 of the multiply-accumulates.
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.106, schemes="separable"))
    assert row_of(found, "low/kernel").rank == 2
    assert row_of(found, "high/kernel").rank == 4
    assert row_of(found, "low/kernel").error < 0.025


def test_tolerance_is_met_with_few_macs():
    loose = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.1))
    tight = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.01))
    assert loose.report.error <= 0.1
    assert tight.report.error <= 0.01
    assert loose.report.macs < tight.report.macs < 0.5


def test_progress_is_told_to_a_function():
    told = []
    jaxcnn.substitute(F, PARAMS, X, macs=0.5, schemes="separable", progress=lambda *counts: told.append(counts))
    done, totals = zip(*told, strict=True)
    assert done[0] == 0
    assert list(done) == sorted(done)
    assert set(totals) == {totals[0]}
    assert done[-1] == totals[0] > 1


def test_no_tolerance_stays_dense():
    found = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.0))
    assert found.report.macs == 1
    assert all(row.reason for row in found.report.rows)


def test_speedup(monkeypatch):
    # A clock that goes by the multiply-accumulates of the whole function.
    def clock(self, chains):
        return self.problem.total_macs / 1e6, self.problem.macs(chains) / 1e6

    monkeypatch.setattr(searching.Search, "_clock", clock)
    found = verified(jaxcnn.substitute(F, PARAMS, X, speedup=2.5))
    assert 2.5 <= found.report.speedup < 3.2
    with pytest.raises(ValueError, match="speedup=1000 is not reached: the fastest chains make it"):
        jaxcnn.substitute(F, PARAMS, X, speedup=1000)


def test_the_clock_of_this_device_is_asked(real_clock):
    found = jaxcnn.substitute(F, PARAMS, X, macs=0.5)
    for row in found.report.rows:
        if row.scheme != "dense":
            assert row.ms_before > 0
            assert row.ms_after > 0
    assert found.report.ms_before > 0
    assert found.report.ms_after > 0


def slow(monkeypatch, *names):
    """Makes chains of these layers three times as slow as their kernels."""

    def milliseconds(self, index, chain):
        return 1.0, 3.0 if self.layers[index].name in names else 0.5

    monkeypatch.setattr(problem.Problem, "milliseconds", milliseconds)


def test_a_layer_that_is_slower_as_a_chain_stays_dense(monkeypatch):
    slow(monkeypatch, "low/kernel")
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.7))
    assert row_of(found, "low/kernel").scheme == "dense"
    assert "takes 3.000 ms, the kernel 1.000" in row_of(found, "low/kernel").reason
    assert row_of(found, "high/kernel").scheme != "dense"
    assert found.report.macs <= 0.7


def test_the_budget_comes_before_the_clock(monkeypatch):
    slow(monkeypatch, "low/kernel", "high/kernel")
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.3))
    assert found.report.macs <= 0.3


def test_the_clock_does_not_ruin_a_budget_of_arithmetic(monkeypatch):
    # By "high" alone it could be met, at several times the error.
    free = jaxcnn.substitute(F, PARAMS, X, macs=0.52)
    slow(monkeypatch, "low/kernel")
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.52))
    row = row_of(found, "low/kernel")
    assert row.scheme != "dense"
    assert row.reason == "its chain is slower than the kernel, and there because the budget asks for it"
    assert "low/kernel: its chain is slower" in str(found.report)
    assert "low/kernel stays dense" not in str(found.report)
    assert found.report.error == free.report.error
    # Below that, "high" alone cannot meet it.
    assert row_of(jaxcnn.substitute(F, PARAMS, X, macs=0.2), "low/kernel").reason == row.reason


def test_of_slow_layers_the_least_slow_goes_back_first(monkeypatch):
    slowness = {"stem/kernel": 0.5, "low/kernel": 3.0, "high/kernel": 2.0}
    monkeypatch.setattr(
        problem.Problem, "milliseconds", lambda self, index, chain: (1.0, slowness[self.layers[index].name])
    )
    found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.7))
    assert row_of(found, "low/kernel").scheme == "dense"
    assert "budget asks for it" in row_of(found, "high/kernel").reason


def test_an_error_is_met_by_the_layers_that_are_faster(monkeypatch):
    slow(monkeypatch, "low/kernel")
    found = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.05))
    assert row_of(found, "low/kernel").scheme == "dense"
    assert row_of(found, "high/kernel").scheme != "dense"


def test_a_curve_forgets_what_was_slow_at_another_share(monkeypatch):
    slow(monkeypatch, "low/kernel")
    first = jaxcnn.substitute(F, PARAMS, X, macs=0.7)
    again = first.solve(0.2).solve(0.7)
    assert [row.rank for row in again.report.rows] == [row.rank for row in first.report.rows]


def test_the_least_share_can_be_met():
    found = problem.Problem(F, PARAMS, (X,), ("low_rank",), lambda name: False, 0)
    found.harms = dict.fromkeys(found.layers, Harm((1.0,), (1.0,)))
    # With some more convolutions that have no chains, until the product of the share falls short of what it came from.
    own, saved = found.total_macs, round(found.total_macs * (1 - found.least_share(())))
    found.total_macs = next(t for t in range(own, 2 * own) if (t - saved) / t * t < t - saved)
    assert found.choose(found.least_share(()), ()) is not None


def test_skip():
    for skip in ("high", ["nothing", "high/k"], lambda name: name == "high/kernel"):
        found = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.65, skip=skip))
        assert row_of(found, "high/kernel").reason == "it is skipped"
        assert row_of(found, "low/kernel").scheme != "dense"


def test_schemes():
    for scheme in ("separable", "low_rank", "tucker2", "depthwise_separable"):
        found = jaxcnn.substitute(F, PARAMS, X, macs=0.5, schemes=scheme)
        assert {row.scheme for row in found.report.rows} - {"dense"} == {scheme}


def test_the_same_twice():
    first, second = (jaxcnn.substitute(F, PARAMS, X, macs=0.3, seed=3) for _ in range(2))
    assert jax.tree.structure(first.params) == jax.tree.structure(second.params)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shapes_alone_for_the_other_arguments():
    found = jaxcnn.substitute(F, PARAMS, jax.ShapeDtypeStruct(X.shape, X.dtype), macs=0.4)
    assert found.report.macs <= 0.4
    assert found.report.error > 0


def test_other_arguments_reach_f():
    def f(params, x, train, *, scale=2):
        assert train is True
        assert scale == 2
        return F(params, x) * scale

    verified(jaxcnn.substitute(f, PARAMS, X, True, macs=0.4), f, PARAMS, (X, True))


def test_a_shared_kernel_is_replaced_in_both_places():
    def f(params, x):
        return conv(jax.nn.relu(conv(x, params["k"])), params["k"])

    params, x = {"k": planted(5, 5, 8, 8, 1)}, jnp.asarray(normal((1, 12, 12, 8)))
    found = verified(jaxcnn.substitute(f, params, x, macs=0.5), f, params, (x,))
    assert found.report.rows[0].macs_before == 2 * 12 * 12 * 25 * 64
    assert found.report.error < 1e-5


def test_stacked_kernels_of_a_loop():
    def f(params, x):
        return lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), y.mean()), x, params)

    stack = jnp.stack([planted(5, 5, 8, 8, 2, seed=seed, noise=0.01) for seed in (0, 10, 20)])
    x = jnp.asarray(normal((1, 12, 12, 8)))
    found = jaxcnn.substitute(f, stack, x, macs=0.5, schemes="separable")
    assert found.report.macs_before == 3 * 12 * 12 * 25 * 64
    assert found.report.rows[0].name == "params"
    (y, means), (expected, expected_means) = found.apply(found.params, x), f(stack, x)
    assert relative_error(y, expected) < 0.05
    assert relative_error(means, expected_means) < 0.05
    assert [link.shape for link in found.params.kernels] == [
        (3, 5, 1, 8, 3),
        (3, 1, 5, 3, 8),
    ] or found.report.macs <= 0.5


def test_stacked_kernels_whose_best_pairs_of_ranks_differ():
    def f(params, x):
        return lax.scan(lambda y, k: (conv(y, k), None), x, params)[0]

    def narrow(seed, first, second):
        links = (normal((1, 1, 12, first), seed), normal((3, 3, first, second), seed + 1))
        dense = jaxcnn.compose(*map(jnp.asarray, links), jnp.asarray(normal((1, 1, second, 12), seed + 2)))
        return dense / jnp.linalg.norm(dense) + 0.001 * normal((3, 3, 12, 12), seed + 3)

    stack, x = jnp.stack([narrow(0, 2, 4), narrow(10, 4, 2)]), jnp.asarray(normal((1, 10, 10, 12)))
    found = verified(jaxcnn.substitute(f, stack, x, macs=0.3, schemes="tucker2"), f, stack, (x,))
    # One pair does for both: for 2, 4 and for 4, 2.
    assert found.report.rows[0].scheme == "tucker2"
    assert min(found.report.rows[0].rank) >= 4
    assert found.report.error < 0.1


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
    found = jaxcnn.substitute(f, params, x, macs=0.6, schemes="separable")
    assert relative_error(found.apply(found.params, x), f(params, x)) < 1e-4
    assert {row.name: row.groups for row in found.report.rows} == {"first": 2, "up": 1}


def test_what_cannot_be_replaced_says_why():
    def f(params, x):
        return conv(conv(x, params["a"]), params["b"]), (params["b"] ** 2).sum()

    params = {"a": planted(5, 5, 8, 8, 1), "b": planted(5, 5, 8, 8, 1)}
    x = jnp.asarray(normal((1, 12, 12, 8)))
    found = jaxcnn.substitute(f, params, x, macs=0.8)
    assert row_of(found, "b").reason.startswith("it reaches integer_pow")
    text = str(found.report)
    assert "b stays dense: it reaches integer_pow" in text
    assert max(map(len, text.splitlines())) <= 100


def test_sixteen_bits_and_dead_filters():
    kernel = planted(5, 5, 8, 8, 2).at[..., 3].set(0).astype(jnp.bfloat16)
    x = jnp.asarray(normal((1, 12, 12, 8))).astype(jnp.bfloat16)
    found = jaxcnn.substitute(lambda k, x: conv(x, k), kernel, x, macs=0.5)
    assert found.params.dtype == jnp.bfloat16
    assert found.report.error < 0.05
    zero = jaxcnn.substitute(lambda k, x: conv(x, k) + 1, jnp.zeros((5, 5, 8, 8)), jnp.ones((1, 12, 12, 8)), macs=0.5)
    assert zero.report.error == 0


ERRORS = {
    "no budget": ({}, "give one of tolerance, macs, speedup and rank"),
    "two budgets": ({"macs": 0.5, "tolerance": 0.1}, "give one of tolerance, macs, speedup and rank"),
    "share of more than all": ({"macs": 1.5}, r"macs must be a share in \(0, 1\], got 1.5"),
    "negative tolerance": ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
    "no speed": ({"speedup": 0}, "speedup must be positive, got 0"),
    "unknown scheme": ({"macs": 0.5, "schemes": "svd"}, "a scheme must be one of .*'separable'.* got 'svd'"),
    "no calibration": ({"macs": 0.5, "calibration": []}, "calibration must hold at least one batch"),
    "too little": ({"macs": 0.001}, "macs=0.001 is not met by any choice of chains, the least is 0.[0-9]+"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, text = ERRORS[case]
    with pytest.raises(ValueError, match=text):
        jaxcnn.substitute(F, PARAMS, X, **options)


def test_an_empty_name_skips_nothing():
    found = jaxcnn.substitute(F, PARAMS, X, macs=0.5, skip=["", "stem"])
    assert [row.name for row in found.report.rows if row.reason == "it is skipped"] == ["stem/kernel"]


def test_params_with_chains_and_no_function_are_refused():
    chain = jaxcnn.separable(PARAMS["low"]["kernel"], rank=1)
    with pytest.raises(ValueError, match="params hold chains already"):
        jaxcnn.substitute(F, {**PARAMS, "low": {**PARAMS["low"], "kernel": chain}}, X, macs=0.5)
    with pytest.raises(TypeError, match="f must be a function, got 3"):
        jaxcnn.substitute(3, PARAMS, X, macs=0.5)


def test_ranks_are_multiples_of_eight_where_they_are_near_one():
    params, x = {"kernel": jnp.asarray(normal((5, 5, 64, 64)))}, jnp.ones((1, 12, 12, 64))
    found = problem.Problem(lambda p, x: conv(x, p["kernel"]), params, (x,), ("low_rank",), lambda name: False, 0)
    (layer,) = found.layers.values()
    ranks = [option.rank for option in layer.options[1:]]
    assert {rank for rank in ranks if rank >= 32} == {32, 40, 48, 56}
    assert {1, 2, 3, 4, 5, 6} <= set(ranks)


def test_kernels_that_are_closed_over_are_not_found():
    kernel = PARAMS["low"]["kernel"]
    image = jnp.asarray(normal((1, 12, 12, 16)))
    for options in ({"macs": 0.5}, {"tolerance": 0.1}, {"speedup": 2}):
        with pytest.raises(ValueError, match="of the 1 convolutions of f none has its kernel from params"):
            jaxcnn.substitute(lambda scale, x: scale * conv(x, kernel), jnp.ones(()), image, **options)


def test_a_budget_that_is_missed_says_what_stays_dense():
    kernel = PARAMS["low"]["kernel"]
    image = jnp.asarray(normal((1, 12, 12, 16)))
    with pytest.raises(ValueError, match=r"the least is 1; low stays dense: it reaches integer_pow"):
        jaxcnn.substitute(lambda p, x: conv(x, p["low"]) + (p["low"] ** 2).sum(), {"low": kernel}, image, macs=0.5)


def test_calibration_that_f_does_not_take_says_what_it_was_called_with():
    def f(params, x, train):
        return F(params, x) if train else x

    with pytest.raises(TypeError, match="train") as error:
        jaxcnn.substitute(f, PARAMS, X, True, macs=0.5, calibration=X)
    assert "an item of calibration, of shapes (2, 24, 24, 3)" in " ".join(error.value.__notes__)


def test_calibration_from_a_generator():
    options = {"macs": 0.3, "schemes": "separable"}
    inputs = [X, X[:, ::-1]]
    expected = jaxcnn.substitute(F, PARAMS, X, calibration=inputs, **options).report.error
    assert jaxcnn.substitute(F, PARAMS, X, calibration=(x for x in inputs), **options).report.error == expected
    with pytest.raises(ValueError, match="at least one batch of inputs"):
        jaxcnn.substitute(F, PARAMS, X, calibration=iter(()), **options)


def test_chains_train():
    found = jaxcnn.substitute(F, PARAMS, X, macs=0.2)
    target = F(PARAMS, X)

    def loss(params):
        return jnp.square(found.apply(params, X) - target).mean()

    before, gradient = jax.jit(jax.value_and_grad(loss))(found.params)
    norm = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradient))
    step = jax.tree.map(lambda p, g: p - 0.1 * float(before) / norm * g, found.params, gradient)
    assert float(loss(step)) < float(before)


def test_report():
    found = jaxcnn.substitute(F, PARAMS, X, macs=0.3)
    report, text = found.report, str(found.report)
    assert str(found) == text
    assert found._repr_html_() == report._repr_html_()
    assert "Array(" not in repr(found)
    assert max(map(len, text.splitlines())) <= 100
    for row in report.rows:
        assert row.name in text
    assert f"{report.macs:.3f} of them" in text
    assert "<table>" in report._repr_html_()
    assert json.loads(report.to_json())["error"] == report.error
    assert jaxcnn.Report.from_json(report.to_json()) == report
    assert report.speedup == report.ms_before / report.ms_after
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.error = 0


def test_curve():
    curve = jaxcnn.substitute(F, PARAMS, X, macs=0.5).curve((0.8, 0.3, 0.0001))
    macs, speedups, errors = zip(*curve.points, strict=True)
    assert len(macs) == 3
    assert list(macs) == sorted(macs, reverse=True)
    assert errors[0] < errors[-1]
    assert all(speedup > 0 for speedup in speedups)
