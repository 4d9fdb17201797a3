"""The search for parameters of a function that are kernels of its convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as lax_primitives

from jaxcnn.transform.chains.axis_views import Ints, View
from jaxcnn.transform.chains.moves import factor_by_feature, move_of, spread_shape
from jaxcnn.transform.chains.placement import Placement, Use, use_of
from jaxcnn.transform.jaxpr.abstract_walk import AbstractWalk, Place
from jaxcnn.transform.jaxpr.convolutions import as_convolution, option
from jaxcnn.transform.jaxpr.equations import inner_jaxpr, is_entered, shape_of, sub_jaxprs


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution that has a parameter for its kernel.

    Args:
      equation: equation of the convolution.
      use: kernel of the convolution as a view of the parameter.
      count: number of executions of the convolution.
      path: ids of the equations that hold this one, outermost first, then the id of this one. The id of one equation is
        not enough, since two calls of one jitted function share the equations inside.
      hidden: flag, True in the body of a `while`, in a branch, or in a primitive that the walk does not follow.
      scaled: flag, True if the kernel is multiplied by numbers on the way.
      factors: view of the multiplied parameter, and shape of the factor, for each factor that is no single number.
    """

    equation: JaxprEqn
    use: Use
    count: int
    path: Ints
    hidden: bool
    scaled: bool
    factors: tuple[tuple[View, Ints], ...]


@dataclasses.dataclass
class KernelUses:
    """The uses that a function makes of a parameter.

    Args:
      sites: convolutions that have the parameter as their kernel, in order.
      refusal: reason why no chain can take the parameter's place, or "".
    """

    sites: list[Site] = dataclasses.field(default_factory=list)
    refusal: str = ""

    @property
    def placement(self) -> Placement:
        """Axes of the kernel in the parameter, as the first convolution has them."""
        return self.sites[0].use.placement

    def refuse(self, reason: str) -> None:
        """Stores a reason, unless there is an earlier one."""
        self.refusal = self.refusal or reason


def find_kernels(closed: Any) -> tuple[dict[int, KernelUses], list[tuple[JaxprEqn, int]]]:
    """Returns the uses of the arguments of a closed jaxpr that are kernels of convolutions, by argument position.

    Also returns all convolutions, each with its number of executions.
    """
    search = _KernelSearch()
    shapes = map(shape_of, inner_jaxpr(closed).invars)
    arguments = [
        _KernelView(index, View.whole(shape)) if len(shape) > 2 else None for index, shape in enumerate(shapes)
    ]
    for value in search.walk(closed, arguments, Place()):
        search.refuse(value, "it is returned")
    kernels = {index: uses for index, uses in sorted(search.uses.items()) if uses.sites}
    for uses in kernels.values():
        _refuse_conflicts(uses)
    return kernels, search.convolutions


def _refuse_conflicts(uses: KernelUses) -> None:
    """Refuses a kernel if its convolutions disagree on its axes or its groups, or if no link could take its factors."""
    groups = [option(site.equation, "feature_group_count") for site in uses.sites]
    relations = [
        uses.placement.relation(site.use.placement, count) for site, count in zip(uses.sites, groups, strict=True)
    ]
    if None in relations:
        uses.refuse("two convolutions have its axes in different order")
    factors = {factor for site in uses.sites for factor in site.factors}
    if any(factor_by_feature(uses.placement, *factor) is None for factor in factors):
        uses.refuse("it is multiplied by numbers that vary along other axes than its output features")
    # The kernel's shape determines the number of features in a group, but not the number of groups.
    if len({*groups}) > 1:
        uses.refuse("two convolutions have it in different numbers of groups")


@dataclasses.dataclass(frozen=True)
class _KernelView:
    """A view of a parameter.

    Args:
      index: position of the parameter among the arguments.
      view: moves of the parameter so far.
      scaled: flag, True if the array was multiplied by numbers.
      factors: factors as in `Site`.
    """

    index: int
    view: View
    scaled: bool = False
    factors: tuple[tuple[View, Ints], ...] = ()


@dataclasses.dataclass(frozen=True)
class _BroadcastArray:
    """An array that was broadcast.

    Args:
      shape: shape before the broadcast, with the axes of the array.
    """

    shape: Ints


_Value = _KernelView | _BroadcastArray | None


