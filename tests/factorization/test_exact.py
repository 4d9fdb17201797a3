"""`merge`, `fold_scale` and `split`: the same function before and after, by convolving."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import KernelChain, conv, fold_scale, merge, split
from support.arrays import normal


def assert_close(actual, expected, relative=1e-5):
    scale = max(np.abs(np.asarray(expected)).max(), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale)


# merge


@pytest.mark.parametrize(
    "windows",
    [[(3, 3), (1, 1)], [(3, 3), (3, 1), (1, 3)], [(1, 5), (3, 1)], [(2, 3), (4, 1), (3, 2)], [(7,), (3,), (4,)]],
)
@pytest.mark.parametrize("identity", [None, 1.0, "channels"])
def test_branches_side_by_side(windows, identity, rng):
    rank = len(windows[0])
    kernels = [normal((*window, 4, 4), rng) for window in windows]
    x = normal((2, *(9, 8)[:rank], 4), rng)
    expected = sum(conv(x, kernel) for kernel in kernels)
    weight = normal((4,), rng) if identity == "channels" else identity
    if weight is not None:
        expected = expected + x * weight
    merged = merge(*kernels, identity=weight)
    assert merged.shape[:-2] == tuple(map(max, *windows))
    assert_close(conv(x, merged), expected)


def test_branches_with_strides_and_explicit_padding(rng):
    kernels = [normal((5, 5, 3, 4), rng), normal((3, 3, 3, 4), rng), normal((1, 5, 3, 4), rng)]
    x = normal((1, 12, 12, 3), rng)
    for strides in (2, 3):
        branches = [
            conv(x, kernel, strides=strides, padding=tuple((size - 1) // 2 for size in kernel.shape[:2]))
            for kernel in kernels
        ]
        assert_close(conv(x, merge(*kernels), strides=strides, padding=2), sum(branches))
    # What the docstring warns of: SAME at stride 2 pads a 3x3 and a 1x1 differently.
    same = sum(conv(x, kernel, strides=2) for kernel in kernels)
    assert not np.allclose(conv(x, merge(*kernels), strides=2), same, atol=1e-2)


def test_groups_and_layouts(rng):
    kernels = [normal((3, 3, 2, 6), rng), normal((1, 1, 2, 6), rng)]
    x = normal((2, 6, 7, 6), rng)
    weight = normal((6,), rng)
    expected = sum(conv(x, kernel, feature_group_count=3) for kernel in kernels) + x * weight
    assert_close(conv(x, merge(*kernels, identity=weight, feature_group_count=3), feature_group_count=3), expected)
    first = [kernel.transpose(3, 2, 0, 1) for kernel in kernels]
    merged = merge(*first, identity=weight, feature_group_count=3, layout="NCHW")
    assert merged.shape == (6, 2, 3, 3)
    y = conv(x.transpose(0, 3, 1, 2), merged, feature_group_count=3, layout="NCHW")
    assert_close(y.transpose(0, 2, 3, 1), expected)


def test_merging_is_differentiable_and_keeps_the_dtype(rng):
    kernels = [
        jnp.asarray(normal((3, 3, 2, 2), rng), jnp.bfloat16),
        jnp.asarray(normal((1, 1, 2, 2), rng), jnp.bfloat16),
    ]
    assert jax.jit(merge)(*kernels).dtype == jnp.bfloat16
    gradient = jax.grad(lambda weight: merge(normal((3, 3, 2, 2), rng), identity=weight).sum())(2.0)
    assert gradient == 2  # two ones on the diagonal


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ([], {}, "merge: there must be at least one kernel"),
        ([(3, 3, 2, 4), (3, 2, 4)], {}, r"merge: all kernels must have the same number of axes"),
        ([(3, 3, 2, 4), (1, 1, 3, 4)], {}, r"merge: all kernels must have the same input and output channels"),
        ([(3, 3, 2, 4)], {"identity": 1}, r"as many input as output channels, got 2 and 4"),
        ([(3, 3, 2, 6)], {"identity": 1, "feature_group_count": 2}, r"got 2 \* 2 groups and 6"),
        ([(3, 3, 4, 4)], {"identity": np.ones(3)}, r"identity must be a number or \(4,\) of them, got shape \(3,\)"),
    ],
)
def test_errors_of_merge(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        merge(*(np.ones(shape, np.float32) for shape in shapes), **options)


def test_an_identity_of_floats_is_not_cut_off():
    kernel = np.ones((1, 1, 1, 1), np.int32)
    assert merge(kernel, identity=2).item() == 3
    with pytest.raises(TypeError, match="merge: an identity of float32 needs kernels of floats, got dtype int32"):
        merge(kernel, identity=0.5)


def test_chains_are_neither_merged_nor_split():
    chain = KernelChain((np.ones((3, 1, 1, 1), np.float32), np.ones((1, 3, 1, 1), np.float32)))
    for name, form in (("merge", merge), ("split", lambda kernel: split(kernel, 2))):
        with pytest.raises(TypeError, match=rf"{name}: .*kernel is a KernelChain; its dense kernel is chain\.dense"):
            form(chain)


# fold_scale


def batch_norm(y, scale=1.0, offset=0.0, mean=0.0, variance=None, epsilon=1e-5):
    """Its definition, in float64."""
    y = np.asarray(y, np.float64)
    deviation = 1.0 if variance is None else np.sqrt(np.asarray(variance, np.float64) + epsilon)
    return (y - mean) / deviation * scale + offset


@pytest.mark.parametrize(
    "names", [(), ("scale",), ("offset",), ("mean",), ("variance",), ("scale", "offset", "mean", "variance")]
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_batch_norm_goes_into_the_kernel(names, biased, rng):
    kernel, x = normal((3, 3, 2, 4), rng), normal((2, 6, 6, 4), rng)
    drawn = {name: normal((4,), rng) for name in ("scale", "offset", "mean")}
    drawn["variance"] = np.square(normal((4,), rng))
    norm = {name: drawn[name] for name in names}
    bias = normal((4,), rng) if biased else None
    y = np.asarray(conv(x, kernel, feature_group_count=2)) + (0 if bias is None else bias)
    folded, folded_bias = fold_scale(kernel, bias=bias, epsilon=1e-3, **norm)
    assert folded.shape == kernel.shape
    assert folded_bias.shape == (4,)
    assert_close(
        np.asarray(conv(x, folded, feature_group_count=2)) + np.asarray(folded_bias),
        batch_norm(y, epsilon=1e-3, **norm),
    )


def test_a_batch_norm_goes_into_the_last_link_of_a_chain(rng):
    chain = KernelChain((normal((3, 1, 2, 3), rng), normal((1, 3, 3, 4), rng)))
    scale, mean, x = normal((4,), rng), normal((4,), rng), normal((2, 6, 6, 2), rng)
    folded, bias = fold_scale(chain, scale=scale, mean=mean, layout="NCHW")
    assert isinstance(folded, KernelChain)
    assert folded.kernels[0] is chain.kernels[0]
    assert_close(np.asarray(conv(x, folded)) + np.asarray(bias), batch_norm(conv(x, chain), scale=scale, mean=mean))


def test_fold_scale_in_channels_first_and_in_16_bits(rng):
    kernel, scale = normal((3, 3, 2, 4), rng), normal((4,), rng)
    expected, _ = fold_scale(kernel, scale=scale, variance=np.full(4, 1e-6, np.float32))
    first, _ = fold_scale(
        kernel.transpose(3, 2, 0, 1), scale=scale, variance=np.full(4, 1e-6, np.float32), layout="NCHW"
    )
    np.testing.assert_array_equal(first.transpose(2, 3, 1, 0), expected)
    narrow, bias = fold_scale(jnp.asarray(kernel, jnp.float16), scale=scale, variance=np.full(4, 1e-6, np.float32))
    assert narrow.dtype == bias.dtype == jnp.float16
    np.testing.assert_allclose(narrow.astype(np.float32), expected, rtol=2e-3)


def test_flax_and_torch_agree_on_what_a_batch_norm_is(rng):
    torch = pytest.importorskip("torch")
    layer, norm = torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.BatchNorm2d(5)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.from_numpy(np.abs(normal((5,), rng))))
    x = normal((2, 3, 6, 6), rng)
    with torch.no_grad():
        expected = norm.eval()(layer(torch.from_numpy(x))).numpy()
    of = {"scale": norm.weight, "offset": norm.bias, "mean": norm.running_mean, "variance": norm.running_var}
    numbers = {name: tensor.detach().numpy() for name, tensor in of.items()}
    kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    folded, folded_bias = fold_scale(kernel, bias=bias, layout="NCHW", epsilon=norm.eps, **numbers)
    assert_close(conv(x, folded, padding=1, layout="NCHW") + folded_bias.reshape(1, 5, 1, 1), expected)


@pytest.mark.parametrize("name", ["scale", "offset", "mean", "variance", "bias"])
def test_errors_of_fold_scale(name):
    message = rf"fold_scale: {name} must have one value for each of the kernel's 4 output channels, got shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        fold_scale(np.ones((3, 3, 3, 4), np.float32), **{name: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"fold_scale: kernel must have at least one window axis.*got shape \(3, 4\)"):
        fold_scale(np.ones((3, 4), np.float32))
    with pytest.raises(TypeError, match=r"fold_scale: kernel must be of floats, .* got dtype int32"):
        fold_scale(np.ones((3, 3, 3, 4), np.int32), scale=np.full(4, 0.5, np.float32))


# split


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
def test_the_pieces_add_up(axes, dilation, stride, seed):
    generator = np.random.default_rng(seed)
    window, most = zip(*axes, strict=True)
    kernel = normal((*window, 2, 3), generator)
    extents = [(size - 1) * dilation + 1 for size in window]
    x = normal((2, *(int(generator.integers(1, 9)) for _ in window), 2), generator)
    padding = tuple(
        (low, max(int(generator.integers(0, extent + 1)), extent - size - low))
        for extent, size, low in zip(extents, x.shape[1:-1], generator.integers(0, extents) + 0, strict=True)
    )
    padding = tuple((int(low), int(high)) for low, high in padding)
    expected = conv(x, kernel, padding=padding, strides=stride, kernel_dilation=dilation)
    pieces = split(kernel, most, padding=padding, kernel_dilation=dilation)
    assert len(pieces) == np.prod([-(-size // limit) for size, limit in axes])
    total = 0
    for piece, own in pieces:
        assert all(size <= limit for size, limit in zip(piece.shape[:-2], most, strict=True))
        total = total + conv(x, piece, padding=own, strides=stride, kernel_dilation=dilation)
    assert_close(total, expected)
    assert sum(piece.size for piece, _ in pieces) == kernel.size


def test_the_pieces_of_a_dilated_kernel(rng):
    kernel, x = normal((7, 5, 2, 3), rng), normal((1, 14, 15, 2), rng)
    options = {"strides": 2, "kernel_dilation": (3, 2)}
    pieces = split(kernel, 3, padding=((5, 8), (4, 3)), kernel_dilation=(3, 2))
    total = sum(conv(x, piece, padding=own, **options) for piece, own in pieces)
    assert_close(total, conv(x, kernel, padding=((5, 8), (4, 3)), **options))


@pytest.mark.parametrize("padding", ["SAME", "same_lower", "VALID"])
@pytest.mark.parametrize("size", [4, 5])
def test_padding_by_name_at_stride_one(padding, size, rng):
    kernel, x = normal((size, 7, 2, 3), rng), normal((1, 9, 10, 2), rng)
    pieces = split(kernel, (3, 2), padding=padding)
    assert_close(sum(conv(x, piece, padding=own) for piece, own in pieces), conv(x, kernel, padding=padding))


def test_pieces_of_groups_and_layouts(rng):
    kernel, x = normal((6, 2, 5, 5), rng), normal((2, 4, 8, 8), rng)
    options = {"layout": "NCHW", "feature_group_count": 2}
    pieces = split(kernel, 3, layout="NCHW")
    assert [piece.shape for piece, _ in pieces] == [(6, 2, *window) for window in itertools.product((3, 2), (3, 2))]
    assert_close(sum(conv(x, piece, padding=own, **options) for piece, own in pieces), conv(x, kernel, **options))


@pytest.mark.parametrize(
    ("window", "options", "message"),
    [
        (0, {}, "split: window_shape must be at least 1 on every axis, got 0"),
        ((3, 3, 3), {}, r"split: window_shape must be an int or a sequence of 2 ints, got \(3, 3, 3\)"),
        (3, {"padding": "FULL"}, "split: padding must be one of .*got 'FULL'"),
        (3, {"kernel_dilation": 0}, "split: kernel_dilation must be at least 1"),
    ],
)
def test_errors_of_split(window, options, message):
    with pytest.raises(ValueError, match=message):
        split(np.ones((5, 5, 1, 1), np.float32), window, **options)
