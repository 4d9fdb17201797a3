"""The core of `cp` by itself: unit vectors, errors, exact sums, and the cap on terms that cancel."""

import numpy as np
import pytest

from jaxcnn.factorization.numerics.cp_als import MAX_TERMS_NORM, _Problem, fit_terms, full_rank
from support.schemes import UNREACHABLE, terms


def test_the_core_returns_unit_vectors_and_the_error_of_what_it_returns(rng):
    tensor = rng.standard_normal((3, 4, 5, 6))
    factors, weights, error = fit_terms(tensor, 7)
    for factor in factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1, atol=1e-12)
    expected = np.linalg.norm(terms(factors, weights) - tensor) / np.linalg.norm(tensor)
    assert error == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 2, 1), (3, 1, 2, 2), (2, 9, 2, 3)])
def test_full_rank_is_exact_and_its_terms_do_not_cancel(shape, rng):
    tensor = rng.standard_normal(shape)
    for rank in (full_rank(shape), full_rank(shape) + 2):
        factors, weights, error = fit_terms(tensor, rank)
        assert error == 0
        np.testing.assert_allclose(terms(factors, weights), tensor, atol=1e-14)
        assert np.linalg.norm(weights) == pytest.approx(np.linalg.norm(tensor))


def nearly_parallel(distance):
    """Two unit vectors for each axis of that kernel: the nearer they are, the more their best sum cancels."""
    pair = np.array([[1.0, np.cos(distance)], [0.0, np.sin(distance)]])
    return [pair.copy() for _ in range(3)]


def test_the_ridge_caps_the_norm_of_terms_that_cancel(monkeypatch):
    tensor = UNREACHABLE.astype(np.float64) / np.linalg.norm(UNREACHABLE)
    _, weights, error = _Problem(tensor).sweep(nearly_parallel(1e-3), 300)
    assert np.linalg.norm(weights) <= 1.05 * MAX_TERMS_NORM
    assert error < 0.01
    monkeypatch.setattr("jaxcnn.factorization.numerics.cp_als.MAX_TERMS_NORM", np.inf)
    _, weights, _ = _Problem(tensor).sweep(nearly_parallel(1e-3), 300)
    assert np.linalg.norm(weights) > 10 * MAX_TERMS_NORM, "without the cap they stay large"
