"""Chains fitted to responses: the walk side by side, the samples, and what the fit gains over the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform import problem, searching
from jaxcnn.transform.discovery import kernels_of
from jaxcnn.transform.layers import Layer
from jaxcnn.transform.linked import seen
from jaxcnn.transform.side_by_side import is_fitted, samples, side_by_side, together
from support.arrays import normal, relative_error
from support.planted import NUMBERS, conv, network

F, PARAMS, X = network()


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr(problem.Problem, "milliseconds", lambda self, index, chain: (1.0, 0.5))
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


def walk(f, *args, changed=None):
    """A walk through f that stops at each kernel that can be fitted; `changed` are the substituted arguments."""
    closed = jax.make_jaxpr(f)(*args)
    found, _ = kernels_of(closed)
    sites = {site.path: (index, site) for index, each in found.items() if is_fitted(each) for site in each.sites}
    return side_by_side(closed, args, args if changed is None else changed, sites)


def last(generator):
    """What a walk returns in the end, told nothing on the way."""
    try:
        next(generator)
        while True:
            generator.send(None)
    except StopIteration as stop:
        return stop.value


KERNELS = [jnp.asarray(normal((3, 3, 4, 4), seed)) for seed in range(2)]
IMAGE = jnp.asarray(normal((2, 8, 8, 4), 9))


def test_both_sides_are_what_they_compute():
    def f(a, b, x):
        y = jax.jit(lambda x, k: jax.nn.relu(conv(x, k)))(x, a)
        return lax.scan(lambda c, _: (c * 0.5, c.sum()), y, None, length=3)[0] + conv(y, b)

    args = (*KERNELS, IMAGE)
    ((dense, same),) = last(walk(f, *args))
    assert relative_error(dense, f(*args)) < 1e-6
    assert relative_error(same, f(*args)) < 1e-6
    # The second argument is substituted: what does not depend on it is computed once.
    ((dense, other),) = last(
        walk(lambda a, b, x: conv(x, a) + (b * b).sum(), *args, changed=(args[0], 2 * args[1], IMAGE))
    )
    assert relative_error(other - dense, jnp.full(dense.shape, 3 * (args[1] ** 2).sum())) < 1e-5


def test_the_links_that_are_sent_are_computed_with():
    def f(a, b, x):
        return conv(jax.nn.relu(conv(x, a)), b)

    args = (*KERNELS, IMAGE)
    chain = jaxcnn.KernelChain((2 * KERNELS[0],))
    generator = walk(f, *args)
    first = next(generator)
    assert first.index == 0
    np.testing.assert_array_equal(first.image, IMAGE)
    second = generator.send(chain)
    # The second layer sees what the first one's chain makes, and is to respond as if there had been none.
    assert relative_error(second.image, jax.nn.relu(conv(IMAGE, 2 * KERNELS[0]))) < 1e-6
    assert relative_error(second.response, f(*args)) < 1e-6
    with pytest.raises(StopIteration) as stop:
        generator.send(None)
    ((dense, substituted),) = stop.value.value
    assert dense is substituted


CONVOLUTIONS = {
    "as it is": lambda x, k: conv(x, k),
    "strided": lambda x, k: lax.conv_general_dilated(
        x, k, (2, 1), [(2, 1), (0, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "cropped": lambda x, k: lax.conv_general_dilated(
        x, k, (1, 1), [(-1, 2), (1, -2)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "dilated": lambda x, k: lax.conv_general_dilated(
        x, k, (1, 2), "SAME", rhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "channels first": lambda x, k: lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"
    ),
    "jaxcnn": lambda x, k: jaxcnn.conv(x, k, strides=2),
    "its input dilated": lambda x, k: lax.conv_general_dilated(
        x, k, (2, 1), [(2, 1), (-1, 3)], (3, 2), (1, 2), dimension_numbers=NUMBERS
    ),
    "transposed": lambda x, k: lax.conv_transpose(
        x, k, (2, 3), "SAME", dimension_numbers=NUMBERS, transpose_kernel=True
    ),
    "jaxcnn, transposed": lambda x, k: jaxcnn.conv_transpose(
        x, k, strides=(2, 3), padding=((1, 0), (0, 1)), kernel_dilation=(1, 2)
    ),
    "jaxcnn, transposed in groups": lambda x, k: jaxcnn.conv_transpose(x, k, strides=2, feature_group_count=2),
}


@pytest.mark.parametrize("way", CONVOLUTIONS)
@pytest.mark.parametrize("count", [17, 10_000])
def test_samples_are_patches_and_their_responses(way, count):
    def f(k, x):
        return CONVOLUTIONS[way](x, k)

    kernel = KERNELS[0]
    closed = jax.make_jaxpr(f)(kernel, IMAGE)
    (found,) = kernels_of(closed)[0].values()
    (site,) = found.sites
    stop = next(side_by_side(closed, (kernel, IMAGE), (kernel, IMAGE), {site.path: (0, site)}))
    patches, responses = samples(stop, count, np.random.default_rng(0))
    total = stop.response.size // responses.shape[1]
    assert len(patches) == len(responses) == min(count, total)
    assert patches.shape[1:] == (3, 3, 4)
    groups = site.equation.params["feature_group_count"]
    own = found.placement.kernel(kernel)
    (own,) = seen(site, jaxcnn.KernelChain((own,), (groups,)), found.placement).kernels
    split = patches.reshape(*patches.shape[:-1], groups, -1)
    expected = np.einsum("nhwgi,hwigo->ngo", split, own.reshape(*own.shape[:-1], groups, -1)).reshape(len(patches), -1)
    np.testing.assert_allclose(responses, expected, atol=1e-4)


def test_batches_in_step():
    def f(k, x):
        return conv(x, k)

    args = [(KERNELS[0], IMAGE), (KERNELS[0], IMAGE[:1, :5])]
    shapes = []
    together([walk(f, *each) for each in args], lambda stops: shapes.append([s.image.shape for s in stops]))
    assert shapes == [[(2, 8, 8, 4), (1, 5, 8, 4)]]
    other = walk(lambda k, x: conv(conv(x, k), KERNELS[1] * k), *args[0])
    with pytest.raises(ValueError, match="the same convolutions in the same order"):
        together([walk(f, *args[0]), other], lambda stops: None)


def blurred(count, seed):
    """Images whose neighbours are alike, as photographs' are: the taps of a kernel are not equally important."""
    noise = normal((count, 34, 34, 3), seed)
    mean = sum(noise[:, i : i + 24, j : j + 24] for i in range(8) for j in range(8)) / 8
    return jnp.asarray(mean)


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem.Problem, "milliseconds", lambda self, index, chain: (1.0, 0.5))
        patch.setattr(searching, "_SECONDS", 0.01)
        options = {"macs": 0.1, "schemes": "separable", "skip": "stem"}
        x = blurred(4, 1)
        plain = jaxcnn.substitute(F, PARAMS, x, **options)
        fitted = jaxcnn.substitute(F, PARAMS, x, calibration=[(blurred(4, 2),), blurred(3, 3)], **options)
        again = jaxcnn.substitute(F, PARAMS, x, calibration=[(blurred(4, 2),), blurred(3, 3)], **options)
    return plain, fitted, again


