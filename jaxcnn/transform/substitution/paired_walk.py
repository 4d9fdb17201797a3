"""Evaluation of the dense and the substituted function side by side, with stops at layers whose chains are fitted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jax.extend.core import primitives as lax_primitives

from jaxcnn.chain import KernelChain
from jaxcnn.transform.chains.axis_views import Ints
from jaxcnn.transform.chains.convolve import convolve_with_chain, direction, is_forward
from jaxcnn.transform.chains.find_kernels import KernelUses, Site
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.convolutions import forward_axes, forward_options
from jaxcnn.transform.jaxpr.dense_layers import one_tap_convolution_on
from jaxcnn.transform.jaxpr.equations import (
    CALLS,
    JaxprValues,
    avals,
    consts_of,
    inner_jaxpr,
    loop_parts,
    rebind,
    same_source,
    sub_jaxprs,
)
from jaxcnn.transform.substitution.nonlinearity import clip_limits

Pair = tuple[Any, Any]
"""Value of a variable in the dense function, and in the substituted one."""

Sites = Mapping[Ints, tuple[int, Site]]
"""Convolutions at which to stop, each with the position of its kernel among the arguments, by path."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """A layer at which a walk stops.

    Args:
      index: position of the argument that is the kernel.
      number: number of the kernel among those that the argument stacks.
      site: convolution.
      image: input of the convolution in the substituted function.
      response: result of the convolution in the dense function.
      low, high: responses, by output feature, below and above which the operations that follow are constant.
    """

    index: int
    number: int
    site: Site
    image: jax.Array
    response: jax.Array
    low: np.ndarray
    high: np.ndarray


Walk = Generator[Stop, KernelChain | None, list[Pair]]


def is_fitted(uses: KernelUses) -> bool:
    """Returns whether a kernel's chain can be fitted: the walk reaches all convolutions, and all use one kernel."""
    if uses.refusal or any(site.hidden for site in uses.sites):
        return False
    # Convolutions in opposite directions have no samples in common.
    return len({direction(site, uses.placement) for site in uses.sites}) == 1


def side_by_side(closed: Any, dense: Sequence[Any], substituted: Sequence[Any], sites: Sites) -> Walk:
    """Returns a walk through a closed jaxpr with the dense and the substituted arguments, loops step by step.

    The walk stops at each of `sites`. Send the walk the links with which to go on, or None to go on with the dense
    kernel. A substituted argument that stacks kernels must be `kernel_numbers`.
    """
    inputs = list(zip(dense, substituted, strict=True))
    return _walk(inner_jaxpr(closed), [(const, const) for const in closed.consts], inputs, sites, ())


def kernel_numbers(placement: Placement, parameter: Any) -> jax.Array:
    """Returns an array for a parameter that stacks kernels: all values of a kernel are the kernel's number."""
    stack = [placement.shape[axis] for axis in placement.stack]
    numbers = jnp.arange(math.prod(stack)).reshape(*stack, *(1,) * len(placement.kernel_shape))
    return placement.parameter(jnp.broadcast_to(numbers, (*stack, *placement.kernel_shape))).astype(parameter.dtype)


def _walk(jaxpr: Any, consts: Sequence[Pair], inputs: Sequence[Pair], sites: Sites, path: Ints) -> Walk:
    """Evaluates a jaxpr on pairs of a dense and a substituted value, and stops at the sites' convolutions."""
    values: JaxprValues[Pair] = JaxprValues(jaxpr, [*consts, *inputs], lambda literal: (literal.val, literal.val))
    last_read = {
        atom: position
        for position, equation in enumerate(jaxpr.eqns)
        for atom in equation.invars
        if not isinstance(atom, Literal)
    }
    results_of_jaxpr = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    for position, equation in enumerate(jaxpr.eqns):
        operands = values.read(equation.invars)
        place = (*path, id(equation))
        holds_site = any(site[: len(place)] == place for site in sites)
        if holds_site and place in sites:
            results = yield from _stop(jaxpr, position, operands, values.known, sites[place])
        elif holds_site and (layer := one_tap_convolution_on(equation, place, sites)) is not None:
            results = yield from _walk(inner_jaxpr(layer), _consts(layer), operands, sites, place)
        elif holds_site and equation.primitive in CALLS:
            (inner,) = sub_jaxprs(equation)
            results = yield from _walk(inner_jaxpr(inner), _consts(inner), operands, sites, place)
        elif holds_site and equation.primitive is lax_primitives.scan_p and equation.params["length"]:
            results = yield from _walk_scan(equation, operands, sites, place)
        else:
            with same_source(equation), equation.ctx.manager:
                plain = rebind(equation, [dense for dense, _ in operands])
                other = plain
                if any(dense is not substituted for dense, substituted in operands):
                    other = rebind(equation, [substituted for _, substituted in operands])
            results = list(zip(plain, other, strict=True))
        values.write(equation, results)
        # A value that no equation reads later is dropped, since images are large.
        for atom in equation.invars:
            if not isinstance(atom, Literal) and last_read[atom] == position and atom not in results_of_jaxpr:
                values.known.pop(atom, None)
    return values.outputs()


