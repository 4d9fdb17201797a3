"""The choice of a method: the registry of methods, and `choose`, which takes the method with the least estimated time.

A method is a module of `methods/` with three functions. `refusal(spec)` returns None or the reason why the method does
not compute a convolution. `terms(spec)` returns the counts that the method's time grows with, which `costs` converts to
seconds. `lower(lhs, rhs, spec)` computes the convolution. A new method is a new module in the table `METHODS`.

The user's method comes first, then the active tuning table, then, on a CPU alone, the least estimate. Other platforms
have good convolutions of their own, which the method `direct` calls.
"""

from __future__ import annotations

import dataclasses
from types import ModuleType

from jaxcnn import native as library
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import shape_unsupported
from jaxcnn.lowering.methods import direct, fft, matmul, native, per_group, shift, winograd
from jaxcnn.lowering.pools import direct as direct_pool
from jaxcnn.lowering.pools import slices
from jaxcnn.lowering.spec import ConvSpec, PoolSpec
from jaxcnn.lowering.tuning_table import active_table, times_text

METHODS: dict[str, ModuleType] = {
    module.NAME: module for module in (direct, shift, matmul, winograd, fft, per_group, native)
}
"""The methods by name."""

POOL_METHODS: tuple[ModuleType, ...] = (slices,)
"""Ways of computing a pool on a CPU, in the order in which they are asked; XLA's own computes what none supports."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The method that computes a convolution, and a sentence that says why."""

    method: str
    reason: str


def check_method(method: str) -> None:
    """Raises a ValueError for a method that does not exist."""
    if method != "auto" and method not in METHODS:
        methods = ", ".join(repr(name) for name in ("auto", *METHODS))
        raise ValueError(f"method must be one of {methods}, got {method!r}")


def check_supported(method: str, spec: ConvSpec) -> None:
    """Raises a ValueError for the user's method if that method does not support the convolution.

    An empty convolution has one result, whatever the method.
    """
    if method == "auto" or 0 in (*spec.input_shape, *spec.kernel_shape, *spec.output_shape):
        return
    reason = METHODS[method].refusal(spec)
    if reason is not None:
        raise ValueError(f"method {method!r} does not support this convolution: {reason}")


def choose(spec: ConvSpec, method: str, platform: str | None) -> Choice:
    """Returns the method that computes a convolution if the user passes `method`.

    A method of the user that does not support the convolution leaves the choice to `"auto"`. This happens for
    derivatives alone: `check_supported` has refused such a method for the user's own convolution.

    Args:
      spec: the convolution; a symbolic batch counts as `STAND_IN_BATCH` images.
      method: name of a method, or `"auto"`.
      platform: `"cpu"`, the name of another platform, or None where only shapes and dtypes matter, or where only
        `direct` works.
    """
    spec = spec.with_known_batch()
    if method != "auto" and METHODS[method].refusal(spec) is None:
        return Choice(method, "asked for")
    table = active_table()
    measured = None if table is None or platform is None else table.find(spec, platform)
    # The table of another release may name a method that no longer exists or no longer supports this convolution.
    if measured is not None and measured.method in METHODS and METHODS[measured.method].refusal(spec) is None:
        return Choice(measured.method, f"the tuning table has it: {times_text(measured)}")
    if platform != "cpu":
        return Choice(direct.NAME, "the platform's own convolution is used on GPU and TPU")
    if (reason := shape_unsupported(spec)) is not None:
        return Choice(direct.NAME, f"left to XLA: {reason}")
    return _choose_fastest(spec)


def seconds(spec: ConvSpec, method: str) -> float:
    """Returns the estimated time of a method that supports a convolution."""
    return costs.seconds(METHODS[method], spec)


def _choose_fastest(spec: ConvSpec) -> Choice:
    """Returns the method with the least estimated time on a CPU."""
    supporting = [name for name, module in METHODS.items() if module.refusal(spec) is None]
    estimates = sorted((seconds(spec, name), name) for name in supporting)
    reason = "the least estimated time"
    least, fastest = estimates[0]
    if fastest == matmul.NAME and spec.role != "kernel" and native.NAME in supporting:
        compiled = (seconds(spec, native.NAME), native.NAME)
        if compiled[0] < costs.COMPILED_MARGIN * least:
            estimates = [compiled, estimates[0]]
            reason = f"an estimated time below {costs.COMPILED_MARGIN} times that of a product of XLA's"
    times = ", ".join(f"{name} {1e6 * estimate:.3g}" for estimate, name in estimates[:2])
    reason += f", in microseconds: {times}"
    refusal = native.refusal(spec)
    if refusal is not None and library.is_available():
        reason += f"; no compiled kernel: {refusal}"
    return Choice(estimates[0][1], reason)


def pool_method(spec: PoolSpec, platform: str | None, *, selects: bool = False) -> ModuleType:
    """Returns the module that computes a pool.

    Args:
      spec: the pool.
      platform: the platform, as in `choose`.
      selects: flag, True for a pool that takes one tap of each window by the tap's index.
    """
    methods = POOL_METHODS if platform == "cpu" else ()
    return next((module for module in methods if module.refusal(spec, selects=selects) is None), direct_pool)
