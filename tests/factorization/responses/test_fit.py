"""Chains fitted to responses: exact where they can be, never worse, and better than the weights' own."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import jaxcnn
from jaxcnn import KernelChain
from jaxcnn.factorization.responses.fit import refit
from jaxcnn.factorization.responses.samples import Responses, Samples, response_error
from jaxcnn.factorization.responses.square_error import SquareError
from jaxcnn.factorization.responses.start import ResponseFits, response_start, with_last_link
from support.arrays import normal


def chain_of(rng, links, counts=()):
    return KernelChain(tuple(normal(shape, rng) for shape in links), counts)


def responses_of(kernel, patches, groups=1, **limits):
    """Returns the responses of a kernel to patches, by a matrix product in float64."""
    blocks = np.split(np.asarray(kernel, np.float64), groups, axis=-1)
    parts = np.split(patches.astype(np.float64), groups, axis=-1)
    rows = len(patches)
    answers = [p.reshape(rows, -1) @ k.reshape(-1, k.shape[-1]) for p, k in zip(parts, blocks, strict=True)]
    return Responses(patches, of_places(np.concatenate(answers, axis=1), patches), **limits)


def of_places(rows, patches):
    """Returns (N, O) as targets (N, 1, ..., 1, O) of patches that are as large as the window."""
    return np.reshape(rows, (len(rows), *[1] * (patches.ndim - 2), -1))


def correlated(rng, count, window, channels, few=3):
    """Patches that nearly lie in a space of few dimensions, as those of images do."""
    size = int(np.prod(window)) * channels
    basis = normal((few, size), rng)
    patches = normal((count, few), rng) @ basis + 0.1 * normal((count, size), rng)
    return patches.reshape(count, *window, channels)


def numpy_error(dense, responses):
    """The definition, by the dense kernel of one group."""
    rows = len(responses.targets)
    given = responses.patches.reshape(rows, -1).astype(np.float64) @ np.asarray(dense, np.float64).reshape(
        -1, dense.shape[-1]
    )
    targets = responses.targets.reshape(rows, -1)
    seen, wanted = (np.clip(r, responses.low, responses.high) for r in (given, targets))
    return np.linalg.norm(seen - wanted) / np.linalg.norm(wanted - wanted.mean(0))


# One chain of each scheme's shapes, in 1-D, 2-D and 3-D, with and without groups.
CHAINS = {
    "separable": ([(3, 1, 4, 3), (1, 3, 3, 5)], ()),
    "separable, groups": ([(3, 1, 2, 4), (1, 3, 2, 6)], (2, 2)),
    "separable, depthwise": ([(3, 1, 1, 8), (1, 3, 2, 12)], (4, 4)),
    "separable, depthwise, 3-D": ([(2, 1, 1, 1, 6), (1, 2, 1, 2, 6), (1, 1, 2, 2, 3)], (3, 3, 3)),
    "low_rank, depthwise, 1-D": ([(5, 1, 8), (1, 2, 16)], (4, 4)),
    "separable, 3-D": ([(2, 1, 1, 2, 3), (1, 2, 1, 3, 3), (1, 1, 2, 3, 4)], ()),
    "low_rank": ([(3, 3, 4, 2), (1, 1, 2, 6)], ()),
    "low_rank, 1-D": ([(5, 4, 2), (1, 2, 6)], ()),
    "tucker2": ([(1, 1, 6, 3), (3, 3, 3, 2), (1, 1, 2, 6)], ()),
    "depthwise_separable": ([(3, 3, 1, 4), (1, 1, 4, 6)], (4, 1)),
    "depthwise_separable, groups": ([(3, 3, 1, 8), (1, 1, 4, 6)], (4, 2)),
    "cp": ([(1, 1, 4, 3), (3, 1, 1, 3), (1, 3, 1, 3), (1, 1, 3, 5)], (1, 3, 3, 1)),
    "stack": ([(3, 3, 2, 3), (3, 3, 3, 3)], ()),
}


def disturbed(rng, chain, amount=0.3):
    """A chain near another one."""
    links = (
        link + np.float32(amount * np.std(link)) * normal(link.shape, rng) for link in map(np.asarray, chain.kernels)
    )
    return KernelChain(tuple(links), chain.feature_group_counts)


QUICK = (
    "separable, groups",
    "separable, depthwise, 3-D",
    "low_rank, 1-D",
    "tucker2",
    "depthwise_separable, groups",
    "cp",
)
"""Each kind of link, of groups and of window: one fit takes two seconds, most of them to compile."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHAINS]
)
def test_a_chain_is_found_again_from_its_responses(name, rng):
    chain = chain_of(rng, *CHAINS[name])
    groups = chain.feature_group_count
    patches = normal((600, *chain.shape[:-2], chain.shape[-2] * groups), rng)
    responses = responses_of(chain.dense(), patches, groups)
    near = disturbed(rng, chain)
    fit = refit(near, responses, kernel=chain.dense(), iterations=60)
    assert [link.shape for link in fit.kernels] == [link.shape for link in chain.kernels]
    assert fit.feature_group_counts == chain.feature_group_counts
    assert response_error(near, responses) > 0.1
    assert response_error(fit, responses) < 0.01


