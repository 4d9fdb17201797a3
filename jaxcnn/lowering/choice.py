"""Which method computes a convolution or a pool: the registry of methods and the choice among them."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

from jaxcnn import native as library
from jaxcnn.lowering import choice_one_group as dense
from jaxcnn.lowering import costs
from jaxcnn.lowering.common.forms import shape_unsupported
from jaxcnn.lowering.methods import direct, fft, groups, matmul, native, shift, winograd
from jaxcnn.lowering.methods.shift_lanes import LANES
from jaxcnn.lowering.pools import slices as windows
from jaxcnn.lowering.spec import ConvSpec, PoolSpec
from jaxcnn.lowering.tuning_table import active, times_text

METHODS: dict[str, ModuleType] = {
    module.NAME: module for module in (direct, shift, matmul, winograd, fft, groups, native)
}
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
      platform: `"cpu"`, the name of another platform, or None where only shapes and dtypes matter, or where only
        `direct` works.
    """
    if method != "auto" and METHODS[method].supports(spec) is None:
        return Choice(method, "asked for")
    table = active()
    measured = None if table is None or platform is None else table.find(spec, platform)
    # A table of another release may name a method that is gone, or that no longer supports this.
    if measured is not None and measured.method in METHODS and METHODS[measured.method].supports(spec) is None:
        return Choice(measured.method, f"the tuning table has it: {times_text(measured)}")
    if platform != "cpu":
        return Choice(direct.NAME, "the platform's own convolution is used on GPU and TPU")
    chosen = _choose_cpu(spec)
    if chosen.method == direct.NAME and spec.stacked is not None and matmul.supports(spec) is None:
        # XLA's form of a stack is a grouped convolution, or a batch-grouped one: two to four times as slow.
        return Choice(matmul.NAME, f"products of matrices, batched over a stack of {spec.stacked}")
    return chosen


# Thresholds of the choice on CPU: milliseconds on two cores of an AMD EPYC with AVX-512, jax 0.10.2. On 0.12.0 only
# depthwise windows forward, 3x3 to 29x29, and `winograd` were measured beside.
_SHIFT_TAPS, _SHIFT_GRADIENT_TAPS, _SHIFT_LOOP_TAPS = 1100, 450, 100
"""Most taps for `shift`, one channel at a time: of an output, of the kernel's gradient, and where it may use one loop
only (few channels, or an exported program). 29x29 over 28x28x256 takes 3.9 (`fft` 8.6), 31x31 over 14x14x512 2.9 (7.5)
and over 56x56x128 6.7 (9.0). The kernel's gradient of 21x21 over 28x28x128 takes 1.7 (2.4), of 29x29 over 28x28x256 30
(7.5)."""
_SHIFT_IMAGE_TAPS, _SHIFT_IMAGE_GRADIENT_TAPS = 128, 36
"""The same for one image: 11x11 over 512x512 takes 2 (`direct` 60, `fft` 3); from 13x13 on XLA no longer vectorises."""
_SHIFT_GROUP_PRODUCTS, _SHIFT_FEW_GROUPS, _SHIFT_PRODUCTS_OF_MANY, _SHIFT_LOOP_CHANNELS = 256, 8, 300, 8
"""Most products of one output over a group's channels, where groups are as few as that and where they are more: 3x3
over 56x56x48 in 3 groups takes 0.43 (`groups` 0.77), 8x14x14x256 in 16 groups 0.9 (1.5); with 32 channels in each of 3
groups, 4x56x56, 9.1 (5.4), of 32, 8x14x14, 9.4 (18). In one loop, 8 channels: 0.7 against `direct`'s 2.7, and at 16 29
against 3.5."""
_SHIFT_GROUP_TAPS, _SHIFT_GROUP_PAIRS, _SHIFT_GROUP_WIDTH = 49, 1024, 32
"""Most taps, and most pairs of an input and an output channel, for `shift` to compute a group's kernel gradient, and
the width from which on both are too many: 56x56x128 in 32 groups takes 0.9 (`matmul` 7.5), 56x56x48 in 4 groups 1.7
(`groups` 5.4), 2x28x28x96 in 4 groups to 384 by 5x5 24 (7.8), 8x14x14x1024 in 32 groups 77 (19)."""


def _choose_cpu(spec: ConvSpec) -> Choice:
    if (reason := shape_unsupported(spec)) is not None:
        return Choice(direct.NAME, f"left to XLA: {reason}")
    *window, kernel_in, features = spec.kernel_shape
    taps = math.prod(window)
    kernel_out = features // spec.feature_group_count
    filled = LANES if spec.role == "kernel" else costs.VECTOR
    image_filter = kernel_in == kernel_out == 1 and spec.feature_group_count < filled
    refusal = native.supports(spec)
    if refusal is None and not image_filter:
        return _choose_compiled(spec)
    form = _choose_form(spec, taps, kernel_in, kernel_out)
    if refusal is None or not library.is_available():
        return form
    return Choice(form.method, f"{form.reason}; no compiled kernel: {refusal}")


