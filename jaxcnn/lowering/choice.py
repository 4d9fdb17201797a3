"""Which method computes a convolution or a pool: the registry of methods and the choice among them."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

import numpy as np

from jaxcnn.lowering import direct, fft, matmul, shift, spread, windows, winograd
from jaxcnn.lowering.forms import shape_unsupported
from jaxcnn.lowering.lanes import LANES
from jaxcnn.lowering.spec import ConvSpec, PoolSpec
from jaxcnn.lowering.table import active, times_text

METHODS: dict[str, ModuleType] = {module.NAME: module for module in (direct, shift, matmul, winograd, fft)}
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
_SHIFT_TAPS, _SHIFT_LOOP_TAPS = 450, 100
"""Most taps for `shift`, one channel at a time, and where it may use one loop only (few channels, or an exported
program). 21x21 over 28x28x128 takes 1.2 (`fft` 2.4, compiled in 0.1 s instead of 1.3), its kernel gradient 1.7 (2.4);
29x29 over 28x28x256 3.5 (5.7; 7.5 and 7.0 on jax 0.12), its kernel gradient 30 (7.5)."""
_SHIFT_IMAGE_TAPS, _SHIFT_IMAGE_GRADIENT_TAPS = 128, 36
"""The same for one image: 11x11 over 512x512 takes 2 (`direct` 60, `fft` 3); from 13x13 on XLA no longer vectorises."""
_SHIFT_GROUP_PRODUCTS, _SHIFT_LOOP_CHANNELS = 300, 8
"""Most products of one output over a group's channels: 28x28x128 in 4 groups by 3x3 takes 0.9 (`direct` 1.6),
8x14x14x512 in 32 groups 3.0 (12). In one loop, 8 channels: 0.7 against 2.7, and at 16 29 against 3.5."""
_SHIFT_GROUP_TAPS, _SHIFT_GROUP_PAIRS = 49, 2304
"""Most taps, and most pairs of an input and an output channel, for `shift` to compute a group's kernel gradient:
28x28x96 in 2 groups by 3x3 takes 0.6 (`matmul` 1.0), 56x56x128 in 32 groups 0.9 (7.5)."""
_SHIFT_IMAGE_CHANNELS, _SHIFT_IMAGE_PRODUCTS = 8, 80
"""For one group: 256x28x28x1 to 6 by 5x5 takes 1.0 against 21, 224x224x3 to 32 by 3x3/2 0.4 against 1.0, 8x56x56x8 to
16 by 3x3 0.7 against 1.4; 16 channels 0.41 against 0.31, and 8x224x224x3 to 64 by 7x7/2 40 against 23."""


def _choose_cpu(spec: ConvSpec) -> Choice:
    if (reason := shape_unsupported(spec)) is not None:
        return Choice(direct.NAME, f"left to XLA: {reason}")
    *window, kernel_in, features = spec.kernel_shape
    taps, groups = math.prod(window), spec.feature_group_count
    kernel_out = features // groups
    if taps == 1 and matmul.supports(spec) is None:
        return Choice(matmul.NAME, "a 1x1 window is one product of matrices")
    if kernel_in == kernel_out == 1:
        return _choose_by_channel(spec, taps)
    if groups > 1:
        return _choose_grouped(spec, taps, kernel_in, kernel_out)
    # The input role adds over the kernel's output channels.
    summed = kernel_in if spec.role == "output" else kernel_out
    products = taps * summed
    few = summed <= _SHIFT_IMAGE_CHANNELS and products <= _SHIFT_IMAGE_PRODUCTS
    if spec.role != "kernel" and few and shift.supports(spec) is None:
        return Choice(shift.NAME, f"{products} shifted products for each output")
    if not spec.exported and winograd.supports(spec) is None and _is_float32(spec) and winograd.pays(spec):
        return Choice(winograd.NAME, "tiles take fewer products, their transforms counted")
    if not spec.exported and matmul.supports(spec) is None and _is_float32(spec):
        if spread.pays(spec):
            return Choice(matmul.NAME, f"products of matrices with the window's {taps} taps on both sides")
        if matmul.kernel_pays(spec):
            return Choice(matmul.NAME, f"one product of matrices with the pixels under all {taps} taps")
    return Choice(direct.NAME, "XLA's own dense convolution is as fast")


def _is_float32(spec: ConvSpec) -> bool:
    return spec.lhs_dtype == spec.rhs_dtype == np.float32


def _choose_by_channel(spec: ConvSpec, taps: int) -> Choice:
    """Of a convolution of one channel at a time."""
    if spec.feature_group_count < LANES:
        most = _SHIFT_IMAGE_GRADIENT_TAPS if spec.role == "kernel" else _SHIFT_IMAGE_TAPS
    elif spec.exported:
        most = _SHIFT_IMAGE_GRADIENT_TAPS if spec.role == "kernel" else _SHIFT_LOOP_TAPS
    else:
        most = _SHIFT_TAPS
    if taps > most and fft.supports(spec) is None:
        return Choice(fft.NAME, f"spectra of a window of {taps} taps, one channel at a time")
    if shift.supports(spec) is None:
        return Choice(shift.NAME, f"{taps} shifted products for each output, one channel at a time")
    return Choice(direct.NAME, f"{taps} taps are too many for shifted products")


def _choose_grouped(spec: ConvSpec, taps: int, kernel_in: int, kernel_out: int) -> Choice:
    """Of a convolution of several groups of several channels."""
    groups = spec.feature_group_count
    if spec.role == "kernel":
        narrow = taps <= _SHIFT_GROUP_TAPS and kernel_in * kernel_out <= _SHIFT_GROUP_PAIRS
        if narrow and not spec.exported and shift.supports(spec) is None:
            return Choice(shift.NAME, f"shifted products of {kernel_in} by {kernel_out} channels in {groups} groups")
        if matmul.supports(spec) is None:
            return Choice(matmul.NAME, f"one product of matrices for each of {taps} taps and {groups} groups")
        return Choice(direct.NAME, "left to XLA")
    # The input role adds over the kernel's output channels.
    summed, others = (kernel_in, kernel_out) if spec.role == "output" else (kernel_out, kernel_in)
    products = taps * summed
    in_blocks = not spec.exported and others >= LANES and products <= _SHIFT_GROUP_PRODUCTS
    in_one_loop = summed <= _SHIFT_LOOP_CHANNELS and products <= _SHIFT_IMAGE_TAPS
    if (in_blocks or in_one_loop) and shift.supports(spec) is None:
        return Choice(shift.NAME, f"{products} shifted products for each output, in {groups} groups")
    return Choice(direct.NAME, f"groups of {summed} channels are wide enough for XLA's own convolution")


def pool_method(spec: PoolSpec, platform: str | None, *, selects: bool = False) -> ModuleType:
    """The module that computes a pool; `selects`: one tap of each window is taken by its index."""
    if platform == "cpu" and windows.supports(spec, selects=selects) is None:
        return windows
    return direct
