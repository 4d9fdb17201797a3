"""The cost model: its coefficients are those of the committed measurements, and what its choice costs on others.

The layers of `seed0*.json` are what the coefficients are fitted on; those of `seed1*.json` the fit has not seen. No
clock is read: the times of every method stand in the files, with the compiled library and without it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from benchmarks.choice import compilation, fit
from benchmarks.choice.families import FAMILIES, ROLES, layer
from benchmarks.shared.timing import geometric_mean
from jaxcnn.lowering import choice, costs

MEAN, WORST = 1.10, 1.6
"""Most that the choice may cost, over the best method's time: in a family's geometric mean, and of one layer."""
ALLOWANCES = {
    # Copies of large kernels and of pixels, whose memory is cleared in a network and is not where a layer is alone.
    ("dense", False): (1.28, 2.4),
    ("square", False): (1.15, WORST),
    ("depthwise", False): (MEAN, 2.25),
    ("one_dimensional", False): (1.32, 1.9),
    ("one_axis", False): (1.2, 1.65),
}
"""Most that the choice may cost in families that cost more, by name and presence of the library."""


def measured(paths: list[Any]) -> list[fit.MeasuredLayer]:
    return [timed for path in paths for timed in fit.layers(path)]


def test_the_coefficients_are_those_of_the_measurements() -> None:
    fitted = fit.coefficients(measured(fit.FITTED))
    assert {method: list(terms) for method, terms in fitted.items()} == {
        method: list(terms) for method, terms in costs.NANOSECONDS.items()
    }
    for method, terms in fitted.items():
        np.testing.assert_allclose(list(terms.values()), list(costs.NANOSECONDS[method].values()), rtol=0.05)


def test_the_fit_has_not_seen_the_layers_that_judge_it() -> None:
    fitted, unseen = ({timed.spec for timed in measured(paths)} for paths in (fit.FITTED, fit.UNSEEN))
    assert len(fitted) == 395
    assert len(unseen) == 110
    assert not fitted & unseen


@pytest.mark.parametrize("path", fit.UNSEEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_choice_costs_on_layers_that_the_fit_has_not_seen(path: Any, family: str) -> None:
    layers = [timed for timed in fit.layers(path) if timed.family == family]
    rows = fit.outcomes_by_family(layers)[family]
    assert len(rows) >= 6
    mean, worst = ALLOWANCES.get((family, layers[0].native), (MEAN, WORST))
    assert geometric_mean(row.ratio for row in rows) <= mean
    for row in rows:
        assert row.ratio <= worst, f"{row.chosen} takes {row.ratio:.2f} times as long as {row.best}: {row.spec}"


@pytest.mark.parametrize("method", ["native", "shift", "matmul", "direct"])
def test_estimates_are_near_the_times(method: str) -> None:
    ratios = []
    for timed in measured(fit.UNSEEN):
        times = timed.milliseconds
        # Where a method takes many times as long as the best one its estimate need not be near.
        if method in times and times[method] < 3 * min(times.values()):
            with fit.measured_library(timed):
                estimate = choice.seconds(timed.spec, method)
            if not math.isinf(estimate):
                ratios.append(1e3 * estimate / times[method])
    assert len(ratios) > 40
    assert 0.6 < geometric_mean(ratios) < 1.3
    assert np.mean([1 / 3 < ratio < 3 for ratio in ratios]) > 0.9


def test_the_coefficients_of_compiling_are_those_of_the_measurements() -> None:
    fitted = compilation.coefficients(compilation.read())
    assert fitted.keys() == costs.MILLISECONDS_TO_COMPILE.keys()
    for method, counts in fitted.items():
        assert counts == pytest.approx(costs.MILLISECONDS_TO_COMPILE[method], rel=0.05)


def test_estimates_of_compiling_are_near_the_times() -> None:
    ratios = []
    for compiled in compilation.read():
        with fit.measured_library(compiled):
            for method, milliseconds in compiled.milliseconds.items():
                estimate = costs.seconds_to_compile(choice.METHODS[method], compiled.spec)
                ratios.append(1e3 * estimate / milliseconds)
    assert len(ratios) > 150
    assert 0.8 < geometric_mean(ratios) < 1.25
    assert np.mean([1 / 2 < ratio < 2 for ratio in ratios]) > 0.85


@pytest.mark.parametrize("xla_only", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_has_an_estimate_of_every_layer_that_it_supports(family: str, xla_only: bool) -> None:
    for seed in range(50, 56):
        for role in ROLES:
            spec = dataclasses.replace(layer(family, seed, seed % 2, role), xla_only=xla_only)
            supporting = [name for name, module in choice.METHODS.items() if module.refusal(spec) is None]
            assert min(choice.seconds(spec, name) for name in supporting) > 5e-6, spec
