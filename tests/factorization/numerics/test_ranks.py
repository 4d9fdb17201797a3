"""How large a rank must be, against a search over all ranks."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.factorization.numerics.ranks import check_rank, check_tolerance, evbmf_rank, smallest_rank


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


@pytest.mark.parametrize("tolerance", ["5%", (0.1, 0.1)])
def test_tolerances_are_numbers(tolerance):
    with pytest.raises(TypeError, match="stack: tolerance must be a number, got "):
        check_tolerance("stack", tolerance)


# Empirical variational Bayes


def noisy(seed, rows, columns, rank, noise):
    """A matrix of that rank with terms of about equal size, and noise on it."""
    generator = np.random.default_rng(seed)
    exact = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
    return exact + noise * generator.standard_normal((rows, columns))


def rank_of(matrix):
    return evbmf_rank(np.linalg.svd(matrix, compute_uv=False), *matrix.shape)


@pytest.mark.parametrize(
    ("rows", "columns"), [(40, 60), (60, 40), (50, 50), (16, 300), pytest.param(64, 576, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rank", [0, 1, 4, 9])
@pytest.mark.parametrize("noise", [1e-4, 0.1, 0.5])
def test_the_rank_beneath_the_noise(rows, columns, rank, noise):
    matrix = noisy(rank, rows, columns, rank, noise)
    assert rank_of(matrix) == rank_of(matrix.T) == rank_of(1e8 * matrix) == rank_of(1e-8 * matrix) == rank


def test_terms_weaker_than_the_noise_are_not_seen():
    strong = noisy(0, 60, 80, 3, 0.0)
    weak = noisy(1, 60, 80, 5, 0.0) * 0.05
    noise = noisy(2, 60, 80, 0, 1.0)
    assert rank_of(strong + weak + noise) == 3
    assert rank_of(strong + weak + 1e-3 * noise) == 8


@cache
def threshold(alpha):
    """The least of a fine grid at which the paper's condition for a term to count holds."""
    return next(t for t in np.linspace(0.01, 10, 100000) if phi(t) + phi(t / alpha) <= 0)


def energy(values, rows, columns, variance):
    """The free energy as the paper has it, term by term in loops; singular values must not be 0."""
    short, long = sorted((rows, columns))
    alpha = short / long
    tau_bar = threshold(alpha)
    bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    total = 0.0
    for value in values:
        x = value**2 / (long * variance)
        total += x - np.log(x)
        if x > bar:
            tau = (x - 1 - alpha + np.sqrt((x - 1 - alpha) ** 2 - 4 * alpha)) / 2
            total += np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return total, bar


def phi(z):
    return np.log(z + 1) / z - 0.5


def of_a_fine_grid(values, rows, columns):
    """Returns the bar that a value's square must exceed, at the variance with the least energy."""
    most = np.square(values).sum() / (rows * columns)
    grid = np.geomspace(most / 300, most, 400)
    best = grid[np.argmin([energy(values, rows, columns, variance)[0] for variance in grid])]
    return energy(values, rows, columns, best)[1] * max(rows, columns) * best


@pytest.mark.parametrize("seed", range(6))
def test_the_variance_is_the_best_of_a_fine_grid(seed):
    values = np.linalg.svd(noisy(seed, 12, 30, 3, 1.5), compute_uv=False)
    assert evbmf_rank(values, 12, 30) == (values**2 > of_a_fine_grid(values, 12, 30)).sum()


@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (20, 20)])
def test_a_term_counts_as_soon_as_it_exceeds_the_papers_bar(rows, columns):
    noise = np.linalg.svd(noisy(0, rows, columns, 0, 1.0), compute_uv=False)
    shares = []
    for strength in np.linspace(0.9, 1.5, 16):
        values = np.array([strength * noise[0], *noise[1:]])
        shares.append(values[0] ** 2 / of_a_fine_grid(values, rows, columns))
        if abs(shares[-1] - 1) > 0.02:  # else the grid is too coarse to tell
            assert evbmf_rank(values, rows, columns) == (shares[-1] > 1), strength
    assert any(0.8 < share < 0.97 for share in shares)
    assert any(1.03 < share < 1.2 for share in shares)


@pytest.mark.parametrize(
    ("values", "rows", "columns", "rank"),
    [
        ([0.0, 0.0], 2, 5, 0),  # nothing at all
        ([1.0], 1, 9, 0),
        ([3.0, 0.0, 0.0, 0.0, 0.0, 0.0], 6, 8, 1),  # no noise, one term
        ([1.0] * 9, 9, 9, 0),  # all alike: noise
    ],
)
def test_ranks_of_edge_cases(values, rows, columns, rank):
    assert evbmf_rank(np.array(values), rows, columns) == rank
