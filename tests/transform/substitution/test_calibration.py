"""Chains fitted to responses: what the fit gains over the weights, and which layers it leaves alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform.substitution import layer as layers
from jaxcnn.transform.substitution import samples
from jaxcnn.transform.substitution import search as searching
from jaxcnn.transform.substitution.layer import Layer
from support.arrays import normal, relative_error
from support.planted import NUMBERS, clock_by_layer, conv
from support.substitutions import PARAMS, SMALL, F, two_layers

pytestmark = pytest.mark.usefixtures("chains_twice_as_fast")


def blurred(count, seed):
    """Images whose neighbours are alike, as photographs' are: the taps of a kernel are not equally important."""
    noise = normal((count, 34, 34, 3), seed)
    mean = sum(noise[:, i : i + 24, j : j + 24] for i in range(8) for j in range(8)) / 8
    return jnp.asarray(mean)


@pytest.fixture(
    scope="module", params=[{"rank": 2}, pytest.param({"macs": 0.1}, marks=pytest.mark.slow)], ids=["rank", "macs"]
)
def substitutions(request):
    """Fitted to the weights, and to responses twice."""
    with pytest.MonkeyPatch.context() as patch:
        clock_by_layer(patch, lambda name: 0.5)
        patch.setattr(searching, "_TIMING_SECONDS", 0.01)
        options = {**request.param, "schemes": "separable", "skip": "stem", "max_error": np.inf}
        x, batches = blurred(4, 1), [(blurred(4, 2),), blurred(3, 3)]
        plain = jaxcnn.substitute(F, PARAMS, x, **options)
        return plain, *(jaxcnn.substitute(F, PARAMS, x, calibration=batches, **options) for _ in range(2))


def test_responses_are_closer_on_other_images(substitutions):
    plain, fitted, _ = substitutions
    assert fitted.report.macs_share <= 0.12
    x = blurred(6, 4)
    errors = [relative_error(small.apply(small.params, x), F(PARAMS, x)) for small in (plain, fitted)]
    assert errors[1] < 0.7 * errors[0]


def test_the_same_twice(substitutions):
    _, first, second = substitutions
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def blurred_four(count, seed):
    """Such images of four channels, small ones."""
    noise = normal((count, 13, 13, 4), seed)
    return jnp.asarray(sum(noise[:, i : i + 10, j : j + 10] for i in range(4) for j in range(4)) / 4)


def one_layer(params, x):
    return jax.nn.relu(conv(x, params["first"]))


NETWORKS = {
    "one layer": (one_layer, SMALL, blurred_four, 0.1),
    "two layers": (two_layers, SMALL, blurred_four, 0.1),
    "three layers": (F, PARAMS, blurred, 0.05),
}


@pytest.mark.parametrize(
    ("name", "halvings"),
    [("one layer", 0), *(pytest.param(name, 4, marks=pytest.mark.slow) for name in NETWORKS if name != "one layer")],
)
def test_a_tolerance_is_met_with_fewer_macs(name, halvings, two_ranks_judged, monkeypatch):
    f, params, images, tolerance = NETWORKS[name]
    options = {"tolerance": tolerance, "schemes": "separable"}
    monkeypatch.setattr(searching, "_COSTLY_BISECTION_STEPS", halvings)
    plain = jaxcnn.substitute(f, params, images(4, 1), **options)
    fitted = jaxcnn.substitute(f, params, images(4, 1), calibration=images(6, 2), **options)
    assert fitted.report.error <= tolerance
    assert fitted.report.macs_share <= plain.report.macs_share < 1


def noisy(seed):
    """A kernel of no low rank, for 6 channels."""
    return jnp.asarray(normal((5, 5, 6, 6), seed) / 8)


def twice(params, x):
    return jax.nn.relu(conv(jax.nn.relu(conv(x, params["k"]) - 0.5), params["k"]) + 0.5)


def repeated(params, x):
    return lax.scan(lambda y, _: (jax.nn.relu(conv(y, params["k"])), None), x, None, length=2)[0]


def in_a_loop_backwards(params, x):
    y, means = lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), y.mean()), x, params["k"], reverse=True)
    return y + means[0]


def in_two_loops(params, x):
    return lax.scan(lambda y, ks: lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), None), y, ks), x, params["k"])[0]


def by_number(params, x):
    return conv(jax.nn.relu(conv(x, params["k"][1])), params["k"][0])


def jitted(params, x):
    block = jax.jit(lambda y, k: jax.nn.relu(conv(y, k)))
    return block(block(x, params["k"]), params["other"])


def normalized(params, x):
    kernel = params["k"] - params["k"].mean((0, 1, 2), keepdims=True)
    return jax.nn.relu(conv(x, kernel * jnp.arange(1.0, 7.0)[None, None, None]))


