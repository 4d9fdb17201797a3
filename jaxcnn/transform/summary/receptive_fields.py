"""Receptive fields over the graph of a jaxpr: the pixels of the function's arguments that each axis of a value sees."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn.geometry import dilated_size
from jaxcnn.receptive_field import ReceptiveField
from jaxcnn.transform.jaxpr.convolutions import Convolution
from jaxcnn.transform.jaxpr.equations import avals


@dataclasses.dataclass(frozen=True)
class AxisField:
    """Field of the entries along one axis of a value: entry `o` sees `size` pixels from `o * stride - offset` on.

    Args:
      source: position of the argument on which pixels are counted, and its axis.
      size, stride, offset: numbers as in `ReceptiveField`; fractions after a transposed convolution. With a stride of
        0 every entry sees the same pixels, those of the whole axis.
    """

    source: tuple[int, int]
    size: Fraction = Fraction(1)
    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)

    def seen_through(self, extent: int, stride: int, low: int) -> AxisField:
        """Returns the field of the outputs of a window over this axis."""
        return AxisField(
            self.source,
            self.size + (extent - 1) * self.stride,
            self.stride * stride,
            self.offset + low * self.stride,
        )

    def spread_through(self, extent: int, stride: int, low: int) -> AxisField:
        """Returns the field of the inputs of a window, computed from its outputs as by a transposed convolution."""
        reached = (extent - 1) // stride + 1
        before = Fraction(extent - 1 - low, stride)
        return AxisField(
            self.source,
            self.size + (reached - 1) * self.stride,
            self.stride / stride,
            self.offset + before * self.stride,
        )

    def everywhere(self, entries: int) -> AxisField:
        """Returns the field of all entries along this axis together."""
        return AxisField(self.source, self.size + (entries - 1) * self.stride, Fraction(0), self.offset)

    def union(self, other: AxisField) -> AxisField:
        """Returns the smallest field that holds both, at the wider stride; with a whole axis, the whole axis."""
        offset = max(self.offset, other.offset)
        end = max(self.size - self.offset, other.size - other.offset)
        whole = 0 in (self.stride, other.stride)
        return AxisField(self.source, offset + end, Fraction(0) if whole else max(self.stride, other.stride), offset)


@dataclasses.dataclass(frozen=True)
class Value:
    """Holds what is known of a value of the jaxpr.

    Args:
      axes: field along each axis; None where an entry sees everything, or nothing that is counted.
      image: True if the value depends on the result of a convolution; a kernel or a weight does not.
      copies: number of such values that the steps of a scan take.
      roots: arguments and constants of the function, or slices of them, from which a weight was made; none if that is
        not known. Values with the same roots are one weight.
    """

    axes: tuple[AxisField | None, ...]
    image: bool = False
    copies: int = 1
    roots: frozenset[Hashable] = dataclasses.field(default=frozenset(), compare=False)


def argument(number: int, ndim: int) -> Value:
    """Returns the value of an argument of the function: each entry sees itself."""
    return Value(tuple(AxisField((number, axis)) for axis in range(ndim)), roots=frozenset((number,)))


def field_of(axes: Sequence[AxisField | None]) -> ReceptiveField | None:
    """Returns the receptive field along some axes, if all are known; fractions are rounded away from zero."""
    fields = [axis for axis in axes if axis is not None]
    if len(fields) < len(axes) or not axes:
        return None
    return ReceptiveField(
        tuple(math.ceil(axis.size) for axis in fields),
        tuple(math.ceil(axis.stride) for axis in fields),
        tuple(math.ceil(axis.offset) for axis in fields),
    )


def through_convolution(conv: Convolution, operands: Sequence[Value], ndim: int) -> Value:
    """Returns the value of the result of a convolution."""
    axes: list[AxisField | None] = [None] * ndim
    spec = conv.spec
    if spec.role == "kernel":
        return Value(tuple(axes), image=True)
    for index, (source, target) in enumerate(
        zip(conv.axes[0][-1 - spec.rank : -1], conv.axes[2][-1 - spec.rank : -1], strict=True)
    ):
        before = operands[0].axes[source]
        extent = dilated_size(spec.window[index], spec.kernel_dilation[index])
        arguments = extent, spec.strides[index], spec.padding[index][0]
        if before is not None and spec.role == "input":
            axes[target] = before.spread_through(*arguments)
        elif before is not None:
            holes = AxisField(before.source, before.size, before.stride / spec.input_dilation[index], before.offset)
            axes[target] = holes.seen_through(*arguments)
    return Value(tuple(axes), image=True)


def through_window(value: Value, windows: Sequence[tuple[int, int, int]]) -> Value:
    """Returns the value of the result of a pool: each axis has a dilated window, a stride and a low padding."""
    axes = (axis and axis.seen_through(*window) for axis, window in zip(value.axes, windows, strict=True))
    return Value(tuple(axes), value.image)


def through(equation: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """Returns the values of the results of an equation that is no convolution and no pool."""
    image = any(value.image for value in operands)
    copies = max((value.copies for value in operands), default=1)
    rule = _RULES.get(equation.primitive, _elementwise)
    results = []
    for variable in equation.outvars:
        shape = getattr(variable.aval, "shape", ())
        roots = frozenset() if image else _roots(equation, operands, variable.aval)
        results.append(Value(tuple(rule(equation, operands, shape)), image, copies, roots))
    return results


def _roots(equation: JaxprEqn, operands: Sequence[Value], result: Any) -> frozenset[Hashable]:
    """Returns the roots of a result: a moved, cast or scaled weight keeps its roots, each slice gets its own."""
    roots: frozenset[Hashable] = frozenset().union(*(value.roots for value in operands))
    primitive = equation.primitive
    if primitive is lax_primitives.slice_p:
        part = equation.params["start_indices"], equation.params["limit_indices"], equation.params["strides"]
        whole = _operand_shape(equation) == result.shape
        return roots if whole else frozenset((root, part) for root in roots)
    if primitive in _MOVING_PRIMITIVES:
        return roots
    # Integers keep their roots through moves only: random bits from one key are another weight in each equation.
    floating = all(jnp.issubdtype(aval.dtype, jnp.inexact) for aval in avals(equation))
    return frozenset() if primitive in _SELECTING_PRIMITIVES or not floating else roots


Axes = Sequence[AxisField | None]
"""Fields along the axes of a result, as a rule returns them for an equation, its operands and the result's shape."""


