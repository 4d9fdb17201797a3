"""`tucker2` against what singular values allow, against TensorLy, and on kernels of that form."""

import itertools

import numpy as np
import pytest

from jaxcnn import tucker2
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import ROUNDING, error_of, start_error, unfoldings


def least_error(kernel, ranks):
    """No chain of these ranks can do better than the worse of the two truncations."""
    tails = [
        np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[rank:])
        for matrix, rank in zip(unfoldings(kernel), ranks, strict=True)
    ]
    return max(tails) / np.linalg.norm(kernel)


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (5, 6, 4), (2, 3, 2, 4, 3)])
def test_between_the_start_and_what_singular_values_allow(shape, rng):
    kernel = normal(shape, rng)
    gains = []
    for ranks in itertools.product(range(1, shape[-2] + 1), range(1, shape[-1] + 1)):
        error = error_of(tucker2(kernel, ranks=ranks), kernel)
        start = start_error(kernel, ranks)
        assert least_error(kernel, ranks) - ROUNDING <= error <= start + ROUNDING
        gains.append(start - error)
    assert max(gains) > 1e-3, "the iteration improves on its start"


def test_with_one_axis_at_full_rank_it_is_optimal(rng):
    kernel = normal((3, 3, 4, 6), rng)
    for ranks in [*((rank, 6) for rank in range(1, 5)), *((4, rank) for rank in range(1, 7))]:
        assert error_of(tucker2(kernel, ranks=ranks), kernel) == pytest.approx(least_error(kernel, ranks), abs=ROUNDING)


@pytest.mark.parametrize("shape", [(3, 3, 8, 12), (5, 5, 6, 16), (5, 7, 9), (3, 3, 3, 4, 5)])
def test_as_good_as_tensorly(shape, rng):
    decomposition = pytest.importorskip("tensorly.decomposition")
    tenalg = pytest.importorskip("tensorly.tenalg")
    kernel = normal(shape, rng)
    wide = kernel.astype(np.float64)
    for ranks in ((2, 3), (3, 2), (4, 5)):
        modes = [wide.ndim - 2, wide.ndim - 1]
        (core, factors), _ = decomposition.partial_tucker(wide, rank=ranks, modes=modes, n_iter_max=200, tol=1e-8)
        theirs = np.linalg.norm(tenalg.multi_mode_dot(core, factors, modes=modes) - wide) / np.linalg.norm(wide)
        assert error_of(tucker2(kernel, ranks=ranks), kernel) <= theirs + 1e-3


def test_kernels_of_that_form_are_exact(rng):
    links = [normal((1, 1, 6, 2), rng), normal((3, 5, 2, 3), rng), normal((1, 1, 3, 8), rng)]
    kernel = loop_compose(links, [1, 1, 1]).astype(np.float32)
    assert error_of(tucker2(kernel, ranks=(2, 3)), kernel) < ROUNDING
    assert error_of(tucker2(kernel, ranks=(1, 3)), kernel) > 0.1
    assert error_of(tucker2(kernel, ranks=(2, 2)), kernel) > 0.1
    assert [link.shape for link in tucker2(kernel, tolerance=1e-4).kernels] == [link.shape for link in links]


def test_an_int_is_both_ranks(rng):
    kernel = normal((3, 3, 4, 6), rng)
    for link, other in zip(tucker2(kernel, ranks=2).kernels, tucker2(kernel, ranks=(2, 2)).kernels, strict=True):
        np.testing.assert_array_equal(link, other)


def test_a_tolerance_takes_the_pair_with_the_fewest_weights(rng):
    """Among the pairs whose start meets it; the result may only be smaller than that."""
    kernel = normal((3, 3, 6, 8), rng)
    for tolerance in (0.2, 0.5, 0.8):
        chain = tucker2(kernel, tolerance=tolerance)
        meets = [
            6 * a + 9 * a * b + 8 * b
            for a, b in itertools.product(range(1, 7), range(1, 9))
            if start_error(kernel, (a, b)) <= tolerance
        ]
        assert chain.num_params <= min(meets)


@pytest.mark.parametrize(
    ("ranks", "error", "message"),
    [
        ((1, 2, 3), ValueError, r"tucker2: ranks must be an int or a pair of ints, got \(1, 2, 3\)"),
        ((2, 7), ValueError, r"tucker2: ranks\[1\] must be between 1 and 6, the full rank, got 7"),
        ((5, 2), ValueError, r"tucker2: ranks\[0\] must be between 1 and 4, the full rank, got 5"),
        (("a", 2), TypeError, r"tucker2: ranks\[0\] must be an int, got 'a'"),
    ],
)
def test_errors(ranks, error, message):
    with pytest.raises(error, match=message):
        tucker2(np.ones((3, 3, 4, 6), np.float32), ranks=ranks)
