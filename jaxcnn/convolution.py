"""Convolutions: each public function with the body that checks its arguments and binds the primitive."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxcnn.chain import KernelChain
from jaxcnn.dtypes import check_arrays, common_dtype, floating_at_least_float32, result_dtype, user_precision
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Ints, Padding
from jaxcnn.layout import Layout, parse_layout
from jaxcnn.links import bind_links, bind_links_transposed
from jaxcnn.lowering.choice import check_method
from jaxcnn.lowering.common.forms import pad_spatial
from jaxcnn.options import ConvGeometry, ConvOptions, PoolOptions


def conv(
    x: ArrayLike,
    kernel: ArrayLike | KernelChain,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    input_dilation: IntOrInts = 1,
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    method: str = "auto",
) -> jax.Array:
    r"""Convolves images with a kernel, or with a chain of kernels, in 1, 2, 3 or more spatial dimensions.

    $y[n, o, c] = \sum_{t, i} x[n, o s + t d - p, i] \, k[t, i, c]$ with stride s, kernel dilation d and low padding p:
    a cross-correlation, the kernel is not flipped. With G groups, output channel c sees the input channels of group
    $\lfloor c G / C_{out} \rfloor$ only.

    Args:
      x: `(*batch, *spatial, C_in)`, or as `layout` says; none, one or several batch axes.
      kernel: `(*window, C_in / feature_group_count, C_out)`, or a `KernelChain`, whose result is that of its dense
        kernel, borders included.
      strides: step of the window, in pixels; an int, or one int for each spatial axis.
      padding: number of pixels added around x: `"SAME"` (ceil(size / stride) outputs, the odd pixel last),
        `"SAME_LOWER"` (the odd pixel first), `"VALID"` (none), `"CAUSAL"` (all before, one spatial axis), an int, one
        int for each axis or one (low, high) pair for each axis; negative values crop.
      padding_mode: values that the padding of 1234 holds: `"zeros"`, `"reflect"` (432|1234|321), `"replicate"`
        (111|1234|444) or `"circular"` (234|1234|123).
      input_dilation: distance between neighbouring input pixels; the holes are zeros.
      kernel_dilation: distance between neighbouring taps of the kernel.
      feature_group_count: number of groups into which input and output channels are split.
      layout: order of the axes of x, kernel and result: None (channels-last, HWIO), a string such as `"NCHW"` (kernel
        then OIHW), or the triple that lax takes. A chain's kernels are HWIO in any layout.
      precision: precision of the products, as in `lax.conv_general_dilated`.
      preferred_element_type: dtype of the result. The default is the dtype of the operands, and int32 for narrower
        integers; 16-bit floats are accumulated in float32 and rounded once.
      method: name of the method that computes the result: `"auto"`, `"direct"`, `"shift"`, `"matmul"`,
        `"winograd"`, `"fft"`, `"per_group"` or `"native"`.

    Returns:
      `(*batch, *output, C_out)` in x's order of axes, where
      output = floor((size + padding - (window - 1) * kernel_dilation - 1) / strides) + 1.

    Raises:
      ValueError: Shapes or options do not fit; a window is larger than its padded input; the method does not exist or
        does not support this convolution.
      TypeError: An option has the wrong type; the dtypes do not promote.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(25.0).reshape(1, 5, 5, 1)
      >>> conv(x, jnp.ones((3, 3, 1, 1)), padding="VALID")[0, :, :, 0]
      Array([[ 54.,  63.,  72.],
             [ 99., 108., 117.],
             [144., 153., 162.]], dtype=float32)

    References:
      Equals `lax.conv_general_dilated` with channels-last dimension numbers, `flax.linen.Conv` without bias and
      `torch.nn.functional.conv2d` with `layout="NCHW"`. Differs: an empty result is refused, int8 returns int32, and
      PyTorch's padding `k // 2` with a stride is not `"SAME"`. Dumoulin and Visin, "A guide to convolution arithmetic
      for deep learning", 2016.
    """
    with ErrorPrefix("conv"):
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
        return _conv(x, kernel, options)


@partial(jax.jit, static_argnames=("options", "canonical_kernel"), inline=True)
def _conv(
    x: jax.Array, kernel: jax.Array | KernelChain, options: ConvOptions, *, canonical_kernel: bool = False
) -> jax.Array:
    check_method(options.method)
    check_arrays(x=x, kernel=kernel)
    geometry = options.geometry(x.shape, kernel, canonical_kernel=canonical_kernel)
    dtype = common_dtype(x, kernel)
    kernels, counts = _links(kernel, geometry, dtype)
    result = bind_links(
        geometry.order.to_canonical(x).astype(dtype),
        kernels,
        counts,
        geometry,
        precision=user_precision(options.precision),
        preferred_element_type=result_dtype(dtype, options.preferred_element_type),
        method=options.method,
    )
    return geometry.order.from_canonical(result, geometry.batch_shape)


def _links(kernel: Any, geometry: ConvGeometry, dtype: np.dtype) -> tuple[list[jax.Array], Ints]:
    """Returns the kernels to convolve with in a row, as HWIO of one dtype, and their group counts."""
    if isinstance(kernel, KernelChain):
        return [link.astype(dtype) for link in kernel.kernels], kernel.feature_group_counts
    return [geometry.order.kernel_to_canonical(kernel).astype(dtype)], (geometry.feature_group_count,)


def depthwise_conv(
    x: ArrayLike,
    kernel: ArrayLike | KernelChain,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    input_dilation: IntOrInts = 1,
    kernel_dilation: IntOrInts = 1,
    layout: Layout = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    method: str = "auto",
) -> jax.Array:
    r"""Convolves each channel with kernels of its own.

    $y[n, o, c M + m] = \sum_t x[n, o s + t d - p, c] \, k[t, c, m]$: `conv` with as many groups as channels.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      kernel: `(*window, C, M)`, M kernels for each channel, for every layout given by a string; for a triple the order
        of axes that it says, with C in the place of I and M in that of O. Or a `KernelChain` of C groups.
      strides, padding, padding_mode, input_dilation, kernel_dilation, layout: options of `conv`.
      precision, preferred_element_type, method: options of `conv`.

    Returns:
      `(*batch, *output, C * M)` in x's order of axes; output channel c * M + m.

    Raises:
      ValueError, TypeError: options of `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])   # 3 pixels, 2 channels
      >>> depthwise_conv(x, jnp.ones((2, 2, 1)), padding="VALID")
      Array([[ 3., 30.],
             [ 5., 50.]], dtype=float32)

    References:
      Equals `tf.nn.depthwise_conv2d` and `keras.layers.DepthwiseConv2D` in kernel shape and channel order.
    """
    with ErrorPrefix("depthwise_conv"):
        options = ConvOptions.of(
            strides=strides,
            padding=padding,
            padding_mode=padding_mode,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            layout=layout,
            precision=precision,
            preferred_element_type=preferred_element_type,
            method=method,
        )
        return _depthwise_conv(x, kernel, options)


@partial(jax.jit, static_argnames="options", inline=True)
def _depthwise_conv(x: jax.Array, kernel: jax.Array | KernelChain, options: ConvOptions) -> jax.Array:
    if isinstance(kernel, KernelChain):
        return _conv(x, kernel, options)
    check_arrays(x=x, kernel=kernel)
    grouped, channels = _grouped_kernel(kernel, options.layout)
    return _conv(x, grouped, options._replace(feature_group_count=max(channels, 1)), canonical_kernel=True)


def _grouped_kernel(kernel: jax.Array, layout: Layout) -> tuple[jax.Array, int]:
    """Returns a depthwise kernel (*window, C, M) as a grouped one, (*window, 1, C * M), and the number of channels."""
    rank = kernel.ndim - 2
    if rank < 1:
        raise ValueError(
            f"kernel must have at least one window axis, a channel and a multiplier axis, got shape {kernel.shape}"
        )
    if isinstance(layout, tuple):
        kernel = parse_layout(layout, rank).kernel_to_canonical(kernel)
    *window, channels, multiplier = kernel.shape
    # Output channel c * M + m is what a row-major reshape of (C, M) gives.
    return kernel.reshape(*window, min(channels, 1), channels * multiplier), channels


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike | KernelChain,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    output_padding: IntOrInts = 0,
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
    precision: Any = None,
    preferred_element_type: DTypeLike | None = None,
    method: str = "auto",
) -> jax.Array:
    r"""Computes a transposed convolution, the adjoint of `conv` with the same kernel and arguments.

    $\langle \mathrm{conv}(u, k), x \rangle = \langle u, \mathrm{conv\_transpose}(x, k) \rangle$ for every u of the
    result's shape: $y[n, j, i] = \sum_{o s + t d - p = j} \sum_c x[n, o, c] \, k[t, i, c]$.

    Args:
      x: `(*batch, *spatial, C_out)`, or as `layout` says; an output of the convolution.
      kernel: `(*window, C_in / feature_group_count, C_out)`, the convolution's kernel (PyTorch's transposed weight is
        this kernel as OIHW), or a `KernelChain`.
      strides, padding, kernel_dilation, feature_group_count, layout: options of the convolution, as in `conv`; its
        `padding` crops the result.
      output_padding: number of pixels added at the end of the result, where the convolution has this output for several
        input sizes; smaller than the stride or the dilation. Not with `"SAME"`.
      precision, preferred_element_type, method: options of `conv`.

    Returns:
      `(*batch, *output, C_in)` in x's order of axes, where output = (size - 1) * strides +
      (window - 1) * kernel_dilation + 1 - low - high + output_padding, or size * strides for `"SAME"`.

    Raises:
      ValueError: arguments of `conv`; no pixel is left; the output padding is too large.
      TypeError: option of `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0], [2.0]])
      >>> conv_transpose(x, jnp.array([1.0, 10.0, 100.0]).reshape(3, 1, 1), strides=2, padding="VALID").ravel()
      Array([  1.,  10., 102.,  20., 200.], dtype=float32)

    References:
      Equals `torch.nn.functional.conv_transpose2d` (`layout="NCHW"`, its `padding` as ints) and
      `keras.layers.Conv2DTranspose` (its kernel is this kernel; for `"VALID"` with a window smaller than the stride
      Keras' result is longer: give `output_padding`). `lax.conv_transpose` does not flip the kernel unless
      `transpose_kernel=True`, and its explicit padding means the padding of the dilated input.
    """
    with ErrorPrefix("conv_transpose"):
        options = ConvOptions.of(
            strides=strides,
            padding=padding,
            output_padding=output_padding,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            layout=layout,
            precision=precision,
            preferred_element_type=preferred_element_type,
            method=method,
        )
        return _conv_transpose(x, kernel, options)


@partial(jax.jit, static_argnames="options", inline=True)
def _conv_transpose(x: jax.Array, kernel: jax.Array | KernelChain, options: ConvOptions) -> jax.Array:
    check_method(options.method)
    check_arrays(x=x, kernel=kernel)
    geometry = options.transposed_geometry(x.shape, kernel)
    out_dtype = result_dtype(common_dtype(x, kernel), options.preferred_element_type)
    y = geometry.order.to_canonical(x)
    # An output padding of a stride or more adds pixels that only outputs past the end of x would reach.
    y = pad_spatial(y, [(0, needed - size) for needed, size in zip(geometry.output_sizes, y.shape[1:-1], strict=True)])
    # One link of 16-bit floats accumulates in float32 by itself; several keep float32 between them.
    several = isinstance(kernel, KernelChain) and len(kernel.kernels) > 1
    dtype = floating_at_least_float32(out_dtype) if several else out_dtype
    kernels, counts = _links(kernel, geometry, dtype)
    result = bind_links_transposed(
        y.astype(dtype),
        kernels,
        counts,
        geometry,
        precision=user_precision(options.precision),
        preferred_element_type=dtype,
        method=options.method,
    )
    return geometry.order.from_canonical(result.astype(out_dtype), geometry.batch_shape)


def extract_patches(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    layout: Layout = None,
) -> jax.Array:
    r"""Copies the window under each output pixel into the feature axis (im2col).

    $y[n, o, (t, i)] = x[n, o s + t d - p, i]$, zero on padding.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape: taps of the window; one int for each spatial axis, or an int (which without a layout means one batch
        axis).
      strides, padding, layout: options of `conv`.
      window_dilation: distance between neighbouring taps.

    Returns:
      `(*batch, *output, window * C)` in x's order of axes. The feature axis is ordered as a kernel of that layout is:
      channels-last (*window, C), channels-first (C, *window), so that `conv(x, kernel)` equals
      `patches @ kernel.reshape(-1, C_out)` for channels-last.

    Raises:
      ValueError, TypeError: options of `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> extract_patches(jnp.arange(4.0).reshape(4, 1), (2,))
      Array([[0., 1.],
             [1., 2.],
             [2., 3.]], dtype=float32)

    References:
      `lax.conv_general_dilated_patches` orders features as (C, *window) in every layout, as
      `torch.nn.functional.unfold` does for its channels-first images.
    """
    with ErrorPrefix("extract_patches"):
        options = PoolOptions.of(
            window_shape=window_shape,
            strides=strides,
            padding=padding,
            window_dilation=window_dilation,
            layout=layout,
        )
        return _extract_patches(x, options)


@partial(jax.jit, static_argnames="options", inline=True)
def _extract_patches(x: jax.Array, options: PoolOptions) -> jax.Array:
    check_arrays(x=x)
    geometry = options.geometry(x.shape)
    order, rank = geometry.order, geometry.order.rank
    y = pad_spatial(order.to_canonical(x), geometry.padding)
    for axis in range(rank):
        # One spatial axis at a time takes as many slices as the window has rows and columns, not as it has taps.
        output, step, dilation = geometry.output_sizes[axis], geometry.strides[axis], geometry.window_dilation[axis]
        starts = range(0, geometry.window[axis] * dilation, dilation)
        taps = [lax.slice_in_dim(y, start, start + (output - 1) * step + 1, step, axis=axis + 1) for start in starts]
        y = jnp.stack(taps, axis=y.ndim - 1)
    # (N, *output, *window, C): the window's axes and C are ordered as in a kernel of this layout.
    position = {name: rank + 1 + axis for axis, name in enumerate([*map(str, range(rank)), "I"])}
    y = y.transpose(*range(rank + 1), *(position[name] for name in order.kernel if name != "O"))
    y = y.reshape(*y.shape[: rank + 1], math.prod(y.shape[rank + 1 :]))
    return order.from_canonical(y, geometry.batch_shape)
