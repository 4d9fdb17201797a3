"""`separable` against NumPy's singular value decomposition."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import KernelChain, conv, conv_cost, separable
from jaxcnn.factorization.numerics import svd as _singular
from support import schemes
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import ROUNDING, blocks_of, discarded


def matrix_of(kernel):
    """(kh, kw, I, O) as the (kh I, kw O) matrix whose rank a vertical and a horizontal link share."""
    kh, kw, in_features, out_features = kernel.shape
    return np.asarray(kernel, np.float64).transpose(2, 0, 1, 3).reshape(in_features * kh, kw * out_features)


def error_of(chain, kernel):
    """The chain's relative error in float64, by loops."""
    return schemes.error_of(chain, kernel, chain.feature_group_counts[0])


# Optimality


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 3, 3, 2), (1, 7, 2, 3), (11, 11, 1, 2), (2, 4, 4, 1)])
def test_the_error_of_each_rank_is_what_the_singular_values_leave(shape, rng):
    kernel = normal(shape, rng)
    kh, kw, in_features, out_features = shape
    full = min(kh * in_features, kw * out_features)
    errors = []
    for rank in range(1, full + 1):
        chain = separable(kernel, rank=rank)
        assert [link.shape for link in chain.kernels] == [(kh, 1, in_features, rank), (1, kw, rank, out_features)]
        expected = discarded([matrix_of(kernel)], rank)
        assert error_of(chain, kernel) == pytest.approx(expected, abs=ROUNDING)
        if rank == 1:
            assert float(chain.relative_error(kernel)) == pytest.approx(expected, abs=ROUNDING)
        errors.append(expected)
    assert errors == sorted(errors, reverse=True)
    assert full == 1 or errors[0] > 0.1
    assert errors[-1] == 0


def test_float64_kernels_are_exact_to_their_digits(x64, rng):
    kernel = jnp.asarray(normal((3, 5, 4, 3), rng, dtype=np.float64))
    chain = separable(kernel)
    assert chain.dtype == np.float64
    assert error_of(chain, kernel) < 1e-14
    assert error_of(separable(kernel, rank=4), kernel) == pytest.approx(discarded([matrix_of(kernel)], 4), abs=1e-14)


def test_numpy_kernels_of_float64_become_float32_without_a_warning(rng):
    kernel = normal((3, 3, 2, 4), rng, dtype=np.float64)
    chain = separable(kernel)
    assert chain.dtype == np.float32
    assert error_of(chain, kernel) < ROUNDING


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 5, 1, 1), (2, 3, 4, 2), (3, 3, 3, 2, 4)])
def test_without_rank_and_tolerance_the_chain_is_exact(shape, rng):
    kernel = normal(shape, rng)
    chain = separable(kernel)
    assert error_of(chain, kernel) < ROUNDING
    assert chain.shape == shape
    assert chain.kernels[0].shape[-1] == min(shape[0] * shape[-2], np.prod(shape[1:-2]) * shape[-1])


def test_a_kernel_of_rank_two_is_exact_at_rank_two(rng):
    columns, rows = normal((3, 1, 4, 2), rng), normal((1, 5, 2, 3), rng)
    kernel = loop_compose([columns, rows], [1, 1]).astype(np.float32)
    assert error_of(separable(kernel, rank=2), kernel) < ROUNDING
    assert error_of(separable(kernel, rank=1), kernel) > 0.1


def test_links_share_the_norm_evenly(rng):
    kernel = 1e6 * normal((3, 3, 4, 4), rng)
    vertical, horizontal = separable(kernel, rank=5).kernels
    first, second = (np.square(vertical).sum((0, 1, 2)), np.square(horizontal).sum((0, 1, 3)))
    assert first.shape == (5,)
    np.testing.assert_allclose(first, second, rtol=1e-5)


# Tolerance


@settings(max_examples=40)
@given(st.floats(0.02, 0.98), st.integers(0, 2**32 - 1), st.sampled_from([1, 2]))
def test_the_smallest_rank_that_meets_the_tolerance_is_taken(tolerance, seed, groups):
    kernel = normal((3, 3, 3, 4), np.random.default_rng(seed))
    chain = separable(kernel, tolerance=tolerance, feature_group_count=groups)
    rank = chain.kernels[0].shape[-1] // groups
    matrices = [matrix_of(block) for block in blocks_of(kernel, groups)]
    assert discarded(matrices, rank) <= tolerance
    assert rank == 1 or discarded(matrices, rank - 1) > tolerance
    assert error_of(chain, kernel) <= tolerance + ROUNDING


