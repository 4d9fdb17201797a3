"""Walks through jaxprs: every equation at any depth, by nothing of jaxcnn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yields every equation of a jaxpr, open or closed, in order, and after each those that it holds."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(value)


def equations_of(f: Any, *args: Any) -> list[Any]:
    """Returns every equation that a function binds, at any depth, in order."""
    return list(equations(jax.make_jaxpr(f)(*args)))


def primitives_of(f: Any, *args: Any) -> list[str]:
    """Returns the names of the primitives that a function binds, at any depth, in order."""
    return [str(equation.primitive) for equation in equations_of(f, *args)]
