"""`accelerate` as a transformation of functions: arguments, results, caching, composition."""

from __future__ import annotations

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from jaxcnn import accelerate
from support.accelerated import PARAMS, X, network, small
from support.arrays import assert_same, jax_normal

pytestmark = pytest.mark.leaks


LABELS = jnp.array([1, 4])


def loss(params, x, labels):
    logits = network(params, x, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), {"logits": logits}


def test_a_network_forward_and_backward():
    assert_same(accelerate(network)(PARAMS, X), network(PARAMS, X))
    gradient = jax.value_and_grad(loss, has_aux=True)
    expected = jax.jit(gradient)(PARAMS, X, LABELS)
    assert_same(accelerate(gradient)(PARAMS, X, LABELS), expected, 1e-4)
    inside = jax.value_and_grad(accelerate(loss), has_aux=True)
    assert_same(inside(PARAMS, X, LABELS), expected, 1e-4)


def test_a_training_step():
    optimizer = optax.adam(1e-2)

    def step(params, state, x, labels):
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, x, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    def train(step):
        params, state = PARAMS, optimizer.init(PARAMS)
        for _ in range(3):
            params, state, value = step(params, state, X, LABELS)
        return params, value

    with jax.numpy_dtype_promotion("standard"):
        assert_same(train(accelerate(step)), train(jax.jit(step)), 1e-4)


@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: lambda params, x: jax.vmap(f, (None, 0))(params, x[:, None]),
        lambda f: lambda params, x: jax.vmap(f)(jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params), x[:, None]),
        lambda f: lambda params, x: jax.jvp(partial(f, params), (x,), (x,)),
        lambda f: lambda params, x: lax.scan(lambda c, x: (c, f(params, x)), 0.0, x[:, None]),
        lambda f: lambda params, x: lax.map(lambda x: f(params, x[None]), x),
        lambda f: jax.jacrev(lambda params, x: f(params, x).sum(0)),
    ],
)
def test_composition(transform):
    expected = jax.jit(transform(small))(PARAMS, X)
    assert_same(jax.jit(transform(accelerate(small)))(PARAMS, X), expected, 1e-4)
    assert_same(jax.jit(accelerate(transform(small)))(PARAMS, X), expected, 1e-4)


def test_eager_and_without_jit():
    with jax.disable_jit():
        assert_same(accelerate(small)(PARAMS, X), small(PARAMS, X))


def test_idempotent():
    once, twice = accelerate(network), accelerate(accelerate(network))
    assert str(jax.make_jaxpr(once)(PARAMS, X)) == str(jax.make_jaxpr(twice)(PARAMS, X))


def test_decorator_keeps_name_signature_and_docstring():
    @accelerate
    def f(x, *, train: bool = False):
        """What f does."""
        return x

    assert (f.__name__, f.__doc__) == ("f", "What f does.")
    assert list(inspect.signature(f).parameters) == ["x", "train"]
    assert f(X, train=True) is not None


def test_as_a_method_and_on_callable_objects():
    class Model:
        def __init__(self):
            self.params = PARAMS

        def __call__(self, x, train=False):
            return small(self.params, x) * (2 if train else 1)

        @accelerate
        def apply(self, x):
            return small(self.params, x)

    model = Model()
    assert_same(accelerate(model)(X), small(PARAMS, X))
    assert_same(accelerate(model.__call__)(X, train=True), small(PARAMS, X) * 2)
    assert_same(model.apply(X), small(PARAMS, X))
    assert not hasattr(accelerate(model), "params")


def test_donated_arguments():
    x = jnp.array(X)
    f = jax.jit(accelerate(lambda x: jax.nn.relu(x) + 1), donate_argnums=0)
    f(x)
    assert x.is_deleted()


def test_errors_of_the_function_are_its_own():
    with pytest.raises(ZeroDivisionError):
        accelerate(lambda x: x / 0 if 1 / 0 else x)(X)


def test_inside_a_trace_with_known_arguments():
    @jax.jit
    def f(scale):
        return accelerate(lambda x: small(PARAMS, x) * scale)(X)

    assert_same(f(2.0), small(PARAMS, X) * 2)


def test_inside_a_trace_what_f_closes_over_may_be_of_that_trace():
    class Layer:
        kernel = None

        @accelerate
        def __call__(self, x):
            return lax.conv_general_dilated(x, self.kernel, (1, 1), "SAME")

    layer = Layer()

    def loss(kernel, x):
        layer.kernel = kernel
        result = jnp.sum(layer(x) ** 2)
        layer.kernel = None
        return result

    def expected(kernel, x):
        return jnp.sum(lax.conv_general_dilated(x, kernel, (1, 1), "SAME") ** 2)

    kernel = jax_normal((3, 3, 3, 3))
    grad = partial(jax.grad, argnums=(0, 1))
    for run in (jax.jit, grad, lambda f: jax.jit(grad(f)), grad):
        # Of the same shapes each time, but each time with values of another trace.
        assert_same(run(loss)(kernel, X), run(expected)(kernel, X), 1e-4)


def test_a_method_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"accelerate: method must be one of 'auto', 'direct'.*, got 'winograd9'"):
        accelerate(network, method="winograd9")
    with pytest.raises(TypeError, match="accelerate: f must be a function, got 3"):
        accelerate(3)
