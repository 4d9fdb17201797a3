"""What the demo's two networks have in common: a layer, and the convolution that speed-ups are measured against."""

from typing import Any, NamedTuple

import jax
from jax import lax


class Layer(NamedTuple):
    """One convolution or matrix product: a kernel (an array or a `jaxcnn.KernelChain`) and a bias."""

    kernel: Any
    bias: Any


def plain_convolution(x: jax.Array, kernel: jax.Array, *, padding: str = "SAME") -> jax.Array:
    """The convolution that a user of JAX would otherwise write: channels last, stride 1."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
