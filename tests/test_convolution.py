"""`conv`, `depthwise_conv` and `extract_patches` against loops, other libraries and the laws that they obey."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from support import oracles
from support.arrays import assert_close, integers, normal
from support.cases import arranged, conv_cases, pool_cases
from support.drawn import drawn
from support.methods import OF_ONE_GROUP, SPREADS, by_each_method, tolerance


@drawn(20, 60, conv_cases())
def test_conv_equals_loops(case):
    expected = case["arrange"](oracles.conv(case["x"], case["kernel"], **case["oracle"]))
    x, kernel = case["given_x"], case["given_kernel"]
    assert jaxcnn.conv_output_shape(x.shape, kernel.shape, **case["given"]) == expected.shape
    for method, result in by_each_method(jaxcnn.conv, x, kernel, **case["given"]):
        assert result.dtype == np.float32
        assert_close(result, expected, tolerance(method), method)


def _as_lax(layout):
    return layout if isinstance(layout[0], str) else lax.ConvDimensionNumbers(*layout)


@drawn(12, 25, conv_cases())
def test_conv_in_a_triple_layout_equals_lax(case):
    options = case["given"]
    if isinstance(options["layout"], str | None) or options["padding_mode"] != "zeros":
        return
    x, kernel, rank = case["given_x"], case["given_kernel"], case["x"].ndim - 2
    pairs = oracles.explicit_padding(
        options["padding"],
        [oracles.extent(*pair) for pair in zip(case["x"].shape[1:-1], case["oracle"]["input_dilation"], strict=True)],
        case["kernel"].shape[:rank],
        case["oracle"]["strides"],
        case["oracle"]["kernel_dilation"],
    )
    expected = lax.conv_general_dilated(
        x,
        kernel,
        case["oracle"]["strides"],
        pairs,
        lhs_dilation=case["oracle"]["input_dilation"],
        rhs_dilation=case["oracle"]["kernel_dilation"],
        dimension_numbers=_as_lax(options["layout"]),
        feature_group_count=options["feature_group_count"],
    )
    assert_close(jaxcnn.conv(x, kernel, method="direct", **options), expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER"])
def test_same_puts_the_odd_pixel_on_the_named_side(stride, padding):
    for size, taps in itertools.product((6, 7), (2, 3)):
        x = np.arange(1.0, size + 1, dtype=np.float32).reshape(size, 1)
        kernel = 10.0 ** np.arange(taps, dtype=np.float32).reshape(taps, 1, 1)
        outputs = -(-size // stride)
        total = max((outputs - 1) * stride + taps - size, 0)
        low = total // 2 if padding == "SAME" else total - total // 2
        padded = np.pad(x.ravel(), (low, total - low))
        expected = [padded[o * stride : o * stride + taps] @ kernel.ravel() for o in range(outputs)]
        for method, result in by_each_method(jaxcnn.conv, x, kernel, strides=stride, padding=padding):
            assert_close(result.ravel(), np.array(expected), tolerance(method), f"{method} {size} {taps}")


def test_the_padding_of_torch_and_same_differ_under_a_stride(rng):
    # Both paddings give equal shapes, and values one pixel apart.
    x, kernel = normal((1, 8, 8, 2), rng), normal((3, 3, 2, 3), rng)
    same, symmetric = (np.asarray(jaxcnn.conv(x, kernel, strides=2, padding=p)) for p in ("SAME", 1))
    assert same.shape == symmetric.shape
    assert np.abs(same - symmetric).max() > 0.1
    np.testing.assert_allclose(same, jaxcnn.conv(x, kernel, strides=2, padding=((0, 1), (0, 1))), rtol=1e-6)


@pytest.mark.parametrize(
    ("rank", "groups", "strides", "padding", "dilation"),
    [
        (1, 1, 2, 1, 1),
        (1, 3, 1, 2, 3),
        (2, 1, 1, 0, 1),
        (2, 2, (2, 1), (1, 2), (1, 2)),
        (2, 6, 1, 1, 1),
        (3, 2, 2, 1, 1),
    ],
)
def test_conv_equals_torch(rng, rank, groups, strides, padding, dilation):
    torch = pytest.importorskip("torch")
    sizes = (9, 8, 7)[:rank]
    x, kernel = normal((2, 6, *sizes), rng), normal((12, 6 // groups, *(3,) * rank), rng)
    function = getattr(torch.nn.functional, f"conv{rank}d")
    expected = function(
        torch.from_numpy(x), torch.from_numpy(kernel), None, strides, padding, dilation, groups=groups
    ).numpy()
    options = {"strides": strides, "kernel_dilation": dilation, "feature_group_count": groups}
    padding = padding if isinstance(padding, int) else list(padding)
    layout = "NC" + "DHW"[3 - rank :]
    for method, result in by_each_method(jaxcnn.conv, x, kernel, padding=padding, layout=layout, **options):
        assert_close(result, expected, tolerance(method), method)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_equal_torch(rng, mode):
    torch = pytest.importorskip("torch")
    x, kernel = normal((2, 3, 6, 7), rng), normal((4, 3, 3, 3), rng)
    layer = torch.nn.Conv2d(3, 4, 3, stride=2, padding=(2, 1), bias=False, padding_mode=mode)
    layer.weight.data = torch.from_numpy(kernel)
    expected = layer(torch.from_numpy(x)).detach().numpy()
    options = {"strides": 2, "padding": (2, 1), "padding_mode": mode, "layout": "NCHW"}
    for method, result in by_each_method(jaxcnn.conv, x, kernel, **options):
        assert_close(result, expected, tolerance(method), method)


@pytest.mark.parametrize("mode", ["same", "valid", "full"])
def test_conv_correlates_as_scipy_does(rng, mode):
    signal = pytest.importorskip("scipy.signal")
    x, kernel = normal((9, 8), rng), normal((3, 5), rng)
    expected = signal.correlate(x, kernel, mode)
    padding = ((2, 2), (4, 4)) if mode == "full" else mode
    for method, result in by_each_method(jaxcnn.conv, x[..., None], kernel[..., None, None], padding=padding):
        assert_close(result[..., 0], expected, tolerance(method), method)


def test_the_kernel_is_not_flipped():
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 2, 2] = 1
    kernel = np.arange(9.0, dtype=np.float32).reshape(3, 3, 1, 1)
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert_close(result[0, 1:4, 1:4, 0], kernel[::-1, ::-1, 0, 0], tolerance(method), method)


def test_circular_convolution_commutes_with_roll(rng):
    x, kernel = normal((2, 6, 7, 2), rng), normal((3, 3, 2, 3), rng)
    for method in OF_ONE_GROUP:
        convolve = partial(jaxcnn.conv, kernel=kernel, padding_mode="circular", method=method)
        rolled = convolve(np.roll(x, (2, -3), (1, 2)))
        assert_close(rolled, np.roll(convolve(x), (2, -3), (1, 2)), 2 * tolerance(method), method)


def _block_diagonal(kernel, groups):
    *window, kernel_in, features = kernel.shape
    dense = np.zeros((*window, kernel_in * groups, features), kernel.dtype)
    for group in range(groups):
        rows = slice(group * kernel_in, (group + 1) * kernel_in)
        columns = slice(group * (features // groups), (group + 1) * (features // groups))
        dense[..., rows, columns] = kernel[..., columns]
    return dense


@pytest.mark.parametrize(("groups", "kernel_in", "multiplier"), [(1, 4, 2), (2, 2, 3), (3, 2, 1), (6, 1, 2), (6, 1, 1)])
def test_grouped_equals_block_diagonal(rng, groups, kernel_in, multiplier):
    x, kernel = normal((2, 6, 5, groups * kernel_in), rng), normal((3, 2, kernel_in, groups * multiplier), rng)
    expected = jaxcnn.conv(x, _block_diagonal(kernel, groups), strides=(2, 1))
    for method, result in by_each_method(jaxcnn.conv, x, kernel, strides=(2, 1), feature_group_count=groups):
        assert_close(result, expected, tolerance(method), method)


def test_one_output_channel_is_not_depthwise(rng):
    # There is one group with several input channels.
    x, kernel = normal((1, 5, 5, 4), rng), normal((3, 3, 4, 1), rng)
    expected = sum(np.asarray(jaxcnn.conv(x[..., i : i + 1], kernel[:, :, i : i + 1])) for i in range(4))
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert_close(result, expected, tolerance(method), method)


def test_window_of_one_equals_matmul(rng):
    x, kernel = normal((2, 4, 5, 3), rng), normal((1, 1, 3, 4), rng)
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert_close(result, x @ kernel[0, 0], tolerance(method), method)
    for method, result in by_each_method(jaxcnn.conv, x, kernel, strides=2):
        assert_close(result, x[:, ::2, ::2] @ kernel[0, 0], tolerance(method), method)


def test_convolution_is_linear_in_both_operands(rng):
    (x, u), (kernel, h) = normal((2, 1, 5, 5, 2), rng), normal((2, 3, 3, 2, 3), rng)
    for method in OF_ONE_GROUP:
        convolve = partial(jaxcnn.conv, strides=1 if method == "winograd" else 2, method=method)
        in_x = 2 * convolve(x, kernel) + convolve(u, kernel)
        assert_close(convolve(2 * x + u, kernel), in_x, 3 * tolerance(method), method)
        in_kernel = 2 * convolve(x, kernel) + convolve(x, h)
        assert_close(convolve(x, 2 * kernel + h), in_kernel, 3 * tolerance(method), method)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("layout", [None, "NCHW", ("NHWC", "OIHW", "NCHW"), ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))])
def test_depthwise_channel_order(rng, multiplier, layout):
    x, kernel = normal((2, 5, 6, 3), rng), normal((3, 2, 3, multiplier), rng)
    expected = np.zeros((2, 5, 6, 3 * multiplier), np.float32)
    for c, m in itertools.product(range(3), range(multiplier)):
        one = jaxcnn.conv(x[..., c : c + 1], kernel[:, :, c : c + 1, m : m + 1])
        expected[..., c * multiplier + m] = one[..., 0]
    x = arranged(x, "NHWC", layout if isinstance(layout, str) else "NHWC")
    first_out = layout == "NCHW" or (layout is not None and layout[2] == "NCHW")
    expected = arranged(expected, "NHWC", "NCHW" if first_out else "NHWC")
    if layout is not None and layout[1] == "OIHW":
        kernel = arranged(kernel, "HWIO", "OIHW")  # C in the place of I, M in that of O
    for method, result in by_each_method(jaxcnn.depthwise_conv, x, kernel, layout=layout):
        assert_close(result, expected, tolerance(method), method)


def test_depthwise_equals_conv_with_as_many_groups(rng):
    x, kernel = normal((2, 7, 3), rng), normal((3, 3, 2), rng)
    options = {"strides": 2, "padding": ((2, 1),), "padding_mode": "circular", "kernel_dilation": 2}
    expected = jaxcnn.conv(x, kernel.reshape(3, 1, 6), feature_group_count=3, **options)
    for method, result in by_each_method(jaxcnn.depthwise_conv, x, kernel, **options):
        assert_close(result, expected, tolerance(method), method)


@drawn(12, 25, pool_cases())
def test_extract_patches_equals_loops(case):
    if case["given"]["ceil_mode"]:
        case["oracle"]["ceil_mode"] = case["given"]["ceil_mode"] = False
    options = {name: value for name, value in case["given"].items() if name != "ceil_mode"}
    layout, rank = options["layout"], case["x"].ndim - 2
    expected = oracles.patches(case["x"], **case["oracle"])
    numbers = (
        lax.conv_dimension_numbers((1,) * (rank + 2), (1,) * (rank + 2), _as_lax(layout))
        if _is_triple(layout)
        else None
    )
    if numbers is not None:
        order = [axis for axis in np.argsort(numbers.rhs_spec) if axis != 0]  # axes of the kernel as they lie: I is 1
        order = [rank if axis == 1 else axis - 2 for axis in order]
    elif layout is not None and layout.upper().index("C") < min(
        i for i, n in enumerate(layout.upper()) if n not in "NC"
    ):
        order = [rank, *range(rank)]
    else:
        order = list(range(rank + 1))
    lead = rank + 1
    expected = expected.transpose(*range(lead), *(lead + axis for axis in order))
    expected = expected.reshape(*expected.shape[:lead], -1)
    result = jaxcnn.extract_patches(case["given_x"], case["window_shape"], **options)
    assert_close(result, case["arrange"](expected))


def _is_triple(layout):
    return layout is not None and not isinstance(layout, str)


def test_patches_times_kernel_is_the_convolution(rng):
    x, kernel = normal((2, 6, 5, 3), rng), normal((3, 2, 3, 4), rng)
    patches = jaxcnn.extract_patches(x, (3, 2), strides=2, padding="SAME")
    assert_close(patches @ kernel.reshape(-1, 4), jaxcnn.conv(x, kernel, strides=2))
    first = jaxcnn.extract_patches(x.transpose(0, 3, 1, 2), (3, 2), strides=2, padding="SAME", layout="NCHW")
    ours = lax.conv_general_dilated_patches(x.transpose(0, 3, 1, 2), (3, 2), (2, 2), "SAME")
    assert_close(first, ours)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_floats_keep_their_dtype_and_accumulate_in_float32(rng, dtype):
    # 512 ones: partial sums of bfloat16 would stop at 256.
    ones = jnp.ones((1, 8, 8, 8), dtype)
    for method, result in by_each_method(jaxcnn.conv, ones, jnp.ones((8, 8, 8, 1), dtype), padding="VALID"):
        assert result.dtype == dtype
        assert float(result[0, 0, 0, 0]) == pytest.approx(512, abs=tolerance(method) * 512), method
    x, kernel = jnp.asarray(normal((2, 6, 6, 8), rng), dtype), jnp.asarray(normal((3, 3, 8, 4), rng), dtype)
    exact = oracles.conv(
        np.asarray(x, np.float64),
        np.asarray(kernel, np.float64),
        strides=(1, 1),
        padding="SAME",
        input_dilation=(1, 1),
        kernel_dilation=(1, 1),
    )
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        one_rounding = float(jnp.finfo(dtype).eps) / 2 + tolerance(method)
        assert_close(np.asarray(result, np.float64), exact, one_rounding, method)
    for method, result in by_each_method(jaxcnn.conv, x, kernel, preferred_element_type=np.float32):
        assert result.dtype == np.float32
        assert_close(result, exact, tolerance(method), method)


@pytest.mark.usefixtures("x64")
def test_float64_stays_float64(rng):
    x, kernel = normal((2, 6, 6, 3), rng, dtype=np.float64), normal((3, 3, 3, 4), rng, dtype=np.float64)
    geometry = {"strides": (1, 1), "padding": "SAME", "input_dilation": (1, 1), "kernel_dilation": (1, 1)}
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert result.dtype == np.float64
        assert_close(result, oracles.conv(x, kernel, **geometry), 1e-11, method)
    assert jaxcnn.conv(x.astype(np.float32), kernel.astype(np.float32)).dtype == np.float32


MORE_INTEGERS = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (np.uint8, np.int16, np.uint32)]


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.bool_, *MORE_INTEGERS])
def test_integers_accumulate_in_32_bits(rng, dtype):
    x, kernel = rng.integers(0, 2, (2, 5, 5, 3)).astype(dtype), rng.integers(0, 2, (3, 3, 3, 2)).astype(dtype)
    if dtype is not np.bool_:
        kernel *= np.array(7, dtype)
    expected = oracles.conv(
        x.astype(np.int64),
        kernel.astype(np.int64),
        strides=(1, 1),
        padding="SAME",
        input_dilation=(1, 1),
        kernel_dilation=(1, 1),
    )
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert result.dtype == (np.uint32 if dtype is np.uint32 else np.int32), method
        np.testing.assert_array_equal(result, expected, method)


def test_int8_does_not_wrap():
    # lax's own convolution of int8 wraps to 0 here.
    x, kernel = np.full((1, 8, 8, 1), 100, np.int8), np.full((8, 8, 1, 1), 100, np.int8)
    for method, result in by_each_method(jaxcnn.conv, x, kernel, padding="VALID"):
        assert result.dtype == np.int32
        assert int(result[0, 0, 0, 0]) == 640_000, method
    for method, result in by_each_method(jaxcnn.conv, x, kernel, padding="VALID", preferred_element_type=np.int8):
        assert result.dtype == np.int8, method
    assert int(jaxcnn.conv(-x, kernel, padding="VALID")[0, 0, 0, 0]) == -640_000
    highest = np.full((1, 8, 8, 1), 255, np.uint8)
    assert int(jaxcnn.conv(highest, highest.reshape(8, 8, 1, 1), padding="VALID")[0, 0, 0, 0]) == 64 * 255 * 255


def test_large_integers_are_exact():
    # Above 2^24 float32 has no room for the last digit.
    x = np.array([[2**24], [1]], np.int32)
    for method, result in by_each_method(jaxcnn.conv, x, np.ones((2, 1, 1), np.int32), padding="VALID"):
        assert int(result[0, 0]) == 2**24 + 1, method


def test_integers_may_be_preferred_as_floats(rng):
    x, kernel = integers((1, 5, 5, 2), rng, dtype=np.int8), integers((3, 3, 2, 2), rng, dtype=np.int8)
    expected = jaxcnn.conv(x, kernel)
    for method, result in by_each_method(jaxcnn.conv, x, kernel, preferred_element_type=np.float32):
        assert result.dtype == np.float32
        assert_close(result, expected, tolerance(method), method)


def test_complex_numbers(rng):
    x = (normal((1, 5, 5, 2), rng) + 1j * normal((1, 5, 5, 2), rng)).astype(np.complex64)
    kernel = (normal((3, 3, 2, 3), rng) + 1j * normal((3, 3, 2, 3), rng)).astype(np.complex64)
    expected = oracles.conv(x, kernel, strides=(1, 1), padding="SAME", input_dilation=(1, 1), kernel_dilation=(1, 1))
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert result.dtype == np.complex64
        assert_close(result, expected, 4 * tolerance(method), method)


@pytest.mark.parametrize("function", [jaxcnn.conv, jaxcnn.depthwise_conv, jaxcnn.conv_transpose])
def test_mixed_dtypes_follow_the_promotion_setting(function):
    x, kernel = np.ones((1, 5, 5, 1), jnp.bfloat16), np.ones((3, 3, 1, 1), np.float32)
    with pytest.raises(TypeError, match=rf"{function.__name__}: x is bfloat16 and kernel is float32, .*'strict'"):
        function(x, kernel)
    with jax.numpy_dtype_promotion("standard"):
        result = function(x, kernel)
    assert result.dtype == np.float32
    assert float(result[0, 2, 2, 0]) == 9


@pytest.mark.usefixtures("standard_promotion")
def test_standard_promotion_follows_jax():
    for first, second in [
        (np.int8, np.uint8),
        (np.int8, np.float16),
        (jnp.bfloat16, np.float16),
        (np.int32, np.float32),
    ]:
        x, kernel = jnp.ones((1, 4, 4, 1), first), jnp.ones((2, 2, 1, 1), second)
        promoted = jnp.promote_types(first, second)
        expected = promoted if jnp.issubdtype(promoted, jnp.floating) else np.int32
        assert jaxcnn.conv(x, kernel).dtype == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_the_outputs_that_see_them_and_no_others(value):
    x = np.ones((1, 7, 7, 1), np.float32)
    x[0, 3, 3] = value
    seen = np.zeros((7, 7), bool)
    seen[2:5, 2:5] = True
    for method, result in by_each_method(jaxcnn.conv, x, np.ones((3, 3, 1, 1), np.float32)):
        result = np.asarray(result[0, :, :, 0])
        if method in SPREADS:
            assert not np.isfinite(result[seen]).any(), method
            continue
        np.testing.assert_array_equal(result[seen], np.full(9, value, np.float32), method)
        assert np.isfinite(result[~seen]).all(), method


def _precisions(function, *args):
    """The precision of every convolution and product in a function's program."""
    text = jax.jit(function).lower(*args).as_text()
    return {name for name in ("HIGHEST", "HIGH", "DEFAULT") if f"precision {name}>" in text or f"{name}]" in text}