@pytest.mark.parametrize(("tolerance", "rank"), [(1, 1), (2, 1), (0, 6)])
def test_tolerances_at_the_ends(tolerance, rank, rng):
    chain = separable(normal((3, 3, 2, 4), rng), tolerance=tolerance)
    assert chain.kernels[0].shape[-1] == rank


def test_a_tolerance_holds_for_all_gaps_together(rng):
    kernel, params = normal((3, 3, 3, 2, 3), rng), []
    for tolerance in (0.01, 0.3, 0.5, 0.8):
        chain = separable(kernel, tolerance=tolerance)
        assert error_of(chain, kernel) <= tolerance
        params.append(chain.num_params)
    assert params == sorted(params, reverse=True)
    assert len(set(params)) >= 3


# Groups


@pytest.mark.parametrize(("groups", "in_features", "out_features"), [(2, 2, 4), (3, 1, 6), (4, 3, 4), (2, 3, 2)])
def test_each_group_is_decomposed_by_itself(groups, in_features, out_features, rng):
    kernel = normal((3, 3, in_features, out_features), rng)
    chain = separable(kernel, rank=2, feature_group_count=groups)
    assert chain.feature_group_counts == (groups, groups)
    assert chain.shape == kernel.shape
    expected = discarded([matrix_of(block) for block in blocks_of(kernel, groups)], 2)
    assert error_of(chain, kernel) == pytest.approx(expected, abs=ROUNDING)
    for group, block in enumerate(blocks_of(kernel, groups)):
        of_block = separable(block, rank=2)
        vertical, horizontal = (blocks_of(link, groups)[group] for link in chain.kernels)
        assert error_of(KernelChain((vertical, horizontal)), block) == pytest.approx(
            error_of(of_block, block), abs=ROUNDING
        )


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_depthwise_kernels_of_rank_one_are_exact(multiplier, rng):
    """A Gaussian for each output channel is separable, whatever the multiplier, at a rank of the multiplier."""
    channels = 4
    columns, rows = normal((5, 1, 1, channels * multiplier), rng), normal((1, 5, 1, channels * multiplier), rng)
    kernel = columns * rows
    chain = separable(kernel, rank=multiplier, feature_group_count=channels)
    assert [link.shape for link in chain.kernels] == [
        (5, 1, 1, channels * multiplier),
        (1, 5, multiplier, channels * multiplier),
    ]
    assert error_of(chain, kernel) < ROUNDING
    x = normal((1, 9, 9, channels), rng)
    expected = conv(x, kernel, feature_group_count=channels)
    np.testing.assert_allclose(conv(x, chain), expected, atol=1e-5 * np.abs(expected).max())


def test_a_chain_of_groups_convolves_as_the_grouped_kernel(rng):
    kernel, x = normal((3, 5, 2, 6), rng), normal((2, 9, 8, 4), rng)
    options = {"strides": (2, 1), "padding": ((0, 2), (1, 3))}
    chain = separable(kernel, feature_group_count=2)
    expected = conv(x, kernel, feature_group_count=2, **options)
    np.testing.assert_allclose(conv(x, chain, **options), expected, atol=1e-5 * np.abs(expected).max())


# More axes


def test_three_axes_become_three_links(rng):
    kernel = normal((3, 4, 2, 2, 3), rng)
    chain = separable(kernel, rank=(3, 2))
    assert [link.shape for link in chain.kernels] == [(3, 1, 1, 2, 3), (1, 4, 1, 3, 2), (1, 1, 2, 2, 3)]
    errors = [error_of(separable(kernel, rank=(rank, min(4 * rank, 6))), kernel) for rank in range(1, 7)]
    # At full rank in the second gap, the first gap's truncation is all there is, and it is optimal.
    unfolded = np.moveaxis(kernel, -2, 0).reshape(6, -1)
    for rank, error in enumerate(errors, 1):
        assert error == pytest.approx(discarded([unfolded], rank), abs=ROUNDING)


def test_one_rank_serves_all_gaps(rng):
    chain = separable(normal((3, 3, 3, 2, 2), rng), rank=4)
    assert [link.shape[-1] for link in chain.kernels] == [4, 4, 2]


def test_a_product_of_three_vectors_is_exact_at_rank_one(rng):
    kernel = np.einsum("a,b,c->abc", *(rng.standard_normal(n) for n in (3, 4, 5))).reshape(3, 4, 5, 1, 1)
    kernel = kernel.astype(np.float32)
    chain = separable(kernel, rank=1)
    assert error_of(chain, kernel) < ROUNDING
    assert chain.num_params == 12


