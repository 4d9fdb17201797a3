"""Samples of what a kernel meets, and of its responses."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.lib.stride_tricks import sliding_window_view

import jaxcnn
from jaxcnn.transform.chains.convolve import as_patches_see_it
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.substitution.samples import Blocks, block_sides, patches_at, responses_at
from jaxcnn.transform.substitution.unrolled import Segment, UnrolledProgram
from support.arrays import normal
from support.planted import NUMBERS, conv

KERNELS = [jnp.asarray(normal((3, 3, 4, 4), seed)) for seed in range(2)]


IMAGE = jnp.asarray(normal((2, 8, 8, 4), 9))


CONVOLUTIONS = {
    "as it is": lambda x, k: conv(x, k),
    "strided": lambda x, k: lax.conv_general_dilated(
        x, k, (2, 1), [(2, 1), (0, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "cropped": lambda x, k: lax.conv_general_dilated(
        x, k, (1, 1), [(-1, 2), (1, -2)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "dilated": lambda x, k: lax.conv_general_dilated(
        x, k, (1, 2), "SAME", rhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "channels first": lambda x, k: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ),
    "jaxcnn": lambda x, k: jaxcnn.conv(x, k, strides=2),
    "its input dilated": lambda x, k: lax.conv_general_dilated(
        x, k, (2, 1), [(2, 1), (-1, 3)], (3, 2), (1, 2), dimension_numbers=NUMBERS
    ),
    "transposed": lambda x, k: lax.conv_transpose(
        x, k, (2, 3), "SAME", dimension_numbers=NUMBERS, transpose_kernel=True
    ),
    "jaxcnn, transposed": lambda x, k: jaxcnn.conv_transpose(
        x, k, strides=(2, 3), padding=((1, 0), (0, 1)), kernel_dilation=(1, 2)
    ),
    "jaxcnn, transposed in groups": lambda x, k: jaxcnn.conv_transpose(x, k, strides=2, feature_group_count=2),
}


@pytest.mark.parametrize("way", CONVOLUTIONS)
@pytest.mark.parametrize(("count", "total"), [(17, 1), (17, 10**9), (10_000, 1), (10_000, 10**9)])
def test_samples_are_patches_and_their_responses(way, count, total):
    def f(k, x):
        return CONVOLUTIONS[way](x, k)

    kernel = KERNELS[0]
    closed = jax.make_jaxpr(f)(kernel, IMAGE)
    (uses,) = find_kernels(closed)[0].values()
    (site,) = uses.sites
    program = UnrolledProgram(closed, {site.path: (0, site)})
    image, response = program.operand(program.sites[0], 0), program.response(program.sites[0])
    values = program.values((kernel, IMAGE))
    values |= Segment(program.steps, {image, response}).run(values)
    sides = block_sides(site.equation, count, total)
    blocks = Blocks.chosen(site.equation, count, sides, np.random.default_rng(0))
    patches = patches_at(site.equation, values[image], blocks)
    responses = responses_at(site.equation, values[response], blocks)
    assert len(patches) == len(responses)
    positions, of_all = math.prod(responses.shape[:-1]), values[response].size // responses.shape[-1]
    assert positions >= of_all if count > of_all else 0 < positions <= count
    assert responses.shape[1:3] == sides
    assert patches.shape[1:] == (sides[0] + 2, sides[1] + 2, 4)
    params = site.equation.params
    groups = params["spec"].feature_group_count if "spec" in params else params["feature_group_count"]
    sampled_kernel = uses.placement.kernel(kernel)
    (sampled_kernel,) = as_patches_see_it(
        site, jaxcnn.KernelChain((sampled_kernel,), (groups,)), uses.placement
    ).kernels
    pieces = sliding_window_view(patches, (3, 3), (1, 2))  # (N, *sides, I, 3, 3)
    split = pieces.reshape(*pieces.shape[:3], groups, -1, 3, 3)
    expected = np.einsum("nabgihw,hwigo->nabgo", split, sampled_kernel.reshape(*sampled_kernel.shape[:-1], groups, -1))
    np.testing.assert_allclose(responses, expected.reshape(responses.shape), atol=1e-4)


MANY = 10**9
"""Positions of so many bytes that blocks are as large as they can be."""

SIDES = {
    "as it is": (8, 8),
    "strided": (1, 9),
    "cropped": (7, 5),
    "dilated": (1, 1),
    "its input dilated": (1, 1),
    "transposed": (1, 1),
}


@pytest.mark.parametrize("way", SIDES)
def test_blocks_extend_where_neighbouring_patches_overlap(way):
    (equation,) = (e for e in jax.make_jaxpr(CONVOLUTIONS[way])(IMAGE, KERNELS[0]).eqns if "conv" in str(e.primitive))
    assert block_sides(equation, MANY, MANY) == SIDES[way]


@pytest.mark.parametrize(
    ("count", "total", "side"),
    [
        (1, MANY, 1),
        (3, MANY, 1),
        (4, MANY, 2),
        (15, MANY, 2),
        (16, MANY, 4),
        (MANY, (32 << 20) // (3 * 3 * 4 * 4), 1),
        (MANY, (32 << 20) // (3 * 3 * 4 * 4) + 1, 2),
        (MANY, 4 * ((32 << 20) // (4 * 4 * 4 * 4)), 2),
        (MANY, 4 * ((32 << 20) // (4 * 4 * 4 * 4)) + 1, 4),
    ],
)
def test_a_block_has_as_few_positions_as_memory_allows_and_no_more_than_samples(count, total, side):
    (equation,) = jax.make_jaxpr(CONVOLUTIONS["as it is"])(IMAGE, KERNELS[0]).eqns
    assert block_sides(equation, count, total) == (side, side)


@pytest.mark.parametrize(("size", "starts"), [(3, [0]), (4, [0]), (5, [0, 1]), (7, [0, 3])])
def test_blocks_cover_an_axis_whose_size_they_do_not_divide(size, starts):
    (equation,) = jax.make_jaxpr(CONVOLUTIONS["as it is"])(IMAGE[:1, :size, :4], KERNELS[0]).eqns
    sides = block_sides(equation, 16, MANY)
    blocks = Blocks.chosen(equation, 10_000, sides, np.random.default_rng(0))
    assert sides == (min(size, 4), 4)
    assert blocks.starts.tolist() == [starts, [0] * len(starts)]