def transposed_kernel(params, x):
    return lax.conv_transpose(x, params["k"], (2, 2), "SAME", dimension_numbers=NUMBERS, transpose_kernel=True)


def ours_transposed(params, x):
    return jax.nn.relu(jaxcnn.conv_transpose(x, params["k"], strides=2, padding=((1, 2), (0, 1))) - 0.2)


def autoencoder(params, x):
    return jaxcnn.conv_transpose(conv(x, params["k"], 2), params["k"], strides=2)


SINGLE = noisy(0)


PAIR = jnp.stack([SINGLE, noisy(5)])


SHAPES = {
    twice: {"k": SINGLE},
    repeated: {"k": SINGLE},
    in_a_loop_backwards: {"k": PAIR},
    in_two_loops: {"k": jnp.stack([PAIR, PAIR[::-1] + 0.01])},
    by_number: {"k": PAIR},
    jitted: {"k": PAIR[0], "other": PAIR[1]},
    normalized: {"k": SINGLE},
    transposed_kernel: {"k": SINGLE},
    ours_transposed: {"k": SINGLE},
}


def correlated(count, seed):
    """Images whose channels and whose neighbours are alike, of which the weights know nothing."""
    mixing = normal((6, 6), 100) @ np.diag(0.5 ** np.arange(6)) @ normal((6, 6), 101)
    noise = normal((count, 13, 13, 6), seed) @ mixing
    return jnp.asarray(sum(noise[:, i : i + 10, j : j + 10] for i in range(4) for j in range(4)) / 16, jnp.float32)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("f", "budget"),
    [
        *((f, {"rank": 3}) for f in (twice, in_a_loop_backwards, ours_transposed)),
        *(slow(f, {"macs": 0.35}) for f in SHAPES),
        *(slow(f, {"rank": 3}) for f in (in_two_loops, by_number, jitted, normalized, transposed_kernel)),
    ],
)
def test_hard_shapes_are_fitted_to_their_responses(f, budget):
    params, x, options = SHAPES[f], correlated(2, 1), {**budget, "schemes": "separable", "max_error": np.inf}
    # Checked leaks forget every trace, and each step of a fit would trace again.
    with jax.check_tracer_leaks(False):
        plain = jaxcnn.substitute(f, params, x, **options)
        fitted = jaxcnn.substitute(f, params, x, calibration=[(correlated(4, 2),), correlated(4, 3)], **options)
    other = correlated(3, 4)
    errors = [relative_error(small.apply(small.params, other), f(params, other)) for small in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0]
    assert fitted.report.macs_share == plain.report.macs_share <= budget.get("macs", 1)
    for row in fitted.report.rows:
        assert 0 < row.error < 1


@pytest.mark.parametrize("f", [twice, in_a_loop_backwards])
def test_pieces_of_several_positions_serve_as_well(f, monkeypatch):
    """Memory for few patches makes larger blocks, here of four positions by four."""
    params, x, options = SHAPES[f], correlated(2, 1), {"rank": 3, "schemes": "separable", "max_error": np.inf}
    errors = []
    for piece_bytes in (32 << 20, 0):
        monkeypatch.setattr(samples, "_MAX_PIECE_BYTES", piece_bytes)
        with jax.check_tracer_leaks(False):
            small = jaxcnn.substitute(f, params, x, calibration=correlated(6, 2), **options)
        other = correlated(3, 4)
        errors.append(relative_error(small.apply(small.params, other), f(params, other)))
    assert errors[0] != errors[1] < 1.15 * errors[0]


def test_layers_after_a_shared_kernel_are_fitted_to_what_its_fitted_chain_makes(monkeypatch):
    patches, fit = [], Layer.fit

    def fitted(self, number, site, option, responses):
        if self.name == "last":
            patches.append(responses.patches)
        return fit(self, number, site, option, responses)

    def f(params, x):
        return conv(twice(params, x), params["last"])

    monkeypatch.setattr(Layer, "fit", fitted)
    params, images = {"k": SINGLE, "last": noisy(5)}, correlated(2, 2)
    options = {"rank": 3, "schemes": "separable", "calibration": images}
    chain = jaxcnn.substitute(f, params, correlated(2, 1), **options).params["k"]
    # The middle of each patch is a pixel of what the layer meets; first it met what an unfitted chain makes.
    expected = twice({"k": chain.dense()}, images).reshape(-1, 6)
    first, second, third = (relative_error(patch[:, 2, 2], expected) for patch in patches)
    assert third < 1e-4 < 0.01 < second < first


