"""One budget for all layers: which option each takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxcnn.transform.layers import Option


def loss(error: float, weight: float) -> float:
    """What a layer's relative error counts: to first order the errors of all layers add up as squares do."""
    return weight * error**2


def allocate(options: Sequence[Sequence[Option]], weights: Sequence[float], macs: float) -> list[Option] | None:
    """The option of each layer, so that all take at most so many multiply-accumulates and lose the least.

    Every layer starts as it is (its first option). Of all layers, the one then gives way that loses the least for each
    multiply-accumulate saved, along the convex hull of its options, until the budget is met; what the last step saved
    too much goes where it gains the most. None if not even the cheapest options meet the budget.
    """
    hulls = [_hull(each, weight) for each, weight in zip(options, weights, strict=True)]
    places = [0] * len(hulls)
    total = sum(each[0].macs for each in options)
    while total > macs:
        slopes = [
            _slope(hull[place], hull[place + 1], weight) if place + 1 < len(hull) else math.inf
            for hull, place, weight in zip(hulls, places, weights, strict=True)
        ]
        layer = min(range(len(slopes)), key=slopes.__getitem__, default=None)
        if layer is None or math.isinf(slopes[layer]):
            return None
        total -= hulls[layer][places[layer]].macs - hulls[layer][places[layer] + 1].macs
        places[layer] += 1
    chosen = [hull[place] for hull, place in zip(hulls, places, strict=True)]
    while True:
        gains = [
            (loss(own.error, weight) - loss(other.error, weight), layer, other)
            for layer, (own, each, weight) in enumerate(zip(chosen, options, weights, strict=True))
            for other in each
            if total - own.macs + other.macs <= macs and loss(other.error, weight) < loss(own.error, weight)
        ]
        if not gains:
            return chosen
        _, layer, other = max(gains, key=lambda gain: gain[:2])
        total += other.macs - chosen[layer].macs
        chosen[layer] = other


def _slope(before: Option, after: Option, weight: float) -> float:
    return (loss(after.error, weight) - loss(before.error, weight)) / (before.macs - after.macs)


def _hull(options: Sequence[Option], weight: float) -> list[Option]:
    """The options on the lower convex hull of loss over cost, from the first, the most expensive, to the cheapest."""
    hull = [options[0]]
    cheaper = sorted(options[1:], key=lambda option: (-option.macs, option.error))
    while True:
        left = [option for option in cheaper if option.macs < hull[-1].macs]
        if not left:
            return hull
        # The least slope; of equal ones the longest step.
        hull.append(min(left, key=lambda option: (_slope(hull[-1], option, weight), option.macs)))