def test_precision_reaches_the_program(rng):
    x, kernel = normal((1, 5, 5, 2), rng), normal((3, 3, 2, 3), rng)
    direct = partial(jaxcnn.conv, method="direct")
    assert "HIGHEST" not in _precisions(direct, x, kernel)
    for function in (direct, partial(direct, strides=2), partial(jaxcnn.conv_transpose, method="direct")):
        if function.func is jaxcnn.conv_transpose:
            kernel = kernel.swapaxes(2, 3)
        assert "HIGHEST" in _precisions(partial(function, precision="highest"), x, kernel)
        assert "HIGHEST" in _precisions(partial(function, precision=lax.Precision.HIGHEST), x, kernel)
        assert "HIGHEST" in _precisions(partial(function, precision=("highest", "highest")), x, kernel)
        with jax.default_matmul_precision("highest"):
            assert "HIGHEST" in _precisions(lambda x, k, f=function: f(x, k), x, kernel)

    def gradients(x, kernel):
        return jax.grad(lambda x, k: direct(x, k, precision="highest").sum(), (0, 1))(x, kernel)

    text = jax.jit(gradients).lower(x, kernel.swapaxes(2, 3)).as_text()
    assert text.count("HIGHEST") > 0
    assert "DEFAULT" not in text


def test_default_matmul_precision_is_read_at_each_call(compilations, rng):
    x, kernel = normal((1, 5, 5, 2), rng), normal((3, 3, 2, 3), rng)
    first = jaxcnn.conv(x, kernel)
    compiled, _ = compilations
    before = len(compiled)
    with jax.default_matmul_precision("highest"):
        second = jaxcnn.conv(x, kernel)
    assert len(compiled) == before + 1
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "padding", "input_dilation"),
    [
        (6, ((-1, -2),), 1),
        (6, ((-2, 3),), 1),
        (6, ((3, -2),), 2),
        (5, ((-7, 9),), 1),  # every pixel of the image is cropped
        (5, ((9, -6),), 1),
        (4, ((-8, 9),), 2),
    ],
)
def test_negative_padding_crops(rng, size, padding, input_dilation):
    x, kernel = normal((2, size, 2), rng), normal((3, 2, 3), rng)
    geometry = {"strides": (1,), "padding": padding, "kernel_dilation": (1,)}
    expected = oracles.conv(x, kernel, input_dilation=(input_dilation,), **geometry)
    options = {"padding": padding, "input_dilation": input_dilation}
    for method, result in by_each_method(jaxcnn.conv, x, kernel, **options):
        assert_close(result, expected, tolerance(method), method)


