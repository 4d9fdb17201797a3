"""The jitted bodies of the convolutions: from checked arguments to bound primitives and back."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jaxcnn.arguments import (
    ConvArguments,
    conv_arguments,
    conv_transpose_arguments,
    pool_arguments,
)
from jaxcnn.chain import KernelChain
from jaxcnn.dtypes import floating_at_least_float32
from jaxcnn.layout import Layout, parse_layout
from jaxcnn.lowering.choice import check_method
from jaxcnn.operands import (
    bind_links,
    bind_links_transposed,
    check_arrays,
    common_dtype,
    pad_edges,
    result_dtype,
    user_precision,
)

_STATIC = (
    "strides",
    "padding",
    "kernel_dilation",
    "feature_group_count",
    "layout",
    "precision",
    "preferred_element_type",
    "method",
)


def _kernel_links(kernel: Any, arguments: ConvArguments, dtype: np.dtype) -> tuple[list[jax.Array], tuple[int, ...]]:
    """The kernels to convolve with, one after the other, as HWIO of one dtype, and their group counts."""
    if isinstance(kernel, KernelChain):
        return [link.astype(dtype) for link in kernel.kernels], kernel.feature_group_counts
    return [arguments.order.kernel_to_canonical(kernel).astype(dtype)], (arguments.feature_group_count,)


def _convolve(
    operation: str,
    x: jax.Array,
    kernel: jax.Array | KernelChain,
    *,
    precision: Any,
    preferred_element_type: DTypeLike | None,
    method: str,
    **options: Any,
) -> jax.Array:
    check_method(operation, method)
    check_arrays(operation, x=x, kernel=kernel)
    arguments = conv_arguments(operation, x.shape, kernel, **options)
    dtype = common_dtype(operation, x, kernel)
    kernels, counts = _kernel_links(kernel, arguments, dtype)
    result = bind_links(
        arguments.order.to_canonical(operation, x).astype(dtype),
        kernels,
        counts,
        arguments,
        precision=user_precision(precision),
        preferred_element_type=result_dtype(operation, dtype, preferred_element_type),
        method=method,
    )
    return arguments.order.from_canonical(result, arguments.batch_shape)


@partial(jax.jit, static_argnames=(*_STATIC, "padding_mode", "input_dilation"), inline=True)
def conv(x: jax.Array, kernel: jax.Array | KernelChain, **options: Any) -> jax.Array:
    """The body of `jaxcnn.conv`."""
    return _convolve("conv", x, kernel, **options)


def _grouped_kernel(kernel: jax.Array, layout: Layout) -> tuple[jax.Array, int]:
    """A depthwise kernel (*window, C, M) as a grouped one, (*window, 1, C * M), and the number of channels C."""
    rank = kernel.ndim - 2
    if rank < 1:
        raise ValueError(
            f"depthwise_conv: kernel must have at least one window axis, a channel and a multiplier axis, "
            f"got shape {tuple(kernel.shape)}"
        )
    if isinstance(layout, tuple):
        kernel = parse_layout("depthwise_conv", layout, rank).kernel_to_canonical(kernel)
    *window, channels, multiplier = kernel.shape
    # Output channel c * M + m is what a row-major reshape of (C, M) gives.
    return kernel.reshape(*window, min(channels, 1), channels * multiplier), channels


@partial(jax.jit, static_argnames=(*_STATIC, "padding_mode", "input_dilation"), inline=True)
def depthwise_conv(x: jax.Array, kernel: jax.Array | KernelChain, *, layout: Layout, **options: Any) -> jax.Array:
    """The body of `jaxcnn.depthwise_conv`."""
    if isinstance(kernel, KernelChain):
        return _convolve("depthwise_conv", x, kernel, feature_group_count=1, layout=layout, **options)
    check_arrays("depthwise_conv", x=x, kernel=kernel)
    grouped, channels = _grouped_kernel(kernel, layout)
    return _convolve(
        "depthwise_conv",
        x,
        grouped,
        feature_group_count=max(channels, 1),
        layout=layout,
        canonical_kernel=True,
        **options,
    )


@partial(jax.jit, static_argnames=(*_STATIC, "output_padding"), inline=True)
def conv_transpose(
    x: jax.Array,
    kernel: jax.Array | KernelChain,
    *,
    precision: Any,
    preferred_element_type: DTypeLike | None,
    method: str,
    **options: Any,
) -> jax.Array:
    """The body of `jaxcnn.conv_transpose`."""
    check_method("conv_transpose", method)
    check_arrays("conv_transpose", x=x, kernel=kernel)
    arguments = conv_transpose_arguments("conv_transpose", x.shape, kernel, **options)
    dtype = common_dtype("conv_transpose", x, kernel)
    out_dtype = result_dtype("conv_transpose", dtype, preferred_element_type)
    y = arguments.order.to_canonical("conv_transpose", x)
    # An output padding of a stride or more adds pixels that only outputs past the end of x would reach.
    y = pad_edges(y, [(0, all_ - own) for all_, own in zip(arguments.output_sizes, y.shape[1:-1], strict=True)])
    # One link of 16-bit floats accumulates in float32 by itself; several keep float32 between them.
    several = isinstance(kernel, KernelChain) and len(kernel.kernels) > 1
    inner = floating_at_least_float32(out_dtype) if several else out_dtype
    kernels, counts = _kernel_links(kernel, arguments, inner)
    result = bind_links_transposed(
        y.astype(inner),
        kernels,
        counts,
        arguments,
        precision=user_precision(precision),
        preferred_element_type=inner,
        method=method,
    )
    return arguments.order.from_canonical(result.astype(out_dtype), arguments.batch_shape)


@partial(jax.jit, static_argnames=("window_shape", "strides", "padding", "window_dilation", "layout"), inline=True)
def extract_patches(
    x: jax.Array,
    *,
    window_shape: Any,
    strides: Any,
    padding: Any,
    window_dilation: Any,
    layout: Layout,
) -> jax.Array:
    """The body of `jaxcnn.extract_patches`."""
    check_arrays("extract_patches", x=x)
    arguments = pool_arguments(
        "extract_patches",
        x.shape,
        window_shape,
        strides=strides,
        padding=padding,
        window_dilation=window_dilation,
        layout=layout,
    )
    order, rank = arguments.order, arguments.order.rank
    y = pad_edges(order.to_canonical("extract_patches", x), arguments.padding)
    for axis in range(rank):
        # One spatial axis at a time, so that there are as many slices as the window has rows and columns, not taps.
        output, step, dilation = arguments.output_sizes[axis], arguments.strides[axis], arguments.window_dilation[axis]
        starts = range(0, arguments.window[axis] * dilation, dilation)
        taps = [lax.slice_in_dim(y, at, at + (output - 1) * step + 1, step, axis=axis + 1) for at in starts]
        y = jnp.stack(taps, axis=y.ndim - 1)
    # (N, *output, *window, C): the window's axes and C are ordered as in a kernel of this layout.
    position = {name: rank + 1 + axis for axis, name in enumerate([*map(str, range(rank)), "I"])}
    y = y.transpose(*range(rank + 1), *(position[name] for name in order.kernel if name != "O"))
    y = y.reshape(*y.shape[: rank + 1], math.prod(y.shape[rank + 1 :]))
    return order.from_canonical(y, arguments.batch_shape)
