"""`with_chains` around networks of Flax, Haiku, Equinox and Keras, with a chain for every convolution's kernel."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interoperation import assert_close, network, the_libraries_settings  # noqa: F401  (a fixture)

import jaxcnn
from jaxcnn import accelerate, with_chains
from support import networks
from support.chains import QUICK
from support.jaxprs import primitives_of

X = jnp.asarray(np.random.default_rng(1).standard_normal(networks.SHAPE), np.float32)
compiled = partial(jax.jit, compiler_options=QUICK)
GROUPS = {1: 8, 4: 2}
"""Of the networks' kernels of eight output features, by the input features that each has: the others have one group."""


def order_of(library, kernel):
    if library == "equinox":
        return "OIHW"
    return "HWCM" if library == "keras" and kernel.shape[-1] == 1 else "HWIO"


def chained(library, kernel):
    """A chain of full rank of a kernel that a library has."""
    order = order_of(library, kernel)
    if order == "HWCM":
        *window, channels, multiplier = kernel.shape
        kernel = kernel.reshape(*window, 1, channels * multiplier)
        return jaxcnn.separable(kernel, feature_group_count=channels)
    kernel = kernel.transpose(2, 3, 1, 0) if order == "OIHW" else kernel
    groups = GROUPS.get(kernel.shape[-2], 1) if kernel.shape[-1] == 8 else 1
    scheme = jaxcnn.separable if groups == 8 else jaxcnn.low_rank
    return scheme(kernel, feature_group_count=groups)


def dense(library, chain, kernel):
    """The kernel for which a chain stands, as the library has it."""
    own = chain.dense()
    return own.transpose(3, 2, 0, 1) if order_of(library, kernel) == "OIHW" else own.reshape(kernel.shape)


def both(library):
    """A network's arrays with chains for its kernels; and functions that make its variables of them, and dense ones."""
    _, variables, _ = network(library)
    leaves, structure = jax.tree.flatten(variables)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    kernels = [place for place in places if leaves[place].ndim == 4 and leaves[place].size > leaves[place].shape[-1]]
    arrays = {place: leaves[place] for place in places}
    arrays |= {place: chained(library, leaves[place]) for place in kernels}

    def with_them(arrays):
        return jax.tree.unflatten(structure, [arrays.get(place, leaf) for place, leaf in enumerate(leaves)])

    def without(arrays):
        return with_them(arrays | {place: dense(library, arrays[place], leaves[place]) for place in kernels})

    assert len(kernels) >= 4
    return arrays, with_them, without


@pytest.mark.parametrize("library", networks.LIBRARIES)
def test_values(library):
    f, _, train = network(library)
    arrays, with_them, without = both(library)

    def run(f, train, variables):
        return compiled(lambda arrays: (f(variables(arrays), X), train(variables(arrays), X)))(arrays)

    assert_close(run(with_chains(f), with_chains(train), with_them), run(f, train, without), 1e-5)


@pytest.mark.parametrize("library", networks.LIBRARIES)
def test_gradients_in_training_mode(library):
    _, _, train = network(library)
    arrays, with_them, without = both(library)

    def loss(f, variables):
        return lambda arrays, x: jnp.sum(jnp.sin(f(variables(arrays), x)[0]))

    expected = compiled(jax.grad(loss(train, without), (0, 1)))(arrays, X)
    assert_close(compiled(jax.grad(loss(with_chains(train), with_them), (0, 1)))(arrays, X), expected, 1e-4)


@pytest.mark.parametrize("library", networks.LIBRARIES)
def test_no_convolution_is_left_to_lax(library):
    f, _, _ = network(library)
    arrays, with_them, _ = both(library)
    for function in (with_chains(f), accelerate(with_chains(f)), with_chains(accelerate(f))):
        found = primitives_of(lambda arrays, x, function=function: function(with_them(arrays), x), arrays, X)
        assert "jaxcnn_conv" in found
        assert "conv_general_dilated" not in found


def test_stacked_layers_of_flax():
    nn = pytest.importorskip("flax.linen")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Conv(3, (3, 3))(x)), None

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(nn.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
            return layers()(x, None)[0]

    model = Network()
    variables = model.init(jax.random.key(0), X)
    ((path, kernel),) = [
        (path, leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0] if leaf.ndim == 5
    ]
    chains = [jaxcnn.low_rank(one, rank=3) for one in kernel]
    links = [jnp.stack(links) for links in zip(*(chain.kernels for chain in chains), strict=True)]

    def given(value):
        return jax.tree_util.tree_map_with_path(lambda own, leaf: value if own == path else leaf, variables)

    expected = model.apply(given(jnp.stack([chain.dense() for chain in chains])), X)
    assert_close(with_chains(model.apply)(given(jaxcnn.KernelChain(tuple(links))), X), expected, 1e-5)
