"""Which method computes a convolution of one group on CPU, whose window has more than one tap."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from jaxcnn.lowering.methods import direct, matmul, shift, winograd
from jaxcnn.lowering.methods import matmul_spread as spread
from jaxcnn.lowering.spec import ConvSpec

# Thresholds: milliseconds on two cores of an AMD EPYC with AVX-512, jax 0.10.2.
_SHIFT_CHANNELS, _SHIFT_PRODUCTS = 8, 80
"""Most channels, and most products of an output, for `shift`: 256x28x28x1 to 6 by 5x5 takes 1.0 against 21, 224x224x3
to 32 by 3x3/2 0.4 against 1.0, 8x56x56x8 to 16 by 3x3 0.7 against 1.4; 16 channels 0.41 against 0.31, and 8x224x224x3
to 64 by 7x7/2 40 against 23."""
_SHIFT_SHALLOW = 3
"""Most channels that a 1x1 window adds up by `shift`: from 3 to 8 over 224x224 takes 0.10 against 0.72 of the product
and 0.12 of XLA's convolution, from 3 to 3 over 4x56x56 0.02 against 0.31 and 0.03, from 4 to 64 over 28x28 0.08 against
0.06."""
_SMALL, _WIDE = 10_000, 64
"""Pixels up to which images are left to XLA if they get so many channels: 8x28x28x3 to 128 by 2x2 takes 0.75 against
0.27, 35x35x3 to 96 by 5x5 0.37 against 0.23; 4x56x56x4 to 128 by 3x3 1.5 against 2.1."""
_OUTSIZED_MACS = 0.2e6
"""Fewest multiply-accumulates for products where what slides is larger, along every axis, than what it slides over: XLA
computes that in plain loops, on jax 0.10 and 0.12. 3x3 over 128x2x2x512 takes 18 ms instead of 1166, 9x9 over 7x7x64
0.36 instead of 3.2; with 0.1 million 0.01 instead of 0.008."""


def choose(spec: ConvSpec) -> tuple[ModuleType, str]:
    """The method, and a sentence that says why."""
    *window, kernel_in, features = spec.kernel_shape
    taps = math.prod(window)
    # The input role adds over the kernel's output channels.
    summed = kernel_in if spec.role == "output" else features
    shifts = spec.role != "kernel" and shift.supports(spec) is None
    if taps == 1 and shifts and summed <= _SHIFT_SHALLOW:
        return shift, f"a 1x1 window over {summed} channels is a sum of as many products"
    if taps == 1 and matmul.supports(spec) is None:
        return matmul, "a 1x1 window is one product of matrices"
    if _outsized(spec) and matmul.supports(spec) is None:
        return matmul, "the window is larger than the image, which XLA computes in plain loops"
    products = taps * summed
    few = summed <= _SHIFT_CHANNELS and products <= _SHIFT_PRODUCTS
    small = math.prod(spec.result_shape[:-1]) <= _SMALL and spec.result_shape[-1] >= _WIDE
    if shifts and few and not small:
        return shift, f"{products} shifted products for each output"
    if not spec.exported and spec.lhs_dtype == spec.rhs_dtype == np.float32:
        if winograd.supports(spec) is None and winograd.pays(spec):
            return winograd, "tiles take fewer products, their transforms counted"
        if matmul.supports(spec) is None:
            if spread.pays(spec):
                return matmul, f"products of matrices with the window's {taps} taps on both sides"
            if matmul.input_pays(spec):
                return matmul, f"products of matrices for each residue of the inputs by strides {spec.strides}"
            if matmul.kernel_pays(spec):
                return matmul, f"one product of matrices with the pixels under all {taps} taps"
    return direct, "XLA's own dense convolution is as fast"


def _outsized(spec: ConvSpec) -> bool:
    """Whether what slides is larger than what it slides over, in a convolution of so many multiply-accumulates."""
    slid, over = {
        "output": (spec.window, spec.input_shape[1:-1]),
        "input": (spec.window, spec.output_shape[1:-1]),
        "kernel": (spec.output_shape[1:-1], spec.input_shape[1:-1]),
    }[spec.role]
    macs = math.prod(spec.output_shape[:-1]) * math.prod(spec.kernel_shape)
    return macs >= _OUTSIZED_MACS and all(taps > size for taps, size in zip(slid, over, strict=True))