class _KernelSearch(AbstractWalk[_Value, None]):
    """The walk that follows parameters to convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: dict[int, KernelUses] = {}
        self.convolutions: list[tuple[JaxprEqn, int]] = []

    def uses_of(self, kernel: _KernelView) -> KernelUses:
        """Returns the uses of a parameter so far."""
        return self.uses.setdefault(kernel.index, KernelUses())

    def refuse(self, value: _Value, reason: str) -> None:
        """Refuses the parameter of which a value is a view."""
        if isinstance(value, _KernelView):
            self.uses_of(value).refuse(reason)

    def walk(self, jaxpr: Any, operands: Sequence[_Value], place: Place) -> list[_Value]:
        """Returns the kernels among the results of a jaxpr; broadcasts are known within one jaxpr only."""
        kernels = [value if isinstance(value, _KernelView) else None for value in operands]
        return [value if isinstance(value, _KernelView) else None for value in super().walk(jaxpr, kernels, place)]

    def unknown(self, aval: Any) -> _Value:
        del aval
        return None

    def equation(self, equation: JaxprEqn, operands: list[_Value], place: Place) -> list[_Value] | None:
        if as_convolution(equation, "describe") is not None:
            self.convolutions.append((equation, place.count))
            operands = self._record_use(equation, operands, place)
        elif is_entered(equation.primitive) and sub_jaxprs(equation):
            return None
        kernels = [position for position, value in enumerate(operands) if isinstance(value, _KernelView)]
        result: _Value = None
        if len(kernels) == 1 and len(equation.outvars) == 1:
            result = _moved_kernel(equation, operands, kernels[0])
        if result is None:
            line = source_info_util.summarize(equation.source_info)
            for position in kernels:
                self.refuse(operands[position], f"it reaches {equation.primitive}" + (f" at {line}" if line else ""))
            if equation.primitive is lax_primitives.broadcast_in_dim_p and not kernels:
                result = _BroadcastArray(spread_shape(equation))
        return [result, *[None] * (len(equation.outvars) - 1)]

    def _record_use(self, equation: JaxprEqn, operands: list[_Value], place: Place) -> list[_Value]:
        """Adds a site if the second operand is a kernel; returns the operands, with None in place of this kernel."""
        image, kernel = operands
        use = use_of(equation, kernel.view) if isinstance(kernel, _KernelView) else None
        if not isinstance(kernel, _KernelView) or use is None:
            return operands
        path = tuple(map(id, (*place.holders, equation)))
        site = Site(equation, use, place.count, path, place.hidden, kernel.scaled, kernel.factors)
        self.uses_of(kernel).sites.append(site)
        return [image, None]

    def element(self, value: _Value, length: int) -> _Value:
        del length
        if not isinstance(value, _KernelView):
            return None
        view = value.view.scan_element()
        if view is None:
            self.refuse(value, "a loop slices it along another axis than one that numbers kernels")
        return None if view is None else dataclasses.replace(value, view=view)

    def stack(self, value: _Value) -> _Value:
        self.refuse(value, "a loop or a branch returns it")
        return None

    def join(self, before: _Value, after: _Value) -> _Value:
        if before == after:
            return before
        self.refuse(before, "a loop changes it")
        self.refuse(after, "a loop carries it")
        return None

    def widen(self, value: _Value) -> _Value:
        return value

    def branches(
        self, outcomes: list[tuple[list[_Value], list[None]]], equation: JaxprEqn, place: Place
    ) -> list[_Value]:
        del place
        for results, _ in outcomes:
            for value in results:
                self.refuse(value, "a loop or a branch returns it")
        return [None] * len(equation.outvars)

    def other_holder(self, equation: JaxprEqn, operands: list[_Value], place: Place) -> list[_Value]:
        for value in operands:
            self.refuse(value, f"it reaches {equation.primitive}")
        body = sub_jaxprs(equation)[0]
        self.walk(body, [None] * len(inner_jaxpr(body).invars), place.inside(equation, hidden=True))
        return [None] * len(equation.outvars)


def _moved_kernel(equation: JaxprEqn, operands: Sequence[_Value], position: int) -> _KernelView | None:
    """Returns the view that an equation makes of the kernel at a position; None if no chain passes through."""
    kernel = operands[position]
    move = move_of(equation, position, kernel.view) if isinstance(kernel, _KernelView) else None
    if not isinstance(kernel, _KernelView) or move is None:
        return None
    kernel = dataclasses.replace(kernel, view=move.view)
    if move.effect not in ("scale", "negate"):
        return kernel
    shape: Ints = ()
    if move.effect == "scale":
        factor = operands[1 - position]
        shape = factor.shape if isinstance(factor, _BroadcastArray) else shape_of(equation.invars[1 - position])
    factors = ((move.view, shape),) if max(shape, default=1) > 1 else ()
    return dataclasses.replace(kernel, scaled=True, factors=(*kernel.factors, *factors))
