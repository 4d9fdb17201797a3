"""`per_group` against `direct` in float64: one group after the other, unrolled and in a loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from jaxcnn.lowering.methods import per_group
from support.methods import Case, assert_equals_direct, roles

CASES: dict[str, Case] = {
    "tiles": ((1, 24, 24, 96), (3, 3, 48, 64), {"feature_group_count": 2, "padding": ((1, 1), (1, 1))}),
    "more features": ((2, 5, 6, 6), (3, 2, 2, 12), {"feature_group_count": 3, "strides": (2, 1)}),
    "dilated sequence": ((2, 9, 8), (3, 2, 4), {"feature_group_count": 4, "kernel_dilation": (2,)}),
    "many, in a loop": ((2, 5, 6, 18), (3, 2, 2, 27), {"feature_group_count": 9, "padding": ((1, 1), (0, 1))}),
    "one input channel": ((1, 6, 6, 4), (3, 3, 1, 8), {"feature_group_count": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_roles_equal_direct(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(per_group, roles(x_shape, kernel_shape, **options))


@pytest.mark.without_native
def test_they_are_computed_each_by_the_method_that_suits_it() -> None:
    operands = jnp.zeros((1, 56, 56, 128)), jnp.zeros((3, 3, 64, 128))
    by_group = jax.jit(lambda x, kernel: jaxcnn.conv(x, kernel, method="per_group", feature_group_count=2))
    text = by_group.lower(*operands).as_text()
    assert "convolution" not in text
    assert text.count("tensor<36x64x64xf32>") >= 2  # each group's transformed kernel: 36 points of a tile


@pytest.mark.parametrize(
    ("groups", "channels", "reason"),
    [(1, 4, "one group"), (4, 4, "single channels")],
)
def test_refusals(groups: int, channels: int, reason: str) -> None:
    x, kernel = jnp.ones((1, 4, 4, channels)), jnp.ones((3, 3, channels // groups, channels))
    with pytest.raises(ValueError, match=reason):
        jaxcnn.conv(x, kernel, method="per_group", feature_group_count=groups)
