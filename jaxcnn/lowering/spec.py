"""`ConvSpec` and `PoolSpec`: one convolution, one pool, in the one canonical layout that every method sees.

Inputs are (N, *spatial, C), kernels (*window, C_in / groups, C_out), padding is explicit and not negative. With
`stacked` every operand and the result carry one more leading axis, and the convolution is done for each of its entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from jaxcnn.geometry import Pair, dilated_size, output_sizes

Role = Literal["output", "input", "kernel"]
Ints = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution y = conv(x, kernel), and which of the three arrays is computed from the other two.

    The three roles are the partial derivatives of the trilinear form sum(y * conv(x, kernel)): `"output"` maps
    (x, kernel) to y, `"input"` maps (y, kernel) to x, `"kernel"` maps (x, y) to the kernel.

    Args:
      role: which array is computed.
      input_shape: (N, *spatial, C_in) of x.
      kernel_shape: (*window, C_in / feature_group_count, C_out).
      output_shape: (N, *spatial, C_out) of y.
      strides: step of the window on each spatial axis.
      padding: (low, high) on each spatial axis, none negative, added after input dilation.
      input_dilation: distance between neighbouring pixels of x, on each spatial axis.
      kernel_dilation: distance between neighbouring taps of the kernel, on each spatial axis.
      feature_group_count: number of groups into which the channels are split.
      lhs_dtype: dtype of the first operand.
      rhs_dtype: dtype of the second operand.
      out_dtype: dtype of the result.
      precision: as in `lax.conv_general_dilated`.
      stacked: size of the leading axis that operands and result carry, or None.
      exported: whether the program is lowered for `jax.export`, which refuses XLA's layout constraints.
    """

    role: Role
    input_shape: Ints
    kernel_shape: Ints
    output_shape: Ints
    strides: Ints
    padding: tuple[Pair, ...]
    input_dilation: Ints
    kernel_dilation: Ints
    feature_group_count: int
    lhs_dtype: np.dtype
    rhs_dtype: np.dtype
    out_dtype: np.dtype
    precision: Any
    stacked: int | None
    exported: bool = False

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    @property
    def window(self) -> Ints:
        """Taps of the kernel on each spatial axis."""
        return self.kernel_shape[:-2]

    @property
    def result_shape(self) -> Ints:
        """Shape of the computed array, without the stacked axis."""
        return {"output": self.output_shape, "input": self.input_shape, "kernel": self.kernel_shape}[self.role]


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """One pool: a window slid over the spatial axes of x, (N, *spatial, C).

    Args:
      input_shape: (N, *spatial, C) of x.
      window_shape: taps on each spatial axis.
      strides: step of the window on each spatial axis.
      padding: (low, high) on each spatial axis, none negative.
      window_dilation: distance between neighbouring taps on each spatial axis.
      dtype: dtype of x and of the result.
      exported: as in `ConvSpec`.
    """

    input_shape: Ints
    window_shape: Ints
    strides: Ints
    padding: tuple[Pair, ...]
    window_dilation: Ints
    dtype: np.dtype
    exported: bool = False

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.strides)

    @property
    def output_shape(self) -> Ints:
        """(N, *spatial, C) of the result."""
        sizes = output_sizes("pool", self.input_shape[1:-1], self.padding, self.extents, self.strides)
        return (self.input_shape[0], *sizes, self.input_shape[-1])

    @property
    def extents(self) -> Ints:
        """Pixels that the dilated window spans on each spatial axis."""
        return tuple(dilated_size(w, d) for w, d in zip(self.window_shape, self.window_dilation, strict=True))


def conv_spec(
    lhs: Any,
    rhs: Any,
    *,
    role: Role,
    stacked: bool,
    strides: Ints,
    padding: tuple[Pair, ...],
    input_dilation: Ints,
    kernel_dilation: Ints,
    feature_group_count: int,
    precision: Any,
    preferred_element_type: np.dtype,
    input_size: Ints | None,
    window: Ints | None,
    exported: bool = False,
) -> ConvSpec:
    """The spec of operands (anything with `shape` and `dtype`) and the static parameters of the primitive."""
    lead = 1 if stacked else 0
    lhs_shape, rhs_shape = tuple(lhs.shape[lead:]), tuple(rhs.shape[lead:])
    if role == "output":
        input_shape, kernel_shape = lhs_shape, rhs_shape
        extents = tuple(dilated_size(w, d) for w, d in zip(kernel_shape[:-2], kernel_dilation, strict=True))
        dilated = tuple(dilated_size(n, d) for n, d in zip(input_shape[1:-1], input_dilation, strict=True))
        sizes = output_sizes("conv", dilated, padding, extents, strides)
        output_shape = (input_shape[0], *sizes, kernel_shape[-1])
    elif role == "input":
        output_shape, kernel_shape = lhs_shape, rhs_shape
        input_shape = (output_shape[0], *(input_size or ()), kernel_shape[-2] * feature_group_count)
    else:
        input_shape, output_shape = lhs_shape, rhs_shape
        kernel_shape = (*(window or ()), input_shape[-1] // feature_group_count, output_shape[-1])
    return ConvSpec(
        role=role,
        input_shape=input_shape,
        kernel_shape=kernel_shape,
        output_shape=output_shape,
        strides=strides,
        padding=padding,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=feature_group_count,
        lhs_dtype=np.dtype(lhs.dtype),
        rhs_dtype=np.dtype(rhs.dtype),
        out_dtype=np.dtype(preferred_element_type),
        precision=precision,
        stacked=lhs.shape[0] if stacked else None,
        exported=exported,
    )
