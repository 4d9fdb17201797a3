"""`fft` against `direct` in float64: whole images, overlapping tiles, and what spectra cannot represent."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering.methods import fft
from support.methods import Case, assert_equals_direct, roles

CASES: dict[str, Case] = {
    "the whole image": ((2, 9, 11, 3), (3, 4, 3, 5), {"padding": ((1, 1), (2, 1))}),
    "one channel at a time": ((2, 9, 11, 4), (5, 5, 1, 4), {"feature_group_count": 4, "padding": ((2, 2), (0, 4))}),
    "groups, strides, dilation": (
        (1, 11, 12, 6),
        (2, 3, 3, 4),
        {"feature_group_count": 2, "strides": (3, 2), "kernel_dilation": (2, 3), "padding": ((0, 2), (3, 1))},
    ),
    "tiles along one axis": ((2, 150, 5, 2), (3, 2, 2, 3), {"padding": ((1, 1), (0, 1))}),
    "tiles along two axes, strided": ((1, 71, 131, 1), (3, 5, 1, 2), {"strides": (2, 3)}),
    "one axis": ((2, 200, 2), (9, 2, 3), {"padding": ((4, 4),)}),
    "three axes": ((1, 5, 6, 7, 2), (3, 2, 3, 2, 2), {"padding": ((1, 1), (0, 1), (1, 1))}),
}


@pytest.mark.parametrize("name", CASES)
def test_all_roles_equal_direct(name: str) -> None:
    x_shape, kernel_shape, options = CASES[name]
    assert_equals_direct(fft, roles(x_shape, kernel_shape, **options))


def test_long_images_are_cut_into_tiles() -> None:
    assert fft.tile_lengths((62, 100, 1000), (3, 3, 50)) == (64, 64, 200)
    assert [fft.fast_length(length) for length in (7, 11, 121)] == [8, 12, 125]


def test_what_is_not_finite_stays_in_its_tile() -> None:
    x = np.ones((1, 200, 1), np.float32)
    x[0, 5, 0] = np.nan
    y = np.asarray(jaxcnn.conv(x, np.ones((3, 1, 1), np.float32), method="fft"))
    assert np.isnan(y[0, 4:7]).all()
    assert np.isfinite(y[0, 64:]).all()


@pytest.mark.parametrize(
    ("dtype", "rank", "options", "reason"),
    [
        (np.int8, 2, {}, "its products are int32, and spectra are of floats"),
        (np.complex64, 2, {}, "its products are complex64, and spectra are of floats"),
        (np.float32, 2, {"precision": "highest"}, "precision HIGHEST admits only methods with direct's error"),
        (np.float32, 4, {}, "it has 4 spatial axes, and transforms have at most 3"),
        (np.float32, 2, {"input_dilation": 2}, "its input is dilated by (2, 2)"),
    ],
)
def test_refusals(dtype: Any, rank: int, options: dict[str, Any], reason: str) -> None:
    x, kernel = jnp.ones((1, *[4] * rank, 1), dtype), jnp.ones((*[2] * rank, 1, 1), dtype)
    with pytest.raises(ValueError, match=re.escape(reason)):
        jax.eval_shape(lambda: jaxcnn.conv(x, kernel, method="fft", **options))
