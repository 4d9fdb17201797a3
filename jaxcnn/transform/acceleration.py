"""`accelerate`: any JAX function, with its convolutions and pools computed by jaxcnn's choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.lowering import choice
from jaxcnn.primitives import conv_p
from jaxcnn.transform.arguments import Outputs, Signature, split
from jaxcnn.transform.convolutions import convolution
from jaxcnn.transform.interpreter import Walker
from jaxcnn.transform.windows import POOLS, bind_pool, pool

P = ParamSpec("P")
T = TypeVar("T")

_FUNCTIONS = 256
"""Most sets of arguments that are not arrays for which a function keeps its programs."""


def _convolution_rule(method: str, equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    found = convolution(equation)
    if found is None:
        return None
    # What the user asked for in a call of jaxcnn's own stands; a method that cannot compute this one leaves it to the
    # automatic choice.
    asked = found.method
    if asked == "auto" and method != "auto" and choice.METHODS[method].supports(found.spec) is None:
        asked = method
    return [found.bind(operands[0], operands[1], asked)]


def _pool_rule(equation: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any] | None:
    found = pool(equation)
    return None if found is None else [bind_pool(equation, found, operands)]


def _walker(method: str) -> Walker:
    rule = partial(_convolution_rule, method)
    return Walker({conv_general_dilated_p: rule, conv_p: rule, **dict.fromkeys(POOLS, _pool_rule)})


def accelerate(f: Callable[P, T], *, method: str = "auto") -> Callable[P, T]:
    """The same function, with every convolution, pool and pool gradient in it computed by jaxcnn's choice."""
    choice.check_method("accelerate", method)
    if not callable(f):
        raise TypeError(f"accelerate: f must be a function, got {f!r}")

    @lru_cache(maxsize=_FUNCTIONS)
    def programs(signature: Signature) -> tuple[Callable[..., Outputs], Callable[..., Outputs]]:
        traced = jax.make_jaxpr(signature.flat(f), return_shape=True)

        def inlined(*arrays: Any) -> Outputs:
            jaxpr, shapes = traced(*arrays)
            results = _walker(method).evaluate(jaxpr, jaxpr.consts, *arrays)
            return jax.tree.unflatten(jax.tree.structure(shapes), results)

        return inlined, jax.jit(inlined)

    @wraps(f, updated=())
    def accelerated(*args: P.args, **kwargs: P.kwargs) -> T:
        signature, arrays = split("accelerate", args, kwargs)
        inlined, compiled = programs(signature)
        inside = any(isinstance(array, jax.core.Tracer) for array in arrays)
        return (inlined if inside else compiled)(*arrays).results()

    return accelerated