def test_a_stride_larger_than_the_window(rng):
    x, kernel = normal((1, 11, 9, 2), rng), normal((2, 1, 2, 3), rng)
    for padding in ("SAME", "VALID"):
        geometry = {"strides": (4, 3), "padding": padding}
        expected = oracles.conv(x, kernel, input_dilation=(1, 1), kernel_dilation=(1, 1), **geometry)
        for method, result in by_each_method(jaxcnn.conv, x, kernel, **geometry):
            assert_close(result, expected, tolerance(method), method)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "groups"),
    [
        ((0, 5, 5, 3), (3, 3, 3, 4), 1),
        ((2, 0, 5, 5, 3), (3, 3, 3, 4), 1),
        ((2, 5, 5, 0), (3, 3, 0, 4), 1),
        ((2, 5, 5, 3), (3, 3, 3, 0), 1),
        ((2, 5, 5, 0), (3, 3, 0, 0), 2),
    ],
)
def test_empty_axes_give_empty_or_zero_results(x_shape, kernel_shape, groups):
    x, kernel = np.ones(x_shape, np.float32), np.ones(kernel_shape, np.float32)
    for method, result in by_each_method(jaxcnn.conv, x, kernel, feature_group_count=groups, strides=2):
        assert result.shape == (*x_shape[:-3], 3, 3, kernel_shape[-1]), method
        assert not np.asarray(result).any()
    loss = lambda x, kernel: jaxcnn.conv(x, kernel, feature_group_count=groups).sum()  # noqa: E731
    for gradient, primal in zip(jax.grad(loss, (0, 1))(x, kernel), (x, kernel), strict=True):
        assert gradient.shape == primal.shape


