"""The abstract walk of `summarize`: a row for each convolution, pool and product, with its receptive field."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

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
from jaxcnn.transform.summary.receptive_fields import Value, argument, through
from jaxcnn.transform.summary.row import SummaryRow

_Record = tuple[SummaryRow, frozenset[Hashable]]
"""A row, and the roots of its weight."""

_MAX_LOOP_PASSES = 1000
"""Largest number of steps of a scan that are followed; a receptive field that still grows then is not known."""


def rows_and_notes(closed: Any, platform: str) -> tuple[tuple[SummaryRow, ...], tuple[str, ...]]:
    """Returns the rows of a closed jaxpr of the user's function, and notes on the count."""
    walk = _SummaryWalk(platform)
    jaxpr = inner_jaxpr(closed)
    values = [argument(number, len(shape_of(v))) for number, v in enumerate((*jaxpr.constvars, *jaxpr.invars))]
    for number, array in enumerate(consts_of(closed)):
        values[number] = dataclasses.replace(values[number], roots=_roots_of_constant(array))
    walk.walk_equations(closed, values, Place())
    return _count_weights_once(walk.records), tuple(dict.fromkeys(walk.notes))


def _count_weights_once(records: Sequence[_Record]) -> tuple[SummaryRow, ...]:
    """Returns the rows, with the parameters of a shared weight in the first of its rows only."""
    rows: list[SummaryRow] = []
    counted_roots: set[frozenset[Hashable]] = set()
    for row, roots in records:
        is_shared = roots in counted_roots
        rows.append(dataclasses.replace(row, cost=dataclasses.replace(row.cost, params=0)) if is_shared else row)
        if roots and row.cost.params:
            counted_roots.add(roots)
    return tuple(rows)


def _roots_of_constant(array: Any) -> frozenset[Hashable]:
    """Returns the roots of a constant, which are equal for the same array in several jaxprs."""
    return frozenset() if array is None else frozenset((("constant", id(array)),))


class _SummaryWalk(AbstractWalk[Value, _Record]):
    """The walk that collects rows and notes.

    Args:
      platform: platform for which methods are chosen.
    """

    def __init__(self, platform: str) -> None:
        super().__init__(_MAX_LOOP_PASSES)
        self.platform = platform
        self.notes: list[str] = []

    def unknown(self, aval: Any) -> Value:
        return Value((None,) * len(getattr(aval, "shape", ())))

    def constant(self, variable: Any, array: Any) -> Value:
        return dataclasses.replace(self.unknown(variable.aval), roots=_roots_of_constant(array))

    def equation(self, equation: JaxprEqn, operands: list[Value], place: Place) -> list[Value] | None:
        row_and_result = row_of(equation, operands, place, self.platform)
        if row_and_result is not None:
            row, result = row_and_result
            self.records.append((row, weight_of(equation, operands).roots))
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

    def element(self, value: Value, length: int) -> Value:
        return Value(value.axes[1:], value.image, value.copies * length, value.roots)

    def stack(self, value: Value) -> Value:
        return Value((None, *value.axes), value.image)

    def join(self, before: Value, after: Value) -> Value:
        # A weight that changes from step to step keeps its roots.
        return dataclasses.replace(after, roots=before.roots)

    def widen(self, value: Value) -> Value:
        return Value((None,) * len(value.axes), value.image)

    def branches(
        self, outcomes: list[tuple[list[Value], list[_Record]]], equation: JaxprEqn, place: Place
    ) -> list[Value]:
        if any(records for _, records in outcomes):
            self._note(equation, place, ": the branch with the most MACs is counted")
        results, records = max(outcomes, key=lambda outcome: sum(row.cost.macs for row, _ in outcome[1]))
        self.records += records
        return results

    def after_while(self, equation: JaxprEqn, records: list[_Record], place: Place) -> None:
        if records:
            self._note(equation, place, ": its body is counted once")

    def other_holder(self, equation: JaxprEqn, operands: list[Value], place: Place) -> list[Value]:
        bodies, inside = sub_jaxprs(equation), place.inside(equation)
        if is_entered(equation.primitive):
            return self.walk(bodies[0], operands, inside)
        for body in bodies:
            unknown = [self.unknown(variable.aval) for variable in inner_jaxpr(body).invars]
            if self.walk_apart(body, unknown, inside)[1]:
                self._note(equation, place, " is not looked into")
                break
        return through(equation, operands)

    def _note(self, equation: JaxprEqn, place: Place, text: str) -> None:
        name = {lax_primitives.while_p: "while", lax_primitives.cond_p: "cond"}.get(equation.primitive)
        self.notes.append(f"{name or equation.primitive} at {place.name_of(equation) or 'the top'}{text}")
