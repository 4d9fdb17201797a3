"""Kernels that a function computes from its parameters: found by partial evaluation, and given as arguments instead.

Everything that leads to such a kernel depends on parameters alone, so it can be computed once. The function is then
evaluated with the kernel as one more argument, by which a chain can take the kernel's place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.chains.axis_views import Ints, View, view_after
from jaxcnn.transform.chains.find_kernels import conflict, find_kernels
from jaxcnn.transform.chains.known_values import KnownValue, KnownValues, compute
from jaxcnn.transform.chains.placement import use_of
from jaxcnn.transform.jaxpr.abstract_walk import AbstractWalk, Place
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from jaxcnn.transform.jaxpr.equations import (
    CALLS,
    inner_jaxpr,
    is_entered,
    loop_parts,
    rebind,
    shape_of,
    sub_jaxprs,
    while_parts,
)
from jaxcnn.transform.jaxpr.walker import Walker, inline

_MAX_LOOP_PASSES = 100
"""Largest number of passes over a scan's body until it is clear which parts of the carry are known."""


@dataclasses.dataclass(frozen=True)
class KernelComputation:
    """A kernel that a function computes from its arguments.

    Args:
      value: computed array from which the kernels of the convolutions follow by moves alone.
      argument: position of the largest argument from which the array is computed.
      uses: kernel of each convolution, by the path of the convolution.
    """

    value: KnownValue
    argument: int
    uses: dict[Ints, KnownValue] = dataclasses.field(default_factory=dict)


def find_computed_kernels(closed: Any, parameters: Collection[int]) -> list[KernelComputation]:
    """Returns the kernels that a closed jaxpr computes from some of its arguments, in order of their first use.

    A kernel that is a parameter itself, moved or cast, is left to `find_kernels`. Where one parameter's convolutions
    need different chains, those that the chain of the first one cannot serve count as computed here.

    Args:
      closed: closed jaxpr.
      parameters: positions of the arguments that are parameters.
    """
    arguments = inner_jaxpr(closed).invars
    search = _KnownValueSearch()
    search.walk(
        closed,
        [
            KnownValue(variable.aval, argument=position) if position in parameters else None
            for position, variable in enumerate(arguments)
        ],
        Place(),
    )
    direct = _direct_paths(closed)
    sizes = [math.prod(shape_of(variable)) for variable in arguments]
    kernels: dict[KnownValue, KernelComputation] = {}
    for path, equation, operand in search.records:
        if operand.sources and path not in direct:
            value = _root(equation, operand)
            argument = min(value.sources, key=lambda position: (-sizes[position], position))
            kernels.setdefault(value, KernelComputation(value, argument)).uses[path] = operand
    return list(kernels.values())


def _direct_paths(closed: Any) -> set[Ints]:
    """Returns the paths of the convolutions whose kernel is a parameter, without those that need another chain.

    The chain of a parameter serves its first convolution, and all that have no `conflict` with this one.
    """
    paths = set()
    arguments = inner_jaxpr(closed).invars
    for index, uses in find_kernels(closed)[0].items():
        if jnp.issubdtype(arguments[index].aval.dtype, jnp.inexact):
            paths |= {site.path for site in uses.sites if not conflict(uses.sites[0], site)}
    return paths


def _root(equation: JaxprEqn, operand: KnownValue) -> KnownValue:
    """Returns the earliest computed value of which a convolution's kernel is a view: more convolutions may share it."""
    moves = [operand]
    while len(moves[-1].operands) == 1 and moves[-1].equation is not None:
        moves.append(moves[-1].operands[0])
    for count in range(len(moves) - 1, 0, -1):
        start = moves[count]
        if start.equation is None or len(start.aval.shape) < 3 or not jnp.issubdtype(start.aval.dtype, jnp.inexact):
            continue
        view: View | None = View.whole(start.aval.shape)
        for value in moves[:count][::-1]:
            view = None if view is None or value.equation is None else view_after(value.equation, view)
        if view is not None and use_of(equation, view) is not None:
            return start
    return operand


_Record = tuple[Ints, JaxprEqn, KnownValue]
"""Path of a convolution, its equation, and its kernel."""