@pytest.mark.parametrize("limits", [{}, {"low": [-0.5, 0.0, -np.inf]}, {"low": [0.0] * 3, "high": [6.0] * 3}])
def test_the_error_is_that_of_its_definition(limits, rng):
    chain = chain_of(rng, [(3, 1, 4, 2), (1, 3, 2, 3)])
    responses = responses_of(normal((3, 3, 4, 3), rng), normal((50, 3, 3, 4), rng), **limits)
    expected = numpy_error(chain.dense(), responses)
    assert response_error(chain, responses) == pytest.approx(expected, rel=1e-5)
    assert response_error(chain.dense(), responses) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("inputs", "groups"), [(2, 2), (1, 4)])
def test_groups_are_read_off_the_patches(inputs, groups, rng):
    kernel = normal((3, 3, inputs, 12), rng)
    patches = normal((50, 3, 3, 4), rng)
    assert response_error(kernel, responses_of(kernel, patches, groups)) < 1e-5
    other = responses_of(normal(kernel.shape, rng), patches, groups, low=np.zeros(12))
    given, wanted = (np.maximum(r.targets.reshape(50, -1), 0) for r in (responses_of(kernel, patches, groups), other))
    expected = np.linalg.norm(given - wanted) / np.linalg.norm(wanted - wanted.mean(0))
    assert response_error(kernel, other) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("low", [np.full(6, 0.2, np.float32), pytest.param(None, marks=pytest.mark.slow)])
def test_correlated_inputs_are_fitted_better_than_the_weights(low, rng):
    kernel = normal((3, 3, 4, 6), rng)
    train, new = (responses_of(kernel, part, low=low) for part in np.split(correlated(rng, 800, (3, 3), 4), 2))
    weights = jaxcnn.separable(kernel, rank=4)
    fit = refit(weights, train, kernel=kernel)
    assert response_error(fit, train) < 0.3 * response_error(weights, train)
    assert response_error(fit, new) < 0.5 * response_error(weights, new)


def test_what_a_relu_hides_is_not_fitted(rng):
    kernel = normal((3, 3, 4, 8), rng)
    kernel[..., :4] *= 5  # half of the channels, the strongest, never pass their ReLU
    low = np.repeat(np.array([1000, -1000], np.float32), 4)
    behind = responses_of(kernel, normal((1500, 3, 3, 4), rng), low=low)
    start = jaxcnn.separable(kernel, rank=6)
    aware = refit(start, behind)
    linear = refit(start, dataclasses.replace(behind, low=None))
    assert response_error(aware, behind) < 0.7 * response_error(linear, behind)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("separable, groups", 1),
        ("cp", 7),
        pytest.param("low_rank, 1-D", 7, marks=pytest.mark.slow),
        pytest.param("depthwise_separable", 40, marks=pytest.mark.slow),
    ],
)
def test_few_samples_make_nothing_worse(name, count, rng):
    chain = chain_of(rng, *CHAINS[name])
    groups = chain.feature_group_count
    kernel = normal(chain.shape, rng)
    channels = chain.shape[-2] * groups
    responses = responses_of(kernel, normal((count, *chain.shape[:-2], channels), rng), groups)
    fit = refit(chain, responses, kernel=kernel, iterations=10)
    assert all(np.isfinite(link).all() for link in fit.kernels)
    assert response_error(fit, responses) <= response_error(chain, responses)


