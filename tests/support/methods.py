"""Every method, forced on every case that it supports; one method against `direct` in all roles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxcnn import native
from jaxcnn.lowering import choice
from jaxcnn.lowering.methods import direct
from jaxcnn.lowering.spec import ConvSpec, conv_spec
from support.arrays import normal
from support.counting import executed_convolutions

METHODS = ("auto", *(name for name in choice.METHODS if name != "native" or native.is_available()))
"""Values of `method=`; a method that is added to the registry is tested by all tests that use this list."""

OF_ONE_GROUP = tuple(method for method in METHODS if method != "per_group")
"""Values of `method=` where there is one group."""

SPREADS = ("winograd", "fft", "per_group", "auto")
"""The methods in which one NaN may reach outputs that do not see it."""

TOLERANCES = {"winograd": 2e-5, "fft": 1e-4, "per_group": 2e-5}
"""Error relative to the largest result in float32; those not named have `TOLERANCE`."""
TOLERANCE = 2e-6

Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]
"""Shapes of an image and a kernel, and the options that differ from those of a plain convolution."""


def tolerance(method: str) -> float:
    """The error of float32 results, relative to the largest one."""
    return TOLERANCES.get(method, TOLERANCE)


def supporting(function: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """Returns the methods that support every convolution of a public function's call, "auto" among them."""
    specs = []
    for equation in executed_convolutions(partial(function, method=direct.NAME, **options), *args):
        specs.append(equation.params["spec"])
    supported = [name for name, module in choice.METHODS.items() if all(module.refusal(s) is None for s in specs)]
    return ["auto", *supported]


def by_each_method(function: Callable[..., Any], *args: Any, **options: Any) -> Iterator[tuple[str, Any]]:
    """Each method's name and result, without the methods that do not support the case.

    Args:
      function: public function that takes `method`.
      *args: its arrays.
      **options: its other options.
    """
    methods = supporting(function, *args, **options)
    # One program for all methods: compilation is what takes the time.
    run = jax.jit(lambda *args: {method: function(*args, method=method, **options) for method in methods})
    yield from run(*args).items()


def roles(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], **options: Any) -> list[tuple[ConvSpec, Any, Any]]:
    """The convolution and its two transposes, with operands of float64."""
    rank = len(x_shape) - 2
    static = {
        "strides": (1,) * rank,
        "padding": ((0, 0),) * rank,
        "input_dilation": (1,) * rank,
        "kernel_dilation": (1,) * rank,
        "feature_group_count": 1,
        "precision": None,
        "preferred_element_type": np.dtype(np.float64),
        "stacked": False,
        "input_size": x_shape[1:-1],
        "window": kernel_shape[:-2],
        **options,
    }
    x, kernel = normal(x_shape, 0, dtype=np.float64), normal(kernel_shape, 1, dtype=np.float64)
    y = normal(conv_spec(x, kernel, role="output", **static).output_shape, 2, dtype=np.float64)
    operands = {"output": (x, kernel), "input": (y, kernel), "kernel": (x, y)}
    return [(conv_spec(a, b, role=role, **static), a, b) for role, (a, b) in operands.items()]


def assert_equals_direct(method: Any, cases: list[tuple[ConvSpec, Any, Any]]) -> None:
    with jax.enable_x64(True):

        @jax.jit
        def both(operands: list[tuple[Any, Any]]) -> list[tuple[jax.Array, jax.Array]]:
            return [
                (method.lower(a, b, spec), direct.lower(a, b, spec))
                for (spec, _, _), (a, b) in zip(cases, operands, strict=True)
            ]

        for (spec, _, _), (result, expected) in zip(cases, both([(a, b) for _, a, b in cases]), strict=True):
            assert result.shape == expected.shape == spec.result_shape
            assert result.dtype == expected.dtype
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-11 * np.abs(expected).max(), err_msg=str(spec))
