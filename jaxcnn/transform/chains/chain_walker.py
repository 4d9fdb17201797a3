"""The walk that carries chains from a function's parameters to its convolutions, through what only moves values about.

A chain is computed with where a convolution takes it for its kernel. Where anything else would take it, there is an
error, or the dense kernel in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.chain import KernelChain
from jaxcnn.epilogue import fused_conv_p
from jaxcnn.primitives import conv_p
from jaxcnn.transform.chains.axis_views import View, moved
from jaxcnn.transform.chains.convolve import convolve_with_chain
from jaxcnn.transform.chains.placement import Placement, use_of
from jaxcnn.transform.jaxpr.equations import avals, loop_parts, rebind, sub_jaxprs
from jaxcnn.transform.jaxpr.walker import Rule, Walker


class ChainError(ValueError):
    """A chain reached an operation that takes no chain."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class TracedChain:
    """A chain on its way from a parameter to a convolution.

    Args:
      chain: the chain; its links have an axis in front for each axis of the parameter that numbers kernels and of which
        no index was taken yet.
      view: what was done to the parameter so far.
      placement: where the kernel lies in the parameter.
      path: the parameter's, for errors.
    """

    chain: KernelChain
    view: View
    placement: Placement
    path: str

    def tree_flatten(self) -> tuple[Any, Any]:
        """The chain, and what is known of it."""
        return (self.chain,), (self.view, self.placement, self.path)

    @classmethod
    def tree_unflatten(cls, known: Any, children: Any) -> TracedChain:
        """The inverse of `tree_flatten`."""
        return cls(*children, *known)

    @property
    def stacks(self) -> int:
        """Axes in front of the links."""
        return len(self.placement.stack) - len(self.view.sliced)

    def of_links(self, function: Callable[[jax.Array], jax.Array], **changes: Any) -> TracedChain:
        """The same with a function of each link."""
        kernels = tuple(map(function, self.chain.kernels))
        chain = KernelChain.tree_unflatten(self.chain.feature_group_counts, kernels)
        return dataclasses.replace(self, chain=chain, **changes)

    def of_last(self, function: Callable[[jax.Array], jax.Array]) -> TracedChain:
        """The same with a function of the last link."""
        *links, last = self.chain.kernels
        chain = KernelChain.tree_unflatten(self.chain.feature_group_counts, (*links, function(last)))
        return dataclasses.replace(self, chain=chain)

    def index(self, axis: int, take: Callable[[jax.Array], jax.Array] | None) -> TracedChain | None:
        """One index of an axis of the array, which stays with size 1; None if it numbers no kernels.

        `take` gets it from a link, whose first axis it is; None if the links have lost theirs already.
        """
        view = self.view.index_axis(axis)
        # An index of a second such axis is of the links' first axis only if the first one is gone.
        if view is None or view.sliced != self.placement.stack[: len(view.sliced)]:
            return None
        return dataclasses.replace(self, view=view) if take is None else self.of_links(take, view=view)

    def scan_element(self) -> TracedChain | None:
        """What is left inside a loop over the array's first axis; None if it numbers no kernels."""
        found = self.index(0, None)
        return None if found is None else dataclasses.replace(found, view=found.view.drop_axis(0))

    def array(self) -> jax.Array:
        """The array for which it stands."""
        parameter = self.placement.holding(self.chain, self.view.sliced)
        return self.view.apply_to(parameter)


