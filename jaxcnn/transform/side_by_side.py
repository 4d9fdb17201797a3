"""The dense and the substituted function side by side, stopped at each layer whose chain is to be fitted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxcnn.chain import KernelChain
from jaxcnn.transform.convolutions import avals
from jaxcnn.transform.discovery import INLINED, Site
from jaxcnn.transform.following import constant_beyond
from jaxcnn.transform.interpreter import bind_as_it_was, held_jaxprs, in_place_of, opened
from jaxcnn.transform.linked import conv_options, convolved, image_axes, is_forward

Pair = tuple[Any, Any]
"""A value of the dense function, and of the substituted one."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """A layer on the way.

    Args:
      index: the argument that is its kernel.
      equation: the convolution.
      image: its input in the substituted function.
      response: its result in the dense function.
      low, high: by output feature, the response below and above which what follows is constant.
    """

    index: int
    equation: JaxprEqn
    image: jax.Array
    response: jax.Array
    low: np.ndarray
    high: np.ndarray


Walk = Generator[Stop, KernelChain | None, list[Pair]]


def is_fitted(sites: Sequence[Site]) -> bool:
    """Whether a kernel's chain can be fitted to responses: of one convolution forward, executed once."""
    if len(sites) != 1:
        return False
    (site,) = sites
    plain = not (site.looped or site.scaled or site.use.flipped or site.use.placement.stack)
    return plain and is_forward(site.equation) and max(conv_options(site.equation)["input_dilation"]) == 1


def side_by_side(closed: Any, dense: Sequence[Any], substituted: Sequence[Any], sites: Mapping[int, int]) -> Walk:
    """A walk through a closed jaxpr for the dense and the substituted arguments.

    It stops at each equation of `sites`, by id, which gives the argument that is its kernel; it is to be sent the links
    to go on with, or None to go on as it was.
    """
    inputs = list(zip(dense, substituted, strict=True))
    return _walk(opened(closed), [(const, const) for const in closed.consts], inputs, sites)


def _holds(equation: JaxprEqn, sites: Mapping[int, int]) -> bool:
    return any(
        id(inner) in sites or _holds(inner, sites) for jaxpr in held_jaxprs(equation) for inner in opened(jaxpr).eqns
    )


def _walk(jaxpr: Any, consts: Sequence[Pair], inputs: Sequence[Pair], sites: Mapping[int, int]) -> Walk:
    values: dict[Any, Pair] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))
    last_read = {
        atom: position
        for position, equation in enumerate(jaxpr.eqns)
        for atom in equation.invars
        if not isinstance(atom, Literal)
    }
    kept = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}

    def read(atom: Any) -> Pair:
        return (atom.val, atom.val) if isinstance(atom, Literal) else values[atom]

    for position, equation in enumerate(jaxpr.eqns):
        operands = [read(atom) for atom in equation.invars]
        if id(equation) in sites:
            results = yield from _stop(jaxpr, position, operands, values, sites)
        elif equation.primitive in INLINED and _holds(equation, sites):
            (inner,) = held_jaxprs(equation)
            inner_consts = [(const, const) for const in getattr(inner, "consts", ())]
            results = yield from _walk(opened(inner), inner_consts, operands, sites)
        else:
            with in_place_of(equation), equation.ctx.manager:
                plain = bind_as_it_was(equation, [dense for dense, _ in operands])
                other = plain
                if any(dense is not substituted for dense, substituted in operands):
                    other = bind_as_it_was(equation, [substituted for _, substituted in operands])
            results = list(zip(plain, other, strict=True))
        values.update(zip(equation.outvars, results, strict=True))
        # Images are large, and there are as many as equations.
        for atom in equation.invars:
            if not isinstance(atom, Literal) and last_read[atom] == position and atom not in kept:
                values.pop(atom, None)
    return [read(atom) for atom in jaxpr.outvars]


def _stop(
    jaxpr: Any, position: int, operands: Sequence[Pair], values: Mapping[Any, Pair], sites: Mapping[int, int]
) -> Walk:
    equation = jaxpr.eqns[position]
    (plain, image), (kernel, _) = operands
    (response,) = bind_as_it_was(equation, [plain, kernel])
    axis = image_axes(equation)[1][-1]
    known = {atom: dense for atom, (dense, _) in values.items()}
    low, high = constant_beyond(jaxpr, position, known, axis)
    links = yield Stop(sites[id(equation)], equation, image, response, low, high)
    return [(response, response if links is None else convolved(equation, image, links))]


def samples(stop: Stop, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Patches of the image, (count, *window, C_in), and the responses to them, (count, C_out), at random places."""
    equation = stop.equation
    image_order, result_order = image_axes(equation)
    image = np.asarray(stop.image.astype(np.float32)).transpose(image_order)
    response = np.asarray(stop.response.astype(np.float32)).transpose(result_order)
    options = conv_options(equation)
    rank = image.ndim - 2
    padding = [(0, 0), *options["padding"], (0, 0)]
    image = np.pad(image, [(max(low, 0), max(high, 0)) for low, high in padding])
    image = image[
        tuple(slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(padding, image.shape, strict=True))
    ]
    places = response.shape[:-1]
    total = math.prod(places)
    chosen = np.arange(total) if total <= count else np.sort(generator.choice(total, count, replace=False))
    batch, *outputs = np.unravel_index(chosen, places)
    window = [avals(equation)[1].shape[axis] for axis in _taps(equation)]
    index: list[np.ndarray] = [batch.reshape(-1, *(1,) * rank)]
    for axis in range(rank):
        taps = np.arange(window[axis]) * options["kernel_dilation"][axis]
        at = outputs[axis][:, None] * options["strides"][axis] + taps  # (count, taps)
        index.append(at.reshape(len(at), *(1,) * axis, -1, *(1,) * (rank - axis - 1)))
    return image[tuple(index)], response.reshape(total, -1)[chosen]


def _taps(equation: JaxprEqn) -> Sequence[int]:
    numbers = equation.params.get("dimension_numbers")
    return range(avals(equation)[1].ndim - 2) if numbers is None else numbers.rhs_spec[2:]


def together(walks: Sequence[Walk], visit: Callable[[list[Stop]], KernelChain | None]) -> None:
    """Runs the walks of several batches of inputs in step; at each layer `visit` gives the links for all of them."""
    stops = [next(walk, None) for walk in walks]
    while any(stop is not None for stop in stops):
        here = [stop for stop in stops if stop is not None]
        if len(here) < len(stops) or len({stop.index for stop in here}) > 1:
            raise ValueError("substitute: calibration inputs must run through the same convolutions in the same order")
        links = visit(here)
        stops = [_sent(walk, links) for walk in walks]


def _sent(walk: Walk, links: KernelChain | None) -> Stop | None:
    try:
        return walk.send(links)
    except StopIteration:
        return None
