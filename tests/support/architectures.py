"""Networks of the literature as layers alone, for counts and receptive fields that others have published.

Each is `f(weights, x)` in which every convolution takes its kernel from `weights(shape)`; nothing else is computed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def conv(weights, x, features, window, strides=1, padding="SAME", groups=1, dilation=1):
    window = (window, window) if isinstance(window, int) else window
    kernel = weights((*window, x.shape[-1] // groups, features))
    if isinstance(padding, int):
        padding = ((padding, padding),) * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def max_pool(x, window, strides, padding="SAME"):
    if isinstance(padding, int):
        padding = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, strides, strides, 1), padding)


def avg_pool(x, window, padding="SAME"):
    return lax.reduce_window(x, 0.0, lax.add, (1, window, window, 1), (1, 1, 1, 1), padding) / window**2


def dense(weights, x, features):
    return x @ weights((x.shape[-1], features))


def flat(x):
    return x.reshape(x.shape[0], -1)


def vgg16(weights, x):
    for repeats, features in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(repeats):
            x = jax.nn.relu(conv(weights, x, features, 3))
        x = max_pool(x, 2, 2)
    for features in (4096, 4096, 1000):
        x = dense(weights, flat(x), features)
    return x


def alexnet(weights, x):
    """Krizhevsky's "one weird trick", as torchvision has it."""
    x = max_pool(conv(weights, x, 64, 11, 4, 2), 3, 2, "VALID")
    x = max_pool(conv(weights, x, 192, 5, padding=2), 3, 2, "VALID")
    for features in (384, 256, 256):
        x = conv(weights, x, features, 3)
    x = flat(max_pool(x, 3, 2, "VALID"))
    for features in (4096, 4096, 1000):
        x = dense(weights, x, features)
    return x


def resnet50(weights, x, stride_in_last_block=False):
    """With the stride in the 3x3 (version 1.5), of a stage's first block, or of its last, as TF-Slim has it."""
    x = max_pool(conv(weights, x, 64, 7, 2, 3), 3, 2, "SAME" if stride_in_last_block else 1)
    for stage, (repeats, features) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(repeats):
            if stride_in_last_block:
                strides = 2 if block == repeats - 1 and stage < 3 else 1
            else:
                strides = 2 if block == 0 and stage > 0 else 1
            y = conv(weights, x, features, 1)
            y = conv(weights, y, features, 3, strides, 1)
            y = conv(weights, y, 4 * features, 1)
            if x.shape[-1] != 4 * features:
                x = conv(weights, x, 4 * features, 1, strides)
            elif strides > 1:
                x = max_pool(x, 1, strides)
            x = jax.nn.relu(x + y)
    return dense(weights, x.mean((1, 2)), 1000)


def mobilenet_v1(weights, x):
    x = conv(weights, x, 32, 3, 2)
    strided = (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1)
    for features, strides in strided:
        x = conv(weights, x, x.shape[-1], 3, strides, groups=x.shape[-1])
        x = conv(weights, x, features, 1)
    return dense(weights, x.mean((1, 2)), 1000)


def mobilenet_v2(weights, x):
    x = conv(weights, x, 32, 3, 2)
    stages = (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    for expansion, features, repeats, first in stages:
        for block in range(repeats):
            strides, wide = (first if block == 0 else 1), expansion * x.shape[-1]
            y = conv(weights, x, wide, 1) if expansion > 1 else x
            y = conv(weights, y, wide, 3, strides, groups=wide)
            y = conv(weights, y, features, 1)
            x = x + y if strides == 1 and x.shape == y.shape else y
    return dense(weights, conv(weights, x, 1280, 1).mean((1, 2)), 1000)


def inception_v3(weights, x):
    """The receptive field's skeleton: every branch's windows, with few features."""

    def row(x, *windows):
        for window in windows:
            x = conv(weights, x, 4, window)
        return x

    def joined(*branches):
        return jnp.concatenate(branches, -1)

    x = conv(weights, x, 4, 3, 2, "VALID")
    x = conv(weights, conv(weights, x, 4, 3, padding="VALID"), 4, 3)
    x = max_pool(x, 3, 2, "VALID")
    x = conv(weights, conv(weights, x, 4, 1), 4, 3, padding="VALID")
    x = max_pool(x, 3, 2, "VALID")
    for _ in range(3):
        x = joined(row(x, 1), row(x, 1, 5), row(x, 1, 3, 3), row(avg_pool(x, 3), 1))
    x = joined(
        conv(weights, x, 4, 3, 2, "VALID"), conv(weights, row(x, 1, 3), 4, 3, 2, "VALID"), max_pool(x, 3, 2, "VALID")
    )
    tall, wide = (7, 1), (1, 7)
    for _ in range(4):
        x = joined(row(x, 1), row(x, 1, wide, tall), row(x, 1, tall, wide, tall, wide), row(avg_pool(x, 3), 1))
    x = joined(
        conv(weights, row(x, 1), 4, 3, 2, "VALID"),
        conv(weights, row(x, 1, wide, tall), 4, 3, 2, "VALID"),
        max_pool(x, 3, 2, "VALID"),
    )
    for _ in range(2):
        split, deep = row(x, 1), row(x, 1, 3)
        x = joined(
            row(x, 1),
            row(split, (1, 3)),
            row(split, (3, 1)),
            row(deep, (1, 3)),
            row(deep, (3, 1)),
            row(avg_pool(x, 3), 1),
        )
    return dense(weights, x.mean((1, 2)), 1000)
