"""A function whose kernels are to be replaced: its layers, and what a choice of chains costs and does to results."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.find_kernels import kernels_of
from jaxcnn.transform.jaxpr.convolutions import described
from jaxcnn.transform.jaxpr.signature import short_name, split
from jaxcnn.transform.substitution.budget import Harm, allocate
from jaxcnn.transform.substitution.layer import Layer, Option
from jaxcnn.transform.summary.describe import macs_of

_CLOCK_SECONDS = 0.15
"""Time for a layer's blocks of calls, dense and as a chain."""

_MEASURED: dict[tuple[str, ...], tuple[float, float]] = {}
"""Milliseconds of a layer as it is and as a chain, by its convolution and the chain's shapes: two calls of `substitute`
in one process must decide alike."""

_RUINED = 1e6
"""What counts for results that are infinitely far off."""

Chains = Mapping[int, KernelChain]
"""By the index of the kernel among the arguments' arrays."""


class Problem:
    """A function, its arguments, and the layers for which there are chains.

    Args:
      f: the user's function of params and args.
      params: its parameters, arrays.
      args: its other arguments; what has only a shape and a dtype is drawn at random.
      schemes: to choose from.
      skip: tells by the name of a parameter that it is to stay dense.
      seed: of the random arguments.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        params: Any,
        args: Sequence[Any],
        schemes: Sequence[str],
        skip: Callable[[str], bool],
        seed: int,
    ) -> None:
        self.f, self.params = f, params
        self.signature, self.arrays = split("substitute", (params, *args), {})
        generator = np.random.default_rng(seed)
        self.arrays = [_drawn(array, generator) for array in self.arrays]
        self.flat = self.signature.flat(f)
        self.paths = self.signature.paths()
        self.closed = jax.make_jaxpr(self.flat)(*self.arrays)
        self.layers: dict[int, Layer] = {}
        found, self.convolutions = kernels_of(self.closed)
        for index, each in found.items():
            path = self.paths[index]
            if not re.match(r"argument 0(\W|$)", path):
                continue
            parameter = self.arrays[index]
            refusal = each.refusal
            if not jnp.issubdtype(parameter.dtype, jnp.floating):
                refusal = refusal or f"it is of {parameter.dtype}"
            elif not np.isfinite(np.asarray(parameter, np.float32)).all():
                refusal = refusal or "it has values that are NaN or infinite"
            name = short_name(path)
            if skip(name):
                refusal = "it is skipped"
            self.layers[index] = Layer(index, path, name, each, parameter, schemes, refusal)
        self.harms: dict[int, Harm] = {}

    @property
    def open(self) -> dict[int, Layer]:
        """The layers that nothing keeps dense."""
        return {index: layer for index, layer in self.layers.items() if not layer.refusal}

    @cached_property
    def total_macs(self) -> int:
        """Multiply-accumulates of all convolutions as they are."""
        # Not by equation: two calls of one jitted function share it, and the kernel of one may be no layer's.
        sites = [(site.equation, site.count) for layer in self.layers.values() for site in layer.sites]
        others = _macs(self.convolutions) - _macs(sites)
        return others + sum(layer.dense.macs for layer in self.layers.values())

    @cached_property
    def plain(self) -> Callable[..., Any]:
        """The function of its arrays as it is, jitted."""
        return jax.jit(self.flat)

    @cached_property
    def outputs(self) -> list[np.ndarray]:
        """The floating results as they are."""
        return floats(self.plain(*self.arrays))

    def check_outputs(self) -> None:
        """Refuses results of which nothing can be said."""
        if not any(np.isfinite(output).any() for output in self.outputs):
            what = "all are NaN or infinite" if any(output.size for output in self.outputs) else "there are none"
            advice = "".join(f"; {layer.name}: {layer.refusal}" for layer in self.layers.values() if layer.refusal)
            raise ValueError(
                "substitute: layers are weighed by the floating results of f for the given arguments, and "
                f"{what}{advice or '; return scores rather than classes, or give other arguments'}"
            )

    def values(self, instead: Mapping[int, Any]) -> list[Any]:
        """The arrays of the arguments, with some others instead."""
        return [instead.get(index, array) for index, array in enumerate(self.arrays)]

    def params_with(self, chains: Chains) -> Any:
        """The parameters with chains in place of kernels."""
        (params, *_), _ = self.signature.unflatten(self.values(chains))
        return params

    def error(self, chains: Chains) -> float:
        """The relative error of all results together, with the chains' dense kernels."""
        dense = {index: self.layers[index].array(chain) for index, chain in chains.items()}
        return relative(floats(self.plain(*self.values(dense))), self.outputs)

    def weigh(self, advance: Callable[[float], None]) -> None:
        """Finds how much a layer's relative error does to the results, by replacing one layer at a time."""
        self.harms = {}
        for index, layer in self.open.items():
            # Not on calibration inputs, whose own errors a fitted chain hides: an edge detector at a sixth of its
            # multiply-accumulates then errs by 0.082 on photographs that had no part, and by 0.057 so.
            made = [(chain, error) for chain, error in layer.probes if 0 < error < np.inf]
            probes = sorted(((error, self.error({index: chain})) for chain, error in made), key=lambda p: p[0])
            # More of an error is no less harm. A layer that does nothing to these results still may to others.
            squares = np.maximum.accumulate([np.clip(seen, 1e-3 * error, _RUINED) ** 2 for error, seen in probes])
            errors = tuple(error for error, _ in probes)
            self.harms[index] = Harm(errors, tuple(squares.tolist())) if probes else Harm((1.0,), (1.0,))
            advance(1)

    def choose(self, share: float, dense: Container[int]) -> dict[int, Option] | None:
        """The option of each layer within a share of all multiply-accumulates, of the layers in `dense` none.

        None if there is no choice so cheap.
        """
        layers = {index: layer for index, layer in self.open.items() if index not in dense}
        fixed = self.total_macs - sum(layer.dense.macs for layer in layers.values())
        options = [layer.options for layer in layers.values()]
        # A share that is itself a quotient of these numbers must allow them, although the product of floats falls short
        # of them for one network in twenty.
        allowed = math.floor(share * self.total_macs * (1 + 1e-12)) - fixed
        found = allocate(options, [self.harms[index] for index in layers], allowed)
        if found is None:
            return None
        chosen = zip(layers, found, strict=True)
        return {index: option for index, option in chosen if option.scheme != "dense"}

    def lost(self, chosen: Mapping[int, Option]) -> float:
        """What options lose, to first order the square of the results' relative error."""
        return sum(self.harms[index].of(option.error) for index, option in chosen.items())

    def least_share(self, dense: Container[int]) -> float:
        """The share of multiply-accumulates below which there is no choice, with the layers in `dense` as they are."""
        layers = [layer for index, layer in self.open.items() if index not in dense]
        saved = sum(layer.dense.macs - min(option.macs for option in layer.options) for layer in layers)
        return (self.total_macs - saved) / self.total_macs if saved else 1.0

    def chains(self, chosen: Mapping[int, Option]) -> dict[int, KernelChain]:
        """The chains of options, fitted to the weights."""
        return {index: self.layers[index].chain(option) for index, option in chosen.items()}

    def macs(self, chains: Chains) -> int:
        """Multiply-accumulates of all convolutions with chains."""
        return self.total_macs - sum(
            self.layers[index].dense.macs - self._macs(index, chain) for index, chain in chains.items()
        )

    def _macs(self, index: int, chain: KernelChain) -> int:
        layer = self.layers[index]
        return layer.macs(layer.shapes(chain))

    def milliseconds(self, index: int, chain: KernelChain) -> tuple[float, float]:
        """Milliseconds of a layer alone as it is and with a chain, measured once for each kind of layer."""
        layer = self.layers[index]
        before = after = 0.0
        sites = zip(layer.sites, layer.calls(None), layer.calls(chain), strict=True)
        for site, (plain, plain_args), (chained, chained_args) in sites:
            key = str(described(site.equation)), str(jax.tree.map(jnp.shape, chained_args[1]))
            if key not in _MEASURED:
                calls = {"kernel": partial(plain, *plain_args), "chain": partial(chained, *chained_args)}
                times = median_seconds(calls, _CLOCK_SECONDS)
                _MEASURED[key] = 1e3 * times["kernel"], 1e3 * times["chain"]
            before += site.count * _MEASURED[key][0]
            after += site.count * _MEASURED[key][1]
        return before, after


