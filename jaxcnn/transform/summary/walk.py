"""The walk of `summarize` over a jaxpr and those it holds: a row for each equation, and what its results see."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.jaxpr.convolutions import is_convolution
from jaxcnn.transform.jaxpr.equations import avals, inner_jaxpr, is_entered, loop_parts, sub_jaxprs
from jaxcnn.transform.summary.describe import Place, row_of, weight_of
from jaxcnn.transform.summary.receptive_fields import Value, argument, through
from jaxcnn.transform.summary.row import SummaryRow

Counted = tuple[SummaryRow, frozenset[Hashable]]
"""A row, and the roots of its weight."""

_MAX_LOOP_PASSES = 1000
"""Steps of a scan after which a receptive field that still grows is given up."""


def survey(closed: Any, platform: str) -> tuple[tuple[SummaryRow, ...], tuple[str, ...]]:
    """The rows of a closed jaxpr, whose arguments are those of the user's function, and notes on how they count."""
    walk = _Walk()
    variables = (*inner_jaxpr(closed).constvars, *inner_jaxpr(closed).invars)
    values = [argument(number, _ndim(variable)) for number, variable in enumerate(variables)]
    for number, constant in enumerate(_constants(closed)):
        values[number] = dataclasses.replace(values[number], roots=constant.roots)
    found, _ = walk.rows(closed, values, Place("", 1, platform))
    return _each_weight_once(found), tuple(dict.fromkeys(walk.notes))


def _each_weight_once(found: Sequence[Counted]) -> tuple[SummaryRow, ...]:
    """The rows, with a weight that several share counted in the first of them."""
    rows, seen = [], set()
    for row, roots in found:
        shared = roots in seen
        rows.append(dataclasses.replace(row, cost=dataclasses.replace(row.cost, params=0)) if shared else row)
        if roots and row.cost.params:
            seen.add(roots)
    return tuple(rows)


def _constants(jaxpr: Any) -> list[Value]:
    """What is known of a jaxpr's constants: an array that several jaxprs hold is one weight."""
    variables = inner_jaxpr(jaxpr).constvars
    held = getattr(jaxpr, "consts", ()) or (None,) * len(variables)
    roots = [frozenset() if value is None else frozenset((("constant", id(value)),)) for value in held]
    return [Value((None,) * _ndim(v), roots=root) for v, root in zip(variables, roots, strict=True)]


def _ndim(variable: Any) -> int:
    return len(getattr(variable.aval, "shape", ()))


@dataclasses.dataclass
class _Walk:
    """A walk over a jaxpr and those it holds, which collects notes."""

    notes: list[str] = dataclasses.field(default_factory=list)

    def rows(self, jaxpr: Any, values: Sequence[Value], place: Place) -> tuple[list[Counted], list[Value]]:
        """The rows of a jaxpr and what is known of its results; `values`: of its constants, then its arguments."""
        jaxpr = inner_jaxpr(jaxpr)
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), values, strict=True))

        def read(atom: Any) -> Value:
            return Value((None,) * _ndim(atom)) if isinstance(atom, Literal) else known[atom]

        rows: list[Counted] = []
        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            found = row_of(equation, operands, place)
            if found is not None:
                row, result = found
                rows.append((row, weight_of(equation, operands).roots))
                results = [result]
            else:
                self._note_left_out(equation, place)
                inner, results = self._held(equation, operands, place)
                rows += inner
            known.update(zip(equation.outvars, results, strict=True))
        return rows, [read(atom) for atom in jaxpr.outvars]

    def _note_left_out(self, equation: JaxprEqn, place: Place) -> None:
        symbolic = any(not isinstance(size, int) for aval in avals(equation) for size in getattr(aval, "shape", ()))
        if symbolic and is_convolution(equation):
            self.notes.append(f"a convolution of symbolic shape at {place.source_of(equation)} is not counted")

    def _inner(self, jaxpr: Any, operands: Sequence[Value], place: Place) -> tuple[list[Counted], list[Value]]:
        return self.rows(jaxpr, [*_constants(jaxpr), *operands], place)

    def _held(self, equation: JaxprEqn, operands: list[Value], place: Place) -> tuple[list[Counted], list[Value]]:
        held = sub_jaxprs(equation)
        if not held:
            return [], through(equation, operands)
        inside = place.inside(equation)
        if equation.primitive is lax_primitives.scan_p:
            return self._scan(equation, operands, place)
        if equation.primitive is lax_primitives.while_p:
            return self._while(equation, operands, inside)
        if equation.primitive is lax_primitives.cond_p:
            branches = [self._inner(branch, operands[1:], inside) for branch in held]
            if any(rows for rows, _ in branches):
                self.notes.append(f"cond at {inside.name or 'the top'}: the branch with the most MACs is counted")
            return max(branches, key=lambda branch: sum(row.cost.macs for row, _ in branch[0]))
        if is_entered(equation.primitive):
            # Of the jaxprs of an equation of any other primitive there is one.
            return self._inner(held[0], operands, inside)
        unknown = [[Value((None,) * _ndim(variable)) for variable in inner_jaxpr(jaxpr).invars] for jaxpr in held]
        if any(self._inner(jaxpr, values, inside)[0] for jaxpr, values in zip(held, unknown, strict=True)):
            self.notes.append(f"{equation.primitive} at {inside.name or 'the top'} is not looked into")
        return [], through(equation, operands)

    def _scan(self, equation: JaxprEqn, operands: list[Value], place: Place) -> tuple[list[Counted], list[Value]]:
        params = equation.params
        length, body = params["length"], params["jaxpr"]
        constants, carry, scanned = loop_parts(equation, operands)
        slices = [Value(value.axes[1:], value.image, value.copies * length, value.roots) for value in scanned]
        rows: list[Counted] = []
        results = [*carry]
        for step in range(min(length, _MAX_LOOP_PASSES)):
            rows, results = self._inner(body, [*constants, *carry, *slices], place.inside(equation, length))
            # What becomes of a weight from step to step stays the weight that it was.
            kept = [value.roots for value in carry]
            after = [dataclasses.replace(value, roots=roots) for value, roots in zip(results, kept, strict=False)]
            before, carry = carry, after
            if before == carry:
                break
            if step == _MAX_LOOP_PASSES - 1:
                carry = [Value((None,) * len(value.axes), value.image) for value in carry]
        stacked = [Value((None, *value.axes), value.image) for value in results[len(carry) :]]
        if not length:
            stacked = [Value((None,) * _ndim(variable)) for variable in equation.outvars[len(carry) :]]
        return rows, [*carry, *stacked]

    def _while(self, equation: JaxprEqn, operands: list[Value], inside: Place) -> tuple[list[Counted], list[Value]]:
        params = equation.params
        of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
        carry = operands[of_condition + of_body :]
        tested, _ = self._inner(params["cond_jaxpr"], [*operands[:of_condition], *carry], inside)
        rows, results = self._inner(
            params["body_jaxpr"], [*operands[of_condition : of_condition + of_body], *carry], inside
        )
        if tested or rows:
            self.notes.append(f"while at {inside.name or 'the top'}: its body is counted once")
        # How far the field grows depends on the number of steps.
        after = [
            value if value == old else Value((None,) * len(value.axes), value.image)
            for value, old in zip(results, carry, strict=True)
        ]
        return [*tested, *rows], after
