"""Parts that the demo's networks share: a layer, and the convolution that speed-ups are measured against."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax


class Layer(NamedTuple):
    """Holds one convolution or matrix product: a kernel (an array or a `jaxcnn.KernelChain`) and a bias."""

    kernel: Any
    bias: Any


def plain_convolution(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    feature_group_count: int = 1,
) -> jax.Array:
    """Computes the convolution that a user of JAX would otherwise write, channels last, with lax's forms of padding."""
    axes = kernel.ndim - 2
    spatial = "0123456789"[:axes]
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * axes if isinstance(strides, int) else strides,
        padding,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=feature_group_count,
    )