def test_depthwise_without_channels():
    x, kernel = np.ones((2, 5, 5, 0), np.float32), np.ones((3, 3, 0, 2), np.float32)
    assert jaxcnn.depthwise_conv(x, kernel).shape == (2, 5, 5, 0)


def test_options_in_any_spelling_give_the_same_program(compilations, rng):
    x, kernel = normal((1, 6, 6, 2), rng), normal((3, 3, 2, 2), rng)
    expected = jaxcnn.conv(x, kernel, strides=(2, 2), padding=((1, 1), (0, 1)), kernel_dilation=(1, 1))
    compiled, _ = compilations
    before = len(compiled)
    for strides, padding in [([2, 2], [[1, 1], [0, 1]]), (np.array([2, 2]), np.array([[1, 1], [0, 1]]))]:
        result = jaxcnn.conv(x, kernel, strides=strides, padding=padding, kernel_dilation=[1, 1])
        np.testing.assert_array_equal(result, expected)
    assert len(compiled) == before
    np.testing.assert_allclose(
        jaxcnn.conv(x, kernel, strides=np.int64(2), padding=np.int32(1)), jaxcnn.conv(x, kernel, strides=2, padding=1)
    )


def test_batch_axes(rng):
    x, kernel = normal((2, 3, 6, 5, 2), rng), normal((3, 3, 2, 4), rng)
    for method, result in by_each_method(jaxcnn.conv, x, kernel):
        assert result.shape == (2, 3, 6, 5, 4)
        for i, j in itertools.product(range(2), range(3)):
            assert_close(result[i, j], jaxcnn.conv(x[i, j], kernel, method=method), 2 * tolerance(method))


