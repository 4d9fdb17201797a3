"""`substitute` of unusual functions, budgets and calibration: what it makes of them, or what it says of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform import searching
from support.arrays import normal, relative_error
from support.planted import clock_by_arithmetic, conv, planted

PARAMS = {"first": planted(5, 5, 4, 4, 1, noise=0.1), "second": planted(5, 5, 4, 4, 1, seed=5, noise=0.1)}
X, OTHER = (jnp.asarray(normal((1, 8, 8, 4), seed)) for seed in (1, 2))
OPTIONS = {"macs": 0.5, "schemes": "separable"}


def f(params, x):
    return conv(jax.nn.relu(conv(x, params["first"])), params["second"])


@pytest.fixture(autouse=True)
def every_chain_is_faster(monkeypatch):
    clock_by_arithmetic(monkeypatch)
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


def test_results_without_floating_numbers_are_refused():
    for g, what in (
        (lambda p, x: f(p, x).argmax(-1), "there are none"),
        (lambda p, x: f(p, x) * jnp.nan, "all are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=f"weighed by the floating results of f .* and {what}"):
            jaxcnn.substitute(g, PARAMS, X, **OPTIONS)


def test_a_kernel_that_is_nan_is_named():
    params = {**PARAMS, "second": PARAMS["second"].at[0, 0, 0, 0].set(jnp.nan)}
    for options in (OPTIONS, {**OPTIONS, "calibration": OTHER}):
        with pytest.raises(ValueError, match="second: it has values that are NaN or infinite"):
            jaxcnn.substitute(lambda p, x: f(p, x).sum(), params, X, **options)


def test_a_tolerance_of_results_that_are_zero_is_refused():
    def zero(params, x):
        return 0 * f(params, x)

    assert jaxcnn.substitute(zero, PARAMS, X, **OPTIONS).report.error == 0
    with pytest.raises(ValueError, match="for the given arguments are all zero"):
        jaxcnn.substitute(zero, PARAMS, X, tolerance=0.1, schemes="separable")


def test_complex_results_and_masked_ones_are_weighed():
    expected = jaxcnn.substitute(f, PARAMS, X, **OPTIONS).report.error
    for g in (
        lambda p, x: jax.lax.complex(3 * f(p, x), 4 * f(p, x)),
        lambda p, x: jnp.concatenate([f(p, x), jnp.full((1, 8, 8, 1), -jnp.inf)], -1),
    ):
        assert jaxcnn.substitute(g, PARAMS, X, **OPTIONS).report.error == pytest.approx(expected, rel=1e-3)


def test_results_that_chains_make_infinite():
    def g(params, x):  # unless they are nearly what they were
        y = f(params, x)
        return y + 1 / (jnp.abs(y - f(PARAMS, x)).max() < 1e-3).astype(jnp.float32)

    with pytest.raises(ValueError, match="results with chains are not finite"):
        jaxcnn.substitute(g, PARAMS, X, macs=0.8, schemes="separable")
    assert jaxcnn.substitute(g, PARAMS, X, tolerance=0.2, schemes="separable").report.macs == 1


def test_a_function_without_convolutions():
    with pytest.raises(ValueError, match="f has no convolution"):
        jaxcnn.substitute(lambda p, x: x * 2, PARAMS, X, macs=0.5)


def test_skipping_nothing_warns():
    with pytest.warns(UserWarning, match=r"skip=\['third'\] is no layer; there are first, second"):
        found = jaxcnn.substitute(f, PARAMS, X, skip=["third"], **OPTIONS)
    assert [row.scheme for row in found.report.rows] == ["separable", "separable"]


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
        jaxcnn.substitute(f, PARAMS, X, **options)


def test_a_curve_goes_on_after_a_share_that_is_too_small():
    found = jaxcnn.substitute(f, PARAMS, X, **OPTIONS)
    assert len(found.curve((0.9, 0.001, 0.7)).points) == 3
    with pytest.raises(ValueError, match=r"curve: each of shares must be a share in \(0, 1\], got 2"):
        found.curve((0.9, 2))


CALIBRATIONS = {
    "NaN": (OTHER.at[0, 0, 0, 0].set(jnp.nan), ValueError, "what enters or leaves first is NaN or infinite"),
    "no images": (OTHER[:0], ValueError, r"of shapes \(0, 8, 8, 4\), f makes no convolution"),
    "shapes": (jax.ShapeDtypeStruct(X.shape, X.dtype), TypeError, "must hold arrays, got a jax.ShapeDtypeStruct"),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
def test_calibration_that_is_none(case):
    calibration, kind, text = CALIBRATIONS[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(f, PARAMS, X, calibration=calibration, **OPTIONS)


@pytest.mark.parametrize("calibration", [0 * OTHER, OTHER[:, :1, :1]], ids=["zeros", "one pixel"])
def test_calibration_that_says_nothing_leaves_the_chains_of_the_weights(calibration):
    plain = jaxcnn.substitute(f, PARAMS, X, **OPTIONS)
    fitted = jaxcnn.substitute(f, PARAMS, X, calibration=calibration, **OPTIONS)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_calibration_with_a_kernel_of_zeros():
    params = {**PARAMS, "second": jnp.zeros((5, 5, 4, 6))}
    found = jaxcnn.substitute(f, params, X, calibration=OTHER, **OPTIONS)
    assert all(jnp.isfinite(link).all() for link in jax.tree.leaves(found.params))


def test_dictionaries_for_inputs_and_results():
    def g(params, batch):
        return {"scores": f(params, batch["image"]), "classes": batch["classes"], "count": 3}

    batch, other = ({"image": image, "classes": jnp.arange(4)} for image in (X, OTHER))
    plain = jaxcnn.substitute(f, PARAMS, X, calibration=OTHER, **OPTIONS)
    for calibration in (other, [other], [(other,)], (each for each in [other])):
        found = jaxcnn.substitute(g, PARAMS, batch, calibration=calibration, **OPTIONS)
        assert found.report.error == pytest.approx(plain.report.error, rel=1e-3)
    results = found.apply(found.params, batch)
    assert results["count"] == 3
    assert relative_error(results["scores"], f(PARAMS, X)) == pytest.approx(found.report.error, rel=1e-3)


def test_a_function_that_is_jitted_once_and_called_with_other_kernels():
    block = jax.jit(lambda x, k: jax.nn.relu(conv(x, k)))
    fixed = jnp.asarray(normal((5, 5, 16, 16), 8))

    def f(kernel, x):
        return block(block(x, kernel), fixed)

    x = jnp.asarray(normal((1, 8, 8, 16), 9))
    report = jaxcnn.substitute(f, fixed[::-1], x, rank=2, schemes="separable").report
    assert report.macs_before == jaxcnn.summarize(f, fixed, x).total.macs
    assert report.macs_before - report.macs_after == report.rows[0].macs_before - report.rows[0].macs_after
