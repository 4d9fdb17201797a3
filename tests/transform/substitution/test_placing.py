"""Where a substitution's arrays lie: the links of chains, the other parameters, and what a file held."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn.chain import KernelChain
from jaxcnn.transform.chains.placement import guesses
from jaxcnn.transform.substitution.batches import MAX_BATCHES, batches_of
from jaxcnn.transform.substitution.layer import Layer
from jaxcnn.transform.substitution.placing import chain_like
from support.arrays import normal
from support.planted import conv, planted


def mesh(*sizes, kind=AxisType.Auto):
    return jax.make_mesh(sizes, tuple("ab"[: len(sizes)]), axis_types=(kind,) * len(sizes))


def placed(array, *spec, on):
    return jax.device_put(array, NamedSharding(on, P(*spec)))


def specs(tree):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(tree)]


def model(params, x):
    x = jax.nn.relu(jaxcnn.conv(x, params["kernel"]) + params["bias"][None, None, None])
    return jaxcnn.conv(x, params["last"])


PARAMS = {"kernel": normal((5, 5, 8, 16)), "bias": np.ones(16, np.float32), "last": normal((3, 3, 16, 4), seed=1)}
SPECS = {"kernel": (None, None, "a", "b"), "bias": ("b",), "last": (None, None, "b")}


def test_links_lie_as_their_kernel_did(tmp_path):
    on = mesh(2, 2)
    params = {name: placed(array, *SPECS[name], on=on) for name, array in PARAMS.items()}
    x = placed(normal((4, 10, 10, 8)), "a", on=on)
    substitution = jaxcnn.substitute(model, params, x, rank=3, schemes="separable", skip="last")
    column, row = substitution.params["kernel"].kernels
    assert specs([column, row]) == [P(None, None, "a", None), P(None, None, None, "b")]
    assert specs([substitution.params["bias"], substitution.params["last"]]) == [P("b"), P(None, None, "b")]
    plain = jaxcnn.substitute(model, PARAMS, np.asarray(x), rank=3, schemes="separable", skip="last")
    for array, expected in zip(jax.tree.leaves(substitution.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(np.asarray(array), np.asarray(expected), atol=1e-5)
    file = tmp_path / "substitution.npz"
    plain.save(file)
    loaded = jaxcnn.Substitution.load(file, model, params)
    assert specs(loaded.params) == specs(substitution.params)
    # Parameters of another process's start: types with a sharding.
    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), params)
    assert specs(jaxcnn.Substitution.load(file, model, types).params) == specs(substitution.params)
    assert specs(jaxcnn.Substitution.load(file, model, substitution.params).params) == specs(substitution.params)
    y = jax.jit(loaded.apply)(loaded.params, x)
    np.testing.assert_allclose(np.asarray(y), np.asarray(plain.apply(plain.params, np.asarray(x))), atol=1e-3)


def test_parameters_of_one_device_stay_there():
    device = jax.devices()[2]
    params = jax.tree.map(lambda array: jax.device_put(array, device), PARAMS)
    x = jax.device_put(normal((1, 10, 10, 8)), device)
    substitution = jaxcnn.substitute(model, params, x, rank=3, schemes="separable")
    assert {leaf.device for leaf in jax.tree.leaves(substitution.params)} == {device}


@pytest.mark.parametrize(
    ("links", "counts", "kernel", "spec", "expected"),
    [
        # Ranks are whole, and so are windows.
        ([(3, 1, 8, 3), (1, 3, 3, 8)], (1, 1), (3, 3, 8, 8), (None, None, "a", "b"), ["a  ", "  b"]),
        ([(4, 1, 8, 3), (1, 4, 3, 8)], (1, 1), (4, 4, 8, 8), (None, "a"), ["   ", "   "]),
        # Depthwise: both links are split along the groups.
        ([(3, 1, 1, 8), (1, 3, 1, 8)], (8, 8), (3, 3, 1, 8), (None, None, None, "b"), [" b ", "  b"]),
        # A depthwise first link of a dense kernel, then 1x1.
        ([(3, 3, 1, 8), (1, 1, 8, 4)], (8, 1), (3, 3, 8, 4), (None, None, "a", "b"), [" a ", "  b"]),
    ],
)
def test_specs_of_links(links, counts, kernel, spec, expected):
    on = mesh(2, 2)
    chain = KernelChain(tuple(jnp.ones(shape) for shape in links), counts)
    placement = next(guesses([chain]))[0]
    parameter = placed(np.ones(kernel, np.float32), *spec, on=on)
    first, last = specs(list(chain_like(chain, parameter, placement).kernels))
    assert placement.shape == kernel
    a, b = expected
    assert list(first) == [None, None, a[0].strip() or None, a[1].strip() or None]
    assert list(last) == [None, None, None, b[2].strip() or None]


def test_stacked_kernels_stay_split_along_the_stack():
    on = mesh(2, 2)
    params = placed(normal((2, 3, 3, 8, 8)), "a", None, None, None, "b", on=on)

    def scanned(params, x):
        return jax.lax.scan(lambda x, kernel: (jaxcnn.conv(x, kernel), None), x, params)[0]

    substitution = jaxcnn.substitute(scanned, params, normal((1, 6, 6, 8)), rank=2, schemes="separable")
    first, last = specs(list(substitution.params.kernels))
    assert first == P("a", None, None, None, None)
    assert last == P("a", None, None, None, "b")


def test_explicit_meshes_keep_the_sharding():
    on = mesh(2, 2, kind=AxisType.Explicit)
    chain = KernelChain((jnp.ones((3, 1, 8, 2)), jnp.ones((1, 3, 2, 8))))
    parameter = placed(np.ones((3, 3, 8, 8), np.float32), None, None, "a", "b", on=on)
    links = chain_like(chain, parameter, next(guesses([chain]))[0]).kernels
    assert specs(list(links)) == [P(None, None, "a", None), P(None, None, None, "b")]
    assert all(link.sharding.mesh == on for link in links)


def test_calibration_that_is_split_over_devices_is_that_of_one():
    batches = [normal((4, 10, 10, 8), seed=seed) for seed in (2, 3)]
    options = {"rank": 3, "schemes": "separable", "skip": "last"}
    expected = jaxcnn.substitute(model, PARAMS, batches[0], calibration=batches, **options)
    on = mesh(4)
    split = [placed(batch, "a", on=on) for batch in batches]
    actual = jaxcnn.substitute(model, PARAMS, batches[0], calibration=iter(split), **options)
    for array, other in zip(jax.tree.leaves(actual.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(np.asarray(array), np.asarray(other), atol=1e-3)
    assert actual.report.rows[0].error == pytest.approx(expected.report.rows[0].error, rel=1e-3)


def test_a_long_iterator_is_sampled_and_not_held():
    alive = set()

    class Batch:
        def __init__(self, number):
            self.number = number
            alive.add(number)

        def __del__(self):
            alive.discard(self.number)

    most = []

    def stream():
        for number in range(200):
            yield Batch(number)
            most.append(len(alive))

    numbers = sorted(batch.number for (batch,) in batches_of(stream(), 0))
    assert len(set(numbers)) == MAX_BATCHES
    assert max(most) <= MAX_BATCHES + 1
    assert numbers[0] < 60 < 140 < numbers[-1]
    assert [batch for (batch,) in batches_of(iter(range(5)), 0)] == [0, 1, 2, 3, 4]
    assert [batch for (batch,) in batches_of(list(range(40)), 0)] == list(range(40))


def test_batches_of_an_iterator_are_in_files():
    alive = []

    def stream():
        for number in range(40):
            batch = np.full((128, 128, 4), number, np.float32), jnp.full((200, 100), number, jnp.bfloat16), number
            alive[:] = [reference for reference in alive if reference() is not None] + [weakref.ref(batch[0])]
            yield batch
            most.append(len(alive))

    most = []
    batches = batches_of(stream(), 0)
    assert max(most) <= 2
    for image, labels, number in batches:
        assert isinstance(image, np.memmap)
        assert (image == number).all()
        assert (labels.dtype, isinstance(labels, jax.Array)) == (jnp.bfloat16, True)  # small arrays are left alone


def test_an_iterator_gives_what_the_list_gives_with_less_memory(monkeypatch):
    def three_layers(params, x):
        x = jax.nn.relu(conv(x, params["first"]))
        return conv(jax.nn.relu(conv(x, params["second"])), params["third"])

    names = ("first", "second", "third")
    params = {name: planted(5, 5, 4, 4, 2) + 0.02 * normal((5, 5, 4, 4), seed) for seed, name in enumerate(names)}
    images = [normal((2, 96, 96, 4), seed) for seed in range(8)]
    options = {"rank": 3, "schemes": "separable"}
    held, fit = {"list": [], "iterator": []}, Layer.fit

    def fitted(self, *args):
        held[way].append(sum(array.nbytes for array in jax.live_arrays()) - before)
        return fit(self, *args)

    monkeypatch.setattr(Layer, "fit", fitted)
    results = {}
    for way, calibration in {"list": list(images), "iterator": iter(images)}.items():
        before = sum(array.nbytes for array in jax.live_arrays())
        results[way] = jaxcnn.substitute(three_layers, params, images[0][:1], calibration=calibration, **options).params
    for array, other in zip(jax.tree.leaves(results["iterator"]), jax.tree.leaves(results["list"]), strict=True):
        np.testing.assert_array_equal(array, other)
    assert max(held["iterator"]) < max(held["list"]) / 2


def test_loaded_chains_of_computed_kernels_lie_where_their_parameter_did(tmp_path):
    def normalized(params, x):
        direction, scale = params["direction"], params["scale"]
        kernel = scale[None, None, None] * direction / jnp.sqrt(jnp.square(direction).sum((0, 1, 2), keepdims=True))
        return jaxcnn.conv(x, kernel) + params["bias"][None, None, None]

    plain_params = {"direction": PARAMS["kernel"], "scale": np.ones(16, np.float32), "bias": np.zeros(16, np.float32)}
    on = mesh(2, 2)
    split = {"direction": (None, None, "a", "b"), "scale": ("b",), "bias": ("b",)}
    params = {name: placed(array, *split[name], on=on) for name, array in plain_params.items()}
    x = normal((2, 10, 10, 8))
    substitution = jaxcnn.substitute(normalized, params, x, rank=3, schemes="separable")
    file = tmp_path / "substitution.npz"
    substitution.save(file)
    changed = dict(params, bias=params["bias"] + 1)
    loaded = jaxcnn.Substitution.load(file, normalized, changed)
    shardings = [[leaf.sharding for leaf in jax.tree.leaves(s.params)] for s in (substitution, loaded)]
    assert shardings[0] == shardings[1]
    # The file's arrays replace those of the parameters.
    np.testing.assert_array_equal(np.asarray(loaded.params["bias"]), 0)
