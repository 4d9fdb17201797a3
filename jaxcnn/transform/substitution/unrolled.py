"""A function as one row of steps, with calls inlined and loops unrolled, computed in a few compiled segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.acceleration.accelerate import accelerated
from jaxcnn.transform.chains.axis_views import Ints
from jaxcnn.transform.chains.find_kernels import Site
from jaxcnn.transform.jaxpr.dense_layers import one_tap_convolution_on
from jaxcnn.transform.jaxpr.equations import (
    CALLS,
    JaxprValues,
    consts_of,
    inner_jaxpr,
    loop_parts,
    rebind,
    same_source,
    sub_jaxprs,
)

Sites = Mapping[Ints, tuple[int, Site]]
"""Convolutions of interest, each with the position of its kernel among the arguments, by path."""

Values = dict[int, Any]
"""Values by the number of their variable."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """An operand whose value is known.

    Args:
      value: array or number.
    """

    value: Any


Operand = int | Constant
"""Number of a variable, or a constant."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation.

    Args:
      compute: function from the operands' values to a list of results.
      operands: operands of the operation.
      results: numbers of the variables that the results become.
      equation: equation that the operation is, or None.
    """

    compute: Callable[[Sequence[Any]], list[Any]]
    operands: tuple[Operand, ...]
    results: tuple[int, ...]
    equation: JaxprEqn | None = None

    @property
    def reads(self) -> list[int]:
        """Numbers of the variables that the operation reads."""
        return [operand for operand in self.operands if isinstance(operand, int)]


@dataclasses.dataclass(frozen=True)
class SiteStep:
    """A convolution of interest among the steps.

    Args:
      index: position of the argument that holds the kernel.
      site: convolution.
      position: position of its step.
    """

    index: int
    site: Site
    position: int


class UnrolledProgram:
    """The steps of a closed jaxpr.

    Args:
      closed: closed jaxpr. Its arguments are the variables 0, 1, 2, ...
      sites: convolutions to be found among the steps. A loop that holds one is unrolled; other loops are one step.
    """

    def __init__(self, closed: Any, sites: Sites) -> None:
        self._sites = sites
        self.steps: list[Step] = []
        self.sites: list[SiteStep] = []
        self.inputs = range(len(inner_jaxpr(closed).invars))
        self._count = len(self.inputs)
        self.constants: Values = {}
        self._constant_of: dict[int, int] = {}
        self.outputs = self._add_jaxpr(closed, list(self.inputs), ())

    def operand(self, site: SiteStep, position: int) -> Operand:
        """Returns an operand of a convolution."""
        return self.steps[site.position].operands[position]

    def response(self, site: SiteStep) -> int:
        """Returns the variable of a convolution's result."""
        return self.steps[site.position].results[0]

    def _add_jaxpr(self, closed: Any, inputs: Sequence[Operand], path: Ints) -> list[Operand]:
        """Adds the steps of a jaxpr with some arguments; returns its results."""
        jaxpr = inner_jaxpr(closed)
        consts = map(self._constant, consts_of(closed))
        values: JaxprValues[Operand] = JaxprValues(jaxpr, [*consts, *inputs], lambda literal: Constant(literal.val))
        for equation in jaxpr.eqns:
            here = (*path, id(equation))
            operands = values.read(equation.invars)
            holds_site = any(site[: len(here)] == here for site in self._sites)
            if equation.primitive in CALLS:
                (inner,) = sub_jaxprs(equation)
                results = self._add_jaxpr(inner, operands, here)
            elif holds_site and equation.primitive is lax_primitives.scan_p:
                results = self._add_scan(equation, operands, here)
            elif holds_site and (layer := one_tap_convolution_on(equation, here, self._sites)) is not None:
                results = self._add_jaxpr(layer, operands, here)
            else:
                if here in self._sites:
                    self.sites.append(SiteStep(*self._sites[here], len(self.steps)))
                results = self._add(_bound(equation), operands, len(equation.outvars), equation)
            values.write(equation, results)
        return values.outputs()

    def _constant(self, value: Any) -> int:
        """Returns the variable of a constant. A program that holds large constants would take long to compile."""
        if id(value) not in self._constant_of:
            self._constant_of[id(value)] = self._count
            self.constants[self._count] = value
            self._count += 1
        return self._constant_of[id(value)]

    def _add(
        self,
        compute: Callable[[Sequence[Any]], list[Any]],
        operands: Sequence[Operand],
        count: int = 1,
        equation: JaxprEqn | None = None,
    ) -> list[Operand]:
        results = tuple(range(self._count, self._count + count))
        self._count += count
        self.steps.append(Step(compute, tuple(operands), results, equation))
        return list(results)

    def _add_scan(self, equation: JaxprEqn, operands: Sequence[Operand], path: Ints) -> list[Operand]:
        (inner,) = sub_jaxprs(equation)
        constants, carry, slices = loop_parts(equation, operands)
        turns = range(equation.params["length"])
        rows = []
        for turn in reversed(turns) if equation.params["reverse"] else turns:
            elements = [self._add(_element(turn), [operand])[0] for operand in slices]
            results = self._add_jaxpr(inner, [*constants, *carry, *elements], path)
            carry = results[: len(carry)]
            rows.append(results[len(carry) :])
        columns = zip(*(rows[::-1] if equation.params["reverse"] else rows), strict=True)
        return [*carry, *(self._add(_stack, list(column))[0] for column in columns)]

    def values(self, arrays: Sequence[Any]) -> Values:
        """Returns the variables that are known before the first step, for some arguments."""
        return {**dict(zip(self.inputs, arrays, strict=True)), **self.constants}

    def reads(self, variable: int) -> list[tuple[Step, int]]:
        """Returns the steps that read a variable, each with the position of its operand."""
        return self._readers.get(variable, [])

    @cached_property
    def _readers(self) -> dict[int, list[tuple[Step, int]]]:
        readers: dict[int, list[tuple[Step, int]]] = {}
        for step in self.steps:
            for position, operand in enumerate(step.operands):
                if isinstance(operand, int):
                    readers.setdefault(operand, []).append((step, position))
        return readers


