"""Dense convolutions with taps on both sides of a product: every split of the window's axes, in blocks and in loops."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.lowering.methods import matmul_spread as spread
from support.arrays import normal, relative_error

pytestmark = pytest.mark.without_native

OPTIONS = {
    "same": {},
    "uneven padding": {"padding": ((0, 3), (2, 1))},
    "cropped": {"padding": ((-1, 2), (3, -2))},
    "dilated": {"kernel_dilation": (2, 3), "padding": ((4, 1), (0, 5))},
    "valid": {"padding": "VALID"},
}
AXES = [(), (0,), (1,), (0, 1)]
OPERANDS = normal((4, 9, 8, 3), 0), normal((3, 4, 3, 5), 1)


def by_options(x, kernel, method):
    return {name: jaxcnn.conv(x, kernel, method=method, **options) for name, options in OPTIONS.items()}


@pytest.fixture(scope="module")
def expected():
    return jax.jit(partial(by_options, method="direct"))(*OPERANDS)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize(("images", "taps"), [(4, 100), (1, 100), (2, 1), (1, 2)])
def test_every_split_of_the_axes(monkeypatch, expected, axes, images, taps):
    # Room for the products of so many images together, or of so many taps of one image: the rest goes block by block.
    columns = 12 // int(np.prod([(3, 4)[axis] for axis in axes]))
    pixels = 9 * 8 if taps == 100 else 4 * 9 * 8
    room = images * columns if taps == 100 else taps
    monkeypatch.setattr(spread, "_PRODUCT_BYTES", 4 * 5 * pixels * room + 400 * images)
    monkeypatch.setattr(spread, "gathered_axes", lambda *_: axes)
    jax.clear_caches()
    actual = jax.jit(partial(by_options, method="matmul"))(*OPERANDS)
    for name in OPTIONS:
        assert actual[name].shape == expected[name].shape
        assert relative_error(actual[name], expected[name]) < 1e-6, name
    jax.clear_caches()


def test_images_go_in_a_loop_and_taps_in_blocks(monkeypatch):
    x, kernel = jnp.asarray(normal((6, 9, 8, 3), 0)), jnp.asarray(normal((3, 4, 3, 5), 1))

    def text():
        jax.clear_caches()
        return jax.jit(lambda x, k: jaxcnn.conv(x, k, method="matmul")).lower(x, kernel).as_text()

    assert text().count("dot_general") == 1
    assert "while" not in text()
    monkeypatch.setattr(spread, "_PRODUCT_BYTES", 2 * 9 * 8 * 3 * 5 * 4 + 1000)  # two images of three columns
    monkeypatch.setattr(spread, "gathered_axes", lambda *_: (1,))
    assert "while" in text()
    assert text().count("dot_general") == 1
    monkeypatch.setattr(spread, "_PRODUCT_BYTES", 9 * 8 * 5 * 4)  # one image, one tap of three
    assert text().count("dot_general") == 3
    jax.clear_caches()


@pytest.mark.parametrize("spatial", [1, 3])
def test_one_and_three_axes(spatial):
    x, kernel = normal((2, *[7] * spatial, 3), 0), normal((*(3, 2, 4)[:spatial], 3, 5), 1)
    actual = jaxcnn.conv(x, kernel, method="matmul")
    expected = jaxcnn.conv(x.astype(np.float64), kernel.astype(np.float64), method="direct")
    assert relative_error(actual, expected) < 1e-6


def test_integers_are_exact():
    generator = np.random.default_rng(0)
    x, kernel = (generator.integers(-128, 127, shape, np.int8) for shape in ((1, 9, 8, 30), (5, 3, 30, 4)))
    np.testing.assert_array_equal(jaxcnn.conv(x, kernel, method="matmul"), jaxcnn.conv(x, kernel, method="direct"))


def test_the_fewest_numbers_are_moved():
    assert spread.gathered_axes((11, 1), 3136, 64, 64) == ()
    assert spread.gathered_axes((1, 3), 3136, 64, 512) == (1,)
    assert spread.gathered_axes((11, 11), 3136, 64, 64) == (0,)
    assert spread.gathered_axes((7, 7), 3136, 64, 10) == ()
    for window, features in itertools.product([(3, 3), (5, 1), (2, 3, 4)], [(1, 100), (100, 1), (8, 8)]):
        own = spread.moved(window, *features, spread.gathered_axes(window, 1000, *features))
        for axes in ((), (0,), tuple(range(len(window)))):
            assert own <= spread.moved(window, *features, axes)


def test_what_fits_is_taken_before_what_moves_less():
    assert spread.moved((7, 7), 96, 30, ()) < spread.moved((7, 7), 96, 30, (0,))
    assert spread.gathered_axes((7, 7), 2500, 96, 30) == ()
    assert spread.gathered_axes((7, 7), 3136, 96, 30) == (0,)  # 18 MB spread, 8 MB gathered


@pytest.mark.parametrize(
    ("shape", "kernel", "wanted"),
    [
        ((1, 56, 56, 64), (11, 1, 64, 31), True),  # 1.0 ms, direct 2.0
        ((1, 56, 56, 64), (1, 7, 64, 64), True),  # 1.0, 1.8
        ((1, 56, 56, 64), (11, 11, 64, 64), True),  # 22, 30
        ((8, 28, 28, 256), (3, 3, 256, 10), True),  # 2.0, 5.1
        ((1, 56, 56, 120), (7, 7, 120, 56), True),  # 12, 24
        ((1, 64, 64, 144), (11, 11, 144, 48), True),  # 53, 85
        ((1, 12, 12, 152), (9, 9, 152, 56), True),  # 1.2, 2.5
        ((2, 14, 14, 104), (7, 7, 104, 56), True),  # 3.0, 3.9
        ((1, 112, 112, 96), (7, 7, 96, 32), False),  # 68, 25
        ((1, 64, 64, 40), (11, 11, 40, 8), False),  # 7.3, 4.2
        ((1, 12, 12, 32), (11, 11, 32, 24), False),  # 0.37, 0.31
        ((1, 112, 112, 64), (11, 1, 64, 96), False),  # 24, 12
        ((1, 8, 8, 192), (3, 1, 192, 192), False),  # 0.24, 0.15
        ((8, 56, 56, 64), (1, 7, 64, 64), False),  # 16, 15
        ((1, 17, 17, 192), (1, 7, 192, 192), False),  # 0.9, 1.2, but not within Inception-v3
    ],
)
def test_where_it_pays(monkeypatch, shape, kernel, wanted):
    monkeypatch.setattr(spread, "FAST_CONVOLUTION", False)
    (row,) = jaxcnn.summarize(jaxcnn.conv, jnp.zeros(shape), jnp.zeros(kernel)).rows
    assert (row.method == "matmul") == wanted


def test_where_xla_convolves_fast_it_never_pays(monkeypatch):
    monkeypatch.setattr(spread, "FAST_CONVOLUTION", True)
    (row,) = jaxcnn.summarize(jaxcnn.conv, jnp.zeros((1, 56, 56, 64)), jnp.zeros((11, 1, 64, 31))).rows
    assert row.method == "direct"


def test_the_input_gradient_takes_it_too(monkeypatch):
    monkeypatch.setattr(spread, "FAST_CONVOLUTION", False)
    x, kernel = jnp.zeros((1, 56, 56, 64)), jnp.zeros((11, 1, 64, 31))
    rows = jaxcnn.summarize(
        lambda y: jax.vjp(lambda x: jaxcnn.conv(x, kernel), x)[1](y), jnp.zeros((1, 56, 56, 31))
    ).rows
    assert [row.method for row in rows if row.kind == "transposed conv"] == ["matmul"]
