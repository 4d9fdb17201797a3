"""The abstract walk of `summarize`: a row for each convolution, pool and product, with its receptive field."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from functools import partial, reduce
from typing import Any

from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.receptive_field import ReceptiveField
from jaxcnn.transform.jaxpr.abstract_walk import AbstractWalk, Place
from jaxcnn.transform.jaxpr.convolutions import is_convolution
from jaxcnn.transform.jaxpr.equations import (
    avals,
    consts_of,
    inner_jaxpr,
    is_entered,
    loop_parts,
    shape_of,
    sub_jaxprs,
)
from jaxcnn.transform.summary.describe import row_of, weight_of
from jaxcnn.transform.summary.layer_names import LayerNames, root_of_constant
from jaxcnn.transform.summary.receptive_fields import (
    AxisField,
    Value,
    argument,
    constant,
    field_along,
    field_of,
    through,
)
from jaxcnn.transform.summary.row import SummaryRow
from jaxcnn.transform.summary.shards import SplitProgram

_Record = tuple[SummaryRow, frozenset[Hashable], "Sequence[AxisField | None]"]
"""A row, the roots of its weight, and the fields along its image axes before pixels that all entries share."""

_MAX_LOOP_PASSES = 1000
"""Largest number of steps of a scan that are followed; a receptive field that still grows then is not known."""


def summarize_jaxpr(
    closed: Any, platform: str, program: SplitProgram | None, names: LayerNames
) -> tuple[tuple[SummaryRow, ...], tuple[str, ...], ReceptiveField | None]:
    """Returns the rows of a closed jaxpr of the user's function, notes on the count, and the field of all together.

    Args:
      closed: closed jaxpr.
      platform: platform for which methods are chosen.
      program: the function's program if its arguments are split over several devices.
      names: names of the layers.
    """
    walk = _SummaryWalk(platform, program, names)
    jaxpr = inner_jaxpr(closed)
    constants = [walk.constant(*pair) for pair in zip(jaxpr.constvars, consts_of(closed), strict=True)]
    arguments = [argument(number, len(shape_of(variable))) for number, variable in enumerate(jaxpr.invars)]
    results = walk.walk_equations(closed, [*constants, *arguments], Place())
    field = _total_field(walk.records, list(zip(results, map(shape_of, jaxpr.outvars), strict=True)))
    return _count_weights_once(walk.records), tuple(dict.fromkeys(walk.notes)), field


def _total_field(records: Sequence[_Record], results: Sequence[tuple[Value, Sequence[int]]]) -> ReceptiveField | None:
    """Returns the union of the receptive fields of rows and results, with the stride of the widest one.

    A result counts if it has an axis along each spatial axis of the image. None if the field of a row is not known, if
    a result depends on the image in an unknown way, or if no row has a field.
    """
    layers = [(row.receptive_field, fields) for row, _, fields in records if fields]
    # A layer whose entries are all the same, as after a mean of the image, has no field of its own.
    if any(field is None and not any(axis and not axis.sources for axis in axes) for field, axes in layers):
        return None
    layers_with_field = [(field, axes) for field, axes in layers if field is not None]
    if len({len(field.size) for field, _ in layers_with_field}) != 1:
        return None
    fields = [field for field, _ in layers_with_field]
    by_axis = zip(*(axes for _, axes in layers_with_field), strict=True)
    sources = [frozenset().union(*(axis.sources for axis in axes if axis is not None)) for axes in by_axis]
    for value, shape in results:
        if len(shape) < len(sources) + 2:
            continue
        if any(counted & value.lost for counted in sources):
            return None
        places = [[n for n, axis in enumerate(value.axes) if axis and axis.sources & counted] for counted in sources]
        if all(places):
            field = field_of([field_along(value, axes[0], shape[axes[0]]) for axes in places])
            fields += [] if field is None else [field]
    offset = tuple(map(max, zip(*(field.offset for field in fields), strict=True)))
    ends = ((size - low for size, low in zip(field.size, field.offset, strict=True)) for field in fields)
    size = tuple(low + max(end) for low, end in zip(offset, zip(*ends, strict=True), strict=True))
    return ReceptiveField(size, max(fields, key=lambda field: field.size).stride, offset)


def _count_weights_once(records: Sequence[_Record]) -> tuple[SummaryRow, ...]:
    """Returns the rows, with the parameters of a shared weight in the first of its rows only."""
    rows: list[SummaryRow] = []
    counted: set[frozenset[Hashable]] = set()
    for row, roots, _ in records:
        is_shared = roots in counted
        rows.append(dataclasses.replace(row, cost=dataclasses.replace(row.cost, params=0)) if is_shared else row)
        if roots and row.cost.params:
            counted.add(roots)
    return tuple(rows)


def _roots_of_constant(array: Any) -> frozenset[Hashable]:
    """Returns the roots of a constant; none if its array is not at hand."""
    return frozenset() if array is None else frozenset((root_of_constant(array),))


class _SummaryWalk(AbstractWalk[Value, _Record]):
    """The walk that collects rows and notes.

    Args:
      platform: platform for which methods are chosen.
      program: the program that XLA split over several devices, or None.
      names: names of the layers.
    """

    def __init__(self, platform: str, program: SplitProgram | None, names: LayerNames) -> None:
        super().__init__(_MAX_LOOP_PASSES)
        self.platform, self.program, self.names = platform, program, names
        self.notes: list[str] = []

    def unknown(self, aval: Any) -> Value:
        # A value of which nothing is known counts as one that depends on no argument.
        return constant(len(getattr(aval, "shape", ())))

    def constant(self, variable: Any, array: Any) -> Value:
        return dataclasses.replace(self.unknown(variable.aval), roots=_roots_of_constant(array))

    def equation(self, equation: JaxprEqn, operands: list[Value], place: Place) -> list[Value] | None:
        row_and_result = row_of(equation, operands, place, self.platform)
        if row_and_result is not None:
            row, result, image_axes = row_and_result
            if self.program is not None:
                row = self.program.with_shards(row, equation)
            fields = [result.axes[axis] for axis in image_axes]
            roots = weight_of(equation, operands).roots
            row = dataclasses.replace(row, name=self.names.name(row.name, row.source, equation, roots))
            self.records.append((row, roots, fields))
            return [result]
        is_symbolic = any(not isinstance(n, int) for aval in avals(equation) for n in getattr(aval, "shape", ()))
        if is_symbolic and is_convolution(equation):
            self.notes.append(f"a convolution of symbolic shape at {place.source_of(equation)} is not counted")
        if not sub_jaxprs(equation):
            return through(equation, operands)
        if equation.primitive is lax_primitives.scan_p and not equation.params["length"]:
            _, carry, _ = loop_parts(equation, operands)
            return [*carry, *(self.unknown(variable.aval) for variable in equation.outvars[len(carry) :])]
        return None

    def element(self, value: Value, length: int, place: Place) -> Value:
        del place
        # The loop runs over the pixels along the first axis, so a step sees one that depends on its number.
        sliced = value.axes[0].sources if value.axes[0] is not None else frozenset()
        return dataclasses.replace(value, axes=value.axes[1:], copies=value.copies * length, lost=value.lost | sliced)

    def stack(self, value: Value) -> Value:
        # Which pixels an entry along the new axis sees is not known.
        return Value((None, *value.axes), value.image, shared=value.shared, lost=value.lost)

    def join(self, before: Value, after: Value) -> Value:
        # The walk repeats the step until the carry stays the same, so the fields after the step count. A weight that
        # changes from step to step keeps its roots.
        return dataclasses.replace(after, roots=before.roots)

    def widen(self, value: Value) -> Value:
        return Value((None,) * len(value.axes), value.image, shared=value.shared, lost=value.lost | value.sources)

    def branches(
        self, outcomes: list[tuple[list[Value], list[_Record]]], equation: JaxprEqn, place: Place
    ) -> list[Value]:
        # The records are those of the branch with the most MACs; a result is the union over all branches.
        if any(records for _, records in outcomes):
            self._note(equation, place, ": the branch with the most MACs is counted")
        _, records = max(outcomes, key=lambda outcome: sum(row.cost.macs for row, *_ in outcome[1]))
        self.records += records
        by_result = zip(*(results for results, _ in outcomes), strict=True)
        return [
            reduce(partial(Value.union, shape=shape), values)
            for values, shape in zip(by_result, map(shape_of, equation.outvars), strict=True)
        ]

    def after_while(self, equation: JaxprEqn, records: list[_Record], place: Place) -> None:
        if records:
            self._note(equation, place, ": its body is counted once")

    def other_holder(self, equation: JaxprEqn, operands: list[Value], place: Place) -> list[Value]:
        # The jaxpr of a `shard_map` or a `custom_vmap` is walked as a call. Results of any other primitive come from
        # `through`, with a note if layers are in its jaxprs.
        bodies, inside = sub_jaxprs(equation), place.inside(equation)
        if is_entered(equation.primitive):
            return self.walk(bodies[0], operands, inside)
        # These bodies are walked only to learn whether a note must name layers that are not counted.
        for body in bodies:
            unknown = [self.unknown(variable.aval) for variable in inner_jaxpr(body).invars]
            if self.walk_apart(body, unknown, inside)[1]:
                self._note(equation, place, " is not looked into")
                break
        return through(equation, operands)

    def _note(self, equation: JaxprEqn, place: Place, text: str) -> None:
        name = {lax_primitives.while_p: "while", lax_primitives.cond_p: "cond"}.get(equation.primitive)
        self.notes.append(f"{name or equation.primitive} at {place.name_of(equation) or 'the top'}{text}")
