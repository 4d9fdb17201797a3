"""`merge`: branches side by side as one kernel, by convolving."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import KernelChain, conv, merge, split
from support import arrays
from support.arrays import normal

assert_close = partial(arrays.assert_close, relative=1e-5)


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
