"""`split`: the pieces of a kernel add up to it, by convolving."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import strategies as st

from jaxcnn import conv, split
from support import arrays
from support.arrays import normal
from support.drawn import drawn

assert_close = partial(arrays.assert_close, relative=1e-5)


DRAWN = (
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=3),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 2**32 - 1),
)
"""Window and largest piece on each axis, dilation, stride, seed."""


@drawn(6, 50, *DRAWN)
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
    for piece, pads in pieces:
        assert all(size <= limit for size, limit in zip(piece.shape[:-2], most, strict=True))
        total = total + conv(x, piece, padding=pads, strides=stride, kernel_dilation=dilation)
    assert_close(total, expected)
    assert sum(piece.size for piece, _ in pieces) == kernel.size


def test_the_pieces_of_a_dilated_kernel(rng):
    kernel, x = normal((7, 5, 2, 3), rng), normal((1, 14, 15, 2), rng)
    options = {"strides": 2, "kernel_dilation": (3, 2)}
    pieces = split(kernel, 3, padding=((5, 8), (4, 3)), kernel_dilation=(3, 2))
    total = sum(conv(x, piece, padding=pads, **options) for piece, pads in pieces)
    assert_close(total, conv(x, kernel, padding=((5, 8), (4, 3)), **options))


@pytest.mark.parametrize("padding", ["SAME", "same_lower", "VALID"])
@pytest.mark.parametrize("size", [4, 5])
def test_padding_by_name_at_stride_one(padding, size, rng):
    kernel, x = normal((size, 7, 2, 3), rng), normal((1, 9, 10, 2), rng)
    pieces = split(kernel, (3, 2), padding=padding)
    assert_close(sum(conv(x, piece, padding=pads) for piece, pads in pieces), conv(x, kernel, padding=padding))


def test_pieces_of_groups_and_layouts(rng):
    kernel, x = normal((6, 2, 5, 5), rng), normal((2, 4, 8, 8), rng)
    options = {"layout": "NCHW", "feature_group_count": 2}
    pieces = split(kernel, 3, layout="NCHW")
    assert [piece.shape for piece, _ in pieces] == [(6, 2, *window) for window in itertools.product((3, 2), (3, 2))]
    assert_close(sum(conv(x, piece, padding=pads, **options) for piece, pads in pieces), conv(x, kernel, **options))


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
