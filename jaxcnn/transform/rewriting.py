"""The rules of `accelerate`: convolutions and pools of lax and of jaxcnn as jaxcnn's primitives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from jax.extend.core import JaxprEqn, Primitive
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.lowering import choice
from jaxcnn.primitives import conv_p
from jaxcnn.transform.convolutions import convolution
from jaxcnn.transform.interpreter import Rule, Walker
from jaxcnn.transform.windows import POOLS, bind_pool, pool


def _convolution_rule(
    method: str, kernel_waits: bool, equation: JaxprEqn, operands: Sequence[Any]
) -> Sequence[Any] | None:
    found = convolution(equation)
    if found is None:
        return None
    # What the user asked for in a call of jaxcnn's own stands; a method that cannot compute this one leaves it to the
    # automatic choice.
    asked = found.method
    if asked == "auto" and method != "auto" and choice.METHODS[method].supports(found.spec) is None:
        asked = method
    return [found.bind(operands[0], operands[1], asked, kernel_waits)]


def _pool_rule(equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    found = pool(equation)
    return None if found is None else [bind_pool(equation, found, operands)]


def walker(method: str) -> Walker:
    """A walker that computes every convolution by a method if it can, and else by jaxcnn's choice."""

    def rules(kernel_waits: bool) -> dict[Primitive, Rule]:
        rule = partial(_convolution_rule, method, kernel_waits)
        return {conv_general_dilated_p: rule, conv_p: rule, **dict.fromkeys(POOLS, _pool_rule)}

    # In a loop XLA computes once, before it, what depends on a kernel alone that stays the same.
    return Walker(rules(kernel_waits=True), of_loops=Walker(rules(kernel_waits=False)))
