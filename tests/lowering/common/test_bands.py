"""Large images in bands of rows: every band's place, borders included, and when images are computed so."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering.common.bands import Band, band_within
from jaxcnn.lowering.methods import matmul_spread as spread
from jaxcnn.lowering.methods import winograd
from support.arrays import normal, relative_error

pytestmark = [pytest.mark.optimized, pytest.mark.without_native]


def in_bands(monkeypatch, band):
    """Every convolution of stride 1 by `matmul` or `winograd` is computed in such bands, of all rows if they have 0."""
    jax.clear_caches()
    for module, whole in ((spread, "_WHOLE"), (winograd, "_LARGEST")):
        monkeypatch.setattr(module, whole, -1)
        monkeypatch.setattr(module, "band_within", lambda images, rows, *_, **__: Band(band.images, band.rows or rows))


PADDINGS = {
    "same": "SAME",
    "valid": "VALID",
    "full": ((2, 2), (4, 4)),
    "uneven": ((0, 3), (2, 1)),
    "more than the window": ((7, 0), (0, 0)),
    "cropped": ((-1, 2), (3, -2)),
}


@pytest.mark.parametrize("method", ["matmul", "winograd"])
@pytest.mark.parametrize("band", [Band(1, 4), Band(1, 8), Band(2, 0)])
def test_bands_make_the_whole(monkeypatch, method, band):
    """13 rows in bands of 4 and 8, of which the last overlaps, and all rows of two images at a time."""
    x, kernel = normal((4, 13, 9, 3), 0), normal((3, 5, 3, 5), 1)

    def every(x, kernel, method):
        return {name: jaxcnn.conv(x, kernel, method=method, padding=padding) for name, padding in PADDINGS.items()}

    expected = jax.jit(partial(every, method="direct"))(x, kernel)
    in_bands(monkeypatch, band)
    lowered = jax.jit(partial(every, method=method)).lower(x, kernel)
    assert lowered.as_text().count("stablehlo.while") >= len(PADDINGS)
    actual = lowered.compile()(x, kernel)
    for name in PADDINGS:
        assert actual[name].shape == expected[name].shape
        assert relative_error(actual[name], expected[name]) < 2e-6, name
    jax.clear_caches()


@pytest.mark.parametrize("method", ["matmul", "winograd"])
def test_inputs_gradient_narrow_and_other_ranks(monkeypatch, method):
    in_bands(monkeypatch, Band(1, 4))
    kernel = normal((3, 3, 5), 1)
    line, volume = normal((2, 17, 3), 0), normal((2, 9, 6, 5, 3), 0)
    for x, window in ((line, kernel), (volume, np.broadcast_to(kernel[:, None, None], (3, 1, 1, 3, 5)))):
        expected = jaxcnn.conv(x.astype(np.float64), window.astype(np.float64), method="direct")
        assert relative_error(jaxcnn.conv(x, window, method=method), expected) < 2e-6
    square, window, weights = normal((2, 13, 9, 3), 0), normal((3, 3, 3, 5), 1), normal((2, 13, 9, 5), 2)

    def gradient(x, kernel, weights, method):
        return jax.grad(lambda x: jnp.sum(jaxcnn.conv(x, kernel, method=method) * weights))(x)

    expected = gradient(*(array.astype(np.float64) for array in (square, window, weights)), "direct")
    assert relative_error(gradient(square, window, weights, method), expected) < 2e-6
    narrow = jaxcnn.conv(square.astype(jnp.bfloat16), window.astype(jnp.bfloat16), method=method)
    assert narrow.dtype == jnp.bfloat16
    expected = jaxcnn.conv(square.astype(np.float64), window.astype(np.float64), method="direct")
    assert relative_error(np.asarray(narrow, np.float64), expected) < 1e-2
    stacked = jax.vmap(lambda x, k: jaxcnn.conv(x, k, method=method))
    both = stacked(np.stack([square, 2 * square]), np.stack([window, window]))
    assert relative_error(both[1], 2 * expected) < 2e-6
    jax.clear_caches()


def test_integers_stay_exact(monkeypatch):
    generator = np.random.default_rng(0)
    x, kernel = (generator.integers(-128, 127, shape, np.int8) for shape in ((2, 13, 8, 30), (5, 3, 30, 4)))
    expected = jaxcnn.conv(x, kernel, method="direct")
    in_bands(monkeypatch, Band(1, 4))
    np.testing.assert_array_equal(jaxcnn.conv(x, kernel, method="matmul"), expected)
    jax.clear_caches()


def test_a_nan_stays_in_its_band(monkeypatch):
    x, kernel = normal((1, 16, 8, 3), 0), normal((3, 3, 3, 5), 1)
    x[0, 0, 0, 0] = np.nan  # the value that the result starts from
    in_bands(monkeypatch, Band(1, 4))
    for method in ("matmul", "winograd"):
        y = np.asarray(jaxcnn.conv(x, kernel, method=method))
        assert np.isnan(y[0, 0, 0]).all()
        assert np.isfinite(y[0, 8:]).all()
    jax.clear_caches()


def test_what_a_band_holds():
    assert band_within(1, 56, 10, within=1000) is None
    assert band_within(1, 56, 100, within=1000) == Band(1, 10)  # 10, 10, ... and 6
    assert band_within(1, 50, 100, within=4000) == Band(1, 25)  # rather than 40 and 10
    assert band_within(1, 56, 100, multiple=4, within=1000) == Band(1, 8)
    assert band_within(1, 56, 5000, multiple=4, within=1000) == Band(1, 4)  # no less than a row of tiles
    assert band_within(8, 56, 10, within=1200) == Band(2, 56)
    assert band_within(8, 56, 100, within=10_000) == Band(1, 56)
    assert band_within(6, 56, 10, within=2500) == Band(3, 56)  # four do not divide six


@pytest.mark.parametrize(
    ("shape", "kernel", "method"),
    [
        ((1, 160, 160, 64), (3, 1, 64, 16), "matmul"),  # 1.4 ms, direct 2.8
        ((1, 512, 512, 64), (3, 1, 64, 24), "winograd"),  # 28, 76
        ((1, 224, 224, 72), (3, 1, 72, 128), "winograd"),  # 31, 52
        ((1, 128, 128, 256), (3, 3, 256, 256), "winograd"),  # 57, 114
        ((8, 56, 56, 64), (5, 5, 64, 64), "winograd"),  # 16, 51
        ((1, 224, 224, 128), (11, 1, 128, 56), "direct"),  # 57, matmul 124 at once
    ],
)
def test_where_bands_pay(monkeypatch, shape, kernel, method):
    for module in (spread, winograd):
        monkeypatch.setattr(module, "FAST_CONVOLUTION", False)
    (row,) = jaxcnn.summarize(jaxcnn.conv, jnp.zeros(shape), jnp.zeros(kernel)).rows
    assert row.method == method