def test_responses_are_closer_on_other_images(found):
    plain, fitted, _ = found
    assert fitted.report.macs <= 0.1
    x = blurred(6, 4)
    errors = [relative_error(each.apply(each.params, x), F(PARAMS, x)) for each in (plain, fitted)]
    assert errors[1] < 0.7 * errors[0]


def test_the_same_twice(found):
    _, first, second = found
    for a, b in zip(jax.tree.leaves(first.params), jax.tree.leaves(second.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tolerance_is_met_with_fewer_macs():
    options = {"tolerance": 0.05, "schemes": "separable"}
    x = blurred(4, 1)
    plain = jaxcnn.substitute(F, PARAMS, x, **options)
    fitted = jaxcnn.substitute(F, PARAMS, x, calibration=blurred(6, 2), **options)
    assert fitted.report.error <= 0.05
    assert fitted.report.macs <= plain.report.macs


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
    transposed_kernel: {"k": SINGLE},
    ours_transposed: {"k": SINGLE},
}


def correlated(count, seed):
    """Images whose channels and whose neighbours are alike, of which the weights know nothing."""
    mixing = normal((6, 6), 100) @ np.diag(0.5 ** np.arange(6)) @ normal((6, 6), 101)
    noise = normal((count, 13, 13, 6), seed) @ mixing
    return jnp.asarray(sum(noise[:, i : i + 10, j : j + 10] for i in range(4) for j in range(4)) / 16, jnp.float32)


@pytest.mark.parametrize("f", SHAPES)
def test_hard_shapes_are_fitted_to_their_responses(f):
    params, x, options = SHAPES[f], correlated(2, 1), {"macs": 0.35, "schemes": "separable"}
    # Checked leaks forget every trace, and each step of a fit would trace again.
    with jax.check_tracer_leaks(False):
        plain = jaxcnn.substitute(f, params, x, **options)
        fitted = jaxcnn.substitute(f, params, x, calibration=[(correlated(4, 2),), correlated(4, 3)], **options)
    other = correlated(3, 4)
    errors = [relative_error(each.apply(each.params, other), f(params, other)) for each in (plain, fitted)]
    assert errors[1] < 0.9 * errors[0]
    assert fitted.report.macs == plain.report.macs <= 0.35
    for row in fitted.report.rows:
        assert 0 < row.error < 1


def test_as_many_samples_for_the_weights_of_an_output_whichever_way_the_kernel_goes(monkeypatch):
    taken = []

    def fitted(self, number, site, option, responses):
        taken.append(len(responses))
        return self.apart(self.chain(option))[number], option.error

    monkeypatch.setattr(Layer, "fitted", fitted)
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

    def scaled(params, x):
        return conv(x, params["k"] * jnp.arange(1.0, 7.0)[None, None, None])

    for f in (while_loop, branch, scaled, autoencoder):
        params, x = {"k": SINGLE}, correlated(2, 1)
        options = {"macs": 0.6, "schemes": "separable"}
        plain = jaxcnn.substitute(f, params, x, **options)
        fitted = jaxcnn.substitute(f, params, x, calibration=correlated(2, 2), **options)
        for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(fitted.params), strict=True):
            np.testing.assert_array_equal(a, b)