def _macs(convolutions: Iterable[tuple[JaxprEqn, int]]) -> int:
    """Multiply-accumulates of convolutions as they are, each executed so often."""
    specs = ((described(equation), count) for equation, count in convolutions)
    return sum(count * macs_of(found.spec)[0] for found, count in specs if found is not None)


def _drawn(array: Any, generator: np.random.Generator) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        return jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.asarray(generator.standard_normal(array.shape), array.dtype)
    return jnp.zeros(array.shape, array.dtype)


def floats(outputs: Any) -> list[np.ndarray]:
    """The floating arrays among some results, complex ones as two."""
    found = []
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            array = np.asarray(leaf)
            found += [array.real.astype(np.float64), array.imag.astype(np.float64)]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            found.append(np.asarray(leaf).astype(np.float64))
    return found


def relative(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """norm(actual - expected) / norm(expected) of all arrays together, where these are finite; 0 if there are none."""
    finite = [np.isfinite(array) for array in expected]
    pairs = [(a[where], b[where]) for a, b, where in zip(actual, expected, finite, strict=True)]
    difference = np.sqrt(sum(float(np.square(a - b).sum()) for a, b in pairs))
    norm = np.sqrt(sum(float(np.square(b).sum()) for _, b in pairs))
    if not np.isfinite(difference):
        return np.inf
    return float(difference / norm) if norm else (0.0 if difference == 0 else np.inf)
