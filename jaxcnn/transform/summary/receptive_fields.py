"""Receptive fields over the graph of a jaxpr: the pixels of the function's arguments that each axis of a value sees."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn.geometry import dilated_size
from jaxcnn.receptive_field import ReceptiveField
from jaxcnn.transform.jaxpr.convolutions import Convolution
from jaxcnn.transform.jaxpr.equations import avals, returns_operands, shape_of

Source = tuple[int, int]
"""Position of an argument of the function, and one of its axes, along which pixels are counted."""


@dataclasses.dataclass(frozen=True)
class AxisField:
    """Field of the entries along one axis of a value: entry `o` sees `size` pixels from `o * stride - offset` on.

    Args:
      sources: axes of arguments on which pixels are counted, several if such values were added; none if all entries
        are the same.
      size, stride, offset: numbers as in `ReceptiveField`; fractions after a transposed convolution. With a stride of
        0 every entry sees the same pixels. A negative stride counts from the end.
      parts: pairs of a field and a number of entries, one for each axis that a reshape merged into this one. If there
        are parts, size, stride and offset have no meaning.
    """

    sources: frozenset[Source]
    size: Fraction = Fraction(1)
    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    parts: tuple[tuple[AxisField, int], ...] = ()

    def after_window(self, extent: int, stride: int, low: int) -> AxisField:
        """Returns the field of the outputs of a window over this axis.

        Args:
          extent: pixels from the window's first to its last tap, both included.
          stride: stride of the window.
          low: padding before the first pixel.
        """
        return AxisField(
            self.sources,
            self.size + (extent - 1) * abs(self.stride),
            self.stride * stride,
            self.offset + low * self.stride - (extent - 1) * min(self.stride, Fraction(0)),
        )

    def after_transposed_window(self, extent: int, stride: int, low: int) -> AxisField:
        """Returns the field of the results of a transposed convolution along this axis.

        Extent, stride and low padding are those of the convolution that is transposed, as in `after_window`.
        """
        reached = (extent - 1) // stride + 1
        before = Fraction(extent - 1 - low, stride)
        return AxisField(
            self.sources,
            self.size + (reached - 1) * abs(self.stride),
            self.stride / stride,
            self.offset + before * self.stride - (reached - 1) * min(self.stride, Fraction(0)),
        )

    def reverse(self, entries: int) -> AxisField:
        """Returns the field of the entries along this axis in reverse order."""
        return AxisField(self.sources, self.size, -self.stride, self.offset - (entries - 1) * self.stride)

    def of_all_entries(self, entries: int) -> AxisField:
        """Returns the field of all entries along this axis together."""
        reach = (entries - 1) * self.stride
        return AxisField(self.sources, self.size + abs(reach), Fraction(0), self.offset - min(reach, Fraction(0)))

    def union(self, other: AxisField, entries: int) -> AxisField | None:
        """Returns the smallest field that holds both, for all entries together if one of the strides is 0.

        None if the strides differ and neither is 0, and for a merged axis unless the fields are equal.
        """
        first, second = self, other
        if first.parts or second.parts:
            return first if first == second else None
        if 0 in (first.stride, second.stride):
            first, second = first.of_all_entries(entries), second.of_all_entries(entries)
        if first.stride != second.stride:
            return None
        offset = max(first.offset, second.offset)
        end = max(first.size - first.offset, second.size - second.offset)
        return AxisField(first.sources | second.sources, offset + end, first.stride, offset)


CONSTANT = AxisField(frozenset(), Fraction(1), Fraction(0))
"""Field along an axis whose entries are the same, as after a broadcast, or depend on no argument."""

Axes = Sequence["AxisField | None"]
"""Fields along the axes of a value; None along an axis whose entries depend on pixels in an unknown way."""


@dataclasses.dataclass(frozen=True)
class Value:
    """Holds what is known of a value of the jaxpr.

    Args:
      axes: field along each axis.
      image: flag, True for a value that depends on the result of a convolution, unlike a kernel or another weight.
      copies: number of slices for which a slice in a scan stands, one for each step; 1 for any other value.
      roots: arguments and constants of the function, or slices of them, from which a weight was made; none if that is
        not known. Values with the same roots are one weight.
      shared: fields that all entries share, since the value was reduced along these axes; one for each source.
      lost: sources on which the value depends in an unknown way.
    """

    axes: tuple[AxisField | None, ...]
    image: bool = False
    copies: int = 1
    roots: frozenset[Hashable] = dataclasses.field(default=frozenset(), compare=False)
    shared: frozenset[AxisField] = frozenset()
    lost: frozenset[Source] = frozenset()

    @property
    def sources(self) -> frozenset[Source]:
        """Sources along the axes."""
        return frozenset().union(*(field.sources for field in self.axes if field is not None))

    def without_merged_axes(self) -> Value:
        """Returns the value with nothing known along axes that a reshape merged, and the sources of these axes lost."""
        merged = [field for field in self.axes if field is not None and field.parts]
        axes = tuple(None if field in merged else field for field in self.axes)
        return dataclasses.replace(self, axes=axes, lost=self.lost.union(*(field.sources for field in merged)))

    def union(self, other: Value, shape: Sequence[int]) -> Value:
        """Returns what is known of a value that is either this one or another one."""
        operands = (self, other)
        united = _with_axes(_united_axes([value.axes for value in operands], shape), operands, (shape, shape))
        return dataclasses.replace(united, image=self.image or other.image, copies=self.copies, roots=self.roots)


def argument(number: int, ndim: int) -> Value:
    """Returns the value of an argument of the function: each entry sees itself."""
    return Value(tuple(AxisField(frozenset({(number, axis)})) for axis in range(ndim)), roots=frozenset((number,)))


def constant(ndim: int) -> Value:
    """Returns the value of what depends on no argument."""
    return Value((CONSTANT,) * ndim)


def field_along(value: Value, axis: int, entries: int) -> AxisField | None:
    """Returns the field along an axis of a value, with the pixels that all entries share.

    None if the field is not known, and along an axis whose entries are all the same.
    """
    field = value.axes[axis]
    if field is None or field.parts or not field.sources or field.sources & value.lost:
        return None
    for shared in value.shared:
        if shared.sources & field.sources:
            field = field.of_all_entries(entries).union(shared, entries) or field
    return field


def field_of(axes: Sequence[AxisField | None]) -> ReceptiveField | None:
    """Returns the receptive field along some axes, if all are known.

    An interval of a fractional size holds as many pixels as the whole part of it; stride and offset are rounded up.
    """
    fields = [axis for axis in axes if axis is not None]
    if len(fields) < len(axes) or not axes:
        return None
    return ReceptiveField(
        tuple(math.floor(axis.size) for axis in fields),
        tuple(math.ceil(axis.stride) for axis in fields),
        tuple(math.ceil(axis.offset) for axis in fields),
    )


Dropped = Sequence[tuple["AxisField | None", Any]]
"""Pairs of the field and the number of entries of an operand's axis that an operation reduces, as a sum does."""


