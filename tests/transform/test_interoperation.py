"""`accelerate` around networks of Flax, Haiku, Equinox and Keras: values and derivatives of the network as it was."""

from __future__ import annotations

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import accelerate
from support import networks
from support.arrays import jax_normal
from support.jaxprs import primitives_of


@pytest.fixture(autouse=True)
def the_libraries_settings():
    """None of these libraries runs under the strict settings of the other tests."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.check_tracer_leaks(False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@cache
def network(library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(library.split(".")[0])
        return networks.LIBRARIES[library]()


def assert_close(actual, expected, tolerance):
    """The norm of the difference over the norm, for each array; beside it stands the rounding of a layer's zeros.

    The gradient of a bias before batch normalisation is exactly zero, and what is computed is its rounding.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    largest = max(float(jnp.linalg.norm(jnp.ravel(b))) for b in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-6 * largest


LIBRARIES = list(networks.LIBRARIES)
X = jax_normal(networks.SHAPE, 1)


def arrays_of(variables):
    """What can be differentiated, and a function that puts it back."""
    leaves, structure = jax.tree.flatten(variables)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def whole(arrays):
        given = dict(zip(places, arrays, strict=True))
        return jax.tree.unflatten(structure, [given.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in places], whole


@pytest.mark.parametrize("library", LIBRARIES)
def test_values(library):
    f, variables, train = network(library)
    arrays, whole = arrays_of(variables)

    def both(f, train):
        return jax.jit(lambda arrays, x: (f(whole(arrays), x), train(whole(arrays), x)))

    assert_close(both(accelerate(f), accelerate(train))(arrays, X), both(f, train)(arrays, X), 1e-5)
    found = primitives_of(lambda arrays, x: accelerate(f)(whole(arrays), x), arrays, X)
    assert {"jaxcnn_conv", "jaxcnn_extremum"} <= found
    assert not {"conv_general_dilated", "reduce_window_max", "reduce_window_sum"} & found


@pytest.mark.parametrize("library", LIBRARIES)
def test_gradients_in_training_mode(library):
    _, variables, train = network(library)
    arrays, whole = arrays_of(variables)

    def loss(train):
        return lambda arrays, x: jnp.sum(jnp.sin(train(whole(arrays), x)[0]))

    expected = jax.jit(jax.grad(loss(train), (0, 1)))(arrays, X)
    assert_close(accelerate(jax.grad(loss(train), (0, 1)))(arrays, X), expected, 1e-4)
    assert_close(jax.jit(jax.grad(loss(accelerate(train)), (0, 1)))(arrays, X), expected, 1e-4)


@pytest.mark.parametrize("library", ["flax"])
def test_a_second_derivative(library):
    f, variables, _ = network(library)

    def product(f):
        def loss(x):
            return jnp.sum(jnp.sin(f(variables, x)))

        return lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.cos(x),))[1]

    expected = jax.jit(product(f))(X)
    assert_close(accelerate(product(f))(X), expected, 1e-4)
    assert_close(jax.jit(product(accelerate(f)))(X), expected, 1e-4)


def test_flags_of_flax_reach_the_model():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, *, train: bool):
            assert isinstance(train, bool)
            x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
            return nn.Dropout(0.5, deterministic=not train)(x)

    model = Network()
    variables = model.init(jax.random.key(0), X, train=False)
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
    assert_close(accelerate(model.apply)(variables, X, **options), model.apply(variables, X, **options), 1e-5)


@pytest.mark.parametrize("transform", [jax.jit, accelerate])
def test_a_step_of_an_nnx_module_returns_its_state(transform):
    """As the documentation has it; the module itself comes back unchanged, as from `jax.jit`."""
    nnx = pytest.importorskip("flax.nnx")
    optax = pytest.importorskip("optax")

    def fresh():
        rngs = nnx.Rngs(0)
        model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
        return model, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    def loss(model, images):
        return jnp.mean(jnp.sin(model(images)))

    def update(model, optimizer, images):
        value, gradients = nnx.value_and_grad(loss)(model, images)
        optimizer.update(model, gradients)
        return value

    @transform
    def step(state, images):
        model, optimizer = nnx.merge(graph, state)
        value = update(model, optimizer, images)
        return value, nnx.state((model, optimizer))

    model, optimizer = fresh()
    expected = update(model, optimizer, X), nnx.state((model, optimizer))
    model, optimizer = fresh()
    graph, state = nnx.split((model, optimizer))
    before = jax.tree.map(jnp.copy, state)
    value, after = step(state, X)
    assert_close((value, after), expected, 1e-5)
    assert not np.allclose(model.layers[1].mean[...], after[0]["layers"][1]["mean"][...])
    transform(loss)(model, X)
    assert_close(nnx.state((model, optimizer)), before, 0)