@pytest.mark.parametrize("groups", [1, 2])
def test_three_axes_leave_out_what_the_singular_values_say(groups, rng):
    """The tensor train by NumPy: bases stay orthonormal, so that the squares of what the gaps leave out add up."""
    kernel = rng.standard_normal((3, 2, 3, 4, 6)).astype(np.float32) * np.arange(6.0, 0.0, -1.0, dtype=np.float32)
    left_out = 0.0
    for block in np.split(kernel.astype(np.float64), groups, axis=-1):
        rest, width = np.moveaxis(block, -2, 0), 4
        for size, rank in zip((3, 2), (3, 2), strict=True):
            _, values, right = np.linalg.svd(rest.reshape(width * size, -1), full_matrices=False)
            left_out += np.square(values[rank:]).sum()
            rest, width = values[:rank, None] * right[:rank], rank
    chain = separable(kernel, rank=(3, 2), feature_group_count=groups)
    expected = np.sqrt(left_out) / np.linalg.norm(kernel)
    assert float(chain.relative_error(jnp.asarray(kernel))) == pytest.approx(expected, rel=1e-5)
    norms = [float(jnp.linalg.norm(link.ravel())) for link in chain.kernels]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_what_the_first_gap_does_not_use_of_the_error_goes_to_the_second(rng):
    kernel = rng.standard_normal((1, 3, 3, 1, 6)).astype(np.float32)
    column = np.ones((3, 1, 1, 1, 1), np.float32)  # all windows alike along the first axis: its gap leaves nothing out
    for tolerance in (0.3, 0.4, 0.5, 0.6, 0.7):
        chain, second = separable(column * kernel, tolerance=tolerance), separable(kernel[0], tolerance=tolerance)
        assert chain.kernels[1].shape[-1] == second.kernels[0].shape[-1]


# Layouts and dtypes


@pytest.mark.parametrize(
    ("layout", "axes"),
    [("NCHW", (3, 2, 0, 1)), ("NHWC", (0, 1, 2, 3)), (("NHWC", "IHOW", "NHWC"), (2, 0, 3, 1))],
)
def test_layout_says_how_the_kernel_is_read(layout, axes, rng):
    kernel = normal((3, 5, 2, 4), rng)
    chain = separable(kernel.transpose(axes), rank=3, layout=layout)
    expected = separable(kernel, rank=3)
    assert chain.shape == kernel.shape
    for link, other in zip(chain.kernels, expected.kernels, strict=True):
        np.testing.assert_array_equal(link, other)


def test_oihw_with_groups(rng):
    kernel = normal((3, 5, 2, 6), rng)
    chain = separable(kernel.transpose(3, 2, 0, 1), layout="NCHW", feature_group_count=2)
    assert error_of(chain, kernel) < ROUNDING


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(np.float16, 2e-3), (ml_dtypes.bfloat16, 1e-2), (jnp.bfloat16, 1e-2), (np.float32, 2e-6)]
)
def test_the_chain_has_the_kernels_dtype(dtype, rounding, rng):
    kernel = jnp.asarray(normal((3, 3, 4, 4), rng), dtype)
    for given_kernel in (kernel, np.asarray(kernel)):
        chain = separable(given_kernel, rank=6)
        assert chain.dtype == dtype
        assert all(link.dtype == dtype for link in chain.kernels)
        expected = discarded([matrix_of(np.asarray(kernel, np.float64))], 6)
        assert 0.1 < expected < 0.9
        assert error_of(chain, np.asarray(kernel, np.float64)) == pytest.approx(expected, abs=rounding)


def test_complex_kernels(rng):
    kernel = (normal((3, 3, 2, 2), rng) + 1j * normal((3, 3, 2, 2), rng)).astype(np.complex64)
    chain = separable(kernel)
    assert chain.dtype == np.complex64
    np.testing.assert_allclose(chain.dense(), kernel, atol=1e-5)


# Zeros


@pytest.mark.parametrize("options", [{}, {"rank": 1}, {"rank": 3}, {"tolerance": 0.1}, {"tolerance": 0}])
def test_a_zero_kernel_gives_a_finite_zero_chain(options):
    kernel = np.zeros((3, 3, 2, 4), np.float32)
    chain = separable(kernel, **options)
    assert all(np.isfinite(link).all() for link in chain.kernels)
    assert not np.asarray(chain.dense()).any()
    assert chain.relative_error(kernel) == 0


def test_zero_filters_and_zero_groups_stay_zero(rng):
    kernel = normal((3, 3, 2, 6), rng)
    kernel[..., 1] = 0
    kernel[..., 3:] = 0  # the whole second group
    for options in ({}, {"rank": 2}, {"tolerance": 0.2}):
        chain = separable(kernel, feature_group_count=2, **options)
        assert all(np.isfinite(link).all() for link in chain.kernels)
        assert np.abs(np.asarray(chain.dense())[..., 3:]).max() == 0
    assert error_of(separable(kernel, feature_group_count=2), kernel) < ROUNDING


