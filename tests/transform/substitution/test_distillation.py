"""Training of a substitution to the dense network's own results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn
from jaxcnn.transform.substitution.distillation import Training, squared_error, train
from support.arrays import normal, relative_error

EXACT = jaxcnn.low_rank(jnp.asarray(normal((3, 3, 4, 3), 1)), rank=1)
KERNELS = {"first": jnp.asarray(normal((3, 3, 2, 4), 0)), "second": EXACT.dense(), "step": jnp.asarray(3)}


def network(params, x):
    x = jax.nn.relu(jaxcnn.conv(x, params["first"]))
    return jaxcnn.conv(x, params["second"])


def small_params():
    return KERNELS | {"second": jax.tree.map(lambda link: link + 0.1 * normal(link.shape, 5), EXACT)}


BATCHES = [(jnp.asarray(normal((2, 6, 6, 2), seed)),) for seed in (2, 3)]


def training(steps=20, is_trained=lambda name, is_chain: is_chain, optimizer=None, loss=squared_error):
    return Training(steps, optimizer, loss, is_trained)


def trained(params, batches, options, advance=lambda steps: None):
    return train(network, params, lambda x: network(KERNELS, x), batches, options, advance)


def error_of(params, x):
    return relative_error(network(params, x), network(KERNELS, x))


def test_the_results_come_nearer_to_the_dense_networks_and_the_rest_stays():
    start = small_params()
    result = trained(start, BATCHES, training(40, optimizer=optax.adam(0.01)))
    unseen = jnp.asarray(normal((2, 6, 6, 2), 9))
    assert error_of(result, unseen) < 0.5 * error_of(start, unseen)
    np.testing.assert_array_equal(result["first"], start["first"])
    assert result["step"] == 3
    assert isinstance(result["second"], jaxcnn.KernelChain)


def test_a_step_by_hand():
    start = small_params()

    def loss(chain):
        results, targets = network(start | {"second": chain}, *BATCHES[0]), network(KERNELS, *BATCHES[0])
        return jnp.sum((results - targets) ** 2) / jnp.sum(targets**2)

    expected = jax.tree.map(lambda link, slope: link - 0.5 * slope, start["second"], jax.grad(loss)(start["second"]))
    result = trained(start, BATCHES, training(1, optimizer=optax.sgd(0.5)))
    for link, link_expected in zip(result["second"].kernels, expected.kernels, strict=True):
        np.testing.assert_allclose(link, link_expected, rtol=1e-4, atol=1e-6)


def test_parameters_by_name():
    start = small_params()
    result = trained(start, BATCHES, training(2, lambda name, is_chain: name == "first"))
    assert not np.array_equal(result["first"], start["first"])
    np.testing.assert_array_equal(result["second"].kernels[0], start["second"].kernels[0])


def test_batches_of_an_iterator_are_taken_one_at_a_time():
    taken = []

    def batches():
        for number, batch in enumerate(BATCHES * 3):
            taken.append(number)
            yield batch

    told = []
    trained(small_params(), batches(), training(4), lambda steps: told.append(len(taken)))
    assert told == [1, 2, 3, 4]


def test_an_iterator_that_ends_early_says_after_how_many():
    with pytest.raises(ValueError, match="inputs end after 2 batches, steps=5"):
        trained(small_params(), iter(BATCHES), training(5))


def test_a_list_is_used_again_and_the_dense_network_computes_each_batch_once():
    calls = []

    def dense(x):
        jax.debug.callback(lambda: calls.append(1))
        return network(KERNELS, x)

    train(network, small_params(), dense, BATCHES, training(5), lambda steps: None)
    jax.effects_barrier()
    assert len(calls) == len(BATCHES)


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
