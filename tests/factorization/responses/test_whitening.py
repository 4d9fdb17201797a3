"""Tests of the values that flow through a chain on patches, and of the coordinates in which its links are fitted."""

import numpy as np
import pytest

from jaxcnn import KernelChain
from jaxcnn.factorization.numerics import windows
from jaxcnn.factorization.responses import whitening as _features
from support.arrays import normal

CHAINS = {
    "one group": (((5, 1, 3, 4), (1, 5, 4, 6), (2, 2, 6, 5)), (1, 1, 1)),
    "groups": (((5, 1, 3, 8), (1, 5, 2, 12), (2, 2, 3, 20)), (4, 4, 4)),
    "fewer and fewer": (((3, 3, 1, 8), (1, 1, 4, 6), (2, 1, 6, 3)), (4, 2, 1)),
    "more groups between": (((1, 1, 4, 6), (3, 1, 1, 6), (1, 3, 1, 6), (1, 1, 6, 5)), (1, 6, 6, 1)),
}


def drawn(name):
    shapes, counts = CHAINS[name]
    return KernelChain(tuple(normal(shape, seed) for seed, shape in enumerate(shapes)), counts)


def test_downstream_of_groups_is_that_of_each_group():
    random = np.random.default_rng(0)
    shapes, groups = ((5, 1, 3, 8), (1, 5, 2, 12), (2, 2, 3, 20)), 4
    kernels = [random.normal(size=shape) for shape in shapes]
    for index in range(len(kernels)):
        result = _features._downstream(kernels, (groups,) * len(kernels), index)
        for group in range(groups):
            kernels_of_group = [np.split(kernel, groups, axis=-1)[group] for kernel in kernels]
            np.testing.assert_allclose(
                result[group], _features._downstream(kernels_of_group, (1,) * len(kernels_of_group), index)[0]
            )


@pytest.mark.parametrize("name", CHAINS)
def test_features_are_the_responses_of_the_dense_kernel(name):
    chain = drawn(name)
    groups, dense = chain.feature_group_count, np.asarray(chain.dense())
    channels = dense.shape[-2] * groups
    patches = normal((7, *dense.shape[:-2], channels), 9)
    result = windows.features(chain.kernels, chain.feature_group_counts, np.moveaxis(patches, 0, -2))
    blocks = zip(np.split(patches, groups, -1), np.split(dense, groups, -1), strict=True)
    expected = [part.reshape(7, -1) @ block.reshape(-1, block.shape[-1]) for part, block in blocks]
    np.testing.assert_allclose(np.reshape(result, (7, -1)), np.concatenate(expected, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CHAINS)
def test_downstream_is_what_the_links_after_it_do_to_a_channel(name):
    """By moving each channel on its own through every tap, without adding up paths that end at one tap."""
    chain = drawn(name)
    kernels, counts = [np.asarray(link, np.float64) for link in chain.kernels], chain.feature_group_counts
    for index, kernel in enumerate(kernels):
        width = kernel.shape[-1]
        paths = [np.eye(width)]  # by path, what each of the link's channels adds to each channel there
        for link, count in zip(kernels[index + 1 :], counts[index + 1 :], strict=True):
            taps = link.reshape(-1, *link.shape[-2:])
            inputs, outputs = taps.shape[1], taps.shape[2] // count
            dense = np.zeros((len(taps), inputs * count, outputs * count))
            for group in range(count):
                rows, columns = (
                    slice(group * inputs, (group + 1) * inputs),
                    slice(group * outputs, (group + 1) * outputs),
                )
                dense[:, rows, columns] = taps[:, :, columns]
            paths = [path @ tap for path in paths for tap in dense]
        expected = sum(path @ path.T for path in paths)
        for group, moments in enumerate(_features._downstream(kernels, counts, index)):
            channels_of_group = slice(group * len(moments), (group + 1) * len(moments))
            np.testing.assert_allclose(moments, expected[channels_of_group, channels_of_group], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_coloured_and_whitened_are_inverse(groups):
    link = normal((3, 1, 4, 6))
    left, right = normal((groups, 4, 4), 1), normal((groups, 6 // groups, 6 // groups), 2)
    inner = _features.to_inner(link, left, right)
    np.testing.assert_allclose(_features.from_inner(inner, left, right), link, rtol=1e-3, atol=1e-3)
    if groups == 1:
        np.testing.assert_allclose(left[0] @ inner @ right[0], link, rtol=1e-3, atol=1e-3)
