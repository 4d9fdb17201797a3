"""The rules of `accelerate`: convolutions and pools of lax and of jaxcnn as jaxcnn's primitives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core.primitives import conv_general_dilated_p
from jax.interpreters import batching

from jaxcnn import epilogue
from jaxcnn.lowering import choice
from jaxcnn.primitives import conv_p
from jaxcnn.transform.acceleration.epilogues import Group, fusible_groups
from jaxcnn.transform.jaxpr.convolutions import Convolution, as_convolution
from jaxcnn.transform.jaxpr.pools import POOLS, as_pool, bind_pool
from jaxcnn.transform.jaxpr.walker import Fusion, Rule, Walker


def _method_for(conv: Convolution, method: str) -> str:
    """Returns the method for a convolution inside `accelerate(..., method=method)`.

    The method that the user named in a call of jaxcnn stands. A method of `accelerate` that does not support the
    convolution gives way to the automatic choice.
    """
    if conv.method == "auto" and method != "auto" and choice.METHODS[method].refusal(conv.spec) is None:
        return method
    return conv.method


def _convolution_rule(method: str, equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    conv = as_convolution(equation, "compute")
    if conv is None:
        return None
    return [conv.bind(operands[0], operands[1], _method_for(conv, method))]


def _pool_rule(equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    pool = as_pool(equation)
    return None if pool is None else [bind_pool(equation, pool, operands)]


def _fusions(method: str, jaxpr: Any) -> Mapping[int, Fusion | None]:
    fusions: dict[int, Fusion | None] = {}
    for group in fusible_groups(jaxpr):
        fusions.update(dict.fromkeys(group.members))
        fusions[group.last] = _fusion(group, _method_for(group.convolution, method))
    return fusions


def _fusion(group: Group, method: str) -> Fusion:
    return Fusion(group.equation, group.inputs, lambda values: group.bind(values, method))


def walker(method: str) -> Walker:
    """Returns a walker that computes every convolution by a method that supports it, else by jaxcnn's choice."""

    rule = partial(_convolution_rule, method)
    rules: dict[Primitive, Rule] = {conv_general_dilated_p: rule, conv_p: rule, **dict.fromkeys(POOLS, _pool_rule)}
    return Walker(rules, fusions=partial(_fusions, method) if epilogue.has_fusing_methods() else None)


def _batch(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[jax.Array, int]:
    """Computes a batch of a fused convolution, fused again."""
    closed = epilogue.batch_jaxpr(operands, dims, **params)
    (result,) = Walker({}, fusions=partial(_fusions, "auto")).evaluate(closed, closed.consts, *operands)
    return result, 0


batching.primitive_batchers[epilogue.fused_conv_p] = _batch
