"""Convolution as users call it; `_convolution.py` checks the arguments and binds the primitive."""

from __future__ import annotations

from typing import Any

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxcnn.arguments import IntOrInts, frozen
from jaxcnn.chain import KernelChain
from jaxcnn.geometry import Padding
from jaxcnn.layout import Layout


def _bodies() -> Any:
    """`_convolution`, imported at the first call: JAX's extension modules would be half of the import time."""
    from jaxcnn import _convolution

    return _convolution


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
    r"""Convolution of images with a kernel, or with a chain of kernels, in 1, 2, 3 or more spatial dimensions.

    $y[n, o, c] = \sum_{t, i} x[n, o s + t d - p, i] \, k[t, i, c]$ with stride s, kernel dilation d and low padding p:
    a cross-correlation, the kernel is not flipped. With G groups, output channel c sees the input channels of group
    $\lfloor c G / C_{out} \rfloor$ only.

    Args:
      x: `(*batch, *spatial, C_in)`, or as `layout` says; none, one or several batch axes.
      kernel: `(*window, C_in / feature_group_count, C_out)`, or a `KernelChain`, which gives what its dense kernel
        would, borders included.
      strides: step of the window, in pixels; an int or one for each spatial axis.
      padding: pixels added around x: `"SAME"` (ceil(size / stride) outputs, the odd pixel last), `"SAME_LOWER"` (the
        odd pixel first), `"VALID"` (none), `"CAUSAL"` (all before, one spatial axis), an int, one int for each axis or
        one (low, high) pair for each axis; negative values crop.
      padding_mode: what the padding of 1234 holds: `"zeros"`, `"reflect"` (432|1234|321), `"replicate"` (111|1234|444)
        or `"circular"` (234|1234|123).
      input_dilation: distance between neighbouring input pixels, the holes filled with zeros.
      kernel_dilation: distance between neighbouring taps of the kernel.
      feature_group_count: number of groups into which input and output channels are split.
      layout: axes of x, kernel and result: None (channels-last, HWIO), a string such as `"NCHW"` (kernel then OIHW), or
        the triple that lax takes. A chain's kernels are HWIO in any layout.
      precision: as in `lax.conv_general_dilated`.
      preferred_element_type: dtype of the result. By default that of the operands, and int32 for narrower integers;
        16-bit floats are accumulated in float32 and rounded once.
      method: `"auto"`, or the name of the method to compute it with: `"direct"`, `"shift"`, `"matmul"`,
        `"winograd"`, `"fft"` or `"per_group"`.

    Returns:
      `(*batch, *output, C_out)` in x's order of axes, where
      output = floor((size + padding - (window - 1) * kernel_dilation - 1) / strides) + 1.

    Raises:
      ValueError: shapes or options that do not fit; a window larger than its padded input; a method that does not
        exist or does not support this convolution.
      TypeError: an option of the wrong type; dtypes that do not promote.

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
    return _bodies().conv(
        x,
        kernel,
        strides=frozen(strides),
        padding=frozen(padding),
        padding_mode=frozen(padding_mode),
        input_dilation=frozen(input_dilation),
        kernel_dilation=frozen(kernel_dilation),
        feature_group_count=frozen(feature_group_count),
        layout=frozen(layout),
        precision=frozen(precision),
        preferred_element_type=preferred_element_type,
        method=frozen(method),
    )


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
    r"""Convolution of each channel by kernels of its own.

    $y[n, o, c M + m] = \sum_t x[n, o s + t d - p, c] \, k[t, c, m]$: `conv` with as many groups as channels.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      kernel: `(*window, C, M)`, M kernels for each channel, in any layout given by a string; with a triple its axes are
        as the triple says, C in the place of I and M in that of O. Or a `KernelChain` of C groups.
      strides, padding, padding_mode, input_dilation, kernel_dilation, layout: as in `conv`.
      precision, preferred_element_type, method: as in `conv`.

    Returns:
      `(*batch, *output, C * M)` in x's order of axes; output channel c * M + m.

    Raises:
      ValueError, TypeError: as in `conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])   # 3 pixels, 2 channels
      >>> depthwise_conv(x, jnp.ones((2, 2, 1)), padding="VALID")
      Array([[ 3., 30.],
             [ 5., 50.]], dtype=float32)

    References:
      Equals `tf.nn.depthwise_conv2d` and `keras.layers.DepthwiseConv2D` in kernel shape and channel order.
    """
    return _bodies().depthwise_conv(
        x,
        kernel,
        strides=frozen(strides),
        padding=frozen(padding),
        padding_mode=frozen(padding_mode),
        input_dilation=frozen(input_dilation),
        kernel_dilation=frozen(kernel_dilation),
        layout=frozen(layout),
        precision=frozen(precision),
        preferred_element_type=preferred_element_type,
        method=frozen(method),
    )


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
    r"""Transposed convolution: the adjoint of `conv` with the same kernel and arguments.

    $\langle \mathrm{conv}(u, k), x \rangle = \langle u, \mathrm{conv\_transpose}(x, k) \rangle$ for every u of the
    result's shape: $y[n, j, i] = \sum_{o s + t d - p = j} \sum_c x[n, o, c] \, k[t, i, c]$.

    Args:
      x: `(*batch, *spatial, C_out)`, or as `layout` says: an output of the convolution.
      kernel: `(*window, C_in / feature_group_count, C_out)`, the convolution's kernel (PyTorch's transposed weight is
        this kernel as OIHW), or a `KernelChain`.
      strides, padding, kernel_dilation, feature_group_count, layout: of the convolution. `padding` crops the result.
      output_padding: pixels added at the end of the result, where several sizes have the same convolution; smaller than
        the stride or the dilation. Not with `"SAME"`.
      precision, preferred_element_type, method: as in `conv`.

    Returns:
      `(*batch, *output, C_in)` in x's order of axes, where output = (size - 1) * strides +
      (window - 1) * kernel_dilation + 1 - low - high + output_padding, or size * strides for `"SAME"`.

    Raises:
      ValueError: as in `conv`; no pixel left; an output padding that is too large.
      TypeError: as in `conv`.

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
    return _bodies().conv_transpose(
        x,
        kernel,
        strides=frozen(strides),
        padding=frozen(padding),
        output_padding=frozen(output_padding),
        kernel_dilation=frozen(kernel_dilation),
        feature_group_count=frozen(feature_group_count),
        layout=frozen(layout),
        precision=frozen(precision),
        preferred_element_type=preferred_element_type,
        method=frozen(method),
    )


def extract_patches(
    x: ArrayLike,
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    layout: Layout = None,
) -> jax.Array:
    r"""The window under each output pixel, flattened into the feature axis (im2col).

    $y[n, o, (t, i)] = x[n, o s + t d - p, i]$, zero on padding.

    Args:
      x: `(*batch, *spatial, C)`, or as `layout` says.
      window_shape: taps of the window; one int for each spatial axis, or an int (without a layout: one batch axis).
      strides, padding, layout: as in `conv`.
      window_dilation: distance between neighbouring taps.

    Returns:
      `(*batch, *output, window * C)` in x's order of axes. The feature axis is ordered as a kernel of that layout is:
      channels-last (*window, C), channels-first (C, *window), so that `conv(x, kernel)` equals
      `patches @ kernel.reshape(-1, C_out)` for channels-last.

    Raises:
      ValueError, TypeError: as in `conv`.

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
    return _bodies().extract_patches(
        x,
        window_shape=frozen(window_shape),
        strides=frozen(strides),
        padding=frozen(padding),
        window_dilation=frozen(window_dilation),
        layout=frozen(layout),
    )
