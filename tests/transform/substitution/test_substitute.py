"""`substitute` as a function: its arguments, its results, and what it says of those that it cannot take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from support.arrays import normal, relative_error
from support.planted import conv
from support.substitutions import (
    IMAGE,
    OTHER_IMAGE,
    PARAMS,
    SMALL,
    F,
    X,
    row_of,
    substituted,
    two_layers,
    verified,
)

OPTIONS = {"macs": 0.5, "schemes": "separable"}

pytestmark = pytest.mark.usefixtures("clock_of_macs", "two_ranks_judged")


def test_skip():
    for skip in ("high", ["nothing", "high/k"], lambda name: name == "high/kernel"):
        small = jaxcnn.substitute(F, PARAMS, X, macs=0.65, skip=skip, schemes="low_rank")
        assert row_of(small, "high/kernel").reason == "it is skipped"
        assert row_of(small, "low/kernel").scheme != "dense"
    verified(small)


def test_progress_is_told_to_a_function():
    told = []
    jaxcnn.substitute(F, PARAMS, X, **OPTIONS, progress=lambda done, total: told.append((done, total)))
    layers = 3
    assert told == [(done, layers + 1) for done in range(layers + 2)]


def test_the_same_twice():
    first, second = substituted(macs=0.3), jaxcnn.substitute(F, PARAMS, X, macs=0.3)
    assert jax.tree.structure(first.params) == jax.tree.structure(second.params)
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shapes_alone_for_the_other_arguments():
    small = jaxcnn.substitute(F, PARAMS, jax.ShapeDtypeStruct(X.shape, X.dtype), macs=0.4)
    assert small.report.macs_share <= 0.4
    assert small.report.error > 0


def test_other_arguments_reach_f():
    def f(params, x, train, *, scale=2):
        assert train is True
        assert scale == 2
        return F(params, x) * scale

    verified(jaxcnn.substitute(f, PARAMS, X, True, macs=0.4), f, PARAMS, (X, True))


ERRORS = {
    "no budget": ({}, "give one or several of tolerance, macs, speedup, parameter_bytes"),
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
    small = jaxcnn.substitute(F, PARAMS, X, macs=0.5, skip=["", "stem"])
    assert [row.name for row in small.report.rows if row.reason == "it is skipped"] == ["stem/kernel"]


def test_params_with_chains_and_no_function_are_refused():
    chain = jaxcnn.separable(PARAMS["low"]["kernel"], rank=1)
    with pytest.raises(ValueError, match="params hold chains already"):
        jaxcnn.substitute(F, {**PARAMS, "low": {**PARAMS["low"], "kernel": chain}}, X, macs=0.5)
    with pytest.raises(TypeError, match="f must be a function, got 3"):
        jaxcnn.substitute(3, PARAMS, X, macs=0.5)


def test_kernels_that_are_closed_over_are_not_found():
    kernel = PARAMS["low"]["kernel"]
    image = jnp.asarray(normal((1, 12, 12, 16)))
    for options in ({"macs": 0.5}, {"tolerance": 0.1}, {"speedup": 2}):
        with pytest.raises(ValueError, match="of the 1 convolutions of f none has its kernel from params"):
            jaxcnn.substitute(lambda scale, x: scale * conv(x, kernel), jnp.ones(()), image, **options)


def test_calibration_that_f_does_not_take_says_what_it_was_called_with():
    def f(params, x, train):
        return F(params, x) if train else x

    with pytest.raises(TypeError, match="train") as error:
        jaxcnn.substitute(f, PARAMS, X, True, macs=0.5, calibration=X)
    assert "an item of calibration, of shapes (2, 24, 24, 3)" in " ".join(error.value.__notes__)


def test_calibration_from_a_generator():
    inputs = [IMAGE, OTHER_IMAGE]
    expected = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=inputs, **OPTIONS).report.error
    small = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=(x for x in inputs), **OPTIONS)
    assert small.report.error == expected
    with pytest.raises(ValueError, match="at least one batch of inputs"):
        jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=iter(()), **OPTIONS)


def test_chains_train():
    small = substituted(macs=0.3)
    target = F(PARAMS, X)

    def loss(params):
        return jnp.square(small.apply(params, X) - target).mean()

    before, gradient = jax.jit(jax.value_and_grad(loss))(small.params)
    norm = sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(gradient))
    step = jax.tree.map(lambda p, g: p - 0.1 * float(before) / norm * g, small.params, gradient)
    assert float(loss(step)) < float(before)


def test_curve():
    curve = substituted(macs=0.5).curve((0.8, 0.3, 0.0001))
    macs, speedups, errors = zip(*curve.points, strict=True)
    assert len(macs) == 3
    assert list(macs) == sorted(macs, reverse=True)
    assert errors[0] < errors[-1]
    assert all(speedup > 0 for speedup in speedups)


# Unusual functions, budgets and calibration: what becomes of them, or what is said of them


def test_results_without_floating_numbers_are_refused():
    for g, what in (
        (lambda p, x: two_layers(p, x).argmax(-1), "there are none"),
        (lambda p, x: two_layers(p, x) * jnp.nan, "all are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=f"weighed by the floating results of f .* and {what}"):
            jaxcnn.substitute(g, SMALL, IMAGE, **OPTIONS)


def test_a_kernel_that_is_nan_is_named():
    params = {**SMALL, "second": SMALL["second"].at[0, 0, 0, 0].set(jnp.nan)}
    for options in (OPTIONS, {**OPTIONS, "calibration": OTHER_IMAGE}):
        with pytest.raises(ValueError, match="second: it has values that are NaN or infinite"):
            jaxcnn.substitute(lambda p, x: two_layers(p, x).sum(), params, IMAGE, **options)


def test_a_tolerance_of_results_that_are_zero_is_refused():
    def zero(params, x):
        return 0 * two_layers(params, x)

    assert jaxcnn.substitute(zero, SMALL, IMAGE, **OPTIONS).report.error == 0
    with pytest.raises(ValueError, match="for the given arguments are all zero"):
        jaxcnn.substitute(zero, SMALL, IMAGE, tolerance=0.1, schemes="separable")


def test_complex_results_and_masked_ones_are_weighed():
    expected = jaxcnn.substitute(two_layers, SMALL, IMAGE, **OPTIONS).report.error
    for g in (
        lambda p, x: jax.lax.complex(3 * two_layers(p, x), 4 * two_layers(p, x)),
        lambda p, x: jnp.concatenate([two_layers(p, x), jnp.full((1, 8, 8, 1), -jnp.inf)], -1),
    ):
        assert jaxcnn.substitute(g, SMALL, IMAGE, **OPTIONS).report.error == pytest.approx(expected, rel=1e-3)


def test_results_that_chains_make_infinite():
    def g(params, x):  # unless they are nearly what they were
        y = two_layers(params, x)
        return y + 1 / (jnp.abs(y - two_layers(SMALL, x)).max() < 1e-3).astype(jnp.float32)

    with pytest.raises(ValueError, match="results with chains are not finite"):
        jaxcnn.substitute(g, SMALL, IMAGE, macs=0.8, schemes="separable")
    assert jaxcnn.substitute(g, SMALL, IMAGE, tolerance=0.2, schemes="separable").report.macs_share == 1


def test_a_function_without_convolutions():
    with pytest.raises(ValueError, match="f has no convolution"):
        jaxcnn.substitute(lambda p, x: x * 2, SMALL, IMAGE, macs=0.5)


def test_skipping_nothing_warns():
    with pytest.warns(UserWarning, match=r"skip=\['third'\] is no layer; there are first, second"):
        small = jaxcnn.substitute(two_layers, SMALL, IMAGE, skip=["third"], **OPTIONS)
    assert [row.scheme for row in small.report.rows] == ["separable", "separable"]


BUDGETS = {
    "no number": ({"macs": "half"}, TypeError, "macs must be a number, got 'half'"),
    "several numbers": ({"macs": jnp.ones(2)}, TypeError, "macs must be a number"),
    "infinite": ({"speedup": float("inf")}, ValueError, "speedup must be positive and finite, got inf"),
    "NaN": ({"tolerance": float("nan")}, ValueError, "tolerance must be at least 0 and finite, got nan"),
    "no scheme": ({"macs": 0.5, "schemes": ()}, ValueError, "at least one scheme, got none"),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_budgets_that_are_none(case):
    options, kind, text = BUDGETS[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(two_layers, SMALL, IMAGE, **options)


def test_a_curve_goes_on_after_a_share_that_is_too_small():
    small = jaxcnn.substitute(two_layers, SMALL, IMAGE, **OPTIONS)
    assert len(small.curve((0.9, 0.001, 0.7)).points) == 3
    with pytest.raises(ValueError, match=r"curve: each of shares must be a share in \(0, 1\], got 2"):
        small.curve((0.9, 2))


CALIBRATIONS = {
    "NaN": (OTHER_IMAGE.at[0, 0, 0, 0].set(jnp.nan), ValueError, "what enters or leaves first is NaN or infinite"),
    "no images": (OTHER_IMAGE[:0], ValueError, r"of shapes \(0, 8, 8, 4\), f makes no convolution"),
    "shapes": (
        jax.ShapeDtypeStruct(IMAGE.shape, IMAGE.dtype),
        TypeError,
        "must hold arrays, got a jax.ShapeDtypeStruct",
    ),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_calibration_that_is_none(case):
    calibration, kind, text = CALIBRATIONS[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=calibration, **OPTIONS)


@pytest.mark.parametrize("calibration", [0 * OTHER_IMAGE, OTHER_IMAGE[:, :1, :1]], ids=["zeros", "one pixel"])
def test_calibration_that_says_nothing_leaves_the_chains_of_the_weights(calibration):
    plain = jaxcnn.substitute(two_layers, SMALL, IMAGE, **OPTIONS)
    fitted = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=calibration, **OPTIONS)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_calibration_with_a_kernel_of_zeros():
    params = {**SMALL, "second": jnp.zeros((5, 5, 4, 6))}
    small = jaxcnn.substitute(two_layers, params, IMAGE, calibration=OTHER_IMAGE, **OPTIONS)
    assert all(jnp.isfinite(link).all() for link in jax.tree.leaves(small.params))


def test_dictionaries_for_inputs_and_results():
    def g(params, batch):
        return {"scores": two_layers(params, batch["image"]), "classes": batch["classes"], "count": 3}

    batch, other = ({"image": image, "classes": jnp.arange(4)} for image in (IMAGE, OTHER_IMAGE))
    plain = jaxcnn.substitute(two_layers, SMALL, IMAGE, calibration=OTHER_IMAGE, **OPTIONS)
    for calibration in (other, [other], [(other,)], (batch for batch in [other])):
        small = jaxcnn.substitute(g, SMALL, batch, calibration=calibration, **OPTIONS)
        assert small.report.error == pytest.approx(plain.report.error, rel=1e-3)
    results = small.apply(small.params, batch)
    assert results["count"] == 3
    assert relative_error(results["scores"], two_layers(SMALL, IMAGE)) == pytest.approx(small.report.error, rel=1e-3)


def test_a_function_that_is_jitted_once_and_called_with_other_kernels():
    block = jax.jit(lambda x, k: jax.nn.relu(conv(x, k)))
    fixed = jnp.asarray(normal((5, 5, 16, 16), 8))

    def both(kernel, x):
        return block(block(x, kernel), fixed)

    x = jnp.asarray(normal((1, 8, 8, 16), 9))
    report = jaxcnn.substitute(both, fixed[::-1], x, rank=2, schemes="separable").report
    assert report.macs_before == jaxcnn.summarize(both, fixed, x).total.macs
    assert report.macs_before - report.macs_after == report.rows[0].macs_before - report.rows[0].macs_after