def _consts(jaxpr: Any) -> list[Pair]:
    return [(const, const) for const in consts_of(jaxpr)]


def _walk_scan(equation: JaxprEqn, operands: Sequence[Pair], sites: Sites, path: Ints) -> Walk:
    """Walks through a scan, step by step."""
    (inner,) = sub_jaxprs(equation)
    constants, carry, slices = loop_parts(equation, operands)
    turns = range(equation.params["length"])
    rows = []
    for turn in reversed(turns) if equation.params["reverse"] else turns:
        slice_pairs = [_slice_pair(pair, turn) for pair in slices]
        results = yield from _walk(inner_jaxpr(inner), _consts(inner), [*constants, *carry, *slice_pairs], sites, path)
        carry = results[: len(carry)]
        rows.append(results[len(carry) :])
    columns = zip(*(rows[::-1] if equation.params["reverse"] else rows), strict=True)
    return [*carry, *(_stack_pairs(list(column)) for column in columns)]


def _slice_pair(pair: Pair, turn: int) -> Pair:
    dense, substituted = pair
    dense_slice = dense[turn]
    return dense_slice, dense_slice if substituted is dense else substituted[turn]


def _stack_pairs(pairs: Sequence[Pair]) -> Pair:
    dense, substituted = (list(side) for side in zip(*pairs, strict=True))
    result = jnp.stack(dense)
    is_dense = all(a is b for a, b in pairs)
    return result, result if is_dense else jnp.stack(substituted)


def _stop(
    jaxpr: Any, position: int, operands: Sequence[Pair], values: Mapping[Any, Pair], site: tuple[int, Site]
) -> Walk:
    """Stops at a site's convolution, and computes its pair of results with the links that come back."""
    equation = jaxpr.eqns[position]
    (plain, image), (kernel, number) = operands
    (response,) = rebind(equation, [plain, kernel])
    axis = forward_axes(equation)[2][-1]
    dense_values = {atom: dense for atom, (dense, _) in values.items()}
    low, high = clip_limits(jaxpr, position, dense_values, axis)
    kernel_number = 0 if number is kernel else int(number.reshape(-1)[0])
    links = yield Stop(site[0], kernel_number, site[1], image, response, low, high)
    return [(response, response if links is None else convolve_with_chain(equation, image, links))]


def samples(stop: Stop, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches of the image, (count, *window, C_in), and responses to them, (count, C_out), at random places.

    A convolution that is the transpose of another one sees its image with zeros between the pixels.
    """
    equation = stop.site.equation
    image_order, _, result_order = forward_axes(equation)
    image = np.asarray(stop.image.astype(np.float32)).transpose(image_order)
    response = np.asarray(stop.response.astype(np.float32)).transpose(result_order)
    places = response.shape[:-1]
    total = math.prod(places)
    chosen = np.arange(total) if total <= count else np.sort(generator.choice(total, count, replace=False))
    batch, *outputs = np.unravel_index(chosen, places)
    rank = len(outputs)
    index: list[np.ndarray] = [batch.reshape(-1, *(1,) * rank)]
    inside = np.ones((len(chosen), *(1,) * rank), bool)
    for axis in range(rank):
        pixels, exists = _pixels(equation, axis, outputs[axis], image.shape[axis + 1])
        shape = (len(chosen), *(1,) * axis, -1, *(1,) * (rank - axis - 1))
        index.append(pixels.reshape(shape))
        inside = inside & exists.reshape(shape)
    return image[tuple(index)] * inside[..., None], response.reshape(total, -1)[chosen]


def _pixels(equation: JaxprEqn, axis: int, outputs: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels of an axis under each tap for some outputs, (count, taps), and a mask of those that exist."""
    options = forward_options(equation)
    steps, gaps = (options[name][axis] for name in ("strides", "input_dilation"))
    low, _ = options["padding"][axis]
    window = avals(equation)[1].shape[forward_axes(equation)[1][axis]]
    taps = np.arange(window) * options["kernel_dilation"][axis]
    if is_forward(equation):
        place = outputs[:, None] * steps - low + taps
    else:
        # y[o] k[t] is added to input pixel p with o s + t d = p e + low.
        place, gaps = outputs[:, None] * gaps + low - taps, steps
    pixels, between = np.divmod(place, gaps)
    exists = (between == 0) & (pixels >= 0) & (pixels < size)
    return np.where(exists, pixels, 0), exists


def run_in_step(walks: Sequence[Walk], visit: Callable[[list[Stop]], KernelChain | None]) -> None:
    """Runs the walks of several batches of inputs in step; at each layer `visit` gives the links for all of them."""
    stops = [next(walk, None) for walk in walks]
    while any(stop is not None for stop in stops):
        current = [stop for stop in stops if stop is not None]
        if len(current) < len(stops) or len({(stop.index, stop.number) for stop in current}) > 1:
            raise ValueError("substitute: calibration inputs must run through the same convolutions in the same order")
        links = visit(current)
        stops = [_send(walk, links) for walk in walks]


def _send(walk: Walk, links: KernelChain | None) -> Stop | None:
    try:
        return walk.send(links)
    except StopIteration:
        return None
