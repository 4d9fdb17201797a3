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
from jaxcnn.transform.acceleration.epilogues import Group, groups
from jaxcnn.transform.jaxpr.convolutions import Convolution, as_convolution
from jaxcnn.transform.jaxpr.pools import POOLS, as_pool, bind_pool
from jaxcnn.transform.jaxpr.walker import Fusion, Rule, Walker


def _method_for(conv: Convolution, method: str) -> str:
    """Returns the method for a convolution, when `accelerate` was given one.

    What the user asked for in a call of jaxcnn's own stands; a method that cannot compute this one leaves it to the
    automatic choice.
    """
    if conv.method == "auto" and method != "auto" and choice.METHODS[method].supports(conv.spec) is None:
        return method
    return conv.method


def _convolution_rule(
    method: str, kernel_waits: bool, equation: JaxprEqn, operands: Sequence[Any]
) -> Sequence[Any] | None:
    conv = as_convolution(equation, "compute")
    if conv is None:
        return None
    return [conv.bind(operands[0], operands[1], _method_for(conv, method), kernel_waits)]


def _pool_rule(equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    window = as_pool(equation)
    return None if window is None else [bind_pool(equation, window, operands)]


def _fusions(method: str, kernel_waits: bool, jaxpr: Any) -> Mapping[int, Fusion | None]:
    fusions: dict[int, Fusion | None] = {}
    for group in groups(jaxpr):
        fusions.update(dict.fromkeys(group.members))
        fusions[group.last] = _fusion(group, _method_for(group.convolution, method), kernel_waits)
    return fusions


def _fusion(group: Group, method: str, kernel_waits: bool) -> Fusion:
    return Fusion(group.equation, group.inputs, lambda values: group.bind(values, method, kernel_waits))


def walker(method: str) -> Walker:
    """Returns a walker that computes every convolution by a method if it can, and else by jaxcnn's choice."""

    def walker_for(kernel_waits: bool, of_loops: Walker | None) -> Walker:
        rule = partial(_convolution_rule, method, kernel_waits)
        rules: dict[Primitive, Rule] = {conv_general_dilated_p: rule, conv_p: rule, **dict.fromkeys(POOLS, _pool_rule)}
        fusions = partial(_fusions, method, kernel_waits) if epilogue.fusing_enabled() else None
        return Walker(rules, of_loops, fusions)

    # In a loop XLA computes once, before it, what depends on a kernel alone that stays the same.
    return walker_for(True, walker_for(False, None))


def _batch(operands: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[jax.Array, int]:
    """Computes a batch of fused convolutions, which are fused again."""
    closed = epilogue.batched(operands, dims, **params)
    waits = epilogue.convolution_in(params["unfused"]).params["kernel_waits"]
    (result,) = Walker({}, fusions=partial(_fusions, "auto", waits)).evaluate(closed, closed.consts, *operands)
    return result, 0


batching.primitive_batchers[epilogue.fused_conv_p] = _batch
