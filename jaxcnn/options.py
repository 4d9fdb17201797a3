"""Options of convolutions and pools, and the geometry that follows from them and the shapes of the operands.

A public function makes its options once, as `ConvOptions` or `PoolOptions`. They are hashable, and so can be the one
static argument of the jitted function that does the work. `geometry` checks them against the operands' shapes and
returns a `ConvGeometry` or a `PoolGeometry`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.chain import KernelChain
from jaxcnn.geometry import (
    Ints,
    Pair,
    axis_values,
    ceil_sizes,
    dilated_size,
    output_sizes,
    resolve_padding,
    transposed_sizes,
    whole_number,
)
from jaxcnn.layout import AxisOrder, Layout, parse_layout

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""Names of the padding modes, with the names of the same modes in `jnp.pad`."""

MAX_REPEATS = 100
"""Largest padding of a mode other than zeros, in images."""

MAX_ELEMENTS = 2**58
"""Largest number of elements of an image with its padding. XLA counts bytes in 64 bits, and ends the process where they
do not suffice."""


def frozen(value: Any) -> Any:
    """Returns an option as a hashable value: lists and arrays become tuples."""
    if isinstance(value, str) or value is None:
        return value
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value


def shape_of(value: Any) -> Any:
    """Returns a list or an array of sizes as a tuple, and an object that has a shape of its own unchanged."""
    return frozen(value) if isinstance(value, list | tuple) or getattr(value, "ndim", None) == 1 else value


_PLAIN_TYPES = frozenset((bool, int, str, type(None)))
"""Types of options that `frozen` need not convert."""


def _is_plain(value: Any) -> bool:
    """Returns whether a value is hashable and compares as one value: a plain one, or a tuple of such."""
    kind = type(value)
    return kind in _PLAIN_TYPES or (kind is tuple and all(map(_is_plain, value)))


def _hashable(options: Any) -> Any:
    """Returns options whose fields are all hashable."""
    # A NumPy scalar is hashable too, but its comparison with a tuple is an array.
    return options if all(map(_is_plain, options)) else options._make(map(frozen, options))


class ConvOptions(NamedTuple):
    """Holds the options of a convolution or of a transposed one, as `conv` and `conv_transpose` describe them."""

    strides: Any = 1
    padding: Any = "SAME"
    padding_mode: Any = "zeros"
    input_dilation: Any = 1
    kernel_dilation: Any = 1
    feature_group_count: Any = 1
    layout: Any = None
    precision: Any = None
    preferred_element_type: Any = None
    method: Any = "auto"
    output_padding: Any = 0

    @classmethod
    def of(cls, **options: Any) -> ConvOptions:
        """Returns the options of a call as a hashable value, with the defaults for those that are left out."""
        return _hashable(cls(**options))

    def geometry(self, x_shape: Sequence[int], kernel: Any, *, canonical_kernel: bool = False) -> ConvGeometry:
        """Checks the options against the operands' shapes and returns the geometry of the convolution.

        Args:
          x_shape: shape of x.
          kernel: array, shape or `KernelChain`.
          canonical_kernel: flag, True for a kernel that is HWIO whatever the layout.
        """
        shape, order, groups = self._kernel(kernel, canonical_kernel)
        rank = order.rank
        batch_shape, sizes, in_features = order.split_input(x_shape)
        *window, kernel_in, out_features = (shape[axis] for axis in order.kernel_axes)
        shapes = f"x {tuple(x_shape)}, kernel {shape}"
        _check_output_features(out_features, groups, shapes)
        _check_input_features(in_features, kernel_in, groups, shapes)
        _check_window(window, shapes)
        strides = axis_values("strides", self.strides, rank)
        input_dilation = axis_values("input_dilation", self.input_dilation, rank)
        kernel_dilation = axis_values("kernel_dilation", self.kernel_dilation, rank)
        _check_padding_mode(self.padding_mode, input_dilation)
        extents = tuple(map(dilated_size, window, kernel_dilation))
        dilated = tuple(map(dilated_size, sizes, input_dilation))
        padding = resolve_padding(self.padding, dilated, extents, strides)
        if self.padding_mode != "zeros":
            _check_repeats(self.padding_mode, sizes, padding)
        _check_elements((*batch_shape, in_features), dilated, padding)
        return ConvGeometry(
            order=order,
            batch_shape=batch_shape,
            sizes=sizes,
            output_sizes=output_sizes(dilated, padding, extents, strides),
            in_features=in_features,
            out_features=out_features,
            window=tuple(window),
            strides=strides,
            padding=padding,
            padding_mode=self.padding_mode,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=groups,
        )

    def transposed_geometry(self, x_shape: Sequence[int], kernel: Any) -> ConvGeometry:
        """Checks the options against the operands' shapes and returns the geometry of the convolution to transpose.

        The `output_sizes` may exceed the sizes of x where the output padding is a stride or more. Then x must be padded
        with zeros at its ends.

        Args:
          x_shape: shape of x, an output of the convolution.
          kernel: array, shape or `KernelChain`.
        """
        shape, order, groups = self._kernel(kernel)
        rank = order.rank
        batch_shape, x_sizes, out_features = order.split_input(x_shape)
        *window, kernel_in, kernel_out = (shape[axis] for axis in order.kernel_axes)
        shapes = f"x {tuple(x_shape)}, kernel {shape}"
        _check_output_features(kernel_out, groups, shapes)
        if out_features != kernel_out:
            raise ValueError(
                f"x has {out_features} channels, so kernel must have {out_features} output channels, "
                f"got {kernel_out} ({shapes})"
            )
        _check_window(window, shapes)
        strides = axis_values("strides", self.strides, rank)
        kernel_dilation = axis_values("kernel_dilation", self.kernel_dilation, rank)
        extra_pixels = axis_values("output_padding", self.output_padding, rank, minimum=0)
        for axis in range(rank):
            if extra_pixels[axis] >= max(strides[axis], kernel_dilation[axis]):
                raise ValueError(
                    f"output_padding must be smaller than the stride or the dilation, but on spatial axis {axis} it is "
                    f"{extra_pixels[axis]} with stride {strides[axis]} and kernel_dilation {kernel_dilation[axis]}"
                )
        extents = tuple(map(dilated_size, window, kernel_dilation))
        sizes = transposed_sizes(x_sizes, self.padding, extents, strides, extra_pixels)
        padding = resolve_padding(self.padding, sizes, extents, strides)
        _check_elements((*batch_shape, kernel_in * groups), sizes, padding)
        return ConvGeometry(
            order=order,
            batch_shape=batch_shape,
            sizes=sizes,
            output_sizes=tuple(
                size + pixels // stride for size, pixels, stride in zip(x_sizes, extra_pixels, strides, strict=True)
            ),
            in_features=kernel_in * groups,
            out_features=out_features,
            window=tuple(window),
            strides=strides,
            padding=padding,
            padding_mode="zeros",
            input_dilation=(1,) * rank,
            kernel_dilation=kernel_dilation,
            feature_group_count=groups,
        )

    def _kernel(self, kernel: Any, canonical: bool = False) -> tuple[Ints, AxisOrder, int]:
        """Returns shape, axis order and group count of a kernel, from an array, a shape or a chain."""
        groups = whole_number("feature_group_count", self.feature_group_count)
        is_chain = isinstance(kernel, KernelChain)
        if is_chain:
            if groups not in (1, kernel.feature_group_count):
                raise ValueError(
                    f"the chain has a feature_group_count of its own, {kernel.feature_group_count}, got {groups}"
                )
            groups = kernel.feature_group_count
        shape = tuple(kernel.shape if hasattr(kernel, "shape") else kernel)
        rank = len(shape) - 2
        if rank < 1:
            raise ValueError(
                f"kernel must have at least one window axis, an input and an output feature axis, got shape {shape}"
            )
        order = parse_layout(self.layout, rank)
        if is_chain or canonical:
            order = dataclasses.replace(order, kernel=parse_layout(None, rank).kernel)
        return shape, order, groups


