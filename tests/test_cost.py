"""Formulas of cost against counters that walk every loop, what is really executed, and XLA's own analysis."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcnn import (
    Cost,
    KernelChain,
    avg_pool,
    conv,
    conv_cost,
    conv_output_shape,
    conv_transpose,
    pool_cost,
    pool_output_shape,
    separable,
)
from support.counting import drawn_chains, drawn_options, elements, walk_axis, walk_conv, walk_executed, walk_transposed


def struct(shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def chain_of(shapes, counts):
    return KernelChain(tuple(map(struct, shapes)), counts)


def explicit(padding, sizes, window, strides, dilation):
    """(low, high) of each axis, the names by lax."""
    rank = len(sizes)
    spans = [(taps - 1) * holes + 1 for taps, holes in zip(window, dilation, strict=True)]
    if isinstance(padding, str):
        if padding == "CAUSAL":
            return ((spans[0] - 1, 0),)
        return tuple(map(tuple, lax.padtype_to_pads(sizes, spans, strides, padding.upper())))
    if isinstance(padding, int):
        return ((padding, padding),) * rank
    return tuple(pair if isinstance(pair, tuple) else (pair, pair) for pair in padding)


# One kernel


@st.composite
def drawn_layers(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    return {
        "batch": draw(st.integers(0, 2)),
        "sizes": tuple(draw(st.integers(1, 6 if rank < 3 else 4)) for _ in range(rank)),
        "window": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "in_features": groups * draw(st.integers(1, 2)),
        "out_features": groups * draw(st.integers(1, 2)),
        "groups": groups,
    }, draw(drawn_options(rank))


@settings(max_examples=150)
@given(drawn_layers(), st.booleans())
def test_conv_cost_is_what_the_loops_count(drawn, bias):
    layer, options = drawn
    rank, ones = len(layer["sizes"]), (1,) * len(layer["sizes"])
    holes = options.get("input_dilation", ones)
    sizes = tuple((size - 1) * step + 1 for size, step in zip(layer["sizes"], holes, strict=True))
    padding = explicit(options["padding"], sizes, layer["window"], options["strides"], options["kernel_dilation"])
    padded = [size + low + high for size, (low, high) in zip(sizes, padding, strict=True)]
    spans = [(w - 1) * d + 1 for w, d in zip(layer["window"], options["kernel_dilation"], strict=True)]
    assume(all(size >= span for size, span in zip(padded, spans, strict=True)))
    if options.get("padding_mode"):  # the padding repeats real pixels
        walked = {**layer, "sizes": tuple(padded)}
        padding = ((0, 0),) * rank
    else:
        walked = layer
    count = walk_conv(
        **walked,
        strides=options["strides"],
        padding=padding,
        kernel_dilation=options["kernel_dilation"],
        input_dilation=holes,
    )
    x = (layer["batch"], *layer["sizes"], layer["in_features"])
    kernel = (*layer["window"], layer["in_features"] // layer["groups"], layer["out_features"])
    y = (layer["batch"], *count.outputs, layer["out_features"])
    result = conv_cost(x, kernel, feature_group_count=layer["groups"], bias=bias, **options)
    biases = layer["out_features"] if bias else 0
    assert result == Cost(
        macs=count.macs,
        macs_valid=count.valid,
        flops=2 * count.macs + (math.prod(y) if bias else 0),
        params=math.prod(kernel) + biases,
        bytes=4 * (elements(x, kernel, y) + biases),
    )


@st.composite
def drawn_transposed(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    return {
        "batch": draw(st.integers(0, 2)),
        "sizes": tuple(draw(st.integers(1, 4 if rank < 3 else 3)) for _ in range(rank)),
        "window": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "in_features": groups * draw(st.integers(1, 2)),
        "out_features": groups * draw(st.integers(1, 2)),
        "groups": groups,
        "strides": strides,
        "kernel_dilation": dilation,
        "output_padding": tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilation, strict=True)),
    }, draw(
        st.one_of(st.sampled_from(["SAME", "SAME_LOWER"]), st.tuples(*[st.tuples(*[st.integers(-1, 2)] * 2)] * rank))
    )


@settings(max_examples=150)
@given(drawn_transposed(), st.booleans())
def test_transposed_cost_counts_input_pixels(drawn, bias):
    layer, padding = drawn
    rank = len(layer["sizes"])
    pairs = padding
    if isinstance(padding, str):
        results = [size * stride for size, stride in zip(layer["sizes"], layer["strides"], strict=True)]
        pairs = explicit(padding, results, layer["window"], layer["strides"], layer["kernel_dilation"])
        # The output padding that gives size * stride results.
        spans = [(w - 1) * d + 1 for w, d in zip(layer["window"], layer["kernel_dilation"], strict=True)]
        walked_extra = tuple(
            results[a] - ((layer["sizes"][a] - 1) * layer["strides"][a] + spans[a] - sum(pairs[a])) for a in range(rank)
        )
        layer["output_padding"] = (0,) * rank
    else:
        walked_extra = layer["output_padding"]
    count = walk_transposed(**{**layer, "output_padding": walked_extra}, padding=pairs)
    assume(min(count.outputs) >= 1)
    x = (layer["batch"], *layer["sizes"], layer["out_features"])
    kernel = (*layer["window"], layer["in_features"] // layer["groups"], layer["out_features"])
    y = (layer["batch"], *count.outputs, layer["in_features"])
    options = {name: layer[name] for name in ("strides", "kernel_dilation", "output_padding")}
    options |= {"feature_group_count": layer["groups"], "padding": padding}
    biases = layer["in_features"] if bias else 0
    assert conv_cost(x, kernel, transposed=True, bias=bias, **options) == Cost(
        macs=count.macs,
        macs_valid=count.valid,
        flops=2 * count.macs + (math.prod(y) if bias else 0),
        params=math.prod(kernel) + biases,
        bytes=4 * (elements(x, kernel, y) + biases),
    )


def test_a_transposed_convolution_costs_what_the_convolution_does_whose_adjoint_it_is():
    forward = conv_cost((2, 8, 9, 4), (3, 3, 2, 6), strides=2, padding=1, feature_group_count=2)
    back = conv_cost(
        (2, 4, 5, 6), (3, 3, 2, 6), strides=2, padding=1, feature_group_count=2, output_padding=(1, 0), transposed=True
    )
    assert back == forward


@pytest.mark.parametrize(("dtype", "itemsize"), [(None, 4), (jnp.bfloat16, 2), (np.float64, 8), ("int8", 1)])
def test_bytes_are_those_of_the_preferred_dtype(dtype, itemsize):
    result = conv_cost((1, 5, 5, 2), (3, 3, 2, 4), padding="VALID", bias=True, preferred_element_type=dtype)
    assert result.bytes == itemsize * (50 + 72 + 36 + 4)


@pytest.mark.parametrize(
    ("layout", "x", "kernel"),
    [
        ("NHWC", (2, 5, 7, 3), (2, 3, 3, 4)),
        ("NCHW", (2, 3, 5, 7), (4, 3, 2, 3)),
        ("HWNC", (5, 7, 2, 3), (2, 3, 3, 4)),
        (("NCHW", "HWIO", "NHWC"), (2, 3, 5, 7), (2, 3, 3, 4)),
        (("NWCH", "OWHI", "CNHW"), (2, 7, 3, 5), (4, 3, 2, 3)),
    ],
)
def test_layout_changes_no_cost(layout, x, kernel):
    strides = (2, 1) if layout[0] == "NWCH" else (1, 2)  # in the kernel's order of axes: width first
    assert conv_cost(x, kernel, strides=strides, layout=layout) == conv_cost((2, 5, 7, 3), (2, 3, 3, 4), strides=(1, 2))


def test_batch_axes_multiply():
    one = conv_cost((5, 5, 2), (3, 3, 2, 4))
    six = conv_cost((2, 3, 5, 5, 2), (3, 3, 2, 4))
    assert (six.macs, six.macs_valid, six.flops) == (6 * one.macs, 6 * one.macs_valid, 6 * one.flops)
    assert six.params == one.params == 72
    assert six.bytes == 4 * (6 * 50 + 72 + 6 * 100)


# Chains


def walked_chain(x_shape, chain, transposed=False, **options):
    """Returns the multiplications of a chain, and the bytes of each array once, of intermediate results twice."""
    function = conv_transpose if transposed else conv
    return walk_executed(lambda x, chain: function(x, chain, **options), struct(x_shape), chain)


def nothing_is_cropped(options):
    padding = options["padding"]
    return not isinstance(padding, tuple) or all(min(pair) >= 0 for pair in padding if isinstance(pair, tuple))


@settings(max_examples=60)
@given(st.data(), drawn_chains(), st.integers(1, 2))
def test_a_chain_costs_what_executing_it_multiplies(data, drawn, batch):
    shapes, counts = drawn
    rank = len(shapes[0]) - 2
    options = data.draw(drawn_options(rank))
    x = (batch, *(data.draw(st.integers(2, 6)) for _ in range(rank)), shapes[0][-2] * counts[0])
    chain = chain_of(shapes, counts)
    try:
        result = conv_cost(x, chain, **options)
    except ValueError as error:
        assert "larger than its padded input" in str(error)  # noqa: PT017 - a draw without output
        assume(False)
    macs, valid = walked_chain(x, chain, **options)
    assert result.macs == macs
    assert result.flops == 2 * macs
    assert result.params == sum(map(math.prod, shapes)) == chain.num_params
    # A crop is executed by a slice of an input whose padding and holes are then values like others.
    if nothing_is_cropped(options):
        assert result.macs_valid == valid
    else:
        assert result.macs_valid <= valid


@settings(max_examples=40)
@given(st.data(), drawn_chains(ranks=(1, 2)))
def test_a_transposed_chain_costs_what_executing_it_multiplies(data, drawn):
    shapes, counts = drawn
    rank = len(shapes[0]) - 2
    options = data.draw(drawn_options(rank, padding_modes=False))
    options.pop("input_dilation")
    assume(nothing_is_cropped(options))
    x = (1, *(data.draw(st.integers(2, 5)) for _ in range(rank)), shapes[-1][-1])
    chain = chain_of(shapes, counts)
    if not (isinstance(options["padding"], str) and options["padding"].upper().startswith("SAME")):
        options["output_padding"] = tuple(data.draw(st.integers(0, stride - 1)) for stride in options["strides"])
    try:
        result = conv_cost(x, chain, transposed=True, **options)
    except ValueError as error:
        assert "no output is left" in str(error)  # noqa: PT017 - a draw without output
        assume(False)
    assert (result.macs, result.macs_valid) == walked_chain(x, chain, transposed=True, **options)
    assert (result.flops, result.params) == (2 * result.macs, chain.num_params)


def test_a_strided_pair_in_numbers():
    """3x1 then 1x3, 4 channels between, stride 2, on 8x8: the column strides first, so the row sees 4x8 pixels."""
    chain = chain_of([(3, 1, 2, 4), (1, 3, 4, 6)], (1, 1))
    result = conv_cost((1, 8, 8, 2), chain, strides=2, padding=1)
    assert result.macs == 4 * 8 * 3 * 2 * 4 + 4 * 4 * 3 * 4 * 6
    # One of the 3 taps of the first output falls on padding, on each axis.
    assert result.macs_valid == 8 * (4 * 3 - 1) * 2 * 4 + 4 * (4 * 3 - 1) * 4 * 6
    assert result.params == 3 * 2 * 4 + 3 * 4 * 6
    assert result.bytes == 4 * (8 * 8 * 2 + 24 + 2 * (4 * 8 * 4) + 72 + 4 * 4 * 6)


def test_a_stacked_pair_in_numbers():
    """3x3 after 3x3 for 5x5 SAME on 6x6: the first link sees all of the padding and computes 8x8 pixels."""
    chain = chain_of([(3, 3, 2, 2), (3, 3, 2, 2)], (1, 1))
    result = conv_cost((1, 6, 6, 2), chain)
    assert result.macs == 64 * 9 * 4 + 36 * 9 * 4
    # On each axis 3 * 8 taps of the first link, 3 at each end on padding.
    assert result.macs_valid == 18 * 18 * 4 + 36 * 9 * 4
    assert result.bytes == 4 * (72 + 36 + 2 * 128 + 36 + 72)


def test_a_depthwise_separable_chain_in_numbers():
    chain = chain_of([(3, 3, 1, 8), (1, 1, 8, 16)], (8, 1))
    result = conv_cost((1, 10, 10, 8), chain, strides=2, padding="VALID")
    assert result.macs == 16 * 9 * 8 + 16 * 8 * 16
    assert result.params == 9 * 8 + 8 * 16


def test_a_chain_with_a_bias():
    chain = chain_of([(3, 1, 2, 4), (1, 3, 4, 6)], (1, 1))
    plain, biased = (conv_cost((1, 8, 8, 2), chain, bias=bias) for bias in (False, True))
    assert biased == plain + Cost(flops=64 * 6, params=6, bytes=24)


def test_a_chain_of_one_link_costs_what_its_kernel_does():
    kernel = np.ones((3, 2, 2, 6), np.float32)
    for options in ({}, {"strides": 2, "padding": ((1, 0), (0, 2))}, {"padding_mode": "circular"}):
        chain = KernelChain((kernel,), (2,))
        dense = conv_cost((2, 7, 7, 4), kernel.shape, feature_group_count=2, **options)
        assert conv_cost((2, 7, 7, 4), chain, **options) == dense


@pytest.mark.parametrize(("in_features", "out_features", "window"), [(3, 5, (3, 3)), (4, 2, (5, 2)), (2, 2, (2, 3))])
def test_separable_breaks_even_where_its_formula_says(in_features, out_features, window, rng):
    """R < I O kh kw / (I kh + O kw), at stride 1 on an image so large that borders do not matter."""
    kh, kw = window
    kernel = rng.standard_normal((kh, kw, in_features, out_features)).astype(np.float32)
    limit = in_features * out_features * kh * kw / (in_features * kh + out_features * kw)
    dense = conv_cost((1, 1000, 1000, in_features), kernel.shape, padding="VALID").macs
    kept = 0
    for rank in range(1, min(kh * in_features, kw * out_features) + 1):
        macs = conv_cost((1, 1000, 1000, in_features), separable(kernel, rank=rank), padding="VALID").macs
        assert (macs < dense) == (rank < limit)
        assert macs == pytest.approx(dense * rank / limit, rel=5e-3)
        kept += rank < limit
    assert kept >= 1


# XLA


@pytest.mark.parametrize(
    ("x", "kernel", "options"),
    [
        ((1, 5, 5, 1), (3, 3, 1, 1), {"padding": "VALID"}),
        ((1, 5, 5, 1), (3, 3, 1, 1), {}),
        ((2, 9, 8, 3), (3, 2, 3, 4), {"strides": (2, 1), "padding": ((2, 1), (0, 1))}),
        ((1, 9, 8, 3), (3, 3, 3, 4), {"kernel_dilation": 2}),
        ((1, 6, 5, 3), (3, 3, 3, 4), {"input_dilation": (2, 3), "strides": (1, 2)}),
        ((3, 11, 4), (4, 4, 2), {"padding": "CAUSAL"}),
        ((1, 4, 5, 6, 2), (3, 2, 2, 2, 3), {}),
        ((1, 7, 7, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    ],
)
def test_macs_valid_is_half_of_what_xla_counts(x, kernel, options):
    lowered = jax.jit(lambda x, kernel: conv(x, kernel, method="direct", **options)).lower(struct(x), struct(kernel))
    flops = (lowered.cost_analysis() or {}).get("flops", -1)
    if flops <= 0:
        pytest.skip("this XLA does not count")
    assert flops / 2 == conv_cost(x, kernel, **options).macs_valid


# Pools


@settings(max_examples=100)
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
def test_pool_cost_is_what_the_loops_count(sizes, window, strides, dilation, padding):
    axes = [walk_axis(sizes[a], window[a], strides[a], *padding[a], dilation[a]) for a in range(2)]
    assume(all(axes))
    comparisons = pixels = 0
    for _channel in range(3):
        for pixel in itertools.product(*axes):
            pixels += 1
            for tap, _ in enumerate(itertools.product(*pixel)):
                comparisons += tap > 0  # the first tap is compared with nothing
    x = (1, *sizes, 3)
    options = {"strides": strides, "window_dilation": dilation, "padding": padding}
    assert pool_cost(x, window, **options) == Cost(flops=comparisons, bytes=4 * (math.prod(x) + pixels))


def test_pool_cost_in_ceil_mode_counts_the_windows_that_hang_over():
    floor, ceil = (pool_cost((2, 7, 7, 8), 2, strides=2, ceil_mode=ceil_mode) for ceil_mode in (False, True))
    assert floor == Cost(flops=2 * 9 * 8 * 3, bytes=4 * (2 * 49 * 8 + 2 * 9 * 8))
    assert ceil == Cost(flops=2 * 16 * 8 * 3, bytes=4 * (2 * 49 * 8 + 2 * 16 * 8))


@pytest.mark.parametrize("reducer", [lax.max, lax.add])
@pytest.mark.parametrize("options", [{}, {"strides": 2, "padding": "SAME"}, {"window_dilation": 2}])
def test_pool_flops_are_what_xla_counts(reducer, options):
    def pool(x):
        strides, dilation = (
            (1, options.get(name, 1), options.get(name, 1), 1) for name in ("strides", "window_dilation")
        )
        initial = np.float32(-np.inf if reducer is lax.max else 0)
        padding = options.get("padding", "VALID")
        return lax.reduce_window(x, initial, reducer, (1, 3, 3, 1), strides, padding, window_dilation=dilation)

    flops = (jax.jit(pool).lower(struct((2, 9, 9, 4))).cost_analysis() or {}).get("flops", -1)
    if flops <= 0:
        pytest.skip("this XLA does not count")
    assert flops == pool_cost((2, 9, 9, 4), 3, **options).flops


def test_pool_cost_has_avg_pools_shape():
    x = (1, 4, 11, 9)
    outputs = math.prod(jax.eval_shape(lambda x: avg_pool(x, (3, 2), layout="NCHW", strides=2), struct(x)).shape)
    assert pool_cost(x, (3, 2), layout="NCHW", strides=2).flops == outputs * 5


# Cost


def test_shapes_may_be_lists_and_arrays():
    x, kernel = (1, 9, 8, 4), (3, 2, 2, 6)
    for kind in (list, np.array, jnp.array):
        cost = conv_cost(kind(x), kind(kernel), feature_group_count=2)
        assert cost == conv_cost(x, kernel, feature_group_count=2)
        assert all(type(value) is int for value in dataclasses.astuple(cost))
        assert pool_cost(kind(x), 2) == pool_cost(x, 2)
        assert conv_output_shape(kind(x), kind(kernel), feature_group_count=2) == (1, 9, 8, 6)
        assert pool_output_shape(kind(x), kind((2, 2))) == (1, 8, 7, 4)
    assert conv_cost(jnp.zeros(x).shape, jnp.zeros(kernel), feature_group_count=2) == cost


def test_costs_add_up():
    costs = [Cost(1, 2, 3, 4, 5), Cost(10, 20, 30, 40, 50), Cost(bytes=100)]
    assert sum(costs, Cost()) == Cost(11, 22, 33, 44, 155)
    with pytest.raises(TypeError, match="unsupported operand"):
        Cost() + 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: conv_cost((1, 5, 5, 3), (3, 3, 2, 4)),
            ValueError,
            r"conv_cost: x has 3 channels and feature_group_count=1",
        ),
        (
            lambda: conv_cost((1, 2, 2, 3), (3, 3, 3, 4), padding="VALID"),
            ValueError,
            r"conv_cost: the window is larger than",
        ),
        (
            lambda: conv_cost((1, 5, 5, 3), (3, 3, 3, 4), transposed=True),
            ValueError,
            r"conv_cost: x has 3 channels, so kernel must have 3 output channels, got 4",
        ),
        (
            lambda: conv_cost((1, 5, 5, 4), (3, 3, 3, 4), transposed=True, padding=1, strides=2, output_padding=2),
            ValueError,
            r"output_padding must be smaller than the stride or the dilation, but on spatial axis 0 it is 2 with",
        ),
        (
            lambda: conv_cost((1, 5, 5, 3), chain_of([(3, 3, 3, 4)], (1,)), strides=0),
            ValueError,
            r"strides must be at least 1",
        ),
        (lambda: pool_cost((1, 2, 2, 3), 3), ValueError, r"pool_cost: the window is larger than its padded input"),
    ],
)
def test_cost_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
