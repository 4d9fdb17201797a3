"""Pools from shifted slices: winners by axis against `direct`."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxcnn.lowering.pools import direct, slices
from jaxcnn.lowering.spec import PoolSpec
from support.arrays import normal


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

    @jax.jit
    def by_axis(values, y):
        padded = slices._pad_unfused(values, spec.padding, direct.pool_identity(mode, spec.dtype))
        index, best = slices._winner_by_axis(padded, spec, mode)
        return index, best, slices._scatter_by_axis(y, index, spec)

    @jax.jit
    def directly(values, y):
        index, best = direct.winner(values, spec, mode)
        return index, best, direct.scatter(y, index, spec)

    (index, best, spread), (expected, expected_best, expected_spread) = by_axis(values, y), directly(values, y)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(best, expected_best)
    np.testing.assert_allclose(spread, expected_spread, rtol=1e-5, atol=1e-6)
