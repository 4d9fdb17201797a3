"""Allocation of budgets of multiply-accumulates and of bytes over all layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxcnn.transform.substitution.layer import Option

_SHARES_OF_MACS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Weights of the relative multiply-accumulates, beside the relative bytes, that are tried under a budget of both."""


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


def allocate(
    options: Sequence[Sequence[Option]], harms: Sequence[Harm], macs: float, parameter_bytes: float = math.inf
) -> list[Option] | None:
    """Returns one option for each layer that together meet the budgets with the least loss.

    Every layer starts with its first option, the dense kernel. The layer that loses the least for each saved
    multiply-accumulate then takes its next option on the convex hull, until the budget is met. Multiply-accumulates
    that the last step saved beyond the budget go to the layers that gain the most. With a budget of bytes too, what is
    saved is a weighted sum of both costs, and of several weights the best ones count. None if not even the cheapest
    options meet the budgets.

    Args:
      options: options of each layer.
      harms: harm of each layer's error.
      macs: multiply-accumulates allowed.
      parameter_bytes: bytes allowed of the layers' kernels and chains.
    """
    limits = macs, parameter_bytes
    if math.isinf(parameter_bytes):
        return _allocate(options, harms, limits, (1.0, 0.0))
    totals = [max(1, sum(costs)) for costs in zip((0, 0), *(_costs(of_layer[0]) for of_layer in options), strict=True)]
    choices = [
        _allocate(options, harms, limits, (share / totals[0], (1 - share) / totals[1])) for share in _SHARES_OF_MACS
    ]
    return min((choice for choice in choices if choice is not None), key=lambda c: _loss(c, harms), default=None)


def _allocate(
    options: Sequence[Sequence[Option]],
    harms: Sequence[Harm],
    limits: tuple[float, float],
    weights: tuple[float, float],
) -> list[Option] | None:
    """Returns the options within limits of both costs, with the hulls over a weighted sum of the costs."""
    hulls = [_hull(of_layer, harm, weights) for of_layer, harm in zip(options, harms, strict=True)]
    places = [0] * len(hulls)

    def meets(costs: Sequence[float]) -> bool:
        return all(cost <= limit for cost, limit in zip(costs, limits, strict=True))

    totals = [sum(costs) for costs in zip((0, 0), *(_costs(of_layer[0]) for of_layer in options), strict=True)]
    while not meets(totals):
        slopes = [
            _slope(hull[place], hull[place + 1], harm, weights) if place + 1 < len(hull) else math.inf
            for hull, place, harm in zip(hulls, places, harms, strict=True)
        ]
        layer = min(range(len(slopes)), key=slopes.__getitem__, default=None)
        if layer is None or math.isinf(slopes[layer]):
            return None
        before, after = hulls[layer][places[layer] : places[layer] + 2]
        totals = _exchanged(totals, before, after)
        places[layer] += 1
    chosen = [hull[place] for hull, place in zip(hulls, places, strict=True)]
    while True:
        gains = [
            (harm.squared_error(current.error) - harm.squared_error(candidate.error), layer, candidate)
            for layer, (current, of_layer, harm) in enumerate(zip(chosen, options, harms, strict=True))
            for candidate in of_layer
            if meets(_exchanged(totals, current, candidate))
            and harm.squared_error(candidate.error) < harm.squared_error(current.error)
        ]
        if not gains:
            return chosen
        _, layer, candidate = max(gains, key=lambda gain: gain[:2])
        totals = _exchanged(totals, chosen[layer], candidate)
        chosen[layer] = candidate


def _costs(option: Option) -> tuple[int, int]:
    return option.macs, option.parameter_bytes


def _exchanged(totals: Sequence[int], before: Option, after: Option) -> list[int]:
    """Returns the costs of a choice with one option in place of another."""
    return [total - b + a for total, b, a in zip(totals, _costs(before), _costs(after), strict=True)]


def _weighted(option: Option, weights: tuple[float, float]) -> float:
    return weights[0] * option.macs + weights[1] * option.parameter_bytes


def _loss(chosen: Sequence[Option], harms: Sequence[Harm]) -> float:
    return sum(harm.squared_error(option.error) for option, harm in zip(chosen, harms, strict=True))


def _slope(before: Option, after: Option, harm: Harm, weights: tuple[float, float]) -> float:
    saved = _weighted(before, weights) - _weighted(after, weights)
    return (harm.squared_error(after.error) - harm.squared_error(before.error)) / saved


def _hull(options: Sequence[Option], harm: Harm, weights: tuple[float, float]) -> list[Option]:
    """Returns the options on the lower convex hull of loss over cost, from the most expensive to the cheapest."""
    hull = [options[0]]
    cheaper = sorted(options[1:], key=lambda option: (-_weighted(option, weights), option.error))
    while True:
        candidates = [o for o in cheaper if _weighted(o, weights) < _weighted(hull[-1], weights)]
        if not candidates:
            return hull
        # The least slope wins, and the longest step among equal slopes.
        hull.append(min(candidates, key=lambda o: (_slope(hull[-1], o, harm, weights), _weighted(o, weights))))