def _with_axes(axes: Axes, operands: Sequence[Value], shapes: Sequence[Sequence[Any]], dropped: Dropped = ()) -> Value:
    """Returns the value of a result from the fields along its axes, which are known, and from its operands.

    The operands determine `shared` and `lost`. The caller sets `image`, `copies` and `roots`.

    Args:
      axes: field along each axis of the result.
      operands: values of the operands.
      shapes: shapes of the operands.
      dropped: fields along the operands' axes that the result was reduced along. Any other axis of an operand that is
        longer than 1 and has no counterpart in the result makes its sources lost.
    """
    lost = frozenset().union(*(value.lost for value in operands))
    whole = [field for value in operands for field in value.shared]
    carried = frozenset().union(*(field.sources for field in axes if field is not None))
    reduced = list(dropped)
    for value, shape in zip(operands, shapes, strict=True):
        for field, entries in zip(value.axes, shape, strict=True):
            if field is not None and not field.sources <= carried and (field, entries) not in dropped:
                if entries == 1:
                    reduced.append((field, entries))
                else:
                    lost |= field.sources
    for field, entries in reduced:
        if field is not None and isinstance(entries, int):
            whole += [part.of_all_entries(count) for part, count in field.parts or ((field, entries),)]
        elif field is not None:
            lost |= field.sources
    shared: dict[frozenset[Source], AxisField] = {}
    for field in whole:
        if field.sources:
            before = shared.get(field.sources)
            shared[field.sources] = field if before is None else before.union(field, 1) or field
    # Where two axes count the same source, neither alone tells which of its pixels an entry sees.
    counted = Counter(source for field in axes if field is not None for source in field.sources)
    lost |= frozenset(source for source, count in counted.items() if count > 1)
    return Value(tuple(axes), shared=frozenset(shared.values()), lost=lost)


