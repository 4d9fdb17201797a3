"""`fused_conv_p`: a convolution and the operations after it, which a method may apply before it stores its result.

The equation holds its own definition, a jaxpr of the convolution and the operations that follow. Derivatives and
batching are those of this jaxpr, and so are the values where no method takes the epilogue over. A `Recipe` says what
the operations amount to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Primitive, jaxpr_as_fun
from jax.interpreters import ad, mlir

from jaxcnn import native
from jaxcnn._compat import is_partitioned, lower_on_one_device
from jaxcnn.geometry import Ints
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import ConvSpec
from jaxcnn.primitives import conv_p, lax_equation
from jaxcnn.rematerialization import ask_about_lax

ACTIVATIONS = (
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "silu",
    "hard_sigmoid",
    "hard_swish",
    "gelu",
    "gelu_exact",
    "sigmoid",
    "tanh",
)
"""Activations of an epilogue, as `jax.nn` names them; `"gelu"` is computed by tanh and `"gelu_exact"` by erf."""


def has_fusing_methods() -> bool:
    """Returns whether there is a method that applies epilogues; without one fusing gains nothing."""
    return native.is_available()


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """Describes the epilogue of a convolution: y = activation(conv(x, kernel) * scale[c] + bias[c] + residual).

    Args:
      has_scale: presence of a factor for each channel of the result.
      has_bias: presence of a term for each channel of the result.
      has_residual: presence of an array of the result's shape that is added.
      activation: name, one of `ACTIVATIONS`; all of them keep NaN.
      alpha: factor of negative values in `"leaky_relu"`.
    """

    has_scale: bool
    has_bias: bool
    has_residual: bool
    activation: str
    alpha: float


Move = tuple[Ints, Ints] | Ints
"""A reshape, as the shapes before and after it, or a transposition, as its permutation."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Makes an epilogue from the operands of a fused equation, other than the two of its convolution.

    Args:
      steps: pairs, in order, of an operation by channel (`"add"`, `"sub"`, `"rsub"`, `"mul"`, `"div"`) and its operand:
        a position as an int, or a number as a float. `"rsub"` is the operand minus the value.
      residual: position of the operand that is added whole, and the number of moves before it; or None.
      moves: reshapes and transpositions from the result of `conv_p` to that of the equation, in order.
      activation: name, as in `Epilogue`.
      alpha: number, as in `Epilogue`.
    """

    steps: tuple[tuple[str, int | float], ...]
    residual: tuple[int, int] | None
    moves: tuple[Move, ...]
    activation: str
    alpha: float

    def by_channel(self, operands: Sequence[jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
        """Returns the factor and the term of each channel in float32, each None if there is none.

        The shape is (C,), or (1,) for one number that holds for all channels.
        """
        scale, bias = None, None
        for name, which in self.steps:
            value = _vector(which if isinstance(which, float) else operands[which])
            if name == "add":
                bias = value if bias is None else bias + value
            elif name == "sub":
                bias = -value if bias is None else bias - value
            elif name == "rsub":
                scale = jnp.full(1, -1, np.float32) if scale is None else -scale
                bias = value if bias is None else value - bias
            else:
                factor = 1 / value if name == "div" else value
                scale = factor if scale is None else scale * factor
                bias = None if bias is None else bias * factor
        return scale, bias

    def residual_of(self, operands: Sequence[jax.Array]) -> jax.Array | None:
        """Returns the residual with the axes of the result of `conv_p`, or None."""
        if self.residual is None:
            return None
        position, count = self.residual
        value = operands[position]
        for move in self.moves[:count][::-1]:
            value = value.transpose(np.argsort(move)) if _is_permutation(move) else value.reshape(move[0])
        return value

    def arrange(self, value: jax.Array) -> jax.Array:
        """Returns a result of `conv_p` with the axes of the equation's."""
        for move in self.moves:
            value = value.transpose(move) if _is_permutation(move) else value.reshape(move[1])
        return value


def _is_permutation(move: Move) -> bool:
    return not isinstance(move[0], tuple)


def _vector(value: Any) -> jax.Array:
    return lax.convert_element_type(value, np.dtype(np.float32)).reshape(-1)


fused_conv_p = Primitive("jaxcnn_fused_conv")
"""Operands: the convolution's two, then those that `recipe` numbers. Parameters: `unfused`, a closed jaxpr of all
operands, and `recipe`."""


def convolution_in(unfused: Any) -> JaxprEqn:
    """Returns the equation of the convolution in the jaxpr of a fused equation."""
    return next(equation for equation in unfused.eqns if equation.primitive is conv_p)