def test_kernels_of_a_loop_are_fitted_to_what_the_fitted_ones_before_make(monkeypatch):
    """Slices of a stack of kernels are computed before the turn that uses them, from what was not fitted yet."""
    patches, fit = [], Layer.fit

    def fitted(self, number, site, option, responses):
        patches.append(responses.patches)
        return fit(self, number, site, option, responses)

    def f(params, x):
        halves = params["k"].astype(jnp.bfloat16).astype(jnp.float32)  # before all convolutions, for all kernels
        return lax.scan(lambda y, k: (jax.nn.relu(conv(y, k)), None), x, halves)[0]

    monkeypatch.setattr(Layer, "fit", fitted)
    params, images = {"k": jnp.stack([SINGLE, noisy(5), noisy(6)])}, correlated(2, 2)
    options = {"rank": 3, "schemes": "separable", "calibration": images}
    chain = jaxcnn.substitute(f, params, correlated(2, 1), **options).params["k"]
    y = images
    for number, taken in enumerate(patches):
        np.testing.assert_allclose(taken[:, 2, 2], y.reshape(-1, 6), atol=0.01 * float(jnp.abs(y).max()))
        dense = jaxcnn.KernelChain([link[number] for link in chain.kernels], chain.feature_group_counts).dense()
        y = jax.nn.relu(conv(y, dense))
    assert len(patches) == 3


def test_a_fit_never_gives_a_chain_of_larger_error_than_that_of_the_weights(monkeypatch):
    monkeypatch.setattr(layers, "refit", lambda chain, responses, kernel: jax.tree.map(lambda link: 2 * link, chain))
    options = {"rank": 3, "schemes": "separable"}
    plain = jaxcnn.substitute(one_layer, SMALL, blurred_four(2, 1), **options)
    fitted = jaxcnn.substitute(one_layer, SMALL, blurred_four(2, 1), calibration=blurred_four(2, 2), **options)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_chains_stay_unfitted_where_the_fit_makes_the_error_of_the_results_larger(monkeypatch):
    """Each layer's own error is lower than before, as the fit says, but that of the results is not."""

    def fitted(self, number, site, option, responses):
        chain = self.unstack(self.chain(option))[number]
        return jax.tree.map(lambda link: 2 * link, chain), 1e-3

    monkeypatch.setattr(Layer, "fit", fitted)
    options = {"rank": 3, "schemes": "separable"}
    plain = jaxcnn.substitute(two_layers, SMALL, blurred_four(2, 1), **options)
    fitted = jaxcnn.substitute(two_layers, SMALL, blurred_four(2, 1), calibration=blurred_four(2, 2), **options)
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row.error for row in fitted.report.rows] == [row.error for row in plain.report.rows]


def test_as_many_samples_for_the_weights_of_an_output_whichever_way_the_kernel_goes(monkeypatch):
    taken = []

    def fitted(self, number, site, option, responses):
        taken.append(responses.num_places)
        return self.unstack(self.chain(option))[number], option.error

    monkeypatch.setattr(Layer, "fit", fitted)
    kernel, x = jnp.asarray(normal((3, 3, 6, 1))), jnp.asarray(normal((6, 30, 30, 6), 1))
    options = {"rank": 2, "schemes": "separable", "calibration": x}
    jaxcnn.substitute(lambda k, x: conv(x, k), kernel, x[:1], **options)
    jaxcnn.substitute(lambda k, x: jaxcnn.conv_transpose(x, k), kernel.swapaxes(2, 3), x[:1], **options)
    assert taken == [60 * 9 * 6] * 2


def test_layers_that_cannot_be_fitted_keep_the_chains_of_their_weights():
    def while_loop(params, x):
        return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, conv(c[1], params["k"])), (0, x))[1]

    def branch(params, x):
        return lax.cond(x.sum() > 0, lambda y: conv(y, params["k"]), lambda y: 2 * conv(y, params["k"]), x)

    for f in (while_loop, branch, autoencoder):
        params, x = {"k": SINGLE}, correlated(2, 1)
        options = {"rank": 2, "schemes": "separable"}
        plain = jaxcnn.substitute(f, params, x, **options)
        fitted = jaxcnn.substitute(f, params, x, calibration=correlated(2, 2), **options)
        for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
            np.testing.assert_array_equal(a, b)


def test_few_programs_are_compiled_however_many_layers_there_are():
    """With one program for each layer and rank there would be hundreds."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *args, **options: events.append(name))
    params = [jnp.asarray(normal((3, 3, 6, 6), seed)) for seed in range(24)]

    def deep(params, x):
        for kernel in params:
            x = jax.nn.relu(conv(x, kernel)) + 0.1 * x
        return x

    x = correlated(1, 5)
    small = jaxcnn.substitute(
        deep, params, x, macs=0.6, calibration=[correlated(1, s) for s in (6, 7)], max_error=np.inf
    )
    assert sum(row.scheme != "dense" for row in small.report.rows) > 12
    assert events.count("/jax/core/compile/backend_compile_duration") <= 40
