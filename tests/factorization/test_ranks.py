"""How large a rank must be, against a search over all ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.factorization.ranks import check_rank, check_tolerance, smallest_rank


def searched_rank(values, tolerance):
    """The first rank whose discarded singular values are small enough, by trying them all."""
    total = np.linalg.norm(values)
    for rank in range(1, values.shape[1] + 1):
        if np.linalg.norm(values[:, rank:]) <= tolerance * total:
            return rank
    raise AssertionError("even full rank discards something")


@given(st.integers(1, 3), st.integers(1, 12), st.floats(0, 1.2), st.integers(0, 2**32 - 1))
def test_the_smallest_rank_within_the_tolerance(groups, count, tolerance, seed):
    values = np.sort(np.random.default_rng(seed).exponential(size=(groups, count)), axis=1)[:, ::-1]
    assert smallest_rank(values, tolerance) == searched_rank(values, tolerance)


@pytest.mark.parametrize(
    ("values", "tolerance", "rank"),
    [
        ([[3.0, 0.0, 0.0]], 0.0, 1),
        ([[4.0, 3.0]], 0.6, 1),  # 3 is discarded of a norm of 5
        ([[4.0, 3.0]], 0.59, 2),
        ([[12.0, 4.0, 3.0]], 5 / 13, 1),
        ([[12.0, 4.0, 3.0]], 3.01 / 13, 2),
        ([[12.0, 4.0, 3.0]], 2.99 / 13, 3),
        ([[2.0, 1.0, 1e-9]], 0.0, 3),  # tolerance 0 keeps the tiniest term
        ([[2.0, 1.0, 1e-9]], 1e-9, 2),
        ([[5.0, 1.0]], 1.0, 1),
        ([[0.0, 0.0]], 0.0, 1),
        ([[0.0, 0.0]], 0.5, 1),
        # The error is that of all groups together, though one group alone would need rank 2.
        ([[100.0, 0.0], [1.0, 1.0]], 0.01, 1),
        ([[1.0, 0.0], [1.0, 1.0]], 0.01, 2),
    ],
)
def test_ranks_in_numbers(values, tolerance, rank):
    assert smallest_rank(np.array(values), tolerance) == rank


def test_tails_that_are_tiny_beside_the_sum_are_not_lost():
    values = np.array([[1e8, *[1e-1] * 100]])
    # 100 terms of 0.1 are 1e-8 of the norm; summed after 1e16, each 1e-2 would vanish by rounding.
    assert smallest_rank(values, 0.99e-8) == searched_rank(values, 0.99e-8) == 3
    assert smallest_rank(values, 1.01e-8) == 1


@pytest.mark.parametrize("rank", [1, 2, 5, np.int64(5)])
def test_ranks_in_range_pass(rank):
    assert check_rank("separable", "rank", rank, 5) == rank


@pytest.mark.parametrize(
    ("rank", "error", "message"),
    [
        (0, ValueError, r"separable: rank must be between 1 and 5, the full rank, got 0"),
        (6, ValueError, r"separable: rank must be between 1 and 5, the full rank, got 6"),
        (-1, ValueError, r"separable: rank must be between 1 and 5, the full rank, got -1"),
        (2.0, TypeError, r"separable: rank must be an int, got 2\.0"),
        ("2", TypeError, r"separable: rank must be an int, got '2'"),
    ],
)
def test_other_ranks_are_refused(rank, error, message):
    with pytest.raises(error, match=message):
        check_rank("separable", "rank", rank, 5)


@pytest.mark.parametrize("tolerance", [0, 0.5, np.float32(0.25), 3])
def test_tolerances_pass(tolerance):
    assert check_tolerance("stack", tolerance) == tolerance


@pytest.mark.parametrize("tolerance", [-1e-9, -1, float("nan")])
def test_negative_tolerances_are_refused(tolerance):
    with pytest.raises(ValueError, match=r"stack: tolerance must not be negative, got (-1e-09|-1|nan)"):
        check_tolerance("stack", tolerance)
