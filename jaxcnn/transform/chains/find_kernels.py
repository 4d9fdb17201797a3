"""Which parameter of a function is the kernel of which of its convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as lax_primitives

from jaxcnn.epilogue import fused_conv_p
from jaxcnn.transform.chains.axis_views import Ints, View, moved
from jaxcnn.transform.chains.placement import Placement, Use, use_of
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from jaxcnn.transform.jaxpr.equations import avals, inner_jaxpr, is_entered, loop_parts, sub_jaxprs

INLINED = {
    lax_primitives.jit_p,
    lax_primitives.closed_call_p,
    lax_primitives.custom_jvp_call_p,
    lax_primitives.custom_vjp_call_p,
    lax_primitives.remat_p,
    fused_conv_p,
}
"""Primitives whose one jaxpr is executed once, with the operands for its arguments."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A convolution that has a parameter for its kernel.

    Args:
      equation: the convolution.
      use: how it has the kernel.
      count: how often it is executed.
      path: the equations that hold it and its own, outermost first, by id: two calls of one jitted function share the
        equations inside.
      hidden: whether it is in the body of a `while`, in a branch, or in a primitive that is not looked into.
      scaled: whether the kernel is multiplied by numbers on the way.
    """

    equation: JaxprEqn
    use: Use
    count: int
    path: Ints
    hidden: bool
    scaled: bool


@dataclasses.dataclass
class KernelUses:
    """What a function does with a parameter.

    Args:
      sites: the convolutions whose kernel it is, in order.
      refusal: why no chain can take its place, or "".
    """

    sites: list[Site] = dataclasses.field(default_factory=list)
    refusal: str = ""

    @property
    def placement(self) -> Placement:
        """Where the kernel lies in the parameter, as the first convolution has it."""
        return self.sites[0].use.placement


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where in a jaxpr a search is: how often what stands there is executed, and the rest as of a `Site`."""

    count: int = 1
    path: Ints = ()
    hidden: bool = False

    def inside(self, equation: JaxprEqn, times: int = 1, hidden: bool = False) -> _Place:
        return _Place(self.count * times, (*self.path, id(equation)), self.hidden or hidden)


@dataclasses.dataclass(frozen=True)
class _Followed:
    """A view of a parameter, multiplied by numbers that vary along some of the parameter's axes."""

    index: int
    view: View
    scaled: frozenset[int] | None = None


def find_kernels(closed: Any) -> tuple[dict[int, KernelUses], list[tuple[JaxprEqn, int]]]:
    """What becomes of each argument of a closed jaxpr that is some convolution's kernel; all convolutions, and how
    often each is executed."""
    search = _Search()
    variables = inner_jaxpr(closed).invars
    followed = [
        _Followed(index, View.whole(variable.aval.shape)) if len(variable.aval.shape) > 2 else None
        for index, variable in enumerate(variables)
    ]
    for value in search.walk(closed, followed, _Place()):
        search.escape(value, "it is returned")
    found = {index: found for index, found in sorted(search.found.items()) if found.sites}
    for each in found.values():
        _check(each)
    return found, search.convolutions


def _check(found: KernelUses) -> None:
    """Refuses a kernel of which convolutions disagree where its axes are, or on its groups."""
    own = found.placement
    for site in found.sites:
        other = site.use.placement
        same = (other.inputs, other.outputs) in ((own.inputs, own.outputs), (own.outputs, own.inputs))
        if (other.taps, other.stack) != (own.taps, own.stack) or not same:
            found.refusal = found.refusal or "two convolutions have its axes in different order"
    # Features of a group are as many, and those of the image are not.
    if len({site.equation.params["feature_group_count"] for site in found.sites}) > 1:
        found.refusal = found.refusal or "two convolutions have it in different numbers of groups"


