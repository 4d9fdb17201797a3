"""Times of layers as kernels and as chains: by the cost model, and by this device's clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.chain import KernelChain
from jaxcnn.lowering import choice
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.convolve import convolve_with_chain
from jaxcnn.transform.jaxpr.convolutions import Convolution, as_convolution
from jaxcnn.transform.jaxpr.equations import all_equations, avals
from jaxcnn.transform.substitution.layer import Layer

_CLOCK_SECONDS = 0.15
"""Duration of a measurement of one layer, dense and as a chain."""

_CLEARLY_FASTER = 0.8
"""Share of its kernel's time below which a chain is measured once."""

Milliseconds = tuple[float, float]
"""Milliseconds of a layer, dense and as a chain."""

_Key = tuple[str, str]

_MEASURED: dict[_Key, Milliseconds] = {}
"""Milliseconds by a convolution and the chain's shapes. Two calls of `substitute` in one process share these and so
decide alike."""

_ESTIMATED: dict[_Key, Milliseconds | None] = {}
"""Estimates by a convolution and the chain's shapes."""


def estimated_milliseconds(layer: Layer, chain: KernelChain) -> Milliseconds | None:
    """Returns the milliseconds of a layer by the cost model, dense and as a chain of these shapes, not stacked.

    None where the model says nothing: on another platform than a CPU, and of convolutions that it does not know.
    """
    if jax.default_backend() != "cpu":
        return None
    before = after = 0.0
    for site in layer.sites:
        links = layer.links(site, chain)
        key = str(as_convolution(site.equation, "describe")), str(jax.tree.map(jnp.shape, links))
        if key not in _ESTIMATED:
            _ESTIMATED[key] = _estimate(site.equation, links)
        estimate = _ESTIMATED[key]
        if estimate is None:
            return None
        before, after = before + site.count * estimate[0], after + site.count * estimate[1]
    return before, after


def _estimate(equation: Any, links: KernelChain) -> Milliseconds | None:
    dense = as_convolution(equation, "compute")
    image = avals(equation)[0]
    closed = jax.make_jaxpr(lambda x, chain: convolve_with_chain(equation, x, chain))(
        jax.ShapeDtypeStruct(image.shape, image.dtype), links
    )
    convolutions = [as_convolution(inner, "compute") for inner in all_equations(closed)]
    times = [_seconds(conv) for conv in convolutions if conv is not None]
    if dense is None or not times:
        return None
    # XLA computes lax's convolutions, also beside a chain.
    is_of_lax = equation.primitive is conv_general_dilated_p
    before = choice.seconds(dense.spec, "direct") if is_of_lax else _seconds(dense)
    return 1e3 * before, 1e3 * sum(times)


def _seconds(conv: Convolution) -> float:
    return choice.seconds(conv.spec, choice.choose(conv.spec, conv.method, "cpu").method)


def clock_key(layer: Layer, chain: KernelChain) -> str:
    """Returns a text that is equal for layers whose measured times are the same measurement."""
    sites = (str(as_convolution(site.equation, "describe")) for site in layer.sites)
    return str([*sites, str(jax.tree.map(jnp.shape, chain))])


def measured_milliseconds(layer: Layer, chain: KernelChain) -> Milliseconds:
    """Returns the milliseconds of a layer by the clock, dense and as a chain, measured once for each kind of layer."""
    before = after = 0.0
    sites = zip(layer.sites, layer.calls(None), layer.calls(chain), strict=True)
    for site, (plain, plain_args), (chained, chained_args) in sites:
        key = str(as_convolution(site.equation, "describe")), str(jax.tree.map(jnp.shape, chained_args[1]))
        if key not in _MEASURED:
            calls = {"kernel": partial(plain, *plain_args), "chain": partial(chained, *chained_args)}
            _MEASURED[key] = _measure(calls)
        dense, chain_only = _MEASURED[key]
        before, after = before + site.count * dense, after + site.count * chain_only
    return before, after


def _measure(calls: Mapping[str, Callable[[], Any]]) -> Milliseconds:
    """Returns the milliseconds of a kernel and of its chain, measured twice if the chain is not clearly faster.

    Chains are measured because they ought to be faster; where one is not, another program may have had the processors.
    """
    measurements = []
    for _ in range(2):
        times = median_seconds(calls, _CLOCK_SECONDS)
        measurements.append((1e3 * times["kernel"], 1e3 * times["chain"]))
        if times["chain"] < _CLEARLY_FASTER * times["kernel"]:
            break
    return min(measurements, key=lambda milliseconds: milliseconds[1] / milliseconds[0])
