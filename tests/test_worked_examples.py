"""The examples from which everyone learns convolution, with their numbers written out."""

import math

import jax
import numpy as np
import pytest

from jaxcnn import (
    FieldLayer,
    ReceptiveField,
    avg_pool,
    compose,
    conv,
    conv_cost,
    conv_output_shape,
    max_pool,
    receptive_field,
    separable,
    stack,
)
from jaxcnn.chain import KernelChain

IMAGE = np.array(
    [
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0],
        [0, 1, 1, 0, 0],
    ],
    np.float32,
)
CROSS = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.float32)
# Not symmetric, so that a flipped or transposed kernel would show.
RAMP = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]], np.float32)
# 0 to 24 in a shuffled order, for pools.
NUMBERS = np.array(
    [
        [7, 2, 3, 3, 8],
        [4, 5, 3, 8, 4],
        [3, 3, 2, 8, 4],
        [2, 8, 7, 2, 7],
        [5, 4, 4, 5, 4],
    ],
    np.float32,
)


def image(plane):
    return np.asarray(plane, np.float32)[None, :, :, None]


def kernel(plane):
    return np.asarray(plane, np.float32)[:, :, None, None]


# One channel


def test_5x5_under_3x3_at_stride_1_valid_is_3x3():
    result = conv(image(IMAGE), kernel(CROSS), padding="VALID")
    assert result.shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(result[0, :, :, 0], [[4, 3, 4], [2, 4, 3], [2, 3, 4]])


def test_the_kernel_is_not_flipped():
    result = conv(image(IMAGE), kernel(RAMP), padding="VALID")
    np.testing.assert_array_equal(result[0, :, :, 0], [[20, 28, 28], [16, 27, 26], [22, 25, 16]])


def test_5x5_under_3x3_at_stride_2_same_is_3x3():
    """ceil(5 / 2) = 3 outputs need 2 * 2 + 3 - 5 = 2 pixels of padding: one on each side."""
    result = conv(image(IMAGE), kernel(CROSS), strides=2, padding="SAME")
    assert result.shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(result[0, :, :, 0], [[2, 3, 1], [1, 4, 3], [0, 2, 1]])
    np.testing.assert_array_equal(result, conv(image(IMAGE), kernel(CROSS), strides=2, padding=1))


def test_stride_1_same_keeps_the_size():
    result = conv(image(IMAGE), kernel(CROSS))
    np.testing.assert_array_equal(
        result[0, :, :, 0],
        [[2, 2, 3, 1, 1], [1, 4, 3, 4, 1], [1, 2, 4, 3, 3], [1, 2, 3, 4, 1], [0, 2, 2, 1, 1]],
    )


@pytest.mark.parametrize(("height", "out"), [(4, 2), (5, 3), (6, 3), (7, 4)])
def test_same_at_stride_2_halves_and_rounds_up(height, out):
    assert conv_output_shape((1, height, height, 1), (3, 3, 1, 1), strides=2) == (1, out, out, 1)


# Several channels

PLANES = np.stack([IMAGE, NUMBERS], -1)[None]
FILTERS = np.stack(
    [
        np.stack([CROSS, np.zeros((3, 3))], -1),  # the first channel alone
        np.stack([np.zeros((3, 3)), np.ones((3, 3))], -1),  # the sum of the second
        np.stack([CROSS, -np.eye(3)], -1),  # both
    ],
    -1,
).astype(np.float32)


def test_5x5x2_under_three_3x3_kernels_valid_is_3x3x3():
    assert FILTERS.shape == (3, 3, 2, 3)
    result = np.asarray(conv(PLANES, FILTERS, padding="VALID"))
    assert result.shape == (1, 3, 3, 3)
    np.testing.assert_array_equal(result[0, :, :, 0], [[4, 3, 4], [2, 4, 3], [2, 3, 4]])
    np.testing.assert_array_equal(result[0, :, :, 1], [[32, 37, 43], [37, 46, 45], [38, 43, 43]])
    np.testing.assert_array_equal(result[0, :, :, 2], [[-10, -10, -11], [-12, -5, -15], [-13, -12, -4]])


