"""Kernel gradients of narrow groups in tiles of rows, against `direct` in float64, and the other roles beside them."""

from __future__ import annotations

import jax
import pytest

from jaxcnn.lowering.methods import shift
from jaxcnn.lowering.methods import shift_tiles as tiles
from support.methods import Case, assert_equals_direct, roles

pytestmark = pytest.mark.without_native

CASES: dict[str, Case] = {
    "groups of several channels": (
        (2, 7, 8, 15),
        (3, 3, 5, 24),
        {"feature_group_count": 3, "padding": ((1, 1), (1, 1))},
    ),
    "output channels that do not fill a block": ((1, 7, 8, 8), (3, 3, 4, 22), {"feature_group_count": 2}),
    "fewer output channels than lanes": ((1, 6, 6, 24), (3, 3, 12, 4), {"feature_group_count": 2}),
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
    "strides and dilation": (
        (2, 17, 15, 9),
        (4, 3, 1, 9),
        {"feature_group_count": 9, "strides": (2, 3), "kernel_dilation": (3, 2), "padding": ((2, 1), (0, 3))},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_tiles_of_rows(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, **options))


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", ["rows that do not fill a tile", "strides and dilation", "groups of several channels"])
def test_large_kernel_gradients_go_by_images_and_channels(
    monkeypatch: pytest.MonkeyPatch, name: str, images: int
) -> None:
    x_shape, kernel_shape, options = CASES[name]
    cases = [case for case in roles((images, *x_shape[1:]), kernel_shape, **options) if case[0].role == "kernel"]
    monkeypatch.setattr(tiles, "MAX_TEMPORARY_BYTES", 1000)
    assert_equals_direct(shift, cases)
    with jax.enable_x64(True):
        ((spec, *arrays),) = cases
        text = str(jax.make_jaxpr(lambda a, b: shift.lower(a, b, spec))(*arrays))
    by_channel = kernel_shape[-1] == options["feature_group_count"]
    assert ("scan" in text) == (images > 1 or by_channel)


def test_an_exported_program_takes_the_same_values_by_other_forms() -> None:
    x_shape, kernel_shape, options = CASES["groups of several channels"]
    assert_equals_direct(shift, roles(x_shape, kernel_shape, xla_only=True, **options))
