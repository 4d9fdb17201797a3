"""Tests of the choice: the convolutions that each method supports, and the method that is taken."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from jaxcnn import native
from jaxcnn.lowering import choice
from jaxcnn.lowering.spec import ConvSpec, conv_spec
from support.methods import roles

SHARES = {"direct": 1.0, "shift": 0.88, "matmul": 0.88, "winograd": 0.19, "fft": 0.88, "per_group": 0.34, "native": 0.8}
"""The least share of drawn convolutions that a method must support; raise it when a method learns more."""


def drawn_spec(seed: int) -> ConvSpec:
    """Returns a convolution of one to three axes, every third as in most networks: odd windows, one group, no steps."""
    rng = np.random.default_rng(seed)
    rank, plain = int(rng.integers(1, 4)), rng.integers(3) == 0

    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high + 1, rank).tolist())

    ones = (1,) * rank
    groups = 1 if plain else int(rng.integers(1, 5))
    window = tuple(rng.choice([1, 3, 5], rank).tolist()) if plain else ints(1, 4)
    dilates = not plain and rng.integers(5) == 0
    x = (2, *ints(1, 8), groups * int(rng.integers(1, 3)))
    kernel = (*window, x[-1] // groups, groups * int(rng.integers(1, 4)))
    return conv_spec(
        *(jax.ShapeDtypeStruct(shape, np.float32) for shape in (x, kernel)),
        role="output",
        stacked=False,
        strides=ones if plain else ints(1, 3),
        padding=tuple((2 * n, 2 * n) for n in window),  # enough for every window to fit
        input_dilation=ints(1, 2) if dilates else ones,
        kernel_dilation=ones if plain else ints(1, 2),
        feature_group_count=groups,
        precision=None,
        preferred_element_type=np.dtype(np.float32),
        input_size=None,
        window=None,
    )


def test_each_method_supports_its_share_of_convolutions() -> None:
    specs = [drawn_spec(seed) for seed in range(400)]
    supported: Counter[str] = Counter()
    for name, module in choice.METHODS.items():
        supported[name] = sum(module.refusal(spec) is None for spec in specs)
    # Without the library `native` supports nothing.
    methods = [name for name in choice.METHODS if name != "native" or native.is_available()]
    shares = {name: supported[name] / len(specs) for name in methods}
    assert {name: share for name, share in shares.items() if share < SHARES[name]} == {}


def single(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], role: str, **options: Any) -> ConvSpec:
    """The convolution in float32."""
    spec = next(spec for spec, _, _ in roles(x_shape, kernel_shape, **options) if spec.role == role)
    float32 = {name: np.dtype(np.float32) for name in ("lhs_dtype", "rhs_dtype", "out_dtype")}
    return ConvSpec(**{**vars(spec), **float32})


def chosen(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], role: str, **options: Any) -> str:
    return choice.choose(single(x_shape, kernel_shape, role, **options), "auto", "cpu").method


SAME = {"padding": ((1, 1), (1, 1))}
ROLES = ("output", "input", "kernel")


@pytest.mark.without_native
def test_the_choice_on_cpu() -> None:
    depthwise = {"feature_group_count": 32, **SAME}
    assert [chosen((1, 14, 14, 32), (3, 3, 1, 32), role, **depthwise) for role in ROLES] == ["shift"] * 3
    large = {"feature_group_count": 8, "padding": ((20, 20), (20, 20))}
    assert [chosen((1, 41, 41, 8), (41, 41, 1, 8), role, **large) for role in ("output", "input")] == ["fft"] * 2
    assert chosen((1, 14, 14, 64), (3, 3, 16, 64), "kernel", feature_group_count=4, **SAME) == "shift"
    grouped = {"feature_group_count": 2, "padding": ((2, 2), (2, 2))}
    for role in ROLES:
        assert chosen((1, 27, 27, 96), (5, 5, 48, 256), role, **grouped) == "per_group"
        assert chosen((1, 14, 14, 256), (1, 1, 256, 1024), role) == "matmul"
    assert chosen((4, 56, 56, 3), (1, 1, 3, 8), "output") == "shift"
    assert chosen((1, 224, 224, 3), (3, 3, 3, 64), "output", **SAME) == "shift"
    volume = {"padding": ((1, 1),) * 3}
    for role in ROLES:
        assert chosen((2, 16, 16, 16, 32), (3, 3, 3, 32, 32), role, **volume) == "matmul"
    assert chosen((1, 14, 14, 256), (3, 3, 256, 256), "kernel", **SAME) == "matmul"
    # The memory of the pixels under all taps, or of each tap's, would be cleared in every call of a network.
    assert chosen((1, 56, 56, 256), (3, 3, 256, 256), "kernel", **SAME) == "direct"
    assert chosen((8, 135, 146, 16), (3, 3, 16, 32), "output", **SAME) == "direct"
    for role in ("output", "input"):
        assert chosen((1, 56, 56, 64), (3, 3, 64, 64), role, **SAME) == "winograd"
        assert chosen((8, 28, 28, 128), (3, 3, 128, 128), role, **SAME) == "winograd"
        assert chosen((1, 7, 7, 512), (3, 3, 512, 512), role, **SAME) == "direct"
        assert chosen((1, 56, 56, 64), (3, 3, 64, 64), role, precision="highest", **SAME) != "winograd"
        # Without layout constraints the transforms are computed again for every product.
        assert chosen((1, 56, 56, 64), (3, 3, 64, 64), role, xla_only=True, **SAME) != "winograd"
        # One loop of so many products is not vectorized.
        exported = {"xla_only": True, "feature_group_count": 64, "padding": ((6, 6), (6, 6))}
        assert chosen((1, 14, 14, 64), (13, 13, 1, 64), role, **exported) == "fft"


@pytest.mark.without_native
def test_windows_larger_than_the_image_are_left_to_products() -> None:
    for xla_only in (False, True):
        for role in ("output", "input"):
            assert chosen((8, 2, 2, 64), (3, 3, 64, 64), role, xla_only=xla_only, **SAME) == "matmul"
    assert chosen((8, 2, 2, 64), (3, 3, 64, 64), "output", strides=(2, 2), **SAME) == "matmul"
    assert chosen((8, 2, 9, 64), (3, 3, 64, 64), "output", **SAME) == "direct"  # larger along one axis only
    assert chosen((8, 2, 2, 64), (3, 3, 64, 64), "kernel", padding=((3, 3), (3, 3))) == "matmul"
    assert chosen((4, 30, 64), (41, 64, 64), "output", padding=((20, 20),)) == "matmul"


def test_the_least_estimate_is_taken_and_named() -> None:
    for shapes in (((1, 14, 14, 32), (3, 3, 32, 32)), ((2, 30, 30, 16), (5, 5, 16, 8))):
        for spec, _, _ in roles(*shapes):
            supporting = [name for name, module in choice.METHODS.items() if module.refusal(spec) is None]
            least = min(supporting, key=lambda name: choice.seconds(spec, name))
            decided = choice.choose(spec, "auto", "cpu")
            assert decided.method == least
            assert decided.reason.startswith(f"the least estimated time, in microseconds: {least} ")


@pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")
def test_the_choice_on_cpu_with_the_compiled_kernels() -> None:
    for role in ROLES:
        assert chosen((1, 56, 56, 96), (3, 3, 1, 96), role, feature_group_count=96, **SAME) == "native"
        assert chosen((1, 56, 56, 64), (1, 11, 64, 64), role, padding=((0, 0), (5, 5))) == "native"
        assert chosen((4, 30, 64), (5, 64, 64), role) == "native"
        for other in ({"xla_only": True}, {"input_dilation": (2, 2)}):
            assert chosen((1, 14, 14, 32), (3, 3, 32, 32), role, **other) != "native"
        assert chosen((1, 224, 224, 3), (5, 5, 1, 3), role, feature_group_count=3) == "native"
    # Estimates this near are decided for the kernels.
    spec = single((1, 7, 7, 2048), (1, 1, 2048, 512), "output")
    product, kernels = (choice.seconds(spec, name) for name in ("matmul", "native"))
    assert product < kernels < 1.2 * product
    decided = choice.choose(spec, "auto", "cpu")
    assert decided.method == "native"
    assert decided.reason.startswith("an estimated time below 1.2 times that of a product of XLA's, in microseconds: n")
    assert chosen((1, 56, 56, 64), (3, 3, 64, 64), "output", **SAME) == "winograd"
    for xla_only in (False, True):
        spec = next(spec for spec, _, _ in roles((1, 14, 14, 32), (3, 3, 32, 32), xla_only=xla_only))
        decided = choice.choose(ConvSpec(**{**vars(spec), "lhs_dtype": np.dtype(np.float32)}), "auto", "cpu")
        assert "no compiled kernel: " in decided.reason, "its operands are of float32 and float64"
    for platform in ("gpu", "tpu", None):
        spec, *_ = (spec for spec, _, _ in roles((1, 14, 14, 32), (3, 3, 1, 32), feature_group_count=32))
        assert choice.choose(spec, "auto", platform).method == "direct"
