"""Blocks of a convolution, inference batch normalization, an activation and a residual, as each library traces them."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxcnn import accelerate
from support import fusing
from support.arrays import assert_same
from support.arrays import jax_normal as normal
from support.fusing import fused, walk

SHAPE = (2, 6, 6, 4)


def scrambled(tree):
    """Parameters and statistics that are not 0 and 1: positive ones, so that they may be variances."""
    leaves, structure = jax.tree.flatten(tree)
    new = [
        jnp.abs(normal(leaf.shape, seed)) + 0.5 if leaf.ndim < 4 or 1 in leaf.shape[:2] else leaf
        for seed, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, new)


def flax_linen(train=False):
    from flax import linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), use_bias=False)(x))
            return nn.relu(x + y)

    block = Block()
    variables = block.init(jax.random.key(0), jnp.ones(SHAPE))
    if train:
        return lambda v, x: block.apply(v, x, mutable=["batch_stats"])[0], variables
    return block.apply, scrambled(variables)


def flax_nnx(train=False):
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.conv, self.norm = nnx.Conv(4, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return nnx.silu(self.norm(self.conv(x)) + x)

    graph, state = nnx.split(Block())

    def run(state, x):
        block = nnx.merge(graph, state)
        block.train() if train else block.eval()
        return block(x)

    return run, state if train else scrambled(state)


def haiku(train=False):
    import haiku as hk

    def block(x, train):
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), train)
        return jax.nn.gelu(x + y)

    transformed = hk.transform_with_state(block)
    params, state = transformed.init(jax.random.key(0), jnp.ones(SHAPE), True)
    variables = (params, state) if train else (scrambled(params), scrambled(state))
    variables = (variables[0], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables[1]))

    def run(variables, x):
        params, state = variables
        counted = jax.tree.map(lambda new, old: new.astype(old.dtype), state, transformed_state)
        return transformed.apply(params, counted, None, x, train)[0]

    transformed_state = state
    return run, variables


def equinox(train=False):
    import equinox as eqx

    conv = eqx.nn.Conv2d(4, 4, 3, padding=1, key=jax.random.key(0))
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, axis_name="batch", mode="ema")
    norm = eqx.nn.inference_mode(norm, not train)
    arrays, static = eqx.partition((conv, norm, state), eqx.is_inexact_array)

    def run(arrays, x):
        conv, norm, state = eqx.combine(arrays, static)

        def one(image):
            return jax.nn.relu6(norm(conv(image), state)[0] + image)

        images = jnp.moveaxis(x, -1, 1)
        return jnp.moveaxis(jax.vmap(one, axis_name="batch")(images), 1, -1)

    return run, arrays if train else scrambled(arrays)


def keras(train=False):
    import keras as k

    x = inputs = k.Input(SHAPE[1:])
    y = k.layers.BatchNormalization()(k.layers.Conv2D(4, 3, padding="same")(x))
    model = k.Model(inputs, k.layers.LeakyReLU()(k.layers.Add()([x, y])))
    trained = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    def run(variables, x):
        return model.stateless_call(*variables, x, training=train)[0]

    return run, (trained, fixed) if train else scrambled((trained, fixed))


BLOCKS = {
    "flax": (flax_linen, "relu"),
    "flax.nnx": (flax_nnx, "silu"),
    "haiku": (haiku, "gelu"),
    "equinox": (equinox, "relu6"),
    "keras": (keras, "leaky_relu"),
}


@pytest.fixture(params=BLOCKS)
def block(request, standard_promotion):
    """A block's function, its parameters and the name of its activation."""
    make, activation = BLOCKS[request.param]
    return *make(), activation


X = normal(SHAPE, 7) * 2


def test_the_whole_block_is_one_call(block, fusion):
    f, params, activation = block
    (recipe,) = fused(accelerate(f), params, X)
    assert recipe.activation == activation
    assert recipe.residual is not None
    # Nothing else is computed of an array as large as an image.
    closed = jax.make_jaxpr(accelerate(f))(params, X)
    large = [e for e in closed.eqns if any(variable.aval.size >= X.size for variable in e.outvars)]
    moves = {"transpose", "reshape", "broadcast_in_dim", "squeeze", "copy"}
    names = [e.primitive.name for e in large if e.primitive.name not in moves]
    assert names == ["jaxcnn_fused_conv"]
    with jax.check_tracer_leaks(False):
        assert_same(accelerate(f)(params, X), jax.jit(f)(params, X))


def test_no_pass_over_memory_is_left(monkeypatch):
    if fusing.use(monkeypatch, "native") is None:
        pytest.skip("there are no native kernels")
    f, params = flax_linen()
    text = jax.jit(accelerate(f)).lower(params, X).compile().as_text()
    entry = text[text.index("ENTRY") :]
    large = re.findall(r"= f32\[2,6,6,4\]\S* ([\w-]+)\(", entry)
    assert sorted(set(large)) == ["custom-call", "parameter"]


def test_derivatives_of_a_block(block, fusion):
    f, params, _ = block

    def loss(f, params, x):
        return jnp.sum(jnp.sin(f(params, x)))

    @partial(jax.jit, static_argnums=0)
    def derivatives(f, params, x):
        grad = jax.grad(partial(loss, f), (0, 1))
        forward = jax.jvp(partial(f, params), (x,), (jnp.cos(x),))
        ones = jax.tree.map(jnp.ones_like, params)
        return forward, grad(params, x), jax.jvp(grad, (params, x), (ones, x))[1]

    with jax.check_tracer_leaks(False):
        expected = derivatives(f, params, X)
        assert_same(derivatives(accelerate(f), params, X), expected, 1e-4)
        assert_same(accelerate(jax.grad(partial(loss, f), (0, 1)))(params, X), expected[1], 1e-4)


@pytest.mark.parametrize("library", BLOCKS)
def test_a_block_in_training_keeps_its_statistics(library, fusing_on, standard_promotion):
    f, params = BLOCKS[library][0](train=True)
    recipes = fused(accelerate(f), params, X)
    # What follows the statistics is not fused; the bias before them may be.
    assert all(recipe.activation == "none" and recipe.residual is None for recipe in recipes)
    assert all(len(recipe.steps) <= 1 for recipe in recipes)
    assert any(equation.primitive.name == "reduce_sum" for equation in walk(jax.make_jaxpr(f)(params, X)))
    with jax.check_tracer_leaks(False):
        assert_same(accelerate(f)(params, X), jax.jit(f)(params, X), 1e-4)
