"""The abstract walk goes through a jaxpr, and the jaxprs in it, with facts about values in place of the values.

A subclass with a few hooks, the domain, defines these facts. One domain is the summary of a function with its receptive
fields, the other one the search for kernels among parameters.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.jaxpr.equations import (
    CALLS,
    JaxprValues,
    consts_of,
    inner_jaxpr,
    loop_parts,
    sub_jaxprs,
    user_line,
    while_parts,
)

V = TypeVar("V")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a jaxpr in a function.

    Args:
      count: number of executions of the jaxpr, with a `while` counted once.
      holders: equations that hold the jaxpr, outermost first.
      hidden: flag, True in the body of a `while`, in a branch, or in a primitive that the walk does not follow.
    """

    count: int = 1
    holders: tuple[JaxprEqn, ...] = ()
    hidden: bool = False

    def inside(self, equation: JaxprEqn, times: int = 1, hidden: bool = False) -> Place:
        """Returns the place of a jaxpr that an equation here holds."""
        return Place(self.count * times, (*self.holders, equation), self.hidden or hidden)

    def path_of(self, equation: JaxprEqn) -> tuple[int, ...]:
        """Returns the ids of the equations that hold an equation, outermost first, then its own id.

        The own id is not enough, since two calls of one jitted function share the equations inside.
        """
        return tuple(map(id, (*self.holders, equation)))

    def name_of(self, equation: JaxprEqn) -> str:
        """Returns the whole name stack of an equation."""
        stacks = (str(holder.source_info.name_stack) for holder in (*self.holders, equation))
        return "/".join(filter(None, stacks))

    def source_of(self, equation: JaxprEqn) -> str:
        """Returns the user's line of an equation, or of the innermost equation around it that has one."""
        return next(filter(None, map(user_line, (equation, *self.holders[::-1]))), "")


