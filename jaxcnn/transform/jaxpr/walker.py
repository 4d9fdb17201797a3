"""The walker over jaxprs: evaluates one equation by equation, with rules by primitive, inside every primitive it knows.

What no rule computes is bound as it was. Name stacks and source lines are those of the function that was traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, Literal, Primitive
from jax.extend.core import primitives as lax_primitives

from jaxcnn._compat import custom_vmap_primitive, manual_axes, shard_map_primitive
from jaxcnn.epilogue import fused_conv_p

Rule = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any] | None]
"""Results of an equation from its operands, or None to bind it as it was."""


def opened(jaxpr: Any) -> Any:
    """The jaxpr itself of a closed one (from jax 0.12 on they are one class)."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def held_jaxprs(equation: JaxprEqn) -> list[Any]:
    """The jaxprs among an equation's parameters, open or closed, in order."""
    found = []
    for value in equation.params.values():
        found += [item for item in (value if isinstance(value, tuple | list) else (value,)) if is_jaxpr(item)]
    return found


def is_jaxpr(value: Any) -> bool:
    """Whether a parameter's value is a jaxpr, open or closed."""
    return hasattr(opened(value), "eqns")


def loop_parts(equation: JaxprEqn, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of a scan, or what is known of them: constants, carry, and what it takes slices of."""
    # How JAX tells them apart differs by release; slices and stacked results have one axis more outside than inside.
    inner = opened(equation.params["jaxpr"])
    slicing = sum(_ndim(a) > _ndim(b) for a, b in zip(equation.invars, inner.invars, strict=True))
    stacking = sum(_ndim(a) > _ndim(b) for a, b in zip(equation.outvars, inner.outvars, strict=True))
    last = len(operands) - slicing
    first = last - (len(equation.outvars) - stacking)
    return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def _ndim(atom: Any) -> int:
    return len(getattr(atom.aval, "shape", ()))


def in_place_of(equation: JaxprEqn) -> Any:
    """A context in which everything bound carries the equation's name stack and source line."""
    info = equation.source_info
    stack = source_info_util.current_name_stack() + info.name_stack
    return source_info_util.user_context(info.traceback, name_stack=stack)


@dataclasses.dataclass(frozen=True)
class Fusion:
    """Several equations of a jaxpr that are computed as one, in the place of the last of them.

    Args:
      equation: equation whose name stack and source line stand for all.
      inputs: atoms that they read.
      compute: function from the values of the inputs to the result of the last one.
    """

    equation: JaxprEqn
    inputs: tuple[Any, ...]
    compute: Callable[[Sequence[Any]], Any]


Fusions = Callable[[Any], Mapping[int, Fusion | None]]
"""The fusions of a jaxpr by the number of their last equation; None by the numbers of the others."""


@dataclasses.dataclass(frozen=True)
class Walker:
    """An evaluation of jaxprs with rules.

    Args:
      rules: by primitive, what computes its equations.
      of_loops: what evaluates the bodies of loops; None where it is the same.
      fusions: function from a jaxpr to the equations that are computed as one, whatever the rules.
    """

    rules: Mapping[Primitive, Rule]
    of_loops: Walker | None = None
    fusions: Fusions | None = None
    _rebuilt: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict, repr=False)
    _touched: dict[int, tuple[Any, bool]] = dataclasses.field(default_factory=dict, repr=False)

    def evaluate(self, jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
        """The results of a jaxpr for some arguments, with every equation for which there is a rule computed by it."""
        jaxpr = opened(jaxpr)
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        fusions = {} if self.fusions is None else self.fusions(jaxpr)
        for number, equation in enumerate(jaxpr.eqns):
            fusion = fusions.get(number)
            if fusion is None and number in fusions:
                continue
            with in_place_of(fusion.equation if fusion else equation), equation.ctx.manager:
                if fusion:
                    results: Sequence[Any] = [fusion.compute([read(atom) for atom in fusion.inputs])]
                else:
                    results = self._results(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _results(self, equation: JaxprEqn, operands: list[Any]) -> Sequence[Any]:
        rule = self.rules.get(equation.primitive)
        results = None if rule is None else rule(equation, operands)
        if results is None:
            descend = _descent(equation.primitive) if held_jaxprs(equation) else None
            if descend is None or not self.touches(equation):
                return bind_as_it_was(equation, operands)
            results = descend(self, equation, operands)
        return results

    def touches(self, equation: JaxprEqn) -> bool:
        """Whether there is a rule for an equation, or in a jaxpr that it holds, at any depth.

        The backward function of a custom derivative is not known before it is traced, so it always counts.
        """
        if equation.primitive in self.rules or equation.primitive is lax_primitives.custom_vjp_call_p:
            return True
        return any(map(self._has_rules, held_jaxprs(equation)))

    def _has_rules(self, jaxpr: Any) -> bool:
        jaxpr = opened(jaxpr)
        if id(jaxpr) not in self._touched:
            found = any(map(self.touches, jaxpr.eqns))
            self._touched[id(jaxpr)] = jaxpr, found  # the jaxpr too, so that its id stays its own
        return self._touched[id(jaxpr)][1]

    def rebuilt(self, jaxpr: Any) -> Any:
        """A closed jaxpr with the rules applied: the same one each time it is met, so that it is lowered once."""
        if id(jaxpr) not in self._rebuilt:
            run = partial(self.evaluate, jaxpr, jaxpr.consts)
            closed = jax.make_jaxpr(run)(*(variable.aval for variable in opened(jaxpr).invars))
            self._rebuilt[id(jaxpr)] = jaxpr, closed
        return self._rebuilt[id(jaxpr)][1]

    def rebuilt_around(self, jaxpr: Any, known: Mapping[int, Any]) -> Any:
        """A closed jaxpr with the rules applied that holds the values of some of its arguments, which it ignores."""

        def run(*args: Any) -> list[Any]:
            return self.evaluate(jaxpr, jaxpr.consts, *(known.get(index, arg) for index, arg in enumerate(args)))

        return jax.make_jaxpr(run)(*(variable.aval for variable in opened(jaxpr).invars))

    def rewritten(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f, which is traced at each call, with the rules applied; arguments and results are pytrees."""

        def run(*args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            # Zeros of integers' derivatives are no arrays that could be traced.
            arrays = [index for index, leaf in enumerate(leaves) if not _is_float0(leaf)]
            results: list[tuple[Any, list[bool]]] = []

            def flat(*values: Any) -> list[Any]:
                given = dict(zip(arrays, values, strict=True))
                merged = [given.get(index, leaf) for index, leaf in enumerate(leaves)]
                out, out_structure = jax.tree.flatten(f(*jax.tree.unflatten(structure, merged)))
                results.append((out_structure, [_is_float0(value) for value in out]))
                return [value for value in out if not _is_float0(value)]

            operands = [leaves[index] for index in arrays]
            closed = jax.make_jaxpr(flat)(*operands)
            values = iter(self.evaluate(closed, closed.consts, *operands))
            out_structure, zeros = results[-1]
            # `jax.custom_vjp`, which alone gives such zeros here, takes None for them.
            return jax.tree.unflatten(out_structure, [None if zero else next(values) for zero in zeros])

        return run


def _is_float0(value: Any) -> bool:
    return getattr(value, "dtype", None) == jax.dtypes.float0


def bind_as_it_was(equation: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation, bound with its own parameters."""
    results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


# Descents: how an equation that holds jaxprs is bound with these rewritten.


def _bind_rebuilt(*names: str) -> Callable[[Walker, JaxprEqn, list[Any]], list[Any]]:
    """For primitives that hold closed jaxprs under these names, one or several under each."""

    def descend(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
        params = dict(equation.primitive.get_bind_params(equation.params))
        for name in names:
            held = params[name]
            params[name] = tuple(map(walker.rebuilt, held)) if isinstance(held, tuple) else walker.rebuilt(held)
        return equation.primitive.bind(*operands, **params)

    return descend


def _into_jit(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    # From jax 0.12 on a function that `jax.jit` took gets what it closes over as operands, where a rule could not tell
    # a kernel that is known from one that is an argument.
    known = {index: value for index, value in enumerate(operands) if _is_known_array(value)}
    if not known:
        return _bind_rebuilt("jaxpr")(walker, equation, operands)
    params = dict(equation.primitive.get_bind_params(equation.params))
    params["jaxpr"] = walker.rebuilt_around(params["jaxpr"], known)
    # Zeros of the same type, so that the program holds each value once.
    ignored = [jnp.zeros_like(value) if index in known else value for index, value in enumerate(operands)]
    return equation.primitive.bind(*ignored, **params)


def _is_known_array(value: Any) -> bool:
    if isinstance(value, jax.core.Tracer) or getattr(value, "ndim", 0) == 0:
        return False
    return jnp.issubdtype(value.dtype, jnp.inexact)


def _into_loop(*names: str) -> Callable[[Walker, JaxprEqn, list[Any]], list[Any]]:
    """For loops that hold closed jaxprs under these names."""
    descend = _bind_rebuilt(*names)
    return lambda walker, equation, operands: descend(walker.of_loops or walker, equation, operands)


def _inlined(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    (jaxpr,) = held_jaxprs(equation)
    return walker.evaluate(jaxpr, getattr(jaxpr, "consts", ()), *operands)


def _into_remat(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    # It holds an open jaxpr, and `differentiated` must stay as it is, so `jax.checkpoint` cannot make it again. New
    # constants become operands.
    jaxpr = equation.params["jaxpr"]
    avals = [variable.aval for variable in jaxpr.invars]
    closed = jax.make_jaxpr(partial(walker.evaluate, jaxpr, ()))(*avals)
    consts = closed.consts
    if consts:
        closed = jax.make_jaxpr(lambda consts, *args: jax.core.eval_jaxpr(opened(closed), consts, *args))(
            consts, *avals
        )
    return equation.primitive.bind(*consts, *operands, **{**equation.params, "jaxpr": opened(closed)})


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
class _Call:
    """A call of a function with custom derivatives.

    What the function closes over comes first among the operands. It has no derivative, and must not be given one. JAX
    loses count of it where a call is traced a second time, so every value that is known counts as closed over too.

    Args:
      equation: the call.
      known: operands that are no tracers, by position; the others are the call's arguments here.
    """

    equation: JaxprEqn
    known: dict[int, Any]

    @property
    def places(self) -> list[int]:
        """Positions of the arguments among the operands."""
        return [index for index in range(len(self.equation.invars)) if index not in self.known]

    def operands(self, args: Sequence[Any]) -> list[Any]:
        """The operands for some arguments."""
        given = {**self.known, **dict(zip(self.places, args, strict=True))}
        return [given[index] for index in range(len(given))]

    def split(self, args: Sequence[Any]) -> tuple[Callable[..., list[Any]], list[Any]]:
        """The call as it was as a function of the arguments that have a derivative, and these."""
        varied = [place >= self.equation.params["num_consts"] for place in self.places]

        def original(*variables: Any) -> list[Any]:
            values = iter(variables)
            merged = [next(values) if varies else arg for arg, varies in zip(args, varied, strict=True)]
            return bind_as_it_was(self.equation, self.operands(merged))

        return original, [arg for arg, varies in zip(args, varied, strict=True) if varies]


def _into_custom(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    known = {index: value for index, value in enumerate(operands) if not isinstance(value, jax.core.Tracer)}
    call, jaxpr = _Call(equation, known), equation.params["call_jaxpr"]

    def rewritten(*args: Any) -> list[Any]:
        return walker.evaluate(jaxpr, jaxpr.consts, *call.operands(args))

    def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        original, variables = call.split(primals)
        return jax.jvp(original, variables, call.split(tangents)[1])

    def forward(*args: Any) -> Any:
        original, variables = call.split(args)
        return jax.vjp(original, *variables)

    def backward(vjp: Callable[..., Any], cotangents: Any) -> Any:
        fixed = len(call.places) - sum(place >= equation.params["num_consts"] for place in call.places)
        return (*(None,) * fixed, *vjp(cotangents))

    # The user's rules are kept: each is traced through the call as it was, and rewritten then.
    function: Any
    if equation.primitive is lax_primitives.custom_jvp_call_p:
        function = jax.custom_jvp(rewritten)
        function.defjvp(walker.rewritten(jvp))
    else:
        function = jax.custom_vjp(rewritten)
        function.defvjp(walker.rewritten(forward), walker.rewritten(backward))
    return function(*(operands[place] for place in call.places))


def _into_custom_vmap(walker: Walker, equation: JaxprEqn, operands: list[Any]) -> list[Any]:
    call = equation.params["call"]
    mapped = custom_vmap(partial(walker.evaluate, call, call.consts))

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *args: Any) -> tuple[list[Any], list[bool]]:
        # The user's rule is traced through the call as it was, and rewritten then.
        axes = [0 if each else None for each in batched]
        original = jax.vmap(lambda *args: bind_as_it_was(equation, args), axes, axis_size=size)
        results = walker.rewritten(original)(*args)
        return results, [True] * len(results)

    return list(mapped(*operands))


_DESCENTS: dict[Primitive, Callable[[Walker, JaxprEqn, list[Any]], list[Any]]] = {
    lax_primitives.jit_p: _into_jit,
    lax_primitives.scan_p: _into_loop("jaxpr"),
    lax_primitives.while_p: _into_loop("cond_jaxpr", "body_jaxpr"),
    lax_primitives.cond_p: _bind_rebuilt("branches"),
    lax_primitives.closed_call_p: _inlined,
    fused_conv_p: _inlined,
    lax_primitives.remat_p: _into_remat,
    lax_primitives.custom_jvp_call_p: _into_custom,
    lax_primitives.custom_vjp_call_p: _into_custom,
}


def _descent(primitive: Primitive) -> Callable[[Walker, JaxprEqn, list[Any]], list[Any]] | None:
    if primitive in _DESCENTS:
        return _DESCENTS[primitive]
    if primitive is shard_map_primitive():
        return _into_shard_map
    return _into_custom_vmap if primitive is custom_vmap_primitive() else None


def is_entered(primitive: Primitive) -> bool:
    """Whether the walker goes into the jaxprs that equations of a primitive hold."""
    return _descent(primitive) is not None
