"""The arguments of the public functions, checked and normalised once: what shapes and options alone decide."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

from jaxcnn.chain import KernelChain
from jaxcnn.geometry import (
    Padding,
    Pair,
    axis_values,
    ceil_sizes,
    dilated_size,
    output_sizes,
    resolve_padding,
    transposed_sizes,
)
from jaxcnn.layout import AxisOrder, Layout, parse_layout

Ints = tuple[int, ...]
IntOrInts = int | Sequence[int]

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""The padding modes, and what `jnp.pad` calls them."""


def frozen(value: Any) -> Any:
    """The same option as a hashable value: lists and arrays become tuples."""
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value


def sizes_of(shape: Any) -> Any:
    """A shape that may be a list or an array of sizes as a tuple; what has a shape of its own stays as it is."""
    return frozen(shape) if isinstance(shape, list | tuple) or getattr(shape, "ndim", None) == 1 else shape


@dataclasses.dataclass(frozen=True)
class ConvArguments:
    """A convolution's geometry. The transposed convolution's too: `sizes` are always those of the convolution's input.

    Args:
      order: the axes of input, kernel and output.
      batch_shape: sizes of the batch axes, in order; none or several are possible.
      sizes: spatial sizes of the convolution's input.
      output_sizes: spatial sizes of the convolution's output.
      in_features: channels of the convolution's input.
      out_features: channels of the convolution's output.
      window: taps of the kernel on each spatial axis.
      strides: step of the window on each spatial axis.
      padding: (low, high) on each spatial axis; negative values crop.
      padding_mode: what the padding is filled with.
      input_dilation: distance between neighbouring input pixels on each spatial axis.
      kernel_dilation: distance between neighbouring taps on each spatial axis.
      feature_group_count: number of groups.
    """

    order: AxisOrder
    batch_shape: Ints
    sizes: Ints
    output_sizes: Ints
    in_features: int
    out_features: int
    window: Ints
    strides: Ints
    padding: tuple[Pair, ...]
    padding_mode: str
    input_dilation: Ints
    kernel_dilation: Ints
    feature_group_count: int

    @property
    def output_shape(self) -> Ints:
        """Shape of the convolution's output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.output_sizes, self.out_features)

    @property
    def transposed_output_shape(self) -> Ints:
        """Shape of the transposed convolution's output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.sizes, self.in_features)


