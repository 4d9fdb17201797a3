"""Inputs that are held out of a calibration, errors that are refused, and the user's own score."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from jaxcnn.transform.substitution.held_out import split_held_out
from support.arrays import normal, relative_error
from support.substitutions import IMAGE, SMALL, two_layers

pytestmark = pytest.mark.usefixtures("clock_of_macs", "two_ranks_judged")

OPTIONS = {"macs": 0.5, "schemes": "separable"}
INPUTS = [jnp.asarray(normal((1, 8, 8, 4), seed)) for seed in range(10, 14)]


def test_a_fifth_is_held_out_from_three_inputs_on():
    counts = {number: len(split_held_out(list(range(number)))[1]) for number in (0, 1, 2, 3, 5, 9, 20)}
    assert counts == {0: 0, 1: 0, 2: 0, 3: 1, 5: 1, 9: 2, 20: 4}
    fitted, held = split_held_out(list(range(20)))
    assert sorted(fitted + held) == list(range(20))
    assert max(b - a for a, b in zip(sorted(held), sorted(held)[1:], strict=False)) < 10


def test_the_report_has_the_error_on_held_out_inputs():
    small = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=INPUTS, **OPTIONS)
    _, (held,) = split_held_out(INPUTS)
    expected = relative_error(small.apply(small.params, held), two_layers(SMALL, held))
    assert small.report.held_out_error == pytest.approx(expected, rel=1e-3)
    assert f"for held-out calibration inputs {small.report.held_out_error:.4f}" in str(small.report)
    other = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=INPUTS[:2], **OPTIONS)
    assert other.report.held_out_error is None


def test_nothing_is_fitted_to_held_out_inputs():
    fitted, (held,) = split_held_out(INPUTS)
    other = [3 * held if x is held else x for x in INPUTS]
    assert len(fitted) == 3
    first, second = (
        jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=inputs, **OPTIONS) for inputs in (INPUTS, other)
    )
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        assert (a == b).all()


RANDOM = {name: jnp.asarray(normal((5, 5, 4, 4), seed)) for seed, name in enumerate(SMALL)}  # of no low rank


def test_a_ruined_result_is_refused_with_what_is_reachable():
    options = {"calibration": INPUTS, "macs": 0.45, "schemes": "separable"}
    with pytest.raises(ValueError, match=r"macs leaves an error .* above max_error=0.3") as error:
        jaxcnn.substitute(two_layers, RANDOM, IMAGE, **options)
    points = [tuple(map(float, pair)) for pair in re.findall(r"([0-9.e-]+) at macs=([0-9.]+)", str(error.value))]
    errors, shares = zip(*points, strict=True)
    assert list(shares) == sorted(shares)
    assert list(errors) == sorted(errors, reverse=True)
    small = jaxcnn.substitute(two_layers, RANDOM, IMAGE, max_error=math.inf, **options)
    assert small.report.largest_error == pytest.approx(errors[0], rel=0.1)
    assert "LARGE ERROR: the results differ by 0." in str(small.report)
    with pytest.raises(ValueError, match="max_error must be at least 0, got -1"):
        jaxcnn.substitute(two_layers, RANDOM, IMAGE, max_error=-1, **options)


def test_a_slower_result_says_so_at_the_top():
    report = jaxcnn.SubstitutionReport((), 100, 50, 1.0, 1.5, 0.1)
    assert str(report).startswith("SLOWER: a call takes 1.50 times as long as before (1.00 ms before, 1.50 ms after)")
    assert not str(jaxcnn.SubstitutionReport((), 100, 50, 1.5, 1.0, 0.1)).startswith("SLOWER")


def nearness(apply):
    """A score that falls by the error of the results."""
    return 1 - relative_error(apply(INPUTS[0]), two_layers(SMALL, INPUTS[0]))


def test_a_score_is_the_budget():
    loose = jaxcnn.substitute(two_layers, SMALL, IMAGE, measure=nearness, budget=0.15, schemes="separable")
    tight = jaxcnn.substitute(two_layers, SMALL, IMAGE, measure=nearness, budget=0.03, schemes="separable")
    for result, loss in ((loose, 0.15), (tight, 0.03)):
        assert result.report.score_before == 1
        assert 1 - loss <= result.report.score_after <= 1
        score = nearness(lambda x, result=result: result.apply(result.params, x))
        assert result.report.score_after == pytest.approx(score, abs=1e-5)
    assert loose.report.macs_share < tight.report.macs_share <= 1
    assert "score 1 before, 0." in str(loose.report)


def test_a_curve_shows_scores():
    small = jaxcnn.substitute(two_layers, SMALL, IMAGE, measure=nearness, **OPTIONS)
    curve = small.curve((0.7,))
    assert len(curve.points) == len(curve.milliseconds) == len(curve.scores) == 2
    assert curve.scores[-1] == small.report.score_after
    assert "score" in str(curve)
    assert jaxcnn.substitute(two_layers, SMALL, IMAGE, **OPTIONS).curve((0.7,)).scores == ()


SCORES = {
    "no score": ({"budget": 0.1}, ValueError, "so give measure too"),
    "no number": (
        {"budget": 0.1, "measure": lambda apply: "good"},
        TypeError,
        "measure must return a number, got 'good'",
    ),
    "NaN": (
        {"budget": 0.1, "measure": lambda apply: math.nan},
        ValueError,
        "measure must return a finite number, got nan",
    ),
    "negative loss": ({"budget": -1, "measure": nearness}, ValueError, "budget must be at least 0, got -1"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_are_none(case):
    options, kind, text = SCORES[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(two_layers, SMALL, IMAGE, schemes="separable", **options)
