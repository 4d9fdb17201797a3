"""Receptive fields over the graph of a function, against the pixels that an output's gradient reaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn import accelerate, summarize
from support import architectures


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def seen(f, x, axis):
    """(size, offset) along an axis of x of the pixels that reach the middle output, and its index."""
    y = jax.eval_shape(f, x)
    index = [0] * y.ndim
    middle = y.shape[axis] // 2
    index[1], index[2] = (size // 2 for size in y.shape[1:3])
    gradient = jax.grad(lambda x: f(x)[tuple(index)])(x)
    touched = np.flatnonzero(np.abs(np.asarray(gradient)).sum(tuple(a for a in range(x.ndim) if a != axis)))
    return touched.max() - touched.min() + 1, touched.min(), middle


def dilated(x):
    return architectures.conv(jnp.ones, x, 1, 3, padding="SAME", dilation=3)


FIELDS = {
    "residual of two branches": lambda x: x + dilated(dilated(x)) + architectures.conv(jnp.ones, x, 1, (5, 1)),
    "strides": lambda x: dilated(architectures.conv(jnp.ones, x, 1, 3, 2)),
    "pad, slice and pools": lambda x: architectures.avg_pool(
        architectures.conv(jnp.ones, jnp.pad(x, ((0, 0), (3, 1), (0, 2), (0, 0)))[:, 1:, ::2], 1, 3, padding="VALID"), 3
    ),
    "channels first": lambda x: jnp.moveaxis(
        jaxcnn.conv(jnp.moveaxis(x, 3, 1), jnp.ones((1, 1, 3, 5)), layout="NCHW", strides=2), 1, 3
    ),
    "scan": lambda x: lax.scan(lambda x, _: (dilated(x), None), x, length=3)[0],
    "accelerated": accelerate(lambda x: dilated(architectures.avg_pool(architectures.conv(jnp.ones, x, 1, 5, 2), 3))),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("axis", [1, 2])
def test_receptive_field_is_what_gradients_reach(name, axis):
    f, x = FIELDS[name], jnp.ones((1, 64, 64, 1))
    # The result is what a last 1x1 convolution sees.
    rows = summarize(lambda x: jaxcnn.conv(f(x), jnp.ones((1, 1, 1, 1))), x).rows
    field = rows[-1].receptive_field
    size, start, output = seen(f, x, axis)
    assert field.size[axis - 1] == size
    assert output * field.stride[axis - 1] - field.offset[axis - 1] == start


def test_receptive_field_of_a_transposed_convolution():
    def f(x):
        x = jaxcnn.conv(x, jnp.ones((3, 3, 1, 1)), strides=2)
        return jaxcnn.conv_transpose(x, jnp.ones((3, 3, 1, 1)), strides=2)

    rows = summarize(f, shape(1, 32, 32, 1)).rows
    assert [row.kind for row in rows] == ["conv", "transposed conv"]
    assert rows[1].receptive_field.size == (5, 5)
    assert rows[1].receptive_field.stride == (1, 1)
    assert rows[1].cost.macs == 16 * 16 * 9  # on input pixels


WHOLE = {
    "cumsum": jnp.cumsum,
    "sort": jnp.sort,
    "logcumsumexp": lax.cumlogsumexp,
    "fft": lambda x, axis: jnp.fft.fft(x, axis=axis).real,
    "rfft": lambda x, axis: abs(jnp.fft.rfft(x, axis=axis)),
    "top_k": lambda x, axis: jnp.moveaxis(lax.top_k(jnp.moveaxis(x, axis, -1), 20)[0], -1, axis),
    "residual": lambda x, axis: x + jnp.cumsum(x, axis),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("axis", [1, 2])
def test_what_runs_along_an_axis_sees_all_of_it(name, axis):
    def f(x, kernel):
        x = jaxcnn.conv(x, kernel, strides=2, padding=1)
        return jaxcnn.conv(WHOLE[name](x, axis), kernel)

    field = summarize(f, shape(1, 40, 40, 1), shape(3, 3, 1, 1)).rows[-1].receptive_field
    assert field.size[axis - 1] == 41  # the image, and the padding before it
    assert (field.stride[axis - 1], field.offset[axis - 1]) == (0, 1)
    assert (field.size[2 - axis], field.stride[2 - axis]) == (7, 2)


def test_receptive_field_of_a_window_reduction_that_is_no_pool():
    def f(x, kernel):
        x = lax.reduce_window(x, 0.0, jnp.logaddexp, (1, 3, 2, 1), (1, 2, 1, 1), "VALID", window_dilation=(1, 1, 3, 1))
        return jaxcnn.conv(x, kernel)

    field = summarize(f, shape(1, 40, 40, 1), shape(3, 3, 1, 1)).rows[-1].receptive_field
    assert (field.size, field.stride, field.offset) == ((7, 6), (2, 1), (2, 1))


def test_receptive_field_is_lost_where_everything_is_seen():
    rows = summarize(
        lambda x, w: jnp.reshape(x.mean((1, 2), keepdims=True) + 0 * x, (1, -1)) @ w, shape(1, 4, 4, 2), shape(32, 3)
    ).rows
    assert rows[0].kind == "dense"
    assert rows[0].receptive_field is None


BOX = np.full((3, 3, 1, 1), 0.1, np.float32)


def box(x):
    return jaxcnn.conv(x, BOX)


def shifted(x):
    return jnp.pad(x, ((0, 0), (2, 0), (2, 0), (0, 0)))[:, :-2, :-2]


def upsampled(x):
    batch, height, width, channels = x.shape
    spread = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return spread.reshape(batch, 2 * height, 2 * width, channels)


def blocks(x):
    """Space to depth, by squares of two pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5).sum((3, 4))


