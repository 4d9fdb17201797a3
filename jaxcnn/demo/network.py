"""Parts that the demo's networks share: a layer, and the convolution that speed-ups are measured against."""

from typing import Any, NamedTuple

import jax
from jax import lax


class Layer(NamedTuple):
    """Holds one convolution or matrix product: a kernel (an array or a `jaxcnn.KernelChain`) and a bias."""

    kernel: Any
    bias: Any


def plain_convolution(
    x: jax.Array, kernel: jax.Array, *, strides: int = 1, padding: str = "SAME", feature_group_count: int = 1
) -> jax.Array:
    """Computes the convolution that a user of JAX would otherwise write, channels last."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=feature_group_count,
    )
