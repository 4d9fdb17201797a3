"""Values of a jaxpr that depend on some of its arguments alone, such as the parameters of a network.

Such a value is known as the operations that lead to it, a graph of `KnownValue`s, and can be computed without the other
arguments. The value of a scan's body that differs from step to step is computed for all steps together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Literal

from jaxcnn.transform.jaxpr.equations import rebind

Ints = tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class KnownValue:
    """A value of a jaxpr: an argument, if it has no operands and no equation.

    Args:
      aval: abstract value.
      argument: position of the argument, or None.
      constant: array, for a constant or a literal.
      equation: equation of which the value is a result, or None.
      operands: values that the equation reads; the array that is sliced, for a slice.
      index: number of the result.
      loop: path of the scan that slices the operand, or None.
    """

    aval: Any
    argument: int | None = None
    constant: Any = None
    equation: JaxprEqn | None = None
    operands: tuple[KnownValue, ...] = ()
    index: int = 0
    loop: Ints | None = None

    @cached_property
    def sources(self) -> frozenset[int]:
        """Positions of the arguments on which the value depends."""
        here = frozenset() if self.argument is None else frozenset((self.argument,))
        return here.union(*(operand.sources for operand in self.operands))

    @cached_property
    def slices(self) -> frozenset[KnownValue]:
        """Slices, by the scans around, on which the value depends."""
        here = frozenset() if self.loop is None else frozenset((self,))
        return here.union(*(operand.slices for operand in self.operands))

    @cached_property
    def loops(self) -> tuple[Ints, ...]:
        """Paths of the scans from step to step of which the value may differ, outermost first."""
        return tuple(sorted({piece.loop for piece in self.slices if piece.loop is not None}, key=len))


class KnownValues:
    """The known values of one jaxpr, in which equal operations on equal operands are one value."""

    def __init__(self) -> None:
        self._values: dict[Hashable, KnownValue] = {}
        self._kept: list[Any] = []  # so that no other object gets the id of one in a key

    def constant(self, aval: Any, array: Any) -> KnownValue:
        """Returns a constant."""
        self._kept.append(array)
        return self._values.setdefault(("constant", id(array)), KnownValue(aval, constant=array))

    def literal(self, literal: Literal) -> KnownValue:
        """Returns a literal; equal numbers of one type are one value."""
        key = "literal", str(literal.aval), repr(literal.val)
        return self._values.setdefault(key, KnownValue(literal.aval, constant=literal.val))

    def element(self, value: KnownValue, aval: Any, loop: Ints) -> KnownValue:
        """Returns the slice of a value in one step of a scan."""
        return self._values.setdefault(("slice", id(value), loop), KnownValue(aval, operands=(value,), loop=loop))

    def results(self, equation: JaxprEqn, operands: Sequence[KnownValue]) -> list[KnownValue]:
        """Returns the results of an equation."""
        params: Hashable = tuple(sorted(equation.params.items()))
        try:
            hash(params)
        except TypeError:
            params = id(equation)
        key = equation.primitive, params, tuple(map(id, operands))
        return [
            self._values.setdefault(
                (*key, index), KnownValue(variable.aval, equation=equation, operands=tuple(operands), index=index)
            )
            for index, variable in enumerate(equation.outvars)
        ]


def compute(value: KnownValue, arrays_of: Mapping[KnownValue, Any], arguments: Sequence[Any] = ()) -> Any:
    """Returns the array of a value.

    Args:
      value: value that depends on nothing but those in `arrays_of`, arguments and constants.
      arrays_of: arrays of slices, or of any other values that are given.
      arguments: arrays of the jaxpr's arguments.
    """
    arrays = dict(arrays_of)
    pending = [value]
    while pending:
        current = pending[-1]
        if current in arrays:
            pending.pop()
            continue
        missing = [operand for operand in current.operands if operand not in arrays]
        if missing:
            pending += missing
            continue
        pending.pop()
        if current.argument is not None:
            arrays[current] = arguments[current.argument]
        elif current.equation is None:
            arrays[current] = current.constant
        else:
            results = rebind(current.equation, [arrays[operand] for operand in current.operands])
            arrays[current] = results[current.index]
    return arrays[value]


def compute_for_all_steps(value: KnownValue, arguments: Sequence[Any], arrays_of: Mapping[KnownValue, Any]) -> Any:
    """Returns the array of a value for all steps of the scans around, with a leading axis for each of its `loops`."""
    loops = [
        loop for loop in value.loops if any(piece not in arrays_of for piece in value.slices if piece.loop == loop)
    ]
    if not loops:
        return compute(value, arrays_of, arguments)
    slices = [piece for piece in value.slices if piece.loop == loops[0]]
    wholes = [compute(piece.operands[0], arrays_of, arguments) for piece in slices]
    return jax.lax.map(
        lambda elements: compute_for_all_steps(
            value, arguments, {**arrays_of, **dict(zip(slices, elements, strict=True))}
        ),
        wholes,
    )