def through_convolution(conv: Convolution, operands: Sequence[Value], shapes: Sequence[Any]) -> Value:
    """Returns the value of the result of a convolution.

    Args:
      conv: convolution.
      operands: values of the operands.
      shapes: shapes of the operands and of the result.
    """
    axes: list[AxisField | None] = [None] * len(shapes[-1])
    operands = [value.without_merged_axes() for value in operands]
    spec = conv.spec
    if spec.role == "kernel":
        return dataclasses.replace(_with_axes(axes, operands, shapes[:-1]), image=True)
    axes[conv.axes[2][0]] = operands[0].axes[conv.axes[0][0]]
    axes[conv.axes[2][-1]] = CONSTANT
    for index, (source, target) in enumerate(
        zip(conv.axes[0][-1 - spec.rank : -1], conv.axes[2][-1 - spec.rank : -1], strict=True)
    ):
        before = operands[0].axes[source]
        extent = dilated_size(spec.window[index], spec.kernel_dilation[index])
        arguments = extent, spec.strides[index], spec.padding[index][0]
        if before is not None and spec.role == "input":
            axes[target] = before.after_transposed_window(*arguments)
        elif before is not None:
            holes = dataclasses.replace(before, stride=before.stride / spec.input_dilation[index])
            axes[target] = holes.after_window(*arguments)
    channels = conv.axes[0][-1]
    dropped = [(operands[0].axes[channels], shapes[0][channels]), *zip(operands[1].axes, shapes[1], strict=True)]
    return dataclasses.replace(_with_axes(axes, operands, shapes[:-1], dropped), image=True)


def through_product(equation: JaxprEqn, operands: Sequence[Value]) -> Value:
    """Returns the value of the result of a `dot_general`: axes that are not summed over stay."""
    operands = [value.without_merged_axes() for value in operands]
    (lhs_summed, rhs_summed), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    lhs, rhs, _ = (aval.shape for aval in avals(equation))
    batch = [
        _united_axes([(operands[0].axes[left],), (operands[1].axes[right],)], (lhs[left],))[0]
        for left, right in zip(lhs_batch, rhs_batch, strict=True)
    ]
    free: list[AxisField | None] = []
    dropped: list[tuple[AxisField | None, Any]] = []
    sides = zip(operands, (lhs, rhs), (lhs_summed, rhs_summed), (lhs_batch, rhs_batch), strict=True)
    for number, (value, shape, summed, of_batch) in enumerate(sides):
        of_other = zip(operands[1 - number].axes, (rhs, lhs)[number], strict=True)
        summed_of_other = (rhs_summed, lhs_summed)[number]
        reduced = [pair for axis, pair in enumerate(of_other) if axis in summed_of_other]
        fields = [value.axes[axis] for axis in range(len(shape)) if axis not in {*summed, *of_batch}]
        # Constant weights that differ along a free axis may take any part of the other operand, as in an interpolation.
        are_weights = any(field is not None and not field.sources for field in fields)
        free += [field if field is None or field.sources or not are_weights else None for field in fields]
        dropped += [] if are_weights else reduced
    result = _with_axes([*batch, *free], operands, (lhs, rhs), dropped)
    return dataclasses.replace(result, image=any(value.image for value in operands))


def through_window(value: Value, windows: Sequence[tuple[int, int, int]]) -> Value:
    """Returns the value of the result of a pool: each axis has a dilated window, a stride and a low padding."""
    value = value.without_merged_axes()
    axes = (field and field.after_window(*window) for field, window in zip(value.axes, windows, strict=True))
    return dataclasses.replace(value, axes=tuple(axes), copies=1, roots=frozenset())


def unknown(equation: JaxprEqn, operands: Sequence[Value]) -> Value:
    """Returns the value of a result that depends on the operands in an unknown way.

    The field along each axis is None, or `CONSTANT` if the operands depend on no argument.
    """
    axes = _unknown(equation, operands, avals(equation)[-1].shape)
    return _with_axes(axes, operands, [shape_of(atom) for atom in equation.invars])


