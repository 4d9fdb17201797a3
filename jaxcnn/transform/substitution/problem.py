"""A function whose kernels are replaced: its layers, and the cost and error of a choice of chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.norms import relative_error
from jaxcnn.transform.acceleration.accelerate import accelerated
from jaxcnn.transform.chains.find_kernels import find_kernels
from jaxcnn.transform.jaxpr.convolutions import as_convolution
from jaxcnn.transform.jaxpr.signature import flatten_call, is_parameter, short_name
from jaxcnn.transform.progress import Advance
from jaxcnn.transform.substitution.budget import Harm, allocate
from jaxcnn.transform.substitution.clock import (
    Milliseconds,
    clock_key,
    estimated_milliseconds,
    measured_milliseconds,
)
from jaxcnn.transform.substitution.layer import Layer, Option, spread_places
from jaxcnn.transform.substitution.placing import on_device

_MAX_RANKS_ESTIMATED = 7
"""Largest number of ranks of a scheme whose times are estimated; those between are interpolated."""

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
      schemes: function from the name of a parameter to the names of the schemes to choose from.
      skip: function from the name of a parameter to whether the parameter stays dense.
      seed: seed for the random arguments.
      dense: flag to count products with a matrix among the parameters as convolutions of one tap.
      ranks: function from the name of a parameter to the rank that its chain must have, or None.
      parameter_bytes: bytes of the user's parameters; None for those of `params`, which may also hold kernels that f
        computes from parameters.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        params: Any,
        args: Sequence[Any],
        schemes: Callable[[str], Sequence[str]],
        skip: Callable[[str], bool],
        seed: int,
        dense: bool = False,
        ranks: Callable[[str], Any] = lambda name: None,
        parameter_bytes: int | None = None,
    ) -> None:
        self.total_bytes = bytes_of(params) if parameter_bytes is None else parameter_bytes
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
            self.layers[index] = Layer(index, path, name, uses, parameter, schemes(name), refusal, ranks(name))
        self.harms: dict[int, Harm] = {}
        self._time_ratios: dict[tuple[int, str], tuple[list[int], list[float]]] = {}

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

    @cached_property
    def fast(self) -> Callable[..., Any]:
        """Function as the user gave it, accelerated, for results that are not timed."""
        return accelerated("substitute", self.f)

    def fast_outputs(self, params: Any, args: Sequence[Any]) -> list[np.ndarray]:
        """Returns the floating results of `fast`."""
        return floats(self.fast(params, *args))

    @cached_property
    def _dense_fast_outputs(self) -> list[np.ndarray]:
        return self.fast_outputs(self.params_with({}), self.args)

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

    @cached_property
    def args(self) -> list[Any]:
        """Arguments of f after the parameters."""
        (_, *args), _ = self.signature.unflatten(self.arrays)
        return args

    def params_with(self, instead: Mapping[int, Any]) -> Any:
        """Returns the parameters, some kernels of which are replaced by chains or other arrays, by position."""
        (params, *_), _ = self.signature.unflatten(self.values(instead))
        return params

    def error(self, chains: Chains) -> float:
        """Returns the relative error of all results together, with the chains' dense kernels."""
        dense = {index: self.layers[index].array(chain) for index, chain in chains.items()}
        return relative_error(self.fast_outputs(self.params_with(dense), self.args), self._dense_fast_outputs)

    def weigh(self, advance: Advance) -> None:
        """Measures the harm of each layer's relative error to the results, with one layer replaced at a time."""
        self.harms = {}
        for index, layer in self.open.items():
            advance(0, f"Weighing {layer.name}")
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

    def choose(
        self,
        share: float,
        dense: Container[int],
        max_time_ratio: float = math.inf,
        parameter_bytes: float = math.inf,
    ) -> dict[int, Option] | None:
        """Returns the best options within a share of all multiply-accumulates; None if no choice is so cheap.

        Args:
          share: share of the multiply-accumulates.
          dense: layers that stay dense.
          max_time_ratio: largest ratio of a chain's estimated time to its kernel's. It does not apply to layers of a
            rank that the user set.
          parameter_bytes: bytes allowed of all parameters.
        """
        layers = {index: layer for index, layer in self.open.items() if index not in dense}
        fixed = self.total_macs - sum(layer.dense.macs for layer in layers.values())
        options = [self._options(index, max_time_ratio) for index in layers]
        # A share that is a quotient of two counts must allow the first one, although the rounded product of share and
        # total may fall below this count.
        allowed = share * self.total_macs * (1 + 1e-12) - fixed
        allowed_bytes = (
            parameter_bytes - self.total_bytes + sum(layer.dense.parameter_bytes for layer in layers.values())
        )
        best = allocate(options, [self.harms[index] for index in layers], allowed, allowed_bytes)
        if best is None:
            return None
        chosen = zip(layers, best, strict=True)
        return {index: option for index, option in chosen if option.scheme != "dense"}

    def _options(self, index: int, max_time_ratio: float) -> list[Option]:
        dense, *options = self.layers[index].options
        if self.layers[index].rank is not None and options:
            return options
        if max_time_ratio < math.inf:
            options = [option for option in options if self.time_ratio(index, option) <= max_time_ratio]
        return [dense, *options]

    def lost(self, chosen: Mapping[int, Option]) -> float:
        """Returns the squared relative error of the results that options make, to first order."""
        return sum(self.harms[index].squared_error(option.error) for index, option in chosen.items())

    def least_share(self, dense: Container[int], max_time_ratio: float = math.inf) -> float:
        """Returns the least share of multiply-accumulates that `choose` can meet, with the same arguments."""
        options = {index: self._options(index, max_time_ratio) for index in self.open if index not in dense}
        saved = sum(
            self.layers[index].dense.macs - min(option.macs for option in of_layer)
            for index, of_layer in options.items()
        )
        return (self.total_macs - saved) / self.total_macs if saved else 1.0

    def least_bytes(self, dense: Container[int], max_time_ratio: float = math.inf) -> int:
        """Returns the least bytes of all parameters that `choose` can meet, with the same arguments."""
        options = {index: self._options(index, max_time_ratio) for index in self.open if index not in dense}
        return self.total_bytes - sum(
            self.layers[index].dense.parameter_bytes - min(option.parameter_bytes for option in of_layer)
            for index, of_layer in options.items()
        )

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

    def estimated_milliseconds(self, index: int, chain: KernelChain) -> Milliseconds | None:
        """Returns the milliseconds of a layer by the cost model, dense and as a chain of these shapes, or None."""
        return estimated_milliseconds(self.layers[index], chain)

    def dense_milliseconds(self) -> float | None:
        """Returns the milliseconds of all open layers as they are by the cost model; None if it does not know one."""
        times = [self.estimated_milliseconds(index, layer.dense_shapes) for index, layer in self.open.items()]
        milliseconds = [of_layer[0] for of_layer in times if of_layer is not None]
        return sum(milliseconds) if len(milliseconds) == len(times) else None

    def milliseconds(self, index: int, chain: KernelChain) -> Milliseconds:
        """Returns the milliseconds of a layer by the clock, as it is and with a chain."""
        return measured_milliseconds(self.layers[index], chain)

    def clock_key(self, index: int, chain: KernelChain) -> str:
        """Returns a text that is equal for layers whose measured times are the same measurement."""
        return clock_key(self.layers[index], chain)

    def time_ratio(self, index: int, option: Option) -> float:
        """Returns the estimated time of an option over that of the dense kernel; 0 where the estimate says nothing."""
        if (index, option.scheme) not in self._time_ratios:
            self._time_ratios[index, option.scheme] = self._estimated_ratios(index, option.scheme)
        macs, ratios = self._time_ratios[index, option.scheme]
        return float(np.interp(option.macs, macs, ratios))

    def _estimated_ratios(self, index: int, scheme: str) -> tuple[list[int], list[float]]:
        """Returns multiply-accumulates of some options of a scheme, ascending, and their ratios of times."""
        layer = self.layers[index]
        if scheme == "dense":
            return [0], [1.0]
        options = sorted((option for option in layer.options if option.scheme == scheme), key=lambda o: o.macs)
        options = [options[place] for place in spread_places(len(options), _MAX_RANKS_ESTIMATED)]
        ratios = []
        for option in options:
            times = self.estimated_milliseconds(index, layer.families[scheme][0].shapes(option.rank))
            ratios.append(0.0 if times is None else times[1] / times[0])
        return [option.macs for option in options], ratios