def group_count(operation: str, value: Any) -> int:
    """A number of groups, at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{operation}: feature_group_count must be an int, got {value!r}") from None
    if count < 1:
        raise ValueError(f"{operation}: feature_group_count must be at least 1, got {count}")
    return count


def _kernel_arguments(
    operation: str, kernel: Any, feature_group_count: int, layout: Layout, canonical_kernel: bool
) -> tuple[Ints, AxisOrder, int]:
    """Shape, axis order and group count of a kernel given as shape, array or chain."""
    groups = group_count(operation, feature_group_count)
    is_chain = isinstance(kernel, KernelChain)
    if is_chain:
        if groups not in (1, kernel.feature_group_count):
            raise ValueError(
                f"{operation}: the chain has a feature_group_count of its own, {kernel.feature_group_count}, "
                f"got {groups}"
            )
        groups = kernel.feature_group_count
    shape = tuple(kernel.shape if hasattr(kernel, "shape") else kernel)
    rank = len(shape) - 2
    if rank < 1:
        raise ValueError(
            f"{operation}: kernel must have at least one window axis, an input and an output feature axis, "
            f"got shape {shape}"
        )
    order = parse_layout(operation, layout, rank)
    if is_chain or canonical_kernel:
        order = dataclasses.replace(order, kernel=parse_layout(operation, None, rank).kernel)
    return shape, order, groups


def _check_features(
    operation: str, features: int, kernel_features: Ints, groups: int, shapes: str, *, transposed: bool
) -> None:
    """The channels of x and of the kernel must fit, and both must divide into the groups."""
    kernel_in, kernel_out = kernel_features
    if kernel_out % groups:
        raise ValueError(
            f"{operation}: the kernel's {kernel_out} output channels do not divide into "
            f"feature_group_count={groups} groups: {kernel_out} % {groups} = {kernel_out % groups} ({shapes})"
        )
    if transposed:
        if features != kernel_out:
            raise ValueError(
                f"{operation}: x has {features} channels, so kernel must have {features} output channels, "
                f"got {kernel_out} ({shapes})"
            )
        return
    if features % groups:
        raise ValueError(
            f"{operation}: x's {features} channels do not divide into feature_group_count={groups} groups: "
            f"{features} % {groups} = {features % groups} ({shapes})"
        )
    if features // groups != kernel_in:
        needed = features // groups
        sum_ = f" = {features} / {groups}" if groups > 1 else ""
        raise ValueError(
            f"{operation}: x has {features} channels and feature_group_count={groups}, so kernel must have "
            f"{needed}{sum_} input channels, got {kernel_in} ({shapes})"
        )


def conv_arguments(
    operation: str,
    x_shape: Sequence[int],
    kernel: Any,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    padding_mode: str = "zeros",
    input_dilation: IntOrInts = 1,
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
    canonical_kernel: bool = False,
) -> ConvArguments:
    """Checks and normalises what describes a convolution.

    With `canonical_kernel` the kernel is HWIO whatever the layout.
    """
    kernel_shape, order, groups = _kernel_arguments(operation, kernel, feature_group_count, layout, canonical_kernel)
    rank = order.rank
    batch_shape, sizes, in_features = order.split_input(operation, x_shape)
    *taps, kernel_in, out_features = (kernel_shape[axis] for axis in order.kernel_axes)
    shapes = f"x {tuple(x_shape)}, kernel {tuple(kernel_shape)}"
    _check_features(operation, in_features, (kernel_in, out_features), groups, shapes, transposed=False)
    window = _checked_window(operation, taps, shapes)
    strides = axis_values(operation, "strides", strides, rank)
    input_dilation = axis_values(operation, "input_dilation", input_dilation, rank)
    kernel_dilation = axis_values(operation, "kernel_dilation", kernel_dilation, rank)
    if not isinstance(padding_mode, str) or padding_mode not in PADDING_MODES:
        known = ", ".join(repr(mode) for mode in PADDING_MODES)
        raise ValueError(f"{operation}: padding_mode must be one of {known}, got {padding_mode!r}")
    if padding_mode != "zeros" and max(input_dilation) > 1:
        raise ValueError(
            f"{operation}: padding_mode {padding_mode!r} does not go with input_dilation {input_dilation}: "
            "the holes of a dilated input can only be zeros"
        )
    extents = tuple(map(dilated_size, window, kernel_dilation))
    dilated = tuple(map(dilated_size, sizes, input_dilation))
    pairs = resolve_padding(operation, padding, dilated, extents, strides)
    return ConvArguments(
        order=order,
        batch_shape=batch_shape,
        sizes=sizes,
        output_sizes=output_sizes(operation, dilated, pairs, extents, strides),
        in_features=in_features,
        out_features=out_features,
        window=window,
        strides=strides,
        padding=pairs,
        padding_mode=padding_mode,
        input_dilation=input_dilation,
        kernel_dilation=kernel_dilation,
        feature_group_count=groups,
    )


def _checked_window(operation: str, window: Sequence[int], shapes: str) -> Ints:
    if any(size < 1 for size in window):
        raise ValueError(f"{operation}: the kernel's window {tuple(window)} is empty ({shapes})")
    return tuple(window)


def conv_transpose_arguments(
    operation: str,
    x_shape: Sequence[int],
    kernel: Any,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "SAME",
    output_padding: IntOrInts = 0,
    kernel_dilation: IntOrInts = 1,
    feature_group_count: int = 1,
    layout: Layout = None,
    canonical_kernel: bool = False,
) -> ConvArguments:
    """Checks and normalises what describes a transposed convolution, in terms of the convolution it transposes.

    The result's `output_sizes` may exceed x's: then x must be padded with zeros at its ends (an output padding that
    reaches past one stride).
    """
    kernel_shape, order, groups = _kernel_arguments(operation, kernel, feature_group_count, layout, canonical_kernel)
    rank = order.rank
    batch_shape, x_sizes, out_features = order.split_input(operation, x_shape)
    *taps, kernel_in, kernel_out = (kernel_shape[axis] for axis in order.kernel_axes)
    shapes = f"x {tuple(x_shape)}, kernel {tuple(kernel_shape)}"
    _check_features(operation, out_features, (kernel_in, kernel_out), groups, shapes, transposed=True)
    window = _checked_window(operation, taps, shapes)
    strides = axis_values(operation, "strides", strides, rank)
    kernel_dilation = axis_values(operation, "kernel_dilation", kernel_dilation, rank)
    extra = axis_values(operation, "output_padding", output_padding, rank, minimum=0)
    for axis in range(rank):
        limit = max(strides[axis], kernel_dilation[axis])
        if extra[axis] >= limit:
            raise ValueError(
                f"{operation}: output_padding must be smaller than the stride or the dilation, but on spatial axis "
                f"{axis} it is {extra[axis]} with stride {strides[axis]} and kernel_dilation {kernel_dilation[axis]}"
            )
    extents = tuple(map(dilated_size, window, kernel_dilation))
    sizes = transposed_sizes(operation, x_sizes, padding, extents, strides, extra)
    pairs = resolve_padding(operation, padding, sizes, extents, strides)
    return ConvArguments(
        order=order,
        batch_shape=batch_shape,
        sizes=sizes,
        output_sizes=tuple(size + more // stride for size, more, stride in zip(x_sizes, extra, strides, strict=True)),
        in_features=kernel_in * groups,
        out_features=out_features,
        window=window,
        strides=strides,
        padding=pairs,
        padding_mode="zeros",
        input_dilation=(1,) * rank,
        kernel_dilation=kernel_dilation,
        feature_group_count=groups,
    )


@dataclasses.dataclass(frozen=True)
class PoolArguments:
    """A pool's geometry.

    Args:
      order: the axes of input and output.
      batch_shape: sizes of the batch axes, in order; none or several are possible.
      sizes: spatial sizes of the input.
      output_sizes: spatial sizes of the output.
      features: number of channels.
      window: taps on each spatial axis.
      strides: step of the window on each spatial axis.
      declared_padding: the (low, high) padding asked for, which an average may count; negative values crop.
      padding: the padding applied: the declared one, its high side made to fit the last window.
      window_dilation: distance between neighbouring taps on each spatial axis.
    """

    order: AxisOrder
    batch_shape: Ints
    sizes: Ints
    output_sizes: Ints
    features: int
    window: Ints
    strides: Ints
    declared_padding: tuple[Pair, ...]
    padding: tuple[Pair, ...]
    window_dilation: Ints

    @property
    def output_shape(self) -> Ints:
        """Shape of the output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.output_sizes, self.features)


