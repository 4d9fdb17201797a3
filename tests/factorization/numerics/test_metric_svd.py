"""Tests of truncation in a metric: no other matrices of that rank leave less on the rows that gave the metric."""

import numpy as np
import pytest

from jaxcnn.factorization.numerics.metric_svd import MetricSvd, regularize, second_moments


def error_on(rows, matrix, product):
    return np.linalg.norm(rows @ (matrix - product))


@pytest.mark.parametrize("rank", [1, 3])
def test_the_truncation_is_best_for_the_rows(rank, rng):
    rows = rng.standard_normal((2, 400, 6)) * np.array([3.0, 1.0, 1.0, 0.1, 0.1, 0.1])
    matrix = rng.standard_normal((2, 6, 5))
    first, second = MetricSvd(second_moments(rows), matrix, 0.0).truncate(rank)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, atol=1e-12)
    for group in range(2):
        # The best product is the truncation of what the rows make of the matrix.
        values = np.linalg.svd(rows[group] @ matrix[group], compute_uv=False)
        least = np.linalg.norm(values[rank:])
        assert error_on(rows[group], matrix[group], first[group] @ second[group]) == pytest.approx(least, rel=1e-3)
        left, singular, right = np.linalg.svd(matrix[group], full_matrices=False)
        plain = (left[:, :rank] * singular[:rank]) @ right[:rank]
        assert error_on(rows[group], matrix[group], plain) > 1.1 * least


def test_full_rank_is_exact(rng):
    matrix = rng.standard_normal((1, 4, 6))
    first, second = MetricSvd(second_moments(rng.standard_normal((1, 9, 4))), matrix, 1e-3).truncate(4)
    np.testing.assert_allclose(first @ second, matrix, atol=1e-10)


def test_gram_matrices_of_zeros_become_definite():
    gram = np.zeros((2, 3, 3))
    np.testing.assert_array_equal(regularize(gram, 0.1), np.stack([np.eye(3)] * 2))
    gram[0] = 2 * np.eye(3)
    assert np.linalg.eigvalsh(regularize(gram, 0.1)).min() > 0
    np.testing.assert_allclose(regularize(gram, 0.1)[0], (2.2 + 1e-6) * np.eye(3))
