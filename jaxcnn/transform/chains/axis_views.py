"""Arrays as views of the parameter that they came from, through transpositions, reshapes and slices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

Ints = tuple[int, ...]
Factor = tuple[int, int, int]
"""(axis, step, size): `size` indices, `step` apart, of an axis of the parameter."""
Factors = tuple[Factor, ...]


def factors_of(axis: int, size: int) -> Factors:
    """Returns the factors of a whole axis of the parameter: none for an axis of size 1, which may stand anywhere."""
    return ((axis, 1, size),) if size > 1 else ()


def size_of(factors: Factors) -> int:
    """Returns the size of an axis made of factors."""
    return math.prod(size for _, _, size in factors)


def merge_factors(factors: Iterable[Factor]) -> Factors:
    """Returns the factors of an axis, with neighbours joined if they are consecutive parts of one parameter axis."""
    joined: list[Factor] = []
    for axis, step, size in factors:
        if joined and joined[-1][0] == axis and joined[-1][1] == step * size:
            joined[-1] = axis, step, joined[-1][2] * size
        else:
            joined.append((axis, step, size))
    return tuple(joined)


@dataclasses.dataclass(frozen=True)
class View:
    """An array that holds the values of a parameter in another order.

    Args:
      shape: shape of the parameter.
      axes: factors of the parameter's axes that make up each axis of the array, the slowest first.
      flipped: axes of the parameter that are reversed.
      sliced: axes of the parameter that were indexed, in this order.
    """

    shape: Ints
    axes: tuple[Factors, ...]
    flipped: frozenset[int] = frozenset()
    sliced: Ints = ()

    @classmethod
    def whole(cls, shape: Sequence[int]) -> View:
        """Returns the view that is the parameter itself."""
        return cls(tuple(shape), tuple(factors_of(axis, size) for axis, size in enumerate(shape)))

    @property
    def sizes(self) -> Ints:
        """Shape of the array."""
        return tuple(map(size_of, self.axes))

    def index_axis(self, axis: int) -> View | None:
        """Returns the view of one index of an axis, of size 1 then; None unless it is a whole parameter axis."""
        parameter_axis = self._whole_axis(self.axes[axis])
        if parameter_axis is None or parameter_axis in self.flipped:
            return None
        return dataclasses.replace(
            self, axes=(*self.axes[:axis], (), *self.axes[axis + 1 :]), sliced=(*self.sliced, parameter_axis)
        )

    def drop_axis(self, axis: int) -> View:
        """Returns the view without an axis of size 1."""
        return dataclasses.replace(self, axes=(*self.axes[:axis], *self.axes[axis + 1 :]))

    def scan_element(self) -> View | None:
        """Returns the view of one slice along the first axis; None unless that is a whole axis of the parameter.

        The only slice along an axis of size 1 is the array itself, without that axis.
        """
        indexed = self if not self.axes[0] else self.index_axis(0)
        return None if indexed is None else indexed.drop_axis(0)

    def _whole_axis(self, factors: Factors) -> int | None:
        if len(factors) == 1 and factors[0][1:] == (1, self.shape[factors[0][0]]):
            return factors[0][0]
        return None

    def reverse(self, axes: Iterable[int]) -> View | None:
        """Returns the view with axes reversed; None if that reversed a part of a parameter axis."""
        flipped = self.flipped
        for axis in axes:
            for factor in self.axes[axis]:
                parameter_axis = self._whole_axis((factor,))
                if parameter_axis is None:
                    return None
                flipped ^= {parameter_axis}
        return dataclasses.replace(self, flipped=flipped)

    def reshape(self, sizes: Sequence[int]) -> View | None:
        """Returns the view reshaped; None if a new axis would take a part of a factor that is no factor itself."""
        remaining_factors = [factor for factors in self.axes for factor in factors]
        axes = []
        for size in sizes:
            factors: list[Factor] = []
            while size > 1:
                if not remaining_factors:
                    return None
                axis, step, length = remaining_factors.pop(0)
                part = math.gcd(size, length)
                if part != min(size, length):
                    return None
                if part < length:
                    remaining_factors.insert(0, (axis, step, length // part))
                factors.append((axis, step * (length // part), part))
                size //= part
            axes.append(merge_factors(factors))
        return None if remaining_factors else dataclasses.replace(self, axes=tuple(axes))

    def apply_to(self, parameter: Any) -> Any:
        """Returns the array from the parameter, whose sliced axes have size 1."""
        used = sorted({factor for factors in self.axes for factor in factors}, key=lambda f: (f[0], -f[1]))
        order = {factor: position for position, factor in enumerate(used)}
        whole = (slice(None, None, -1 if axis in self.flipped else None) for axis in range(len(self.shape)))
        value = parameter[tuple(whole)] if self.flipped else parameter
        value = value.reshape([size for _, _, size in used])
        value = value.transpose([order[factor] for factors in self.axes for factor in factors])
        return value.reshape(self.sizes)


_ELEMENTWISE_PRIMITIVES = (lax_primitives.convert_element_type_p, lax_primitives.stop_gradient_p)


def view_after(equation: JaxprEqn, view: View) -> View | None:
    """Returns the view after an equation that only moves or casts values; None for any other equation."""
    primitive, params = equation.primitive, equation.params
    if primitive in _ELEMENTWISE_PRIMITIVES:
        return view
    if primitive is lax_primitives.transpose_p:
        return dataclasses.replace(view, axes=tuple(view.axes[axis] for axis in params["permutation"]))
    if primitive is lax_primitives.rev_p:
        return view.reverse(params["dimensions"])
    if primitive is lax_primitives.reshape_p:
        order = params["dimensions"] or range(len(view.axes))
        return dataclasses.replace(view, axes=tuple(view.axes[axis] for axis in order)).reshape(params["new_sizes"])
    if primitive is lax_primitives.squeeze_p:
        removed = {axis % len(view.axes) for axis in params["dimensions"]}
        return dataclasses.replace(
            view, axes=tuple(factors for axis, factors in enumerate(view.axes) if axis not in removed)
        )
    if primitive is lax_primitives.broadcast_in_dim_p and math.prod(params["shape"]) == math.prod(view.sizes):
        axes: list[Factors] = [()] * len(params["shape"])
        for axis, place in enumerate(params["broadcast_dimensions"]):
            axes[place] = view.axes[axis]
        return dataclasses.replace(view, axes=tuple(axes))
    return None
