"""The row of a summary for one equation: cost, receptive field, and method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn import primitives as jaxcnn_primitives
from jaxcnn.cost import Cost
from jaxcnn.geometry import dilated_size
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import PoolSpec
from jaxcnn.transform.jaxpr.abstract_walk import Place
from jaxcnn.transform.jaxpr.convolutions import Convolution, as_convolution
from jaxcnn.transform.jaxpr.equations import avals
from jaxcnn.transform.jaxpr.pools import as_pool
from jaxcnn.transform.summary.receptive_fields import (
    AxisField,
    Value,
    field_along,
    field_of,
    through_convolution,
    through_product,
    through_window,
    unknown,
)
from jaxcnn.transform.summary.row import SummaryRow


def row_of(
    equation: JaxprEqn, operands: Sequence[Value], place: Place, platform: str
) -> tuple[SummaryRow, Value, Sequence[int]] | None:
    """Returns the row of an equation, what is known of its result, and this result's image axes.

    None if a summary leaves the equation out.
    """
    conv = as_convolution(equation, "count")
    if conv is not None:
        return _convolution_row(equation, conv, operands, place, platform)
    if equation.primitive is lax_primitives.dot_general_p:
        return _dense_row(equation, operands, place)
    return _pool_row(equation, operands, place, platform)


def _make_row(equation: JaxprEqn, place: Place, cost: Cost, **columns: Any) -> SummaryRow:
    """Returns the row of an equation at a place, its cost times the number of executions."""
    arrays = avals(equation)
    scaled = Cost(*(value * place.count for value in dataclasses.astuple(cost)))
    return SummaryRow(
        name=place.name_of(equation),
        source=place.source_of(equation),
        input_shape=tuple(arrays[0].shape),
        output_shape=tuple(arrays[-1].shape),
        count=place.count,
        cost=dataclasses.replace(scaled, params=cost.params),
        **columns,
    )


def _fields_along(result: Value, axes: Sequence[int], equation: JaxprEqn) -> list[AxisField | None]:
    shape = avals(equation)[-1].shape
    return [field_along(result, axis, shape[axis]) for axis in axes]


def _array_bytes(equation: JaxprEqn) -> int:
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in avals(equation))


def _convolution_row(
    equation: JaxprEqn, conv: Convolution, operands: Sequence[Value], place: Place, platform: str
) -> tuple[SummaryRow, Value, Sequence[int]]:
    spec = conv.spec
    kernel = operands[1]
    # JAX computes the gradient of a grouped kernel as a convolution in groups of the batch.
    is_kernel_gradient = spec.role == "kernel" or equation.params.get("batch_group_count", 1) > 1
    weights = math.prod(spec.kernel_shape) * (spec.stacked or 1) * kernel.copies
    params = 0 if is_kernel_gradient or kernel.image else weights
    computed = as_convolution(equation, "compute")
    if computed is None:
        method, reason = "direct", "left to XLA: only it takes these operands"
    else:
        chosen = choice.choose(computed.spec, computed.method, platform)
        method, reason = chosen.method, chosen.reason
    result = through_convolution(conv, operands, [aval.shape for aval in avals(equation)])
    spatial_axes = () if is_kernel_gradient else conv.axes[2][-1 - spec.rank : -1]
    row = _make_row(
        equation,
        place,
        Cost(spec.macs, spec.macs_valid, 2 * spec.macs, params, _array_bytes(equation)),
        kind="kernel gradient" if is_kernel_gradient else {"output": "conv", "input": "transposed conv"}[spec.role],
        kernel=spec.window,
        strides=spec.strides,
        padding=spec.padding,
        dilation=spec.kernel_dilation,
        groups=spec.feature_group_count,
        receptive_field=field_of(_fields_along(result, spatial_axes, equation)),
        method=method,
        reason=reason,
    )
    return row, result, spatial_axes


def _dense_row(equation: JaxprEqn, operands: Sequence[Value], place: Place) -> tuple[SummaryRow, Value, Sequence[int]]:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    lhs, rhs, out = avals(equation)
    macs = math.prod(out.shape) * math.prod(lhs.shape[axis] for axis in contracted)
    images = [value.image for value in operands]
    position = _weight_position(equation, operands)
    has_parameters = not (all(images) or batch)
    params = math.prod((lhs, rhs)[position].shape) * operands[position].copies if has_parameters else 0
    row = _make_row(
        equation,
        place,
        Cost(macs, macs, 2 * macs, params, _array_bytes(equation)),
        kind="dense",
        kernel=tuple(rhs.shape),
        strides=(),
        padding=(),
        dilation=(),
        groups=1,
        receptive_field=None,
        method="direct",
        reason="a product of matrices is left to XLA",
    )
    return row, through_product(equation, operands), ()


def _weight_position(equation: JaxprEqn, operands: Sequence[Value]) -> int:
    """Returns the position of the weight: in a product the operand that depends on no image, else the second one."""
    images = [value.image for value in operands]
    dense = equation.primitive is lax_primitives.dot_general_p
    return images.index(False) if dense and images[0] != images[1] else 1


def weight_of(equation: JaxprEqn, operands: Sequence[Value]) -> Value:
    """Returns what is known of the weight of an equation that has a row; a pool has none."""
    return operands[_weight_position(equation, operands)] if len(operands) > 1 else Value(())


_POOL_KINDS = {
    jaxcnn_primitives.extremum_p: " pool",
    jaxcnn_primitives.select_p: "max pool",
    jaxcnn_primitives.window_sum_p: "sum pool",
    jaxcnn_primitives.scatter_p: "max pool gradient",
    jaxcnn_primitives.window_spread_p: "sum pool gradient",
}


def _pool_row(
    equation: JaxprEqn, operands: Sequence[Value], place: Place, platform: str
) -> tuple[SummaryRow, Value, Sequence[int]] | None:
    if equation.primitive in _POOL_KINDS:
        params = equation.params
        kind = params.get("mode", "") + _POOL_KINDS[equation.primitive]
        shape = avals(equation)[0].shape
        if "input_size" in params:
            shape = (shape[0], *params["input_size"], shape[-1])
        names = ("window_shape", "strides", "padding", "window_dilation")
        spec = PoolSpec(shape, **{name: params[name] for name in names}, dtype=avals(equation)[0].dtype)
        first = 1
    else:
        pool = as_pool(equation)
        if pool is None:
            return None
        spec, first = pool.spec, pool.first
        scatters = equation.primitive is lax_primitives.select_and_scatter_add_p
        kind = f"{pool.kind} pool gradient" if scatters else f"{pool.kind} pool"
    value = operands[0]
    if not value.image and not value.sources and not value.lost:
        return None  # a pool of a constant: the number of pixels in each window of an average
    if "gradient" in kind:
        result = dataclasses.replace(unknown(equation, operands), image=True)
        spatial_axes: Sequence[int] = ()
    else:
        windows = [(1, 1, 0)] * len(value.axes)
        spatial_axes = range(first, first + spec.rank)
        for axis, window, stride, (low, _), dilation in zip(
            spatial_axes, spec.window_shape, spec.strides, spec.padding, spec.window_dilation, strict=True
        ):
            windows[axis] = dilated_size(window, dilation), stride, low
        result = through_window(value, windows)
    module = choice.pool_method(spec, platform)
    operations = math.prod(spec.output_shape) * (math.prod(spec.window_shape) - 1)
    row = _make_row(
        equation,
        place,
        Cost(flops=operations, bytes=_array_bytes(equation)),
        kind=kind,
        kernel=spec.window_shape,
        strides=spec.strides,
        padding=spec.padding,
        dilation=spec.window_dilation,
        groups=1,
        receptive_field=field_of(_fields_along(result, spatial_axes, equation)),
        method=module.NAME,
        reason=module.REASON,
    )
    return row, result, spatial_axes
