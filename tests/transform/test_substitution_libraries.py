"""`substitute` on networks of Flax, Haiku, Equinox and Keras, by weights and by responses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from test_interoperation import network, the_libraries_settings  # noqa: F401  (a fixture)

import jaxcnn
from jaxcnn.transform import searching
from support import networks
from support.arrays import normal, relative_error
from support.chains import is_chain
from support.planted import clock_by_arithmetic

X, CALIBRATION, UNSEEN = (jnp.asarray(normal(networks.SHAPE, seed)) for seed in range(3))
KERNELS = {"flax": 6, "flax.nnx": 4, "haiku": 6, "equinox": 4, "keras": 7}
"""How many kernels each network has."""
SCHEMES = ("separable", "low_rank")


@pytest.fixture(autouse=True)
def a_clock_by_arithmetic(monkeypatch):
    clock_by_arithmetic(monkeypatch)
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


@pytest.mark.parametrize("library", networks.LIBRARIES)
def test_by_weights(library, tmp_path):
    f, variables, _ = network(library)
    found = jaxcnn.substitute(f, variables, X, macs=0.6, schemes=SCHEMES)
    assert len(found.report.rows) == KERNELS[library]
    assert found.report.macs <= 0.6
    chains = [leaf for leaf in jax.tree.leaves(found.params, is_leaf=is_chain) if is_chain(leaf)]
    assert len(chains) == sum(row.scheme != "dense" for row in found.report.rows) > 0
    own = jaxcnn.summarize(f, variables, X).total.macs - jaxcnn.summarize(found.apply, found.params, X).total.macs
    assert own == found.report.macs_before - found.report.macs_after
    values = found.apply(found.params, X)
    assert relative_error(values, f(variables, X)) == pytest.approx(found.report.error, rel=1e-3)
    # The library's own tree of variables comes back from a file.
    found.save(tmp_path / "substitution.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "substitution.npz", f, variables)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(found.params)
    assert relative_error(loaded.apply(loaded.params, X), values) < 1e-6


# Not of Keras, whose random weights are others each time.
# Equinox's last kernel, transposed and before a mean over the plane, does little where it errs little, else much.
@pytest.mark.parametrize(("library", "share"), [("haiku", 0.5), ("equinox", 0.7)])
def test_responses_beat_weights_on_inputs_not_seen(library, share):
    f, variables, _ = network(library)

    def error(**options):
        found = jaxcnn.substitute(f, variables, X, macs=0.6, schemes=SCHEMES, **options)
        assert found.report.macs <= 0.6
        return relative_error(found.apply(found.params, UNSEEN), f(variables, UNSEEN))

    assert error(calibration=[X, CALIBRATION]) < share * error()


@pytest.mark.parametrize("library", ["flax", "flax.nnx"])
def test_training_goes_on_with_the_chains(library):
    f, variables, _ = network(library)
    found = jaxcnn.substitute(f, variables, X, macs=0.6, schemes="separable")
    params, rest = found.params, None
    if library == "flax":
        params, rest = {"params": params["params"]}, {"batch_stats": params["batch_stats"]}

    def loss(params):
        return jnp.sum((found.apply(params if rest is None else params | rest, X) - f(variables, X)) ** 2)

    gradient = jax.jit(jax.grad(loss))
    before = float(loss(params))
    slope = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient(params)))
    step = 0.1 * before / slope
    after = loss(jax.tree.map(lambda p, g: p - step * g, params, gradient(params)))
    assert after == pytest.approx(0.9 * before, rel=0.05)
