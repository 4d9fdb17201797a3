"""The forms that a method takes for some shapes only, against `direct` in float64, in all roles."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering import choice, direct, groups, shift, tiles, windows, winograd
from jaxcnn.lowering.spec import ConvSpec, PoolSpec, conv_spec
from support.arrays import normal

Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]


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


SHIFT_CASES: dict[str, Case] = {
    "by channel, more than nine taps": ((2, 9, 10, 19), (4, 5, 1, 19), {"feature_group_count": 19}),
    "few taps: wide lanes": ((1, 12, 9, 24), (1, 11, 1, 24), {"feature_group_count": 24, "padding": ((0, 0), (5, 5))}),
    "several chunks": ((1, 9, 9, 8), (7, 7, 1, 8), {"feature_group_count": 8, "padding": ((3, 3), (3, 3))}),
    "strides and dilation": (
        (2, 17, 15, 9),
        (4, 3, 1, 9),
        {"feature_group_count": 9, "strides": (2, 3), "kernel_dilation": (3, 2), "padding": ((2, 1), (0, 3))},
    ),
    "a multiplier": ((1, 8, 9, 5), (3, 4, 1, 10), {"feature_group_count": 5, "padding": ((1, 1), (2, 1))}),
    "groups of several channels": (
        (2, 7, 8, 15),
        (3, 3, 5, 24),
        {"feature_group_count": 3, "padding": ((1, 1), (1, 1))},
    ),
    "output channels that do not fill a block": ((1, 7, 8, 8), (3, 3, 4, 22), {"feature_group_count": 2}),
    "fewer output channels than lanes": ((1, 6, 6, 64), (3, 3, 32, 4), {"feature_group_count": 2}),
    "groups, strides, dilation": (
        (1, 11, 12, 6),
        (2, 3, 3, 18),
        {"feature_group_count": 2, "strides": (3, 2), "kernel_dilation": (2, 3), "padding": ((0, 2), (3, 1))},
    ),
    "more columns than a tile": ((1, 5, 61, 8), (3, 3, 1, 8), {"feature_group_count": 8, "padding": ((1, 1), (1, 1))}),
    "rows that do not fill a tile": (
        (3, 7, 4, 8),
        (3, 3, 1, 8),
        {"feature_group_count": 8, "padding": ((1, 1), (1, 1))},
    ),
    "rows in a loop": (
        (2, 19, 33, 9),
        (17, 13, 1, 9),
        {"feature_group_count": 9, "padding": ((9, 8), (3, 9)), "strides": (1, 2)},
    ),
    "dilated rows in a loop, three to a step": (
        (1, 60, 24, 8),
        (29, 7, 1, 8),
        {"feature_group_count": 8, "padding": ((0, 1), (0, 2)), "kernel_dilation": (2, 3)},
    ),
    "one axis": ((2, 40, 16), (12, 1, 16), {"feature_group_count": 16, "strides": (3,), "padding": ((4, 7),)}),
    "three axes": (
        (1, 5, 6, 7, 8),
        (3, 2, 3, 1, 8),
        {"feature_group_count": 8, "strides": (1, 2, 1), "padding": ((1, 1), (0, 1), (1, 1))},
    ),
    "one image with few channels": ((1, 12, 13, 3), (3, 3, 3, 9), {"strides": (2, 2), "padding": ((1, 1), (1, 0))}),
}


@pytest.mark.parametrize("name", SHIFT_CASES)
def test_shift_by_blocks_and_tiles(name: str) -> None:
    x_shape, kernel_shape, options = SHIFT_CASES[name]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, **options))


@pytest.mark.parametrize("channels_too", [False, True])
@pytest.mark.parametrize("name", ["rows that do not fill a tile", "strides and dilation", "groups of several channels"])
def test_large_kernel_gradients_go_image_by_image(
    monkeypatch: pytest.MonkeyPatch, name: str, channels_too: bool
) -> None:
    x_shape, kernel_shape, options = SHIFT_CASES[name]
    cases = [case for case in roles((4, *x_shape[1:]), kernel_shape, **options) if case[0].role == "kernel"]
    image = sum(array.nbytes for _, *arrays in cases for array in arrays) // 4
    monkeypatch.setattr(tiles, "_MOST_BYTES", 0 if channels_too else 2 * image)
    monkeypatch.setattr(tiles, "_BYTES", image // 3 if channels_too else 2 * image)
    assert_equals_direct(shift, cases)
    with jax.enable_x64(True):
        ((spec, *arrays),) = cases
        text = str(jax.make_jaxpr(lambda a, b: shift.lower(a, b, spec))(*arrays))
    assert "while" in text or "scan" in text


@pytest.mark.parametrize("name", ["several chunks", "groups of several channels"])
def test_an_exported_program_takes_the_same_values_by_other_forms(name: str) -> None:
    x_shape, kernel_shape, options = SHIFT_CASES[name]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, exported=True, **options))


@pytest.mark.parametrize("computed", [False, True])
def test_a_computed_image_is_padded_as_a_whole(computed: bool) -> None:
    options = {"feature_group_count": 8, "padding": ((1, 1), (1, 1)), "computed": computed}
    cases = roles((1, 9, 9, 8), (3, 3, 1, 8), **options)
    assert_equals_direct(shift, cases)
    spec, x, kernel = cases[0]
    assert spec == dataclasses.replace(spec, computed=not computed), "it is the same convolution"
    with jax.enable_x64(True):
        text = jax.jit(lambda x, kernel: shift.lower(x, kernel, spec)).lower(x, kernel).as_text()
    assert ("concatenate" in text) == (not computed)


WINOGRAD_CASES: dict[str, Case] = {
    "3x3": ((2, 9, 11, 3), (3, 3, 3, 5), {"padding": ((1, 1), (1, 1))}),
    "3x3, tiles that reach past the end": ((1, 6, 7, 2), (3, 3, 2, 3), {}),
    "5x5": ((1, 9, 8, 3), (5, 5, 3, 2), {"padding": ((2, 2), (2, 2))}),
    "1x7": ((2, 3, 15, 3), (1, 7, 3, 4), {"padding": ((0, 0), (3, 3))}),
    "5x1": ((1, 13, 3, 3), (5, 1, 3, 4), {"padding": ((0, 4), (0, 0))}),
    "3 of one axis": ((2, 10, 3), (3, 3, 4), {}),
    "1x3x3": ((1, 3, 6, 7, 2), (1, 3, 3, 2, 2), {"padding": ((0, 0), (1, 1), (2, 0))}),
}


@pytest.mark.parametrize("name", WINOGRAD_CASES)
def test_winograd(name: str) -> None:
    x_shape, kernel_shape, options = WINOGRAD_CASES[name]
    cases = roles(x_shape, kernel_shape, **options)
    assert winograd.supports(cases[2][0]) == "it is a kernel gradient"
    assert_equals_direct(winograd, cases[:2])


def test_winograd_in_blocks_of_features(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = roles((2, 9, 7, 64), (3, 3, 64, 96), padding=((1, 1), (2, 0)))[:2]
    # 36 points of 12 tiles: room for 32 of the input gradient's 64 features, and for 48 of the 96 forward.
    monkeypatch.setattr(winograd, "_LARGEST", 4 * 36 * (12 * (96 + 32) + 96 * 32))
    for spec, *arrays in cases:
        with jax.enable_x64(True):
            text = str(jax.make_jaxpr(lambda a, b, spec=spec: winograd.lower(a, b, spec))(*arrays))
        assert re.search(r"\blength=2\b", text)
    assert_equals_direct(winograd, cases)


GROUPS_CASES: dict[str, Case] = {
    "tiles": ((1, 24, 24, 96), (3, 3, 48, 64), {"feature_group_count": 2, "padding": ((1, 1), (1, 1))}),
    "more features": ((2, 5, 6, 6), (3, 2, 2, 12), {"feature_group_count": 3, "strides": (2, 1)}),
    "dilated sequence": ((2, 9, 8), (3, 2, 4), {"feature_group_count": 4, "kernel_dilation": (2,)}),
    "many, in a loop": ((2, 5, 6, 18), (3, 2, 2, 27), {"feature_group_count": 9, "padding": ((1, 1), (0, 1))}),
    "one input channel": ((1, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
}


@pytest.mark.parametrize("name", GROUPS_CASES)
def test_groups_one_by_one(name: str) -> None:
    x_shape, kernel_shape, options = GROUPS_CASES[name]
    assert_equals_direct(groups, roles(x_shape, kernel_shape, **options))


def test_groups_are_computed_each_by_the_method_that_suits_it() -> None:
    operands = jnp.zeros((1, 56, 56, 128)), jnp.zeros((3, 3, 64, 128))
    by_group = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="groups", feature_group_count=2))
    text = by_group.lower(*operands).as_text()
    assert "convolution" not in text
    assert text.count("tensor<36x64x64xf32>") >= 2  # each group's transformed kernel: 36 points of a tile


@pytest.mark.parametrize(
    ("groups", "channels", "reason"),
    [(1, 4, "one group"), (4, 4, "single channels")],
)
def test_groups_refuses(groups: int, channels: int, reason: str) -> None:
    x, kernel = jnp.ones((1, 4, 4, channels)), jnp.ones((3, 3, channels // groups, channels))
    with pytest.raises(ValueError, match=reason):
        jaxcnn.conv(x, kernel, method="groups", feature_group_count=groups)


@pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (2, 3), (4, 5), (2, 5), (2, 7)])
def test_winograd_transforms_are_a_correlation(outputs: int, taps: int) -> None:
    at, g, bt = winograd.transforms(outputs, taps)
    pixels, kernel = normal((outputs + taps - 1,), 0, dtype=np.float64), normal((taps,), 1, dtype=np.float64)
    np.testing.assert_allclose(at @ ((g @ kernel) * (bt @ pixels)), np.correlate(pixels, kernel), atol=1e-13)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "highest"}, "HIGHEST"),
        ({"strides": 2}, "strides"),
        ({"kernel_dilation": 2}, "dilation"),
        ({"feature_group_count": 2}, "groups"),
    ],
)
def test_winograd_refuses(options: dict[str, Any], reason: str) -> None:
    x = jnp.ones((1, 9, 9, 4))
    kernel = jnp.ones((3, 3, 4 // options.get("feature_group_count", 1), 4))
    with pytest.raises(ValueError, match=reason):
        jaxcnn.conv(x, kernel, method="winograd", **options)


@pytest.mark.parametrize(("dtype", "points"), [("float32", 36), ("bfloat16", 16), ("float16", 16)])
def test_winograd_takes_smaller_tiles_in_16_bits(dtype: str, points: int) -> None:
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), dtype), jax.ShapeDtypeStruct((3, 3, 4, 4), dtype)
    text = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd")).lower(x, kernel).as_text()
    (product,) = [line for line in text.splitlines() if "dot_general" in line and "batching_dims" in line]
    assert f"tensor<{points}x" in product


def transforms_a_kernel(function: Any, *args: Any) -> bool:
    """Whether the compiled program's entry computes 36 values for each pair of 8 and 16 channels."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.search(r"= f32\[36,(8,16|128)\]\S* (dot|fusion|custom-call)\(", text[text.index("\nENTRY") :]) is not None


