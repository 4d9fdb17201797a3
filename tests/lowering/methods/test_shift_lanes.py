"""The form of `shift` for windows of many taps, over blocks of channels, against `direct` in float64."""

from __future__ import annotations

import pytest

from jaxcnn.lowering.methods import shift
from support.methods import Case, assert_equals_direct, roles

CASES: dict[str, Case] = {
    "by channel, more than nine taps": ((2, 9, 10, 19), (4, 5, 1, 19), {"feature_group_count": 19}),
    "few taps: wide lanes": ((1, 12, 9, 24), (1, 11, 1, 24), {"feature_group_count": 24, "padding": ((0, 0), (5, 5))}),
    "several chunks": ((1, 9, 9, 8), (7, 7, 1, 8), {"feature_group_count": 8, "padding": ((3, 3), (3, 3))}),
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
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_channels(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, **options))


def test_an_exported_program_takes_the_same_values_by_other_forms() -> None:
    x_shape, kernel_shape, options = CASES["several chunks"]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, xla_only=True, **options))