def test_few_samples_do_not_lead_away_from_the_weights(rng):
    kernel = normal((3, 3, 4, 6), rng)
    weights = jaxcnn.separable(kernel, rank=5)
    few, new = (responses_of(kernel, normal((count, 3, 3, 4), rng)) for count in (20, 2000))
    near = refit(weights, few, kernel=kernel, ridge=1.0)
    free = refit(weights, few, kernel=kernel, ridge=1e-6, held_out=0.0)
    assert response_error(near, new) < 1.1 * response_error(weights, new)
    assert response_error(free, new) > 1.3 * response_error(weights, new)


def test_a_large_ridge_keeps_the_weights(rng):
    kernel = normal((3, 3, 4, 6), rng)
    weights = jaxcnn.separable(kernel, rank=5)
    few = responses_of(kernel, normal((60, 3, 3, 4), rng))
    near, free = (refit(weights, few, kernel=kernel, ridge=ridge, held_out=0.0) for ridge in (1e3, 1e-6))
    assert float(near.relative_error(kernel)) < 1.001 * float(weights.relative_error(kernel))
    assert float(free.relative_error(kernel)) > 1.1 * float(weights.relative_error(kernel))


def test_held_out_samples_stop_the_fit(rng):
    kernel = normal((3, 3, 4, 6), rng)
    weights = jaxcnn.separable(kernel, rank=5)
    few, new = (responses_of(kernel, normal((count, 3, 3, 4), rng)) for count in (60, 2000))
    errors = [response_error(refit(weights, few, ridge=1e-6, held_out=share), new) for share in (0.5, 0.0)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "name",
    [
        "depthwise_separable, groups",
        pytest.param("separable", marks=pytest.mark.slow),
        pytest.param("tucker2", marks=pytest.mark.slow),
    ],
)
def test_channels_of_zeros(name, rng):
    chain = chain_of(rng, *CHAINS[name])
    groups = chain.feature_group_count
    links = [np.array(link) for link in chain.kernels]
    links[0][..., 0] = 0  # a dead filter
    patches = normal((100, *chain.shape[:-2], chain.shape[-2] * groups), rng)
    patches[..., 1] = 0
    kernel = normal(chain.shape, rng)
    kernel[..., -1] = 0
    responses = responses_of(kernel, patches, groups, low=np.zeros(kernel.shape[-1]))
    given = KernelChain(tuple(links), chain.feature_group_counts)
    fit = refit(given, responses, kernel=kernel, iterations=5)
    assert all(np.isfinite(link).all() for link in fit.kernels)
    assert response_error(fit, responses) < response_error(given, responses)


def test_nothing_but_zeros():
    chain = KernelChain((np.zeros((3, 1, 2, 1), np.float32), np.zeros((1, 3, 1, 2), np.float32)))
    responses = Responses(np.zeros((4, 3, 3, 2)), np.zeros((4, 1, 1, 2)))
    assert response_error(chain, responses) == 0
    assert response_error(chain, dataclasses.replace(responses, targets=np.ones((4, 1, 1, 2)))) == np.inf
    fit = refit(chain, responses)
    assert all((np.asarray(link) == 0).all() for link in fit.kernels)


def test_the_same_arguments_give_the_same_links(rng):
    kernel = normal((3, 3, 4, 6), rng)
    responses = responses_of(kernel, normal((100, 3, 3, 4), rng))
    first, second = (refit(jaxcnn.separable(kernel, rank=2), responses).kernels for _ in range(2))
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(first, second, strict=True))


def test_a_chain_keeps_its_dtypes(rng):
    kernel = jax.numpy.asarray(normal((3, 3, 4, 6), rng), jax.numpy.bfloat16)
    responses = responses_of(kernel.astype(np.float32), correlated(rng, 100, (3, 3), 4))
    weights = jaxcnn.separable(kernel, rank=2)
    fit = refit(weights, responses)
    assert [link.dtype for link in fit.kernels] == [jax.numpy.bfloat16] * 2
    assert response_error(fit, responses) < response_error(weights, responses)


@pytest.mark.parametrize("ranks", [(6,), pytest.param((2, 4, 9, 12), marks=pytest.mark.slow)])
def test_rounding_to_16_bits_makes_nothing_worse(ranks, rng):
    kernel = jax.numpy.asarray(normal((3, 3, 4, 6), rng), jax.numpy.bfloat16)
    responses = responses_of(kernel.astype(np.float32), correlated(rng, 100, (3, 3), 4))
    for rank in ranks:
        chain = jaxcnn.separable(kernel, rank=rank)
        for _ in range(3):
            fit = refit(chain, responses)
            assert response_error(fit, responses) <= response_error(chain, responses)
            chain = fit


