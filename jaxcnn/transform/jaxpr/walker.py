"""The walker evaluates a jaxpr equation by equation, with rules by primitive.

It also rewrites the jaxprs that equations hold, such as the body of a scan. An equation without a rule is bound as it
was. Name stacks and source lines are those of the traced function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn._compat import custom_vmap_primitive, is_explicit, manual_axes, shard_map_primitive
from jaxcnn.epilogue import fused_conv_p
from jaxcnn.transform.jaxpr.equations import (
    JaxprValues,
    consts_of,
    inner_jaxpr,
    rebind,
    same_source,
    sub_jaxprs,
)

Rule = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any] | None]
"""A rule computes the results of an equation from its operands, or returns None to bind the equation as it was."""


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Several equations of a jaxpr that are computed as one, in the place of the last of them.

    Args:
      equation: equation whose name stack and source line stand for all.
      inputs: atoms that the equations read.
      compute: function from the values of the inputs to the result of the last equation.
    """

    equation: JaxprEqn
    inputs: tuple[Any, ...]
    compute: Callable[[Sequence[Any]], Any]


Fusions = Callable[[Any], Mapping[int, Fusion | None]]
"""A function from a jaxpr to its fusions: each at the number of its last equation, None at those of its others."""


@dataclasses.dataclass(frozen=True)
class Walker:
    """An evaluation of jaxprs with rules.

    Args:
      rules: rule for the equations of a primitive, by primitive.
      fusions: function from a jaxpr to its fusions, which come before the rules.
    """

    rules: Mapping[Primitive, Rule]
    fusions: Fusions | None = None
    # Both by the id of a jaxpr, together with this jaxpr, so that no other one gets its id.
    _rebuilt_jaxprs: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict, repr=False)
    _rule_presence: dict[int, tuple[Any, bool]] = dataclasses.field(default_factory=dict, repr=False)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
        """Returns the results of a jaxpr for some arguments, computed by the rules where one applies."""
        values = JaxprValues(jaxpr, (*consts, *args))
        fusions = {} if self.fusions is None else self.fusions(values.jaxpr)
        for number, equation in enumerate(values.jaxpr.eqns):
            fusion = fusions.get(number)
            if fusion is None and number in fusions:
                continue
            with same_source(fusion.equation if fusion else equation), equation.ctx.manager:
                if fusion:
                    results: Sequence[Any] = [fusion.compute(values.read(fusion.inputs))]
                else:
                    results = self.results(equation, values.read(equation.invars))
            values.write(equation, results)
        return values.outputs()

    def results(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        """Returns the results of one equation: by its rule, by rewriting the jaxprs that it holds, or as it was."""
        rule = self.rules.get(equation.primitive)
        results = None if rule is None else rule(equation, operands)
        if results is not None:
            return results
        descend = _descent(equation.primitive) if sub_jaxprs(equation) and self.touches(equation) else None
        return rebind(equation, operands) if descend is None else descend(self, equation, operands)

    def touches(self, equation: JaxprEqn) -> bool:
        """Returns whether a rule applies to an equation, or to one in a jaxpr that the equation holds, at any depth.

        Fusions do not count. True for every `custom_vjp`, whose backward function is not known before it is traced.
        """
        if equation.primitive in self.rules or equation.primitive is lax_primitives.custom_vjp_call_p:
            return True
        return any(map(self._contains_rules, sub_jaxprs(equation)))

    def _contains_rules(self, jaxpr: Any) -> bool:
        """Returns whether `touches` is true for an equation of a jaxpr."""
        jaxpr = inner_jaxpr(jaxpr)
        if id(jaxpr) not in self._rule_presence:
            self._rule_presence[id(jaxpr)] = jaxpr, any(map(self.touches, jaxpr.eqns))
        return self._rule_presence[id(jaxpr)][1]

    def rebuild(self, jaxpr: Any) -> Any:
        """Returns a closed jaxpr with the rules applied: the same object at each call, so that JAX lowers it once."""
        if id(jaxpr) not in self._rebuilt_jaxprs:
            run = partial(self.evaluate, jaxpr, jaxpr.consts)
            closed = jax.make_jaxpr(run)(*(variable.aval for variable in inner_jaxpr(jaxpr).invars))
            self._rebuilt_jaxprs[id(jaxpr)] = jaxpr, closed
        return self._rebuilt_jaxprs[id(jaxpr)][1]

    def rebuild_around(self, jaxpr: Any, constants: Mapping[int, Any]) -> Any:
        """Returns a closed jaxpr with the rules applied and known arguments as constants.

        It has the same arguments as before, and ignores those that are known.

        Args:
          jaxpr: closed jaxpr.
          constants: values of the known arguments by position.
        """

        def run(*args: Any) -> list[Any]:
            return self.evaluate(jaxpr, jaxpr.consts, *(constants.get(index, arg) for index, arg in enumerate(args)))

        return jax.make_jaxpr(run)(*(variable.aval for variable in inner_jaxpr(jaxpr).invars))

    def rewrite(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """Returns f with the rules applied, a function of pytrees that traces f at each call."""

        def run(*args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            # JAX cannot trace float0 arrays, the zeros that stand for derivatives of integers.
            arrays = [index for index, leaf in enumerate(leaves) if not _is_float0(leaf)]
            results: list[tuple[Any, list[bool]]] = []

            def flat(*values: Any) -> list[Any]:
                traced = dict(zip(arrays, values, strict=True))
                merged = [traced.get(index, leaf) for index, leaf in enumerate(leaves)]
                out, out_structure = jax.tree.flatten(f(*jax.tree.unflatten(structure, merged)))
                results.append((out_structure, [_is_float0(value) for value in out]))
                return [value for value in out if not _is_float0(value)]

            operands = [leaves[index] for index in arrays]
            closed = jax.make_jaxpr(flat)(*operands)
            values = iter(self.evaluate(closed, closed.consts, *operands))
            out_structure, zeros = results[-1]
            # Only `jax.custom_vjp` produces such zeros here, and accepts None for them.
            return jax.tree.unflatten(out_structure, [None if zero else next(values) for zero in zeros])

        return run


def _is_float0(value: Any) -> bool:
    return getattr(value, "dtype", None) == jax.dtypes.float0


Descent = Callable[["Walker", JaxprEqn, list[Any]], list[Any]]
"""A descent computes the results of an equation that holds jaxprs, with the rules applied in these jaxprs."""


def _bind_rebuilt(*names: str) -> Descent:
    """Returns the descent for primitives that hold closed jaxprs, one or several, under these names."""

    def descend(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
        params = dict(equation.primitive.get_bind_params(equation.params))
        for name in names:
            jaxprs = params[name]
            params[name] = tuple(map(walker.rebuild, jaxprs)) if isinstance(jaxprs, tuple) else walker.rebuild(jaxprs)
        return equation.primitive.bind(*operands, **params)

    return descend


def _into_jit(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    # From jax 0.12 on a jitted function receives the arrays that it closes over as operands. Inside, a rule could not
    # tell such a known kernel from an argument.
    constants = {index: value for index, value in enumerate(operands) if _is_known_array(value)}
    if not constants:
        return _bind_rebuilt("jaxpr")(walker, equation, operands)
    params = dict(equation.primitive.get_bind_params(equation.params))
    params["jaxpr"] = walker.rebuild_around(params["jaxpr"], constants)
    # Zeros of the same type, so that the program holds each value once.
    ignored = [_zeros_like(value) if index in constants else value for index, value in enumerate(operands)]
    return equation.primitive.bind(*ignored, **params)


_zeros = jax.jit(jnp.zeros, static_argnums=(0, 1))
"""Function of a shape and a dtype. Compiled, since `jnp.zeros` moves a number to the device at each call."""


def _zeros_like(value: jax.Array) -> jax.Array:
    return jnp.zeros_like(value) if is_explicit(jax.typeof(value)) else _zeros(value.shape, value.dtype)


def _is_known_array(value: Any) -> bool:
    """Returns whether a value is a floating-point array, not a scalar, and no tracer, as a constant kernel is."""
    if isinstance(value, jax.core.Tracer) or getattr(value, "ndim", 0) == 0:
        return False
    return jnp.issubdtype(value.dtype, jnp.inexact)


def inline(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Computes the results of an equation by evaluating the one jaxpr that it holds."""
    (jaxpr,) = sub_jaxprs(equation)
    return walker.evaluate(jaxpr, consts_of(jaxpr), *operands)


def _into_remat(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    # `jax.checkpoint` cannot make the equation again, since its jaxpr is open and its parameter `differentiated` must
    # stay. New constants become operands.
    jaxpr = equation.params["jaxpr"]
    avals = [variable.aval for variable in jaxpr.invars]
    closed = jax.make_jaxpr(partial(walker.evaluate, jaxpr, ()))(*avals)
    consts = closed.consts
    if consts:
        closed = jax.make_jaxpr(lambda consts, *args: jax.core.eval_jaxpr(inner_jaxpr(closed), consts, *args))(
            consts, *avals
        )
    return equation.primitive.bind(*consts, *operands, **{**equation.params, "jaxpr": inner_jaxpr(closed)})


def _into_shard_map(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    params = equation.params
    mapped = jax.shard_map(
        lambda *args: tuple(walker.evaluate(params["jaxpr"], (), *args)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=manual_axes(params),
        check_vma=params["check_vma"],
    )
    return list(mapped(*operands))


@dataclasses.dataclass(frozen=True)
class _CustomCall:
    """A call of a function with custom derivatives.

    The values that the function closes over are its first operands. They have no derivative, and must not get one.
    `num_consts` is their number, but a wrong one where JAX traces a call a second time. So every operand with a known
    value counts as closed over too.

    Args:
      equation: equation of the call.
      constants: operands that are no tracers, by position; the other operands are the arguments.
    """

    equation: JaxprEqn
    constants: dict[int, Any]

    @property
    def places(self) -> list[int]:
        """Returns the positions of the arguments among the operands."""
        return [index for index in range(len(self.equation.invars)) if index not in self.constants]

    def operands(self, args: Sequence[Any]) -> list[Any]:
        """Returns the operands for some arguments."""
        values = {**self.constants, **dict(zip(self.places, args, strict=True))}
        return [values[index] for index in range(len(values))]

    def split(self, args: Sequence[Any]) -> tuple[Callable[..., list[Any]], list[Any]]:
        """Returns the original call as a function of the arguments that it does not close over, and these arguments.

        The other arguments keep their values in `args`.
        """
        differentiable = [place >= self.equation.params["num_consts"] for place in self.places]

        def original(*variables: Any) -> list[Any]:
            values = iter(variables)
            merged = [
                next(values) if is_differentiable else arg
                for arg, is_differentiable in zip(args, differentiable, strict=True)
            ]
            return rebind(self.equation, self.operands(merged))

        return original, [arg for arg, is_differentiable in zip(args, differentiable, strict=True) if is_differentiable]


def _into_custom(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    constants = {index: value for index, value in enumerate(operands) if not isinstance(value, jax.core.Tracer)}
    call, jaxpr = _CustomCall(equation, constants), equation.params["call_jaxpr"]

    def rewritten(*args: Any) -> list[Any]:
        return walker.evaluate(jaxpr, jaxpr.consts, *call.operands(args))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        original, variables = call.split(primals)
        return jax.jvp(original, variables, call.split(tangents)[1])

    def forward(*args: Any) -> Any:
        original, variables = call.split(args)
        return jax.vjp(original, *variables)

    def backward(vjp: Callable[..., Any], cotangents: Any) -> Any:
        num_constant = len(call.places) - sum(place >= equation.params["num_consts"] for place in call.places)
        return (*(None,) * num_constant, *vjp(cotangents))

    # The user's derivative rules stay: each is traced through the original call, then rewritten.
    function: Any
    if equation.primitive is lax_primitives.custom_jvp_call_p:
        function = jax.custom_jvp(rewritten)
        function.defjvp(walker.rewrite(jvp))
    else:
        function = jax.custom_vjp(rewritten)
        function.defvjp(walker.rewrite(forward), walker.rewrite(backward))
    return function(*(operands[place] for place in call.places))


def _into_custom_vmap(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    call = equation.params["call"]
    mapped = custom_vmap(partial(walker.evaluate, call, call.consts))

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *args: Any) -> tuple[list[Any], list[bool]]:
        # The user's rule stays: it is traced through the original call, then rewritten.
        axes = [0 if is_batched else None for is_batched in batched]
        original = jax.vmap(lambda *args: rebind(equation, args), axes, axis_size=size)
        results = walker.rewrite(original)(*args)
        return results, [True] * len(results)

    return list(mapped(*operands))


_DESCENTS: dict[Primitive, Descent] = {
    lax_primitives.jit_p: _into_jit,
    lax_primitives.scan_p: _bind_rebuilt("jaxpr"),
    lax_primitives.while_p: _bind_rebuilt("cond_jaxpr", "body_jaxpr"),
    lax_primitives.cond_p: _bind_rebuilt("branches"),
    lax_primitives.closed_call_p: inline,
    fused_conv_p: inline,
    lax_primitives.remat_p: _into_remat,
    lax_primitives.custom_jvp_call_p: _into_custom,
    lax_primitives.custom_vjp_call_p: _into_custom,
}


def _descent(primitive: Primitive) -> Descent | None:
    if primitive in _DESCENTS:
        return _DESCENTS[primitive]
    if primitive is shard_map_primitive():
        return _into_shard_map
    return _into_custom_vmap if primitive is custom_vmap_primitive() else None