class _KnownValueSearch(AbstractWalk["KnownValue | None", _Record]):
    """The walk that follows values which depend on parameters alone; other values are None."""

    def __init__(self) -> None:
        super().__init__(_MAX_LOOP_PASSES)
        self.values = KnownValues()

    def unknown(self, aval: Any) -> None:
        del aval

    def literal(self, literal: Any) -> KnownValue:
        return self.values.literal(literal)

    def constant(self, variable: Any, array: Any) -> KnownValue | None:
        # The array is None where an inner jaxpr lacks it.
        return None if array is None else self.values.constant(variable.aval, array)

    def equation(
        self, equation: JaxprEqn, operands: list[KnownValue | None], place: Place
    ) -> list[KnownValue | None] | None:
        if equation.primitive in CALLS:
            return None
        known_operands = [operand for operand in operands if operand is not None]
        if len(known_operands) == len(operands) and not equation.effects:
            return [*self.values.results(equation, known_operands)]
        if as_convolution(equation, "describe") is not None:
            kernel = operands[1]
            if kernel is not None and use_of(equation, View.whole(kernel.aval.shape)) is not None:
                self.records.append((place.path_of(equation), equation, kernel))
        elif is_entered(equation.primitive) and sub_jaxprs(equation):
            return None
        return [None] * len(equation.outvars)

    def element(self, value: KnownValue | None, length: int, place: Place) -> KnownValue | None:
        del length
        if value is None:
            return None
        aval = jax.ShapeDtypeStruct(value.aval.shape[1:], value.aval.dtype)
        return self.values.element(value, aval, tuple(map(id, place.holders)))

    def stack(self, value: KnownValue | None) -> None:
        del value

    def join(self, before: KnownValue | None, after: KnownValue | None) -> KnownValue | None:
        return before if before is after else None

    def widen(self, value: KnownValue | None) -> None:
        del value

    def branches(self, outcomes: Any, equation: JaxprEqn, place: Place) -> list[KnownValue | None]:
        # Which branch computes a result is unknown, so no result of a `cond` is followed.
        del place
        for _, records in outcomes:
            self.records += records
        return [None] * len(equation.outvars)

    def other_holder(self, equation: JaxprEqn, operands: Any, place: Place) -> list[KnownValue | None]:
        # What such a primitive computes from its jaxprs is unknown, so no result is followed.
        del operands, place
        return [None] * len(equation.outvars)


# Evaluation with the kernels as arguments.


def evaluate_with_kernels(closed: Any, arrays: Sequence[Any], kernels: Sequence[tuple[KernelComputation, Any]]) -> Any:
    """Returns the results of a closed jaxpr with kernels that are given and not computed.

    Args:
      closed: closed jaxpr.
      arrays: arguments.
      kernels: pairs of a kernel and its array. The array has a leading axis for each scan in whose steps the kernel
        differs.
    """
    uses = {path: (kernel, value) for kernel, _ in kernels for path, value in kernel.uses.items()}
    injection = _Injection({}, uses=uses, arrays={kernel.value: array for kernel, array in kernels})
    return injection.evaluate(closed, closed.consts, *arrays)


@dataclasses.dataclass(frozen=True)
class _Injection(Walker):
    """The walker that puts kernels into convolutions.

    Args:
      uses: kernel and its moved form, by the path of the convolution.
      arrays: array of each kernel; inside of a scan the one of the step.
      path: ids of the equations around.
    """

    uses: Mapping[Ints, tuple[KernelComputation, KnownValue]] = dataclasses.field(default_factory=dict)
    arrays: Mapping[KnownValue, Any] = dataclasses.field(default_factory=dict)
    path: Ints = ()

    def results(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        path = (*self.path, id(equation))
        if path in self.uses:
            kernel, value = self.uses[path]
            moved = compute(value, {kernel.value: self.arrays[kernel.value]})
            return rebind(equation, [operands[0], moved])
        if not any(use[: len(path)] == path for use in self.uses):
            return rebind(equation, operands)
        return _DESCENTS[equation.primitive](dataclasses.replace(self, path=path), equation, operands)


def _into_remat(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    run = partial(walker.evaluate, params["jaxpr"], ())
    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*operands)


def _into_scan(walker: _Injection, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params, body = equation.params, equation.params["jaxpr"]
    constants, carry, slices = loop_parts(equation, operands)
    sliced = {value: array for value, array in walker.arrays.items() if walker.path in value.loops}

    def step(carry: list[Any], elements: Any) -> tuple[list[Any], list[Any]]:
        slices, kernels = elements
        arrays = {**walker.arrays, **dict(zip(sliced, kernels, strict=True))}
        inner = dataclasses.replace(walker, arrays=arrays)
        results = inner.evaluate(body, body.consts, *constants, *carry, *slices)
        return results[: len(carry)], results[len(carry) :]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    after, stacked = lax.scan(step, carry, (slices, list(sliced.values())), **options)
    return [*after, *stacked]


def _into_while(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    tested, constants, carry = while_parts(equation, operands)
    test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    return lax.while_loop(
        lambda carry: walker.evaluate(test, test.consts, *tested, *carry)[0],
        lambda carry: walker.evaluate(body, body.consts, *constants, *carry),
        carry,
    )


def _into_cond(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    index, *arguments = operands
    branches = [partial(walker.evaluate, branch, branch.consts) for branch in equation.params["branches"]]
    return lax.switch(index, branches, *arguments)


_DESCENTS: dict[Primitive, Any] = {
    **dict.fromkeys(CALLS, inline),
    lax_primitives.remat_p: _into_remat,
    lax_primitives.scan_p: _into_scan,
    lax_primitives.while_p: _into_while,
    lax_primitives.cond_p: _into_cond,
}
