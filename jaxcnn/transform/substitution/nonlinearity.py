"""Responses of a convolution beyond which the nonlinearity that follows it is constant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.jaxpr.equations import CALLS, consts_of, inner_jaxpr, rebind, sub_jaxprs

_MAX_EQUATIONS = 32
"""Largest number of equations that are followed after a convolution."""

_ARITHMETIC_PRIMITIVES = {lax_primitives.add_p, lax_primitives.sub_p, lax_primitives.mul_p, lax_primitives.div_p}


def clip_limits(jaxpr: Any, position: int, values: Mapping[Any, Any], axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the responses, by output feature, below and above which the operations after a convolution are constant.

    Sums and products with one number for each feature (a bias, a batch norm in inference) are followed, up to a ReLU or
    another clipping. The limits are -infinity and infinity where there is none.

    Args:
      jaxpr: jaxpr that holds the convolution.
      position: position of its equation.
      values: values of variables that were computed before.
      axis: axis of the features in the response.
    """
    response = jaxpr.eqns[position].outvars[0]
    features = response.aval.shape[axis]
    walk = _ResponseTrace(axis, response.aval.ndim, np.ones(features), np.zeros(features))
    walk.run(jaxpr, response, dict(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = [(end - walk.offset) / walk.scale for end in (walk.low, walk.high)]
    rising = walk.scale > 0
    low = np.where(rising, ends[0], ends[1])
    high = np.where(rising, ends[1], ends[0])
    dead = walk.scale == 0
    return np.where(dead | np.isnan(low), -np.inf, low), np.where(dead | np.isnan(high), np.inf, high)


class _ResponseTrace:
    """A value computed from a response: scale * response + offset, clipped to [low, high]."""

    def __init__(self, axis: int, ndim: int, scale: np.ndarray, offset: np.ndarray) -> None:
        self.axis, self.ndim, self.scale, self.offset = axis, ndim, scale, offset
        self.low, self.high = -np.inf, np.inf

    def run(self, jaxpr: Any, variable: Any, values: dict[Any, Any]) -> Any | None:
        """Follows a variable through a jaxpr; returns the result that the variable becomes, or None."""
        producers = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
        for _ in range(_MAX_EQUATIONS):
            readers = [equation for equation in jaxpr.eqns if any(atom is variable for atom in equation.invars)]
            if variable in [atom for atom in jaxpr.outvars if not isinstance(atom, Literal)]:
                return variable if not readers else None
            if len(readers) != 1 or sum(atom is variable for atom in readers[0].invars) != 1:
                return None
            (equation,) = readers
            position = next(n for n, atom in enumerate(equation.invars) if atom is variable)
            operands = [
                None if n == position else _value(atom, values, producers) for n, atom in enumerate(equation.invars)
            ]
            if equation.primitive in CALLS:
                if not self._follow_call(equation, position, operands):
                    return None
            elif not self._follow_equation(equation, position, operands):
                return None
            variable = equation.outvars[0]
        return None

    def _follow_call(self, equation: JaxprEqn, position: int, operands: list[Any]) -> bool:
        (inner,) = sub_jaxprs(equation)
        jaxpr = inner_jaxpr(inner)
        if len(jaxpr.outvars) != 1:
            return False
        values = dict(zip(jaxpr.constvars, consts_of(inner), strict=False))
        values.update((v, value) for v, value in zip(jaxpr.invars, operands, strict=True) if value is not None)
        return self.run(jaxpr, jaxpr.invars[position], values) is jaxpr.outvars[0]

    def _follow_equation(self, equation: JaxprEqn, position: int, operands: list[Any]) -> bool:
        """Applies one equation to the value; returns False for equations that are not followed."""
        primitive, numbers = equation.primitive, [value for value in operands if value is not None]
        if primitive is lax_primitives.convert_element_type_p or primitive is lax_primitives.copy_p:
            return True
        if primitive is lax_primitives.clamp_p and position == 1 and len(numbers) == 2:
            return self._clip(max, numbers[0]) and self._clip(min, numbers[1])
        if len(equation.invars) != 2 or len(numbers) != 1:
            return False
        if primitive is lax_primitives.max_p:
            return self._clip(max, numbers[0])
        if primitive is lax_primitives.min_p:
            return self._clip(min, numbers[0])
        if primitive not in _ARITHMETIC_PRIMITIVES:  # for example another convolution, whose kernel has other axes
            return False
        number = self._feature_values(numbers[0])
        if number is None or not (self.low == -np.inf and self.high == np.inf):
            return False
        if primitive is lax_primitives.add_p:
            self.offset = self.offset + number
        elif primitive is lax_primitives.sub_p:
            sign = 1 if position == 0 else -1
            self.scale, self.offset = sign * self.scale, sign * (self.offset - number)
        elif primitive is lax_primitives.mul_p:
            self.scale, self.offset = self.scale * number, self.offset * number
        elif primitive is lax_primitives.div_p and position == 0:
            self.scale, self.offset = self.scale / number, self.offset / number
        else:
            return False
        return True

    def _clip(self, bound: Any, end: Any) -> bool:
        if np.size(end) != 1:
            return False
        end = float(np.reshape(end, ()))
        if bound is max:
            self.low = max(self.low, end)
        else:
            self.high = min(self.high, end)
        return True

    def _feature_values(self, value: Any) -> np.ndarray | None:
        """Returns one number for each feature, of an array with as many axes as the response or none; else None."""
        array = np.asarray(value, np.float64)
        if array.size == 1:
            return np.full(self.scale.shape, array.reshape(()))
        if array.ndim != self.ndim:
            return None
        first = array[tuple(slice(None) if axis == self.axis else slice(0, 1) for axis in range(array.ndim))]
        if (array != first).any():
            return None
        return np.broadcast_to(first.reshape(-1), self.scale.shape)


def _value(
    atom: Any, values: dict[Any, Any], producers: Mapping[Any, JaxprEqn], depth: int = _MAX_EQUATIONS
) -> Any | None:
    """Returns the value of an atom, computed from known values; None if the atom depends on others."""
    if isinstance(atom, Literal):
        return atom.val
    if atom in values:
        return values[atom]
    equation = producers.get(atom)
    if equation is None or depth == 0:
        return None
    operands = [_value(operand_atom, values, producers, depth - 1) for operand_atom in equation.invars]
    if any(operand is None for operand in operands):
        return None
    values.update(zip(equation.outvars, map(jax.block_until_ready, rebind(equation, operands)), strict=True))
    return values[atom]
