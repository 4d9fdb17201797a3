"""`low_rank` and `depthwise_separable` against NumPy's singular value decomposition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import conv_cost, depthwise_separable, low_rank
from jaxcnn.factorization.numerics import svd as _singular
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import ROUNDING, blocks_of, discarded, error_of

SHAPES = [(3, 3, 2, 4), (5, 3, 3, 20), (1, 7, 2, 3), (4, 3, 5), (2, 3, 2, 2, 5)]


def unfolded(kernel):
    """(*window, I, O) as the (k I, O) matrix whose rank is the number of channels between the links."""
    return [np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])]


def by_channel(kernel):
    """(*window, I, O) as the (k, O) matrix of each input channel, whose rank is its number of filters."""
    wide = np.asarray(kernel, np.float64)
    return [wide[..., channel, :].reshape(-1, kernel.shape[-1]) for channel in range(kernel.shape[-2])]


SCHEMES = [(low_rank, "rank", unfolded), (depthwise_separable, "multiplier", by_channel)]


@pytest.mark.parametrize(("scheme", "option", "matrices"), SCHEMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_of_each_rank_is_what_the_singular_values_leave(scheme, option, matrices, shape, rng):
    kernel = normal(shape, rng)
    full = min(matrices(kernel)[0].shape)
    errors = []
    for rank in range(1, full + 1):
        expected = discarded(matrices(kernel), rank)
        assert error_of(scheme(kernel, **{option: rank}), kernel) == pytest.approx(expected, abs=ROUNDING)
        errors.append(expected)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] == 0


@settings(max_examples=30)
@given(st.floats(0.02, 0.98), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]), st.sampled_from(SCHEMES))
def test_the_smallest_rank_that_meets_the_tolerance_is_taken(tolerance, seed, groups, scheme):
    function, option, matrices = scheme
    kernel = normal((3, 3, 3, 8), np.random.default_rng(seed))
    chain = function(kernel, tolerance=tolerance, feature_group_count=groups)
    rank = chain.kernels[0].shape[-1] // (groups if option == "rank" else 3 * groups)
    parts = [matrix for block in blocks_of(kernel, groups) for matrix in matrices(block)]
    assert discarded(parts, rank) <= tolerance
    assert rank == 1 or discarded(parts, rank - 1) > tolerance


def test_kernels_of_that_form_are_exact(rng):
    kernel = loop_compose([normal((3, 5, 4, 2), rng), normal((1, 1, 2, 6), rng)], [1, 1]).astype(np.float32)
    assert error_of(low_rank(kernel, rank=2), kernel) < ROUNDING
    assert error_of(low_rank(kernel, rank=1), kernel) > 0.1
    kernel = loop_compose([normal((3, 5, 1, 8), rng), normal((1, 1, 8, 6), rng)], [4, 1]).astype(np.float32)
    assert error_of(depthwise_separable(kernel, multiplier=2), kernel) < ROUNDING
    assert error_of(depthwise_separable(kernel, multiplier=1), kernel) > 0.1


def test_the_filters_of_a_channel_lie_side_by_side(rng):
    """Output channel c M + m of the depthwise link is filter m of channel c, as `depthwise_conv` has it."""
    kernel = normal((3, 3, 4, 6), rng)
    kernel[..., 2, :] = 0
    depthwise, pointwise = depthwise_separable(kernel, multiplier=3).kernels
    assert depthwise.shape == (3, 3, 1, 12)
    of_channel = np.abs(np.asarray(pointwise)).reshape(4, 3, 6).max((1, 2))
    assert (of_channel[[0, 1, 3]] > 0).all()
    assert of_channel[2] == 0


@pytest.mark.parametrize(("scheme", "option", "matrices"), SCHEMES)
def test_links_share_the_norm_evenly(scheme, option, matrices, rng):
    first, last = scheme(1e6 * normal((3, 3, 4, 8), rng), **{option: 3}).kernels
    made, taken = np.square(first).sum((0, 1, 2)), np.square(last).sum((0, 1, 3))
    np.testing.assert_allclose(made, taken, rtol=1e-5)


def test_fewer_macs_below_the_break_even_rank(rng):
    """R < k I O / (k I + O), and M < k O / (k + O), where the image is so large that the border does not count."""
    kernel = normal((3, 3, 4, 12), rng)
    taps, in_features, out_features = 9, 4, 12
    limits = (
        taps * in_features * out_features / (taps * in_features + out_features),
        taps * out_features / (taps + out_features),
    )
    dense = conv_cost((1, 20, 20, 4), kernel.shape).macs
    for (scheme, option, matrices), limit in zip(SCHEMES, limits, strict=True):
        for rank in range(1, min(matrices(kernel)[0].shape) + 1):
            macs = conv_cost((1, 20, 20, 4), scheme(kernel, **{option: rank})).macs
            assert (macs < dense) == (rank < limit)


@pytest.mark.parametrize(("scheme", "option", "matrices"), SCHEMES)
@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (3, 3, 4, 2), (2, 2, 2, 9)])
def test_the_gram_path_gives_the_same_errors(scheme, option, matrices, shape, rng, monkeypatch):
    kernel = normal(shape, rng)
    monkeypatch.setattr(_singular, "_MAX_SVD_ROWS", 0)
    for rank in range(1, min(matrices(kernel)[0].shape) + 1):
        expected = discarded(matrices(kernel), rank)
        assert error_of(scheme(kernel, **{option: rank}), kernel) == pytest.approx(expected, abs=ROUNDING)
