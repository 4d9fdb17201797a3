"""`accelerate`, `with_chains` and `substitute` around networks of Flax, Haiku, Equinox and Keras.

A network takes seconds to import, to draw and to compile: by default there are Equinox's, with kernels OIHW, and the
gradient of Flax's, with kernels HWIO.
"""

from __future__ import annotations

import warnings
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn import accelerate, with_chains
from support import networks
from support.arrays import jax_normal, relative_error
from support.chains import QUICK, is_chain
from support.jaxprs import primitives_of

FAST = ("equinox",)
LIBRARIES = [
    library if library in FAST else pytest.param(library, marks=pytest.mark.slow) for library in networks.LIBRARIES
]


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


X = jax_normal(networks.SHAPE, 1)


def arrays_of(variables):
    """Returns the arrays among the variables, and a function that puts arrays in their places."""
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
    primitives_run = set(primitives_of(lambda arrays, x: accelerate(f)(whole(arrays), x), arrays, X))
    assert {"jaxcnn_conv", "jaxcnn_extremum"} <= primitives_run
    assert not {"conv_general_dilated", "reduce_window_max", "reduce_window_sum"} & primitives_run


@pytest.mark.parametrize(
    "library", ["flax", *(pytest.param(n, marks=pytest.mark.slow) for n in networks.LIBRARIES if n != "flax")]
)
def test_gradients_in_training_mode(library):
    _, variables, train = network(library)
    arrays, whole = arrays_of(variables)

    def loss(train):
        return lambda arrays, x: jnp.sum(jnp.sin(train(whole(arrays), x)[0]))

    expected = jax.jit(jax.grad(loss(train), (0, 1)))(arrays, X)
    assert_close(accelerate(jax.grad(loss(train), (0, 1)))(arrays, X), expected, 1e-4)
    assert_close(jax.jit(jax.grad(loss(accelerate(train)), (0, 1)))(arrays, X), expected, 1e-4)


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# with_chains


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


def dense_kernel(library, chain, kernel):
    """The kernel for which a chain stands, as the library has it."""
    dense = chain.dense()
    return dense.transpose(3, 2, 0, 1) if order_of(library, kernel) == "OIHW" else dense.reshape(kernel.shape)


def with_and_without_chains(library):
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
        return with_them(arrays | {place: dense_kernel(library, arrays[place], leaves[place]) for place in kernels})

    assert len(kernels) >= 4
    return arrays, with_them, without


@pytest.mark.parametrize("library", LIBRARIES)
def test_values_with_chains(library):
    f, _, train = network(library)
    arrays, with_them, without = with_and_without_chains(library)

    def run(f, train, variables):
        return compiled(lambda arrays: (f(variables(arrays), X), train(variables(arrays), X)))(arrays)

    assert_close(run(with_chains(f), with_chains(train), with_them), run(f, train, without), 1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_gradients_with_chains_in_training_mode(library):
    _, _, train = network(library)
    arrays, with_them, without = with_and_without_chains(library)

    def loss(f, variables):
        return lambda arrays, x: jnp.sum(jnp.sin(f(variables(arrays), x)[0]))

    expected = compiled(jax.grad(loss(train, without), (0, 1)))(arrays, X)
    assert_close(compiled(jax.grad(loss(with_chains(train), with_them), (0, 1)))(arrays, X), expected, 1e-4)


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_convolution_is_left_to_lax(library):
    f, _, _ = network(library)
    arrays, with_them, _ = with_and_without_chains(library)
    for function in (with_chains(f), accelerate(with_chains(f)), with_chains(accelerate(f))):
        primitives_run = primitives_of(lambda arrays, x, function=function: function(with_them(arrays), x), arrays, X)
        assert "jaxcnn_conv" in primitives_run
        assert "conv_general_dilated" not in primitives_run


@pytest.mark.slow
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
        return jax.tree_util.tree_map_with_path(lambda other, leaf: value if other == path else leaf, variables)

    expected = model.apply(given(jnp.stack([chain.dense() for chain in chains])), X)
    assert_close(with_chains(model.apply)(given(jaxcnn.KernelChain(tuple(links))), X), expected, 1e-5)


# substitute


CALIBRATION, UNSEEN = (jax_normal(networks.SHAPE, seed) for seed in (2, 3))


KERNELS = {"flax": 6, "flax.nnx": 4, "haiku": 6, "equinox": 4, "keras": 7}
"""How many kernels each network has."""


SCHEMES = ("separable", "low_rank")


@pytest.mark.parametrize("library", LIBRARIES)
def test_substituted_by_weights(library, clock_of_macs, tmp_path):
    f, variables, _ = network(library)
    small = jaxcnn.substitute(f, variables, X, macs=0.6, schemes=SCHEMES)
    assert len(small.report.rows) == KERNELS[library]
    assert small.report.macs_share <= 0.6
    chains = [leaf for leaf in jax.tree.leaves(small.params, is_leaf=is_chain) if is_chain(leaf)]
    assert len(chains) == sum(row.scheme != "dense" for row in small.report.rows) > 0
    saved = jaxcnn.summarize(f, variables, X).total.macs - jaxcnn.summarize(small.apply, small.params, X).total.macs
    assert saved == small.report.macs_before - small.report.macs_after
    values = small.apply(small.params, X)
    assert relative_error(values, f(variables, X)) == pytest.approx(small.report.error, rel=1e-3)
    # The library's own tree of variables comes back from a file.
    small.save(tmp_path / "substitution.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "substitution.npz", f, variables)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(small.params)
    assert relative_error(loaded.apply(loaded.params, X), values) < 1e-6


# Not of Keras, whose random weights are others each time.
# Equinox's last kernel, transposed and before a mean over the plane, does little where it errs little, else much.
@pytest.mark.slow
@pytest.mark.parametrize(("library", "share"), [("haiku", 0.5), ("equinox", 0.7)])
def test_responses_beat_weights_on_inputs_not_seen(library, share, clock_of_macs):
    f, variables, _ = network(library)

    def error(**options):
        small = jaxcnn.substitute(f, variables, X, macs=0.6, schemes=SCHEMES, max_error=float("inf"), **options)
        assert small.report.macs_share <= 0.6
        return relative_error(small.apply(small.params, UNSEEN), f(variables, UNSEEN))

    assert error(calibration=[X, CALIBRATION]) < share * error()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["flax", "flax.nnx"])
def test_training_goes_on_with_the_chains(library, clock_of_macs):
    f, variables, _ = network(library)
    small = jaxcnn.substitute(f, variables, X, macs=0.6, schemes="separable")
    params, rest = small.params, None
    if library == "flax":
        params, rest = {"params": params["params"]}, {"batch_stats": params["batch_stats"]}

    def loss(params):
        return jnp.sum((small.apply(params if rest is None else params | rest, X) - f(variables, X)) ** 2)

    gradient = jax.jit(jax.grad(loss))
    before = float(loss(params))
    slope = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient(params)))
    step = 0.1 * before / slope
    after = loss(jax.tree.map(lambda p, g: p - step * g, params, gradient(params)))
    assert after == pytest.approx(0.9 * before, rel=0.05)
