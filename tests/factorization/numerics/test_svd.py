"""Singular vectors and values, by both ways of finding them."""

import numpy as np
import pytest

from jaxcnn.factorization.numerics import svd as _singular
from jaxcnn.factorization.numerics.svd import left_singular, singular_values


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("deficient", [False, True])
def test_both_ways_of_finding_singular_vectors_agree(rows, columns, deficient, rng, monkeypatch):
    matrix = rng.standard_normal((2, rows, columns))
    if deficient:
        matrix[:, :, 2:] = matrix[:, :, :2] @ rng.standard_normal((2, 2, columns - 2))
    left, values = left_singular(matrix)
    np.testing.assert_allclose(singular_values(matrix), values, atol=1e-12 * values.max())
    monkeypatch.setattr(f"{_singular.__name__}._MAX_SVD_ROWS", 0)
    by_gram, gram_values = left_singular(matrix)
    assert by_gram.shape == left.shape == (2, rows, min(rows, columns))
    np.testing.assert_allclose(gram_values, values, atol=1e-7 * values.max())
    np.testing.assert_allclose(singular_values(matrix), values, atol=1e-7 * values.max())
    assert (np.diff(gram_values, axis=1) <= 0).all()
    for basis in by_gram:
        np.testing.assert_allclose(basis.T @ basis, np.eye(min(rows, columns)), atol=1e-12)
    for rank in range(1, 3 if deficient else min(rows, columns) + 1):
        # The projections are the same; single vectors may differ in sign.
        a, b = (basis[..., :rank] @ np.swapaxes(basis[..., :rank], 1, 2) for basis in (left, by_gram))
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(300, 400), (400, 300)])
@pytest.mark.parametrize("count", [1, 60, 200])
def test_leading_singular_vectors_alone_are_those_of_all(rows, columns, count, rng):
    matrix = rng.standard_normal((2, rows, columns)) * 0.98 ** np.arange(columns)
    every_vector, every_value = left_singular(matrix)
    leading, values = left_singular(matrix, count=count)
    assert leading.shape == (2, rows, count)
    np.testing.assert_allclose(values, every_value[:, :count], rtol=1e-6)
    a, b = (basis @ np.swapaxes(basis, 1, 2) for basis in (leading, every_vector[..., :count]))
    np.testing.assert_allclose(a, b, atol=1e-6)