# Functions of an image of 16 pixels, and whether a field is known.
MOVED = {
    "patches": (lambda x: jaxcnn.extract_patches(box(x), 3, padding="SAME"), True),
    "shifted": (lambda x: shifted(x) + box(x), True),
    "mirrored": (lambda x: box(x)[:, ::-1], True),
    "mirrored twice": (lambda x: box(box(x)[:, ::-1])[:, ::-1], True),
    "mirrored and added": (lambda x: x + box(x)[:, ::-1], False),
    "rolled": (lambda x: x + jnp.roll(box(x), 2, 1), False),
    "split and put together": (lambda x: box(jnp.concatenate([box(x)[:, :5], box(x)[:, 5:]], 1)), True),
    "zeros put before": (lambda x: x + jnp.concatenate([jnp.zeros((1, 3, 16, 1)), box(x)[:, :-3]], 1), True),
    "by an index": (lambda x: box(box(x)[:, jnp.arange(16) // 2]), False),
    "resized, nearest": (lambda x: box(jax.image.resize(box(x), (1, 32, 32, 1), "nearest")), False),
    "resized, linear": (lambda x: box(jax.image.resize(box(x), (1, 32, 32, 1), "linear")), False),
    "repeated": (lambda x: box(upsampled(box(x))), True),
    "blocks": (lambda x: box(blocks(box(x))), True),
    "squeeze and excite": (lambda x: box(x) * box(x).mean((1, 2), keepdims=True), True),
    "squeeze and excite by a pool": (lambda x: box(x) * jaxcnn.global_avg_pool(box(x), keepdims=True), True),
    "standardized": (lambda x: box((x - x.mean()) / (x.std() + 1)), True),
    "transposed and added": (lambda x: box(x) + box(x).swapaxes(1, 2), False),
    "one of two": (lambda x: lax.cond(x.sum() > 0, lambda x: box(box(x)), lambda x: box(jnp.tanh(x)), x), True),
    "mirrored convolution of another stride": (lambda x: box(x)[:, ::2, ::2] + x[:, :8, :8], False),
    "dense over channels": (lambda x: box(box(x) @ np.ones((1, 1), np.float32)), True),
    "dense over rows": (lambda x: box(jnp.einsum("nhwc,hk->nkwc", box(x), np.ones((16, 16), np.float32))), False),
    "kernel from the image": (lambda x: jaxcnn.conv(x, BOX * x.mean()), True),
    "sorted in a loop": (lambda x: lax.scan(lambda c, row: (c, jnp.sort(row)), 0.0, box(x)[0])[1][None] + x, False),
}


@pytest.mark.parametrize("name", MOVED)
def test_the_field_of_the_results_is_not_smaller_than_what_gradients_reach(name):
    f, is_known = MOVED[name]
    x = jnp.asarray(np.random.default_rng(0).random((1, 16, 16, 1)), jnp.float32) + 0.5
    field = summarize(f, x).receptive_field
    assert (field is not None) == is_known
    if field is None:
        return
    result = jax.eval_shape(f, x)
    for position in ((1, 1), (result.shape[1] // 2, result.shape[2] // 2), (result.shape[1] - 1, result.shape[2] - 2)):
        gradient = jax.jit(jax.grad(lambda x, position=position: f(x)[(0, *position)].sum()))(x)
        touched = np.abs(np.asarray(gradient))[0, :, :, 0] > 0
        for axis in (0, 1):
            pixels = np.flatnonzero(touched.any(1 - axis))
            assert np.ptp(pixels) + 1 <= field.size[axis]


def test_a_mean_over_the_image_sees_all_of_it():
    field = summarize(MOVED["squeeze and excite"][0], shape(1, 16, 16, 1)).receptive_field
    assert (field.size, field.stride, field.offset) == ((18, 18), (0, 0), (1, 1))


def test_a_layer_in_a_while_has_no_field_of_its_first_step():
    def f(x):
        return lax.while_loop(lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, box(carry[1])), (0, x))[1]

    summary = summarize(f, shape(1, 16, 16, 1))
    assert [row.receptive_field for row in summary.rows] == [None]
    assert summary.receptive_field is None