def test_5x5x2_under_three_3x3_kernels_same_is_5x5x3():
    result = np.asarray(conv(PLANES, FILTERS))
    assert result.shape == (1, 5, 5, 3)
    np.testing.assert_array_equal(
        result[0, :, :, 1],
        [[18, 24, 24, 29, 23], [24, 32, 37, 43, 35], [25, 37, 46, 45, 33], [25, 38, 43, 43, 30], [19, 30, 30, 29, 18]],
    )
    np.testing.assert_array_equal(result[0, 1:-1, 1:-1], conv(PLANES, FILTERS, padding="VALID")[0])


def test_the_kernels_multiplications():
    """Three kernels of 3 * 3 * 2 weights: 54, at each of 9 or 25 outputs."""
    valid = conv_cost(PLANES.shape, FILTERS.shape, padding="VALID")
    assert (valid.params, valid.macs, valid.macs_valid) == (54, 486, 486)
    same = conv_cost(PLANES.shape, FILTERS.shape)
    assert (same.params, same.macs, same.macs_valid) == (54, 1350, 1014)  # 169 of 225 taps are on the image


# Pools


def test_3x3_mean_pooling_at_stride_1_on_5x5():
    result = avg_pool(image(NUMBERS), 3)
    assert result.shape == (1, 3, 3, 1)
    ninths = [[32, 37, 43], [37, 46, 45], [38, 43, 43]]
    np.testing.assert_allclose(9 * np.asarray(result)[0, :, :, 0], ninths, rtol=1e-6)
    np.testing.assert_allclose(result, conv(image(NUMBERS), kernel(np.full((3, 3), 1 / 9)), padding="VALID"), rtol=1e-6)


def test_3x3_max_pooling_at_stride_1_on_5x5():
    result = max_pool(image(NUMBERS), 3)
    assert result.shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(result[0, :, :, 0], [[7, 8, 8], [8, 8, 8], [8, 8, 8]])
    staircase = max_pool(image(np.arange(25).reshape(5, 5)), 3)
    np.testing.assert_array_equal(staircase[0, :, :, 0], [[12, 13, 14], [17, 18, 19], [22, 23, 24]])


# Small kernels for large ones


def macs_per_pixel(kernel_or_chain):
    """Multiplications for each output pixel of one channel, away from the borders of the image."""
    cost = conv_cost((1, 1000, 1000, 1), kernel_or_chain)
    return round(cost.macs / 1000**2)


def test_11x11_is_121_multiplications_and_1x11_with_11x1_is_22(rng):
    column, row = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((11, 1, 1, 1), (1, 11, 1, 1)))
    chain = KernelChain((row, column))
    assert (macs_per_pixel((11, 11, 1, 1)), macs_per_pixel(chain)) == (121, 22)
    assert (math.prod((11, 11)), chain.num_params) == (121, 22)
    x = rng.integers(-3, 4, (1, 15, 15, 1)).astype(np.float32)
    np.testing.assert_array_equal(conv(x, chain), conv(x, kernel(np.outer(column, row))))


def test_5x5_is_25_multiplications_and_3x3_with_3x3_is_18(rng):
    first, second = (rng.integers(-3, 4, (3, 3, 1, 1)).astype(np.float32) for _ in range(2))
    chain = KernelChain((first, second))
    assert chain.shape == (5, 5, 1, 1)
    assert (macs_per_pixel((5, 5, 1, 1)), macs_per_pixel(chain)) == (25, 18)
    x = rng.integers(-3, 4, (1, 9, 9, 1)).astype(np.float32)
    np.testing.assert_array_equal(conv(x, chain), conv(x, compose(first, second)))
    assert receptive_field([FieldLayer(3), FieldLayer(3)]).size == receptive_field([FieldLayer(5)]).size == (5,)


def test_7x7_is_49_multiplications_and_three_3x3_are_27():
    chain = KernelChain((np.ones((3, 3, 1, 1), np.float32),) * 3)
    assert chain.shape == (7, 7, 1, 1)
    assert (macs_per_pixel((7, 7, 1, 1)), macs_per_pixel(chain)) == (49, 27)
    assert receptive_field([FieldLayer(3)] * 3).size == (7,)