def window_order(operation: str, x_shape: Sequence[int], window: Any, layout: Layout) -> AxisOrder:
    """The axis order of a function whose window, or output shape, may be a bare int.

    The spatial rank is the layout's, or the number of ints given; an int without a layout means one batch axis.
    """
    if layout is not None:
        rank = len(window) if isinstance(window, tuple) else None
    elif isinstance(window, tuple):
        rank = len(window)
    else:
        rank = len(x_shape) - 2
        if rank < 1:
            raise ValueError(
                f"{operation}: without a layout or one int for each spatial axis, x must have one batch axis, spatial "
                f"axes and a feature axis, got shape {tuple(x_shape)}"
            )
    return parse_layout(operation, layout, rank)


def pool_arguments(
    operation: str,
    x_shape: Sequence[int],
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> PoolArguments:
    """Checks and normalises what describes a pool."""
    order = window_order(operation, x_shape, frozen(window_shape), layout)
    rank = order.rank
    batch_shape, sizes, features = order.split_input(operation, x_shape)
    window = axis_values(operation, "window_shape", window_shape, rank)
    strides = axis_values(operation, "strides", strides, rank)
    dilation = axis_values(operation, "window_dilation", window_dilation, rank)
    extents = tuple(map(dilated_size, window, dilation))
    declared = resolve_padding(operation, padding, sizes, extents, strides)
    count = ceil_sizes if ceil_mode else output_sizes
    outputs = count(operation, sizes, declared, extents, strides)
    applied = declared
    if ceil_mode:
        # The high side that makes the last window fit: an overhang, or less than was declared.
        applied = tuple(
            (low, (output - 1) * stride + extent - size - low)
            for output, stride, extent, size, (low, _) in zip(outputs, strides, extents, sizes, declared, strict=True)
        )
    return PoolArguments(
        order=order,
        batch_shape=batch_shape,
        sizes=sizes,
        output_sizes=outputs,
        features=features,
        window=window,
        strides=strides,
        declared_padding=declared,
        padding=applied,
        window_dilation=dilation,
    )