class AbstractWalk(abc.ABC, Generic[V, R]):
    """A walk over jaxprs with values of a domain, which collects records of equations.

    Args:
      max_loop_passes: largest number of passes over the body of a scan; fewer if the carry stops changing.
    """

    def __init__(self, max_loop_passes: int = 1) -> None:
        self.max_loop_passes = max_loop_passes
        self.records: list[R] = []

    def walk(self, jaxpr: Any, operands: Sequence[V], place: Place) -> list[V]:
        """Returns the values of a jaxpr's results from those of its arguments."""
        variables = inner_jaxpr(jaxpr).constvars
        constants = consts_of(jaxpr) or (None,) * len(variables)
        return self.walk_equations(jaxpr, [*map(self.constant, variables, constants), *operands], place)

    def walk_equations(self, jaxpr: Any, inputs: Sequence[V], place: Place) -> list[V]:
        """Returns the values of a jaxpr's results from those of its constants and arguments."""
        values: JaxprValues[V] = JaxprValues(jaxpr, inputs, self.literal)
        for equation in values.jaxpr.eqns:
            operands = values.read(equation.invars)
            results = self.equation(equation, operands, place)
            values.write(equation, self._walk_held(equation, operands, place) if results is None else results)
        return values.outputs()

    # The hooks of a domain.

    @abc.abstractmethod
    def unknown(self, aval: Any) -> V:
        """Returns the value that stands for no knowledge."""

    def constant(self, variable: Any, array: Any) -> V:
        """Returns the value of a constant of an inner jaxpr; `array` is None where the jaxpr lacks the array."""
        del array
        return self.unknown(variable.aval)

    def literal(self, literal: Any) -> V:
        """Returns the value of a literal."""
        return self.unknown(literal.aval)

    @abc.abstractmethod
    def equation(self, equation: JaxprEqn, operands: list[V], place: Place) -> list[V] | None:
        """Returns the values of an equation's results, or None to walk the jaxprs that the equation holds."""

    @abc.abstractmethod
    def element(self, value: V, length: int, place: Place) -> V:
        """Returns the value of one slice of a value that a scan takes apart.

        Args:
          value: value that is sliced.
          length: number of steps.
          place: place of the scan's body.
        """

    @abc.abstractmethod
    def stack(self, value: V) -> V:
        """Returns the value of a scan's stacked result from the value of one entry."""

    @abc.abstractmethod
    def join(self, before: V, after: V) -> V:
        """Returns the value of a loop's carry from its values before and after a step."""

    @abc.abstractmethod
    def widen(self, value: V) -> V:
        """Returns the value of a loop's carry that still changes when the walk stops following the loop."""

    @abc.abstractmethod
    def branches(self, outcomes: list[tuple[list[V], list[R]]], equation: JaxprEqn, place: Place) -> list[V]:
        """Returns the values of a `cond`'s results; adds those records of its branches that count.

        Args:
          outcomes: values of the results and records, for each branch.
          equation: equation of the `cond`.
          place: place of the equation.
        """

    @abc.abstractmethod
    def other_holder(self, equation: JaxprEqn, operands: list[V], place: Place) -> list[V]:
        """Returns the values of the results of an equation that holds jaxprs and is no scan, while, cond or call."""

    def after_while(self, equation: JaxprEqn, records: list[R], place: Place) -> None:
        """Handles the records of a `while`, those of one walk of its condition and body."""

    # Equations that hold jaxprs.

    def _walk_held(self, equation: JaxprEqn, operands: list[V], place: Place) -> list[V]:
        """Walks the jaxprs that an equation holds, as its primitive executes them."""
        if equation.primitive is lax_primitives.scan_p:
            return self._scan(equation, operands, place)
        if equation.primitive is lax_primitives.while_p:
            return self._while(equation, operands, place)
        if equation.primitive is lax_primitives.cond_p:
            inside = place.inside(equation, hidden=True)
            outcomes = [self.walk_apart(branch, operands[1:], inside) for branch in sub_jaxprs(equation)]
            return self.branches(outcomes, equation, place)
        if equation.primitive in CALLS:
            return self.walk(sub_jaxprs(equation)[0], operands, place.inside(equation))
        return self.other_holder(equation, operands, place)

    def walk_apart(self, jaxpr: Any, operands: Sequence[V], place: Place) -> tuple[list[V], list[R]]:
        """Returns the values of a jaxpr's results and its records, without adding these to the walk's records."""
        before, self.records = self.records, []
        try:
            return self.walk(jaxpr, operands, place), self.records
        finally:
            self.records = before

    def _scan(self, equation: JaxprEqn, operands: list[V], place: Place) -> list[V]:
        length, (body,) = equation.params["length"], sub_jaxprs(equation)
        inside = place.inside(equation, length)
        constants, carry, scanned = loop_parts(equation, operands)
        elements = [self.element(value, length, inside) for value in scanned]
        passes = max(1, min(length, self.max_loop_passes))
        for _ in range(passes):
            results, records = self.walk_apart(body, [*constants, *carry, *elements], inside)
            before, carry = carry, list(map(self.join, carry, results))
            if before == carry:
                break
        else:
            if passes == self.max_loop_passes:
                carry = list(map(self.widen, carry))
        self.records += records
        return [*carry, *map(self.stack, results[len(carry) :])]

    def _while(self, equation: JaxprEqn, operands: list[V], place: Place) -> list[V]:
        inside = place.inside(equation, hidden=True)
        tested, constants, carry = while_parts(equation, operands)
        while True:
            _, of_condition = self.walk_apart(equation.params["cond_jaxpr"], [*tested, *carry], inside)
            results, of_body = self.walk_apart(equation.params["body_jaxpr"], [*constants, *carry], inside)
            # The number of steps is unknown, so a carry that changes is widened before the body is walked again.
            before, after = carry, map(self.join, carry, results)
            carry = [new if new == old else self.widen(new) for old, new in zip(before, after, strict=True)]
            if carry == before:
                break
        self.records += (records := [*of_condition, *of_body])
        self.after_while(equation, records, place)
        return carry
