"""The answers of `jax.checkpoint`'s policies about jaxcnn's primitives: those that they give about the ones of lax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import Offloadable, Recompute, Saveable
from jax.extend.core import JaxprEqn, Primitive, Var
from jax.extend.core.primitives import closed_call_p
from jax.interpreters import partial_eval

Policy = Callable[..., Any]

_SPACES = {"device": jax.memory.Space.Device}
"""Memory spaces by the name that a policy gives; every other name is the host's."""


def ask_about_lax(primitive: Primitive, lax_equation: Callable[[JaxprEqn], JaxprEqn | None]) -> None:
    """Defines which results of a primitive `jax.checkpoint` keeps: those that its policy keeps of lax's equation.

    Policies recognize operations by their primitive, as `jax.checkpoint_policies.dots_saveable` does.

    Args:
      primitive: primitive with one result.
      lax_equation: function from an equation of the primitive to one of lax that stands for it, or to None.
    """
    partial_eval.partial_eval_jaxpr_custom_rules[primitive] = partial(_split_by_policy, lax_equation)


def _split_by_policy(
    lax_equation: Callable[[JaxprEqn], JaxprEqn | None],
    policy: Policy,
    unknown: Sequence[bool],
    instantiated: Sequence[bool],
    equation: JaxprEqn,
) -> tuple[JaxprEqn | None, JaxprEqn | None, list[bool], list[bool], list[Var]]:
    """Returns an equation's parts in the forward and the backward pass, as JAX's rules for partial evaluation do.

    Args:
      lax_equation: function as in `ask_about_lax`.
      policy: policy of the checkpoint.
      unknown: flags of the operands that only the backward pass knows.
      instantiated: flags of the operands that the backward pass has.
      equation: equation of a primitive with one result.

    Returns:
      The equation of the forward pass or None, that of the backward pass or None, whether the result is unknown,
      whether the backward pass has it, and the variables that the forward pass has to keep.
    """
    residuals = [
        atom
        for atom, is_instantiated in zip(equation.invars, instantiated, strict=True)
        if isinstance(atom, Var) and not is_instantiated
    ]
    if any(unknown):
        return None, equation, [True], [True], residuals
    described = lax_equation(equation) or equation
    answer = policy(described.primitive, *(atom.aval for atom in described.invars), **described.params)
    if answer is True or isinstance(answer, type(Saveable)):
        return equation, None, [False], [False], []
    if answer is False or isinstance(answer, type(Recompute)):
        return equation, equation, [False], [True], residuals
    if not isinstance(answer, Offloadable):
        raise TypeError(
            "a policy of jax.checkpoint must return a bool, or Recompute, Saveable or Offloadable(src, dst) of "
            f"jax.ad_checkpoint, got {answer!r}"
        )
    return _offload(equation, answer)


def _offload(equation: JaxprEqn, places: Offloadable) -> tuple[JaxprEqn, JaxprEqn, list[bool], list[bool], list[Var]]:
    """Returns what `_split_by_policy` does for a result that lies in another memory between the passes."""
    host = jax.memory.Space.Host

    def compute_and_store(*operands: Any) -> tuple[Any, Any]:
        result = equation.primitive.bind(*operands, **equation.params)
        return result, jax.device_put(result, _SPACES.get(places.dst, host))

    computed = jax.make_jaxpr(compute_and_store)(*(atom.aval for atom in equation.invars))
    stored = computed.jaxpr.outvars[1]
    loaded = jax.make_jaxpr(lambda value: jax.device_put(value, _SPACES.get(places.src, host)))(stored.aval)
    forward = equation.replace(
        primitive=closed_call_p, params={"call_jaxpr": computed}, outvars=[*equation.outvars, stored]
    )
    backward = loaded.eqns[0].replace(invars=[stored], outvars=equation.outvars)
    return forward, backward, [False], [True], [stored]
