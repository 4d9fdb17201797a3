"""Allocation of one budget of multiply-accumulates over all layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxcnn.transform.substitution.layer import Option


@dataclasses.dataclass(frozen=True)
class Harm:
    """The harm that a layer's relative error does to the results, whose squared errors add up over layers.

    Measured pairs of the layer's error and the results' squared error are interpolated by their logarithms. Outside of
    them the squared error grows with the square of the layer's error.

    Args:
      errors: layer's errors in these measurements, ascending and positive.
      squares: squared errors of the results in them, positive.
    """

    errors: tuple[float, ...]
    squares: tuple[float, ...]

    def squared_error(self, error: float) -> float:
        """Returns the squared error of the results for an error of the layer."""
        if error <= self.errors[0]:
            return self.squares[0] * (error / self.errors[0]) ** 2
        if error >= self.errors[-1]:
            return self.squares[-1] * (error / self.errors[-1]) ** 2
        return float(np.exp(np.interp(np.log(error), np.log(self.errors), np.log(self.squares))))


def allocate(options: Sequence[Sequence[Option]], harms: Sequence[Harm], macs: float) -> list[Option] | None:
    """Returns one option for each layer that together meet a budget of multiply-accumulates with the least loss.

    Every layer starts with its first option, the dense kernel. The layer that loses the least for each saved
    multiply-accumulate then takes its next option on the convex hull, until the budget is met. Multiply-accumulates
    that the last step saved beyond the budget go to the layers that gain the most. None if not even the cheapest
    options meet the budget.
    """
    hulls = [_hull(of_layer, harm) for of_layer, harm in zip(options, harms, strict=True)]
    places = [0] * len(hulls)
    total = sum(of_layer[0].macs for of_layer in options)
    while total > macs:
        slopes = [
            _slope(hull[place], hull[place + 1], harm) if place + 1 < len(hull) else math.inf
            for hull, place, harm in zip(hulls, places, harms, strict=True)
        ]
        layer = min(range(len(slopes)), key=slopes.__getitem__, default=None)
        if layer is None or math.isinf(slopes[layer]):
            return None
        total -= hulls[layer][places[layer]].macs - hulls[layer][places[layer] + 1].macs
        places[layer] += 1
    chosen = [hull[place] for hull, place in zip(hulls, places, strict=True)]
    while True:
        gains = [
            (harm.squared_error(current.error) - harm.squared_error(candidate.error), layer, candidate)
            for layer, (current, of_layer, harm) in enumerate(zip(chosen, options, harms, strict=True))
            for candidate in of_layer
            if total - current.macs + candidate.macs <= macs
            and harm.squared_error(candidate.error) < harm.squared_error(current.error)
        ]
        if not gains:
            return chosen
        _, layer, candidate = max(gains, key=lambda gain: gain[:2])
        total += candidate.macs - chosen[layer].macs
        chosen[layer] = candidate


def _slope(before: Option, after: Option, harm: Harm) -> float:
    return (harm.squared_error(after.error) - harm.squared_error(before.error)) / (before.macs - after.macs)


def _hull(options: Sequence[Option], harm: Harm) -> list[Option]:
    """Returns the options on the lower convex hull of loss over cost, from the most expensive to the cheapest."""
    hull = [options[0]]
    cheaper = sorted(options[1:], key=lambda option: (-option.macs, option.error))
    while True:
        candidates = [option for option in cheaper if option.macs < hull[-1].macs]
        if not candidates:
            return hull
        # The least slope wins, and the longest step among equal slopes.
        hull.append(min(candidates, key=lambda option: (_slope(hull[-1], option, harm), option.macs)))