IMAGE, KERNEL = np.ones((1, 6, 6, 4), np.float32), np.ones((3, 3, 4, 8), np.float32)
ERRORS = [
    (
        {"kernel": KERNEL[:, :, :3]},
        ValueError,
        r"conv: x has 4 channels and feature_group_count=1, so kernel must have 4 ",
    ),
    ({"feature_group_count": 3}, ValueError, r"conv: the kernel's 8 output channels do not divide .* 8 % 3 = 2"),
    (
        {"kernel": KERNEL[..., :6], "feature_group_count": 3},
        ValueError,
        r"conv: x's 4 channels do not divide into feature_group_count=3 groups: 4 % 3 = 1",
    ),
    ({"feature_group_count": 2}, ValueError, r"so kernel must have 2 = 4 / 2 input channels, got 4 \(x \(1, 6, 6, 4\)"),
    ({"feature_group_count": 0}, ValueError, r"conv: feature_group_count must be at least 1, got 0"),
    ({"feature_group_count": 1.5}, TypeError, r"conv: feature_group_count must be an int, got 1.5"),
    ({"padding": "SMAE"}, ValueError, r"conv: padding must be one of 'SAME', 'SAME_LOWER', 'VALID', 'CAUSAL'.*'SMAE'"),
    ({"padding": "CAUSAL"}, ValueError, r"conv: padding 'CAUSAL' is for one spatial axis, but there are 2"),
    ({"padding": (1, 2, 3)}, ValueError, r"conv: padding must be .* got \(1, 2, 3\)"),
    ({"padding": ((1, 2),)}, ValueError, r"conv: padding must be .* got \(\(1, 2\),\)"),
    ({"padding": (1, (1, 2))}, ValueError, r"conv: padding must be "),
    ({"padding": ((1, 2, 3), (1, 2, 3))}, ValueError, r"conv: padding must be "),
    ({"padding": 1.5}, TypeError, r"conv: padding must be .* got 1.5"),
    ({"padding_mode": ["wrap"]}, ValueError, r"conv: padding_mode must be one of 'zeros', .* got .'wrap'"),
    ({"padding_mode": "wrap"}, ValueError, r"conv: padding_mode must be one of 'zeros', 'reflect', .* got 'wrap'"),
    ({"padding_mode": "reflect", "input_dilation": 2}, ValueError, r"padding_mode 'reflect' does not go with input_d"),
    ({"strides": 0}, ValueError, r"conv: strides must be at least 1 on every axis, got 0"),
    ({"strides": (1, 2, 3)}, ValueError, r"conv: strides must be .* got \(1, 2, 3\) with 3 values, one for each of 2"),
    ({"strides": "2"}, TypeError, r"conv: strides must be an int or a sequence of 2 ints, got '2'"),
    ({"strides": 1.0}, TypeError, r"conv: strides must be an int or a sequence of 2 ints, got 1.0"),
    ({"kernel_dilation": (1, -1)}, ValueError, r"conv: kernel_dilation must be at least 1"),
    ({"input_dilation": 0}, ValueError, r"conv: input_dilation must be at least 1"),
    ({"layout": "NHWDC"}, ValueError, r"conv: layout 'NHWDC' has 3 spatial axes, but the kernel, .* has 2"),
    ({"layout": "NHHC"}, ValueError, r"conv: layout 'NHHC': 'NHHC' must name each axis once"),
    ({"layout": "NHW"}, ValueError, r"conv: layout 'NHW': 'NHW' must name each axis once, with 'C' among them"),
    ({"layout": ("NHWC", "HWIO", "NXYC")}, ValueError, r"conv: layout .* name different axes"),
    ({"layout": ((0, 1, 2, 3), (0, 1, 2, 2), (0, 1, 2, 3))}, ValueError, r"is not an order of the axes 0 to 3"),
    ({"layout": 3}, TypeError, r"conv: layout must be None, a string such as 'NCHW' or lax's triple"),
    ({"x": IMAGE[0, 0]}, ValueError, r"conv: x must have 2 spatial axes and a feature axis, 3 in all, .* got 2 axes"),
    ({"kernel": KERNEL[0, 0]}, ValueError, r"conv: kernel must have at least one window axis.* got shape \(4, 8\)"),
    ({"kernel": KERNEL[:0]}, ValueError, r"conv: the kernel's window \(0, 3\) is empty"),
    (
        {"kernel": np.ones((7, 3, 4, 8), np.float32), "padding": "VALID"},
        ValueError,
        r"conv: the window is larger than its padded input on spatial axis 0: it spans 7 .* the input has 6 \+ "
        r"padding 0 \+ 0 = 6",
    ),
    (
        {"padding": ((1, -5), (0, 0))},
        ValueError,
        r"it spans 3 \(dilation included\), the input has 6 \+ padding 1 \+ -5 = 2",
    ),
    ({"method": "fastest"}, ValueError, r"conv: method must be one of 'auto', 'direct'.* got 'fastest'"),
    ({"preferred_element_type": np.int32}, TypeError, r"conv: preferred_element_type int32 cannot hold .* float32"),
    ({"precision": "best"}, ValueError, r"best"),
]


