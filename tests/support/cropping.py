"""Convolutions whose padding is negative, or is in a derivative, and what they give by the oracle."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np

from support import oracles

# Where XLA:CPU, given the padding as it is, reads out of bounds for the result or for one of its derivatives.
CROPPED = {
    "more padding than window": ((9,), (2,), {"padding": ((6, 0),)}),
    "and dilated": ((9,), (2,), {"padding": ((6, -2),), "input_dilation": (2,)}),
    "and strided": ((9,), (2,), {"padding": ((6, 1),), "strides": (2,)}),
    "in groups": ((5, 6), (1, 3), {"padding": ((6, 4), (6, -1)), "groups": 4}),
    "cropped": ((9,), (2,), {"padding": ((-6, 3),)}),
    "cropped and strided": ((9, 9), (2, 2), {"padding": ((-3, 3), (-1, -2)), "strides": (2, 3)}),
    "one pixel": ((7,), (1,), {"padding": ((-6, 6),), "kernel_dilation": (2,)}),
}


def cropped_cases():
    """(name, options, (x, kernel, y), what x and kernel shall give, and what their derivatives shall, by the oracle).

    A derivative is told by its product with a probe: sum(conv(dx, kernel) * y) for that of x.
    """
    rng = np.random.default_rng(0)
    for name, (size, window, given_) in CROPPED.items():
        ones = (1,) * len(size)
        options = {"strides": ones, "input_dilation": ones, "kernel_dilation": ones, "groups": 1, **given_}
        x, dx = rng.integers(-3, 4, (2, 2, *size, 4)).astype(np.float32)
        kernel, dkernel = rng.integers(-3, 4, (2, *window, 4 // options["groups"], 4)).astype(np.float32)
        result = oracles.conv(x, kernel, **options)
        y = rng.integers(-3, 4, result.shape).astype(np.float32)
        probed = [np.sum(oracles.conv(*pair, **options) * y) for pair in ((dx, kernel), (x, dkernel))]
        yield name, options, (x, kernel, y), (dx, dkernel), (result, *probed)


def assert_cropped(convolve, dtype=np.float32, jit=jax.jit):
    """Values and both derivatives of `convolve(x, kernel, **options of the oracle)`; all cases as one program."""

    def every(operands):
        outcome = {}
        for name, (options, (x, kernel, y)) in operands.items():
            result, derivatives = jax.vjp(partial(convolve, **options), x, kernel)
            outcome[name] = result, *derivatives(y)
        return outcome

    cases = list(cropped_cases())
    options = {name: options for name, options, *_ in cases}
    operands = {name: [array.astype(dtype) for array in arrays] for name, _, arrays, *_ in cases}
    outcome = jit(lambda operands: every({name: (options[name], operands[name]) for name in operands}))(operands)
    for name, _, _, (dx, dkernel), (result, of_x, of_kernel) in cases:
        actual, x, kernel = map(np.asarray, outcome[name])
        np.testing.assert_array_equal(actual, result, err_msg=name)
        np.testing.assert_array_equal(np.sum(x * dx), of_x, err_msg=name)
        np.testing.assert_array_equal(np.sum(kernel * dkernel), of_kernel, err_msg=name)
