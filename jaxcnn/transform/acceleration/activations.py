"""The activations that equations compute: expressions of equations in a normal form, and a table of activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxcnn.transform.jaxpr.equations import CALLS, avals, inner_jaxpr, sub_jaxprs

Expression = Any
"""A number, `X`, or a tuple of an operation's name and its operands. Operands of commutative operations are sorted."""

X = "x"
"""The input of an activation in expressions."""
_ALPHA = "alpha"
"""The slope of a leaky ReLU in expressions of the table."""
_COMMUTATIVE_NAMES = {"add", "mul", "max", "min"}
_ELEMENTWISE_NAMES = {
    *_COMMUTATIVE_NAMES,
    *("sub", "div", "neg", "integer_pow", "clamp", "select_n", "ge", "gt"),
    *("logistic", "tanh", "erf", "erfc"),
}
_IDENTITY_NAMES = {"copy", "copy_p", "stop_gradient"}


def _float32(value: Any) -> float:
    return float(np.float32(value))


def _sort_key(operand: Expression) -> tuple[int, str]:
    if isinstance(operand, tuple):
        return 2, repr(operand)
    return int(operand == X), repr(operand)


def _operation(name: str, *operands: Expression) -> Expression:
    """Returns the expression of an operation, with the operands of a commutative one sorted."""
    return (name, *(sorted(operands, key=_sort_key) if name in _COMMUTATIVE_NAMES else operands))


def expression(equation: JaxprEqn, operands: Sequence[Expression | None]) -> Expression | None:
    """Returns the expression of an equation's result from those of its operands.

    None if an operand has no expression, or if the operation is none of those of which activations consist.
    """
    if any(operand is None for operand in operands) or len(equation.outvars) != 1:
        return None
    name, params = equation.primitive.name, equation.params
    if equation.primitive in CALLS:
        return _expression_of_call(equation, operands)
    if name == "convert_element_type":
        same = isinstance(operands[0], float) or avals(equation)[0].dtype == params["new_dtype"]
        return operands[0] if same and params["new_dtype"] == np.float32 else None
    if name == "broadcast_in_dim":
        return operands[0] if isinstance(operands[0], float) else None
    if name in _IDENTITY_NAMES:
        return operands[0]
    if name == "square":
        return _operation("integer_pow", operands[0], 2.0)
    if name not in _ELEMENTWISE_NAMES:
        return None
    power = [_float32(params["y"])] if name == "integer_pow" else []
    return _operation(name, *operands, *power)


def operand_of(atom: Any, expressions: dict[Any, Expression]) -> Expression | None:
    """Returns the expression of an equation's operand; None if the operand has none."""
    if isinstance(atom, Literal):
        value = np.asarray(atom.val)
        return _float32(value) if value.ndim == 0 and value.dtype.kind in "if" else None
    return expressions.get(atom)


def _expression_of_call(equation: JaxprEqn, operands: Sequence[Expression]) -> Expression | None:
    """Returns the expression of the result of a jitted function; None if it has none."""
    (closed,) = sub_jaxprs(equation)
    jaxpr = inner_jaxpr(closed)
    if jaxpr.constvars:
        return None
    expressions = dict(zip(jaxpr.invars, operands, strict=True))
    for inner in jaxpr.eqns:
        result = expression(inner, [operand_of(atom, expressions) for atom in inner.invars])
        if result is None:
            return None
        expressions[inner.outvars[0]] = result
    return operand_of(jaxpr.outvars[0], expressions)


def _relu6(value: Expression) -> Expression:
    return _operation("min", 6.0, _operation("max", 0.0, value))


def _gelu(value: Expression) -> Expression:
    cube = _operation("mul", _float32(0.044715), _operation("integer_pow", value, 3.0))
    inner = _operation("mul", _float32(np.sqrt(2 / np.pi)), _operation("add", value, cube))
    return _operation("mul", value, _operation("mul", 0.5, _operation("add", 1.0, _operation("tanh", inner))))


_RELU6_OF_X_PLUS_3 = _relu6(_operation("add", 3.0, X))
_HALF_OF_X = _operation("mul", 0.5, X)
_ALPHA_TIMES_X = _operation("mul", _ALPHA, X)
_HARD_SIGMOID_FORMS = [
    _operation("div", _RELU6_OF_X_PLUS_3, 6.0),
    _operation("mul", _float32(1 / 6), _RELU6_OF_X_PLUS_3),
]
_ONE_PLUS_ERF_FORMS = [
    _operation("add", 1.0, _operation("erf", scaled))
    for scaled in (_operation("div", X, _float32(np.sqrt(2))), _operation("mul", X, _float32(np.sqrt(0.5))))
]

_FORMS: list[tuple[Expression, str]] = [
    (_operation("max", 0.0, X), "relu"),
    (_relu6(X), "relu6"),
    (_operation("max", 0.0, _operation("min", 6.0, X)), "relu6"),
    (_operation("clamp", 0.0, X, 6.0), "relu6"),
    (_operation("select_n", _operation("ge", X, 0.0), _ALPHA_TIMES_X, X), "leaky_relu"),
    (_operation("select_n", _operation("gt", X, 0.0), _ALPHA_TIMES_X, X), "leaky_relu"),
    (_operation("max", X, _ALPHA_TIMES_X), "leaky_relu"),
    (_operation("mul", X, _operation("logistic", X)), "silu"),
    *((form, "hard_sigmoid") for form in _HARD_SIGMOID_FORMS),
    *((_operation("mul", X, form), "hard_swish") for form in _HARD_SIGMOID_FORMS),
    (_operation("div", _operation("mul", X, _RELU6_OF_X_PLUS_3), 6.0), "hard_swish"),
    (_gelu(X), "gelu"),
    (
        _operation(
            "mul", _HALF_OF_X, _operation("erfc", _operation("mul", _operation("neg", X), _float32(np.sqrt(0.5))))
        ),
        "gelu_exact",
    ),
    *((_operation("mul", _HALF_OF_X, form), "gelu_exact") for form in _ONE_PLUS_ERF_FORMS),
    *((_operation("mul", 0.5, _operation("mul", X, form)), "gelu_exact") for form in _ONE_PLUS_ERF_FORMS),
    (_operation("logistic", X), "sigmoid"),
    (_operation("tanh", X), "tanh"),
]


def activation(form: Expression) -> tuple[str, float] | None:
    """Returns the name and the alpha, as in `Epilogue`, of the activation that an expression of `X` computes.

    None if the expression matches no form of the table.
    """
    for pattern, name in _FORMS:
        numbers: list[float] = []
        if _matches(pattern, form, numbers):
            alpha = numbers[0] if numbers else 0.0
            # max(x, alpha * x) is a leaky ReLU only for an alpha up to 1.
            return (name, alpha) if pattern[0] != "max" or not numbers or 0 < alpha <= 1 else None
    return None


def _matches(pattern: Expression, form: Expression, numbers: list[float]) -> bool:
    """Returns whether a form matches a pattern, and appends the number in place of alpha to `numbers`."""
    if pattern == _ALPHA and isinstance(form, float):
        numbers.append(form)
        return True
    if not (isinstance(pattern, tuple) and isinstance(form, tuple)):
        return bool(pattern == form)
    return len(pattern) == len(form) and all(_matches(*pair, numbers) for pair in zip(pattern, form, strict=True))
