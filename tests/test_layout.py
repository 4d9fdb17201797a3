"""Axis orders: what each spelling of a layout means, and arrays there and back."""

import itertools

import jax
import numpy as np
import pytest
from jax import lax

from jaxcnn import conv, conv_output_shape
from jaxcnn.errors import ErrorPrefix
from jaxcnn.layout import AxisOrder, parse_layout


@pytest.mark.parametrize(
    ("layout", "rank", "expected"),
    [
        (None, 1, AxisOrder(1, "N0C", "0IO", "N0C")),
        (None, 2, AxisOrder(2, "N01C", "01IO", "N01C")),
        (None, 3, AxisOrder(3, "N012C", "012IO", "N012C")),
        ("NHWC", 2, AxisOrder(2, "N01C", "01IO", "N01C")),
        ("NCHW", 2, AxisOrder(2, "NC01", "OI01", "NC01")),
        ("nchw", 2, AxisOrder(2, "NC01", "OI01", "NC01")),
        ("NCH", 1, AxisOrder(1, "NC0", "OI0", "NC0")),
        ("NHC", 1, AxisOrder(1, "N0C", "0IO", "N0C")),
        ("NLC", 1, AxisOrder(1, "N0C", "0IO", "N0C")),
        ("NCDHW", 3, AxisOrder(3, "NC012", "OI012", "NC012")),
        ("NDHWC", 3, AxisOrder(3, "N012C", "012IO", "N012C")),
        ("HWNC", 2, AxisOrder(2, "01NC", "01IO", "01NC")),
        ("CHWN", 2, AxisOrder(2, "C01N", "OI01", "C01N")),
        ("NHCW", 2, AxisOrder(2, "N0C1", "01IO", "N0C1")),
        # Without N the batch axes come first.
        ("HWC", 2, AxisOrder(2, "N01C", "01IO", "N01C")),
        ("CHW", 2, AxisOrder(2, "NC01", "OI01", "NC01")),
        ("LC", 1, AxisOrder(1, "N0C", "0IO", "N0C")),
    ],
)
def test_what_a_string_means(layout, rank, expected):
    assert parse_layout(layout, rank) == expected
    if layout is not None:
        assert parse_layout(layout, None) == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (("NHWC", "HWIO", "NHWC"), AxisOrder(2, "N01C", "01IO", "N01C")),
        (("NCHW", "OIHW", "NCHW"), AxisOrder(2, "NC01", "OI01", "NC01")),
        (("NCHW", "HWIO", "NHWC"), AxisOrder(2, "NC01", "01IO", "N01C")),
        (("nhwc", "hwio", "nchw"), AxisOrder(2, "N01C", "01IO", "NC01")),
        # The kernel's order of the spatial axes is that of strides, windows and padding.
        (("NHWC", "WHIO", "NWHC"), AxisOrder(2, "N10C", "01IO", "N01C")),
        (("NWC", "WIO", "NCW"), AxisOrder(1, "N0C", "0IO", "NC0")),
        (["NDHWC", "DHWIO", "NDHWC"], AxisOrder(3, "N012C", "012IO", "N012C")),
        (((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)), AxisOrder(2, "N01C", "01IO", "N01C")),
        (((0, 1, 2, 3), (0, 1, 2, 3), (0, 3, 2, 1)), AxisOrder(2, "NC01", "OI01", "N10C")),
        (((1, 0, 2), (2, 1, 0), (0, 2, 1)), AxisOrder(1, "CN0", "0IO", "N0C")),
    ],
)
def test_what_a_triple_means(layout, expected):
    assert parse_layout(layout, expected.rank) == expected
    assert parse_layout(layout, None) == expected


TRIPLES = [
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "OIHW", "NCHW"),
    ("NCHW", "HWIO", "NHWC"),
    ("HWNC", "IHWO", "CHNW"),
    ("NHWC", "WHIO", "NWHC"),
    ("CWNH", "OWHI", "HNWC"),
]


