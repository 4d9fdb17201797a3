"""The walk of a function with and without chains, and the samples that it gives of what a kernel meets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.chains.convolve import as_patches_see_it
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.substitution.paired_walk import is_fitted, run_in_step, samples, side_by_side
from support.arrays import normal, relative_error
from support.planted import NUMBERS, conv


def walk(f, *args, changed=None):
    """A walk through f that stops at each kernel that can be fitted; `changed` are the substituted arguments."""
    closed = jax.make_jaxpr(f)(*args)
    found, _ = find_kernels(closed)
    sites = {site.path: (index, site) for index, each in found.items() if is_fitted(each) for site in each.sites}
    return side_by_side(closed, args, args if changed is None else changed, sites)


def last(generator):
    """What a walk returns in the end, told nothing on the way."""
    try:
        next(generator)
        while True:
            generator.send(None)
    except StopIteration as stop:
        return stop.value


KERNELS = [jnp.asarray(normal((3, 3, 4, 4), seed)) for seed in range(2)]


IMAGE = jnp.asarray(normal((2, 8, 8, 4), 9))


def test_both_sides_are_what_they_compute():
    def f(a, b, x):
        y = jax.jit(lambda x, k: jax.nn.relu(conv(x, k)))(x, a)
        return lax.scan(lambda c, _: (c * 0.5, c.sum()), y, None, length=3)[0] + conv(y, b)

    args = (*KERNELS, IMAGE)
    ((dense, same),) = last(walk(f, *args))
    assert relative_error(dense, f(*args)) < 1e-6
    assert relative_error(same, f(*args)) < 1e-6
    # The second argument is substituted: what does not depend on it is computed once.
    ((dense, other),) = last(
        walk(lambda a, b, x: conv(x, a) + (b * b).sum(), *args, changed=(args[0], 2 * args[1], IMAGE))
    )
    assert relative_error(other - dense, jnp.full(dense.shape, 3 * (args[1] ** 2).sum())) < 1e-5


def test_the_links_that_are_sent_are_computed_with():
    def f(a, b, x):
        return conv(jax.nn.relu(conv(x, a)), b)

    args = (*KERNELS, IMAGE)
    chain = jaxcnn.KernelChain((2 * KERNELS[0],))
    generator = walk(f, *args)
    first = next(generator)
    assert first.index == 0
    np.testing.assert_array_equal(first.image, IMAGE)
    second = generator.send(chain)
    # The second layer sees what the first one's chain makes, and is to respond as if there had been none.
    assert relative_error(second.image, jax.nn.relu(conv(IMAGE, 2 * KERNELS[0]))) < 1e-6
    assert relative_error(second.response, f(*args)) < 1e-6
    with pytest.raises(StopIteration) as stop:
        generator.send(None)
    ((dense, substituted),) = stop.value.value
    assert dense is substituted


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
@pytest.mark.parametrize("count", [17, 10_000])
def test_samples_are_patches_and_their_responses(way, count):
    def f(k, x):
        return CONVOLUTIONS[way](x, k)

    kernel = KERNELS[0]
    closed = jax.make_jaxpr(f)(kernel, IMAGE)
    (found,) = find_kernels(closed)[0].values()
    (site,) = found.sites
    stop = next(side_by_side(closed, (kernel, IMAGE), (kernel, IMAGE), {site.path: (0, site)}))
    patches, responses = samples(stop, count, np.random.default_rng(0))
    total = stop.response.size // responses.shape[1]
    assert len(patches) == len(responses) == min(count, total)
    assert patches.shape[1:] == (3, 3, 4)
    params = site.equation.params
    groups = params["spec"].feature_group_count if "spec" in params else params["feature_group_count"]
    own = found.placement.kernel(kernel)
    (own,) = as_patches_see_it(site, jaxcnn.KernelChain((own,), (groups,)), found.placement).kernels
    split = patches.reshape(*patches.shape[:-1], groups, -1)
    expected = np.einsum("nhwgi,hwigo->ngo", split, own.reshape(*own.shape[:-1], groups, -1)).reshape(len(patches), -1)
    np.testing.assert_allclose(responses, expected, atol=1e-4)


def test_batches_in_step():
    def f(k, x):
        return conv(x, k)

    args = [(KERNELS[0], IMAGE), (KERNELS[0], IMAGE[:1, :5])]
    shapes = []
    run_in_step([walk(f, *each) for each in args], lambda stops: shapes.append([s.image.shape for s in stops]))
    assert shapes == [[(2, 8, 8, 4), (1, 5, 8, 4)]]
    other = walk(lambda k, x: conv(conv(x, k), KERNELS[1] * k), *args[0])
    with pytest.raises(ValueError, match="the same convolutions in the same order"):
        run_in_step([walk(f, *args[0]), other], lambda stops: None)
