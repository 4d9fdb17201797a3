"""`stack`: kernels made of small ones come back, others get no worse than where the search starts."""

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxcnn import conv, stack
from support.arrays import normal
from support.counting import loop_compose
from support.schemes import error_of


def made(seed, widths, windows=((3, 3), (3, 3))):
    """A kernel that is a row of random small ones, made by loops in float64."""
    rng = np.random.default_rng(seed)
    shapes = [(*window, *pair) for window, pair in zip(windows, itertools.pairwise(widths), strict=True)]
    return loop_compose([normal(shape, rng, dtype=np.float64) for shape in shapes], [1] * len(shapes))


# Kernels that are made of small ones


@pytest.mark.parametrize(("kernels", "needed"), [(3, 3), pytest.param(20, 18, marks=pytest.mark.slow)])
@pytest.mark.parametrize("widths", [(1, 1, 1), (1, 4, 6), (2, 3, 4), (3, 2, 5), (1, 8, 16), (4, 4, 4), (6, 1, 2)])
def test_a_composed_kernel_comes_back(widths, kernels, needed, x64):
    errors = [
        error_of(stack(kernel, features=widths[1]), kernel) for kernel in (made(n, widths) for n in range(kernels))
    ]
    assert sum(error < 1e-4 for error in errors) >= needed, errors


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(8, 8, 8), (6, 6, 16), (16, 4, 6)])
def test_a_wide_composed_kernel_comes_back(widths, x64):
    errors = [error_of(stack(kernel, features=widths[1]), kernel) for kernel in (made(n, widths) for n in range(3))]
    assert max(errors) < 1e-4, errors


@pytest.mark.parametrize(
    ("widths", "kernels", "needed"),
    [
        ((1, 1, 1, 1), 2, 2),
        ((1, 2, 2, 1), 1, 0),
        pytest.param((1, 1, 1, 1), 5, 5, marks=pytest.mark.slow),
        pytest.param((1, 2, 2, 1), 5, 3, marks=pytest.mark.slow),
    ],
)
def test_three_3x3_for_a_7x7(widths, kernels, needed, x64):
    """Three links have local minima: most kernels come back, and the others nearly."""
    windows, errors = ((3, 3),) * 3, []
    for seed in range(kernels):
        kernel = made(seed, widths, windows)
        assert kernel.shape[:2] == (7, 7)
        chain = stack(kernel, windows=windows, features=widths[1:-1])
        assert chain.windows == windows
        errors.append(error_of(chain, kernel))
    assert sum(error < 1e-4 for error in errors) >= needed, errors
    assert max(errors) < 0.1, errors


@pytest.mark.parametrize(
    ("windows", "widths"),
    [
        (((3,), (3,)), (2, 3, 2)),
        (((3, 1), (1, 3)), (2, 2, 3)),
        (((1, 1), (3, 3)), (4, 2, 3)),
        (((2, 3), (4, 1)), (2, 2, 3)),
        (((2, 2, 2), (2, 2, 2)), (1, 2, 2)),
    ],
)
def test_other_windows(windows, widths, x64):
    kernel = made(0, widths, windows)
    chain = stack(kernel, windows=windows, features=widths[1])
    assert chain.windows == windows
    assert error_of(chain, kernel) < 1e-4


def test_a_pixel_window_at_full_width_is_exact(x64, rng):
    kernel = normal((3, 3, 4, 3), rng, dtype=np.float64)
    assert error_of(stack(kernel, windows=((3, 3), (1, 1)), features=3), kernel) < 1e-6
    assert error_of(stack(kernel, windows=((1, 1), (3, 3)), features=4), kernel) < 1e-6


# Other kernels