def _operand_shape(equation: JaxprEqn, index: int = 0) -> tuple[int, ...]:
    return avals(equation)[index].shape


def _elementwise(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the union over the operands of the result's rank that are not broadcast along an axis."""
    axes: list[AxisField | None] = [None] * len(shape)
    # Values of images come first, so that their argument is the one on which pixels are counted.
    order = sorted(range(len(operands)), key=lambda index: not operands[index].image)
    for index in order:
        value, operand_shape = operands[index], getattr(equation.invars[index].aval, "shape", ())
        if len(operand_shape) != len(shape):
            continue
        for axis, (size, field) in enumerate(zip(operand_shape, value.axes, strict=True)):
            if size != shape[axis] or field is None:
                continue
            known = axes[axis]
            if known is None:
                axes[axis] = field
            elif known.source == field.source:
                axes[axis] = known.union(field)
    return axes


def _concatenate(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    axes = list(_elementwise(equation, operands, shape))
    axes[equation.params["dimension"]] = None
    return axes


def _transpose(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    del shape
    return [operands[0].axes[axis] for axis in equation.params["permutation"]]


def _broadcast(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    axes: list[AxisField | None] = [None] * len(shape)
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        if _operand_shape(equation)[axis] == shape[target]:
            axes[target] = operands[0].axes[axis]
    return axes


def _reshape(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of axes that are neither merged nor split."""
    old_shape, axes = _operand_shape(equation), [None] * len(shape)
    if equation.params.get("dimensions") is not None:
        return axes
    old_axis = new_axis = 0
    result: list[AxisField | None] = list(axes)
    while old_axis < len(old_shape) and new_axis < len(shape):
        if old_shape[old_axis] == shape[new_axis]:
            result[new_axis] = operands[0].axes[old_axis]
            old_axis, new_axis = old_axis + 1, new_axis + 1
            continue
        old_size, new_size = old_shape[old_axis], shape[new_axis]
        old_axis, new_axis = old_axis + 1, new_axis + 1
        while old_size != new_size and (old_axis < len(old_shape) or new_axis < len(shape)):
            if (old_size < new_size or new_axis == len(shape)) and old_axis < len(old_shape):
                old_size, old_axis = old_size * old_shape[old_axis], old_axis + 1
            else:
                new_size, new_axis = new_size * shape[new_axis], new_axis + 1
    return result


def _reduce(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    del shape
    removed = equation.params["axes"] if "axes" in equation.params else equation.params["dimensions"]
    return [field for axis, field in enumerate(operands[0].axes) if axis not in {*removed}]


def _slice(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    starts, steps = equation.params["start_indices"], equation.params["strides"] or (1,) * len(shape)
    return [
        field and field.seen_through(1, step, -start)
        for field, start, step in zip(operands[0].axes, starts, steps, strict=True)
    ]


def _pad(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    del shape
    return [
        field
        and AxisField(
            field.source,
            field.size,
            field.stride / (inner + 1),
            field.offset + Fraction(int(low), inner + 1) * field.stride,
        )
        for field, (low, _, inner) in zip(operands[0].axes, equation.params["padding_config"], strict=True)
    ]


def _whole_axes(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns fields in which each entry sees the whole axis along which an equation runs."""
    params, axes = equation.params, list(_elementwise(equation, operands, shape))
    if equation.primitive is lax_primitives.fft_p:
        whole = range(len(shape) - len(params["fft_lengths"]), len(shape))
    else:
        # `top_k` of older JAX releases has no axis parameter and runs along the last axis.
        axis = (
            params["dimension"] if equation.primitive is lax_primitives.sort_p else params.get("axis", len(shape) - 1)
        )
        whole = range(axis, axis + 1)
    for axis in whole:
        # The result may be shorter than the operand, so the operand's length counts.
        fields = [value.axes[axis] for value in operands if len(value.axes) == len(shape)]
        known = next((field for field in fields if field is not None), None)
        axes[axis] = known and known.everywhere(_operand_shape(equation)[axis])
    return axes


def _reduce_window(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of a window reduction that is no pool."""
    del shape
    params = equation.params
    dilation, holes = (
        (params.get(name) or (1,) * len(_operand_shape(equation))) for name in ("window_dilation", "base_dilation")
    )
    windows = zip(params["window_dimensions"], params["window_strides"], params["padding"], dilation, strict=True)
    return [
        field
        and dataclasses.replace(field, stride=field.stride / hole).seen_through(dilated_size(window, step), stride, low)
        for field, hole, (window, stride, (low, _), step) in zip(operands[0].axes, holes, windows, strict=True)
    ]


_REDUCTION_NAMES = ("sum", "max", "min", "prod", "and", "or")
_RULES: dict[Primitive, Callable[[JaxprEqn, Sequence[Value], Sequence[int]], Axes]] = {
    lax_primitives.concatenate_p: _concatenate,
    lax_primitives.transpose_p: _transpose,
    lax_primitives.broadcast_in_dim_p: _broadcast,
    lax_primitives.reshape_p: _reshape,
    lax_primitives.squeeze_p: _reduce,
    lax_primitives.slice_p: _slice,
    lax_primitives.pad_p: _pad,
    **{getattr(lax_primitives, f"reduce_{name}_p"): _reduce for name in _REDUCTION_NAMES},
    lax_primitives.argmax_p: _reduce,
    lax_primitives.argmin_p: _reduce,
    lax_primitives.sort_p: _whole_axes,
    lax_primitives.top_k_p: _whole_axes,
    lax_primitives.fft_p: _whole_axes,
    **{getattr(lax_primitives, f"cum{name}_p"): _whole_axes for name in ("sum", "prod", "max", "min", "logsumexp")},
    lax_primitives.reduce_window_p: _reduce_window,
    **{getattr(lax_primitives, f"reduce_window_{name}_p"): _reduce_window for name in ("sum", "max", "min")},
}

_MOVING_PRIMITIVES = (
    lax_primitives.transpose_p,
    lax_primitives.reshape_p,
    lax_primitives.squeeze_p,
    lax_primitives.broadcast_in_dim_p,
    lax_primitives.rev_p,
    lax_primitives.convert_element_type_p,
    lax_primitives.copy_p,
    lax_primitives.device_put_p,
    lax_primitives.sharding_constraint_p,
)
"""Primitives that keep all entries of a weight, also of integers."""
_SELECTING_PRIMITIVES = (lax_primitives.dynamic_slice_p, lax_primitives.gather_p)
"""Primitives that take unknown entries of a weight."""
