"""Which parameter feeds which convolution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxcnn
from jaxcnn.transform.chains.find_kernels import find_kernels
from support.arrays import normal
from support.planted import conv

X = jnp.ones((1, 8, 8, 4))
KERNEL = jnp.asarray(normal((3, 3, 4, 4)))


def found(f, *args):
    return find_kernels(jax.make_jaxpr(f)(*args))[0]


def only(f, kernel=KERNEL, x=X):
    """Returns the result of the search for the kernel of f(kernel, x)."""
    result = found(f, kernel, x)
    assert list(result) in ([0], [])
    return result.get(0)


WAYS = {
    "as it is": lambda k, x: conv(x, k),
    "jaxcnn": lambda k, x: jaxcnn.conv(x, k),
    "accelerated": lambda k, x: jaxcnn.accelerate(conv)(x, k),
    "cast": lambda k, x: conv(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16)),
    "jit": lambda k, x: jax.jit(conv)(x, k),
    "nested jit": lambda k, x: jax.jit(lambda x, k: jax.jit(conv)(x, k) * 2)(x, k),
    "remat": lambda k, x: jax.checkpoint(conv)(x, k),
    "flipped": lambda k, x: conv(x, jnp.flip(k, (0, 1))),
    "transposed axes": lambda k, x: conv(x, k.transpose(3, 2, 0, 1).transpose(2, 3, 1, 0)),
    "copied, named and placed": lambda k, x: conv(
        x, jax.device_put(checkpoint_name(lax.optimization_barrier((jnp.copy(k), x))[0], "kernel"))
    ),
    "channels first": lambda k, x: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ),
    "transposed": lambda k, x: lax.conv_transpose(x, k, (2, 2), "SAME", transpose_kernel=True),
    "gradient of x": lambda k, x: jax.grad(lambda x: conv(x, k, 2).sum())(x),
    "loop constant": lambda k, x: lax.fori_loop(0, 3, lambda i, y: conv(y, k), x),
    "branch": lambda k, x: lax.cond(x.sum() > 0, lambda x: conv(x, k), lambda x: x, x),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_is_found(way):
    result = only(WAYS[way])
    assert result.refusal == ""
    assert len(result.sites) == (2 if way == "gradient of x" else 1)  # forward, too
    assert sorted(result.placement.kernel_shape) == [3, 3, 4, 4]


REFUSED = {
    "penalty": (lambda k, x: conv(x, k).sum() + (k**2).sum(), "integer_pow"),
    "sum": (lambda k, x: conv(x, k + 1.0), None),
    "factor": (lambda k, x: conv(x, k * 2.0), None),
    "returned": (lambda k, x: (conv(x, k), k), "it is returned"),
    "two orders": (lambda k, x: conv(conv(x, k), k.transpose(1, 0, 2, 3)), "in different order"),
    "changed in a loop": (
        lambda k, x: lax.fori_loop(0, 2, lambda i, c: (conv(c[0], c[1]), c[1][::-1]), (x, k)),
        "a loop",
    ),
    "image too": (lambda k, x: conv(x, k).sum() + conv(k, k).sum(), "conv_general_dilated"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_what_takes_arrays_keeps_the_kernel_dense(way):
    f, reason = REFUSED[way]
    result = only(f)
    if reason is None:
        assert result is None
    else:
        assert reason in result.refusal


def test_a_kernel_used_twice_has_two_sites():
    assert len(only(lambda k, x: conv(conv(x, k), k, 2)).sites) == 2
    # Once forward and once back, as in an autoencoder with tied weights.
    tied = only(lambda k, x: lax.conv_transpose(conv(x, k, 2), k, (2, 2), "SAME", transpose_kernel=True))
    assert tied.refusal == ""
    assert len(tied.sites) == 2


def test_a_kernel_of_other_groups_is_another():
    kernel = jnp.asarray(normal((3, 3, 1, 4)))
    refused = only(lambda k, x: conv(conv(x, k, feature_group_count=4)[..., :1], k), kernel)
    assert refused.refusal == "two convolutions have it in different numbers of groups"


def test_slices_of_a_stack_are_kernels():
    stack = jnp.stack([KERNEL] * 3)

    def scanned(stack, x):
        return lax.scan(lambda y, k: (conv(y, k), None), x, stack)[0]

    def indexed(stack, x):
        return conv(conv(x, stack[0]), stack[2])

    def looped(stack, x):
        return lax.fori_loop(0, 3, lambda i, y: conv(y, stack[i]), x)

    for f, counts in ((scanned, [3]), (indexed, [1, 1]), (looped, [3])):
        result = only(f, stack)
        assert result.refusal == ""
        assert result.placement.stack == (0,)
        assert result.placement.kernel_shape == (3, 3, 4, 4)
        assert [site.count for site in result.sites] == counts


def test_depthwise_kernels_by_channel_and_multiplier():
    kernel = jnp.asarray(normal((3, 3, 4, 2)))
    result = only(lambda k, x: jaxcnn.depthwise_conv(x, k), kernel)
    assert result.placement.kernel_shape == (3, 3, 1, 8)
    assert result.placement.shape == (3, 3, 4, 2)
    back = only(lambda k, x: jaxcnn.depthwise_conv(x, k.reshape(3, 3, 4, 2)), kernel.reshape(3, 3, 1, 8))
    assert back.placement.shape == (3, 3, 1, 8)


def test_all_convolutions_are_counted():
    fixed = jnp.asarray(normal((3, 3, 4, 4), 1))

    def f(k, x):
        return lax.scan(lambda y, _: (conv(conv(y, k), fixed), None), x, None, length=5)[0]

    _, convolutions = find_kernels(jax.make_jaxpr(f)(KERNEL, X))
    assert [count for _, count in convolutions] == [5, 5]