def through(equation: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """Returns the values of the results of an equation that is no convolution and no pool."""
    if returns_operands(equation):
        return list(operands)
    image = any(value.image for value in operands)
    copies = max((value.copies for value in operands), default=1)
    rule = _RULES.get(equation.primitive)
    if rule is None:
        rule = _elementwise if equation.primitive.name in _ELEMENTWISE_NAMES else _unknown
    if equation.primitive.name == "stack":  # the primitive has no public name
        rule = _stack
    if rule not in (_elementwise, _reduce, _reshape, _transpose, _broadcast):
        operands = [value.without_merged_axes() for value in operands]
    shapes = [shape_of(atom) for atom in equation.invars]
    dropped: Dropped = ()
    if rule is _reduce:
        dropped = [(operands[0].axes[axis], shapes[0][axis]) for axis in _reduced_axes(equation)]
    results = []
    for variable in equation.outvars:
        value = _with_axes(rule(equation, operands, shape_of(variable)), operands, shapes, dropped)
        roots = frozenset() if image else _roots(equation, operands, variable.aval)
        results.append(dataclasses.replace(value, image=image, copies=copies, roots=roots))
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


def _operand_shape(equation: JaxprEqn, index: int = 0) -> tuple[int, ...]:
    return avals(equation)[index].shape


def _unknown(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of a result of which it is not known how it depends on its operands."""
    del equation
    depends = any(value.sources or value.shared or value.lost or None in value.axes for value in operands)
    return (None if depends else CONSTANT,) * len(shape)


def _united_axes(axes: Sequence[Axes], shape: Sequence[int]) -> list[AxisField | None]:
    """Returns the union of the fields of several values along each axis."""
    result: list[AxisField | None] = []
    for fields, entries in zip(zip(*axes, strict=True), shape, strict=True):
        united: AxisField | None = CONSTANT
        for field in fields:
            if united is None or field is None:
                united = None
            elif not united.sources:
                united = field
            elif field.sources:
                united = united.union(field, entries)
        result.append(united)
    return result


def _elementwise(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the union over the operands; scalars have no axes."""
    axes = [
        value.axes for value, atom in zip(operands, equation.invars, strict=True) if len(shape_of(atom)) == len(shape)
    ]
    return _united_axes([(CONSTANT,) * len(shape), *axes], shape)


def _concatenate(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of operands one after the other, known if they continue one another, as after a split."""
    dimension = equation.params["dimension"]
    axes = list(_elementwise(equation, operands, shape))
    starts = itertools.accumulate((shape_of(atom)[dimension] for atom in equation.invars), initial=0)
    pieces = [
        field and field.after_window(1, 1, start)
        for field, start in zip((value.axes[dimension] for value in operands), starts, strict=False)
    ]
    varying = {piece for piece in pieces if piece is None or piece.sources}
    axes[dimension] = varying.pop() if len(varying) == 1 else (None if varying else CONSTANT)
    return axes


def _stack(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the union of the operands, with `CONSTANT` along the new axis, which numbers them."""
    axis = equation.params["axis"]
    axes = _united_axes([value.axes for value in operands], shape_of(equation.invars[0]))
    return [*axes[:axis], CONSTANT, *axes[axis:]]


def _transpose(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    del shape
    return [operands[0].axes[axis] for axis in equation.params["permutation"]]


def _broadcast(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    axes: list[AxisField | None] = [CONSTANT] * len(shape)
    for axis, target in enumerate(equation.params["broadcast_dimensions"]):
        if _operand_shape(equation)[axis] == shape[target]:
            axes[target] = operands[0].axes[axis]
    return axes


def _reshape(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of a reshape's result; axes of size 1 may come and go anywhere."""
    old_shape = _operand_shape(equation)
    if equation.params.get("dimensions") is not None or 0 in old_shape:
        return _unknown(equation, operands, shape)
    result: list[AxisField | None] = [CONSTANT] * len(shape)
    old = [axis for axis, size in enumerate(old_shape) if size != 1]
    new = [axis for axis, size in enumerate(shape) if size != 1]
    while old and new:
        before, after = [old.pop(0)], [new.pop(0)]
        while (sizes := [math.prod(old_shape[n] for n in before), math.prod(shape[n] for n in after)])[0] != sizes[1]:
            rest, group = (old, before) if (sizes[0] < sizes[1] or not new) and old else (new, after)
            if not rest:
                break
            group.append(rest.pop(0))
        fields = _regrouped([(operands[0].axes[n], old_shape[n]) for n in before], [shape[n] for n in after])
        for axis, field in zip(after, fields, strict=True):
            result[axis] = field
    return result


def _regrouped(before: Sequence[tuple[AxisField | None, int]], sizes: Sequence[int]) -> Axes:
    """Returns the fields of the axes, of these sizes, into which neighbouring axes are merged, split, or both."""
    (field, _), *repeated = before
    if field is not None and field.parts and not repeated:
        # Merged axes are known again if they are split as they were.
        same = [count for _, count in field.parts] == list(sizes)
        return [part for part, _ in field.parts] if same else [field] if len(sizes) == 1 else (None,) * len(sizes)
    parts = tuple((part, count) for part, count in before if part is not None)
    are_plain = len(parts) == len(before) and not any(part.parts for part, _ in parts)
    if len(sizes) == 1 and are_plain and sum(bool(part.sources) for part, _ in parts) > 1:
        return (AxisField(frozenset().union(*(part.sources for part, _ in parts)), parts=parts),)
    if field is None or field.parts or any(other is None or other.sources for other, _ in repeated):
        return (None,) * len(sizes)
    if repeated and field.sources:
        # The axis is repeated: entry `o` of the merged one is entry `o // repeats`, of which the start is a fraction.
        repeats = math.prod(size for _, size in repeated)
        shift = field.stride * Fraction(repeats - 1, repeats)
        field = AxisField(
            field.sources, field.size + abs(shift), field.stride / repeats, field.offset + max(shift, Fraction(0))
        )
    if len(sizes) > 1 and field.sources:
        inner = math.prod(sizes[1:])
        field = field.after_window(inner, inner, 0)
    return (field, *(CONSTANT,) * (len(sizes) - 1))


def _reduced_axes(equation: JaxprEqn) -> Sequence[int]:
    return equation.params["axes"] if "axes" in equation.params else equation.params["dimensions"]


def _reduce(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    del shape
    return [field for axis, field in enumerate(operands[0].axes) if axis not in {*_reduced_axes(equation)}]


def _reverse(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    return [
        field.reverse(shape[axis]) if field is not None and axis in equation.params["dimensions"] else field
        for axis, field in enumerate(operands[0].axes)
    ]


def _whole_slices(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of a `dynamic_slice`, known along the axes that it does not cut."""
    return [
        field if size == before else None
        for field, size, before in zip(operands[0].axes, shape, _operand_shape(equation), strict=True)
    ]


def _gather(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns the fields of a gather's result, known along the axes that each slice holds as a whole."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes: list[AxisField | None] = [None] * len(shape)
    gone = {*numbers.collapsed_slice_dims, *getattr(numbers, "operand_batching_dims", ())}
    remaining = (axis for axis in range(len(sizes)) if axis not in gone)
    for target, axis in zip(numbers.offset_dims, remaining, strict=True):
        if sizes[axis] == _operand_shape(equation)[axis]:
            axes[target] = operands[0].axes[axis]
    return axes


def _slice(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    starts, steps = equation.params["start_indices"], equation.params["strides"] or (1,) * len(shape)
    return [
        field and field.after_window(1, step, -start)
        for field, start, step in zip(operands[0].axes, starts, steps, strict=True)
    ]


def _pad(equation: JaxprEqn, operands: Sequence[Value], shape: Sequence[int]) -> Axes:
    """Returns fields moved by the low padding, negative or not, at a smaller stride if there is interior padding."""
    del shape
    return [
        field
        and dataclasses.replace(
            field,
            stride=field.stride / (inner + 1),
            offset=field.offset + Fraction(int(low), inner + 1) * field.stride,
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
        entries = _operand_shape(equation)[axis]
        fields = [value.axes[axis] for value in operands if len(value.axes) == len(shape)]
        axes[axis] = _united_axes([(field and field.of_all_entries(entries),) for field in fields], (entries,))[0]
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
        and dataclasses.replace(field, stride=field.stride / hole).after_window(dilated_size(window, step), stride, low)
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
    lax_primitives.dynamic_slice_p: _whole_slices,
    lax_primitives.gather_p: _gather,
    lax_primitives.rev_p: _reverse,
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

# fmt: off
_ELEMENTWISE_NAMES = frozenset({
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type", "cos", "cosh", "digamma", "div",
    "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igammac", "imag",
    "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "nextafter", "not", "or", "polygamma", "population_count", "pow", "real", "reduce_precision", "rem", "round",
    "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})
# fmt: on
"""Names of primitives of which each entry of a result depends on the same entry of each operand alone."""

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
