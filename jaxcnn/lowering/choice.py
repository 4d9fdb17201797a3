"""Which method computes a convolution or a pool: the registry of methods and the choice among them."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType

from jaxcnn.lowering import direct, fft, matmul, shift, windows
from jaxcnn.lowering.forms import shape_unsupported
from jaxcnn.lowering.spec import ConvSpec, PoolSpec
from jaxcnn.lowering.table import active, times_text

METHODS: dict[str, ModuleType] = {module.NAME: module for module in (direct, shift, matmul, fft)}
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
    return _choose_cpu(spec)


# Thresholds of the choice on CPU: milliseconds of one core of an AMD EPYC 7003 with jax 0.10.2.
_SHIFT_PRODUCTS = 128
"""Most products of one output that XLA makes one vectorised loop of: 11x11 over 512x512 takes 2 (`direct` 60, `fft` 3);
from 13x13 on a product takes forty times as long, and `fft` takes 3 where `shift` takes 35."""
_SHIFT_CHANNELS = 8
"""Most input channels of a group for `shift`: 0.7 against 2.7 of `direct` at 8 (4x28x28x64 in 8 groups), 29 against 3.5
at 16."""
_SHIFT_IMAGE_CHANNELS, _SHIFT_IMAGE_PRODUCTS = 4, 64
"""The same for one group: 256x28x28x1 to 6 by 5x5 takes 1.1 against 28, 224x224x3 to 32 by 3x3/2 0.3 against 1.0; 7x7
over 3 channels is left to `direct`."""
_FFT_TAPS, _FFT_GRADIENT_TAPS = 100, 36
"""Taps above which `fft` is faster than `shift` over one channel at a time: 1.3 against 1.9 at 11x11, 28x28x128; for
the kernel's gradient 3.6 against 6.5 at 7x7, 56x56x96 (PyTorch 5.1)."""


def _choose_cpu(spec: ConvSpec) -> Choice:
    if (reason := shape_unsupported(spec)) is not None:
        return Choice(direct.NAME, f"left to XLA: {reason}")
    *window, kernel_in, features = spec.kernel_shape
    taps, groups = math.prod(window), spec.feature_group_count
    kernel_out = features // groups
    if taps == 1 and matmul.supports(spec) is None:
        return Choice(matmul.NAME, "a 1x1 window is one product of matrices")
    if kernel_in == kernel_out == 1:
        # One channel at a time. Many channels are worth a transform sooner than one large image is.
        limit = _FFT_GRADIENT_TAPS if spec.role == "kernel" else _FFT_TAPS if groups > 1 else _SHIFT_PRODUCTS
        if taps > limit and fft.supports(spec) is None:
            return Choice(fft.NAME, f"spectra of a window of {taps} taps, one channel at a time")
        if taps <= _SHIFT_PRODUCTS and shift.supports(spec) is None:
            return Choice(shift.NAME, f"{taps} shifted products for each output, one channel at a time")
        return Choice(direct.NAME, f"{taps} taps are too many for shifted products")
    if spec.role == "kernel":
        if groups > 1 and matmul.supports(spec) is None:
            return Choice(matmul.NAME, f"one product of matrices for each of {taps} taps and {groups} groups")
        return Choice(direct.NAME, "XLA's own dense kernel gradient is as fast")
    # The input role adds over the kernel's output channels.
    summed = kernel_in if spec.role == "output" else kernel_out
    channels, most = (
        (_SHIFT_CHANNELS, _SHIFT_PRODUCTS) if groups > 1 else (_SHIFT_IMAGE_CHANNELS, _SHIFT_IMAGE_PRODUCTS)
    )
    if summed <= channels and taps * summed <= most and shift.supports(spec) is None:
        return Choice(shift.NAME, f"{taps * summed} shifted products for each output")
    return Choice(direct.NAME, "XLA's own dense convolution is as fast")


def pool_method(spec: PoolSpec, platform: str | None, *, indexed: bool = False) -> ModuleType:
    """The module that computes a pool; `indexed`: the winner's index is wanted or given."""
    if platform == "cpu" and windows.supports(spec, indexed=indexed) is None:
        return windows
    return direct
