"""Training of a substitution to the dense network's own results."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn
from jaxcnn.transform.chains.explicit_kernels import make_kernels_explicit, with_explicit_kernels
from jaxcnn.transform.chains.with_chains import apply_with_chains
from jaxcnn.transform.substitution.distillation import (
    Training,
    default_optimizer,
    dense_chains,
    split_batches,
    squared_error,
    train,
)
from support.arrays import normal, relative_error

EXACT = jaxcnn.low_rank(jnp.asarray(normal((3, 3, 4, 3), 1)), rank=1)
KERNELS = {"first": jnp.asarray(normal((3, 3, 2, 4), 0)), "second": EXACT.dense(), "step": jnp.asarray(3)}


def network(params, x):
    x = jax.nn.relu(jaxcnn.conv(x, params["first"]))
    return jaxcnn.conv(x, params["second"])


def small_params():
    return KERNELS | {"second": jax.tree.map(lambda link: link + 0.1 * normal(link.shape, 5), EXACT)}


BATCHES = [(jnp.asarray(normal((2, 6, 6, 2), seed)),) for seed in (2, 3)]


def training(steps=20, is_trained=lambda name, is_chain: is_chain, optimizer=None, loss=squared_error, **options):
    return Training(steps, optimizer, loss, is_trained, **options)


def with_images(params, x):
    return network(params, x), [x, jax.nn.relu(jaxcnn.conv(x, params["first"]))]


def trained(params, batches, options, advance=lambda steps: None):
    return train(with_images, params, KERNELS, batches, options, advance)


def error_of(params, x):
    return relative_error(network(params, x), network(KERNELS, x))


@pytest.mark.parametrize("optimizer", [None, optax.adam(0.01)])
def test_the_results_come_nearer_to_the_dense_networks_and_the_rest_stays(optimizer):
    start = small_params()
    result = trained(start, BATCHES, training(40, optimizer=optimizer))
    unseen = jnp.asarray(normal((2, 6, 6, 2), 9))
    assert error_of(result, unseen) < 0.7 * error_of(start, unseen)
    np.testing.assert_array_equal(result["first"], start["first"])
    assert result["step"] == 3
    assert isinstance(result["second"], jaxcnn.KernelChain)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_step_by_hand(weight):
    start = small_params() | {"first": KERNELS["first"] + 0.3}
    (x,) = BATCHES[0]

    def relative(results, targets):
        return jnp.sum((results - targets) ** 2) / jnp.sum(targets**2)

    def loss(params):
        (y, (image, features)), (target, (_, dense_features)) = with_images(params, x), with_images(KERNELS, x)
        layers = (relative(image, image) + relative(features, dense_features)) / 2
        return relative(y, target) + weight * layers

    slopes = jax.grad(loss, allow_int=True)(start)
    options = training(1, lambda name, is_chain: True, optax.sgd(0.5), layers=weight)
    result = trained(start, [BATCHES[0]], options)
    for name in ("first", "second"):
        expected = jax.tree.map(lambda value, slope: value - 0.5 * slope, start[name], slopes[name])
        for value, value_expected in zip(jax.tree.leaves(result[name]), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(value, value_expected, rtol=1e-4, atol=1e-6)


def test_parameters_by_name():
    start = small_params()
    start["first"] = start["first"] + 0.1
    result = trained(start, BATCHES, training(2, lambda name, is_chain: name == "first"))
    assert not np.array_equal(result["first"], start["first"])
    np.testing.assert_array_equal(result["second"].kernels[0], start["second"].kernels[0])


def test_the_first_batches_of_an_iterator_judge_too_and_the_others_are_taken_one_at_a_time():
    taken = []

    def batches():
        for number, batch in enumerate(BATCHES * 3):
            taken.append(number)
            yield batch

    told = []
    trained(small_params(), batches(), training(4), lambda steps: told.append(len(taken)))
    assert told == [2, 2, 3, 4]


def test_an_iterator_that_ends_early_says_after_how_many():
    with pytest.raises(ValueError, match="inputs end after 4 batches, steps=5"):
        trained(small_params(), iter(BATCHES * 2), training(5))


def test_a_step_that_makes_held_out_inputs_worse_is_not_kept():
    start = small_params()
    batches = [(jnp.asarray(normal((2, 6, 6, 2), seed)),) for seed in range(5)]
    uphill = trained(start, batches, training(10, optimizer=optax.sgd(-0.01)))
    np.testing.assert_array_equal(uphill["second"].kernels[0], start["second"].kernels[0])
    downhill = trained(start, batches, training(10, optimizer=optax.sgd(0.01)))
    assert not np.array_equal(downhill["second"].kernels[0], start["second"].kernels[0])


def test_batches_of_a_list_are_drawn_at_random_and_some_are_held_out():
    batches = [(np.full(1, number),) for number in range(10)]

    def first_draws(seed):
        order, held_out = split_batches(batches, seed)
        return [int(batch[0][0]) for batch in itertools.islice(order, 200)], {int(batch[0][0]) for batch in held_out}

    numbers, held_out = first_draws(0)
    assert len(held_out) == 2
    assert set(numbers) == set(range(10)) - held_out
    assert numbers[:8] != sorted(numbers[:8])
    assert numbers == first_draws(0)[0] != first_draws(1)[0]


@jax.numpy_dtype_promotion("standard")
def test_steps_of_the_default_optimizer_are_relative_to_the_size_of_an_array_and_rise_and_fall():
    arrays = [jnp.asarray(size * normal((5, 5))) for size in (1e-2, 1e2)]
    optimizer = default_optimizer(40)
    state, sizes = optimizer.init(arrays), []
    update = jax.jit(optimizer.update)
    for _ in range(40):
        updates, state = update([jnp.ones((5, 5))] * 2, state, arrays)
        pairs = zip(updates, arrays, strict=True)
        sizes.append([float(jnp.linalg.norm(change) / jnp.linalg.norm(array)) for change, array in pairs])
    np.testing.assert_allclose(sizes[0], 0.005, rtol=1e-3)
    np.testing.assert_allclose(sizes[1], 0.01, rtol=1e-2)
    assert (np.diff(np.array(sizes)[1:], axis=0) < 0).all()
    np.testing.assert_allclose(sizes[20], 0.005, rtol=1e-2)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter is trained"):
        trained(KERNELS, BATCHES, training())


def test_a_loss_that_is_not_finite_names_the_step():
    with pytest.raises(ValueError, match=r"step 2 of 9.*lower rate"):
        trained(small_params(), BATCHES, training(9, optimizer=optax.sgd(1e30)))


def test_the_loss_counts_floating_results_only_and_no_values_that_are_not_finite():
    targets = {"a": jnp.asarray([3.0, jnp.nan, jnp.inf]), "b": jnp.asarray([4.0]), "c": jnp.asarray([7])}
    results = {"a": jnp.asarray([3.0, 1.0, 2.0]), "b": jnp.asarray([6.0]), "c": jnp.asarray([1])}
    assert squared_error(results, targets) == pytest.approx(4 / 25)
    assert squared_error({"a": jnp.zeros(2)}, {"a": jnp.zeros(2)}) == 0


def test_complex_results_count():
    assert squared_error(jnp.asarray([1 + 1j]), jnp.asarray([1 - 1j])) == pytest.approx(2)


@pytest.fixture(scope="module")
def small():
    return jaxcnn.substitute(network, KERNELS, BATCHES[0][0], rank=1, schemes="separable")


def test_distill_returns_a_substitution_that_knows_both_errors(small):
    result = small.distill(list(BATCHES), steps=10)
    report = result.report
    assert report.error < report.error_before_training == pytest.approx(small.report.error, rel=1e-3)
    actual, expected = result.apply(result.params, *BATCHES[0]), network(KERNELS, *BATCHES[0])
    assert relative_error(actual, expected) == pytest.approx(report.error, rel=1e-3)
    assert "after training" in str(report)
    assert jax.tree.structure(result.params) == jax.tree.structure(small.params)


def test_distill_of_a_released_substitution_needs_the_dense_parameters(small):
    with pytest.raises(ValueError, match="give dense_params= and test_args="):
        small.release().distill(list(BATCHES))
    result = small.release().distill(list(BATCHES), steps=1, dense_params=KERNELS, test_args=BATCHES[1])
    assert result.report.error_before_training is not None


def test_distill_says_if_the_error_grew(small):
    with pytest.warns(UserWarning, match="the error of the results grew"):
        small.distill([BATCHES[1][0]], steps=2, optimizer=optax.sgd(0.5), loss=lambda a, b: -squared_error(a, b))


def test_distill_refuses_steps_and_names_that_mean_nothing(small):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        small.distill(list(BATCHES), steps=0)
    with pytest.raises(TypeError, match="steps must be an int"):
        small.distill(list(BATCHES), steps=1.5)
    with pytest.raises(ValueError, match="train must be 'chains', 'all'"):
        small.distill(list(BATCHES), train="links")
    with pytest.raises(ValueError, match="layers must be at least 0 and finite, got -1"):
        small.distill(list(BATCHES), layers=-1)


def grouped(params, x):
    x = jax.nn.relu(jaxcnn.conv(x, params["depthwise"], feature_group_count=2))
    return jaxcnn.conv(x, params["computed"] - params["computed"].mean())


def in_a_scan(params, x):
    return jax.lax.scan(lambda x, kernel: (jaxcnn.conv(x, kernel), None), x, params["stack"])[0]


@pytest.mark.parametrize(
    ("f", "params", "scheme"),
    [
        (grouped, {"depthwise": normal((3, 3, 1, 4), 1), "computed": normal((3, 3, 4, 3), 2)}, "separable"),
        (in_a_scan, {"stack": normal((2, 3, 3, 2, 2), 3)}, "separable"),
    ],
)
def test_kernels_in_groups_computed_and_stacked_are_trained(f, params, scheme):
    params = jax.tree.map(jnp.asarray, params)
    substitution = jaxcnn.substitute(f, params, BATCHES[0][0], rank=1, schemes=scheme)
    explicit = make_kernels_explicit(f, params, BATCHES[0])
    dense = dense_chains(substitution.params, explicit, substitution.placements)
    apply = apply_with_chains(with_explicit_kernels(f), substitution.placements)
    np.testing.assert_allclose(apply(dense, *BATCHES[0]), f(params, *BATCHES[0]), rtol=1e-4, atol=1e-5)
    report = substitution.distill(list(BATCHES), steps=10).report
    assert report.error < report.error_before_training