# Cost


def test_fewer_macs_below_the_break_even_rank(rng):
    """R < I O kh kw / (I kh + O kw), where the image is so large that the border does not count."""
    for kh, kw, in_features, out_features in [(5, 3, 2, 6), (11, 11, 1, 2)]:
        kernel = normal((kh, kw, in_features, out_features), rng)
        limit = in_features * out_features * kh * kw / (in_features * kh + out_features * kw)
        dense = kh * kw * in_features * out_features
        for rank in range(1, min(kh * in_features, kw * out_features) + 1):
            chain = separable(kernel, rank=rank)
            assert chain.num_params == rank * (kh * in_features + kw * out_features)
            assert (chain.num_params < dense) == (rank < limit)
            macs = conv_cost((1, 50, 50, in_features), chain).macs
            assert macs == 2500 * chain.num_params
            assert (macs < conv_cost((1, 50, 50, in_features), kernel.shape).macs) == (rank < limit)


# Large kernels


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (3, 3, 4, 2), (3, 3, 3, 3)])
def test_the_gram_path_gives_the_same_errors(shape, rng, monkeypatch):
    kernel = normal(shape, rng)
    ranks = range(1, min(3 * shape[2], 3 * shape[3]) + 1)
    expected = [error_of(separable(kernel, rank=rank), kernel) for rank in ranks]
    monkeypatch.setattr(f"{_singular.__name__}._MAX_SVD_ROWS", 0)
    np.testing.assert_allclose([error_of(separable(kernel, rank=rank), kernel) for rank in ranks], expected, atol=1e-6)


def test_a_kernel_large_enough_for_the_gram_path(rng):
    kernel = normal((3, 3, 96, 88), rng)  # short side 264
    assert min(matrix_of(kernel).shape) > _singular._MAX_SVD_ROWS
    for rank in (10, 100):
        chain = separable(kernel, rank=rank)
        expected = discarded([matrix_of(kernel)], rank)
        assert float(chain.relative_error(kernel)) == pytest.approx(expected, abs=1e-5)


# Errors


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((3, 2, 2), {}, ValueError, r"separable: cannot represent .* two or more window axes, .* window is \(3,\)"),
        ((3, 2), {}, ValueError, r"separable: kernel must have at least one window axis.* got shape \(3, 2\)"),
        ((3, 3, 2, 4), {"rank": 2, "tolerance": 0.1}, ValueError, r"give rank or tolerance, not both, got 2 and 0\.1"),
        ((3, 3, 2, 4), {"rank": 7}, ValueError, r"separable: rank must be between 1 and 6, the full rank, got 7"),
        ((3, 3, 2, 4), {"rank": 0}, ValueError, r"separable: rank must be between 1 and 6, the full rank, got 0"),
        ((3, 3, 2, 4), {"rank": 1.5}, TypeError, r"separable: rank must be an int, got 1\.5"),
        ((3, 3, 2, 4), {"rank": (1, 2)}, ValueError, r"there are 1 gaps between 2 links, got 2 ranks"),
        ((3, 3, 3, 2, 4), {"rank": (1, 2, 3)}, ValueError, r"there are 2 gaps between 3 links, got 3 ranks"),
        ((3, 3, 2, 4), {"tolerance": -0.1}, ValueError, r"separable: tolerance must not be negative, got -0\.1"),
        (
            (3, 3, 2, 4),
            {"feature_group_count": 3},
            ValueError,
            r"kernel's 4 output channels do not divide into feature",
        ),
        ((3, 3, 2, 4), {"feature_group_count": 0}, ValueError, r"feature_group_count must be at least 1, got 0"),
        ((3, 3, 2, 4), {"layout": "NCH"}, ValueError, r"layout 'NCH' has 1 spatial axes, but the kernel.* has 2"),
        ((3, 3, 0, 4), {}, ValueError, r"separable: kernel is empty, shape \(3, 3, 0, 4\)"),
    ],
)
def test_errors(shape, options, error, message):
    with pytest.raises(error, match=message):
        separable(np.ones(shape, np.float32), **options)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.bool_])
def test_integers_are_refused(dtype):
    with pytest.raises(TypeError, match=f"separable: kernel must be of floats, got dtype {np.dtype(dtype)}"):
        separable(np.ones((3, 3, 1, 1), dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_number(dtype, value):
    kernel = np.ones((3, 3, 1, 2), dtype)
    kernel[0, 1] = value
    with pytest.raises(ValueError, match="separable: kernel has 2 values that are NaN or infinite"):
        separable(kernel)