def test_never_worse_than_zeros_and_better_with_every_doubling(x64, rng):
    kernel = normal((5, 5, 2, 3), rng, dtype=np.float64)
    errors = [error_of(stack(kernel, features=width), kernel) for width in (1, 2, 4, 8, 16)]
    assert errors[0] < 1
    assert all(wider < narrower for narrower, wider in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.5


@pytest.mark.parametrize("features", [4, *(pytest.param(width, marks=pytest.mark.slow) for width in (2, 6))])
def test_never_worse_than_its_start(features, x64, rng):
    """A start that anyone can make: the middle of the kernel, and a 3x3 that passes it on."""
    kernel = normal((5, 5, 3, 4), rng, dtype=np.float64)
    error, most = error_of(stack(kernel, features=features), kernel), 1.0
    if features >= 4:
        first, second = np.zeros((3, 3, 3, features)), np.zeros((3, 3, features, 4))
        first[..., :4] = kernel[1:4, 1:4]
        second[1, 1, :4] = np.eye(4)
        most = np.linalg.norm(loop_compose([first, second], [1, 1]) - kernel) / np.linalg.norm(kernel)
    assert error < most


def test_the_reported_optimum_is_a_stationary_point(x64, rng):
    """Solving anew for either link of the result, the other held, gains next to nothing."""
    kernel = normal((5, 5, 2, 2), rng, dtype=np.float64)
    first, second = (np.asarray(link) for link in stack(kernel, features=2).kernels)
    error = np.linalg.norm(loop_compose([first, second], [1, 1]) - kernel)
    columns = []
    for index in np.ndindex(*second.shape):
        unit = np.zeros(second.shape)
        unit[index] = 1
        columns.append(loop_compose([first, unit], [1, 1]).ravel())
    _, residual, *_ = np.linalg.lstsq(np.array(columns).T, kernel.ravel(), rcond=None)
    assert np.sqrt(residual[0]) <= error * (1 + 1e-9)
    assert np.sqrt(residual[0]) == pytest.approx(error, rel=1e-3)


def test_the_default_width_is_the_smaller_of_the_channels(rng):
    assert stack(normal((5, 5, 2, 3), rng, dtype=np.float32)).kernels[0].shape == (3, 3, 2, 2)
    assert stack(normal((5, 5, 3, 1), rng, dtype=np.float32)).kernels[0].shape == (3, 3, 3, 1)


def test_one_width_for_each_gap(rng):
    chain = stack(normal((4, 1, 2), rng, dtype=np.float32), windows=((2,),) * 3, features=(2, 3))
    assert [link.shape[-2:] for link in chain.kernels] == [(1, 2), (2, 3), (3, 2)]


# Tolerance


def test_the_smallest_width_that_meets_the_tolerance_is_taken(x64, rng):
    kernel, windows = normal((3, 3, 2, 3), rng, dtype=np.float64), ((2, 2), (2, 2))
    errors = [error_of(stack(kernel, windows=windows, features=width), kernel) for width in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    # A tolerance that one channel less just misses, for a width found by doubling and for one between.
    for width in (3, 4):
        tolerance = 0.99 * errors[width - 2]
        chain = stack(kernel, windows=windows, tolerance=tolerance)
        assert chain.kernels[0].shape[-1] == width
        assert error_of(chain, kernel) <= tolerance


def test_the_tolerance_finds_the_width_that_a_kernel_was_made_of(x64):
    for seed, features in ((0, 1), (1, 2)):
        kernel = made(seed, (2, features, 4))
        assert stack(kernel, tolerance=1e-4).kernels[0].shape[-1] == features


def test_any_chain_meets_a_tolerance_of_one(rng):
    assert stack(normal((5, 5, 2, 2), rng, dtype=np.float32), tolerance=1).kernels[0].shape[-1] == 1


def test_a_tolerance_of_zero_is_met_at_full_width_but_for_rounding(rng):
    kernel = normal((3, 3, 1, 1), rng, dtype=np.float32)
    assert stack(kernel, windows=((2, 2), (2, 2)), tolerance=0).relative_error(kernel) < 1e-5


# Groups


def test_each_group_is_fitted_by_itself(x64):
    blocks = [made(seed, (1, 2, 4)) for seed in range(3)]
    kernel = np.concatenate(blocks, axis=-1)
    chain = stack(kernel, features=2, feature_group_count=3)
    assert chain.feature_group_counts == (3, 3)
    assert [link.shape for link in chain.kernels] == [(3, 3, 1, 6), (3, 3, 2, 12)]
    assert chain.shape == kernel.shape
    assert error_of(chain, kernel, groups=3) < 1e-4
    assert chain.relative_error(kernel) < 1e-4


def test_a_depthwise_stack_convolves_as_the_dense_kernel(rng):
    kernel = np.concatenate([made(seed, (1, 1, 1)) for seed in range(4)], axis=-1).astype(np.float32)
    chain = stack(kernel, feature_group_count=4)
    x = normal((1, 9, 8, 4), rng, dtype=np.float32)
    for options in ({}, {"strides": 2, "padding": ((2, 0), (1, 3))}):
        expected = conv(x, kernel, feature_group_count=4, **options)
        np.testing.assert_allclose(conv(x, chain, **options), expected, atol=1e-4 * np.abs(expected).max())


def test_the_error_of_groups_is_that_of_all_together(x64, rng):
    """One group is exact at width 1 and small, the other is noise: the tolerance is on the whole kernel."""
    exact, noise = made(0, (1, 1, 1)), normal((5, 5, 1, 1), rng, dtype=np.float64)
    kernel = np.concatenate([exact / np.linalg.norm(exact), 1e-3 * noise / np.linalg.norm(noise)], axis=-1)
    assert stack(kernel, feature_group_count=2, tolerance=1e-2).kernels[0].shape[-1] == 2
    assert stack(kernel, feature_group_count=2, tolerance=1e-4).kernels[0].shape[-1] > 2


# Layouts, dtypes, seeds, zeros


def test_layout_says_how_the_kernel_is_read(x64):
    kernel = made(0, (2, 3, 4))
    expected = stack(kernel, features=3)
    chain = stack(kernel.transpose(3, 2, 0, 1), features=3, layout="NCHW")
    for link, other in zip(chain.kernels, expected.kernels, strict=True):
        np.testing.assert_array_equal(link, other)
    assert error_of(chain, kernel) < 1e-4


@pytest.mark.parametrize(("dtype", "rounding"), [(np.float32, 1e-5), (np.float16, 5e-3), (ml_dtypes.bfloat16, 4e-2)])
def test_the_chain_has_the_kernels_dtype(dtype, rounding, rng):
    kernel, windows = jnp.asarray(normal((3, 3, 2, 2), rng, dtype=np.float64), dtype), ((2, 2), (2, 2))
    chain = stack(kernel, windows=windows, features=2)
    assert chain.dtype == dtype
    assert all(link.dtype == dtype for link in chain.kernels)
    expected = error_of(stack(np.asarray(kernel, np.float32), windows=windows, features=2), kernel)
    assert error_of(chain, kernel) == pytest.approx(expected, abs=rounding)
    assert expected > 1e-3


def test_numpy_kernels_of_float64_become_float32_without_a_warning():
    kernel = made(0, (2, 3, 4))
    chain = stack(kernel, features=3)
    assert chain.dtype == np.float32
    assert error_of(chain, kernel) < 1e-5


def test_the_same_seed_gives_the_same_chain(rng):
    kernel = normal((5, 5, 2, 3), rng, dtype=np.float32)
    for seed in (0, 7):
        first, again = (stack(kernel[:3, :3], windows=((2, 2), (2, 2)), features=2, seed=seed) for _ in range(2))
        for link, other in zip(first.kernels, again.kernels, strict=True):
            np.testing.assert_array_equal(link, other)


@pytest.mark.parametrize("options", [{}, {"features": 3}, {"tolerance": 0.1}])
def test_a_zero_kernel_gives_a_finite_zero_chain(options):
    kernel = np.zeros((5, 5, 2, 4), np.float32)
    chain = stack(kernel, **options)
    assert all(np.isfinite(link).all() for link in chain.kernels)
    assert not np.asarray(chain.dense()).any()
    assert chain.relative_error(kernel) == 0


def test_zero_filters_and_zero_groups_stay_finite(x64):
    kernel = made(0, (2, 2, 6))
    kernel[..., 1] = 0
    kernel[..., 3:] = 0
    chain = stack(kernel, features=2, feature_group_count=2)
    assert all(np.isfinite(link).all() for link in chain.kernels)
    assert error_of(chain, kernel, groups=2) < 1e-4
    assert np.abs(np.asarray(chain.dense())[..., 3:]).max() == 0


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_scale_changes_the_links_and_not_the_error(scale, x64):
    kernel = made(0, (2, 3, 4))
    chain = stack(scale * kernel, features=3)
    assert error_of(chain, scale * kernel) < 1e-4
    norms = [np.linalg.norm(np.asarray(link).ravel()) for link in chain.kernels]
    assert 0.1 < norms[0] / norms[1] < 10  # shared evenly


# Errors


@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        (
            (5, 5, 2, 2),
            {"windows": ((3, 3), (2, 2))},
            ValueError,
            r"stack: windows \(\(3, 3\), \(2, 2\)\) in a row make a window \(4, 4\), but the kernel has \(5, 5\)",
        ),
        (
            (3, 3, 2, 2),
            {},
            ValueError,
            r"stack: windows \(\(3, 3\), \(3, 3\)\) in a row make a window \(5, 5\), but the kernel has \(3, 3\)",
        ),
        (
            (5, 5, 2, 2),
            {"windows": ((5, 5),)},
            ValueError,
            r"stack: there must be at least two windows, got \(\(5, 5\),\)",
        ),
        ((5, 5, 2, 2), {"windows": ((3,), (3,))}, ValueError, r"stack: windows must be an int or a sequence of 2 ints"),
        ((5, 5, 2, 2), {"windows": ((0, 0), (6, 6))}, ValueError, r"stack: windows must be at least 1 on every axis"),
        (
            (5, 5, 2, 2),
            {"features": 2, "tolerance": 0.1},
            ValueError,
            r"give features or tolerance, not both, got 2 and",
        ),
        ((5, 5, 2, 2), {"features": 0}, ValueError, r"stack: features must be at least 1, got 0"),
        ((5, 5, 2, 2), {"features": 10**12}, ValueError, r"stack: features must be at most 18, .* got 1000000000000"),
        ((5, 5, 2, 2), {"features": 1.5}, TypeError, r"stack: features must be an int, got 1\.5"),
        ((5, 5, 2, 2), {"features": (1, 2)}, ValueError, r"there are 1 gaps between 2 links, got 2 features"),
        ((5, 5, 2, 2), {"tolerance": -1}, ValueError, r"stack: tolerance must not be negative, got -1"),
        ((5, 5, 2, 3), {"feature_group_count": 2}, ValueError, r"stack: the kernel's 3 output channels do not divide"),
        ((5, 5), {}, ValueError, r"stack: kernel must have at least one window axis.* got shape \(5, 5\)"),
        ((5, 5, 0, 2), {}, ValueError, r"stack: kernel is empty, shape \(5, 5, 0, 2\)"),
    ],
)
def test_errors(shape, options, error, message):
    with pytest.raises(error, match=message):
        stack(np.ones(shape, np.float32), **options)


def test_ints_are_square_windows():
    kernel = made(0, (1, 2, 2)).astype(np.float32)
    assert stack(kernel, windows=(3, 3), features=2).windows == ((3, 3), (3, 3))


def test_refused_dtypes_and_values():
    with pytest.raises(TypeError, match="stack: kernel must be of floats, got dtype int32"):
        stack(np.ones((5, 5, 1, 1), np.int32))
    with pytest.raises(TypeError, match="stack: kernel must be of real floats, got dtype complex64"):
        stack(np.ones((5, 5, 1, 1), np.complex64))
    kernel = np.ones((5, 5, 1, 1), np.float32)
    kernel[0, 0] = np.nan
    with pytest.raises(ValueError, match="stack: kernel has 1 values that are NaN or infinite"):
        stack(kernel)
