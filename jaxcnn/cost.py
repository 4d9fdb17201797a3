"""Costs of convolutions and pools: multiply-accumulates, operations, parameters and bytes, by exact formulas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.chain import KernelChain, plan_links
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import IntOrInts, Padding, dilated_size, output_sizes, window_hits
from jaxcnn.layout import Layout
from jaxcnn.options import ConvGeometry, ConvOptions, PoolOptions, shape_of


@dataclasses.dataclass(frozen=True)
class Cost:
    """Holds the cost of computing a layer once.

    Costs add up with `+`; `sum(costs, Cost())` is the cost of a network.

    Args:
      macs: number of multiply-accumulates by the formula, taps on padding included.
      macs_valid: number of multiply-accumulates without the taps that fall on zero padding or on the holes of a dilated
        input; XLA's cost analysis counts twice as many operations.
      flops: number of floating-point operations: 2 * macs, and the additions of a bias; for a pool its comparisons or
        additions.
      params: number of weights and biases.
      bytes: number of bytes read and written if each array is touched once: input, kernel, bias, output, and between
        the links of a chain each intermediate result twice.

    Example:
      >>> Cost(macs=3, flops=6) + Cost(macs=1, flops=2)
      Cost(macs=4, macs_valid=0, flops=8, params=0, bytes=0)
    """

    macs: int = 0
    macs_valid: int = 0
    flops: int = 0
    params: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def conv_cost(
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
    output_padding: IntOrInts = 0,
    transposed: bool = False,
    bias: bool = False,
) -> Cost:
    r"""Computes the cost of a convolution, of a chain of convolutions, or of their transpose.

    macs $= N \cdot \prod_a (o_a k_a) \cdot (C_{in} / G) \cdot C_{out}$ for o output pixels and k taps on axis a and G
    groups. For a transposed convolution o are the pixels of its input. A chain costs the sum of its links. Borders are
    counted exactly: the links before the last one compute a few more pixels, and those before the stride all pixels.

    Args:
      x_shape: shape of x.
      kernel_shape: shape of the kernel, or a `KernelChain`.
      strides, padding, padding_mode, input_dilation, kernel_dilation, feature_group_count, layout: options of `conv`.
      precision, method: arguments of `conv`; the formula does not depend on them.
      preferred_element_type: dtype of every element in `bytes`; float32 if left out.
      output_padding: number of pixels added at the end, as in `conv_transpose`.
      transposed: flag that counts `conv_transpose` instead of `conv`.
      bias: flag, True for a bias that is added to each output pixel.

    Returns:
      A `Cost` of integers.

    Raises:
      ValueError, TypeError: options of `conv`.

    Example:
      >>> conv_cost((1, 5, 5, 1), (3, 3, 1, 1), padding="VALID")
      Cost(macs=81, macs_valid=81, flops=162, params=9, bytes=172)
      >>> conv_cost((1, 5, 5, 1), (3, 3, 1, 1))         # SAME: 25 outputs, 56 taps on padding
      Cost(macs=225, macs_valid=169, flops=450, params=9, bytes=236)

    References:
      `macs_valid` is half of `jax.jit(f).lower(...).cost_analysis()["flops"]`. Most counters for PyTorch print
      2 * `macs` as FLOPs, and some print `macs` under that name.
    """
    with ErrorPrefix("conv_cost"):
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
            output_padding=output_padding,
        )
        return _conv_cost(shape_of(x_shape), shape_of(kernel_shape), options, transposed, bias)


def _conv_cost(x_shape: Any, kernel: Any, options: ConvOptions, transposed: bool, bias: bool) -> Cost:
    dtype = options.preferred_element_type
    itemsize = 4 if dtype is None else np.dtype(dtype).itemsize
    if transposed:
        geometry = options.transposed_geometry(x_shape, kernel)
        _, x_sizes, _ = geometry.order.split_input(x_shape)
        geometry = dataclasses.replace(geometry, output_sizes=x_sizes)
        features, results = geometry.in_features, geometry.transposed_output_shape
    else:
        geometry = options.geometry(x_shape, kernel)
        features, results = geometry.out_features, geometry.output_shape
    if isinstance(kernel, KernelChain):
        kernels = [tuple(link.shape) for link in kernel.kernels]
        counts = kernel.feature_group_counts
    else:
        groups = geometry.feature_group_count
        kernels = [(*geometry.window, geometry.in_features // groups, geometry.out_features)]
        counts = (groups,)
    cost = _links_cost(geometry, kernels, counts, itemsize)
    if bias:
        cost += Cost(flops=math.prod(results), params=features, bytes=features * itemsize)
    return cost


def _links_cost(geometry: ConvGeometry, kernels: Sequence[Sequence[int]], counts: Sequence[int], itemsize: int) -> Cost:
    """Returns the cost of kernels in a row, each given by its shape and number of groups."""
    batch = math.prod(geometry.batch_shape)
    stored = sizes = geometry.sizes
    padding = geometry.padding
    if geometry.padding_mode != "zeros":
        # Padding that repeats the image holds real pixels.
        sizes = tuple(size + low + high for size, (low, high) in zip(sizes, padding, strict=True))
        padding = ((0, 0),) * len(sizes)
    cost = Cost()
    plan = plan_links([tuple(shape[:-2]) for shape in kernels], geometry.strides, padding, geometry.input_dilation)
    for index, (shape, groups, link) in enumerate(zip(kernels, counts, plan, strict=True)):
        if index == len(kernels) - 1:
            outputs = geometry.output_sizes
        else:
            extents = tuple(map(dilated_size, shape[:-2], geometry.kernel_dilation))
            dilated = tuple(map(dilated_size, sizes, link["input_dilation"]))
            outputs = output_sizes(dilated, link["padding"], extents, link["strides"])
        cost += _link_cost(batch, stored, sizes, outputs, shape, groups, geometry, link, itemsize)
        stored = sizes = outputs
    return cost


def _link_cost(
    batch: int,
    stored: Sequence[int],
    sizes: Sequence[int],
    outputs: Sequence[int],
    kernel_shape: Sequence[int],
    groups: int,
    geometry: ConvGeometry,
    link: dict[str, Any],
    itemsize: int,
) -> Cost:
    """Returns the cost of one kernel in a row; `sizes` are the `stored` ones with the borders that repeat the image."""
    *window, kernel_in, out_features = kernel_shape
    hits = (
        window_hits(size, output, taps, stride, low, dilation, input_dilation)
        for size, output, taps, stride, (low, _), dilation, input_dilation in zip(
            sizes,
            outputs,
            window,
            link["strides"],
            link["padding"],
            geometry.kernel_dilation,
            link["input_dilation"],
            strict=True,
        )
    )
    products = batch * kernel_in * out_features
    macs = products * math.prod(outputs) * math.prod(window)
    params = math.prod(kernel_shape)
    elements = batch * (math.prod(stored) * kernel_in * groups + math.prod(outputs) * out_features)
    return Cost(macs, products * math.prod(hits), 2 * macs, params, (elements + params) * itemsize)


def pool_cost(
    x_shape: Sequence[int],
    window_shape: IntOrInts,
    *,
    strides: IntOrInts = 1,
    padding: Padding = "VALID",
    window_dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    layout: Layout = None,
) -> Cost:
    r"""Computes the cost of a pool.

    flops $= N C \cdot \prod_a o_a \cdot (\prod_a k_a - 1)$ comparisons or additions for o output pixels and k taps on
    axis a; a pool multiplies nothing, so `macs` is 0.

    Args:
      x_shape: shape of x.
      window_shape, strides, padding, window_dilation, ceil_mode, layout: options of `max_pool`.

    Returns:
      A `Cost` of integers; `bytes` for 4-byte elements, input and output touched once.

    Raises:
      ValueError, TypeError: options of `max_pool`.

    Example:
      >>> pool_cost((1, 5, 5, 1), 3)
      Cost(macs=0, macs_valid=0, flops=72, params=0, bytes=136)

    References:
      XLA's cost analysis counts a window reduction the same way.
    """
    with ErrorPrefix("pool_cost"):
        options = PoolOptions.of(window_shape, strides, padding, window_dilation, ceil_mode, layout)
        shape = shape_of(x_shape)
        geometry = options.geometry(shape)
    outputs = math.prod(geometry.output_shape)
    return Cost(flops=outputs * (math.prod(geometry.window) - 1), bytes=4 * (math.prod(shape) + outputs))
