"""The search of `substitute`: budgets of arithmetic, error and time, and what the clock keeps dense."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.substitution import problem
from jaxcnn.transform.substitution import search as searching
from support.arrays import normal, relative_error
from support.planted import clock_by_layer, conv
from support.substitutions import PARAMS, F, X, row_of, substituted, verified

pytestmark = pytest.mark.usefixtures("clock_of_macs", "two_ranks_judged")


@pytest.mark.parametrize("share", [0.9, 0.3, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.5, 0.2))])
def test_share_of_macs(share):
    small = verified(substituted(macs=share))
    assert small.report.macs_share <= share
    assert [row.name for row in small.report.rows] == ["high/kernel", "low/kernel", "stem/kernel"]


def test_tolerance_is_met_with_few_macs():
    loose = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.1))
    tight = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.01))
    assert loose.report.error <= 0.1
    assert tight.report.error <= 0.01
    assert loose.report.macs_share < tight.report.macs_share < 0.5


def test_no_tolerance_stays_dense():
    small = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.0))
    assert small.report.macs_share == 1
    assert all(row.reason for row in small.report.rows)


def test_speedup(monkeypatch):
    # A clock that goes by the multiply-accumulates of the whole function.
    def clock(self, chains, run):
        assert callable(run)
        return self.problem.total_macs / 1e6, self.problem.macs(chains) / 1e6

    monkeypatch.setattr(searching.Search, "_clock", clock)
    small = verified(jaxcnn.substitute(F, PARAMS, X, speedup=2.5))
    assert 2.5 <= small.report.speedup < 3.2
    with pytest.raises(ValueError, match="speedup=1000 is not reached: the fastest chains make it"):
        jaxcnn.substitute(F, PARAMS, X, speedup=1000)


def slow(monkeypatch, *names):
    """Makes chains of these layers three times as slow as their kernels."""
    clock_by_layer(monkeypatch, lambda name: 3.0 if name in names else 0.5)


def test_a_layer_that_is_slower_as_a_chain_stays_dense(monkeypatch):
    slow(monkeypatch, "low/kernel")
    small = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.7))
    assert row_of(small, "low/kernel").scheme == "dense"
    assert row_of(small, "high/kernel").scheme != "dense"
    assert small.report.macs_share <= 0.7


def test_a_chain_that_only_the_estimate_takes_for_faster_is_left_out(monkeypatch):
    slow(monkeypatch, "low/kernel")
    monkeypatch.setattr(problem.Problem, "estimated_milliseconds", lambda self, index, shapes: (1.0, 0.5))
    small = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.7))
    assert row_of(small, "low/kernel").scheme == "dense"
    assert "takes 3.000 ms, the kernel 1.000" in row_of(small, "low/kernel").reason


def test_a_budget_that_slow_chains_alone_meet_is_refused_unless_macs_are_what_counts(monkeypatch):
    slow(monkeypatch, "low/kernel")
    with pytest.raises(ValueError, match=r"macs=0.3 is not met by chains that are faster") as error:
        jaxcnn.substitute(F, PARAMS, X, macs=0.3)
    least = float(re.search(r"the clock still gains is ([0-9.]+)", str(error.value)).group(1))
    assert jaxcnn.substitute(F, PARAMS, X, macs=least + 1e-4).report.macs_share == pytest.approx(least, abs=1e-3)
    small = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.3, count="macs"))
    assert small.report.macs_share <= 0.3
    row = row_of(small, "low/kernel")
    assert row.reason == 'its chain is slower than the kernel, and there because of count="macs"'
    assert "low/kernel: its chain is slower" in str(small.report)
    assert "low/kernel stays dense" not in str(small.report)


@pytest.mark.parametrize(("milliseconds", "is_met"), [(0.02, True), (0.2, False)])
def test_of_a_function_as_short_as_a_call_the_clock_decides_nothing(milliseconds, is_met, monkeypatch):
    slow(monkeypatch, "low/kernel", "high/kernel")
    times = milliseconds, 3 * milliseconds
    monkeypatch.setattr(problem.Problem, "estimated_milliseconds", lambda self, index, shapes: times)
    if not is_met:
        with pytest.raises(ValueError, match=r"macs=0.5 is not met by chains that are faster"):
            jaxcnn.substitute(F, PARAMS, X, macs=0.5)
        return
    small = verified(jaxcnn.substitute(F, PARAMS, X, macs=0.5))
    assert small.report.macs_share <= 0.5
    reason = "its chain is slower than the kernel, but all layers together take less than 0.1 ms"
    assert {row.reason for row in small.report.rows if row.scheme != "dense"} == {reason}


def test_what_counts_is_time_or_macs():
    with pytest.raises(ValueError, match="count must be 'time' or 'macs', got 'flops'"):
        jaxcnn.substitute(F, PARAMS, X, macs=0.5, count="flops")


def test_few_layers_are_timed(monkeypatch):
    timed = []

    def milliseconds(self, index, chain):
        timed.append(self.layers[index].name)
        return 1.0, 0.5

    monkeypatch.setattr(problem.Problem, "milliseconds", milliseconds)
    monkeypatch.setattr(searching, "_MAX_LAYERS_CLOCKED", 1)
    small = jaxcnn.substitute(F, PARAMS, X, macs=0.2)
    # Those that save the most by the estimate come first; the times of others are estimates.
    assert len(timed) == 1
    assert all(row.ms_after < row.ms_before for row in small.report.rows if row.scheme != "dense")


def test_an_error_is_met_by_the_layers_that_are_faster(monkeypatch):
    slow(monkeypatch, "low/kernel")
    small = verified(jaxcnn.substitute(F, PARAMS, X, tolerance=0.05))
    assert row_of(small, "low/kernel").scheme == "dense"
    assert row_of(small, "high/kernel").scheme != "dense"


def test_a_curve_forgets_what_was_slow_at_another_share(monkeypatch):
    slow(monkeypatch, "low/kernel")
    first = jaxcnn.substitute(F, PARAMS, X, macs=0.7)
    again = first.with_budget(macs=0.5).with_budget(macs=0.7)
    assert [row.rank for row in again.report.rows] == [row.rank for row in first.report.rows]


def test_a_budget_that_is_missed_says_what_stays_dense():
    kernel = PARAMS["low"]["kernel"]
    image = jnp.asarray(normal((1, 12, 12, 16)))
    with pytest.raises(ValueError, match=r"the least is 1; low stays dense: it reaches integer_pow"):
        jaxcnn.substitute(lambda p, x: conv(x, p["low"]) + (p["low"] ** 2).sum(), {"low": kernel}, image, macs=0.5)


# One rank for all layers, whatever that costs


def depthwise(params, x):
    for stride, name in ((1, "first"), (2, "strided"), (1, "small")):
        kernel = params[name]
        x = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=kernel.shape[-1],
        )
        x = jnp.minimum(jax.nn.relu(x), 6)
    return lax.conv_general_dilated(x, params["pointwise"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


DEPTHWISE = {
    "first": jnp.asarray(normal((5, 5, 1, 16), 1)),
    "strided": jnp.asarray(normal((5, 5, 1, 16), 2)),
    "small": jnp.asarray(normal((1, 3, 1, 16), 3)),
    "pointwise": jnp.asarray(normal((1, 1, 16, 8), 4)),
}


def images(seed):
    return jnp.asarray(normal((2, 20, 20, 16), seed))


def smooth(seed):
    """Images of which neighbouring pixels are alike, as those of photographs."""
    return jnp.cumsum(jnp.cumsum(images(seed), axis=1), axis=2) / 8


def test_every_layer_takes_the_chain_of_the_rank():
    small = jaxcnn.substitute(depthwise, DEPTHWISE, images(0), rank=2, schemes="separable", skip="pointwise")
    rows = {row.name: row for row in small.report.rows}
    assert [rows[name].rank for name in ("first", "strided")] == [2, 2]
    for name in ("first", "strided"):
        expected = jaxcnn.separable(DEPTHWISE[name], rank=2, feature_group_count=16)
        assert small.params[name].kernels[0].shape == (5, 1, 1, 32)
        np.testing.assert_allclose(small.params[name].dense(), expected.dense(), atol=1e-5)
    # Its first link is computed at the full height or width: more of the arithmetic than the kernel, and still there.
    assert rows["strided"].macs_after > rows["strided"].macs_before
    assert rows["pointwise"].reason == "it is skipped"
    assert small.params["pointwise"] is not None
    assert small.report.error == pytest.approx(
        relative_error(small.apply(small.params, images(0)), depthwise(DEPTHWISE, images(0))), rel=1e-3
    )


def test_a_layer_of_less_takes_its_full_rank():
    small = jaxcnn.substitute(depthwise, DEPTHWISE, images(0), rank=9, schemes="separable", skip="pointwise")
    assert {row.name: row.rank for row in small.report.rows}["first"] == 5
    assert small.report.error < 1e-5


def test_responses_are_nearer_than_weights():
    options = {"rank": 2, "schemes": "separable", "skip": ["pointwise", "small"]}
    of_weights = jaxcnn.substitute(depthwise, DEPTHWISE, smooth(0), **options)
    fitted = jaxcnn.substitute(depthwise, DEPTHWISE, smooth(0), calibration=[smooth(1), smooth(2)], **options)
    assert fitted.report.error < 0.8 * of_weights.report.error
    assert [link.shape for link in fitted.params["first"].kernels] == [(5, 1, 1, 32), (1, 5, 2, 16)]


@pytest.mark.parametrize("rank", [(3, 3), *(pytest.param(rank, marks=pytest.mark.slow) for rank in (3, [3, 3]))])
def test_ranks_of_tucker2(rank):
    small = jaxcnn.substitute(F, PARAMS, X, rank=rank, schemes="tucker2", skip="stem")
    for name in ("low", "high"):
        links = small.params[name]["kernel"].kernels
        assert [link.shape[-1] for link in links[:2]] == [3, 3]


@pytest.mark.parametrize(("scheme", "features"), [("low_rank", 4), ("depthwise_separable", 2), ("cp", 3), ("stack", 6)])
def test_every_scheme_has_a_rank(scheme, features):
    kernel = jnp.asarray(normal((5, 5, 6, 8)))
    small = jaxcnn.substitute(lambda k, x: conv(x, k), kernel, images(0)[..., :6], rank=features, schemes=scheme)
    width = features * 6 if scheme == "depthwise_separable" else features
    assert small.params.kernels[0].shape[-1] == width
    assert small.report.rows[0].rank == features


def test_stacked_kernels_have_it_each():
    kernels = jnp.asarray(normal((3, 5, 5, 16, 16)))

    def f(kernels, x):
        return lax.scan(lambda x, kernel: (jax.nn.relu(conv(x, kernel)), None), x, kernels)[0]

    small = jaxcnn.substitute(f, kernels, images(0), rank=2, schemes="separable")
    assert [link.shape for link in small.params.kernels] == [(3, 5, 1, 16, 2), (3, 1, 5, 2, 16)]


def test_volumes_have_one_for_each_gap():
    kernel = jnp.asarray(normal((3, 3, 3, 4, 4)))
    x = jnp.asarray(normal((1, 6, 6, 6, 4)))

    def f(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    for rank, widths in ((2, [2, 2]), ((3, 2), [3, 2])):
        small = jaxcnn.substitute(f, kernel, x, rank=rank, schemes="separable")
        assert [link.shape[-1] for link in small.params.kernels] == [*widths, 4]
    with pytest.raises(ValueError, match=r"'separable' has 2 ranks for a window of \(3, 3, 3\), got rank=\(1, 2, 3\)"):
        jaxcnn.substitute(f, kernel, x, rank=(1, 2, 3), schemes="separable")


def test_curve_and_file(tmp_path):
    options = {"rank": 2, "schemes": "separable", "skip": "stem"}
    for calibration in (None, [X]):
        small = jaxcnn.substitute(F, PARAMS, X, calibration=calibration, **options)
        assert len(small.curve((0.5,)).points) == 2
    small.save(tmp_path / "small.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "small.npz", F, PARAMS)
    assert loaded.report == small.report
    np.testing.assert_array_equal(loaded.apply(loaded.params, X), small.apply(small.params, X))


def test_what_no_chain_can_replace_says_so():
    small = jaxcnn.substitute(
        lambda params, x: conv(_signal(x[0], params["signal"])[None], params["image"]),
        {"signal": jnp.asarray(normal((3, 16, 16))), "image": jnp.asarray(normal((5, 5, 16, 16)))},
        images(0),
        rank=2,
        schemes="separable",
    )
    rows = {row.name: row for row in small.report.rows}
    assert rows["image"].rank == 2
    assert rows["signal"].reason.startswith("no separable chain: it needs two or more window axes")
    with pytest.raises(ValueError, match=r"no layer can take a chain of rank 2: .*two or more window axes"):
        jaxcnn.substitute(
            lambda k, x: _signal(x[0], k), jnp.asarray(normal((3, 16, 16))), images(0), rank=2, schemes="separable"
        )


def _signal(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


ERRORS = {
    "no scheme": ({"rank": 2}, ValueError, "rank is that of one scheme's chains, but schemes="),
    "two": ({"rank": 2, "schemes": ["cp", "stack"]}, ValueError, "rank is that of one scheme's chains"),
    "zero": ({"rank": 0, "schemes": "cp"}, ValueError, "rank must be at least 1, got 0"),
    "none": ({"rank": (), "schemes": "tucker2"}, ValueError, r"rank must hold at least one number, got \(\)"),
    "share": ({"rank": 0.5, "schemes": "cp"}, TypeError, "rank must be an int, got 0.5"),
    "pair": ({"rank": (2, 3), "schemes": "cp"}, ValueError, r"'cp' has one rank, got rank=\(2, 3\)"),
    "three": ({"rank": (2, 3, 4), "schemes": "tucker2"}, ValueError, "'tucker2' has 2 ranks"),
    "pair of an image": ({"rank": (2, 3), "schemes": "separable"}, ValueError, "'separable' has 1 rank"),
    "and macs": (
        {"rank": 2, "macs": 0.5, "schemes": "cp"},
        ValueError,
        "rank=2 decides on every layer, so give no budget with it, got {'macs': 0.5}",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(F, PARAMS, X, **options)
