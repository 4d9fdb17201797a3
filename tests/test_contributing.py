"""The complete examples of the page for contributors, executed as they stand there."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.lowering import choice, costs
from jaxcnn.lowering.pools import direct
from jaxcnn.lowering.spec import PoolSpec
from support.arrays import normal
from support.counting import loop_compose
from support.methods import assert_equals_direct, roles
from support.schemes import ROUNDING, error_of

PAGE = Path(__file__).parent.parent / "docs" / "contributing.md"


def example(heading):
    """The names that the code block below a heading defines."""
    section = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names = {}
    exec(compile(code, f"{PAGE.name}: {heading}", "exec"), names)
    return names


@pytest.fixture
def scheme(monkeypatch):
    """The example of a scheme, in the registry."""
    scheme = example("A new scheme")["SCHEME"]
    monkeypatch.setitem(SCHEMES, scheme.name, scheme)
    return scheme


def narrow_kernel(rng, groups=1):
    """A 3x3 kernel from 6 channels a group that needs 2 of them."""
    blocks = [loop_compose([normal((1, 1, 6, 2), rng), normal((3, 3, 2, 8), rng)], [1, 1]) for _ in range(groups)]
    return np.concatenate(blocks, axis=-1).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2])
def test_factorize_and_select_rank_know_the_scheme(scheme, groups, rng):
    kernel = narrow_kernel(rng, groups)
    options = {"feature_group_count": groups}
    chain = jaxcnn.factorize(kernel, tolerance=1e-4, schemes=scheme.name, **options)
    assert [link.shape for link in chain.kernels] == [(1, 1, 6, 2 * groups), (3, 3, 2, 8 * groups)]
    assert error_of(chain, kernel, groups) < ROUNDING
    assert jaxcnn.select_rank(kernel, scheme.name, tolerance=1e-4, **options) == 2


def test_a_curve_of_the_scheme_is_of_chains_that_are_made(scheme, rng):
    kernel = normal((3, 3, 6, 8), rng)
    points = jaxcnn.curve(kernel, scheme.name)
    assert points.ranks == (1, 2, 3, 4, 5)
    for rank, macs, error in zip(points.ranks, points.macs, points.errors, strict=True):
        chain = scheme.function(kernel, rank=rank)
        assert chain.num_params == macs
        assert error_of(chain, kernel) == pytest.approx(error, abs=ROUNDING)


def test_substitute_knows_the_scheme(scheme, rng):
    def model(params, x):
        return jaxcnn.conv(x, params["kernel"])

    x = jnp.asarray(normal((1, 8, 8, 6), rng))
    params = {"kernel": jnp.asarray(narrow_kernel(rng))}
    substitution = jaxcnn.substitute(model, params, x, rank=2, schemes=scheme.name)
    chain = substitution.params["kernel"]
    assert chain.windows == ((1, 1), (3, 3))
    np.testing.assert_allclose(substitution.apply(substitution.params, x), model(params, x), atol=1e-4)


@pytest.fixture
def method(monkeypatch):
    """The example of a method, in the registry; every estimate of its time is 0."""
    method = SimpleNamespace(**example("A new method"))
    monkeypatch.setitem(choice.METHODS, method.NAME, method)
    monkeypatch.setitem(costs.NANOSECONDS, method.NAME, {})
    monkeypatch.setitem(costs.MILLISECONDS_TO_COMPILE, method.NAME, {})
    return method


OPTIONS = {"strides": (2, 1), "kernel_dilation": (1, 2), "padding": ((1, 2), (0, 3))}


def test_the_method_equals_direct_and_is_chosen_where_it_is_fastest(method):
    cases = roles((2, 9, 8, 3), (3, 2, 3, 4), **OPTIONS)
    supported = [case for case in cases if method.refusal(case[0]) is None]
    assert [spec.role for spec, *_ in supported] == ["output", "input"]
    assert_equals_direct(method, supported)
    for spec, *_ in cases:
        is_chosen = choice.choose(spec, "auto", "cpu").method == method.NAME
        assert is_chosen == (method.refusal(spec) is None)


def test_conv_knows_the_method(method, rng):
    x, kernel = normal((2, 9, 8, 3), rng), normal((3, 2, 3, 4), rng)
    expected = jaxcnn.conv(x, kernel, method="direct", **OPTIONS)
    np.testing.assert_allclose(jaxcnn.conv(x, kernel, method=method.NAME, **OPTIONS), expected, atol=1e-4)
    with pytest.raises(ValueError, match="conv: method 'patches' does not support this convolution: it has 3 groups"):
        jaxcnn.conv(x, normal((3, 2, 1, 3), rng), feature_group_count=3, method=method.NAME)


@pytest.fixture
def pool(monkeypatch):
    """The example of a pool, asked before all others."""
    pool = SimpleNamespace(**example("A new pool"))
    monkeypatch.setattr(choice, "POOL_METHODS", (pool, *choice.POOL_METHODS))
    return pool


def test_the_pool_equals_direct_where_windows_tile_the_image(pool, rng):
    spec = PoolSpec((2, 6, 8, 3), (3, 2), (3, 2), ((0, 0), (0, 0)), (1, 1), np.dtype(np.float32))
    x, y = jnp.asarray(normal(spec.input_shape, rng)), jnp.asarray(normal(spec.output_shape, rng))
    assert choice.pool_method(spec, "cpu") is pool
    for mode in ("max", "min"):
        np.testing.assert_array_equal(pool.extremum(x, spec, mode), direct.extremum(x, spec, mode))
        for actual, expected in zip(pool.winner(x, spec, mode), direct.winner(x, spec, mode), strict=True):
            np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(pool.window_sum(x, spec), direct.window_sum(x, spec), atol=1e-5)
    np.testing.assert_array_equal(pool.window_spread(y, spec), direct.window_spread(y, spec))


@pytest.mark.parametrize(
    "change",
    [{"strides": (2, 2)}, {"padding": ((0, 3), (0, 0))}, {"input_shape": (2, 7, 8, 3)}, {"window_dilation": (2, 1)}],
)
def test_other_pools_are_left_to_the_others(pool, change):
    tiling = PoolSpec((2, 6, 8, 3), (3, 2), (3, 2), ((0, 0), (0, 0)), (1, 1), np.dtype(np.float32))
    assert choice.pool_method(dataclasses.replace(tiling, **change), "cpu").NAME == "slices"
    assert choice.pool_method(tiling, "cpu", selects=True).NAME == "slices"
    assert choice.pool_method(tiling, "gpu").NAME == "direct"


def test_public_pools_know_the_pool(pool, rng):
    x = jnp.asarray(normal((1, 6, 10, 2), rng))
    (row,) = jaxcnn.summarize(lambda x: jaxcnn.max_pool(x, (3, 2), strides=(3, 2)), x, platform="cpu").rows
    assert (row.method, row.reason) == ("tiles", "its windows tile the image")
    tiles = np.asarray(x).reshape(1, 2, 3, 5, 2, 2)
    np.testing.assert_array_equal(jaxcnn.max_pool(x, (3, 2), strides=(3, 2)), tiles.max((2, 4)))
    gradient = jax.grad(lambda x: jaxcnn.max_pool(x, (3, 2), strides=(3, 2)).sum())(x)
    winners = tiles == tiles.max((2, 4), keepdims=True)
    np.testing.assert_array_equal(gradient, winners.reshape(x.shape).astype(np.float32))
