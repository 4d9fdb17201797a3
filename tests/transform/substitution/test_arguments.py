"""Tests of the options of `substitute`: ranks and schemes by layer name, several budgets, bytes, a later budget."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from jaxcnn.transform.substitution.arguments import first_match
from support.planted import conv, planted
from support.substitutions import IMAGE, OTHER_IMAGE, SMALL, row_of, two_layers, verified

pytestmark = pytest.mark.usefixtures("clock_of_macs", "two_ranks_judged")

SEPARABLE = {"schemes": "separable"}
DENSE_BYTES = 4 * 2 * 5 * 5 * 4 * 4


def substituted(**options):
    return jaxcnn.substitute(two_layers, SMALL, IMAGE, **{**SEPARABLE, **options})


def size_of(params):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (("conv",), "block/conv4/kernel", "conv"),
        (("conv4/*", "*"), "conv4/kernel", "conv4/*"),
        (("conv4/*", "*"), "conv14/kernel", "*"),
        (("conv?/kernel",), "conv14/kernel", None),
        (("layers/[12]/*",), "layers/2/weight", "layers/[12]/*"),
        (("",), "conv", None),
    ],
)
def test_the_first_part_or_pattern_of_a_name(patterns, name, expected):
    assert first_match(patterns, name) == expected


def test_ranks_by_name_leave_the_other_layers_dense():
    small = verified(substituted(ranks={"fir*": 2}), two_layers, SMALL, (IMAGE,))
    assert [(row.scheme, row.rank) for row in small.report.rows] == [("separable", 2), ("dense", None)]


def test_ranks_by_name_beside_a_rank_for_the_others():
    assert [row.rank for row in substituted(ranks={"first": 3, "*": 4}, rank=1).report.rows] == [3, 4]
    assert [row.rank for row in substituted(ranks={"first": 3}, rank=1).report.rows] == [3, 1]


@pytest.mark.parametrize("calibration", [None, [OTHER_IMAGE]])
def test_a_budget_is_met_around_ranks_by_name(calibration):
    small = substituted(ranks={"first": 3}, macs=0.4, calibration=calibration)
    first, second = small.report.rows
    assert small.report.macs_share <= 0.4
    assert first.rank == 3
    assert second.rank > 3  # what the first leaves
    # A rank that the user set is no matter of time.
    wide = substituted(ranks={"first": 12}, macs=0.9)
    assert row_of(wide, "first").macs_after == 1.2 * row_of(wide, "first").macs_before


def test_what_may_be_lost_is_refused_if_the_ranks_lose_more():
    def score(apply):
        return -float(jnp.abs(apply(IMAGE) - two_layers(SMALL, IMAGE)).sum())

    for calibration in (None, [OTHER_IMAGE]):
        options = {"ranks": {"first": 1}, "calibration": calibration}
        assert substituted(tolerance=0.2, **options).report.rows[0].rank == 1
        with pytest.raises(ValueError, match=r"tolerance=0.001 is not met with the chains of ranks, of first, even"):
            substituted(tolerance=0.001, **options)
    with pytest.raises(ValueError, match=r"budget=0.001 is not met with the chains of ranks, of first, even where"):
        substituted(budget=0.001, measure=score, ranks={"first": 1})


def test_schemes_by_name():
    small = substituted(schemes={"first": "tucker2", "sec*": ["low_rank"]}, macs=0.7)
    assert [row.scheme for row in small.report.rows] == ["tucker2", "low_rank"]


def test_skip_takes_patterns():
    assert row_of(substituted(skip="f?rst", rank=2), "first").reason == "it is skipped"


def test_bytes_are_those_of_all_parameters():
    def f(params, x):
        return two_layers(params, x) + params["bias"][None, None, None]

    params = {**SMALL, "bias": jnp.ones(100)[:1]}
    for allowed in (4 + DENSE_BYTES // 2, 4 + DENSE_BYTES, 700):
        small = jaxcnn.substitute(f, params, IMAGE, parameter_bytes=allowed, **SEPARABLE)
        report = small.report
        assert report.parameter_bytes_before == size_of(params) == DENSE_BYTES + 4
        assert allowed / 2 < report.parameter_bytes_after == size_of(small.params) <= allowed
    assert "3.20 k bytes of parameters before, 644 after" in str(report)


def test_bytes_count_every_kernel_of_a_stack():
    kernels = jnp.stack(list(SMALL.values()))

    def f(kernels, x):
        return jax.lax.scan(lambda y, kernel: (conv(y, kernel), None), x, kernels)[0]

    small = jaxcnn.substitute(f, kernels, IMAGE, parameter_bytes=DENSE_BYTES // 2, **SEPARABLE)
    assert size_of(small.params) <= DENSE_BYTES // 2


def test_bytes_of_kernels_that_are_computed():
    def f(params, x):
        return conv(x, params["kernel"] / jnp.linalg.norm(params["kernel"]))

    params = {"kernel": planted(5, 5, 4, 4, 1)}
    small = jaxcnn.substitute(f, params, IMAGE, parameter_bytes=800, **SEPARABLE)
    assert small.report.parameter_bytes_after == size_of(small.params) <= 800
    assert small.report.parameter_bytes_before == 1600


def test_all_budgets_are_met():
    # The first layer has few multiply-accumulates and many bytes, the second one the other way round.
    def f(params, x):
        y = conv(x, params["small"])
        return conv(y.repeat(4, 1), params["large"])[..., :1] + conv(x, params["first"], 8).sum()

    params = {"first": planted(5, 5, 4, 64, 2), "small": planted(3, 3, 4, 4, 4), "large": planted(5, 5, 4, 4, 3)}
    limits = {"macs": 0.4, "parameter_bytes": int(0.4 * size_of(params))}
    for budgets in (*({name: limit} for name, limit in limits.items()), limits):
        report = jaxcnn.substitute(f, params, IMAGE, **budgets, **SEPARABLE).report
        met = {
            "macs": report.macs_share <= 0.4,
            "parameter_bytes": report.parameter_bytes_after <= 0.4 * size_of(params),
        }
        assert {name for name in met if met[name]} == budgets.keys()


def test_budgets_of_what_is_lost_refuse_a_result_that_loses_more():
    error = substituted(macs=0.3).report.error
    assert substituted(macs=0.3, tolerance=1.01 * error).report.macs_share <= 0.3
    with pytest.raises(ValueError, match=r"macs=0.3 and tolerance=0.01 are not met together: .* leave an error .*0.09"):
        substituted(macs=0.3, tolerance=0.01)

    def score(apply):
        return -float(jnp.abs(apply(IMAGE) - two_layers(SMALL, IMAGE)).sum())

    with pytest.raises(ValueError, match=r"macs=0.3 and budget=0 are not met together: .* the score is -[0-9.]+, "):
        substituted(macs=0.3, budget=0, measure=score)
    small = substituted(tolerance=0.07, budget=1e9, measure=score)
    assert small.report.error <= 0.07
    assert small.report.macs_share < 1


def test_another_budget_needs_no_second_search(monkeypatch):
    small = substituted(macs=0.5)
    expected = substituted(macs=0.3)
    monkeypatch.setattr("jaxcnn.transform.substitution.problem.Problem.weigh", None)
    finer = small.with_budget(macs=0.3)
    assert [row.rank for row in finer.report.rows] == [row.rank for row in expected.report.rows]
    assert size_of(finer.with_budget(parameter_bytes=700).params) <= 700
    assert finer.with_budget(tolerance=0).report.macs_share == 1


def test_another_budget_of_calibrated_chains_is_refused_like_the_first():
    small = substituted(macs=0.7, calibration=[OTHER_IMAGE], max_error=0.1)
    with pytest.raises(ValueError, match=r"macs leaves an error of the results of .* above max_error=0.1"):
        small.with_budget(macs=0.1)
    assert small.with_budget(macs=0.1, max_error=float("inf")).report.macs_share <= 0.1


def test_each_layer_is_told_when_it_is_fitted_and_when_it_is_decided():
    told = []
    small = substituted(macs=0.4, calibration=[OTHER_IMAGE], on_layer=told.append)
    assert [row.name for row in told] == ["first", "second"] * 2
    assert tuple(told[2:]) == small.report.rows
    assert [row.error for row in told[:2]] == [row.error for row in told[2:]]
    told.clear()
    report = substituted(rank=2, skip="second", on_layer=told.append).report
    assert tuple(told) == report.rows


ERRORS = {
    "no such layer": (
        {"ranks": {"third": 2}},
        ValueError,
        "ranks has 'third', which matches no layer; there are first, ",
    ),
    "no such scheme's layer": (
        {"schemes": {"conv*": "cp"}, "macs": 0.5},
        ValueError,
        r"schemes has 'conv\*', which match",
    ),
    "several schemes": (
        {"ranks": {"first": 2}, "schemes": None},
        ValueError,
        r"ranks\['first'\] is that of one scheme's chains, but schemes=\('separable', ",
    ),
    "no rank": ({"ranks": {"first": "two"}}, TypeError, r"ranks\['first'\] must be an int, got 'two'"),
    "a rank": ({"ranks": 2}, TypeError, "ranks must be a dictionary of ranks by layer name, got 2"),
    "unknown scheme": ({"schemes": {"first": "svd"}, "macs": 0.5}, ValueError, "a scheme must be one of"),
    "half a byte": ({"parameter_bytes": 0.5}, TypeError, "parameter_bytes must be an int, got 0.5"),
    "no byte": ({"parameter_bytes": 0}, ValueError, "parameter_bytes must be at least 1, got 0"),
    "too few bytes": (
        {"parameter_bytes": 10, "skip": "second"},
        ValueError,
        "parameter_bytes=10 is not met by any choice of chains, the least of 3200 bytes is 1760; second stays dense",
    ),
    "rank and macs": ({"rank": 2, "macs": 0.5}, ValueError, "rank=2 decides on every layer, so give no budget with it"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text):
        substituted(**options)


MESSAGES = {
    "a text for dense": ({"dense": "all", "macs": 0.5}, TypeError, "dense must be True or False, got 'all'"),
    "a number for dense": ({"dense": 1, "macs": 0.5}, TypeError, "dense must be True or False, got 1"),
    "no function": ({"on_layer": 3, "macs": 0.5}, TypeError, "on_layer must be a function, got 3"),
    "no score": ({"measure": 0.9, "macs": 0.5}, TypeError, "measure must be a function, got 0.9"),
    "loss of no score": (
        {"budget": 0.1},
        ValueError,
        "budget=0.1 is the loss allowed in a score, so give measure too",
    ),
    "nothing": (
        {},
        ValueError,
        "give one or several of tolerance, macs, speedup, parameter_bytes, and budget with measure; or rank or ranks; "
        "got none",
    ),
    "rank and budgets": (
        {"rank": 2, "macs": 0.5, "parameter_bytes": 700},
        ValueError,
        "rank=2 decides on every layer, so give no budget with it, got {'macs': 0.5, 'parameter_bytes': 700}; ranks by "
        "layer name go with budgets",
    ),
    "no layer of ranks": (
        {"ranks": {"first": 2, "conv4/*": 32}},
        ValueError,
        "ranks has 'conv4/*', which matches no layer; there are first, second",
    ),
    "no layer of schemes": (
        {"schemes": {"f?rst/*": "low_rank"}, "macs": 0.5},
        ValueError,
        "schemes has 'f?rst/*', which matches no layer; there are first, second",
    ),
    "several schemes of a rank": (
        {"ranks": {"first": 2}, "schemes": ("low_rank", "tucker2")},
        ValueError,
        "ranks['first'] is that of one scheme's chains, but schemes=('low_rank', 'tucker2'); give one",
    ),
    "too many ranks": (
        {"ranks": {"f*": (2, 3)}, "schemes": "low_rank"},
        ValueError,
        "'low_rank' has one rank, got ranks['f*']=(2, 3)",
    ),
    "an empty rank": ({"ranks": {"first": ()}}, ValueError, "ranks['first'] must hold at least one number, got ()"),
    "half a rank": (
        {"ranks": {"first": (2, 0.5)}, "schemes": "tucker2"},
        TypeError,
        "each of ranks['first'] must be an int, got 0.5",
    ),
    "no scheme": (
        {"schemes": {"first": ()}, "macs": 0.5},
        ValueError,
        "schemes must hold at least one scheme, got none",
    ),
    "numbers for schemes": (
        {"schemes": {"first": 3}, "macs": 0.5},
        TypeError,
        "schemes must be a text or a sequence of texts, got 3",
    ),
    "numbers for names": ({"skip": [1], "macs": 0.5}, TypeError, "skip must be a text or a sequence of texts, got [1]"),
    "a share of the bytes": ({"parameter_bytes": 0.5}, TypeError, "parameter_bytes must be an int, got 0.5"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case):
    options, kind, text = MESSAGES[case]
    with pytest.raises(kind) as error:
        substituted(**options)
    assert str(error.value) == f"substitute: {text}"


@pytest.fixture(scope="module")
def of_rank_two():
    """One substitution for all tests that ask it for something else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.transform.substitution.problem.Problem.weigh", None)  # ranks need no weights
        return substituted(rank=2)