@pytest.mark.parametrize("triple", TRIPLES)
@pytest.mark.parametrize("as_numbers", [False, True])
def test_a_triple_is_laxs(triple, as_numbers, rng):
    """lax as the oracle: distinct sizes on every axis, and strides that tell the spatial axes apart."""
    sizes = dict(zip("NCHW", (2, 3, 7, 9), strict=True))
    kernel_sizes = dict(zip("IOHW", (3, 4, 2, 3), strict=True))
    x = rng.integers(-3, 4, [sizes[name] for name in triple[0]]).astype(np.float32)
    kernel = rng.integers(-3, 4, [kernel_sizes[name] for name in triple[1]]).astype(np.float32)
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, triple) if as_numbers else triple
    expected = lax.conv_general_dilated(x, kernel, (1, 2), ((0, 1), (2, 0)), dimension_numbers=layout)
    result = conv(x, kernel, strides=(1, 2), padding=((0, 1), (2, 0)), layout=layout)
    np.testing.assert_array_equal(result, expected)
    shape = conv_output_shape(x.shape, kernel.shape, strides=(1, 2), padding=((0, 1), (2, 0)), layout=layout)
    assert shape == expected.shape


ORDERS = ["N01C", "NC01", "01NC", "C01N", "N0C1", "0N1C"]


def named(order, batch, spatial, features):
    """An array whose axes follow `order`, batch axes at N, and the same array as (*batch, *spatial, C)."""
    last = np.arange(np.prod([*batch, *spatial, features])).reshape(*batch, *spatial, features)
    axes = []
    for name in order:
        if name == "N":
            axes += range(len(batch))
        else:
            axes.append(len(batch) + (len(spatial) if name == "C" else int(name)))
    return last.transpose(axes), last


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (1, 2, 3), (0,), (2, 0)])
def test_there_and_back(order, batch):
    array, last = named(order, batch, (4, 5), 3)
    axes = AxisOrder(2, order, "01IO", order)
    assert axes.split_input(array.shape) == (batch, (4, 5), 3)
    canonical = axes.to_canonical(array)
    np.testing.assert_array_equal(canonical, last.reshape(int(np.prod(batch)), 4, 5, 3), strict=True)
    np.testing.assert_array_equal(axes.from_canonical(canonical, batch), array, strict=True)
    assert axes.output_shape(batch, (4, 5), 3) == array.shape


@pytest.mark.parametrize(("order_in", "order_out"), list(itertools.product(ORDERS, ORDERS)))
def test_the_output_may_have_another_order(order_in, order_out):
    array, _ = named(order_in, (2, 3), (4, 5), 6)
    expected, _ = named(order_out, (2, 3), (4, 5), 6)
    axes = AxisOrder(2, order_in, "01IO", order_out)
    np.testing.assert_array_equal(axes.from_canonical(axes.to_canonical(array), (2, 3)), expected, strict=True)
    spatial = axes.output_spatial_axes(expected.ndim)
    assert [expected.shape[axis] for axis in spatial] == [4, 5]


@pytest.mark.parametrize(("kernel", "shape"), [("01IO", (4, 5, 2, 3)), ("OI01", (3, 2, 4, 5)), ("I1O0", (2, 5, 3, 4))])
def test_kernels_become_hwio(kernel, shape):
    axes = AxisOrder(2, "N01C", kernel, "N01C")
    array = np.arange(120).reshape(shape)
    canonical = axes.kernel_to_canonical(array)
    assert canonical.shape == (4, 5, 2, 3)
    index = {"0": 1, "1": 2, "I": 1, "O": 2}
    assert canonical[1, 2, 1, 2] == array[tuple(index[name] for name in kernel)]


