"""The activations that equations compute, however they are spelled: expressions in one form, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxcnn.transform.jaxpr.equations import CALLS, avals, inner_jaxpr, sub_jaxprs

Expression = Any
"""A number, `X`, or a tuple of an operation's name and its operands; those of a sum or a product are sorted."""

X = "x"
_ALPHA = "alpha"
_COMMUTATIVE = {"add", "mul", "max", "min"}
_ELEMENTWISE = {
    *_COMMUTATIVE,
    *("sub", "div", "neg", "integer_pow", "clamp", "select_n", "ge", "gt"),
    *("logistic", "tanh", "erf", "erfc"),
}
_UNCHANGED = {"copy", "copy_p", "stop_gradient"}


def _number(value: Any) -> float:
    return float(np.float32(value))


def _rank(operand: Expression) -> tuple[int, str]:
    if isinstance(operand, tuple):
        return 2, repr(operand)
    return int(operand == X), repr(operand)


def _made(name: str, *operands: Expression) -> Expression:
    return (name, *(sorted(operands, key=_rank) if name in _COMMUTATIVE else operands))


def expression(equation: JaxprEqn, operands: Sequence[Expression | None]) -> Expression | None:
    """Returns the expression of an equation's result from those of its operands; None if it has none."""
    if any(operand is None for operand in operands) or len(equation.outvars) != 1:
        return None
    name, params = equation.primitive.name, equation.params
    if equation.primitive in CALLS:
        return _inlined(equation, operands)
    if name == "convert_element_type":
        same = isinstance(operands[0], float) or avals(equation)[0].dtype == params["new_dtype"]
        return operands[0] if same and params["new_dtype"] == np.float32 else None
    if name == "broadcast_in_dim":
        return operands[0] if isinstance(operands[0], float) else None
    if name in _UNCHANGED:
        return operands[0]
    if name == "square":
        return _made("integer_pow", operands[0], 2.0)
    if name not in _ELEMENTWISE:
        return None
    power = [_number(params["y"])] if name == "integer_pow" else []
    return _made(name, *operands, *power)


def operand_of(atom: Any, known: dict[Any, Expression]) -> Expression | None:
    """Returns the expression of an equation's operand; None if it has none."""
    if isinstance(atom, Literal):
        value = np.asarray(atom.val)
        return _number(value) if value.ndim == 0 and value.dtype.kind in "if" else None
    return known.get(atom)


def _inlined(equation: JaxprEqn, operands: Sequence[Expression]) -> Expression | None:
    (held,) = sub_jaxprs(equation)
    jaxpr = inner_jaxpr(held)
    if jaxpr.constvars:
        return None
    known = dict(zip(jaxpr.invars, operands, strict=True))
    for inner in jaxpr.eqns:
        result = expression(inner, [operand_of(atom, known) for atom in inner.invars])
        if result is None:
            return None
        known[inner.outvars[0]] = result
    return operand_of(jaxpr.outvars[0], known)


def _relu6(value: Expression) -> Expression:
    return _made("min", 6.0, _made("max", 0.0, value))


def _gelu(value: Expression) -> Expression:
    cube = _made("mul", _number(0.044715), _made("integer_pow", value, 3.0))
    inner = _made("mul", _number(np.sqrt(2 / np.pi)), _made("add", value, cube))
    return _made("mul", value, _made("mul", 0.5, _made("add", 1.0, _made("tanh", inner))))


_SHIFTED = _relu6(_made("add", 3.0, X))
_HALF = _made("mul", 0.5, X)
_LEAK = _made("mul", _ALPHA, X)
_HARD_SIGMOIDS = [_made("div", _SHIFTED, 6.0), _made("mul", _number(1 / 6), _SHIFTED)]

_FORMS: list[tuple[Expression, str]] = [
    (_made("max", 0.0, X), "relu"),
    (_relu6(X), "relu6"),
    (_made("max", 0.0, _made("min", 6.0, X)), "relu6"),
    (_made("clamp", 0.0, X, 6.0), "relu6"),
    (_made("select_n", _made("ge", X, 0.0), _LEAK, X), "leaky_relu"),
    (_made("select_n", _made("gt", X, 0.0), _LEAK, X), "leaky_relu"),
    (_made("max", X, _LEAK), "leaky_relu"),
    (_made("mul", X, _made("logistic", X)), "silu"),
    *((form, "hard_sigmoid") for form in _HARD_SIGMOIDS),
    *((_made("mul", X, form), "hard_swish") for form in _HARD_SIGMOIDS),
    (_made("div", _made("mul", X, _SHIFTED), 6.0), "hard_swish"),
    (_gelu(X), "gelu"),
    (_made("mul", _HALF, _made("erfc", _made("mul", _made("neg", X), _number(np.sqrt(0.5))))), "gelu_exact"),
    (_made("mul", _HALF, _made("add", 1.0, _made("erf", _made("div", X, _number(np.sqrt(2)))))), "gelu_exact"),
    (_made("mul", _HALF, _made("add", 1.0, _made("erf", _made("mul", X, _number(np.sqrt(0.5)))))), "gelu_exact"),
    (_made("logistic", X), "sigmoid"),
    (_made("tanh", X), "tanh"),
]


def activation(form: Expression) -> tuple[str, float] | None:
    """Returns the name in an epilogue of the activation that an expression of `X` is, and its alpha; None if none."""
    for known, name in _FORMS:
        numbers: list[float] = []
        if _same(known, form, numbers):
            alpha = numbers[0] if numbers else 0.0
            # The larger of x and alpha * x is the latter for negative values only with an alpha up to 1.
            return (name, alpha) if known[0] != "max" or not numbers or 0 < alpha <= 1 else None
    return None


def _same(known: Expression, form: Expression, numbers: list[float]) -> bool:
    """Returns whether a form is the known one, with a number for alpha, which is noted."""
    if known == _ALPHA and isinstance(form, float):
        numbers.append(form)
        return True
    if not (isinstance(known, tuple) and isinstance(form, tuple)):
        return bool(known == form)
    return len(known) == len(form) and all(_same(*pair, numbers) for pair in zip(known, form, strict=True))
