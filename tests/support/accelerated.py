"""A small network with the convolutions and pools that `accelerate` rewrites, and its arguments."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from support.arrays import jax_normal


def network(params, x, *, train=False):
    """A small channels-first network with a strided, a depthwise and a dilated convolution, pools and a classifier."""
    layout = ("NCHW", "OIHW", "NCHW")
    conv = partial(lax.conv_general_dilated, dimension_numbers=layout, window_strides=(1, 1), padding="SAME")
    x = jax.nn.relu(conv(x, params["stem"], window_strides=(2, 2)))
    x = x + conv(x, params["depthwise"], feature_group_count=x.shape[1])
    x = conv(x, params["grouped"], rhs_dilation=(2, 2), feature_group_count=2)
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME")
    x = lax.reduce_window(x, 0.0, lax.add, (1, 1, 2, 2), (1, 1, 1, 1), "VALID")
    if train:
        x = x - x.mean((0, 2, 3), keepdims=True)
    return x.mean((2, 3)) @ params["head"]


def small(params, x):
    """Computes one convolution and one pool, the operations of a network: programs are compiled for it in no time."""
    y = lax.conv_general_dilated(x, params["stem"][:3, :1], (1, 1), "SAME", feature_group_count=3)
    return lax.reduce_window(jnp.sin(y), -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def parameters():
    shapes = {"stem": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "grouped": (8, 4, 3, 3), "head": (8, 5)}
    return {name: jax_normal(shape, seed) / 3 for seed, (name, shape) in enumerate(shapes.items())}


PARAMS, X = parameters(), jax_normal((2, 3, 17, 17), 9)