@pytest.mark.parametrize("layout", [None, "NHWC", "HWC", "NCHW", "CHW", "HWNC", "CHWN"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_a_convolution_is_the_same_in_every_layout(layout, batch, rng):
    x = rng.integers(-3, 4, (*batch, 5, 6, 2)).astype(np.float32)
    kernel = rng.integers(-3, 4, (2, 3, 2, 4)).astype(np.float32)
    options = {"strides": (2, 1), "padding": ((1, 0), (0, 2))}
    expected = np.asarray(conv(x, kernel, **options))
    order = parse_layout(layout, 2)
    moved = order.from_canonical(x.reshape(-1, 5, 6, 2), batch)
    moved_kernel = kernel.transpose(3, 2, 0, 1) if order.kernel.startswith("OI") else kernel
    result = conv(moved, moved_kernel, layout=layout, **options)
    back = np.asarray(order.to_canonical(result)).reshape(expected.shape)
    np.testing.assert_array_equal(back, expected, strict=True)


def test_batch_axes_stand_where_n_stands(rng):
    x = rng.standard_normal((5, 6, 2, 3, 4)).astype(np.float32)  # H W N N C
    kernel = rng.standard_normal((3, 3, 4, 7)).astype(np.float32)
    result = conv(x, kernel, layout="HWNC")
    assert result.shape == (5, 6, 2, 3, 7)
    expected = conv(x.transpose(2, 3, 0, 1, 4), kernel).transpose(2, 3, 0, 1, 4)
    np.testing.assert_array_equal(result, expected)


def test_lax_numbers_with_a_named_tuple():
    numbers = lax.ConvDimensionNumbers((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3))
    assert parse_layout(numbers, 2) == AxisOrder(2, "NC01", "OI01", "NC01")


@pytest.mark.parametrize(
    ("layout", "rank", "error", "message"),
    [
        (None, None, ValueError, r"conv: the number of spatial axes is unknown; give layout, such as 'NHWC'"),
        (None, 0, ValueError, r"conv: there must be at least one spatial axis, got 0"),
        ("NC", None, ValueError, r"conv: there must be at least one spatial axis, got 0"),
        ("NHW", None, ValueError, r"layout 'NHW': 'NHW' must name each axis once, with 'C' among them"),
        ("NHHC", None, ValueError, r"layout 'NHHC': 'NHHC' must name each axis once"),
        ("N?WC", None, ValueError, r"layout 'N\?WC': 'N\?WC' must name each axis once"),
        ("N01C", None, ValueError, r"layout 'N01C': 'N01C' must name each axis once"),
        ("", None, ValueError, r"layout '': '' must name each axis once"),
        ("NHWC", 1, ValueError, r"layout 'NHWC' has 2 spatial axes, but the kernel, window or output shape has 1"),
        (("NHWC", "HWIO"), 2, TypeError, r"layout must be None, a string such as 'NCHW' or lax's triple"),
        (7, 2, TypeError, r"conv: layout must be None, a string .* got 7"),
        (("NHWC", "HWI", "NHWC"), 2, ValueError, r"'HWI' must name each axis once, with 'I' and 'O' among them"),
        (("HWC", "HWIO", "NHWC"), 2, ValueError, r"'HWC' must name each axis once, with 'N' and 'C' among them"),
        (("NHWC", "HDIO", "NHWC"), 2, ValueError, r"'NHWC' and 'HDIO' name different axes"),
        (("NHWC", "HWIO", "NHC"), 2, ValueError, r"'NHC' and 'HWIO' name different axes"),
        (((0, 1, 2), (0, 1, 2), (0, 1, 1)), 1, ValueError, r"\(0, 1, 1\) is not an order of the axes 0 to 2"),
        (((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3)), 2, ValueError, r"\(0, 1, 2\) is not an order of the axes 0 to 3"),
    ],
)
def test_refused_layouts(layout, rank, error, message):
    with pytest.raises(error, match=message), ErrorPrefix("conv"):
        parse_layout(layout, rank)


@pytest.mark.parametrize(("layout", "needed"), [(None, 3), ("NCHW", 3), ("HWC", 3)])
def test_x_with_too_few_axes_is_refused(layout, needed):
    message = (
        rf"conv: x must have 2 spatial axes and a feature axis, {needed} in all, and may have batch axes; got 2 axes"
    )
    with pytest.raises(ValueError, match=message), ErrorPrefix("conv"):
        parse_layout(layout, 2).split_input((5, 5))


def test_layout_and_kernel_must_agree():
    x, kernel = np.zeros((1, 5, 5, 2), np.float32), np.zeros((3, 2, 2), np.float32)
    with pytest.raises(ValueError, match=r"conv: layout 'NHWC' has 2 spatial axes, but the kernel.* has 1"):
        conv(x, kernel, layout="NHWC")


def test_layouts_reach_a_jitted_function_as_static_options(rng):
    x = rng.standard_normal((1, 2, 5, 5)).astype(np.float32)
    kernel = rng.standard_normal((4, 2, 3, 3)).astype(np.float32)
    jitted = jax.jit(conv, static_argnames="layout")
    for layout in ("NCHW", ("NCHW", "OIHW", "NCHW")):
        np.testing.assert_array_equal(jitted(x, kernel, layout=layout), conv(x, kernel, layout="NCHW"))
    np.testing.assert_array_equal(conv(x, kernel, layout=["NCHW", "OIHW", "NCHW"]), conv(x, kernel, layout="NCHW"))
