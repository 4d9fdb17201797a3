"""A function whose kernels are replaced: its layers, and the cost and error of a choice of chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.norms import relative_error
from jaxcnn.timing import median_seconds
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from jaxcnn.transform.jaxpr.signature import flatten_call, is_parameter, short_name
from jaxcnn.transform.substitution.budget import Harm, allocate
from jaxcnn.transform.substitution.layer import Layer, Option

_CLOCK_SECONDS = 0.15
"""Duration of a measurement of one layer, dense and as a chain."""

_MILLISECONDS: dict[tuple[str, ...], tuple[float, float]] = {}
"""Milliseconds of a layer, dense and as a chain, by its convolution and the chain's shapes. Two calls of `substitute`
in one process share these and so decide alike."""

_ERROR_CAP = 1e6
"""Error that counts for results that are not finite."""

Chains = Mapping[int, KernelChain]
"""Chains by the index of the kernel among the arguments' arrays."""


class Problem:
    """A function, its arguments, and the layers for which there are chains.

    Args:
      f: user's function of params and args.
      params: parameters of f, arrays.
      args: other arguments of f; for those with only a shape and a dtype, random values are drawn.
      schemes: names of the schemes to choose from.
      skip: function from the name of a parameter to whether the parameter stays dense.
      seed: seed for the random arguments.
      dense: flag to count products with a matrix among the parameters as convolutions of one tap.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        params: Any,
        args: Sequence[Any],
        schemes: Sequence[str],
        skip: Callable[[str], bool],
        seed: int,
        dense: bool = False,
    ) -> None:
        self.f, self.params, self.dense = f, params, dense
        self.signature, self.arrays = flatten_call("substitute", (params, *args), {})
        generator = np.random.default_rng(seed)
        self.arrays = [_draw(array, generator) for array in self.arrays]
        self.flat = self.signature.flat(f)
        self.paths = self.signature.paths()
        self.closed = jax.make_jaxpr(self.flat)(*self.arrays)
        self.layers: dict[int, Layer] = {}
        kernels, self.convolutions = find_kernels(self.closed, dense)
        for index, uses in kernels.items():
            path = self.paths[index]
            if not is_parameter(path):
                continue
            parameter = self.arrays[index]
            refusal = uses.refusal
            if not jnp.issubdtype(parameter.dtype, jnp.floating):
                refusal = refusal or f"it is of {parameter.dtype}"
            elif not np.isfinite(np.asarray(parameter, np.float32)).all():
                refusal = refusal or "it has values that are NaN or infinite"
            name = short_name(path)
            if skip(name):
                refusal = "it is skipped"
            self.layers[index] = Layer(index, path, name, uses, parameter, schemes, refusal)
        self.harms: dict[int, Harm] = {}

    @property
    def open(self) -> dict[int, Layer]:
        """Layers without a reason to stay dense."""
        return {index: layer for index, layer in self.layers.items() if not layer.refusal}

    @cached_property
    def total_macs(self) -> int:
        """Multiply-accumulates of all convolutions as they are."""
        # Not by equation: two calls of one jitted function share an equation, and only one may have a layer's kernel.
        sites = [(site.equation, site.count) for layer in self.layers.values() for site in layer.sites]
        other_macs = _macs(self.convolutions) - _macs(sites)
        return other_macs + sum(layer.dense.macs for layer in self.layers.values())

    @cached_property
    def plain(self) -> Callable[..., Any]:
        """Function of the arrays as it is, jitted."""
        return jax.jit(self.flat)

    @cached_property
    def outputs(self) -> list[np.ndarray]:
        """Floating results as they are."""
        return floats(self.plain(*self.arrays))

    def check_outputs(self) -> None:
        """Refuses results by which no layer can be weighed."""
        if not any(np.isfinite(output).any() for output in self.outputs):
            cause = "all are NaN or infinite" if any(output.size for output in self.outputs) else "there are none"
            advice = "".join(f"; {layer.name}: {layer.refusal}" for layer in self.layers.values() if layer.refusal)
            raise ValueError(
                "substitute: layers are weighed by the floating results of f for the given arguments, and "
                f"{cause}{advice or '; return scores rather than classes, or give other arguments'}"
            )

    def values(self, instead: Mapping[int, Any]) -> list[Any]:
        """Returns the arrays of the arguments, some of them replaced.

        Args:
          instead: replacements by position.
        """
        return [instead.get(index, array) for index, array in enumerate(self.arrays)]

    def params_with(self, chains: Chains) -> Any:
        """Returns the parameters with chains in place of kernels."""
        (params, *_), _ = self.signature.unflatten(self.values(chains))
        return params

    def error(self, chains: Chains) -> float:
        """Returns the relative error of all results together, with the chains' dense kernels."""
        dense = {index: self.layers[index].array(chain) for index, chain in chains.items()}
        return relative_error(floats(self.plain(*self.values(dense))), self.outputs)

    def weigh(self, advance: Callable[[float], None]) -> None:
        """Measures the harm of each layer's relative error to the results, with one layer replaced at a time."""
        self.harms = {}
        for index, layer in self.open.items():
            # On calibration inputs the error of a fitted chain would be too small.
            valid = [(chain, error) for chain, error in layer.probes if 0 < error < np.inf]
            probes = sorted(((error, self.error({index: chain})) for chain, error in valid), key=lambda p: p[0])
            # A larger error does no less harm. A layer without effect on these results may affect others.
            squares = np.maximum.accumulate(
                [np.clip(of_results, 1e-3 * error, _ERROR_CAP) ** 2 for error, of_results in probes]
            )
            errors = tuple(error for error, _ in probes)
            self.harms[index] = Harm(errors, tuple(squares.tolist())) if probes else Harm((1.0,), (1.0,))
            advance(1)

    def choose(self, share: float, dense: Container[int]) -> dict[int, Option] | None:
        """Returns the best options within a share of all multiply-accumulates; the layers in `dense` stay dense.

        None if no choice is so cheap.
        """
        layers = {index: layer for index, layer in self.open.items() if index not in dense}
        fixed = self.total_macs - sum(layer.dense.macs for layer in layers.values())
        options = [layer.options for layer in layers.values()]
        # A share that is a quotient of two counts must allow the first one, although the rounded product of share and
        # total may fall below this count.
        allowed = math.floor(share * self.total_macs * (1 + 1e-12)) - fixed
        best = allocate(options, [self.harms[index] for index in layers], allowed)
        if best is None:
            return None
        chosen = zip(layers, best, strict=True)
        return {index: option for index, option in chosen if option.scheme != "dense"}

    def lost(self, chosen: Mapping[int, Option]) -> float:
        """Returns the squared relative error of the results that options make, to first order."""
        return sum(self.harms[index].squared_error(option.error) for index, option in chosen.items())

    def least_share(self, dense: Container[int]) -> float:
        """Returns the least possible share of multiply-accumulates if the layers in `dense` stay dense."""
        layers = [layer for index, layer in self.open.items() if index not in dense]
        saved = sum(layer.dense.macs - min(option.macs for option in layer.options) for layer in layers)
        return (self.total_macs - saved) / self.total_macs if saved else 1.0

    def chains(self, chosen: Mapping[int, Option]) -> dict[int, KernelChain]:
        """Returns the chains of options, fitted to the weights."""
        return {index: self.layers[index].chain(option) for index, option in chosen.items()}

    def macs(self, chains: Chains) -> int:
        """Returns the multiply-accumulates of all convolutions with chains."""
        return self.total_macs - sum(
            self.layers[index].dense.macs - self._macs(index, chain) for index, chain in chains.items()
        )

    def _macs(self, index: int, chain: KernelChain) -> int:
        layer = self.layers[index]
        return layer.macs(layer.shapes(chain))

    def milliseconds(self, index: int, chain: KernelChain) -> tuple[float, float]:
        """Returns the milliseconds of a layer, as it is and with a chain, measured once for each kind of layer."""
        layer = self.layers[index]
        before = after = 0.0
        sites = zip(layer.sites, layer.calls(None), layer.calls(chain), strict=True)
        for site, (plain, plain_args), (chained, chained_args) in sites:
            key = str(as_convolution(site.equation, "describe")), str(jax.tree.map(jnp.shape, chained_args[1]))
            if key not in _MILLISECONDS:
                calls = {"kernel": partial(plain, *plain_args), "chain": partial(chained, *chained_args)}
                times = median_seconds(calls, _CLOCK_SECONDS)
                _MILLISECONDS[key] = 1e3 * times["kernel"], 1e3 * times["chain"]
            dense, chain_only = _MILLISECONDS[key]
            before, after = before + site.count * dense, after + site.count * chain_only
        return before, after


def _macs(convolutions: Iterable[tuple[JaxprEqn, int]]) -> int:
    """Returns the multiply-accumulates of convolutions as they are, each executed a number of times."""
    specs = ((as_convolution(equation, "describe"), count) for equation, count in convolutions)
    return sum(count * conv.spec.macs for conv, count in specs if conv is not None)


def _draw(array: Any, generator: np.random.Generator) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        return jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.asarray(generator.standard_normal(array.shape), array.dtype)
    return jnp.zeros(array.shape, array.dtype)


def floats(outputs: Any) -> list[np.ndarray]:
    """Returns the floating arrays among some results, complex ones as two."""
    arrays = []
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            array = np.asarray(leaf)
            arrays += [array.real.astype(np.float64), array.imag.astype(np.float64)]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            arrays.append(np.asarray(leaf).astype(np.float64))
    return arrays
