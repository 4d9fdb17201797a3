"""Policies of `jax.checkpoint` decide about jaxcnn's convolutions as about lax's, in the gradient's jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import Offloadable, Recompute, Saveable
from jax.extend.core.primitives import conv_general_dilated_p

import jaxcnn
from support.arrays import normal
from support.jaxprs import primitives_of

X = normal((1, 4, 8, 8))
LAYERS = [(normal((4, 4, 3, 3), seed), normal((1, 4, 1, 1), 10 + seed)) for seed in range(3)]


def on_convolutions(answer: Any, otherwise: Any = False) -> Callable[..., Any]:
    return lambda primitive, *_, **__: answer if primitive is conv_general_dilated_p else otherwise


POLICIES = {
    "none": None,
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "by primitive": on_convolutions(True),
    "by name": lambda primitive, *_, **__: primitive.name == "conv_general_dilated",
    "all but convolutions": on_convolutions(False, otherwise=True),
    "saved": on_convolutions(Saveable, otherwise=Recompute),
    "offloaded": on_convolutions(Offloadable("device", "pinned_host"), otherwise=Recompute),
}
SAVING = {"everything", "dots", "by primitive", "by name", "saved", "offloaded"}


def conv(x, kernel, groups=1):
    numbers = ("NCHW", "OIHW", "NCHW")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def network(layers, x):
    for kernel, bias in layers:
        x = jax.nn.relu(conv(x, kernel) + bias)
    return x


def loss(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: f(*args).sum()


PLACES = {
    "inside": lambda f, policy: jax.grad(loss(jaxcnn.accelerate(jax.checkpoint(f, policy=policy)))),
    "around": lambda f, policy: jax.grad(loss(jax.checkpoint(jaxcnn.accelerate(f), policy=policy))),
    "inside, with the gradient": lambda f, policy: jaxcnn.accelerate(jax.grad(loss(jax.checkpoint(f, policy=policy)))),
}


def counts(f: Callable[..., Any], *args: Any) -> tuple[int, int]:
    """Returns how many convolutions and how many moves to another memory the jaxpr of f has."""
    names = primitives_of(f, *args)
    return sum(name in ("conv_general_dilated", "jaxcnn_conv") for name in names), names.count("device_put")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("policy", POLICIES)
def test_accelerated_convolutions_are_kept_as_those_of_lax(policy: str, place: str) -> None:
    plain = jax.grad(loss(jax.checkpoint(network, policy=POLICIES[policy])))
    expected = counts(plain, LAYERS, X)
    if policy in SAVING:
        assert expected == (8, 6 if policy == "offloaded" else 0)
    assert counts(PLACES[place](network, POLICIES[policy]), LAYERS, X) == expected


@pytest.mark.parametrize("policy", ["nothing", "by primitive", "offloaded"])
@pytest.mark.parametrize("place", ["inside", "around"])
def test_layers_without_a_gradient_are_kept_with_their_epilogue(policy: str, place: str) -> None:
    def last(layer, x):
        return network([*LAYERS[:2], layer], x)

    plain = jax.grad(loss(jax.checkpoint(last, policy=POLICIES[policy])))
    accelerated = PLACES[place](last, POLICIES[policy])
    assert counts(accelerated, LAYERS[2], X) == counts(plain, LAYERS[2], X)


def test_a_policy_sees_the_parameters_of_lax() -> None:
    def of_dense_convolutions(primitive: Any, image: Any, kernel: Any = None, **params: Any) -> bool:
        dense = primitive is conv_general_dilated_p and params["feature_group_count"] == 1
        return dense and image.shape[-1] == kernel.shape[-2]

    def separable(kernels, x):
        x = jnp.sin(conv(x, kernels[0], groups=4))
        return jnp.sin(conv(x, kernels[1]))

    kernels = [normal((4, 1, 3, 3)), normal((6, 4, 1, 1), 1)]
    number = {}
    for policy in (None, of_dense_convolutions, on_convolutions(True)):
        f = jax.checkpoint(jaxcnn.accelerate(separable), policy=policy)
        number[policy] = counts(jax.grad(loss(f)), kernels, X)[0]
    assert list(number.values()) == [7, 6, 5]


CALLS = {
    "conv": jaxcnn.conv,
    "conv_transpose": partial(jaxcnn.conv_transpose, strides=2),
    "vmap of both": jax.vmap(lambda x, kernel: jaxcnn.conv(x[None], kernel)),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_jaxcnn_are_kept_too(name: str) -> None:
    x, kernel = normal((2, 6, 6, 3)), normal((3, 3, 3, 3), 1)
    kernel = np.stack([kernel, kernel]) if name == "vmap of both" else kernel

    def number(policy: Any) -> int:
        f = jax.checkpoint(lambda x, kernel: jnp.sin(CALLS[name](x, kernel)), policy=policy)
        return counts(jax.grad(loss(f), argnums=(0, 1)), x, kernel)[0]

    assert (number(None), number(POLICIES["dots"])) == (4, 3)


def test_an_empty_convolution_is_asked_about_by_its_own_name() -> None:
    asked = []

    def policy(primitive: Any, *_: Any, **__: Any) -> bool:
        asked.append(primitive.name)
        return True

    f = jax.checkpoint(lambda x, kernel: jnp.sin(jaxcnn.conv(x, kernel)), policy=policy)
    jax.make_jaxpr(jax.grad(loss(f)))(jnp.ones((0, 6, 6, 3)), jnp.ones((3, 3, 3, 3)))
    assert "jaxcnn_conv" in asked


def test_an_answer_that_is_none_of_jax_is_refused() -> None:
    f = jax.checkpoint(jaxcnn.accelerate(network), policy=on_convolutions("save"))
    message = (
        "a policy of jax.checkpoint must return a bool, or Recompute, Saveable or Offloadable(src, dst) of "
        "jax.ad_checkpoint, got 'save'"
    )
    with pytest.raises(TypeError) as error:
        jax.grad(loss(f))(LAYERS, X)
    assert str(error.value).splitlines()[0] == message


def test_gradients_are_the_same() -> None:
    gradients = jax.jit(jax.grad(loss(jax.checkpoint(jaxcnn.accelerate(network), policy=POLICIES["dots"]))))(LAYERS, X)
    chex.assert_trees_all_close(gradients, jax.grad(loss(network))(LAYERS, X), rtol=1e-4, atol=1e-4)
