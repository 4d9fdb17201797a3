"""Costs of a chain in a given convolution: multiply-accumulates by formula, milliseconds by the clock."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.convolution import conv
from jaxcnn.cost import conv_cost
from jaxcnn.layout import Layout
from jaxcnn.options import frozen

_BLOCK_SECONDS = 0.02
_BLOCKS = 5


def milliseconds(program: Callable[[], Any]) -> float:
    """Returns the time of one call of a compiled program: the least mean of several blocks of calls.

    Other work on the machine can only add to a time, so the least is nearest to the truth.
    """
    jax.block_until_ready(program())

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(program())
        return (time.perf_counter() - start) / calls

    calls = max(1, min(1000, int(_BLOCK_SECONDS / max(seconds(1), 1e-6))))
    return 1000 * min(seconds(calls) for _ in range(_BLOCKS))


@dataclasses.dataclass(frozen=True)
class Workload:
    """The convolution that a kernel is for: its images and its options.

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

    @property
    def options(self) -> dict[str, Any]:
        """The options that `conv` and `conv_cost` take."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "kernel_dilation": self.kernel_dilation,
            "layout": self.layout,
        }

    def macs(self, chain: KernelChain) -> int:
        """Returns multiply-accumulates on the image; without an image those of one pixel, one for each weight."""
        if self.input_shape is None:
            return chain.num_params
        return conv_cost(self.input_shape, chain, **self.options).macs

    def milliseconds(self, chain: KernelChain) -> float:
        """Returns the time of one call with random numbers on this device."""
        if self.input_shape is None:
            raise ValueError(f"{self.operation}: milliseconds are measured on an image, so they need input_shape")
        generator = np.random.default_rng(0)
        dtype = jax.dtypes.canonicalize_dtype(chain.dtype)
        x = jnp.asarray(generator.standard_normal(self.input_shape), dtype)
        kernels = (jnp.asarray(generator.standard_normal(link.shape), dtype) for link in chain.kernels)
        random = KernelChain(tuple(kernels), chain.feature_group_counts)

        def call(x: jax.Array, chain: KernelChain) -> jax.Array:
            return conv(x, chain, **self.options)

        compiled = jax.jit(call)
        return milliseconds(lambda: compiled(x, random))