@pytest.mark.parametrize("transformation", [lambda f: f, jaxcnn.accelerate])
def test_the_transform_of_a_constant_kernel_is_folded(transformation: Any) -> None:
    x, kernel = normal((1, 12, 12, 8), 0, np.float32), normal((3, 3, 8, 16), 1, np.float32)
    given = transformation(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd"))
    assert transforms_a_kernel(given, x, kernel)
    assert not transforms_a_kernel(transformation(lambda x: jaxcnn.conv(x, kernel, method="winograd")), x)
    inner = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd"))
    assert not transforms_a_kernel(transformation(lambda x: inner(x, kernel)), x)
    assert not transforms_a_kernel(transformation(jax.jit(lambda x: inner(x, kernel))), x)


@pytest.mark.parametrize("transformation", [lambda f: f, jaxcnn.accelerate])
def test_the_transform_of_a_loops_kernel_is_hoisted(transformation: Any) -> None:
    x, kernel = normal((1, 12, 12, 8), 0, np.float32), normal((3, 3, 8, 16), 1, np.float32)

    def repeated(x: jax.Array, kernel: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.tanh(jaxcnn.conv(x, kernel, method="winograd"))[..., :8], None

        return jax.lax.scan(step, x, None, length=3)[0]

    # The loop's body is another computation than the entry.
    assert transforms_a_kernel(transformation(repeated), x, kernel)


def test_an_accelerated_programs_kernels_are_transformed_one_after_the_other() -> None:
    x = jax.ShapeDtypeStruct((1, 56, 56, 64), np.float32)
    kernels = [jax.ShapeDtypeStruct((3, 3, 64, 64), np.float32)] * 8

    def layers(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
        return functools.reduce(lambda x, kernel: jnp.tanh(jaxcnn.conv(x, kernel, method="winograd")), kernels, x)

    both = [jax.jit(f).lower(kernels, x).compile().memory_analysis() for f in (layers, jaxcnn.accelerate(layers))]
    at_once, in_turn = (analysis.temp_size_in_bytes for analysis in both)
    assert at_once - in_turn > 6 * 4 * 36 * 64 * 64  # of eight, two at most are there at a time


@pytest.mark.parametrize("value", [100.0, -100.0, np.nan])
def test_a_kernel_is_transformed_alike_whatever_it_waits_for(value: float) -> None:
    x, kernel = normal((1, 12, 12, 8), 0, np.float32), normal((3, 3, 8, 16), 1, np.float32)
    x[0, 0, 0, 0] = value
    conv = functools.partial(jaxcnn.conv, method="winograd", padding="VALID")
    np.testing.assert_array_equal(jax.jit(jaxcnn.accelerate(conv))(x, kernel), jax.jit(conv)(x, kernel))


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("window", [(7, 6), (30,), (3, 4, 3)])
def test_winners_by_axis(window: tuple[int, ...], mode: str) -> None:
    rank = len(window)
    spec = PoolSpec(
        (2, *(13, 12, 9)[:rank], 3),
        window if rank > 1 else (9,),
        (2, 1, 2)[:rank],
        ((3, 4), (2, 0), (1, 1))[:rank],
        (1, 2, 1)[:rank],
        np.dtype(np.float32),
    )
    values = np.random.default_rng(0).integers(0, 3, spec.input_shape).astype(np.float32)  # many ties
    values[values == 0] = -np.inf
    values[:, ::5, ...] = np.nan
    y = normal(spec.output_shape, 1, np.float32)
    padded = windows._padded(jnp.asarray(values), spec.padding, direct.pool_identity(mode, spec.dtype))
    index = windows._winner_by_axis(padded, spec, mode)
    expected = direct.winner(jnp.asarray(values), spec, mode)
    np.testing.assert_array_equal(index, expected)
    spread = windows._scatter_by_axis(jnp.asarray(y), index, spec)
    np.testing.assert_allclose(spread, direct.scatter(jnp.asarray(y), expected, spec), rtol=1e-5, atol=1e-6)


def chosen(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], role: str, **options: Any) -> str:
    spec = next(spec for spec, _, _ in roles(x_shape, kernel_shape, **options) if spec.role == role)
    float32 = {name: np.dtype(np.float32) for name in ("lhs_dtype", "rhs_dtype", "out_dtype")}
    return choice.choose(ConvSpec(**{**vars(spec), **float32}), "auto", "cpu").method


def test_the_choice_on_cpu() -> None:
    same = {"padding": ((1, 1), (1, 1))}
    depthwise = {"feature_group_count": 32, **same}
    assert [chosen((1, 14, 14, 32), (3, 3, 1, 32), role, **depthwise) for role in ("output", "input", "kernel")] == [
        "shift"
    ] * 3
    large = {"feature_group_count": 8, "padding": ((15, 15), (15, 15))}
    by_role = [chosen((1, 32, 32, 8), (31, 31, 1, 8), role, **large) for role in ("output", "input", "kernel")]
    assert by_role == ["shift", "shift", "fft"]
    larger = {"feature_group_count": 8, "padding": ((20, 20), (20, 20))}
    assert chosen((1, 41, 41, 8), (41, 41, 1, 8), "output", **larger) == "fft"
    assert chosen((1, 14, 14, 64), (3, 3, 16, 64), "kernel", feature_group_count=4, **same) == "shift"
    grouped = {"feature_group_count": 2, "padding": ((2, 2), (2, 2))}
    for role in ("output", "input", "kernel"):
        assert chosen((1, 27, 27, 96), (5, 5, 48, 256), role, **grouped) == "groups"
    assert chosen((1, 14, 14, 256), (3, 3, 128, 256), "kernel", exported=True, **grouped) == "matmul"
    assert chosen((1, 14, 14, 64), (1, 1, 1, 64), "output", feature_group_count=64) == "shift"
    assert chosen((1, 14, 14, 64), (1, 1, 16, 64), "output", feature_group_count=4) == "matmul"
    assert chosen((1, 14, 14, 64), (1, 1, 64, 32), "output") == "matmul"
    assert [chosen((4, 56, 56, 3), (1, 1, 3, 8), role) for role in ("output", "input")] == ["shift", "matmul"]
    strided = {"strides": (2, 2), "padding": ((1, 1), (1, 1))}
    assert chosen((8, 56, 56, 128), (4, 4, 128, 32), "input", **strided) == "matmul"
    assert chosen((8, 56, 56, 64), (3, 3, 64, 128), "input", **strided) == "direct"
    assert chosen((1, 224, 224, 3), (3, 3, 3, 64), "output", **same) == "shift"
    assert chosen((1, 35, 35, 3), (3, 3, 3, 64), "output", **same) == "direct"
    volume = {"padding": ((1, 1),) * 3}
    for role in ("output", "input"):
        assert chosen((2, 16, 16, 16, 32), (3, 3, 3, 32, 32), role, **volume) == "matmul"
    column = {"padding": ((1, 1), (0, 0))}
    assert chosen((8, 56, 56, 64), (3, 1, 64, 192), "kernel", **column) == "matmul"
    assert chosen((8, 56, 56, 64), (3, 1, 64, 16), "kernel", **column) == "direct"
    assert chosen((8, 28, 28, 128), (3, 3, 128, 128), "kernel", **same) == "direct"
    assert chosen((1, 56, 56, 64), (3, 3, 64, 64), "output", **same) == "winograd"
    assert chosen((1, 56, 56, 64), (3, 3, 64, 64), "output", precision="highest", **same) != "winograd"
    assert chosen((1, 28, 28, 512), (3, 3, 512, 512), "output", **same) == "winograd"
    assert chosen((1, 7, 7, 512), (3, 3, 512, 512), "output", **same) == "direct"
    assert chosen((1, 56, 56, 64), (3, 3, 64, 64), "output", exported=True, **same) == "direct"


def test_windows_larger_than_the_image_are_left_to_products() -> None:
    same = {"padding": ((1, 1), (1, 1))}
    for exported in (False, True):
        for role in ("output", "input"):
            assert chosen((8, 2, 2, 64), (3, 3, 64, 64), role, exported=exported, **same) == "matmul"
    assert chosen((8, 2, 2, 64), (3, 3, 64, 64), "output", strides=(2, 2), **same) == "matmul"
    assert chosen((8, 2, 9, 64), (3, 3, 64, 64), "output", **same) == "direct"  # larger along one axis only
    assert chosen((8, 2, 2, 16), (3, 3, 16, 16), "output", **same) == "direct"  # so few products are as fast
    assert chosen((8, 2, 2, 64), (3, 3, 64, 64), "kernel", padding=((3, 3), (3, 3))) == "matmul"
    assert chosen((4, 30, 64), (41, 64, 64), "output", padding=((20, 20),)) == "matmul"
