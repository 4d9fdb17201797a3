"""The walker that carries chains from a function's parameters to its convolutions, through moves of the parameter.

A convolution computes with the chain in place of its kernel. A chain that reaches any other equation is an error, or
that equation gets the dense kernel.
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
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn.chain import KernelChain
from jaxcnn.transform.chains.axis_views import View
from jaxcnn.transform.chains.convolve import convolve_with_chain
from jaxcnn.transform.chains.moves import Move, factor_by_feature, move_of, spread_shape
from jaxcnn.transform.chains.placement import Placement, use_of
from jaxcnn.transform.jaxpr.convolutions import is_convolution
from jaxcnn.transform.jaxpr.dense_layers import as_one_tap_convolution
from jaxcnn.transform.jaxpr.equations import CALLS, loop_parts, rebind, returns_operands, user_line, while_parts
from jaxcnn.transform.jaxpr.walker import Rule, Walker, inline


class ChainError(ValueError):
    """A chain reached an operation that takes no chain."""


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class TracedChain:
    """A chain on its way from a parameter to a convolution.

    Args:
      chain: chain; its links have a leading axis for each axis of the parameter that stacks kernels and was not indexed
        yet.
      view: moves of the parameter so far.
      placement: axes of the kernel in the parameter.
      path: path of the parameter, for errors.
    """

    chain: KernelChain
    view: View
    placement: Placement
    path: str

    def tree_flatten(self) -> tuple[Any, Any]:
        """Returns the chain, then the static fields."""
        return (self.chain,), (self.view, self.placement, self.path)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> TracedChain:
        """Inverts `tree_flatten`."""
        return cls(*children, *static)

    def at(self, view: View) -> TracedChain:
        """Returns the same chain after moves of the parameter that leave the links unchanged."""
        return dataclasses.replace(self, view=view)

    def map_links(self, function: Callable[[jax.Array], jax.Array], view: View) -> TracedChain:
        """Returns the chain with a function applied to each link, at a new view."""
        kernels = tuple(map(function, self.chain.kernels))
        chain = KernelChain.tree_unflatten(self.chain.feature_group_counts, kernels)
        return dataclasses.replace(self, chain=chain, view=view)

    def map_last_link(self, function: Callable[[jax.Array], jax.Array]) -> TracedChain:
        """Returns the chain with a function applied to its last link."""
        *links, last = self.chain.kernels
        chain = KernelChain.tree_unflatten(self.chain.feature_group_counts, (*links, function(last)))
        return dataclasses.replace(self, chain=chain)

    def takes(self, view: View) -> bool:
        """Returns whether the first axis of the links is the axis of the parameter that a view indexed last."""
        # The second stacking axis is the first axis of the links only after the first one was indexed.
        return view.sliced == self.placement.stack[: len(view.sliced)]

    def scan_element(self) -> TracedChain | None:
        """Returns the chain in a step of a scan over the array's first axis; None if that axis does not stack kernels.

        Only the view changes: `lax.scan` slices the links.
        """
        view = self.view.scan_element()
        return None if view is None or not self.takes(view) else self.at(view)

    def array(self) -> jax.Array:
        """Returns the array for which the chain stands."""
        parameter = self.placement.parameter_of_chain(self.chain, self.view.sliced)
        return self.view.apply_to(parameter)


@dataclasses.dataclass(frozen=True)
class ChainWalker(Walker):
    """A walker for values of which some are chains.

    Args:
      materialize: flag, True to give the dense kernel to equations that take no chain; by default that is an error.
      images: list to which the image of every convolution with a chain is added, except of those in loops and
        branches; None to keep none.
    """

    rules: Mapping[Primitive, Rule] = dataclasses.field(default_factory=dict)
    materialize: bool = False
    images: list[Any] | None = None
    # Result of a broadcast, operand, and the operand's shape with the axes of the result, by the id of the result.
    _broadcasts: dict[int, tuple[Any, Any, Any]] = dataclasses.field(default_factory=dict, repr=False)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
        """Returns the results of a jaxpr, chains among them; broadcasts are known within one jaxpr only."""
        inner = dataclasses.replace(self, _broadcasts={})
        return super(ChainWalker, inner).evaluate(jaxpr, consts, *args)

    def results(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        """Returns the results of one equation; a chain that passes through the equation is a result."""
        chains = [position for position, operand in enumerate(operands) if isinstance(operand, TracedChain)]
        if not chains:
            results = rebind(equation, operands)
            if equation.primitive is lax_primitives.broadcast_in_dim_p:
                # The entry holds the result, so that no other array gets its id.
                self._broadcasts[id(results[0])] = results[0], operands[0], spread_shape(equation)
            return results
        descend = _DESCENTS.get(equation.primitive)
        if descend is not None:
            # A value inside a loop or a branch does not exist outside of it.
            walker = self if equation.primitive in CALLS else dataclasses.replace(self, images=None)
            return descend(walker, equation, operands)
        if returns_operands(equation):
            arrays = [jnp.zeros(()) if isinstance(operand, TracedChain) else operand for operand in operands]
            results = rebind(equation, arrays) if len(chains) < len(operands) else arrays
            return [operands[index] if index in chains else result for index, result in enumerate(results)]
        layer = None
        if len(chains) == 1 and operands[chains[0]].placement.kernel_shape[:-2] == (1,):
            layer = as_one_tap_convolution(equation, chains[0])
        if layer is not None:
            return self.evaluate(layer, layer.consts, *operands)
        result = self._result_from_chain(equation, operands, chains[0]) if len(chains) == 1 else None
        if result is not None:
            return [result]
        return rebind(equation, [self.array(operand, equation) for operand in operands])

    def array(self, value: Any, equation: JaxprEqn | None = None) -> Any:
        """Returns an array unchanged, and for a chain its dense array.

        Args:
          value: array or chain.
          equation: equation that reads the value; None for a result of the function.

        Raises:
          ChainError: the value is a chain and `materialize` is not set.
        """
        if not isinstance(value, TracedChain):
            return value
        if self.materialize:
            return value.array()
        if equation is None:
            event = "is returned as something else than it was"
        else:
            line = user_line(equation)
            event = f"reaches {equation.primitive}" + (f" at {line}" if line else "")
        raise ChainError(
            f"with_chains: the chain in place of {value.path}, for a kernel {value.placement.kernel_shape}, {event}, "
            "where only the dense kernel could go; with_chains(f, materialize=True) makes it"
        )

    def _result_from_chain(self, equation: JaxprEqn, operands: list[Any], position: int) -> Any | None:
        """Returns the result of an equation with a chain at one position; None if the equation takes no chain there."""
        traced: TracedChain = operands[position]
        primitive, params = equation.primitive, equation.params
        if is_convolution(equation):
            use = use_of(equation, traced.view) if position == 1 else None
            links = None if use is None else use.links(traced.chain, traced.placement)
            if links is None:
                return None
            if self.images is not None:
                self.images.append(operands[0])
            return convolve_with_chain(equation, operands[0], links)
        move = move_of(equation, position, traced.view)
        if move is None:
            return None
        if move.effect == "negate":
            return traced.map_last_link(lax.neg)
        if move.effect == "scale":
            scale = lax.mul if primitive is lax_primitives.mul_p else lax.div
            return _scale_last_link(
                traced, self._factor_before_broadcast(operands[1 - position], len(move.view.axes)), scale
            )
        if move.effect == "index":
            return _take_index(traced, move, operands[1:] or params["start_indices"])
        if move.effect == "cast":
            return traced.map_links(lambda link: link.astype(params["new_dtype"]), move.view)
        if move.effect == "stop gradient":
            return traced.map_links(lax.stop_gradient, move.view)
        return traced.at(move.view)

    def _factor_before_broadcast(self, factor: Any, ndim: int) -> jax.Array:
        """Returns a factor as it was before its broadcast, reshaped to the axes of the array."""
        _, spread, shape = self._broadcasts.get(id(factor), (None, factor, np.shape(factor) or (1,) * ndim))
        return jnp.reshape(spread, shape)


def _scale_last_link(
    traced: TracedChain, factor: jax.Array, scale: Callable[[Any, Any], jax.Array]
) -> TracedChain | None:
    """Returns the chain with its last link scaled; None unless the factor has one number for each output feature."""
    by_feature = factor.reshape(-1)
    if factor.size > 1:
        entries = factor_by_feature(traced.placement, traced.view, factor.shape)
        if entries is None:
            return None
        by_feature = by_feature[entries]

    def scale_link(link: jax.Array) -> jax.Array:
        values = by_feature.astype(link.dtype).reshape((1,) * (link.ndim - 1) + by_feature.shape)
        return scale(link, jnp.broadcast_to(values, link.shape))

    return traced.map_last_link(scale_link)


def _take_index(traced: TracedChain, move: Move, starts: Sequence[Any]) -> TracedChain | None:
    """Returns one chain of a stack; None if the axis of the index is not the first axis of the links."""
    if not traced.takes(move.view):
        return None

    def take(link: jax.Array) -> jax.Array:
        return lax.dynamic_index_in_dim(link, starts[move.axis], keepdims=False, allow_negative_indices=False)

    return traced.map_links(take, move.view)


# Descents into equations that hold jaxprs. JAX's public functions make each one again, with chains as pytrees.


def _into_remat(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    run = jax.checkpoint(
        partial(walker.evaluate, params["jaxpr"], ()), prevent_cse=params["prevent_cse"], policy=params["policy"]
    )
    return run(*operands)


def _carry_after(carry: list[Any], results: list[Any], walker: ChainWalker, equation: JaxprEqn) -> list[Any]:
    """Returns the results of a loop's body as the next carry: chains only where the carry had chains."""
    return [
        new if isinstance(old, TracedChain) else walker.array(new, equation)
        for old, new in zip(carry, results, strict=True)
    ]


