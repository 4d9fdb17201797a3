"""`cp` on sums of products, against TensorLy, and where no best approximation exists."""

import warnings

import numpy as np
import pytest

from jaxcnn import KernelChain, cp, low_rank
from jaxcnn.factorization.schemes.cp import CANCELLING_TERMS_NORM, lowest_rank, terms_norm
from support.arrays import normal
from support.schemes import ROUNDING, UNREACHABLE, error_of, terms


def planted(seed, shape, rank):
    """A kernel that is a sum of `rank` products of random vectors."""
    generator = np.random.default_rng(seed)
    return terms([generator.standard_normal((size, rank)) for size in shape]).astype(np.float32)


@pytest.mark.parametrize(("kernels", "needed"), [(3, 3), pytest.param(6, 5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("shape", "rank"), [((3, 3, 8, 8), 4), ((5, 5, 6, 16), 8), ((3, 4, 5), 2), ((3, 3, 3, 4, 4), 4)]
)
def test_sums_of_products_come_back(shape, rank, kernels, needed):
    errors = [
        error_of(cp(kernel, rank=rank), kernel) for kernel in (planted(seed, shape, rank) for seed in range(kernels))
    ]
    assert sum(error < 1e-5 for error in errors) >= needed, errors
    assert error_of(cp(planted(0, shape, rank), rank=rank - 1), planted(0, shape, rank)) > 0.01


@pytest.mark.parametrize(
    ("shape", "rank"), [((3, 3, 8, 12), 6), ((3, 3, 8, 12), 15), ((5, 6, 8), 5), ((3, 3, 3, 4, 5), 8)]
)
def test_as_good_as_tensorly(shape, rank, rng):
    decomposition = pytest.importorskip("tensorly.decomposition")
    cp_tensor = pytest.importorskip("tensorly.cp_tensor")
    kernel = normal(shape, rng)
    wide = kernel.astype(np.float64)
    theirs = []
    for seed in range(3):
        result = decomposition.parafac(wide, rank, n_iter_max=500, init="random", random_state=seed, tol=1e-9)
        theirs.append(np.linalg.norm(cp_tensor.cp_to_tensor(result) - wide) / np.linalg.norm(wide))
    assert error_of(cp(kernel, rank=rank), kernel) <= min(theirs) * 1.02


def test_more_terms_are_better(rng):
    kernel = normal((3, 3, 6, 8), rng)
    errors = [error_of(cp(kernel, rank=rank), kernel) for rank in (1, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.8
    assert errors[-1] < 0.3


def test_two_axes_are_a_matrix(rng):
    """A kernel of one tap is a matrix, whose best sum of products has a closed form."""
    kernel = normal((1, 1, 6, 8), rng)
    for rank in (1, 3, 5):
        expected = error_of(low_rank(kernel, rank=rank), kernel)
        assert error_of(cp(kernel, rank=rank), kernel) == pytest.approx(expected, rel=1e-2)


def test_the_seed_alone_decides(rng):
    kernel = normal((3, 3, 4, 4), rng)
    first, same, other = (cp(kernel, rank=6, seed=seed) for seed in (0, 0, 1))
    for link, again in zip(first.kernels, same.kernels, strict=True):
        np.testing.assert_array_equal(link, again)
    assert other.shape == first.shape


def test_all_links_share_the_norm_of_a_term(rng):
    chain = cp(1e8 * normal((3, 5, 4, 6), rng), rank=3)
    first, vertical, horizontal, last = (np.asarray(link) for link in chain.kernels)
    norms = [
        np.linalg.norm(first[0, 0], axis=0),
        np.linalg.norm(vertical[:, 0, 0], axis=0),
        np.linalg.norm(horizontal[0, :, 0], axis=0),
        np.linalg.norm(last[0, 0], axis=1),
    ]
    for norm in norms[1:]:
        np.testing.assert_allclose(norm, norms[0], rtol=1e-5)


def test_no_rank_below_that_of_the_unfoldings_is_tried(rng):
    kernel = planted(0, (3, 3, 8, 8), 5)
    assert lowest_rank(kernel[None].astype(np.float64), 1e-4) == 5
    assert lowest_rank(kernel[None].astype(np.float64), 1.0) == 1
    assert cp(kernel, tolerance=1e-4).kernels[0].shape[-1] == 5


# Terms that cancel


def test_terms_that_cancel_are_told(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chain = cp(UNREACHABLE, rank=2)
        assert error_of(cp(UNREACHABLE, rank=3), UNREACHABLE) < 1e-5
    # Left alone, the terms grow so slowly that the search ends before they are said to cancel.
    size = terms_norm(chain, np.linalg.norm(UNREACHABLE))
    assert 2 < size < CANCELLING_TERMS_NORM
    monkeypatch.setattr("jaxcnn.factorization.schemes.cp.CANCELLING_TERMS_NORM", size - 0.1)
    with pytest.warns(UserWarning, match=f"cp: the terms cancel, their norm is {size:.0f} times the kernel's"):
        cp(UNREACHABLE, rank=2)


def test_cancellation_is_the_norm_of_the_terms(rng):
    links = [normal((1, 4, 6), rng), normal((3, 1, 6), rng), normal((1, 3, 10), rng)]
    chain = KernelChain(tuple(links), (2, 6, 2))
    squares = 0.0
    for group in range(2):
        for term in range(3):
            column = 3 * group + term
            inputs, taps = links[0][0, :, column], links[1][:, 0, column]
            outputs = links[2][0, term, 5 * group : 5 * group + 5]
            squares += np.square(np.einsum("a,b,c->abc", inputs, taps, outputs)).sum()
    assert terms_norm(chain, 2.0) == pytest.approx(np.sqrt(squares) / 2)
    assert terms_norm(chain, 0.0) == 0


@pytest.mark.slow
def test_many_channels_and_terms(rng):
    kernel = normal((3, 3, 128, 128), rng)
    assert 0.5 < float(cp(kernel, rank=64).relative_error(kernel)) < 1


def test_rounding_of_the_planted_kernels():
    assert error_of(cp(planted(0, (3, 3, 4, 4), 1), rank=1), planted(0, (3, 3, 4, 4), 1)) < ROUNDING