class Segment:
    """Some steps in a row, compiled as one program.

    Args:
      steps: steps.
      variables: variables whose values are asked for, if the steps compute them.
      finish: function of the results by variable, compiled with the steps; its result is that of the segment.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        variables: Iterable[int],
        finish: Callable[[Values], Any] = lambda results: results,
    ) -> None:
        self._finish = finish
        computed = {result for step in steps for result in step.results}
        self.results = sorted(computed & set(variables))
        self.steps = needed_steps(steps, self.results)
        own_results = {result for step in self.steps for result in step.results}
        self.reads = sorted({variable for step in self.steps for variable in step.reads} - own_results)
        self._run = accelerated("substitute", self._compute)

    def _compute(self, inputs: Sequence[Any]) -> Any:
        values = dict(zip(self.reads, inputs, strict=True))
        run_steps(self.steps, values)
        return self._finish({result: values[result] for result in self.results})

    def run(self, values: Mapping[int, Any]) -> Any:
        """Returns the results asked for by variable, from the values of the variables that the steps read."""
        return self._run([values[variable] for variable in self.reads]) if self.steps else {}


def needed_steps(steps: Sequence[Step], variables: Iterable[int]) -> list[Step]:
    """Returns the steps that some variables depend on, in order."""
    needed, needed_in_reverse = set(variables), []
    for step in reversed(steps):
        if needed.intersection(step.results):
            needed.update(step.reads)
            needed_in_reverse.append(step)
    return needed_in_reverse[::-1]


def run_steps(steps: Iterable[Step], values: Values) -> None:
    """Computes steps, and adds their results to the values."""
    for step in steps:
        results = step.compute([_read(values, operand) for operand in step.operands])
        values.update(zip(step.results, results, strict=True))


def _read(values: Mapping[int, Any], operand: Operand) -> Any:
    return operand.value if isinstance(operand, Constant) else values[operand]


def _bound(equation: JaxprEqn) -> Callable[[Sequence[Any]], list[Any]]:
    def compute(operands: Sequence[Any]) -> list[Any]:
        with same_source(equation), equation.ctx.manager:
            return rebind(equation, operands)

    return compute


def _element(turn: int) -> Callable[[Sequence[Any]], list[Any]]:
    return lambda operands: [lax.index_in_dim(operands[0], turn, keepdims=False)]


def _stack(operands: Sequence[Any]) -> list[Any]:
    return [jnp.stack(operands)]
