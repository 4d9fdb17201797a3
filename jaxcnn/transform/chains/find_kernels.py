"""The search for parameters of a function that are kernels of its convolutions."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.extend.core import JaxprEqn

from jaxcnn.transform.chains.axis_views import Ints, View
from jaxcnn.transform.chains.moves import move_of
from jaxcnn.transform.chains.placement import Placement, Use, use_of
from jaxcnn.transform.jaxpr.abstract_walk import AbstractWalk, Place
from jaxcnn.transform.jaxpr.convolutions import as_convolution, option
from jaxcnn.transform.jaxpr.dense_layers import as_one_tap_convolution
from jaxcnn.transform.jaxpr.equations import (
    inner_jaxpr,
    is_entered,
    returns_operands,
    shape_of,
    sub_jaxprs,
    user_line,
)


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
    """

    equation: JaxprEqn
    use: Use
    count: int
    path: Ints
    hidden: bool


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
        """Stores a reason, unless there is an earlier one or the reason is empty."""
        self.refusal = self.refusal or reason


def find_kernels(closed: Any, dense: bool = False) -> tuple[dict[int, KernelUses], list[tuple[JaxprEqn, int]]]:
    """Returns the uses of the arguments of a closed jaxpr that are kernels of convolutions, by argument position.

    Also returns all convolutions, each with its number of executions.

    Args:
      closed: closed jaxpr.
      dense: flag to count products with a matrix among the arguments as convolutions with a kernel of one tap.
    """
    search = _KernelSearch(dense)
    shapes = map(shape_of, inner_jaxpr(closed).invars)
    arguments = [
        _KernelView(index, View.whole(shape)) if len(shape) > (1 if dense else 2) else None
        for index, shape in enumerate(shapes)
    ]
    for value in search.walk(closed, arguments, Place()):
        search.refuse(value, "it is returned")
    kernels = {index: uses for index, uses in sorted(search.uses.items()) if uses.sites}
    for uses in kernels.values():
        _refuse_conflicts(uses)
    return kernels, list(search.convolutions.values())


def _refuse_conflicts(uses: KernelUses) -> None:
    for site in uses.sites:
        uses.refuse(conflict(uses.sites[0], site))


def conflict(first: Site, site: Site) -> str:
    """Returns the reason why one chain cannot serve a convolution and the first one with the same parameter, or ""."""
    placement, groups = first.use.placement, option(first.equation, "feature_group_count")
    if placement.relation(site.use.placement, option(site.equation, "feature_group_count")) is None:
        return "two convolutions have its axes in different order"
    # The kernel's shape determines the number of features in a group, but not the number of groups.
    if option(site.equation, "feature_group_count") != groups:
        return "two convolutions have it in different numbers of groups"
    return ""


@dataclasses.dataclass(frozen=True)
class _KernelView:
    """A view of a parameter.

    Args:
      index: position of the parameter among the arguments.
      view: moves of the parameter so far.
    """

    index: int
    view: View


_Value = _KernelView | None


class _KernelSearch(AbstractWalk[_Value, None]):
    """The walk that follows parameters to convolutions.

    Args:
      dense: flag to follow them to products of matrices, too.
    """

    def __init__(self, dense: bool) -> None:
        super().__init__()
        self.dense = dense
        self.uses: dict[int, KernelUses] = {}
        self.convolutions: dict[Ints, tuple[JaxprEqn, int]] = {}

    def uses_of(self, kernel: _KernelView) -> KernelUses:
        """Returns the uses of a parameter so far."""
        return self.uses.setdefault(kernel.index, KernelUses())

    def refuse(self, value: _Value, reason: str) -> None:
        """Refuses the parameter of which a value is a view."""
        if value is not None:
            self.uses_of(value).refuse(reason)

    def unknown(self, aval: Any) -> _Value:
        del aval
        return None

    def equation(self, equation: JaxprEqn, operands: list[_Value], place: Place) -> list[_Value] | None:
        if as_convolution(equation, "describe") is not None:
            self.convolutions[place.path_of(equation)] = equation, place.count
            operands = self._record_use(equation, operands, place)
        elif returns_operands(equation):
            return operands
        elif is_entered(equation.primitive) and sub_jaxprs(equation):
            return None
        kernels = [value for value in operands if value is not None]
        if len(kernels) == 1 and len(equation.outvars) == 1:
            layer = as_one_tap_convolution(equation, operands.index(kernels[0])) if self.dense else None
            if layer is not None:
                return self.walk(layer, operands, place.inside(equation))
            move = move_of(equation, operands.index(kernels[0]), kernels[0].view)
            if move is not None and move.effect not in ("scale", "negate"):
                return [dataclasses.replace(kernels[0], view=move.view)]
        line = user_line(equation)
        for kernel in kernels:
            self.refuse(kernel, f"it reaches {equation.primitive}" + (f" at {line}" if line else ""))
        return [None] * len(equation.outvars)

    def _record_use(self, equation: JaxprEqn, operands: list[_Value], place: Place) -> list[_Value]:
        """Adds a site if the second operand is a kernel; returns the operands, with None in place of this kernel."""
        image, kernel = operands
        use = None if kernel is None else use_of(equation, kernel.view)
        if kernel is None or use is None:
            return operands
        path = place.path_of(equation)
        sites = self.uses_of(kernel).sites
        if all(site.path != path for site in sites):  # the body of a loop may be walked twice
            sites.append(Site(equation, use, place.count, path, place.hidden))
        return [image, None]

    def element(self, value: _Value, length: int, place: Place) -> _Value:
        del length, place
        if value is None:
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
