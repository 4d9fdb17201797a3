"""`conv_transpose` against loops, against PyTorch, and as the adjoint of `conv`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from support import oracles
from support.arrays import assert_close, integers, jax_normal, normal
from support.cases import arranged, conv_cases
from support.drawn import drawn
from support.methods import by_each_method, tolerance


@drawn(10, 30, conv_cases(transposed=True))
def test_conv_transpose_equals_loops(case):
    expected = case["arrange"](oracles.conv_transpose(case["x"], case["kernel"], **case["oracle"]))
    x, kernel = case["given_x"], case["given_kernel"]
    for method, result in by_each_method(jaxcnn.conv_transpose, x, kernel, **case["given"]):
        assert result.dtype == np.float32
        assert_close(result, expected, tolerance(method), method)


@drawn(10, 30, conv_cases(transposed=True))
def test_conv_transpose_is_the_adjoint_of_conv(case):
    # <conv(u, k), y> == <u, conv_transpose(y, k)> with the same arguments, wherever conv gives y's size.
    options = {**case["given"]}
    output_padding = options.pop("output_padding")
    y, kernel = case["given_x"], case["given_kernel"]
    x = jaxcnn.conv_transpose(y, kernel, output_padding=output_padding, method="direct", **options)
    if not isinstance(options["layout"], str | None):
        return  # input and output lie differently: x is not what conv takes
    u = normal(x.shape, np.random.default_rng(2))
    if jaxcnn.conv_output_shape(u.shape, kernel.shape, **options) != y.shape:
        return  # an output padding of a stride or more
    left = np.vdot(np.asarray(jaxcnn.conv(u, kernel, method="direct", **options), np.float64), y)
    right = np.vdot(u, np.asarray(x, np.float64))
    assert abs(left - right) <= 1e-6 * max(np.linalg.norm(u) * np.linalg.norm(x), 1)


PADDINGS = ["SAME", 1, ((-1, 0), (2, -1))]
MORE_PADDINGS = ["SAME_LOWER", "VALID", ((0, 2), (3, 1))]


@pytest.mark.parametrize(
    "padding", [*PADDINGS, *(pytest.param(padding, marks=pytest.mark.slow) for padding in MORE_PADDINGS)], ids=str
)
def test_the_adjoint_of_each_option(rng, padding):
    # The same identity where conv and its transpose both are easily written, with all options at once.
    options = {"strides": (2, 3), "kernel_dilation": (2, 1), "feature_group_count": 2, "padding": padding}
    u, kernel = normal((2, 11, 13, 4), rng), normal((3, 4, 2, 6), rng)
    if str(padding).startswith("SAME"):
        u = u[:, :10, :12]  # SAME gives back multiples of the stride
    forward = jax.jit(partial(jaxcnn.conv, **options))
    y = forward(u, kernel)
    shape = jax.eval_shape(partial(jaxcnn.conv_transpose, **options), y, kernel).shape
    extra = tuple(wanted - size for wanted, size in zip(u.shape[1:3], shape[1:3], strict=True))
    vjp = jax.jit(jax.linear_transpose(lambda u: forward(u, kernel), u))(y)[0]
    for method, result in by_each_method(jaxcnn.conv_transpose, y, kernel, output_padding=extra, **options):
        assert result.shape == u.shape
        assert_close(result, vjp, 2 * tolerance(method), method)
        assert np.vdot(u, result) == pytest.approx(np.vdot(y, y), rel=1e-4)


def test_the_adjoint_of_a_convolution_with_padding_modes_and_input_dilation(rng):
    # conv_transpose has no such options; their adjoint is the derivative, which the identity must hold for as well.
    x, kernel = normal((1, 6, 5, 2), rng), normal((3, 3, 2, 3), rng)
    for options in (
        {"padding_mode": "reflect", "padding": 2},
        {"padding_mode": "circular"},
        {"input_dilation": (2, 3)},
    ):
        for method, result in by_each_method(jaxcnn.conv, x, kernel, **options):

            def convolve(x, method=method, options=options):
                return jaxcnn.conv(x, kernel, method=method, **options)

            y = normal(result.shape, rng)
            (back,) = jax.linear_transpose(convolve, x)(y)
            assert np.vdot(y, result) == pytest.approx(np.vdot(x, back), rel=1e-4)


@pytest.mark.parametrize(
    ("rank", "groups", "kernel", "stride", "padding", "output_padding", "dilation"),
    [
        (1, 1, 4, 2, 1, 0, 1),
        (1, 2, 3, 3, 0, 2, 2),
        (1, 1, 3, 1, 0, 1, 3),  # output_padding >= stride, allowed because it is below the dilation
        (1, 1, 2, 2, 1, 3, 5),
        (2, 1, 3, (2, 1), (1, 0), (1, 0), 1),
        (2, 3, (3, 2), 2, 1, 1, (2, 1)),
        (2, 6, 3, 2, 1, 1, 1),
        (2, 1, 2, 3, 0, 0, 1),  # window smaller than the stride
        (3, 2, 3, 2, 1, 1, 1),
    ],
)
def test_conv_transpose_equals_torch(rng, rank, groups, kernel, stride, padding, output_padding, dilation):
    torch = pytest.importorskip("torch")
    sizes = (5, 4, 3)[:rank]
    window = (kernel,) * rank if isinstance(kernel, int) else kernel
    x, weight = normal((2, 6, *sizes), rng), normal((6, 12 // groups, *window), rng)
    function = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    tensors = (torch.from_numpy(x), torch.from_numpy(weight))
    expected = function(*tensors, None, stride, padding, output_padding, groups, dilation).numpy()
    options = {
        "strides": stride,
        "padding": padding,
        "output_padding": output_padding,
        "kernel_dilation": dilation,
        "feature_group_count": groups,
        "layout": "NC" + "DHW"[3 - rank :],
    }
    for method, result in by_each_method(jaxcnn.conv_transpose, x, weight, **options):
        assert_close(result, expected, tolerance(method), method)


MORE_WINDOWS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((3, 1), (4, 2))]


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER"])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 3), (1, 2), *MORE_WINDOWS])
def test_same_gives_size_times_stride(rng, padding, window, stride):
    y, kernel = normal((1, 4, 3, 2), rng), normal((window, window, 3, 2), rng)
    for method, result in by_each_method(jaxcnn.conv_transpose, y, kernel, strides=stride, padding=padding):
        assert result.shape == (1, 4 * stride, 3 * stride, 3)
        u = np.zeros(result.shape, np.float32)
        (vjp,) = jax.linear_transpose(lambda u: jaxcnn.conv(u, kernel, strides=stride, padding=padding), u)(y)
        assert_close(result, vjp, 2 * tolerance(method), method)


def test_the_kernel_lies_as_it_is_at_stride_one():
    y = np.zeros((5, 5, 1), np.float32)
    y[2, 2] = 1
    kernel = np.arange(9.0, dtype=np.float32).reshape(3, 3, 1, 1)
    for method, result in by_each_method(jaxcnn.conv_transpose, y, kernel):
        assert_close(result[1:4, 1:4, 0], kernel[..., 0, 0], tolerance(method), method)


def test_layouts_and_batch_axes(rng):
    x, kernel = normal((2, 3, 4, 5, 6), rng), normal((3, 2, 2, 6), rng)
    options = {"strides": 2, "padding": 0, "feature_group_count": 3}
    expected = np.asarray(jaxcnn.conv_transpose(x, kernel, **options))
    merged = jaxcnn.conv_transpose(x.reshape(6, 4, 5, 6), kernel, **options)
    np.testing.assert_allclose(expected.reshape(merged.shape), merged, rtol=1e-6)
    alone = jaxcnn.conv_transpose(x[1, 2], kernel, **options)
    assert_close(alone, expected[1, 2], 4e-6)
    first = np.moveaxis(x, -1, 2)
    result = jaxcnn.conv_transpose(first, arranged(kernel, "HWIO", "OIHW"), layout="NCHW", **options)
    assert_close(result, np.moveaxis(expected, -1, 2), 4e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.complex64])
def test_dtypes(rng, dtype):
    x, kernel = jnp.asarray(normal((1, 4, 4, 8), rng), dtype), jnp.asarray(normal((3, 3, 2, 8), rng), dtype)
    wide = np.complex128 if dtype == np.complex64 else np.float64
    geometry = {"strides": (2, 2), "padding": "SAME", "output_padding": (0, 0), "kernel_dilation": (1, 1)}
    exact = oracles.conv_transpose(np.asarray(x, wide), np.asarray(kernel, wide), **geometry)
    for method, result in by_each_method(jaxcnn.conv_transpose, x, kernel, strides=2):
        assert result.dtype == dtype
        rounding = float(jnp.finfo(dtype).eps) / 2 + 4 * tolerance(method)
        assert_close(np.asarray(result, wide), exact, rounding, method)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_integers_accumulate_in_32_bits(rng, dtype):
    x, kernel = integers((1, 4, 4, 8), rng, low=0, dtype=dtype), integers((3, 3, 2, 8), rng, low=0, dtype=dtype)
    x, kernel = x * np.array(25, dtype), kernel * np.array(25, dtype)
    geometry = {"strides": (2, 2), "padding": "SAME", "output_padding": (0, 0), "kernel_dilation": (1, 1)}
    exact = oracles.conv_transpose(x.astype(np.int64), kernel.astype(np.int64), **geometry)
    for method, result in by_each_method(jaxcnn.conv_transpose, x, kernel, strides=2):
        assert result.dtype == np.int32, method
        np.testing.assert_array_equal(result, exact, method)


def test_preferred_element_type(rng):
    x, kernel = (
        jnp.asarray(normal((1, 4, 4, 8), rng), jnp.bfloat16),
        jnp.asarray(normal((3, 3, 2, 8), rng), jnp.bfloat16),
    )
    geometry = {"strides": (1, 1), "padding": "SAME", "output_padding": (0, 0), "kernel_dilation": (1, 1)}
    exact = oracles.conv_transpose(np.asarray(x, np.float64), np.asarray(kernel, np.float64), **geometry)
    for method, result in by_each_method(jaxcnn.conv_transpose, x, kernel, preferred_element_type=np.float32):
        assert result.dtype == np.float32
        assert_close(result, exact, 4 * tolerance(method), method)


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape"), [((0, 4, 3), (3, 2, 3)), ((2, 4, 0), (3, 2, 0)), ((2, 4, 3), (3, 0, 3))]
)
def test_empty_axes(x_shape, kernel_shape):
    x, kernel = np.ones(x_shape, np.float32), np.ones(kernel_shape, np.float32)
    for _, result in by_each_method(jaxcnn.conv_transpose, x, kernel, strides=2):
        assert result.shape == (x_shape[0], 8, kernel_shape[1])
        assert not np.asarray(result).any()


def test_a_chain_equals_its_dense_kernel(rng):
    chain = jaxcnn.KernelChain((normal((3, 1, 2, 3), rng), normal((1, 3, 3, 4), rng)))
    y = normal((1, 4, 5, 4), rng)
    for options in ({"strides": 2}, {"strides": (1, 2), "padding": 1, "output_padding": (0, 1)}, {"padding": "VALID"}):
        expected = jaxcnn.conv_transpose(y, chain.dense(), **options)
        for method, result in by_each_method(jaxcnn.conv_transpose, y, chain, **options):
            assert_close(result, expected, 5 * tolerance(method), method)


Y, KERNEL = np.ones((1, 4, 4, 8), np.float32), np.ones((3, 3, 4, 8), np.float32)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"x": Y[..., :3]},
            ValueError,
            r"x has 3 channels, so kernel must have 3 output channels, got 8 \(x \(1, 4, 4, 3",
        ),
        ({"feature_group_count": 3}, ValueError, r"the kernel's 8 output channels do not divide into .*=3 groups"),
        (
            {"output_padding": 1, "strides": 2},
            ValueError,
            r"'SAME' already sets the output to input size \* stride; output_padding \(1",
        ),
        (
            {"output_padding": 2, "padding": 1, "strides": 2},
            ValueError,
            r"output_padding must be smaller than the stride or the dilation, but on spatial axis 0 it is 2 with "
            r"stride 2 and kernel_dilation 1",
        ),
        ({"output_padding": -1, "padding": 1}, ValueError, r"output_padding must be at least 0 on every axis, got -1"),
        (
            {"padding": 3},
            ValueError,
            r"no output is left on spatial axis 0: \(4 - 1\) \* stride 1 \+ window 3 - padding 3 - 3 \+ output_padding",
        ),
        ({"padding": "SMAE"}, ValueError, r"padding must be one of 'SAME', .* got 'SMAE'"),
        ({"method": "fastest"}, ValueError, r"method must be one of 'auto', 'direct'.* got 'fastest'"),
        ({"layout": "NCWH", "x": Y[0, 0]}, ValueError, r"x must have 2 spatial axes and a feature axis"),
        ({"strides": (1, 2, 3)}, ValueError, r"strides must be an int or a sequence of 2 ints"),
    ],
    ids=lambda value: None,
)
def test_errors(changed, error, message):
    with pytest.raises(error, match="conv_transpose: .*" + message):
        jaxcnn.conv_transpose(**{"x": Y, "kernel": KERNEL, **changed})


def test_vmap_over_kernels_of_several_groups():
    # The kernel's input channels lie group by group in the result alone.
    y, kernels = jax_normal((1, 5, 4, 6), 1), jax_normal((3, 3, 2, 4, 6), 2)
    transposed = partial(jaxcnn.conv_transpose, feature_group_count=2, strides=2)
    expected = jnp.stack([transposed(y, kernel) for kernel in kernels])
    assert_close(jax.vmap(transposed, (None, 0))(y, kernels), expected)
