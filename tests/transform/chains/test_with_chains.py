"""`with_chains` as a transformation of functions: arguments, results, refusals, caching, composition."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxcnn
from jaxcnn import accelerate, with_chains
from jaxcnn.transform.chains.with_chains import apply_with_chains
from support.arrays import assert_same, jax_normal
from support.chains import (
    QUICK,
    SEPARABLE,
    SQUARE,
    STACKED,
    X,
    chain,
    conv,
    dense,
    in_order,
    is_chain,
    variables,
)

pytestmark = pytest.mark.leaks

compiled = partial(jax.jit, compiler_options=QUICK)
OTHER = chain((3, 1, 6, 2), (1, 3, 2, 3))
PARAMS = {"stem": {"kernel": SEPARABLE, "bias": jax_normal((6,), 2)}, "body": OTHER, "head": jax_normal((3, 5), 4)}


def network(params, x, *, train=False, activation=jax.nn.relu, mode="plain"):
    """Two convolutions and a classifier."""
    x = activation(conv(x, params["stem"]["kernel"], 2) + params["stem"]["bias"].reshape(1, 1, 1, -1))
    x = conv(x, params["body"] * (0.5 if train else 1.0))
    x = -x if mode == "negative" else x
    return x.mean((1, 2)) @ params["head"]


def loss(params, x):
    return jnp.sum(jnp.sin(network(params, x)))


def without_chains(values):
    return jax.tree.map(lambda value: value.dense() if is_chain(value) else value, values, is_leaf=is_chain)


def test_a_network():
    assert_same(with_chains(network)(PARAMS, X), network(without_chains(PARAMS), X))


@pytest.mark.parametrize("options", [{"train": True}, {"activation": jnp.tanh}, {"mode": "negative"}])
def test_arguments_that_are_no_arrays_reach_f_unchanged(options):
    assert_same(with_chains(network)(PARAMS, X, **options), network(without_chains(PARAMS), X, **options))
    with pytest.raises(
        TypeError, match=r"with_chains: an argument that is not an array must be hashable, got \{1, 2\}"
    ):
        with_chains(network)(PARAMS, X, mode={1, 2})


def test_an_argument_that_is_no_function():
    with pytest.raises(TypeError, match="with_chains: f must be a function, got 3"):
        with_chains(3)


def test_the_name_of_f_is_kept():
    assert with_chains(network).__name__ == "network"
    assert with_chains(partial(network, train=True))(PARAMS, X).shape == (2, 5)


def test_no_chain_at_all():
    def f(x, n):
        return {"sum": x.sum(), "same": x, "text": "a", "number": n, "weak": jnp.sin(1.0)}

    assert_same(with_chains(f)(X, 3), f(X, 3))
    assert_same(with_chains(network)(without_chains(PARAMS), X), network(without_chains(PARAMS), X))


def test_a_chain_used_twice_and_by_keyword():
    def f(x, *, w):
        return conv(x, w) + conv(x, w[::-1]), conv(x, w.transpose(0, 1, 3, 2).transpose(0, 1, 3, 2), 2)

    assert_same(with_chains(f)(X, w=SEPARABLE), f(X, w=SEPARABLE.dense()))


def test_links_that_are_numpy_arrays():
    links = jax.tree.map(np.asarray, SEPARABLE)
    gradient = jax.grad(with_chains(lambda w, x: jnp.sin(conv(x, w[::-1] * 2, 2)).sum()), 1)(links, X)
    expected = jax.grad(lambda w, x: jnp.sin(conv(x, w[::-1] * 2, 2)).sum(), 1)(SEPARABLE.dense(), X)
    assert_same(gradient, expected)


def test_a_chain_that_nothing_was_done_to_is_returned_as_it_was():
    returned, y = with_chains(lambda w, x: (w, conv(x, w)))(SEPARABLE, X)
    assert is_chain(returned)
    jax.tree.map(np.testing.assert_array_equal, returned, SEPARABLE)
    assert_same(y, conv(X, SEPARABLE.dense()))
    doubled = with_chains(lambda w: w * 2)(SEPARABLE)
    np.testing.assert_allclose(doubled.dense(), 2 * SEPARABLE.dense(), rtol=1e-5)


# Refusals.


@pytest.mark.parametrize(
    ("f", "operation"),
    [
        (lambda p, x: conv(x, p["w"]).sum() + (p["w"] ** 2).sum(), r"integer_pow at .*test_with_chains.py"),
        (lambda p, x: conv(x, p["w"] + 1), "add"),
        (lambda p, x: conv(x, p["w"] * p["w"]), "mul"),
        (lambda p, x: jnp.ones((2, 1, 1, 1, 1)) * p["w"][None], "mul"),
        (lambda p, x: conv(x, p["w"] * jnp.arange(3.0).reshape(3, 1, 1, 1)), "mul"),
        (lambda p, x: conv(x, 1 / p["w"]), "div"),
        (lambda p, x: conv(x, p["w"][1:]), "slice"),
        (lambda p, x: conv(x, jnp.concatenate([p["w"], p["w"]], -1)), "concatenate"),
        (lambda p, x: conv(x, lax.rev(p["w"], (3,))), "conv_general_dilated"),
        (lambda p, x: conv(p["w"], jnp.ones((1, 1, 6, 2))), "conv_general_dilated"),
        (lambda p, x: lax.scan(lambda c, w: (c, w.sum()), 0.0, p["w"]), "scan"),
        (lambda p, x: lax.scan(lambda w, _: (w[::-1], None), p["w"], None, length=3), "scan"),
        (lambda p, x: lax.while_loop(lambda w: w.sum() > 1e6, lambda w: w, p["w"]), "reduce_sum"),
        (lambda p, x: lax.fori_loop(0, jnp.int32(x.shape[0]), lambda _, w: w[::-1], p["w"]), "while"),
        (lambda p, x: lax.cond(x.sum() > 0, lambda w: w, lambda w: -w, p["w"]), "cond"),
        (lambda p, x: p["w"][::-1], "is returned as something else than it was"),
        (lambda p, x: p["w"].astype(np.int32), "convert_element_type"),
    ],
)
def test_what_takes_no_chain(f, operation):
    params = {"w": SEPARABLE}
    with pytest.raises(ValueError, match=operation) as error:
        with_chains(f)(params, X)
    message = str(error.value)
    assert message.startswith("with_chains: the chain in place of argument 0['w'], for a kernel (3, 2, 4, 6), ")
    assert message.endswith("where only the dense kernel could go; with_chains(f, materialize=True) makes it")
    assert_same(without_chains(with_chains(f, materialize=True)(params, X)), f(without_chains(params), X))


def test_the_quotient_of_integers():
    links = jnp.full((1, 1, 1, 1), 3, np.int32), jnp.full((1, 1, 1, 1), 3, np.int32)
    own = jaxcnn.KernelChain(links)
    with pytest.raises(ValueError, match="reaches div"):
        with_chains(lambda w: lax.div(w, jnp.int32(2)))(own)
    assert with_chains(lambda w: lax.div(w, jnp.int32(2)), materialize=True)(own) == 4
    assert with_chains(lambda w: w * jnp.int32(2))(own).dense() == 18


def test_the_path_of_a_keyword():
    with pytest.raises(ValueError, match=r"in place of w=\[1\], for a kernel \(3, 2, 4, 6\), reaches add"):
        with_chains(lambda *, w: w[1] + 1)(w=[X, SEPARABLE])


def test_a_group_count_that_is_not_the_chains():
    with pytest.raises(ValueError, match="feature_group_count"):
        with_chains(lambda w, x: conv(x, w, feature_group_count=2))(SEPARABLE, jax_normal((2, 9, 7, 8)))


def test_kernels_in_two_orders():
    def f(a, b, x):
        return conv(conv(x, a), b, dimension_numbers=("NHWC", "OIHW", "NHWC"))

    with pytest.raises((TypeError, ValueError)) as error:
        with_chains(f)(SEPARABLE, OTHER, X)
    assert "with_chains: f has this error with the chains' kernels in the order HWIO" in error.value.__notes__[0]


def test_an_error_of_f_itself():
    class LibraryError(Exception):
        pass

    def f(w, x):
        if w.shape != (6, 4, 3, 2):
            raise LibraryError(w.shape)
        return conv(x, w, dimension_numbers=("NHWC", "OIHW", "NHWC"))

    assert_same(with_chains(f)(SEPARABLE, X), f(in_order(SEPARABLE.dense(), "OIHW"), X))
    with pytest.raises(LibraryError, match="2, 3, 4, 6"):
        with_chains(f)(chain((2, 1, 4, 5), (1, 3, 5, 6)), X)
    with pytest.raises(LibraryError):
        with_chains(f)(SEPARABLE.dense(), X)


# Composition.


@pytest.mark.parametrize(
    "both",
    [
        lambda f: accelerate(with_chains(f)),
        lambda f: with_chains(accelerate(f)),
        lambda f: jax.jit(with_chains(jax.jit(f))),
        lambda f: jax.checkpoint(with_chains(f)),
        lambda f: with_chains(with_chains(f)),
    ],
)
def test_with_other_transformations(both):
    def f(w, x):
        return jnp.tanh(conv(x, w * 2, 2)).sum()

    actual = compiled(jax.value_and_grad(both(f)))(SEPARABLE, X)
    assert_same(actual, compiled(jax.value_and_grad(lambda w, x: f(w.dense(), x)))(SEPARABLE, X), 2e-5)


@pytest.mark.parametrize("both", [lambda f: accelerate(with_chains(f)), lambda f: with_chains(accelerate(f))])
def test_acceleration_of_transposes_loops_and_derivatives(both):
    def f(w, ws, x):
        def step(x, w):
            return jnp.tanh(conv(x, w)), None

        y = lax.scan(step, x, ws)[0]
        y = y + jax.grad(lambda x: jnp.sin(conv(x, w, 2)).sum())(x)
        return lax.conv_transpose(conv(y, w), w, (2, 2), "SAME", transpose_kernel=True)

    # A stack has one axis more than the other chain, and is told from it by that.
    expected = f(SQUARE.dense(), dense(STACKED, 1), X)
    assert_same(both(f)(SQUARE, STACKED, X), expected)


def test_forward_mode_and_second_order():
    tangent = jax.tree.map(jnp.cos, PARAMS)

    def wanted(params, x):
        return loss(without_chains(params), x)

    def derivatives(f):
        return lambda params: jax.jvp(jax.grad(f), (params, X), (tangent, jnp.cos(X)))

    actual, expected = (compiled(derivatives(f))(PARAMS) for f in (with_chains(loss), wanted))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_vmap_over_images_and_over_links():
    images = jax_normal((3, *X.shape), 1)
    several = jax.tree.map(lambda link: jnp.stack([link, 2 * link, -link]), SEPARABLE)
    f = with_chains(lambda w, x: jnp.tanh(conv(x, w, 2)))

    def one(w, x):
        return jnp.tanh(conv(x, w, 2))

    assert_same(jax.vmap(f, (None, 0))(SEPARABLE, images), jax.vmap(one, (None, 0))(SEPARABLE.dense(), images))
    assert_same(jax.vmap(f)(several, images), jax.vmap(one)(dense(several, 1), images))
    assert_same(jax.vmap(f, (0, None))(several, X), jax.vmap(one, (0, None))(dense(several, 1), X))


def test_a_training_step_lowers_the_loss(standard_promotion):
    optimizer, labels = optax.adam(1e-2), jnp.array([1, 4])

    def objective(params):
        logits = with_chains(network)(params, X, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(objective)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params, state, losses = PARAMS, optimizer.init(PARAMS), []
    for _ in range(4):
        params, state, value = step(params, state)
        losses.append(value)
    assert losses == sorted(losses, reverse=True)
    assert is_chain(params["stem"]["kernel"])
    assert (params["stem"]["kernel"].kernels[0] != SEPARABLE.kernels[0]).any()


def test_f_is_traced_once_for_a_signature():
    traces = []

    def f(w, x, flag):
        traces.append(flag)
        return conv(x, w)

    transformed = with_chains(f)
    for own in (SEPARABLE, jax.tree.map(jnp.cos, SEPARABLE)):
        transformed(own, X, True)
    assert traces == [True]
    transformed(SEPARABLE, X, False)
    transformed(SEPARABLE, X[:1], False)
    assert traces == [True, False, False]
    gradient = jax.grad(lambda w: transformed(w, X, 3).sum())
    gradient(SEPARABLE), gradient(SEPARABLE)
    assert traces == [True, False, False, 3]


def test_the_dense_kernel_is_found_where_it_is_made():
    # What `assert_no_kernel` looks for.
    assert (3, 2, 4, 6) in variables(with_chains(lambda w: w + 1, materialize=True), SEPARABLE)


# Drawn sequences of moves.

MOVES = {
    "double": (lambda w: 2 * w, None),
    "negate": (lambda w: -w, None),
    "flip": (lambda w: w[::-1], None),
    "flip columns": (lambda w: w[:, ::-1], None),
    "turn": (lambda w: w.transpose(3, 1, 0, 2), lambda w: w.transpose(2, 1, 3, 0)),
    "merge": (lambda w: w.reshape(6, 4, 6), lambda w: w.reshape(3, 2, 4, 6)),
    "split": (lambda w: w.reshape(3, 2, 2, 2, 3, 2), lambda w: w.reshape(3, 2, 4, 6)),
    "scale": (lambda w: w * (1 + jnp.arange(6.0).reshape(1, 1, 1, 6)), None),
    "cast": (lambda w: w.astype(np.float16).astype(np.float32), None),
    "jit": (jax.jit(lambda w: w / 3), None),
}


@settings(max_examples=8)
@given(st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=6))
def test_drawn_moves(names):
    def f(w, x):
        seen = []
        for name in names:
            there, back = MOVES[name]
            w = there(w)
            seen.append(w)
            w = w if back is None else back(w)
        return conv(x, w), seen

    kernel, tolerance = SEPARABLE.dense(), 1e-3 if "cast" in names else 1e-5
    assert_same(with_chains(lambda w, x: f(w, x)[0])(SEPARABLE, X), f(kernel, X)[0], tolerance)
    _, seen = with_chains(f, materialize=True)(SEPARABLE, X)
    assert_same(without_chains(seen), f(kernel, X)[1], tolerance)


def test_the_images_of_convolutions_with_chains_but_not_those_in_loops():
    def model(params, x):
        y = jnp.tanh(jax.jit(lambda x: conv(x, params["first"]))(x))
        z = conv(y, params["dense"])
        in_loop = lax.scan(lambda z, _: (conv(z, params["second"]), None), z, None, 2)[0]
        return conv(in_loop, params["second"]), in_loop

    params = {"first": SQUARE, "dense": jax_normal((2, 2, 4, 4)), "second": SQUARE}
    (result, in_loop), images = compiled(apply_with_chains(model, None, with_images=True))(params, X)
    assert len(images) == 2
    assert_same(images[0], X)
    assert_same(images[1], in_loop)
    assert_same(result, conv(in_loop, SQUARE.dense()))
