"""`shift` against `direct` in float64, in all roles: products of shifted images."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from jaxcnn.lowering.methods import shift
from support.methods import Case, assert_equals_direct, roles

CASES: dict[str, Case] = {
    "a multiplier": ((1, 8, 9, 5), (3, 4, 1, 10), {"feature_group_count": 5, "padding": ((1, 1), (2, 1))}),
    "one axis": ((2, 40, 16), (12, 1, 16), {"feature_group_count": 16, "strides": (3,), "padding": ((4, 7),)}),
    "three axes": (
        (1, 5, 6, 7, 8),
        (3, 2, 3, 1, 8),
        {"feature_group_count": 8, "strides": (1, 2, 1), "padding": ((1, 1), (0, 1), (1, 1))},
    ),
    "one image with few channels": ((1, 12, 13, 3), (3, 3, 3, 9), {"strides": (2, 2), "padding": ((1, 1), (1, 0))}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_roles_equal_direct(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, **options))


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