@dataclasses.dataclass
class _Search:
    found: dict[int, KernelUses] = dataclasses.field(default_factory=dict)
    convolutions: list[tuple[JaxprEqn, int]] = dataclasses.field(default_factory=list)

    def escape(self, value: _Followed | None, reason: str) -> None:
        if value is not None:
            found = self.found.setdefault(value.index, KernelUses())
            found.refusal = found.refusal or reason

    def walk(self, jaxpr: Any, values: Sequence[Any], place: _Place) -> list[_Followed | None]:
        jaxpr = inner_jaxpr(jaxpr)
        known: dict[Any, _Followed | None] = dict.fromkeys(jaxpr.constvars)
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> _Followed | None:
            return None if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            results = self._results(equation, operands, place)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: JaxprEqn, operands: list[_Followed | None], place: _Place) -> list[_Followed | None]:
        if as_convolution(equation, "describe") is not None:
            self.convolutions.append((equation, place.count))
            operands = self._convolution(equation, operands, place)
        elif sub_jaxprs(equation) and is_entered(equation.primitive):
            return self._held(equation, operands, place)
        followed = [value for value in operands if value is not None]
        if len(followed) == 1 and len(equation.outvars) == 1:
            result = _moved(equation, operands)
            if result is not None:
                return [result]
        for value in followed:
            line = source_info_util.summarize(equation.source_info)
            self.escape(value, f"it reaches {equation.primitive}" + (f" at {line}" if line else ""))
        return [None] * len(equation.outvars)

    def _convolution(
        self, equation: JaxprEqn, operands: list[_Followed | None], place: _Place
    ) -> list[_Followed | None]:
        """Notes the use of a kernel; the operands that are no kernel of the convolution."""
        image, kernel = operands
        if kernel is None:
            return operands
        use = use_of(equation, kernel.view)
        if use is None:
            return operands
        scaled = kernel.scaled or frozenset()
        if not scaled <= {factor[0] for factor in use.placement.outputs}:
            self.escape(kernel, "it is multiplied by numbers that vary along other axes than its output features")
        own = place.inside(equation)
        site = Site(equation, use, own.count, own.path, own.hidden, kernel.scaled is not None)
        self.found.setdefault(kernel.index, KernelUses()).sites.append(site)
        return [image, None]

    def _held(self, equation: JaxprEqn, operands: list[_Followed | None], place: _Place) -> list[_Followed | None]:
        params, held = equation.params, sub_jaxprs(equation)
        if equation.primitive is lax_primitives.scan_p:
            constants, carry, slices = loop_parts(equation, operands)
            inner = [self._slice(value) for value in slices]
            results = self.walk(held[0], [*constants, *carry, *inner], place.inside(equation, params["length"]))
            return self._carried(carry, results[: len(carry)]) + self._dropped(results[len(carry) :])
        if equation.primitive is lax_primitives.while_p:
            first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            carry = operands[last:]
            within = place.inside(equation, hidden=True)
            self.walk(params["cond_jaxpr"], [*operands[:first], *carry], within)
            return self._carried(carry, self.walk(params["body_jaxpr"], operands[first:], within))
        if equation.primitive is lax_primitives.cond_p:
            branches = [self.walk(branch, operands[1:], place.inside(equation, hidden=True)) for branch in held]
            for results in branches:
                self._dropped(results)
            return [None] * len(equation.outvars)
        if equation.primitive in INLINED:
            return self.walk(held[0], operands, place.inside(equation))
        for value in operands:
            self.escape(value, f"it reaches {equation.primitive}")
        inside = [None] * len(inner_jaxpr(held[0]).invars)
        self.walk(held[0], inside, place.inside(equation, hidden=True))
        return [None] * len(equation.outvars)

    def _slice(self, value: _Followed | None) -> _Followed | None:
        view = None if value is None else value.view.index_axis(0)
        if value is None or view is None:
            self.escape(value, "a loop slices it along another axis than one that numbers kernels")
            return None
        return dataclasses.replace(value, view=view.drop_axis(0))

    def _carried(self, before: Sequence[_Followed | None], after: Sequence[_Followed | None]) -> list[_Followed | None]:
        for old, new in zip(before, after, strict=True):
            if old != new:
                self.escape(old, "a loop changes it")
                self.escape(new, "a loop carries it")
        return [old if old == new else None for old, new in zip(before, after, strict=True)]

    def _dropped(self, values: Sequence[_Followed | None]) -> list[_Followed | None]:
        for value in values:
            self.escape(value, "a loop or a branch returns it")
        return [None] * len(values)


def _moved(equation: JaxprEqn, operands: Sequence[_Followed | None]) -> _Followed | None:
    """What an equation makes of its one operand that is a view of a parameter; None for what no chain goes through."""
    position = next(n for n, value in enumerate(operands) if value is not None)
    value = operands[position]
    primitive = equation.primitive
    if value is None:
        return None
    if primitive is lax_primitives.neg_p:
        return dataclasses.replace(value, scaled=value.scaled or frozenset())
    if primitive is lax_primitives.mul_p or (primitive is lax_primitives.div_p and position == 0):
        shape = getattr(equation.invars[1 - position].aval, "shape", ())
        varies = [axis for axis, size in enumerate(shape) if size > 1]
        own = {factor[0] for axis in varies for factor in value.view.axes[axis]}
        return dataclasses.replace(value, scaled=(value.scaled or frozenset()) | own)
    if primitive is lax_primitives.slice_p or primitive is lax_primitives.dynamic_slice_p:
        sizes = avals(equation)[-1].shape
        axes = [axis for axis, (new, old) in enumerate(zip(sizes, value.view.sizes, strict=True)) if new != old]
        view = value.view.index_axis(axes[0]) if len(axes) == 1 and sizes[axes[0]] == 1 else None
        return None if view is None else dataclasses.replace(value, view=view)
    view = moved(equation, value.view)
    return None if view is None else dataclasses.replace(value, view=view)