@dataclasses.dataclass(frozen=True)
class ConvGeometry:
    """Holds the geometry of a convolution; for a transposed one, that of the convolution to transpose.

    Args:
      order: order of the axes of input, kernel and output.
      batch_shape: sizes of the batch axes, in order; none or several are possible.
      sizes: spatial sizes of the convolution's input.
      output_sizes: spatial sizes of the convolution's output.
      in_features: number of channels of the convolution's input.
      out_features: number of channels of the convolution's output.
      window: number of taps of the kernel on each spatial axis.
      strides: step of the window on each spatial axis.
      padding: pair (low, high) on each spatial axis; negative values crop.
      padding_mode: name of the values that the padding holds, one of `PADDING_MODES`.
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
        """Returns the shape of the convolution's output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.output_sizes, self.out_features)

    @property
    def transposed_output_shape(self) -> Ints:
        """Returns the shape of the transposed convolution's output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.sizes, self.in_features)


def _check_output_features(kernel_out: int, groups: int, shapes: str) -> None:
    if kernel_out % groups:
        raise ValueError(
            f"the kernel's {kernel_out} output channels do not divide into feature_group_count={groups} groups: "
            f"{kernel_out} % {groups} = {kernel_out % groups} ({shapes})"
        )


def _check_input_features(features: int, kernel_in: int, groups: int, shapes: str) -> None:
    """Refuses a kernel whose input channels, times the groups, are not the image's."""
    if features % groups:
        raise ValueError(
            f"x's {features} channels do not divide into feature_group_count={groups} groups: "
            f"{features} % {groups} = {features % groups} ({shapes})"
        )
    if features // groups != kernel_in:
        quotient = f" = {features} / {groups}" if groups > 1 else ""
        raise ValueError(
            f"x has {features} channels and feature_group_count={groups}, so kernel must have "
            f"{features // groups}{quotient} input channels, got {kernel_in} ({shapes})"
        )


def _check_window(window: Sequence[int], shapes: str) -> None:
    if any(size < 1 for size in window):
        raise ValueError(f"the kernel's window {tuple(window)} is empty ({shapes})")


