"""Arguments and results of transformed functions: arrays are traced, everything else is handed on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import accelerate
from support.accelerated import X
from support.arrays import assert_same

pytestmark = pytest.mark.leaks


def test_leaves_that_are_not_arrays_reach_the_function_unchanged():
    calls = []

    def f(config, x, *args, **kwargs):
        calls.append((config, args, kwargs))
        return x

    static = {"flag": True, "n": 3, "rate": 0.5, "name": "SAME", "none": None, "act": jax.nn.relu, "dtype": jnp.float32}
    for _ in range(2):
        accelerate(f)(static, X, 1, train=True, mutable=["batch_stats"])
    assert all(item == (static, (1,), {"train": True, "mutable": ["batch_stats"]}) for item in calls)
    assert type(calls[0][0]["flag"]) is bool
    assert type(calls[0][1][0]) is int


def test_they_are_part_of_the_cache_key(compilations):
    traced = []

    @accelerate
    def f(x, value):
        traced.append(value)
        return x * jnp.float32(value)

    x = jnp.ones(3)
    for value in (1, 1.0, True, 0.0, -0.0, 2, float("nan"), 1, 1.0, True, 0.0, -0.0, 2, float("nan")):
        f(x, value)
    assert [str(value) for value in traced] == ["1", "1.0", "True", "0.0", "-0.0", "2", "nan"]
    assert str(f(x, -0.0)[0]) == "-0.0"


def test_arrays_are_traced_once_for_each_shape_and_dtype():
    traced = []

    @accelerate
    def f(x):
        traced.append(x.aval)
        return x + 1

    for x in (np.ones(3), np.zeros(3), jnp.ones(3), np.float32(1), jnp.ones(3), jnp.ones(4)):
        f(x)
    with jax.check_tracer_leaks(False):  # which forgets every trace
        traced.clear()
        for _ in range(3):
            f(jnp.ones(5))
        assert len(traced) == 1


def test_an_argument_that_cannot_be_a_key_is_refused():
    with pytest.raises(TypeError, match=r"accelerate: an argument that is not an array must be hashable, got \{1\}"):
        accelerate(lambda s, x: x)({1}, X)


def test_results_that_are_not_arrays_are_handed_on():
    def f(x):
        return {"y": jnp.sum(x), "name": "sum", "shape": x.shape, "flag": True, "none": None, "scale": 0.5}

    result = accelerate(f)(X)
    assert {**result, "y": 0} == {"y": 0, "name": "sum", "shape": X.shape, "flag": True, "none": None, "scale": 0.5}
    assert type(result["flag"]) is bool


def test_shapes_dtypes_and_weak_types():
    def f(x):
        return x.astype(int), x > 0, jnp.asarray(2.0), x * 2, jnp.int8(3), jnp.full((2,), 1)

    assert_same(accelerate(f)(X), jax.jit(f)(X))
    assert accelerate(lambda: jnp.zeros(3))().shape == (3,)
    assert accelerate(lambda x: ())(X) == ()


def test_a_structure_that_depends_on_the_shape():
    f = accelerate(lambda x: {f"part {i}": x[i] for i in range(x.shape[0])})
    for n in (2, 3, 2):
        assert list(f(jnp.ones((n, 4)))) == [f"part {i}" for i in range(n)]