LATER_BUDGETS = {
    "a percentage": ({"macs": 50}, ValueError, "macs must be a share in (0, 1], got 50"),
    "no speed-up": ({"speedup": 0.0}, ValueError, "speedup must be positive, got 0"),
    "a negative error": ({"tolerance": -0.1}, ValueError, "tolerance must be at least 0, got -0.1"),
    "half a byte": ({"parameter_bytes": 0.5}, TypeError, "parameter_bytes must be an int, got 0.5"),
    "a text": ({"macs": "half"}, TypeError, "macs must be a number, got 'half'"),
    "a negative largest error": ({"macs": 0.5, "max_error": -1}, ValueError, "max_error must be at least 0, got -1"),
    "none": ({}, ValueError, "give tolerance, macs, speedup, parameter_bytes or budget, got none"),
}


@pytest.mark.parametrize("case", LATER_BUDGETS)
def test_messages_of_another_budget(case, of_rank_two):
    budgets, kind, text = LATER_BUDGETS[case]
    with pytest.raises(kind) as error:
        of_rank_two.with_budget(**budgets)
    assert str(error.value) == f"with_budget: {text}"


def test_one_of_several_names_to_skip_may_be_no_layers():
    report = substituted(rank=2, skip=["f?rst", "third"]).report  # a warning would be an error
    assert [row.scheme for row in report.rows] == ["dense", "separable"]


def test_another_budget_needs_the_dense_parameters_and_a_limit():
    small = substituted(rank=2)
    with pytest.raises(ValueError, match="loaded or released does not hold the dense parameters"):
        small.release().with_budget(macs=0.5)
    with pytest.raises(ValueError, match="give tolerance, macs, speedup, parameter_bytes or budget, got none"):
        small.with_budget()
    for budgets in ({"budget": 0.1}, {"budget": 0.1, "macs": 0.5}):
        with pytest.raises(
            ValueError, match="budget is the loss allowed in a score, and substitute was given no measure"
        ):
            small.with_budget(**budgets)
