"""Options as one hashable value: equal however they were written, and refused by the shapes that they do not fit."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.options import ConvOptions, PoolOptions, frozen


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, [2, 3]], (1, (2, 3))),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        (np.int64(3), 3),
        ("SAME", "SAME"),
        (None, None),
        (jnp.float32, jnp.float32),
    ],
)
def test_lists_and_arrays_become_tuples(value, expected):
    assert frozen(value) == expected
    assert hash(frozen(value)) == hash(expected)


def test_options_that_mean_the_same_are_one_key():
    plain = ConvOptions.of(strides=(1, 2), padding=((1, 1), (0, 2)), layout=("NCHW", "OIHW", "NCHW"))
    listed = ConvOptions.of(strides=np.array([1, 2]), padding=[[1, 1], [0, 2]], layout=["NCHW", "OIHW", "NCHW"])
    assert plain == listed
    assert hash(plain) == hash(listed)
    assert plain != plain._replace(method="direct")
    assert PoolOptions.of(window_shape=[2, 2]) == PoolOptions.of(window_shape=(2, 2), strides=1)


def test_geometry_of_a_convolution_and_of_its_transpose():
    options = ConvOptions.of(strides=2, padding=1, feature_group_count=2)
    forward = options.geometry((5, 9, 9, 4), (3, 3, 2, 6))
    assert (forward.output_sizes, forward.padding, forward.output_shape) == ((5, 5), ((1, 1), (1, 1)), (5, 5, 5, 6))
    backward = options.transposed_geometry((5, 5, 5, 6), (3, 3, 2, 6))
    assert (backward.sizes, backward.transposed_output_shape) == ((9, 9), (5, 9, 9, 4))


def test_a_call_with_equal_options_is_not_traced_again():
    x, kernel = jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 2, 2))
    before = jaxcnn.convolution._conv._cache_size()
    jaxcnn.conv(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)))
    jaxcnn.conv(x, kernel, strides=[1, 1], padding=[[1, 1], [1, 1]])
    jaxcnn.conv(x, kernel, strides=np.array([1, 1]), padding=np.ones((2, 2), int))
    assert jaxcnn.convolution._conv._cache_size() == before + 1
    assert jaxcnn.conv(x, kernel, strides=2).shape == (1, 3, 3, 2)
    assert jaxcnn.convolution._conv._cache_size() == before + 2
