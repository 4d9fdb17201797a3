"""Which method computes a convolution or a pool: the registry of methods and the choice among them."""

from __future__ import annotations

import dataclasses
from types import ModuleType

from jaxcnn.lowering import direct, matmul, shift, windows
from jaxcnn.lowering.spec import ConvSpec, PoolSpec

METHODS: dict[str, ModuleType] = {module.NAME: module for module in (direct, shift, matmul)}
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


def check_supported(method: str, spec: ConvSpec) -> None:
    """Refuses a method that was asked for and does not support this convolution."""
    if method == "auto":
        return
    reason = METHODS[method].supports(spec)
    if reason is not None:
        operation = "conv_transpose" if spec.role == "input" else "conv"
        raise ValueError(f"{operation}: method {method!r} does not support this convolution: {reason}")


def choose(spec: ConvSpec, method: str, platform: str | None) -> Choice:
    """The method to compute `spec` with when the user asked for `method`.

    A method that was asked for and does not support a derivative's convolution leaves it to the automatic choice; that
    it supports the convolution itself was checked when the user called.

    Args:
      spec: the convolution.
      method: a method's name or `"auto"`.
      platform: `"cpu"`, or None for all others.
    """
    if method != "auto" and METHODS[method].supports(spec) is None:
        return Choice(method, "asked for")
    if platform != "cpu":
        return Choice(direct.NAME, "the platform's own convolution is used on GPU and TPU")
    return _choose_cpu(spec)


def _choose_cpu(spec: ConvSpec) -> Choice:
    if shift.supports(spec) is None and spec.kernel_shape[-2] == 1 and spec.feature_group_count > 1:
        return Choice(shift.NAME, "depthwise")
    if matmul.supports(spec) is None and (spec.feature_group_count > 1 or max(spec.window) == 1):
        return Choice(matmul.NAME, "grouped or 1x1")
    return Choice(direct.NAME, "nothing else is faster")


def pool_method(spec: PoolSpec, platform: str | None, *, indexed: bool = False) -> ModuleType:
    """The module that computes a pool; `indexed`: the winner's index is wanted or given."""
    if platform == "cpu" and windows.supports(spec, indexed=indexed) is None:
        return windows
    return direct
