"""One budget for all layers: which option each takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxcnn.transform.substitution.layer import Option


@dataclasses.dataclass(frozen=True)
class Harm:
    """What a layer's relative error does to the results: their squared relative error, which adds up over layers.

    To first order it grows with the square of the layer's error, but a late layer of an edge detector does 200 times as
    much at 0.8 as it does at 0.2 by that rule. So what was seen holds there, and a power of the error in between.

    Args:
      errors: of the layer where the results were seen, ascending, positive.
      squares: of the results' errors there, positive.
    """

    errors: tuple[float, ...]
    squares: tuple[float, ...]

    def squared_error(self, error: float) -> float:
        """The squared error of the results for an error of the layer."""
        if error <= self.errors[0]:
            return self.squares[0] * (error / self.errors[0]) ** 2
        if error >= self.errors[-1]:
            return self.squares[-1] * (error / self.errors[-1]) ** 2
        return float(np.exp(np.interp(np.log(error), np.log(self.errors), np.log(self.squares))))


def allocate(options: Sequence[Sequence[Option]], harms: Sequence[Harm], macs: float) -> list[Option] | None:
    """The option of each layer, so that all take at most so many multiply-accumulates and lose the least.

    Every layer starts as it is (its first option). Of all layers, the one then gives way that loses the least for each
    multiply-accumulate saved, along the convex hull of its options, until the budget is met; what the last step saved
    too much goes where it gains the most. None if not even the cheapest options meet the budget.
    """
    hulls = [_hull(each, harm) for each, harm in zip(options, harms, strict=True)]
    places = [0] * len(hulls)
    total = sum(each[0].macs for each in options)
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
            (harm.squared_error(own.error) - harm.squared_error(other.error), layer, other)
            for layer, (own, each, harm) in enumerate(zip(chosen, options, harms, strict=True))
            for other in each
            if total - own.macs + other.macs <= macs and harm.squared_error(other.error) < harm.squared_error(own.error)
        ]
        if not gains:
            return chosen
        _, layer, other = max(gains, key=lambda gain: gain[:2])
        total += other.macs - chosen[layer].macs
        chosen[layer] = other


def _slope(before: Option, after: Option, harm: Harm) -> float:
    return (harm.squared_error(after.error) - harm.squared_error(before.error)) / (before.macs - after.macs)


def _hull(options: Sequence[Option], harm: Harm) -> list[Option]:
    """The options on the lower convex hull of loss over cost, from the first, the most expensive, to the cheapest."""
    hull = [options[0]]
    cheaper = sorted(options[1:], key=lambda option: (-option.macs, option.error))
    while True:
        left = [option for option in cheaper if option.macs < hull[-1].macs]
        if not left:
            return hull
        # The least slope; of equal ones the longest step.
        hull.append(min(left, key=lambda option: (_slope(hull[-1], option, harm), option.macs)))