@pytest.mark.parametrize(("changed", "error", "message"), ERRORS, ids=lambda value: None)
def test_errors_in_the_terms_of_the_user(changed, error, message):
    arguments = {"x": IMAGE, "kernel": KERNEL, **changed}
    with pytest.raises(error, match=message):
        jaxcnn.conv(**arguments)
    if "precision" not in changed and "method" not in changed and "preferred_element_type" not in changed:
        shapes = (arguments.pop("x").shape, arguments.pop("kernel").shape)
        with pytest.raises(error, match=message.replace("conv: ", "conv_output_shape: ")):
            jaxcnn.conv_output_shape(*shapes, **arguments)


def test_the_error_that_the_design_quotes():
    message = (
        "conv: x has 3 channels and feature_group_count=1, so kernel must have 3 input channels, got 1 "
        "(x (8, 32, 32, 3), kernel (5, 5, 1, 64))"
    )
    with pytest.raises(ValueError, match="got 1") as error:
        jaxcnn.conv(np.ones((8, 32, 32, 3), np.float32), np.ones((5, 5, 1, 64), np.float32))
    assert str(error.value) == message


def test_a_pair_of_ints_is_ambiguous_for_one_axis():
    with pytest.raises(ValueError, match=r"conv: padding .* got \(1, 2\); for one axis write \(\(low, high\),\)"):
        jaxcnn.conv(np.ones((6, 1), np.float32), np.ones((3, 1, 1), np.float32), padding=(1, 2))


