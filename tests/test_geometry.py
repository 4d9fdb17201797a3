"""Paddings and output sizes against loops, lax and torch."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import (
    axis_values,
    ceil_sizes,
    dilated_size,
    output_sizes,
    padding_name,
    padding_pairs,
    resolve_padding,
    transposed_sizes,
    window_hits,
)
from support.counting import walk_axis

GRID = list(itertools.product(range(1, 13), range(1, 8), range(1, 6)))  # size, window, stride


# Options as ints and sequences


@pytest.mark.parametrize(
    ("value", "rank", "expected"),
    [
        (3, 1, (3,)),
        (3, 3, (3, 3, 3)),
        ((1, 2), 2, (1, 2)),
        ([1, 2, 3], 3, (1, 2, 3)),
        (np.int64(4), 2, (4, 4)),
        (np.array([4, 5]), 2, (4, 5)),
    ],
)
def test_an_int_or_a_sequence_gives_one_int_for_each_axis(value, rank, expected):
    values = axis_values("strides", value, rank)
    assert values == expected
    assert all(type(item) is int for item in values)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, r"conv: strides must be at least 1 on every axis, got 0"),
        ((2, -1), ValueError, r"conv: strides must be at least 1 on every axis, got \(2, -1\)"),
        ((1, 2, 3), ValueError, r"conv: strides must be an int or a sequence of 2 ints, got \(1, 2, 3\) with 3 values"),
        ((), ValueError, r"got \(\) with 0 values, one for each of 2 spatial axes needed"),
        (1.5, TypeError, r"conv: strides must be an int or a sequence of 2 ints, got 1\.5"),
        ((1, 1.5), TypeError, r"a sequence of 2 ints, got \(1, 1\.5\)"),
        ("22", TypeError, r"a sequence of 2 ints, got '22'"),
        (None, TypeError, r"a sequence of 2 ints, got None"),
    ],
)
def test_other_values_are_refused_by_name(value, error, message):
    with pytest.raises(error, match=message), ErrorPrefix("conv"):
        axis_values("strides", value, 2)


@pytest.mark.parametrize(("minimum", "refused"), [(0, -1), (1, 0)])
def test_the_minimum_of_an_option_is_allowed_and_one_less_is_not(minimum, refused):
    assert axis_values("output_padding", minimum, 1, minimum=minimum) == (minimum,)
    with pytest.raises(ValueError, match=f"output_padding must be at least {minimum} on every axis, got {refused}"):
        axis_values("output_padding", refused, 1, minimum=minimum)


@pytest.mark.parametrize(("size", "dilation"), list(itertools.product(range(6), range(1, 5))))
def test_dilated_size_counts_the_points_and_the_holes_between_them(size, dilation):
    line = [0] * size
    for point in range(size - 1, 0, -1):
        line[point:point] = [1] * (dilation - 1)
    assert dilated_size(size, dilation) == len(line)


# Padding


def same_by_search(size, window, stride, lower):
    """The smallest total padding that gives ceil(size / stride) outputs, halved, the odd pixel last (or first)."""
    wanted = len(range(0, size, stride))
    total = next(total for total in range(99) if len(walk_axis(size, window, stride, 0, total)) >= wanted)
    small, large = total // 2, total - total // 2
    return (large, small) if lower else (small, large)


@pytest.mark.parametrize("name", ["SAME", "same", "Same"])
def test_same_is_laxs_over_many_sizes(name):
    for size, window, stride in GRID:
        (pair,) = resolve_padding(name, (size,), (window,), (stride,))
        assert pair == tuple(lax.padtype_to_pads((size,), (window,), (stride,), "SAME")[0]), (size, window, stride)
        assert pair == same_by_search(size, window, stride, lower=False), (size, window, stride)
        assert output_sizes((size,), (pair,), (window,), (stride,)) == (-(-size // stride),)


@pytest.mark.parametrize("name", ["SAME_LOWER", "same_lower", "Same_Lower"])
def test_same_lower_puts_the_odd_pixel_first(name):
    odd = 0
    for size, window, stride in GRID:
        (pair,) = resolve_padding(name, (size,), (window,), (stride,))
        assert pair == tuple(lax.padtype_to_pads((size,), (window,), (stride,), "SAME_LOWER")[0]), (
            size,
            window,
            stride,
        )
        assert pair == same_by_search(size, window, stride, lower=True), (size, window, stride)
        odd += pair[0] == pair[1] + 1
    assert odd > 100  # the two names do differ on the grid


def test_same_of_several_axes_is_that_of_each():
    sizes, windows, strides = (6, 7, 8), (2, 3, 4), (1, 2, 3)
    expected = tuple(lax.padtype_to_pads(sizes, windows, strides, "SAME"))
    assert expected == ((0, 1), (1, 1), (1, 1))
    assert resolve_padding("SAME", sizes, windows, strides) == expected


@pytest.mark.parametrize("name", ["VALID", "valid", "Valid"])
def test_valid_is_no_padding(name):
    assert resolve_padding(name, (5, 6), (3, 2), (2, 1)) == ((0, 0), (0, 0))


@pytest.mark.parametrize("name", ["CAUSAL", "causal", "Causal"])
def test_causal_lets_no_output_see_a_later_pixel(name):
    for size, window, stride in GRID:
        ((low, high),) = resolve_padding(name, (size,), (window,), (stride,))
        assert (low, high) == (window - 1, 0)
        outputs = len(walk_axis(size, window, stride, low, high))
        # The last tap of output o reads pixel o * stride: the pixel itself and none after it.
        assert [o * stride - low + window - 1 for o in range(outputs)] == list(range(0, size, stride))


@pytest.mark.parametrize(
    ("padding", "rank", "expected"),
    [
        (0, 2, ((0, 0), (0, 0))),
        (2, 1, ((2, 2),)),
        (2, 3, ((2, 2), (2, 2), (2, 2))),
        (-1, 1, ((-1, -1),)),
        (np.int32(2), 1, ((2, 2),)),
        ((3,), 1, ((3, 3),)),
        ((1, 2), 2, ((1, 1), (2, 2))),
        ([1, 2, 3], 3, ((1, 1), (2, 2), (3, 3))),
        (((1, 2),), 1, ((1, 2),)),
        (((1, 2), (3, -4)), 2, ((1, 2), (3, -4))),
        ([[0, 1], [2, 3]], 2, ((0, 1), (2, 3))),
        (np.array([[0, 1], [2, 3]]), 2, ((0, 1), (2, 3))),
    ],
)
def test_explicit_padding(padding, rank, expected):
    pairs = padding_pairs(padding, rank)
    assert pairs == expected
    assert all(type(item) is int for pair in pairs for item in pair)
    assert resolve_padding(padding, (9,) * rank, (3,) * rank, (2,) * rank) == expected


@pytest.mark.parametrize(
    ("padding", "rank", "error", "message"),
    [
        ((1, 2), 1, ValueError, r"got \(1, 2\); for one axis write \(\(low, high\),\)$"),
        ([1, 2], 1, ValueError, r"got \[1, 2\]; for one axis write \(\(low, high\),\)$"),
        (
            (1, 2, 3),
            1,
            ValueError,
            r"one int for each of 1 spatial axes or one \(low, high\) pair for each, got \(1, 2, 3\)",
        ),
        ((1, 2, 3), 2, ValueError, r"conv: padding must be a name, an int, one int for each of 2 spatial axes"),
        (((1, 2),), 2, ValueError, r"or one \(low, high\) pair for each, got \(\(1, 2\),\)$"),
        (((1, 2, 3), (1, 2, 3)), 2, ValueError, r"got \(\(1, 2, 3\), \(1, 2, 3\)\)$"),
        ((1, (2, 3)), 2, ValueError, r"got \(1, \(2, 3\)\)$"),
        ((), 2, ValueError, r"got \(\)$"),
        (1.5, 2, TypeError, r"got 1\.5$"),
        ((1.5, 2), 2, TypeError, r"got \(1\.5, 2\)$"),
        (((1, 2.5), (1, 2)), 2, TypeError, r"got \(\(1, 2\.5\), \(1, 2\)\)$"),
        (None, 2, TypeError, r"got None$"),
    ],
)
def test_other_padding_is_refused_by_name(padding, rank, error, message):
    with pytest.raises(error, match=message), ErrorPrefix("conv"):
        resolve_padding(padding, (9,) * rank, (3,) * rank, (1,) * rank)


@pytest.mark.parametrize("name", ["SAM", "FULL", "", "same lower", "REFLECT"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    message = rf"pool: padding must be one of 'SAME', 'SAME_LOWER', 'VALID', 'CAUSAL', ints or .* pairs, got {name!r}"
    with pytest.raises(ValueError, match=message), ErrorPrefix("pool"):
        padding_name(name, 2)


@pytest.mark.parametrize("rank", [2, 3])
def test_causal_is_refused_for_more_axes_than_one(rank):
    assert padding_name("causal", 1) == "CAUSAL"
    message = f"conv: padding 'CAUSAL' is for one spatial axis, but there are {rank}"
    with pytest.raises(ValueError, match=message), ErrorPrefix("conv"):
        padding_name("causal", rank)


# Output sizes


def test_output_sizes_counts_the_positions_of_the_window():
    refused = 0
    for size, window, stride in GRID:
        for low, high in [(0, 0), (1, 0), (0, 2), (3, 1), (-1, 0), (-1, -1), (2, -1)]:
            walked = walk_axis(size, window, stride, low, high) if size + low + high > 0 else []
            if walked:
                assert output_sizes((size,), ((low, high),), (window,), (stride,)) == (len(walked),)
            else:
                refused += 1
                with pytest.raises(ValueError, match="window is larger than its padded input on spatial axis 0"):
                    output_sizes((size,), ((low, high),), (window,), (stride,))
    assert refused > 100


def test_a_window_larger_than_its_padded_input_is_refused_with_both_sizes():
    message = (
        r"conv: the window is larger than its padded input on spatial axis 1: it spans 7 \(dilation included\), "
        r"the input has 4 \+ padding 1 \+ 1 = 6"
    )
    with pytest.raises(ValueError, match=message), ErrorPrefix("conv"):
        output_sizes((9, 4), ((0, 0), (1, 1)), (3, 7), (1, 1))
    assert output_sizes((9, 5), ((0, 0), (1, 1)), (3, 7), (1, 1)) == (7, 1)


def test_ceil_sizes_are_torchs():
    torch = pytest.importorskip("torch")
    compared = rounded_up = 0
    for size, window, stride in itertools.product(range(1, 11), range(1, 6), range(1, 5)):
        for pad, dilation in itertools.product(range(window // 2 + 1), (1, 2)):
            extent = (window - 1) * dilation + 1
            try:
                expected = torch.nn.functional.max_pool2d(
                    torch.zeros(1, 1, size, 8), (window, 1), (stride, 1), (pad, 0), (dilation, 1), ceil_mode=True
                ).shape[2]
            except RuntimeError:  # torch has no output, or the padding is more than half of the window
                continue
            result = ceil_sizes((size,), ((pad, pad),), (extent,), (stride,))
            assert result == (expected,), (size, window, stride, pad, dilation)
            compared += 1
            rounded_up += expected > (size + 2 * pad - extent) // stride + 1
    assert compared > 500
    assert rounded_up > 60


def test_ceil_sizes_of_uneven_padding_by_torchs_rule():
    """The last window may hang over the end by less than a stride, and is dropped if it starts in the high padding."""
    dropped = 0
    for size, window, stride in GRID:
        for low, high in itertools.product(range(3), range(4)):
            if window >= size + low + high + stride:
                continue
            # The last window is the first that reaches the padded end.
            last = next(n for n in range(99) if n * stride + window >= size + low + high)
            drop = last * stride >= size + low
            dropped += drop
            result = ceil_sizes((size,), ((low, high),), (window,), (stride,))
            assert result == (last + 1 - drop,), (size, window, stride, low, high)
    assert dropped > 100


def test_ceil_mode_refuses_a_pool_without_windows():
    message = (
        r"pool: with ceil_mode no window starts inside the input on spatial axis 0: it spans 7 .* the input has 2 "
    )
    with pytest.raises(ValueError, match=message), ErrorPrefix("pool"):
        ceil_sizes((2,), ((0, 0),), (7,), (2,))


def test_transposed_sizes_are_torchs():
    torch = pytest.importorskip("torch")
    compared = 0
    for size, window, stride in itertools.product(range(1, 6), range(1, 5), range(1, 5)):
        for pad, dilation, extra in itertools.product(range(3), (1, 2), range(3)):
            extent = (window - 1) * dilation + 1
            try:
                expected = torch.nn.functional.conv_transpose1d(
                    torch.zeros(1, 1, size), torch.zeros(1, 1, window), None, stride, pad, extra, 1, dilation
                ).shape[2]
            except RuntimeError:
                continue
            if expected < 1:
                continue
            result = transposed_sizes((size,), pad, (extent,), (stride,), (extra,))
            assert result == (expected,), (size, window, stride, pad, dilation, extra)
            compared += 1
    assert compared > 300


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "same"])
def test_transposed_same_multiplies_by_the_stride_and_is_undone_by_the_convolution(padding):
    for size, window, stride in GRID:
        (result,) = transposed_sizes((size,), padding, (window,), (stride,), (0,))
        assert result == size * stride
        pairs = resolve_padding(padding, (result,), (window,), (stride,))
        assert output_sizes((result,), pairs, (window,), (stride,)) == (size,)


@pytest.mark.parametrize(("padding", "pair"), [("VALID", (0, 0)), ("CAUSAL", None), (((2, 1),), (2, 1)), (0, (0, 0))])
def test_a_transposed_result_is_an_input_of_the_convolution(padding, pair):
    for size, window, stride in GRID:
        low, high = pair or (window - 1, 0)
        for extra in range(stride):
            if (size - 1) * stride + window - low - high + extra < 1:
                continue
            (result,) = transposed_sizes((size,), padding, (window,), (stride,), (extra,))
            assert len(walk_axis(result, window, stride, low, high)) == size


def test_transposed_errors():
    message = r"padding 'SAME' already sets the output to input size \* stride; output_padding \(1,\) needs explicit"
    with pytest.raises(ValueError, match=message), ErrorPrefix("conv_transpose"):
        transposed_sizes((4,), "SAME", (3,), (2,), (1,))
    message = (
        r"conv_transpose: no output is left on spatial axis 1: \(2 - 1\) \* stride 1 \+ window 3 - padding 2 - 2 "
        r"\+ output_padding 0 = 0"
    )
    with pytest.raises(ValueError, match=message), ErrorPrefix("conv_transpose"):
        transposed_sizes((9, 2), 2, (3, 3), (1, 1), (0, 0))


# window_hits


@settings(max_examples=400)
@given(
    size=st.integers(0, 9),
    output=st.integers(0, 9),
    window=st.integers(1, 5),
    stride=st.integers(1, 5),
    low=st.integers(-4, 6),
    dilation=st.integers(1, 4),
    input_dilation=st.integers(1, 6),
)
def test_window_hits_counts_what_a_loop_counts(size, output, window, stride, low, dilation, input_dilation):
    real = {pixel * input_dilation for pixel in range(size)}
    expected = sum(o * stride - low + t * dilation in real for o in range(output) for t in range(window))
    assert window_hits(size, output, window, stride, low, dilation, input_dilation) == expected


def test_window_hits_on_a_full_small_grid():
    for size, window, stride in GRID:
        for low, high, input_dilation in itertools.product(range(3), range(2), (1, 2, 3)):
            lines = walk_axis(size, window, stride, low, high, 1, input_dilation)
            assert window_hits(size, len(lines), window, stride, low, 1, input_dilation) == sum(map(sum, lines))
