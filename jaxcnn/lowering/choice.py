"""Which method computes a convolution: the registry of methods and the choice among them."""

from __future__ import annotations

import dataclasses
from types import ModuleType

from jaxcnn.lowering import direct
from jaxcnn.lowering.spec import ConvSpec

METHODS: dict[str, ModuleType] = {direct.NAME: direct}
"""The methods by name: each a module with `supports(spec)` and `lower(lhs, rhs, spec, sharding)`."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The method that computes a convolution, and a sentence that says why."""

    method: str
    reason: str


def check_method(operation: str, method: str) -> str:
    """Refuses a method that does not exist."""
    if method != "auto" and method not in METHODS:
        known = ", ".join(repr(name) for name in ("auto", *METHODS))
        raise ValueError(f"{operation}: method must be one of {known}, got {method!r}")
    return method


def choose(spec: ConvSpec, method: str) -> Choice:
    """The method to compute `spec` with when the user asked for `method`.

    Raises:
      ValueError: the method asked for does not support this convolution.
    """
    if method == "auto":
        return Choice(direct.NAME, "direct is the only method")
    unsupported = METHODS[method].supports(spec)
    if unsupported is not None:
        raise ValueError(f"conv: method {method!r} does not support this convolution: {unsupported}")
    return Choice(method, "asked for")