def test_errors_of_depthwise_and_patches():
    with pytest.raises(ValueError, match=r"depthwise_conv: x has 4 channels"):
        jaxcnn.depthwise_conv(IMAGE, np.ones((3, 3, 2, 1), np.float32))
    with pytest.raises(ValueError, match=r"depthwise_conv: kernel must have at least one window axis"):
        jaxcnn.depthwise_conv(IMAGE, np.ones((4, 1), np.float32))
    with pytest.raises(ValueError, match=r"extract_patches: the window is larger than its padded input .* spans 7"):
        jaxcnn.extract_patches(IMAGE, 7)
    with pytest.raises(ValueError, match=r"extract_patches: without a layout .* got shape \(6, 4\)"):
        jaxcnn.extract_patches(IMAGE[0, 0], 2)


def test_a_chain_brings_its_own_groups(rng):
    chain = jaxcnn.KernelChain((normal((3, 1, 2, 4), rng), normal((1, 3, 2, 4), rng)), (2, 2))
    x = normal((1, 6, 6, 4), rng)
    expected = jaxcnn.conv(x, chain.dense(), feature_group_count=2, strides=2)
    for method, result in by_each_method(jaxcnn.conv, x, chain, strides=2):
        assert_close(result, expected, 5 * tolerance(method), method)
    with pytest.raises(ValueError, match=r"conv: the chain has a feature_group_count of its own, 2, got 4"):
        jaxcnn.conv(x, chain, feature_group_count=4)
