"""Tests of all schemes: groups, layouts, dtypes, zeros, refusals, and the same values in a convolution."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxcnn
from jaxcnn import conv, conv_transpose
from support.arrays import normal
from support.schemes import ROUNDING, blocks_of, error_of


@dataclasses.dataclass(frozen=True)
class Case:
    """A scheme and how the tests of all of them call it.

    Args:
      function: the scheme.
      option: its keyword for the rank.
      rank: one below full rank for every kernel used here.
      full: full rank of a kernel (*window, I, O).
      links: shapes of the links of a (3, 5, 4, 6) kernel at that rank.
    """

    function: Callable[..., jaxcnn.KernelChain]
    option: str
    rank: Any
    full: Callable[..., Any]
    links: list[tuple[int, ...]]

    def __call__(self, kernel, **options):
        return self.function(kernel, **options)

    def at_rank(self, kernel, **options):
        return self.function(kernel, **{self.option: self.rank}, **options)


CASES = {
    "separable": Case(jaxcnn.separable, "rank", 2, lambda a, b, i, o: min(a * i, b * o), [(3, 1, 4, 2), (1, 5, 2, 6)]),
    "low_rank": Case(jaxcnn.low_rank, "rank", 2, lambda a, b, i, o: min(a * b * i, o), [(3, 5, 4, 2), (1, 1, 2, 6)]),
    "tucker2": Case(
        jaxcnn.tucker2,
        "ranks",
        (2, 1),
        lambda a, b, i, o: (min(i, a * b * o), min(o, a * b * i)),
        [(1, 1, 4, 2), (3, 5, 2, 1), (1, 1, 1, 6)],
    ),
    "cp": Case(
        jaxcnn.cp,
        "rank",
        3,
        lambda a, b, i, o: a * b * i * o // max(a, b, i, o),
        [(1, 1, 4, 3), (3, 1, 1, 3), (1, 5, 1, 3), (1, 1, 3, 6)],
    ),
    "depthwise_separable": Case(
        jaxcnn.depthwise_separable, "multiplier", 2, lambda a, b, i, o: min(a * b, o), [(3, 5, 1, 8), (1, 1, 8, 6)]
    ),
}
NAMES = list(CASES)
FOR_ONE_AXIS = [name for name in NAMES if name != "separable"]


def assert_close(actual, expected, relative=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(np.asarray(expected)).max())


# The chain


@pytest.mark.parametrize("name", NAMES)
def test_links(name, rng):
    chain = CASES[name].at_rank(normal((3, 5, 4, 6), rng))
    assert [link.shape for link in chain.kernels] == CASES[name].links
    assert chain.shape == (3, 5, 4, 6)
    assert chain.feature_group_count == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (3, 3, 1, 1), (5, 2, 3, 2), (1, 1, 4, 3), (2, 3, 1, 5), (3, 3, 2, 40)])
def test_full_rank_is_exact(name, shape, rng):
    kernel = normal(shape, rng)
    full = CASES[name].full(*shape)
    for chain in (CASES[name](kernel), CASES[name](kernel, **{CASES[name].option: full})):
        assert error_of(chain, kernel) < ROUNDING
        assert chain.shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_full_rank_in_three_axes_is_exact(name, rng):
    kernel = normal((2, 3, 2, 3, 2), rng)
    assert error_of(CASES[name](kernel), kernel) < ROUNDING


@pytest.mark.parametrize("name", FOR_ONE_AXIS)
def test_full_rank_in_one_axis_is_exact(name, rng):
    kernel, x = normal((5, 3, 4), rng), normal((2, 9, 3), rng)
    chain = CASES[name](kernel)
    assert error_of(chain, kernel) < ROUNDING
    assert_close(conv(x, chain, padding="CAUSAL"), conv(x, kernel, padding="CAUSAL"))


@pytest.mark.parametrize("name", NAMES)
def test_a_convolution_with_the_chain_is_one_with_its_dense_kernel(name, rng):
    chain = CASES[name].at_rank(normal((3, 5, 4, 6), rng))
    x = normal((2, 11, 12, 4), rng)
    for options in (
        {},
        {"strides": (2, 3), "padding": "SAME"},
        {"padding": ((0, 2), (3, 1)), "kernel_dilation": (2, 1)},
        {"padding_mode": "reflect"},
    ):
        assert_close(conv(x, chain, **options), conv(x, chain.dense(), **options))
    y = normal((2, 4, 5, 6), rng)
    assert_close(conv_transpose(y, chain, strides=2), conv_transpose(y, chain.dense(), strides=2))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_chain_of_groups_convolves_as_the_grouped_kernel(name, rng):
    kernel, x = normal((3, 3, 2, 6), rng), normal((2, 9, 8, 6), rng)
    chain = CASES[name](kernel, feature_group_count=3)
    assert chain.feature_group_count == 3
    assert_close(conv(x, chain), conv(x, kernel, feature_group_count=3))
    assert_close(conv(x, chain, strides=2), conv(x, kernel, feature_group_count=3, strides=2))


# Groups


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("groups", "in_features", "out_features"), [(2, 2, 6), (3, 3, 9), (2, 3, 8)])
def test_each_group_is_decomposed_by_itself(name, groups, in_features, out_features, rng):
    kernel = normal((3, 3, in_features, out_features), rng)
    chain = CASES[name].at_rank(kernel, feature_group_count=groups)
    assert chain.shape == kernel.shape
    squares = [
        np.square(error_of(CASES[name].at_rank(block), block) * np.linalg.norm(block))
        for block in blocks_of(kernel, groups)
    ]
    expected = np.sqrt(sum(squares)) / np.linalg.norm(kernel)
    # tucker2 iterates until all groups have settled, which is a little more than each needs.
    rounding = 1e-4 if name == "tucker2" else ROUNDING
    assert error_of(chain, kernel, groups) == pytest.approx(expected, abs=rounding)
    assert expected > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_depthwise_kernels(name, rng):
    kernel = normal((3, 3, 1, 4), rng)
    chain = CASES[name](kernel, feature_group_count=4)
    assert error_of(chain, kernel, 4) < ROUNDING
    assert chain.feature_group_count == 4
    x = normal((1, 6, 6, 4), rng)
    assert_close(conv(x, chain), conv(x, kernel, feature_group_count=4))


@pytest.mark.parametrize("name", NAMES)
def test_a_tolerance_is_of_all_groups_together(name, rng):
    kernel = normal((3, 3, 3, 16), rng)
    kernel[..., 8:] *= 0.001
    chain = CASES[name](kernel, tolerance=0.5, feature_group_count=2)
    # The second group hardly counts, so the first one decides, and both have its rank.
    assert chain.num_params == 2 * CASES[name](kernel[..., :8], tolerance=0.5).num_params
    assert 0.1 < error_of(chain, kernel, 2) <= 0.5


# Tolerance


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.6, 0.9])
def test_a_tolerance_is_met_and_the_next_smaller_rank_fails(name, tolerance, rng):
    kernel = normal((3, 3, 4, 6), rng)
    case = CASES[name]
    chain = case(kernel, tolerance=tolerance)
    assert error_of(chain, kernel) <= tolerance + ROUNDING
    shape = chain.kernels[0].shape
    if name == "tucker2":
        first, second = chain.kernels[1].shape[-2:]
        smaller = [(first - 1, second), (first, second - 1)]
    else:
        smaller = [shape[-1] - 1 if name != "depthwise_separable" else shape[-1] // 4 - 1]
    for rank in smaller:
        if np.min(rank) >= 1:
            assert error_of(case(kernel, **{case.option: rank}), kernel) > tolerance


@pytest.mark.parametrize("name", NAMES)
def test_extreme_tolerances(name, rng):
    kernel = normal((3, 3, 2, 4), rng)
    assert error_of(CASES[name](kernel, tolerance=0), kernel) < ROUNDING
    one = CASES[name](kernel, tolerance=1.0)
    assert one.num_params == CASES[name](kernel, **{CASES[name].option: 1}).num_params


# Layouts and dtypes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("layout", "axes"),
    [("NCHW", (3, 2, 0, 1)), ("NHWC", (0, 1, 2, 3)), (("NHWC", "IHOW", "NHWC"), (2, 0, 3, 1))],
)
def test_layout_says_how_the_kernel_is_read(name, layout, axes, rng):
    kernel = normal((3, 5, 2, 6), rng)
    for groups in (1, 2):
        chain = CASES[name].at_rank(kernel.transpose(axes), layout=layout, feature_group_count=groups)
        expected = CASES[name].at_rank(kernel, feature_group_count=groups)
        assert chain.feature_group_counts == expected.feature_group_counts
        for link, other in zip(chain.kernels, expected.kernels, strict=True):
            np.testing.assert_array_equal(link, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "rounding"), [(np.float16, 3e-3), (ml_dtypes.bfloat16, 2e-2), (jnp.bfloat16, 2e-2)])
def test_the_chain_has_the_kernels_dtype(name, dtype, rounding, rng):
    kernel = jnp.asarray(normal((3, 3, 4, 4), rng), dtype)
    for given in (kernel, np.asarray(kernel)):
        chain = CASES[name].at_rank(given)
        assert all(link.dtype == dtype for link in chain.kernels)
        wide = np.asarray(kernel, np.float32)
        assert error_of(chain, wide) == pytest.approx(error_of(CASES[name].at_rank(wide), wide), abs=rounding)


@pytest.mark.parametrize("name", NAMES)
def test_float64_kernels_keep_their_digits(name, x64, rng):
    kernel = jnp.asarray(normal((3, 5, 3, 4), rng, dtype=np.float64))
    chain = CASES[name](kernel)
    assert chain.dtype == np.float64
    assert error_of(chain, kernel) < 1e-13


@pytest.mark.parametrize("name", NAMES)
def test_numpy_kernels_of_float64_become_float32_without_a_warning(name, rng):
    assert CASES[name].at_rank(normal((3, 3, 2, 4), rng, dtype=np.float64)).dtype == np.float32


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cp"])
def test_complex_kernels(name, rng):
    kernel = (normal((3, 3, 4, 4), rng) + 1j * normal((3, 3, 4, 4), rng)).astype(np.complex64)
    chain = CASES[name](kernel)
    assert chain.dtype == np.complex64
    np.testing.assert_allclose(chain.dense(), kernel, atol=1e-5)
    truncate = CASES[name].at_rank(kernel)
    assert 0.1 < float(truncate.relative_error(kernel)) < 1


def test_cp_refuses_complex_kernels():
    with pytest.raises(TypeError, match="cp: kernel must be of real floats, got dtype complex64"):
        jaxcnn.cp(np.ones((3, 3, 1, 1), np.complex64))


# Zeros


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["full", "rank", "tolerance", "no tolerance"])
def test_a_zero_kernel_gives_a_finite_zero_chain(name, how):
    kernel, case = np.zeros((3, 3, 4, 6), np.float32), CASES[name]
    options = {"full": {}, "rank": {case.option: case.rank}, "tolerance": {"tolerance": 0.1}}
    chain = case(kernel, **options.get(how, {"tolerance": 0}))
    assert all(np.isfinite(link).all() for link in chain.kernels)
    assert not np.asarray(chain.dense()).any()
    assert chain.relative_error(kernel) == 0


@pytest.mark.parametrize("name", NAMES)
def test_dead_filters_channels_and_groups_stay_zero(name, rng):
    kernel = normal((3, 3, 3, 8), rng)
    kernel[..., 1] = 0
    kernel[..., 2, :] = 0
    kernel[..., 4:] = 0  # the whole second group
    case = CASES[name]
    for options in ({}, {case.option: case.rank}, {"tolerance": 0.2}):
        chain = case(kernel, feature_group_count=2, **options)
        assert all(np.isfinite(link).all() for link in chain.kernels)
        dense = np.asarray(chain.dense())
        assert np.abs(dense[..., 4:]).max() == 0
        assert max(np.abs(dense[..., 1]).max(), np.abs(dense[..., 2, :]).max()) < 1e-5
    assert error_of(case(kernel, feature_group_count=2), kernel, 2) < ROUNDING


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_a_kernel_does_not_matter(name, scale, rng):
    kernel = normal((3, 3, 4, 6), rng)
    scaled = (kernel * np.float32(scale)).astype(np.float32)
    chain, same = CASES[name].at_rank(scaled), CASES[name].at_rank(kernel)
    assert error_of(chain, scaled) == pytest.approx(error_of(same, kernel), abs=1e-4)
    # Evenly shared, so that no link is out of float32's range.
    sizes = [float(np.abs(np.asarray(link)).max()) for link in chain.kernels]
    assert max(sizes) < 1e3 * min(sizes)


# Training


@pytest.mark.parametrize("name", NAMES)
def test_chains_have_finite_gradients(name, rng):
    kernel = normal((3, 3, 4, 6), rng)
    kernel[..., 1] = 0
    chain, x = CASES[name].at_rank(kernel), normal((1, 6, 6, 4), rng)
    gradient = jax.grad(lambda chain: jnp.sum(conv(x, chain) ** 2))(chain)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


# Large kernels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("separable", {"rank": 256}),
        ("low_rank", {"rank": 128}),
        ("tucker2", {"ranks": 128}),
        ("tucker2", {"tolerance": 0.2}),
        ("depthwise_separable", {"multiplier": 2}),
    ],
)
def test_512_channels(name, options, rng):
    # Output channels of falling strength, as in a trained layer.
    mixing = normal((512, 512), rng) / np.arange(1, 513, dtype=np.float32)[:, None]
    kernel = normal((3, 3, 512, 512), rng) @ mixing
    chain = CASES[name](kernel, **options)
    assert chain.shape == kernel.shape
    assert 0.01 < float(chain.relative_error(kernel)) < options.get("tolerance", 0.9)


# Refusals


def test_separable_needs_two_axes():
    with pytest.raises(
        ValueError, match=r"separable: cannot represent this kernel: it needs two or more window axes, .* \(3,\)"
    ):
        jaxcnn.separable(np.ones((3, 2, 2), np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "options", "error", "message"),
    [
        ((3, 2), {}, ValueError, r": kernel must have at least one window axis.* got shape \(3, 2\)"),
        (
            (3, 3, 2, 4),
            {"rank": 1, "tolerance": 0.1},
            ValueError,
            r"give OPTION or tolerance, not both, got 1 and 0\.1",
        ),
        ((3, 3, 2, 4), {"rank": 99}, ValueError, r": OPTION(\[0\])? must be between 1 and \d+, the full rank, got 99"),
        ((3, 3, 2, 4), {"rank": 0}, ValueError, r": OPTION(\[0\])? must be between 1 and \d+, the full rank, got 0"),
        ((3, 3, 2, 4), {"rank": 1.5}, TypeError, r": OPTION(\[0\])? must be an int, got 1\.5"),
        ((3, 3, 2, 4), {"tolerance": -0.1}, ValueError, r": tolerance must not be negative, got -0\.1"),
        ((3, 3, 2, 4), {"feature_group_count": 3}, ValueError, r"4 output channels do not divide into"),
        ((3, 3, 2, 4), {"layout": "NCH"}, ValueError, r"layout 'NCH' has 1 spatial axes, but the kernel.* has 2"),
        ((3, 3, 0, 4), {}, ValueError, r": kernel is empty, shape \(3, 3, 0, 4\)"),
    ],
)
def test_errors(name, shape, options, error, message):
    case = CASES[name]
    options = {case.option if key == "rank" else key: value for key, value in options.items()}
    with pytest.raises(error, match=name + ".*" + message.replace("OPTION", case.option)):
        case(np.ones(shape, np.float32), **options)


@pytest.mark.parametrize("name", NAMES)
def test_other_objects_are_no_kernels(name):
    for kernel, kind in (({"kernel": 1.0}, "dict"), (None, "NoneType"), ("kernel", "str")):
        with pytest.raises(TypeError, match=f"{name}: kernel must be an array of floats, got {kind}"):
            CASES[name](kernel)


@pytest.mark.parametrize("name", NAMES)
def test_integers_and_values_that_are_not_finite_are_refused(name):
    with pytest.raises(TypeError, match=f"{name}: kernel must be of floats, got dtype int8"):
        CASES[name](np.ones((3, 3, 1, 1), np.int8))
    kernel = np.ones((3, 3, 1, 2), np.float32)
    kernel[0, 1] = np.nan
    with pytest.raises(ValueError, match=f"{name}: kernel has 2 values that are NaN or infinite"):
        CASES[name](kernel)
