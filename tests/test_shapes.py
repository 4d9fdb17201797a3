"""Shapes by arithmetic against walked loops, and against what the functions give."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcnn import KernelChain, conv, conv_output_shape, max_pool, pool_output_shape
from support.counting import walk_axis


def struct(shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


@st.composite
def drawn_conv(draw):
    rank = draw(st.integers(1, 3))

    def each(values):
        return tuple(draw(values) for _ in range(rank))

    case = {
        "sizes": each(st.integers(1, 7)),
        "window": each(st.integers(1, 4)),
        "strides": each(st.integers(1, 3)),
        "kernel_dilation": each(st.integers(1, 2)),
        "input_dilation": each(st.integers(1, 3)),
        "padding": each(st.tuples(st.integers(-1, 3), st.integers(-1, 3))),
    }
    return case


def walked_outputs(case, padding):
    return tuple(
        len(walk_axis(size, window, stride, low, high, dilation, holes)) if low + high + (size - 1) * holes >= 0 else 0
        for size, window, stride, (low, high), dilation, holes in zip(
            case["sizes"],
            case["window"],
            case["strides"],
            padding,
            case["kernel_dilation"],
            case["input_dilation"],
            strict=True,
        )
    )


@settings(max_examples=200)
@given(drawn_conv(), st.sampled_from([(), (2,), (2, 3)]))
def test_conv_output_shape_counts_positions(case, batch):
    options = {name: case[name] for name in ("strides", "kernel_dilation", "input_dilation", "padding")}
    shape = partial(conv_output_shape, (*batch, *case["sizes"], 4), (*case["window"], 2, 6), feature_group_count=2)
    outputs = walked_outputs(case, case["padding"])
    if 0 in outputs:
        with pytest.raises(ValueError, match="conv_output_shape: the window is larger than its padded input"):
            shape(**options)
    else:
        assert shape(**options) == (*batch, *outputs, 6)


@settings(max_examples=100)
@given(drawn_conv(), st.sampled_from(["SAME", "same_lower", "VALID", "CAUSAL"]))
def test_conv_output_shape_with_named_padding(case, name):
    rank = len(case["sizes"])
    if name == "CAUSAL" and rank > 1:
        name = "SAME"
    dilated = [(n - 1) * d + 1 for n, d in zip(case["sizes"], case["input_dilation"], strict=True)]
    spans = [(n - 1) * d + 1 for n, d in zip(case["window"], case["kernel_dilation"], strict=True)]
    if name == "CAUSAL":
        padding = [(spans[0] - 1, 0)]
    else:
        padding = lax.padtype_to_pads(dilated, spans, case["strides"], name.upper())
    outputs = walked_outputs(case, padding)
    options = {name: case[name] for name in ("strides", "kernel_dilation", "input_dilation")}
    if 0 in outputs:
        with pytest.raises(ValueError, match="larger than its padded input"):
            conv_output_shape((1, *case["sizes"], 1), (*case["window"], 1, 1), padding=name, **options)
    else:
        result = conv_output_shape((1, *case["sizes"], 1), (*case["window"], 1, 1), padding=name, **options)
        assert result == (1, *outputs, 1)


@pytest.mark.parametrize(
    ("x", "kernel", "options", "expected"),
    [
        ((1, 224, 224, 3), (7, 7, 3, 64), {"strides": 2}, (1, 112, 112, 64)),
        ((1, 227, 227, 3), (11, 11, 3, 96), {"strides": 4, "padding": "VALID"}, (1, 55, 55, 96)),
        ((8, 3, 32, 32), (16, 3, 5, 5), {"padding": "valid", "layout": "NCHW"}, (8, 16, 28, 28)),
        ((100, 4), (8, 4, 5), {"padding": "causal"}, (100, 5)),
        ((2, 3, 9, 9, 9, 4), (3, 3, 3, 4, 5), {"strides": (1, 2, 3)}, (2, 3, 9, 5, 3, 5)),
        ((5, 5, 2), (3, 3, 2, 1), {"padding_mode": "circular"}, (5, 5, 1)),
        ((0, 5, 5, 2), (3, 3, 2, 1), {}, (0, 5, 5, 1)),
        ((1, 5, 5, 0), (3, 3, 0, 3), {}, (1, 5, 5, 3)),
        ((1, 5, 5, 2), (3, 3, 2, 0), {}, (1, 5, 5, 0)),
        ((2, 5, 7, 3), (2, 2, 3, 4), {"layout": ("NHWC", "HWIO", "NCHW"), "padding": "VALID"}, (2, 4, 4, 6)),
    ],
)
def test_conv_output_shape_is_convs(x, kernel, options, expected):
    assert conv_output_shape(x, kernel, **options) == expected
    assert jax.eval_shape(partial(conv, **options), struct(x), struct(kernel)).shape == expected


def test_convs_own_options_may_be_passed_on():
    options = {"precision": "highest", "preferred_element_type": np.float32, "method": "direct"}
    assert conv_output_shape((1, 5, 5, 1), (3, 3, 1, 1), padding="VALID", **options) == (1, 3, 3, 1)


@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, ((2, 0), (0, 1))])
def test_a_chain_has_its_dense_kernels_output_shape(strides, padding):
    chain = KernelChain((np.ones((3, 1, 2, 4), np.float32), np.ones((2, 5, 4, 3), np.float32)))
    options = {"strides": strides, "padding": padding}
    expected = conv_output_shape((2, 9, 11, 2), (4, 5, 2, 3), **options)
    assert conv_output_shape((2, 9, 11, 2), chain, **options) == expected
    assert jax.eval_shape(partial(conv, **options), struct((2, 9, 11, 2)), chain).shape == expected


@pytest.mark.parametrize(
    ("x", "kernel", "options", "error", "message"),
    [
        (
            (8, 32, 32, 3),
            (5, 5, 1, 64),
            {},
            ValueError,
            r"conv_output_shape: x has 3 channels and feature_group_count=1, so kernel must have 3 input channels, "
            r"got 1 \(x \(8, 32, 32, 3\), kernel \(5, 5, 1, 64\)\)",
        ),
        (
            (1, 5, 5, 4),
            (3, 3, 4, 4),
            {"feature_group_count": 2},
            ValueError,
            r"so kernel must have 2 = 4 / 2 input channels, got 4",
        ),
        (
            (1, 5, 5, 4),
            (3, 3, 2, 3),
            {"feature_group_count": 2},
            ValueError,
            r"kernel's 3 output channels do not divide into feature_group_count=2 groups: 3 % 2 = 1",
        ),
        (
            (1, 5, 5, 5),
            (3, 3, 2, 4),
            {"feature_group_count": 2},
            ValueError,
            r"x's 5 channels do not divide into feature_group_count=2 groups: 5 % 2 = 1",
        ),
        ((1, 2, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}, ValueError, r"on spatial axis 0: it spans 3 .* has 2 \+"),
        ((5, 1), (3, 3, 1, 1), {}, ValueError, r"x must have 2 spatial axes and a feature axis, 3 in all"),
        ((1, 5, 1), (3, 3), {}, ValueError, r"kernel must have at least one window axis.* got shape \(3, 3\)"),
        ((1, 5, 5, 1), (0, 3, 1, 1), {}, ValueError, r"the kernel's window \(0, 3\) is empty"),
        ((1, 5, 5, 1), (3, 3, 1, 1), {"feature_group_count": 0}, ValueError, r"feature_group_count must be at least 1"),
        (
            (1, 5, 5, 1),
            (3, 3, 1, 1),
            {"feature_group_count": 1.0},
            TypeError,
            r"feature_group_count must be an int, got 1",
        ),
        (
            (1, 5, 5, 1),
            (3, 3, 1, 1),
            {"padding_mode": "mirror"},
            ValueError,
            r"must be one of 'zeros', 'reflect', 'rep",
        ),
        (
            (1, 5, 5, 1),
            (3, 3, 1, 1),
            {"padding_mode": "reflect", "input_dilation": 2},
            ValueError,
            r"padding_mode 'reflect' does not go with input_dilation \(2, 2\)",
        ),
        ((1, 5, 1), (3, 1, 1), {"padding": (1, 1)}, ValueError, r"for one axis write \(\(low, high\),\)"),
        ((1, 5, 1), (3, 1, 1), {"strides": (1, 1)}, ValueError, r"strides must be an int or a sequence of 1 ints"),
        ((1, 5, 1), (3, 1, 1), {"kernel_dilation": 0}, ValueError, r"kernel_dilation must be at least 1 on every axis"),
        ((1, 5, 1), (3, 1, 1), {"input_dilation": 0}, ValueError, r"input_dilation must be at least 1 on every axis"),
    ],
)
def test_conv_output_shape_errors(x, kernel, options, error, message):
    with pytest.raises(error, match=message):
        conv_output_shape(x, kernel, **options)


# Pools


@settings(max_examples=200)
@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    window=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(-1, 2))] * 2),
)
def test_pool_output_shape_counts_positions(sizes, window, strides, dilation, padding):
    outputs = tuple(
        len(walk_axis(sizes[a], window[a], strides[a], *padding[a], dilation[a]))
        if sizes[a] + sum(padding[a]) > 0
        else 0
        for a in range(2)
    )
    shape = partial(
        pool_output_shape, (2, *sizes, 3), window, strides=strides, window_dilation=dilation, padding=padding
    )
    if 0 in outputs:
        with pytest.raises(ValueError, match="pool_output_shape: the window is larger than its padded input"):
            shape()
    else:
        assert shape() == (2, *outputs, 3)


def test_ceil_mode_is_torchs():
    torch = pytest.importorskip("torch")
    for size, window, stride, pad in itertools.product(range(3, 10), range(2, 4), range(1, 4), range(2)):
        x = torch.zeros(1, 1, size, size + 1)
        expected = torch.nn.functional.max_pool2d(x, window, stride, pad, ceil_mode=True).shape
        options = {"strides": stride, "padding": pad, "ceil_mode": True}
        assert pool_output_shape(x.shape, window, layout="NCHW", **options) == tuple(expected)


@pytest.mark.parametrize(
    ("x", "window", "options", "expected"),
    [
        ((1, 7, 7, 8), 2, {"strides": 2}, (1, 3, 3, 8)),
        ((1, 7, 7, 8), 2, {"strides": 2, "ceil_mode": True}, (1, 4, 4, 8)),
        ((1, 7, 7, 8), (3, 3), {"strides": 2, "padding": "SAME"}, (1, 4, 4, 8)),
        ((7, 7, 8), (3, 3), {}, (5, 5, 8)),
        ((2, 3, 7, 8), (3,), {"window_dilation": 3}, (2, 3, 1, 8)),
        ((1, 8, 7, 7), 3, {"layout": "NCHW"}, (1, 8, 5, 5)),
        ((8, 7, 7), 3, {"layout": "CHW"}, (8, 5, 5)),
        ((0, 5, 5, 2), 3, {}, (0, 3, 3, 2)),
        ((1, 5, 5, 5, 2), 3, {}, (1, 3, 3, 3, 2)),
    ],
)
def test_pool_output_shape_is_max_pools(x, window, options, expected):
    assert pool_output_shape(x, window, **options) == expected
    assert jax.eval_shape(lambda x: max_pool(x, window, **options), struct(x)).shape == expected


@pytest.mark.parametrize(
    ("x", "window", "options", "message"),
    [
        ((5, 5), 3, {}, r"x must have one batch axis, spatial axes and a feature axis, got shape \(5, 5\)"),
        ((1, 5, 5, 1), (3, 3), {"layout": "NCH"}, r"layout 'NCH' has 1 spatial axes, but .* has 2"),
        (
            (1, 5, 5, 1),
            6,
            {},
            r"on spatial axis 0: it spans 6 \(dilation included\), the input has 5 \+ padding 0 \+ 0 = 5",
        ),
        ((1, 5, 5, 1), 0, {}, r"window_shape must be at least 1 on every axis, got 0"),
        (
            (1, 5, 5, 1),
            (3, 3),
            {"strides": (1, 1, 1)},
            r"strides must be an int or a sequence of 2 ints, got \(1, 1, 1\)",
        ),
        ((1, 5, 5, 1), (3, 3), {"padding": "FULL"}, r"pool_output_shape: padding must be one of 'SAME'"),
    ],
)
def test_pool_output_shape_errors(x, window, options, message):
    with pytest.raises(ValueError, match=message):
        pool_output_shape(x, window, **options)
