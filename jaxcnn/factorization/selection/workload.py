"""Costs of a chain in a given convolution: multiply-accumulates by formula, milliseconds by the clock."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.convolution import conv
from jaxcnn.cost import conv_cost
from jaxcnn.layout import Layout
from jaxcnn.options import frozen
from jaxcnn.timing import median_seconds

_CLOCK_SECONDS = 0.1
"""Seconds for the blocks of calls of one chain."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Holds the convolution that a kernel is for: its images and its options.

    Args:
      operation: Name of the caller in error texts.
      input_shape: Shape of x; None counts one output pixel, far from borders.
      strides, padding, kernel_dilation, layout: Options of `conv`.
    """

    operation: str
    input_shape: Sequence[int] | None
    strides: Any
    padding: Any
    kernel_dilation: Any
    layout: Layout

    def __post_init__(self) -> None:
        if self.input_shape is not None:
            object.__setattr__(self, "input_shape", tuple(self.input_shape))
        elif frozen(self.strides) != 1 and math.prod(np.atleast_1d(self.strides)) != 1:
            raise ValueError(
                f"{self.operation}: the cost of a chain with strides depends on the image, so strides={self.strides!r} "
                "needs input_shape"
            )
        elif not (isinstance(self.padding, str) and self.padding.upper() == "SAME"):
            raise ValueError(
                f"{self.operation}: without input_shape costs are those of one output pixel, whatever the padding, so "
                f"padding={self.padding!r} needs input_shape"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Returns the options that `conv` and `conv_cost` take."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "kernel_dilation": self.kernel_dilation,
            "layout": self.layout,
        }

    def macs(self, chain: KernelChain) -> int:
        """Returns the multiply-accumulates on the image; without an image those of one pixel, one for each weight."""
        if self.input_shape is None:
            return chain.num_params
        return conv_cost(self.input_shape, chain, **self.options).macs

    def milliseconds(self, chain: KernelChain) -> float:
        """Returns the milliseconds of one call on this device, by the timer of `jaxcnn.timing`."""
        if self.input_shape is None:
            raise ValueError(f"{self.operation}: milliseconds are measured on an image, so they need input_shape")
        generator = np.random.default_rng(0)
        dtype = jax.dtypes.canonicalize_dtype(chain.dtype)
        x = jnp.asarray(generator.standard_normal(self.input_shape), dtype)
        kernels = (jnp.asarray(generator.standard_normal(link.shape), dtype) for link in chain.kernels)
        random = KernelChain(tuple(kernels), chain.feature_group_counts)

        def call(x: jax.Array, chain: KernelChain) -> jax.Array:
            return conv(x, chain, **self.options)

        function = jax.jit(call)
        return 1e3 * median_seconds({"chain": lambda: function(x, random)}, _CLOCK_SECONDS)["chain"]
