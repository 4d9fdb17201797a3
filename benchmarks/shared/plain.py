"""Convolutions and pools in plain lax, without jaxcnn: the reference of every benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CHANNELS_LAST = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}
CHANNELS_FIRST = {1: ("NCW", "OIW", "NCW"), 2: ("NCHW", "OIHW", "NCHW")}

Ints = int | Sequence[int]


def _per_axis(value: Ints, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def conv(x: Any, kernel: Any, strides: Ints = 1, padding: Any = "SAME", numbers: Any = None, **options: Any) -> Any:
    """Computes a convolution; images are channels-last unless `numbers` names other dimension numbers."""
    rank = x.ndim - 2
    numbers = numbers or CHANNELS_LAST[rank]
    return lax.conv_general_dilated(x, kernel, _per_axis(strides, rank), padding, dimension_numbers=numbers, **options)


def depthwise_conv(x: Any, kernel: Any, strides: Ints = 1) -> Any:
    """Computes a depthwise convolution with a kernel (*window, C, 1)."""
    return conv(x, kernel.swapaxes(-1, -2), strides, feature_group_count=x.shape[-1])


def conv_transpose(x: Any, kernel: Any, strides: Ints, padding: Any = "SAME", transpose_kernel: bool = True) -> Any:
    """Computes a transposed convolution; lax's `padding` is that of the image with its pixels spread out."""
    rank = x.ndim - 2
    return lax.conv_transpose(
        x,
        kernel,
        _per_axis(strides, rank),
        padding,
        dimension_numbers=CHANNELS_LAST[rank],
        transpose_kernel=transpose_kernel,
    )


def pool(x: Any, window: Ints, strides: Ints, start: float, combine: Any, padding: Ints = 0) -> Any:
    """Computes a pool of channels-last images."""
    rank = x.ndim - 2
    pads = ((0, 0), *((pad, pad) for pad in _per_axis(padding, rank)), (0, 0))
    return lax.reduce_window(
        x, start, combine, (1, *_per_axis(window, rank), 1), (1, *_per_axis(strides, rank), 1), pads
    )


def max_pool(x: Any, window: Ints, strides: Ints, padding: Ints = 0) -> Any:
    """Returns the largest value of each window."""
    return pool(x, window, strides, -np.inf, lax.max, padding)


def sum_pool(x: Any, window: Ints, strides: Ints, padding: Ints = 0) -> Any:
    """Returns the sum of each window."""
    return pool(x, window, strides, 0.0, lax.add, padding)


def avg_pool(x: Any, window: Ints, strides: Ints, padding: Ints = 0) -> Any:
    """Returns the mean of each window, padding counted."""
    return sum_pool(x, window, strides, padding) / math.prod(_per_axis(window, x.ndim - 2))


def gradient(function: Callable) -> Callable:
    """Returns a function of the gradients by all arguments, for the loss 0.5 * sum(function(*args) ** 2)."""

    def gradients(*args: Any) -> Any:
        return jax.grad(lambda *args: 0.5 * jnp.sum(function(*args) ** 2), tuple(range(len(args))))(*args)

    return gradients