@dataclasses.dataclass(frozen=True)
class ChainWalker(Walker):
    """A walker for values of which some are chains.

    Args:
      materialize: whether what takes no chain gets the dense kernel instead of an error.
      _spread: by the id of a value that was broadcast: this value, what it was before, and where its axes went.
    """

    rules: Mapping[Primitive, Rule] = dataclasses.field(default_factory=dict)
    materialize: bool = False
    _spread: dict[int, tuple[Any, Any, Any]] = dataclasses.field(default_factory=dict, repr=False)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
        """As of any walker; what is noted of the values in a jaxpr, a loop's body say, goes with them."""
        inner = dataclasses.replace(self, _spread={})
        return super(ChainWalker, inner).evaluate(jaxpr, consts, *args)

    def results(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        """Returns the results of one equation, chains where chains go on."""
        carried = [position for position, operand in enumerate(operands) if isinstance(operand, TracedChain)]
        if not carried:
            results = rebind(equation, operands)
            if equation.primitive is lax_primitives.broadcast_in_dim_p:
                # The result too, so that its id stays its own.
                self._spread[id(results[0])] = results[0], operands[0], equation.params["broadcast_dimensions"]
            return results
        descend = _DESCENTS.get(equation.primitive)
        if descend is not None:
            return descend(self, equation, operands)
        result = self._one_result(equation, operands, carried[0]) if len(carried) == 1 else None
        if result is not None:
            return [result]
        return rebind(equation, [self.array(operand, equation) for operand in operands])

    def array(self, value: Any, equation: JaxprEqn | None = None) -> Any:
        """An array as it is; for a chain the dense one, or an error, since the equation takes no chain."""
        if not isinstance(value, TracedChain):
            return value
        if self.materialize:
            return value.array()
        if equation is None:
            what = "is returned as something else than it was"
        else:
            line = source_info_util.summarize(equation.source_info)
            what = f"reaches {equation.primitive}" + (f" at {line}" if line else "")
        raise ChainError(
            f"with_chains: the chain in place of {value.path}, for a kernel {value.placement.kernel_shape}, {what}, "
            "where only the dense kernel could go; with_chains(f, materialize=True) makes it"
        )

    def _one_result(self, equation: JaxprEqn, operands: list[Any], position: int) -> Any | None:
        """The result of an equation of whose operands one is a chain; None if it takes no chain."""
        carried: TracedChain = operands[position]
        primitive, params = equation.primitive, equation.params
        if primitive is conv_p or primitive is conv_general_dilated_p:
            use = use_of(equation, carried.view) if position == 1 else None
            links = None if use is None else use.links(carried.chain, carried.placement)
            return None if links is None else convolve_with_chain(equation, operands[0], links)
        if primitive is lax_primitives.neg_p:
            return carried.of_last(lax.neg)
        if (
            primitive in (lax_primitives.mul_p, lax_primitives.div_p)
            and avals(equation)[-1].shape != carried.view.sizes
        ):
            return None  # a product larger than the array
        if primitive is lax_primitives.mul_p:
            return _scaled(carried, self._factor(operands[1 - position], carried), lax.mul)
        # The quotient of integers is rounded, that of a link is then not the kernel's.
        if primitive is lax_primitives.div_p and position == 0 and jnp.issubdtype(carried.chain.dtype, jnp.inexact):
            return _scaled(carried, self._factor(operands[1], carried), lax.div)
        if primitive is lax_primitives.slice_p or primitive is lax_primitives.dynamic_slice_p:
            return _index(equation, operands)
        view = moved(equation, carried.view)
        if view is None:
            return None
        if primitive is lax_primitives.convert_element_type_p:
            dtype = params["new_dtype"]
            return carried.of_links(lambda link: link.astype(dtype)) if jnp.issubdtype(dtype, jnp.inexact) else None
        if primitive is lax_primitives.stop_gradient_p:
            return carried.of_links(lax.stop_gradient)
        return dataclasses.replace(carried, view=view)

    def _factor(self, factor: Any, carried: TracedChain) -> jax.Array:
        """A factor with as many axes as the array, of size 1 where it was broadcast."""
        shape = [1] * len(carried.view.axes)
        _, spread, places = self._spread.get(id(factor), (None, factor, range(np.ndim(factor))))
        for place, size in zip(places, np.shape(spread), strict=True):
            shape[place] = size
        return jnp.reshape(spread, shape)


def _scaled(carried: TracedChain, factor: jax.Array, scale: Callable[[Any, Any], jax.Array]) -> TracedChain | None:
    """The chain with its last link scaled by a factor; None unless it is one number for each output feature."""
    if factor.size == 1:
        by_feature = jnp.reshape(factor, 1)
    else:
        # Which output feature each value of the array belongs to, and which value of the factor it meets.
        placement, view = carried.placement, carried.view
        stack = [placement.shape[axis] for axis in placement.stack if axis not in view.sliced]
        kernel_shape = (*stack, *placement.kernel_shape)
        numbered = np.broadcast_to(np.arange(kernel_shape[-1]), kernel_shape)
        features = view.apply_to(placement.parameter(numbered, view.sliced))
        numbers = np.broadcast_to(np.arange(factor.size).reshape(factor.shape), features.shape)
        number = np.zeros(kernel_shape[-1], int)
        number[features] = numbers
        if (number[features] != numbers).any():
            return None
        by_feature = factor.reshape(-1)[number]

    def scaled(link: jax.Array) -> jax.Array:
        values = by_feature.astype(link.dtype).reshape((1,) * (link.ndim - 1) + by_feature.shape)
        return scale(link, jnp.broadcast_to(values, link.shape))

    return carried.of_last(scaled)


def _index(equation: JaxprEqn, operands: Sequence[Any]) -> TracedChain | None:
    """One of stacked chains, of a slice of length 1 along the axis that numbers them; None for any other slice."""
    carried, *starts = operands
    sizes, params = carried.view.sizes, equation.params
    kept = avals(equation)[-1].shape
    if not starts:
        starts = params["start_indices"]
    axes = [axis for axis, (size, own) in enumerate(zip(kept, sizes, strict=True)) if size != own]
    if not axes:
        return carried
    if len(axes) > 1 or kept[axes[0]] != 1 or params.get("strides") is not None:
        return None

    def take(link: jax.Array) -> jax.Array:
        start = starts[axes[0]]
        return lax.dynamic_index_in_dim(link, start, keepdims=False, allow_negative_indices=False)

    return carried.index(axes[0], take)


# Descents into what holds jaxprs. Each is made again by JAX's own functions, for which a chain is a pytree.


def _inlined(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    (jaxpr,) = sub_jaxprs(equation)
    return walker.evaluate(jaxpr, getattr(jaxpr, "consts", ()), *operands)


def _into_remat(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    run = jax.checkpoint(
        partial(walker.evaluate, params["jaxpr"], ()), prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    return run(*operands)


def _kept(carry: list[Any], after: list[Any], walker: ChainWalker, equation: JaxprEqn) -> list[Any]:
    """What a loop's body gives for its carry: chains only where chains went in."""
    return [
        new if isinstance(old, TracedChain) else walker.array(new, equation)
        for old, new in zip(carry, after, strict=True)
    ]


def _initial(
    carry: list[Any], body: Callable[[list[Any]], list[Any]], walker: ChainWalker, equation: JaxprEqn
) -> list[Any]:
    """A loop's carry, with an array for each chain of which the body does not give the same view."""
    while any(isinstance(value, TracedChain) for value in carry):
        after = jax.eval_shape(body, carry)
        before: list[Any] = list(map(jax.tree.structure, carry))
        same = [own == jax.tree.structure(new) for own, new in zip(before, after, strict=True)]
        if all(same):
            break
        carry = [value if keeps else walker.array(value, equation) for value, keeps in zip(carry, same, strict=True)]
    return carry


def _into_scan(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params, body = equation.params, equation.params["jaxpr"]
    constants, carry, slices = loop_parts(equation, operands)
    # The only slice along an axis of size 1 is the chain itself; None takes its place among what is sliced.
    only = {
        place: dataclasses.replace(s, view=s.view.drop_axis(0))
        for place, s in enumerate(slices)
        if isinstance(s, TracedChain) and s.view.sizes[0] == 1
    }
    slices = [None if place in only else s for place, s in enumerate(slices)]
    slices = [
        walker.array(s, equation) if isinstance(s, TracedChain) and s.scan_element() is None else s for s in slices
    ]

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        # The chain of a whole stack, whose links `scan` slices, is the chain of one of its kernels inside.
        inner = [
            only.get(place, s.scan_element() if isinstance(s, TracedChain) else s) for place, s in enumerate(slices)
        ]
        results = walker.evaluate(body, body.consts, *constants, *carry, *inner)
        after = _kept(carry, results[: len(carry)], walker, equation)
        return after, [walker.array(value, equation) for value in results[len(carry) :]]

    def first(carry: list[Any]) -> list[Any]:
        return step(carry, jax.tree.map(lambda leaf: leaf[0], slices))[0]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    after, stacked = lax.scan(step, _initial(carry, first, walker, equation), slices, **options)
    return [*after, *stacked]


def _into_while(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    tested, constants, carry = operands[:first], operands[first:last], operands[last:]
    test, body = params["cond_jaxpr"], params["body_jaxpr"]

    def step(carry: list[Any]) -> list[Any]:
        return _kept(carry, walker.evaluate(body, body.consts, *constants, *carry), walker, equation)

    return lax.while_loop(
        lambda carry: walker.evaluate(test, test.consts, *tested, *carry)[0],
        step,
        _initial(carry, step, walker, equation),
    )


def _into_cond(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    index, *arguments = operands

    def run(branch: Any, *arguments: Any) -> list[Any]:
        results = walker.evaluate(branch, branch.consts, *arguments)
        return [walker.array(value, equation) for value in results]

    branches = [partial(run, branch) for branch in equation.params["branches"]]
    return lax.switch(index, branches, *arguments)


_DESCENTS: dict[Primitive, Callable[[ChainWalker, JaxprEqn, list[Any]], list[Any]]] = {
    lax_primitives.jit_p: _inlined,
    lax_primitives.closed_call_p: _inlined,
    lax_primitives.custom_jvp_call_p: _inlined,
    lax_primitives.custom_vjp_call_p: _inlined,
    fused_conv_p: _inlined,
    lax_primitives.remat_p: _into_remat,
    lax_primitives.scan_p: _into_scan,
    lax_primitives.while_p: _into_while,
    lax_primitives.cond_p: _into_cond,
}