def seconds(spec: ConvSpec, method: str) -> float:
    """Returns the estimated time of a method; infinity where it has no estimate or does not support this."""
    module = METHODS[method]
    if module not in _ESTIMATED or module.supports(spec) is not None:
        return math.inf
    return costs.seconds(method, module.terms(spec))


_ESTIMATED = (native, shift, matmul)
_MARGINS = {shift.NAME: 0.95, matmul.NAME: 0.7}
"""Most that a form's estimated time may be, of the compiled kernel's: where the estimates err, the kernel errs less."""


def _choose_compiled(spec: ConvSpec) -> Choice:
    """Chooses among the compiled kernels and the forms that may take less time."""
    if winograd.supports(spec) is None and winograd.native_pays(spec):
        return Choice(winograd.NAME, "compiled tiles take fewer products, their transforms counted")
    estimates = {module.NAME: seconds(spec, module.NAME) for module in _ESTIMATED}
    weighed = {name: time / _MARGINS.get(name, 1.0) for name, time in estimates.items()}
    least = min(weighed, key=lambda name: weighed[name])
    if least == native.NAME or math.isinf(estimates[native.NAME]):
        return Choice(native.NAME, "a compiled kernel")
    microseconds = ", ".join(f"{name} {1e6 * estimates[name]:.0f}" for name in (least, native.NAME))
    return Choice(least, f"the least estimated time, in microseconds: {microseconds}")


def _choose_form(spec: ConvSpec, taps: int, kernel_in: int, kernel_out: int) -> Choice:
    """Chooses among the methods that are XLA's operations."""
    if kernel_in == kernel_out == 1 and (taps > 1 or spec.feature_group_count > 1):
        return _choose_by_channel(spec, taps)
    if spec.feature_group_count > 1:
        return _choose_grouped(spec, taps, kernel_in, kernel_out)
    module, reason = dense.choose(spec)
    return Choice(module.NAME, reason)


def _choose_by_channel(spec: ConvSpec, taps: int) -> Choice:
    """Of a convolution of one channel at a time."""
    if spec.feature_group_count < LANES:
        most = _SHIFT_IMAGE_GRADIENT_TAPS if spec.role == "kernel" else _SHIFT_IMAGE_TAPS
    elif spec.exported:
        most = _SHIFT_IMAGE_GRADIENT_TAPS if spec.role == "kernel" else _SHIFT_LOOP_TAPS
    else:
        most = _SHIFT_GRADIENT_TAPS if spec.role == "kernel" else _SHIFT_TAPS
    if taps > most and fft.supports(spec) is None:
        return Choice(fft.NAME, f"spectra of a window of {taps} taps, one channel at a time")
    if shift.supports(spec) is None:
        return Choice(shift.NAME, f"{taps} shifted products for each output, one channel at a time")
    return Choice(direct.NAME, f"{taps} taps are too many for shifted products")


def _choose_grouped(spec: ConvSpec, taps: int, kernel_in: int, kernel_out: int) -> Choice:
    """Of a convolution of several groups of several channels."""
    # The input role adds over the kernel's output channels.
    summed, others = (kernel_in, kernel_out) if spec.role != "input" else (kernel_out, kernel_in)
    count = spec.feature_group_count
    if spec.role == "kernel":
        narrow = summed * others <= _SHIFT_GROUP_PAIRS and min(summed, others) < _SHIFT_GROUP_WIDTH
        narrow = narrow and taps <= _SHIFT_GROUP_TAPS
        if taps > 1 and narrow and not spec.exported and shift.supports(spec) is None:
            return Choice(shift.NAME, f"shifted products of {summed} by {others} channels in {count} groups")
    elif taps == 1 and matmul.supports(spec) is None:
        return Choice(matmul.NAME, f"a 1x1 window is one product of matrices, batched over {count} groups")
    else:
        products = taps * summed
        most = _SHIFT_GROUP_PRODUCTS if count <= _SHIFT_FEW_GROUPS else _SHIFT_PRODUCTS_OF_MANY
        in_blocks = not spec.exported and others >= LANES and products <= most
        in_one_loop = summed <= _SHIFT_LOOP_CHANNELS and products <= _SHIFT_IMAGE_TAPS
        if (in_blocks or in_one_loop) and shift.supports(spec) is None:
            return Choice(shift.NAME, f"{products} shifted products for each output, in {count} groups")
    if not spec.exported and groups.supports(spec) is None:
        return Choice(groups.NAME, f"each of {count} groups as the dense convolution that it is")
    if spec.role == "kernel" and matmul.supports(spec) is None:
        return Choice(matmul.NAME, f"one product of matrices for each of {taps} taps and {count} groups")
    return Choice(direct.NAME, f"groups of {summed} channels are left to XLA")


def pool_method(spec: PoolSpec, platform: str | None, *, selects: bool = False) -> ModuleType:
    """The module that computes a pool; `selects`: one tap of each window is taken by its index."""
    if platform == "cpu" and windows.supports(spec, selects=selects) is None:
        return windows
    return direct
