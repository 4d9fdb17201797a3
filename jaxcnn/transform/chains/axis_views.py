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
"""(axis, step, size): of an axis of the parameter, `size` indices that are `step` apart."""
Factors = tuple[Factor, ...]


def factors_of(axis: int, size: int) -> Factors:
    """Returns a whole axis of the parameter; no factor for one of size 1, which may stand anywhere."""
    return ((axis, 1, size),) if size > 1 else ()


def size_of(factors: Factors) -> int:
    """Returns the size of an axis made of factors."""
    return math.prod(size for _, _, size in factors)


def merge_factors(factors: Iterable[Factor]) -> Factors:
    """Returns the factors of an axis, with neighbours joined that are parts of one axis of the parameter in order."""
    joined: list[Factor] = []
    for axis, step, size in factors:
        if joined and joined[-1][0] == axis and joined[-1][1] == step * size:
            joined[-1] = axis, step, joined[-1][2] * size
        else:
            joined.append((axis, step, size))
    return tuple(joined)


@dataclasses.dataclass(frozen=True)
class View:
    """An array made of a parameter by moving its values about.

    Args:
      shape: shape of the parameter.
      axes: factors of the parameter's axes that each axis of the array runs through, the slowest first.
      flipped: axes of the parameter that are reversed.
      sliced: axes of the parameter of which only one index is left, in the order in which they were indexed.
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
        """Returns the view of one index of an axis, whose size is then 1; None unless the parameter has that axis."""
        whole = self._whole_axis(self.axes[axis])
        if whole is None or whole in self.flipped:
            return None
        return dataclasses.replace(
            self, axes=(*self.axes[:axis], (), *self.axes[axis + 1 :]), sliced=(*self.sliced, whole)
        )

    def drop_axis(self, axis: int) -> View:
        """Returns the view without an axis of size 1."""
        return dataclasses.replace(self, axes=(*self.axes[:axis], *self.axes[axis + 1 :]))

    def scan_element(self) -> View | None:
        """Returns the view of one slice along the first axis; None unless that is an axis of the parameter.

        The only slice along an axis of size 1 is the array itself, without that axis.
        """
        indexed = self if not self.axes[0] else self.index_axis(0)
        return None if indexed is None else indexed.drop_axis(0)

    def _whole_axis(self, factors: Factors) -> int | None:
        if len(factors) == 1 and factors[0][1:] == (1, self.shape[factors[0][0]]):
            return factors[0][0]
        return None

    def reverse(self, axes: Iterable[int]) -> View | None:
        """Returns the view with axes reversed; None where a part of an axis of the parameter would be."""
        flipped = self.flipped
        for axis in axes:
            for factor in self.axes[axis]:
                whole = self._whole_axis((factor,))
                if whole is None:
                    return None
                flipped ^= {whole}
        return dataclasses.replace(self, flipped=flipped)

    def reshape(self, sizes: Sequence[int]) -> View | None:
        """Returns the view reshaped; None where an axis would run through a part of a factor that is no factor."""
        rest = [factor for factors in self.axes for factor in factors]
        axes = []
        for size in sizes:
            factors: list[Factor] = []
            while size > 1:
                if not rest:
                    return None
                axis, step, length = rest.pop(0)
                taken = math.gcd(size, length)
                if taken != min(size, length):
                    return None
                if taken < length:
                    rest.insert(0, (axis, step, length // taken))
                factors.append((axis, step * (length // taken), taken))
                size //= taken
            axes.append(merge_factors(factors))
        return None if rest else dataclasses.replace(self, axes=tuple(axes))

    def apply_to(self, parameter: Any) -> Any:
        """Returns the array, made of the parameter without its sliced axes (each left with size 1)."""
        used = sorted({factor for factors in self.axes for factor in factors}, key=lambda f: (f[0], -f[1]))
        order = {factor: position for position, factor in enumerate(used)}
        whole = (slice(None, None, -1 if axis in self.flipped else None) for axis in range(len(self.shape)))
        value = parameter[tuple(whole)] if self.flipped else parameter
        value = value.reshape([size for _, _, size in used])
        value = value.transpose([order[factor] for factors in self.axes for factor in factors])
        return value.reshape(self.sizes)


_UNMOVED = (lax_primitives.convert_element_type_p, lax_primitives.copy_p, lax_primitives.stop_gradient_p)


def view_after(equation: JaxprEqn, view: View) -> View | None:
    """Returns the view that an equation makes of one, if it only moves or casts values; else None."""
    primitive, params = equation.primitive, equation.params
    if primitive in _UNMOVED:
        return view
    if primitive is lax_primitives.transpose_p:
        return dataclasses.replace(view, axes=tuple(view.axes[axis] for axis in params["permutation"]))
    if primitive is lax_primitives.rev_p:
        return view.reverse(params["dimensions"])
    if primitive is lax_primitives.reshape_p:
        order = params["dimensions"] or range(len(view.axes))
        return dataclasses.replace(view, axes=tuple(view.axes[axis] for axis in order)).reshape(params["new_sizes"])
    if primitive is lax_primitives.squeeze_p:
        gone = {axis % len(view.axes) for axis in params["dimensions"]}
        return dataclasses.replace(
            view, axes=tuple(factors for axis, factors in enumerate(view.axes) if axis not in gone)
        )
    if primitive is lax_primitives.broadcast_in_dim_p and math.prod(params["shape"]) == math.prod(view.sizes):
        axes: list[Factors] = [()] * len(params["shape"])
        for axis, place in enumerate(params["broadcast_dimensions"]):
            axes[place] = view.axes[axis]
        return dataclasses.replace(view, axes=tuple(axes))
    return None