def _initial_carry(
    carry: list[Any], body: Callable[[list[Any]], list[Any]], walker: ChainWalker, equation: JaxprEqn
) -> list[Any]:
    """Returns a loop's carry, with a dense array for each chain that the body does not return with the same view."""
    while any(isinstance(value, TracedChain) for value in carry):
        after = jax.eval_shape(body, carry)
        structures: list[Any] = list(map(jax.tree.structure, carry))
        keeps = [old == jax.tree.structure(new) for old, new in zip(structures, after, strict=True)]
        if all(keeps):
            break
        carry = [old if is_same else walker.array(old, equation) for old, is_same in zip(carry, keeps, strict=True)]
    return carry


def _into_scan(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params, body = equation.params, equation.params["jaxpr"]
    constants, carry, slices = loop_parts(equation, operands)
    unsliced: dict[int, TracedChain] = {}
    for position, value in enumerate(slices):
        if not isinstance(value, TracedChain):
            continue
        element = value.scan_element()
        if element is None:
            slices[position] = walker.array(value, equation)
        elif element.view.sliced == value.view.sliced:
            # The axis has size 1 and the links lack it, so the scan must not slice the links.
            unsliced[position], slices[position] = element, None

    def step(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
        # `scan` slices the links of a stack, so inside the view must be that of one kernel.
        elements = [value.scan_element() if isinstance(value, TracedChain) else value for value in slices]
        inner = [unsliced.get(position, value) for position, value in enumerate(elements)]
        results = walker.evaluate(body, body.consts, *constants, *carry, *inner)
        after = _carry_after(carry, results[: len(carry)], walker, equation)
        return after, [walker.array(value, equation) for value in results[len(carry) :]]

    def first_step(carry: list[Any]) -> list[Any]:
        return step(carry, jax.tree.map(lambda leaf: leaf[0], slices))[0]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    after, stacked = lax.scan(step, _initial_carry(carry, first_step, walker, equation), slices, **options)
    return [*after, *stacked]


def _into_while(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    tested, constants, carry = while_parts(equation, operands)
    test, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]

    def step(carry: list[Any]) -> list[Any]:
        return _carry_after(carry, walker.evaluate(body, body.consts, *constants, *carry), walker, equation)

    return lax.while_loop(
        lambda carry: walker.evaluate(test, test.consts, *tested, *carry)[0],
        step,
        _initial_carry(carry, step, walker, equation),
    )


def _into_cond(walker: ChainWalker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    index, *arguments = operands

    def run(branch: Any, *arguments: Any) -> list[Any]:
        results = walker.evaluate(branch, branch.consts, *arguments)
        return [walker.array(value, equation) for value in results]

    branches = [partial(run, branch) for branch in equation.params["branches"]]
    return lax.switch(index, branches, *arguments)


_DESCENTS: dict[Primitive, Callable[[ChainWalker, JaxprEqn, list[Any]], list[Any]]] = {
    **dict.fromkeys(CALLS, inline),
    lax_primitives.remat_p: _into_remat,
    lax_primitives.scan_p: _into_scan,
    lax_primitives.while_p: _into_while,
    lax_primitives.cond_p: _into_cond,
}
