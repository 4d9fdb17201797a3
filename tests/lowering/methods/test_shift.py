"""`shift` against `direct` in float64, in all roles: products of shifted images."""

from __future__ import annotations

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
