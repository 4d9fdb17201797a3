"""The one helper that pads images, against NumPy, and what it binds."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxcnn.lowering.common.forms import pad_spatial
from jaxcnn.lowering.pools import slices
from support.arrays import normal

PADDINGS = [((0, 0), (0, 0)), ((1, 2), (0, 3)), ((-1, 2), (1, -3)), ((-2, -1), (0, 0))]


def padded_by_numpy(x: np.ndarray, padding: tuple[tuple[int, int], ...], value: float) -> np.ndarray:
    added = [(max(low, 0), max(high, 0)) for low, high in padding]
    x = np.pad(x, [(0, 0), *added, (0, 0)], constant_values=value)
    crops = [
        slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(padding, x.shape[1:-1], strict=True)
    ]
    return x[:, *crops]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("value", [None, -np.inf, 3])
def test_pads_and_crops_the_spatial_axes(padding: tuple[tuple[int, int], ...], value: float | None) -> None:
    x = normal((2, 5, 6, 3), 0, np.float32)
    expected = padded_by_numpy(x, padding, 0 if value is None else value)
    actual = pad_spatial(x, padding, value)
    assert actual.dtype == x.dtype
    np.testing.assert_array_equal(actual, expected)


def test_the_value_takes_the_dtype_of_the_images() -> None:
    index = np.arange(12, dtype=np.int32).reshape(1, 4, 3)
    padded = pad_spatial(index, [(1, 0)], -1)
    assert padded.dtype == np.int32
    np.testing.assert_array_equal(padded[0, 0], [-1, -1, -1])


def test_no_padding_binds_nothing_and_a_pool_keeps_its_pad_apart() -> None:
    x = normal((1, 4, 4, 2), 0, np.float32)

    def primitives(padding: tuple[tuple[int, int], ...], pad) -> list[str]:
        return [equation.primitive.name for equation in jax.make_jaxpr(lambda x: pad(x, padding, -1.0))(x).eqns]

    assert primitives(PADDINGS[0], pad_spatial) == []
    assert primitives(PADDINGS[0], slices._pad_unfused) == []
    assert primitives(PADDINGS[1], pad_spatial) == ["pad"]
    assert primitives(PADDINGS[1], slices._pad_unfused) == ["pad", "optimization_barrier"]