def test_the_last_link_is_solved_for_without_a_step(rng):
    chain = chain_of(rng, *CHAINS["separable"])
    responses = responses_of(chain.dense(), normal((600, 3, 3, 4), rng))
    wrong = KernelChain((chain.kernels[0], normal(chain.kernels[1].shape, rng)))
    assert response_error(wrong, responses) > 0.5
    assert response_error(refit(wrong, responses, kernel=chain.dense(), ridge=0.0, iterations=0), responses) < 1e-4


SCHEMES = {
    "separable": ((3, 3, 4, 6), [1, 3, 6, 12]),
    "low_rank": ((3, 3, 4, 6), [1, 2, 4, 6]),
    "tucker2": ((3, 3, 4, 6), [1, (2, 2), (3, 4), (4, 6)]),
    "depthwise_separable": ((3, 3, 4, 6), [1, 2, 4, 6]),
    "cp": ((3, 3, 2, 3), [1, 3, 8]),
    "stack": ((5, 5, 1, 2), [1, 2, 6]),
}


@pytest.mark.parametrize(
    ("scheme", "groups"),
    [
        ("separable", 2),
        ("low_rank", 1),
        ("tucker2", 1),
        ("depthwise_separable", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("separable", 1), ("tucker2", 2), ("cp", 1), ("stack", 1))
        ),
    ],
)
def test_a_curve_falls_with_the_rank(scheme, groups, rng):
    shape, ranks = SCHEMES[scheme]
    kernel = normal((*shape[:-1], shape[-1] * groups), rng)
    patches = correlated(rng, 400, shape[:-2], shape[-2] * groups, few=8)
    responses = responses_of(kernel, patches, groups)
    fits = ResponseFits(kernel, responses, feature_group_count=groups)
    errors = [fits.at(scheme, rank)[1] for rank in ranks]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[-1]
    assert errors[-1] < 0.05


@pytest.mark.parametrize("scheme", ["separable", "low_rank", "tucker2", "depthwise_separable"])
def test_a_start_in_the_metric_of_the_inputs_beats_the_weights(scheme, rng):
    kernel = normal((3, 3, 4, 6), rng)
    responses = responses_of(kernel, correlated(rng, 400, (3, 3), 4))
    start = response_start(kernel, scheme, 2, responses)
    weights = getattr(jaxcnn, scheme)(
        kernel, **{{"tucker2": "ranks", "depthwise_separable": "multiplier"}.get(scheme, "rank"): 2}
    )
    assert [link.shape for link in start.kernels] == [link.shape for link in weights.kernels]
    assert response_error(start, responses) < response_error(weights, responses)


def test_the_first_link_of_a_start_is_in_the_metric_of_the_inputs(rng):
    kernel = normal((3, 3, 4, 6), rng)
    responses = responses_of(kernel, correlated(rng, 400, (1, 1), 4, few=2).repeat(3, 1).repeat(3, 2))
    # Every output is kept: only the choice of two of the four input channels is left.
    start = response_start(kernel, "tucker2", (2, 6), responses)
    assert response_error(start, responses) < 0.3 * response_error(jaxcnn.tucker2(kernel, ranks=(2, 6)), responses)


@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 4), (3, 3, 2, 4)])
def test_full_rank_starts_are_exact(shape, rng):
    kernel = normal(shape, rng)
    responses = responses_of(kernel, normal((300, *shape[:-1]), rng))
    full = tuple(link.shape[-1] for link in jaxcnn.separable(kernel).kernels[:-1])
    start = response_start(kernel, "separable", full, responses)
    assert float(start.relative_error(kernel)) < 1e-5