def test_a_split_into_two_1d_kernels_is_exact_for_rank_one_and_takes_pairs_otherwise(capsys):
    sobel = kernel(np.outer([1, 2, 1], [1, 0, -1]))
    assert separable(sobel, rank=1).relative_error(sobel) < 1e-6
    laplacian = kernel([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    values = [2 + math.sqrt(6), math.sqrt(6) - 2, 0]  # its singular values: rank two
    for pairs in (1, 2, 3):
        chain = separable(laplacian, rank=pairs)
        error = float(chain.relative_error(laplacian))
        multiplications = macs_per_pixel(chain)
        print(f"laplacian in {pairs} pairs: {multiplications} multiplications for 9, relative error {error:.4f}")
        assert multiplications == 6 * pairs
        assert error == pytest.approx(math.hypot(*values[pairs:]) / math.sqrt(20), abs=1e-6)
    magic = kernel([[8, 1, 6], [3, 5, 7], [4, 9, 2]])
    magic_values = [15, math.sqrt(48), math.sqrt(12)]  # full rank
    for pairs in (1, 2, 3):
        error = float(separable(magic, rank=pairs).relative_error(magic))
        print(f"magic square in {pairs} pairs: relative error {error:.4f}")
        assert error == pytest.approx(math.hypot(*magic_values[pairs:]) / math.sqrt(285), abs=1e-6)
    printed = capsys.readouterr().out
    assert "laplacian in 1 pairs: 6 multiplications for 9, relative error 0.1005" in printed
    assert "laplacian in 2 pairs: 12 multiplications for 9, relative error 0.0000" in printed
    assert "magic square in 1 pairs: relative error 0.4588" in printed
    assert "magic square in 2 pairs: relative error 0.2052" in printed


def test_a_gaussian_is_one_pair_and_also_two_stages():
    row = np.array([1, 4, 6, 4, 1], np.float32)
    gaussian = kernel(np.outer(row, row))
    assert separable(gaussian, rank=1).relative_error(gaussian) < 1e-6
    assert separable(gaussian, rank=1).num_params == 10
    assert stack(gaussian).relative_error(gaussian) < 1e-4
    assert stack(gaussian).num_params == 18


# Convolution as a matrix


def sliding_matrix(weights):
    """The 9 x 25 matrix of a 3x3 kernel on a 5x5 image: row r, c holds the weights at the pixels under that window."""
    matrix = np.zeros((9, 25), np.float32)
    for row in range(3):
        for column in range(3):
            for a in range(3):
                for b in range(3):
                    matrix[3 * row + column, 5 * (row + a) + column + b] = weights[a, b]
    return matrix


def test_convolution_is_a_sparse_matrix_of_nine_shared_weights(rng):
    weights = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    matrix = np.asarray(
        jax.jacobian(lambda x: conv(x.reshape(1, 5, 5, 1), kernel(weights), padding="VALID").ravel())(
            np.zeros(25, np.float32)
        )
    )
    assert matrix.shape == (9, 25)
    assert np.count_nonzero(matrix) == 81
    assert 9 * 25 - 81 == 144
    assert sorted(set(matrix[matrix != 0])) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [np.count_nonzero(matrix == weight) for weight in range(1, 10)] == [9] * 9
    np.testing.assert_array_equal(matrix, sliding_matrix(weights))
    np.testing.assert_array_equal(np.flatnonzero(matrix[0]), [0, 1, 2, 5, 6, 7, 10, 11, 12])
    np.testing.assert_array_equal(np.flatnonzero(matrix[8]), [12, 13, 14, 17, 18, 19, 22, 23, 24])
    x = rng.integers(-5, 6, (5, 5)).astype(np.float32)
    np.testing.assert_array_equal(
        (matrix @ x.ravel()).reshape(3, 3), conv(image(x), kernel(weights), padding="VALID")[0, :, :, 0]
    )
    assert conv_cost((1, 5, 5, 1), (3, 3, 1, 1), padding="VALID").macs == 81
    assert conv_cost((1, 5, 5, 1), (3, 3, 1, 1), padding="VALID").params == 9


def test_a_fully_connected_layer_of_the_same_sizes_would_take_225_weights():
    assert conv_cost((1, 1, 1, 25), (1, 1, 25, 9)).params == 225


# AlexNet and VGG


def test_alexnets_first_layers():
    """11x11 at stride 4 and 5x5 in two groups, on 227 x 227 pixels."""
    first = {"strides": 4, "padding": "VALID"}
    assert conv_output_shape((1, 227, 227, 3), (11, 11, 3, 96), **first) == (1, 55, 55, 96)
    cost = conv_cost((1, 227, 227, 3), (11, 11, 3, 96), bias=True, **first)
    assert (cost.params, cost.macs) == (34_944, 105_415_200)
    cost = conv_cost((1, 27, 27, 96), (5, 5, 48, 256), feature_group_count=2, bias=True)
    assert (cost.params, cost.macs) == (307_456, 223_948_800)
    layers = [
        FieldLayer(11, 4),
        FieldLayer(3, 2),
        FieldLayer(5, 1, 2),
        FieldLayer(3, 2),
        *[FieldLayer(3, 1, 1)] * 3,
        FieldLayer(3, 2),
    ]
    sizes = [receptive_field(layers[: n + 1]).size[0] for n in range(8)]
    assert sizes == [11, 19, 51, 67, 99, 131, 163, 195]
    assert receptive_field(layers) == ReceptiveField(size=(195,), stride=(32,), offset=(64,))


def test_vgg_16():
    """3x3 everywhere: 14,714,688 weights and biases and 15.3 billion multiplications in thirteen layers."""
    size, channels, params, macs, layers = 224, 3, 0, 0, []
    for convolutions, features in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(convolutions):
            cost = conv_cost((1, size, size, channels), (3, 3, channels, features), bias=True)
            params, macs, channels = params + cost.params, macs + cost.macs, features
            layers.append(FieldLayer(3, padding="SAME"))
        size //= 2
        layers.append(FieldLayer(2, strides=2))
    assert (params, macs) == (14_714_688, 15_346_630_656)
    assert receptive_field(layers) == ReceptiveField(size=(212,), stride=(32,), offset=(90,))


def test_vgg_config_c_adds_1x1_layers_that_see_no_more():
    """A 1x1 convolution mixes channels at a ninth of the weights and widens no receptive field."""
    assert conv_cost((1, 56, 56, 256), (1, 1, 256, 256)).macs * 9 == conv_cost((1, 56, 56, 256), (3, 3, 256, 256)).macs
    assert receptive_field([FieldLayer(3, 1, 1), FieldLayer(1)]) == receptive_field([FieldLayer(3, 1, 1)])


def test_three_3x3_layers_take_27_c_squared_weights_where_a_7x7_takes_49():
    """Simonyan and Zisserman's argument for VGG: 81 % more for the 7x7."""
    channels = 4
    three = KernelChain((np.ones((3, 3, channels, channels), np.float32),) * 3)
    assert three.num_params == 27 * channels**2 == 432
    assert conv_cost((1, 9, 9, channels), (7, 7, channels, channels)).params == 49 * channels**2 == 784
    assert round(100 * (784 / 432 - 1)) == 81


def test_lenets_layers_as_the_demo_says():
    """conv1, 1 to 6: 150 dense, 63F stacked, 35R in pairs; conv2, 6 to 16: 2400, 198F and 110R."""
    for (into, out), dense, stacked, pairs in (((1, 6), 150, 63, 35), ((6, 16), 2400, 198, 110)):
        assert conv_cost((1, 1, 1, into), (5, 5, into, out)).macs == dense
        for width in (1, 2, 3):
            small = [np.ones(shape, np.float32) for shape in ((3, 3, into, width), (3, 3, width, out))]
            assert KernelChain(tuple(small)).num_params == stacked * width
            pair = [np.ones(shape, np.float32) for shape in ((5, 1, into, width), (1, 5, width, out))]
            assert KernelChain(tuple(pair)).num_params == pairs * width
