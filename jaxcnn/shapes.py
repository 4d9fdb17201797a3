"""Shapes of the results of convolutions and pools, computed without arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Padding
from jaxcnn.layout import Layout
from jaxcnn.options import ConvOptions, PoolOptions, shape_of


def conv_output_shape(
    x_shape: Sequence[int],
    kernel_shape: Sequence[int] | KernelChain,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    input_dilation: IntOrInts = 1,
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
    precision: Any = None,
    preferred_element_type: Any = None,
    method: str = "auto",
) -> tuple[int, ...]:
    """Returns the shape of `conv`'s result, by arithmetic alone.

    A spatial size is floor((size + low + high - (window - 1) * kernel_dilation - 1) / stride) + 1.

    Args:
      x_shape: shape of x.
      kernel_shape: shape of the kernel, or a `KernelChain`.
      strides, padding, padding_mode, input_dilation, kernel_dilation, feature_group_count, layout: options of `conv`.
      precision, preferred_element_type, method: arguments of `conv`; the shape does not depend on them.

    Returns:
      `(*batch, *output, C_out)` in x's order of axes.

    Raises:
      ValueError, TypeError: options of `conv`.

    Example:
      >>> conv_output_shape((1, 224, 224, 3), (7, 7, 3, 64), strides=2)
      (1, 112, 112, 64)

    References:
      Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, relationship 15.
    """
    with ErrorPrefix("conv_output_shape"):
        options = ConvOptions.of(
            strides=strides,
            padding=padding,
            padding_mode=padding_mode,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            layout=layout,
            precision=precision,
            preferred_element_type=preferred_element_type,
            method=method,
        )
        return options.geometry(shape_of(x_shape), shape_of(kernel_shape)).output_shape


def pool_output_shape(
    x_shape: Sequence[int],
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> tuple[int, ...]:
    """Returns the shape of a pool's result, by arithmetic alone.

    A spatial size is floor((size + low + high - (window - 1) * window_dilation - 1) / stride) + 1; with `ceil_mode` it
    is rounded up, unless the last window would start in the high padding.

    Args:
      x_shape: shape of x.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options of `max_pool`.

    Returns:
      `(*batch, *output, C)` in x's order of axes.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> pool_output_shape((1, 7, 7, 8), 2, strides=2)
      (1, 3, 3, 8)
      >>> pool_output_shape((1, 7, 7, 8), 2, strides=2, ceil_mode=True)
      (1, 4, 4, 8)

    References:
      `torch.nn.MaxPool2d` for `ceil_mode`.
    """
    with ErrorPrefix("pool_output_shape"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        return options.geometry(shape_of(x_shape)).output_shape
