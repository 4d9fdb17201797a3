"""The cost model: its coefficients are those of the committed measurements, and what its choice costs on others.

The layers of `seed0.json` are what the coefficients are fitted on; those of `seed1.json` the fit has not seen. No clock
is read: the times of every method stand in the files.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.choice import fit
from benchmarks.choice.families import FAMILIES
from benchmarks.shared.timing import geometric_mean
from jaxcnn import native
from jaxcnn.lowering import choice, costs

RESULTS = Path(__file__).parents[2] / "benchmarks" / "choice" / "results"
FITTED, UNSEEN = RESULTS / "seed0.json", RESULTS / "seed1.json"

MEAN, WORST = 1.10, 1.6
"""Most that the choice may cost, over the best method's time: in a family's geometric mean, and of one layer."""
WORST_OF = {"grouped": 1.9}
"""Allowance for one layer that costs more: groups of 29 channels, the image's gradient at a stride of 2."""

needs_library = pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")


def test_the_coefficients_are_those_of_the_measurements():
    fitted = fit.coefficients(fit.layers(FITTED))
    assert {method: list(terms) for method, terms in fitted.items()} == {
        method: list(terms) for method, terms in costs.NANOSECONDS.items()
    }
    for method, terms in fitted.items():
        np.testing.assert_allclose(list(terms.values()), list(costs.NANOSECONDS[method].values()), rtol=0.02)


def test_the_two_files_have_no_layer_in_common():
    fitted, unseen = ({spec for _, spec, _ in fit.layers(path)} for path in (FITTED, UNSEEN))
    assert not fitted & unseen


@needs_library
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_choice_costs_on_layers_that_the_fit_has_not_seen(family):
    rows = fit.costs_by_family(layer for layer in fit.layers(UNSEEN) if layer[0] == family)[family]
    assert len(rows) >= 6
    assert geometric_mean(ratio for ratio, *_ in rows) <= MEAN
    for ratio, spec, chosen, best in rows:
        assert ratio <= WORST_OF.get(family, WORST), f"{chosen} takes {ratio:.2f} times as long as {best}: {spec}"


@needs_library
def test_estimates_are_near_the_times():
    pairs = [(choice.seconds(spec, "native"), times["native"]) for _, spec, times in fit.layers(UNSEEN)]
    ratios = [1e3 * seconds / time for seconds, time in pairs if not math.isinf(seconds)]
    assert len(ratios) > 40
    assert 0.7 < geometric_mean(ratios) < 1.2
    assert np.mean([1 / 3 < ratio < 3 for ratio in ratios]) > 0.9


def test_a_kernel_gradient_is_not_estimated():
    spec = next(spec for _, spec, _ in fit.layers(UNSEEN) if spec.role == "kernel")
    assert all(math.isinf(choice.seconds(spec, method)) for method in choice.METHODS)