def _macs(convolutions: Iterable[tuple[JaxprEqn, int]]) -> int:
    """Returns the multiply-accumulates of convolutions as they are, each executed a number of times."""
    specs = ((as_convolution(equation, "describe"), count) for equation, count in convolutions)
    return sum(count * conv.spec.macs for conv, count in specs if conv is not None)


def bytes_of(params: Any) -> int:
    """Returns the bytes of all arrays of some parameters."""
    return sum(int(getattr(leaf, "nbytes", 0)) for leaf in jax.tree.leaves(params))


def _draw(array: Any, generator: np.random.Generator) -> Any:
    if not isinstance(array, jax.ShapeDtypeStruct):
        return on_device(array)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.asarray(generator.standard_normal(array.shape), array.dtype)
    return jnp.zeros(array.shape, array.dtype)


def floats(outputs: Any) -> list[np.ndarray]:
    """Returns the floating arrays among some results, complex ones as two, without numbers that are no arrays."""
    arrays = []
    for leaf in jax.tree.leaves(outputs):
        if not hasattr(leaf, "dtype"):
            continue
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            array = np.asarray(leaf)
            arrays += [array.real.astype(np.float64), array.imag.astype(np.float64)]
        elif jnp.issubdtype(leaf.dtype, jnp.floating):
            arrays.append(np.asarray(leaf).astype(np.float64))
    return arrays
