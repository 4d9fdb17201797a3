"""Responses of a convolution beyond which the nonlinearity that follows it is constant."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.jaxpr.convolutions import forward_axes
from jaxcnn.transform.jaxpr.equations import avals
from jaxcnn.transform.substitution.unrolled import Constant, Operand, Segment, SiteStep, UnrolledProgram

_MAX_EQUATIONS = 32
"""Largest number of operations that are followed after a convolution."""

_SAME_VALUE_PRIMITIVES = {lax_primitives.convert_element_type_p, lax_primitives.copy_p}

Limits = tuple[np.ndarray, np.ndarray]
"""Responses, by output feature, below and above which the operations after a convolution are constant."""

FeatureValues = tuple[np.ndarray, np.ndarray]
"""One number for each feature, or for all, and whether the array has no other numbers."""


@dataclasses.dataclass(frozen=True)
class _Operation:
    """An operation after a convolution.

    Args:
      kind: "add", "subtract", "multiply", "divide", "maximum" or "minimum".
      other: operand that is not computed from the response.
      is_first: flag, True if the value that is followed is the first operand.
    """

    kind: str
    other: Operand
    is_first: bool


_KINDS = {
    lax_primitives.add_p: "add",
    lax_primitives.sub_p: "subtract",
    lax_primitives.mul_p: "multiply",
    lax_primitives.div_p: "divide",
    lax_primitives.max_p: "maximum",
    lax_primitives.min_p: "minimum",
}


class ClipLimits:
    """The limits of the responses of a program's convolutions.

    Sums and products with one number for each feature (a bias, a batch norm in inference) are followed, up to a ReLU or
    another clipping. The limits are -infinity and infinity where there is none.

    Args:
      program: program.
    """

    def __init__(self, program: UnrolledProgram) -> None:
        self.program = program
        self._operations = [_operations_after(program, site) for site in program.sites]
        self._axis_of: dict[int, tuple[int, int]] = {}
        for site, operations in zip(program.sites, self._operations, strict=True):
            axis, rank = _feature_axis(site), len(avals(site.site.equation)[-1].shape)
            variables = (operation.other for operation in operations if isinstance(operation.other, int))
            self._axis_of.update(dict.fromkeys(variables, (axis, rank)))
        self._segment = Segment(program.steps, self._axis_of, self._feature_values)

    def _feature_values(self, results: Mapping[int, Any]) -> dict[int, Any]:
        return {variable: _feature_values(jnp, value, *self._axis_of[variable]) for variable, value in results.items()}

    def of(self, arrays: Sequence[Any]) -> list[Limits]:
        """Returns the limits of each convolution for some arguments of the program."""
        arguments = self.program.values(arrays)
        values = dict(jax.device_get(self._segment.run(arguments)))
        for variable in self._axis_of.keys() & arguments.keys():
            values[variable] = _feature_values(np, np.asarray(arguments[variable]), *self._axis_of[variable])
        return [
            _limits(site, operations, values)
            for site, operations in zip(self.program.sites, self._operations, strict=True)
        ]


def _feature_axis(site: SiteStep) -> int:
    return forward_axes(site.site.equation)[2][-1]


def _feature_values(numpy: Any, array: Any, axis: int, rank: int) -> tuple[Any, Any]:
    """Returns the `FeatureValues` of an array of one number, or of as many axes as the response."""
    if array.size == 1 or array.ndim != rank:
        return array.reshape(-1)[:1], numpy.asarray(array.size == 1)
    first = array[tuple(slice(None) if axis == other else slice(0, 1) for other in range(rank))]
    return first.reshape(-1), (array == first).all()


def _operations_after(program: UnrolledProgram, site: SiteStep) -> list[_Operation]:
    """Returns the operations that a convolution's response runs through, and nothing else reads it on the way."""
    variable, operations = program.response(site), []
    for _ in range(_MAX_EQUATIONS):
        readers = program.reads(variable)
        if len(readers) != 1 or variable in program.outputs:
            break
        ((step, position),) = readers
        primitive = None if step.equation is None else step.equation.primitive
        if primitive is lax_primitives.clamp_p and position == 1:
            operations.append(_Operation("maximum", step.operands[0], True))
            operations.append(_Operation("minimum", step.operands[2], True))
        elif primitive in _KINDS:
            operations.append(_Operation(_KINDS[primitive], step.operands[1 - position], position == 0))
        elif primitive not in _SAME_VALUE_PRIMITIVES:  # for example another convolution, whose kernel has other axes
            break
        variable = step.results[0]
    return operations


def _limits(site: SiteStep, operations: Sequence[_Operation], values: Mapping[int, FeatureValues]) -> Limits:
    axis, aval = _feature_axis(site), avals(site.site.equation)[-1]
    features = aval.shape[axis]
    scale, offset = np.ones(features), np.zeros(features)
    low, high = -np.inf, np.inf
    for operation in operations:
        if isinstance(operation.other, Constant):
            number, is_feature_wise = _feature_values(np, np.asarray(operation.other.value), axis, aval.ndim)
        else:
            number, is_feature_wise = values[operation.other]
        if not is_feature_wise:
            break
        number = np.asarray(number, np.float64)
        if operation.kind in ("maximum", "minimum"):
            if number.size > 1:
                break
            low = max(low, float(number[0])) if operation.kind == "maximum" else low
            high = min(high, float(number[0])) if operation.kind == "minimum" else high
            continue
        if not (low == -np.inf and high == np.inf):
            break
        if operation.kind == "add":
            offset = offset + number
        elif operation.kind == "subtract":
            sign = 1 if operation.is_first else -1
            scale, offset = sign * scale, sign * (offset - number)
        elif operation.kind == "multiply":
            scale, offset = scale * number, offset * number
        elif operation.is_first:
            scale, offset = scale / number, offset / number
        else:
            break
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = [(end - offset) / scale for end in (low, high)]
    is_rising, is_dead = scale > 0, scale == 0
    lower, upper = np.where(is_rising, ends[0], ends[1]), np.where(is_rising, ends[1], ends[0])
    return (
        np.where(is_dead | np.isnan(lower), -np.inf, lower),
        np.where(is_dead | np.isnan(upper), np.inf, upper),
    )