def test_errors_name_what_does_not_fit(rng):
    patches = normal((5, 3, 3, 4), rng)
    for targets in (np.zeros((4, 1, 1, 6)), np.zeros((5, 6)), np.zeros((5, 0, 1, 6))):
        with pytest.raises(
            ValueError, match=rf"same N and at .* got \(5, 3, 3, 4\) and {re.escape(str(targets.shape))}"
        ):
            Responses(patches, targets)
    targets = np.zeros((5, 1, 1, 6))
    with pytest.raises(ValueError, match=r"are \(5, 1, 1, 6\), so low must be \(6,\) or of the same shape, got \(5,\)"):
        Responses(patches, targets, low=np.zeros(5))
    with pytest.raises(ValueError, match="targets have 1 values that are NaN or infinite"):
        Responses(patches, np.where(np.arange(30) == 3, np.nan, 0.0).reshape(targets.shape))
    responses = Responses(patches, targets)
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 6\), the kernel of \(3, 3, 4, 5\)"):
        response_error(np.zeros((3, 3, 4, 5), np.float32), responses)
    with pytest.raises(ValueError, match="patches have 4 channels, kernel takes 3 in each group"):
        response_error(np.zeros((3, 3, 3, 6), np.float32), responses)
    chain = jaxcnn.separable(normal((3, 3, 4, 6), rng), rank=1)
    with pytest.raises(ValueError, match=r"of shape \(3, 3, 4, 6\), got \(3, 3, 4, 5\)"):
        refit(chain, responses, kernel=np.zeros((3, 3, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"held_out must be at least 0 and less than 1, got 1"):
        refit(chain, responses, held_out=1)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("limited", [False, True])
def test_pieces_are_as_good_as_the_patches_in_them(name, limited, rng):
    """A piece of an image stands for the patches at all of its positions, which share pixels."""
    chain = chain_of(rng, *CHAINS[name])
    window, groups = chain.shape[:-2], chain.feature_group_count
    places = tuple(2 + axis for axis in range(len(window)))
    extents = tuple(size + place - 1 for size, place in zip(window, places, strict=True))
    pieces = normal((30, *extents, chain.shape[-2] * groups), rng)
    views = sliding_window_view(pieces, window, tuple(range(1, 1 + len(window))))
    patches = np.moveaxis(views, 1 + len(window), -1).reshape(-1, *window, pieces.shape[-1])
    limits = {"low": np.full(chain.shape[-1], -1.0), "high": np.full(chain.shape[-1], 1.5)} if limited else {}
    single = responses_of(chain.dense(), patches, groups, **limits)
    of_pieces = Responses(pieces, single.targets.reshape(30, *places, -1), **limits)
    assert of_pieces.window == window
    assert (len(of_pieces), of_pieces.num_places) == (30, 30 * math.prod(places))
    near = disturbed(rng, chain)
    assert response_error(near, of_pieces) == pytest.approx(response_error(near, single), rel=1e-4)
    both = [Samples(responses, groups) for responses in (of_pieces, single)]
    links, counts = [np.asarray(link) for link in near.kernels], near.feature_group_counts
    objectives = [SquareError(samples, counts, np.asarray(chain.dense()), 0.1) for samples in both]
    (value, gradient), (expected, expected_gradient) = (error.value_and_gradient(links) for error in objectives)
    assert value == pytest.approx(expected, rel=1e-5)
    for by_link, expected_by_link in zip(gradient, expected_gradient, strict=True):
        np.testing.assert_allclose(by_link, expected_by_link, atol=1e-5 * np.abs(expected_by_link).max())
    squares = [with_last_link(near, samples, 1e-3)[1] for samples in both]
    assert squares[0] == pytest.approx(squares[1], rel=1e-3)
    fit = refit(near, of_pieces, kernel=chain.dense(), iterations=2)
    assert response_error(fit, single) < 0.9 * response_error(near, single)


@pytest.mark.parametrize("scheme", ["separable", "low_rank", "tucker2", "depthwise_separable"])
@pytest.mark.parametrize("groups", [1, 2])
def test_starts_from_pieces_are_those_from_the_patches_in_them(scheme, groups, rng):
    kernel = normal((3, 2, 4, 6), rng)
    pieces = normal((40, 6, 4, 4 * groups), rng) * np.linspace(0.1, 2, 4 * groups, dtype=np.float32)
    views = sliding_window_view(pieces, (3, 2), (1, 2))
    patches = np.moveaxis(views, 3, -1).reshape(-1, 3, 2, 4 * groups)
    single = responses_of(kernel, patches, groups)
    of_pieces = Responses(pieces, single.targets.reshape(40, 4, 3, -1))
    starts = [response_start(kernel, scheme, 2, r, feature_group_count=groups) for r in (of_pieces, single)]
    dense = [np.asarray(start.dense()) for start in starts]
    # Pieces hold the pixels at their edges once, so second moments of parts of a window may differ a little.
    assert np.linalg.norm(dense[0] - dense[1]) < 0.1 * np.linalg.norm(dense[1])
