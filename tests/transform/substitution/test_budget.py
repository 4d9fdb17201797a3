"""Budgets for all layers, against the best of all choices."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from jaxcnn.transform.substitution.budget import Harm, allocate
from jaxcnn.transform.substitution.layer import Option


def layer(generator, count):
    macs = sorted(generator.integers(10, 1000, count).tolist(), reverse=True)
    errors = [0.0, *sorted(generator.uniform(0, 1, count - 1).tolist())]
    return [
        Option("dense" if error == 0 else "low_rank", None, cost, error)
        for cost, error in zip(macs, errors, strict=True)
    ]


def squares(*weights):
    """Harms of weight times error squared."""
    return [Harm((1.0,), (weight,)) for weight in weights]


def total(choice, harms):
    return sum(harm.squared_error(option.error) for option, harm in zip(choice, harms, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_near_the_best_of_all_choices(seed):
    generator = np.random.default_rng(seed)
    options = [layer(generator, 6) for _ in range(4)]
    harms = squares(*generator.uniform(0.1, 3, 4))
    if seed % 2:
        harms[0] = Harm((0.2, 0.5, 0.8), (1e-5, 1e-3, 0.5))
    dense = sum(of_layer[0].macs for of_layer in options)
    least = sum(of_layer[-1].macs for of_layer in options)
    for budget in np.linspace(least, dense, 7):
        choice = allocate(options, harms, budget)
        assert sum(option.macs for option in choice) <= budget
        within = (c for c in itertools.product(*options) if sum(o.macs for o in c) <= budget)
        best = min(total(c, harms) for c in within)
        # A greedy choice along the hull is the best but for the last step.
        step = max(
            harm.squared_error(b.error) - harm.squared_error(a.error)
            for of_layer, harm in zip(options, harms, strict=True)
            for a, b in itertools.pairwise(of_layer)
        )
        assert best - 1e-12 <= total(choice, harms) <= best + step


def test_enough_for_all_is_dense_and_too_little_is_none():
    options = [layer(np.random.default_rng(0), 5)]
    assert allocate(options, squares(1.0), options[0][0].macs) == [options[0][0]]
    assert allocate(options, squares(1.0), options[0][-1].macs - 1) is None
    assert allocate([], [], 0) == []
    assert allocate([], [], -1) is None


@pytest.mark.parametrize("seed", range(6))
def test_a_budget_of_bytes_beside_that_of_macs(seed):
    generator = np.random.default_rng(seed)
    options = [
        [dataclasses.replace(o, parameter_bytes=int(o.macs * generator.uniform(0.2, 5))) for o in layer(generator, 6)]
        for _ in range(4)
    ]
    harms = squares(*generator.uniform(0.1, 3, 4))
    sizes = [(sum(o.macs for o in c), sum(o.parameter_bytes for o in c)) for c in itertools.product(*options)]
    dense = sizes[0]
    for macs, size in ((0.8 * dense[0], 0.6 * dense[1]), (0.5 * dense[0], 0.9 * dense[1])):
        choice = allocate(options, harms, macs, size)
        assert sum(o.macs for o in choice) <= macs
        assert sum(o.parameter_bytes for o in choice) <= size
        choices = zip(itertools.product(*options), sizes, strict=True)
        losses = [total(c, harms) for c, (m, b) in choices if m <= macs and b <= size]
        assert total(choice, harms) <= np.quantile(losses, 0.05)
    assert allocate(options, harms, dense[0], min(size for _, size in sizes) - 1) is None


def test_the_layer_that_loses_the_least_gives_way():
    first = [Option("dense", None, 100, 0.0), Option("low_rank", 1, 50, 0.1)]
    second = [Option("dense", None, 100, 0.0), Option("low_rank", 1, 50, 0.2)]
    assert [option.macs for option in allocate([first, second], squares(1.0, 1.0), 150)] == [50, 100]
    # What reaches the results counts, not the error alone.
    assert [option.macs for option in allocate([first, second], squares(9.0, 1.0), 150)] == [100, 50]


def test_what_the_last_step_saved_too_much_is_spent_again():
    first = [Option("dense", None, 100, 0.0), Option("low_rank", 1, 10, 0.1)]
    second = [Option("dense", None, 100, 0.0), Option("low_rank", 9, 90, 0.3), Option("low_rank", 1, 50, 0.9)]
    assert [option.macs for option in allocate([first, second], squares(1.0, 1.0), 105)] == [10, 90]


def test_harm_between_and_beyond_what_was_seen():
    harm = Harm((0.2, 0.8), (0.01, 0.64))
    assert harm.squared_error(0.0) == 0
    assert harm.squared_error(0.1) == pytest.approx(0.0025)  # a quarter of that at 0.2
    assert harm.squared_error(0.2) == pytest.approx(0.01)
    assert harm.squared_error(0.4) == pytest.approx(0.08)  # halfway in logarithms
    assert harm.squared_error(1.6) == pytest.approx(2.56)
