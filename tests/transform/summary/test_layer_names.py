"""Names of layers whose library sets no scopes: from the arguments, or from the modules that a function reads."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxcnn
from jaxcnn import accelerate, summarize
from jaxcnn.transform.summary.layer_names import layer_of

X = jnp.ones((1, 8, 8, 3))

pytestmark = pytest.mark.usefixtures("standard_promotion")


def names(f, *args):
    return [row.name for row in summarize(f, *args).rows]


@pytest.fixture(scope="module")
def module():
    nnx = pytest.importorskip("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(4, 4, (3, 3), rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.conv(x))

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
            self.blocks = nnx.List([Block(rngs), Block(rngs)])
            self.up = nnx.ConvTranspose(4, 4, (2, 2), strides=(2, 2), rngs=rngs)
            self.head = nnx.Sequential(nnx.Linear(4, 5, rngs=rngs))

        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(self.up(nnx.max_pool(x, (2, 2), strides=(2, 2))).mean((1, 2)))

    return Network(nnx.Rngs(0))


NNX_NAMES = ["stem", "blocks/0/conv", "blocks/1/conv", "", "up", "head/layers/0"]


def of_state(module):
    from flax import nnx

    graph, state = nnx.split(module)
    return (lambda state, x: nnx.merge(graph, state)(x)), state, X


NNX_CALLS = {
    "closure": lambda module: (lambda x: module(x), X),
    "module": lambda module: (module, X),
    "method": lambda module: (module.__call__, X),
    "partial": lambda module: (functools.partial(lambda module, x: module(x), module), X),
    "argument": lambda module: (lambda module, x: module(x), module, X),
    "state": of_state,
    "accelerated": lambda module: (accelerate(lambda x: module(x)), X),
}


@pytest.mark.parametrize("call", NNX_CALLS)
def test_modules_of_nnx_are_named_by_their_paths(module, call):
    f, *args = NNX_CALLS[call](module)
    rows = summarize(f, *args).rows
    assert [row.name for row in rows] == NNX_NAMES
    assert all("test_layer_names.py" in row.source for row in rows)
    assert "flax" not in str(summarize(f, *args))


def test_gradients_have_the_names_of_their_layers(module):
    f, state, x = of_state(module)
    named = names(jax.grad(lambda state, x: f(state, x).sum()), state, x)
    assert named[:3] == ["jvp(stem)", "jvp(blocks/0/conv)", "jvp(blocks/1/conv)"]
    assert named[-1] == "transpose(jvp(stem))"  # the gradient of its kernel
    assert named.count("transpose(jvp(up))") == named.count("transpose(jvp(head/layers/0))") == 2
    # Which of two layers of one line and one shape has a kernel's gradient is not known.
    assert named.count("transpose(jvp(blocks/0/conv))") == named.count("transpose(jvp(blocks/1/conv))") == 1


def test_steps_of_a_scan_have_the_name_of_the_stack():
    def f(params, x):
        return lax.scan(lambda y, kernel: (jaxcnn.conv(y, kernel), None), x, params["blocks"]["kernel"])[0]

    params = {"blocks": {"kernel": jnp.ones((4, 3, 3, 3, 3))}}
    assert names(f, params, X) == ["blocks"]


def test_equinox_is_named_by_paths_in_place_of_classes():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 2)
    layers = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.MaxPool2d(2), eqx.nn.Conv2d(4, 4, 3, key=keys[1])]
    model, images = eqx.nn.Sequential(layers), jnp.ones((2, 3, 8, 8))
    _, pool, _ = expected = names(lambda model, x: jax.vmap(model)(x), model, images)
    assert expected == ["vmap(layers/0)", pool, "vmap(layers/2)"]
    assert "eqx.nn.MaxPool2d" in pool


def test_names_of_scopes_stay():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.max_pool(nn.Conv(4, (3, 3), name="stem")(x), (2, 2))

    variables = jax.eval_shape(Network().init, jax.random.key(0), X)
    rows = summarize(Network().apply, variables, X).rows
    assert [row.name for row in rows] == ["Network/stem", "Network"]
    assert all("test_layer_names.py" in row.source for row in rows)

    def scoped(params, x):
        with jax.named_scope("stem"):
            return jaxcnn.conv(x, params["layer"]["kernel"])

    assert names(scoped, {"layer": {"kernel": jnp.ones((3, 3, 3, 4))}}, X) == ["stem"]


def test_plain_functions_are_named_by_the_dictionaries_that_hold_their_parameters():
    def f(params, x):
        y = jaxcnn.conv(x, params["stem"]["kernel"] * params["stem"]["gain"])
        y = jaxcnn.conv(y, params["mixed"]["kernel"] * params["stem"]["gain"])
        return jaxcnn.conv(y, params["kernel"])

    gain = jnp.ones(())
    layer = {"kernel": jnp.ones((3, 3, 3, 3)), "gain": gain}
    params = {"stem": layer, "mixed": layer, "kernel": layer["kernel"]}
    with jax.numpy_rank_promotion("allow"):
        assert names(f, params, X) == ["stem", "", ""]


def test_variables_that_no_names_come_from():
    mixed = {1: X, "two": X}  # has no order, so JAX refuses to flatten it
    assert names(lambda x: jaxcnn.conv(x, mixed["two"][0, :1, :1, :, None]), X) == [""]

    # A function may name a global that does not exist, as long as it is not read.
    def undefined(x):
        return jaxcnn.conv(x, jnp.ones((1, 1, 3, 3))) if x.ndim else later  # noqa: F821

    assert names(undefined, X) == [""]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"conv": {"kernel": 1}}, "conv"),
        ({"blocks": [{"conv": {"kernel": 1}}]}, "blocks/0/conv"),
        ({"kernel": 1}, ""),
        (1, ""),
        ({"encoder/conv": {"w": 1}}, "encoder/conv"),
    ],
)
def test_the_layer_of_a_path(tree, expected):
    ((path, _),) = jax.tree_util.tree_flatten_with_path(tree)[0]
    assert layer_of(path) == expected
