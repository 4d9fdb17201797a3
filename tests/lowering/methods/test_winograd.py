"""`winograd` against `direct` in float64, its transforms, and where the kernel's is computed."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering.methods import winograd
from support.arrays import normal
from support.methods import Case, assert_equals_direct, roles

pytestmark = pytest.mark.without_native

CASES: dict[str, Case] = {
    "3x3": ((2, 9, 11, 3), (3, 3, 3, 5), {"padding": ((1, 1), (1, 1))}),
    "3x3, tiles that reach past the end": ((1, 6, 7, 2), (3, 3, 2, 3), {}),
    "5x5": ((1, 9, 8, 3), (5, 5, 3, 2), {"padding": ((2, 2), (2, 2))}),
    "1x7": ((2, 3, 15, 3), (1, 7, 3, 4), {"padding": ((0, 0), (3, 3))}),
    "5x1": ((1, 13, 3, 3), (5, 1, 3, 4), {"padding": ((0, 4), (0, 0))}),
    "3 of one axis": ((2, 10, 3), (3, 3, 4), {}),
    "1x3x3": ((1, 3, 6, 7, 2), (1, 3, 3, 2, 2), {"padding": ((0, 0), (1, 1), (2, 0))}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_roles_equal_direct(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    cases = roles(x_shape, kernel_shape, **options)
    assert winograd.refusal(cases[2][0]) == "it is a kernel gradient"
    assert_equals_direct(winograd, cases[:2])


@pytest.mark.parametrize(("outputs", "taps"), [(4, 3), (2, 3), (4, 5), (2, 5), (2, 7)])
def test_transforms_are_a_correlation(outputs: int, taps: int) -> None:
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
def test_refusals(options: dict[str, Any], reason: str) -> None:
    x = jnp.ones((1, 9, 9, 4))
    kernel = jnp.ones((3, 3, 4 // options.get("feature_group_count", 1), 4))
    with pytest.raises(ValueError, match=reason):
        jaxcnn.conv(x, kernel, method="winograd", **options)


@pytest.mark.parametrize(("dtype", "points"), [("float32", 36), ("bfloat16", 16), ("float16", 16)])
def test_takes_smaller_tiles_in_16_bits(dtype: str, points: int) -> None:
    x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 4), dtype), jax.ShapeDtypeStruct((3, 3, 4, 4), dtype)
    text = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd")).lower(x, kernel).as_text()
    (product,) = [line for line in text.splitlines() if "dot_general" in line and "batching_dims" in line]
    assert f"tensor<{points}x" in product


def transforms_a_kernel(function: Any, *args: Any) -> bool:
    """Returns whether the compiled program's entry computes 36 values for each pair of 8 and 16 channels."""
    text = jax.jit(function).lower(*args).compile().as_text()
    return re.search(r"= f32\[36,(8,16|128)\]\S* (dot|fusion|custom-call)\(", text[text.index("\nENTRY") :]) is not None


@pytest.mark.optimized
@pytest.mark.parametrize("transformation", [lambda f: f, jaxcnn.accelerate])
def test_the_transform_of_a_constant_kernel_is_folded(transformation: Any) -> None:
    x, kernel = normal((1, 12, 12, 8), 0, np.float32), normal((3, 3, 8, 16), 1, np.float32)
    given = transformation(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd"))
    assert transforms_a_kernel(given, x, kernel)
    assert not transforms_a_kernel(transformation(lambda x: jaxcnn.conv(x, kernel, method="winograd")), x)
    inner = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="winograd"))
    assert not transforms_a_kernel(transformation(lambda x: inner(x, kernel)), x)
    assert not transforms_a_kernel(transformation(jax.jit(lambda x: inner(x, kernel))), x)


@pytest.mark.optimized
@pytest.mark.parametrize("transformation", [lambda f: f, jaxcnn.accelerate])
def test_the_transform_of_a_loops_kernel_is_hoisted(transformation: Any) -> None:
    x, kernel = normal((1, 12, 12, 8), 0, np.float32), normal((3, 3, 8, 16), 1, np.float32)

    def repeated(x: jax.Array, kernel: jax.Array) -> jax.Array:
        def step(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.tanh(jaxcnn.conv(x, kernel, method="winograd"))[..., :8], None

        return jax.lax.scan(step, x, None, length=3)[0]

    # The loop's body is another computation than the entry.
    assert transforms_a_kernel(transformation(repeated), x, kernel)
