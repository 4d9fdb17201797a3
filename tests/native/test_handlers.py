"""Tests of calls that the handlers refuse before a kernel runs, made as `jax.ffi` calls them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import native

pytestmark = pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")


FITTING = ((2, 5, 6, 4), (3, 2, 4, 3), (2, 3, 5, 3))  # shapes of x, kernel and y


def slide(x_shape, kernel_shape, y_shape, *, extras=(), dtype="float32", **attributes):
    """The result of `jaxcnn_slide` on ones."""
    rank = len(y_shape) - 2
    options = {
        "strides": np.ones(rank, np.int64),
        "pad_low": np.zeros(rank, np.int64),
        "dilation": np.ones(rank, np.int64),
        "groups": np.int64(1),
        "operands": np.int64(0),
        "activation": np.int64(0),
        "alpha": np.float32(0),
        "transposed": False,
        "tiles": False,
    }
    call = jax.ffi.ffi_call("jaxcnn_slide", jax.ShapeDtypeStruct(y_shape, dtype))
    arrays = (jnp.ones(shape, dtype) for shape in (x_shape, kernel_shape, *extras))
    return call(*arrays, **options | attributes)


def ints(*values):
    return np.array(values, np.int64)


def test_a_fitting_call():
    y = slide(*FITTING)
    np.testing.assert_array_equal(y, np.full((2, 3, 5, 3), 24.0))


@pytest.mark.parametrize("operands", [1, 2])
def test_one_number_stands_for_all_channels(operands):
    one, all_channels = (slide(*FITTING, operands=np.int64(operands), extras=[shape]) for shape in ((1,), (3,)))
    np.testing.assert_array_equal(one, all_channels)


@pytest.mark.parametrize(
    ("shapes", "attributes", "message"),
    [
        (((2, 5, 4), (3, 2, 4, 3), (2, 3, 5, 3)), {}, "the same number of spatial axes"),
        (FITTING, {"strides": ints(1)}, "the same number of spatial axes"),
        (FITTING, {"pad_low": ints(1, 1, 1)}, "the same number of spatial axes"),
        (((1,) * 6, (1,) * 6, (1,) * 6), {}, "at most 3"),
        (FITTING, {"groups": np.int64(0)}, "0 groups do not divide the channels"),
        (FITTING, {"groups": np.int64(3)}, "3 groups do not divide .* 4 in and 3 out"),
        (((3, 5, 6, 4), (3, 2, 4, 3), (2, 3, 5, 3)), {}, "channels or the batch do not fit"),
        (((2, 5, 6, 4), (3, 2, 5, 3), (2, 3, 5, 3)), {}, "channels or the batch do not fit"),
        (((2, 5, 6, 4), (3, 2, 4, 3), (2, 3, 5, 4)), {}, "channels or the batch do not fit"),
        (FITTING, {"strides": ints(0, 1)}, "must be positive"),
        (FITTING, {"dilation": ints(1, -1)}, "must be positive"),
        (FITTING, {"pad_low": ints(2**40, 0)}, "below 2"),
        (FITTING, {"activation": np.int64(99)}, "no activation 99"),
        (FITTING, {"operands": np.int64(2)}, "operand of the epilogue is missing"),
        (
            FITTING,
            {"operands": np.int64(2), "extras": [(4,)]},
            "has 4 elements, not 3",
        ),
        (FITTING, {"extras": [(3,)]}, "operands that it does not name"),
        (FITTING, {"dtype": "float16"}, "dtype"),
    ],
)
def test_what_does_not_fit_is_an_error(shapes, attributes, message):
    with pytest.raises(Exception, match=message):
        slide(*shapes, **attributes).block_until_ready()


def test_the_kernel_gradient_refuses_what_does_not_fit():
    call = jax.ffi.ffi_call("jaxcnn_kernel_gradient", jax.ShapeDtypeStruct((3, 2, 5, 3), "float32"))
    x, y = jnp.ones((2, 5, 6, 4)), jnp.ones((2, 3, 5, 3))
    options = {"strides": ints(1, 1), "pad_low": ints(0, 0), "dilation": ints(1, 1), "groups": np.int64(1)}
    with pytest.raises(Exception, match="channels or the batch do not fit"):
        call(x, y, **options).block_until_ready()