def _check_elements(batch_and_channels: Sequence[int], sizes: Sequence[int], padding: Sequence[Pair]) -> None:
    """Refuses an image that with its padding has more than `MAX_ELEMENTS`; symbolic sizes count as 1.

    Args:
      batch_and_channels: sizes of the batch and channel axes.
      sizes: spatial sizes, the holes of a dilated input among them.
      padding: pair (low, high) on each spatial axis.
    """
    padded = [size + low + high for size, (low, high) in zip(sizes, padding, strict=True)]
    elements = math.prod(size for size in (*batch_and_channels, *padded) if isinstance(size, int))
    if elements > MAX_ELEMENTS:
        raise ValueError(
            f"the image with its padding has spatial sizes {' x '.join(map(str, padded))}, so {elements} elements in "
            f"all, more than 2^58"
        )


def _check_padding_mode(mode: Any, input_dilation: Ints) -> None:
    if not isinstance(mode, str) or mode not in PADDING_MODES:
        modes = ", ".join(map(repr, PADDING_MODES))
        raise ValueError(f"padding_mode must be one of {modes}, got {mode!r}")
    if mode != "zeros" and max(input_dilation) > 1:
        raise ValueError(
            f"padding_mode {mode!r} does not go with input_dilation {input_dilation}: "
            "the holes of a dilated input can only be zeros"
        )


def _check_repeats(mode: str, sizes: Ints, padding: Sequence[Pair]) -> None:
    for axis, (size, pair) in enumerate(zip(sizes, padding, strict=True)):
        if isinstance(size, int) and max(pair) > MAX_REPEATS * size:
            raise ValueError(
                f"padding_mode {mode!r} repeats an image at most {MAX_REPEATS} times, but on spatial axis {axis} the "
                f"padding {tuple(pair)} is more than {MAX_REPEATS} * {size} pixels"
            )


class PoolOptions(NamedTuple):
    """Holds the options of a pool, as `max_pool` describes them."""

    window_shape: Any
    strides: Any = 1
    padding: Any = "VALID"
    window_dilation: Any = 1
    ceil_mode: Any = False
    layout: Any = None

    @classmethod
    def of(cls, *options: Any, **named_options: Any) -> PoolOptions:
        """Returns the options of a call as a hashable value, with the defaults for those that are left out."""
        return _hashable(cls(*options, **named_options))

    def geometry(self, x_shape: Sequence[int]) -> PoolGeometry:
        """Checks the options against the shape of x and returns the geometry of the pool."""
        order = window_order(x_shape, self.window_shape, self.layout)
        rank = order.rank
        batch_shape, sizes, features = order.split_input(x_shape)
        window = axis_values("window_shape", self.window_shape, rank)
        strides = axis_values("strides", self.strides, rank)
        dilation = axis_values("window_dilation", self.window_dilation, rank)
        extents = tuple(map(dilated_size, window, dilation))
        declared = resolve_padding(self.padding, sizes, extents, strides)
        count = ceil_sizes if self.ceil_mode else output_sizes
        outputs = count(sizes, declared, extents, strides)
        padding = declared
        if self.ceil_mode:
            # The high side makes the last window fit exactly, so this side may be more or less than was declared.
            padding = tuple(
                (low, (output - 1) * stride + extent - size - low)
                for output, stride, extent, size, (low, _) in zip(
                    outputs, strides, extents, sizes, declared, strict=True
                )
            )
        _check_elements((*batch_shape, features), sizes, padding)
        return PoolGeometry(
            order=order,
            batch_shape=batch_shape,
            sizes=sizes,
            output_sizes=outputs,
            features=features,
            window=window,
            strides=strides,
            declared_padding=declared,
            padding=padding,
            window_dilation=dilation,
        )


@dataclasses.dataclass(frozen=True)
class PoolGeometry:
    """Holds the geometry of a pool.

    Args:
      order: order of the axes of input and output.
      batch_shape: sizes of the batch axes, in order; none or several are possible.
      sizes: spatial sizes of the input.
      output_sizes: spatial sizes of the output.
      features: number of channels.
      window: number of taps on each spatial axis.
      strides: step of the window on each spatial axis.
      declared_padding: pair (low, high) that the user asked for, which an average may count; negative values crop.
      padding: pair (low, high) that is applied: the declared one, with a high side that makes the last window fit.
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
        """Returns the shape of the output, in the user's layout."""
        return self.order.output_shape(self.batch_shape, self.output_sizes, self.features)


def window_order(x_shape: Sequence[int], window: Any, layout: Layout) -> AxisOrder:
    """Returns the axis order of a function whose window, or output shape, may be a bare int.

    The spatial rank is the layout's, or the number of ints in the window; an int without a layout means one batch axis.
    """
    rank = len(window) if isinstance(window, tuple) else None
    if rank is None and layout is None:
        rank = len(x_shape) - 2
        if rank < 1:
            raise ValueError(
                "without a layout or one int for each spatial axis, x must have one batch axis, spatial axes and a "
                f"feature axis, got shape {tuple(x_shape)}"
            )
    return parse_layout(layout, rank)