def _separate(*operands: Any, unfused: Any, recipe: Recipe) -> Any:
    """Computes a fused equation operation by operation."""
    del recipe
    (result,) = jaxpr_as_fun(unfused)(*operands)
    return result


fused_conv_p.def_impl(_separate)


@fused_conv_p.def_abstract_eval
def _abstract(*operands: Any, unfused: Any, recipe: Recipe) -> Any:
    if list(operands) != list(unfused.in_avals):
        # In `shard_map` values may vary over the mesh that did not vary where the function was traced.
        unfused = jax.make_jaxpr(partial(_separate, unfused=unfused, recipe=recipe))(*operands)
    return unfused.out_avals[0]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[jax.Array, jax.Array]:
    varied = [place for place, tangent in enumerate(tangents) if not isinstance(tangent, ad.Zero)]
    values = list(primals)

    def run(*variables: Any) -> jax.Array:
        return _separate(*_with(values, varied, variables), **params)

    return jax.jvp(run, [values[place] for place in varied], [tangents[place] for place in varied])


ad.primitive_jvps[fused_conv_p] = _jvp


def _transpose(cotangent: Any, *operands: Any, **params: Any) -> list[Any]:
    linear = [place for place, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(operand.aval) if place in linear else None for place, operand in enumerate(operands)]

    def run(*variables: Any) -> jax.Array:
        return _separate(*_with(operands, linear, variables), **params)

    results = jax.linear_transpose(run, *(operands[place].aval for place in linear))(cotangent)
    return _with([None] * len(operands), linear, results)


ad.primitive_transposes[fused_conv_p] = _transpose


def _with(values: Sequence[Any], places: Sequence[int], replacements: Sequence[Any]) -> list[Any]:
    """Returns the values with others in some places."""
    replaced = dict(zip(places, replacements, strict=True))
    return [replaced.get(place, value) for place, value in enumerate(values)]


# What a policy decides about the convolution holds for the epilogue's result, which takes its place in memory.
ask_about_lax(fused_conv_p, lambda equation: lax_equation(convolution_in(equation.params["unfused"])))


def batch_jaxpr(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
    """Returns the closed jaxpr of a fused equation for a batch of operands, with the batch first in its result.

    The batching rule fuses the operations of this jaxpr again, and needs the search for epilogues. So the rule is in
    `transform/acceleration/rules.py`.
    """
    return jax.make_jaxpr(jax.vmap(partial(_separate, **params), tuple(dims)))(*operands)


mlir.register_lowering(fused_conv_p, mlir.lower_fun(_separate, multiple_results=False))


def _lower_on_cpu(context: mlir.LoweringRuleContext, *operands: Any, **params: Any) -> Any:
    exported = context.module_context.lowering_parameters.for_export or is_partitioned(context)
    fused = None if exported else _function_of_method(**params)
    run = partial(_separate, **params) if fused is None else fused
    rule = mlir.lower_fun(run, multiple_results=False)
    # The operations of `unfused` carry their shardings, so the separate form needs the types as they are.
    return rule(context, *operands) if fused is None else lower_on_one_device(rule, context, *operands)


mlir.register_lowering(fused_conv_p, _lower_on_cpu, platform="cpu")


def _function_of_method(unfused: Any, recipe: Recipe) -> Callable[..., jax.Array] | None:
    """Returns the function that computes a fused equation by its convolution's method; None if this has none."""
    equation = convolution_in(unfused)
    spec: ConvSpec = dataclasses.replace(equation.params["spec"], platform="cpu")
    module = choice.METHODS[choice.choose(spec, equation.params["method"], "cpu").method]
    names = [name for name, _ in recipe.steps]
    epilogue = Epilogue(
        has_scale=any(name in ("mul", "div", "rsub") for name in names),
        has_bias=any(name in ("add", "sub", "rsub") for name in names),
        has_residual=recipe.residual is not None,
        activation=recipe.activation,
        alpha=recipe.alpha,
    )
    if not hasattr(module, "lower_fused") or module.supports_fused(spec, epilogue) is not None:
        return None
    return partial(_lower_fused, module.lower_fused, spec, recipe, epilogue)


def _lower_fused(
    lower: Callable[..., jax.Array],
    spec: ConvSpec,
    recipe: Recipe,
    epilogue: Epilogue,
    lhs: jax.Array,
    rhs: jax.Array,
    *operands: jax.Array,
) -> jax.Array:
    scale, bias = recipe.by_channel(operands)
    return recipe.arrange(lower(lhs, rhs, scale, bias, recipe.residual_of(operands), spec, epilogue))
