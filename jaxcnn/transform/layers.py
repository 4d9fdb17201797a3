"""The kernels of a function that chains may take the place of, and the chains that may."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.factorization._family import Family, Subject, count_while
from jaxcnn.factorization.response import (
    Responses,
    response_chain,
    response_curve,
    response_error,
    response_start,
)
from jaxcnn.transform.convolutions import avals
from jaxcnn.transform.discovery import Found, Site
from jaxcnn.transform.linked import convolved, linked_macs
from jaxcnn.transform.placement import Placement

_POINTS = 40
"""Most ranks of a scheme that are considered, evenly spread in the logarithm of their cost."""
_JUDGED = 7
"""Ranks of a scheme whose chains are tried on a layer's responses."""
_TYPICAL_ERROR = 0.2
"""Relative error of the layers of a network at a quarter to a half of its multiply-accumulates."""
_SLICED = ("separable", "low_rank")
"""Schemes of two links whose chain of a rank is the beginning of the one of full rank, so that one decomposition
gives all: 0.6 s at 512 channels and 3x3."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A way to compute a layer.

    Args:
      scheme: the name of the scheme, or "dense".
      rank: as the scheme's function takes it.
      macs: multiply-accumulates, of all executions.
      error: relative error of the kernel, or of the responses where they are known.
    """

    scheme: str
    rank: Any
    macs: int
    error: float


@dataclasses.dataclass
class Layer:
    """A kernel among the parameters, and the convolutions that use it.

    Args:
      index: which array of the arguments it is.
      path: where it stands in the arguments.
      name: where it stands in the parameters, for the reader.
      found: the convolutions.
      parameter: its values.
      schemes: to choose from.
      refusal: why it stays dense, or "".
    """

    index: int
    path: str
    name: str
    found: Found
    parameter: Any
    schemes: Sequence[str]
    refusal: str = ""
    _fits: dict[tuple[str, int, Any], KernelChain] = dataclasses.field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        """Where the kernel lies in the parameter."""
        return self.found.placement

    @property
    def sites(self) -> list[Site]:
        """The convolutions."""
        return self.found.sites

    @cached_property
    def groups(self) -> int:
        """Number of groups of the convolution."""
        return int(self.sites[0].equation.params["feature_group_count"])

    @cached_property
    def kernels(self) -> list[np.ndarray]:
        """The kernels, `(*window, I / groups, O)`: one, or as many as the parameter stacks."""
        kernel = np.asarray(self.placement.kernel(jnp.asarray(self.parameter)))
        return list(kernel.reshape(-1, *self.placement.kernel_shape))

    @cached_property
    def families(self) -> dict[str, list[Family]]:
        """By scheme, the chains that there are for each kernel."""
        found = {}
        for scheme in self.schemes:
            families = [Family(Subject("substitute", kernel, self.groups, None), scheme) for kernel in self.kernels]
            # Of stacked kernels one rank must do for all, so they need the same ranks.
            if families[0].refusal is None and all(family.ranks == families[0].ranks for family in families):
                found[scheme] = families
        return found

    def links(self, site: Site, chain: KernelChain) -> KernelChain:
        """The links with which a convolution computes, of a chain or of the shapes of one."""
        if not site.use.flipped and site.use.placement == self.placement:
            return chain
        links = jax.eval_shape if isinstance(chain.kernels[0], jax.ShapeDtypeStruct) else _called
        return links(lambda chain: site.use.links(chain, self.placement), chain)

    def macs(self, chain: KernelChain) -> int:
        """Multiply-accumulates of all convolutions with a chain."""
        return sum(site.count * linked_macs(site.equation, self.links(site, chain)) for site in self.sites)

    @cached_property
    def dense(self) -> Option:
        """The kernel as it is."""
        shape = jax.ShapeDtypeStruct(self.placement.kernel_shape, self.kernels[0].dtype)
        return Option("dense", None, self.macs(KernelChain((shape,), (self.groups,))), 0.0)

    @cached_property
    def options(self) -> list[Option]:
        """The kernel as it is, and chains with fewer multiply-accumulates."""
        found = [self.dense]
        for scheme, families in self.families.items():
            family = families[0]
            for index in self._indices(family):
                macs = self.macs(family.chain(index))
                found.append(Option(scheme, family.ranks[index], macs, self._error(scheme, index)))
        return found

    def _indices(self, family: Family) -> list[int]:
        """Ranks with fewer multiply-accumulates than the kernel, spread over their cost."""

        def up_to(macs: float, count: int) -> int:
            return count_while(count, lambda index: self.macs(family.chain(index)) <= macs)

        count = up_to(self.dense.macs - 1, len(family.ranks))
        if count == 0:
            return []
        # A search has no errors beforehand, and takes long: few of its ranks.
        points = 6 if family.scheme.searches else _POINTS
        ends = [self.macs(family.chain(index)) for index in (0, count - 1)]
        wanted = np.linspace(np.log(ends[0]), np.log(ends[1]), points)
        return sorted({max(up_to(np.exp(macs) + 0.5, count) - 1, 0) for macs in wanted})

    def _error(self, scheme: str, index: int) -> float:
        """The relative error of all kernels together."""
        families = self.families[scheme]
        norms = [float(np.linalg.norm(kernel)) for kernel in self.kernels]
        if families[0].errors is None:
            rank = families[0].ranks[index]
            errors = [family.error(self._fit(family, number, rank)) for number, family in enumerate(families)]
        else:
            errors = [float(family.errors[index]) for family in families if family.errors is not None]
        return float(np.linalg.norm(np.multiply(errors, norms)) / (np.linalg.norm(norms) or 1.0))

    def judge(self, responses: Responses) -> None:
        """Puts the errors of the layer's responses in place of the kernel's."""
        found = [self.dense]
        for scheme in self.families:
            options = [option for option in self.options if option.scheme == scheme]
            if not options:  # no rank of the scheme has fewer multiply-accumulates
                continue
            # Each rank is a program to compile, half a second: a few, and between them the errors' logarithms.
            few = sorted({round(place) for place in np.linspace(0, len(options) - 1, min(_JUDGED, len(options)))})
            ranks = [options[place].rank for place in few]
            errors = response_curve(self.kernels[0], scheme, ranks, responses, feature_group_count=self.groups)
            logarithms = np.log(np.maximum(errors, 1e-12))
            between = np.exp(np.interp(range(len(options)), few, logarithms))
            found += [dataclasses.replace(o, error=float(e)) for o, e in zip(options, between, strict=True)]
        self.options = found
        option = self._weighing
        if option is not None:
            chain = response_chain(
                self.kernels[0], option.scheme, option.rank, responses, feature_group_count=self.groups
            )
            # Its own error, for that of the option may lie between two that were tried.
            self.probe = chain, response_error(chain, responses)

    @property
    def _weighing(self) -> Option | None:
        """The option with an error like those that will be chosen."""
        chains = [option for option in self.options[1:] if 0 < option.error < np.inf]
        return min(chains, key=lambda option: abs(option.error - _TYPICAL_ERROR), default=None)

    @cached_property
    def probe(self) -> tuple[KernelChain, float] | None:
        """A chain by which to weigh the layer, and its error; None if no chain makes one."""
        option = self._weighing
        return None if option is None else (self.chain(option), option.error)

    def start(self, option: Option, responses: Responses) -> KernelChain:
        """The chain of an option at which a fit to responses starts."""
        return response_start(self.kernels[0], option.scheme, option.rank, responses, feature_group_count=self.groups)

    def chain(self, option: Option) -> KernelChain:
        """The chain of an option, its links stacked as the parameter stacks kernels."""
        families = self.families[option.scheme]
        chains = [self._fit(family, number, option.rank) for number, family in enumerate(families)]
        stack = [self.placement.shape[axis] for axis in self.placement.stack]
        if not stack:
            return chains[0]
        return jax.tree.map(lambda *links: jnp.stack(links).reshape(*stack, *links[0].shape), *chains)

    def _fit(self, family: Family, number: int, rank: Any) -> KernelChain:
        sliced = family.name in _SLICED and len(self.placement.taps) == 2
        key = family.name, number, None if sliced else rank
        if key not in self._fits:
            self._fits[key] = family.fit(index=len(family.ranks) - 1 if sliced else family.ranks.index(rank))
        if not sliced:
            return self._fits[key]
        first, second = self._fits[key].kernels
        split = first.reshape(*first.shape[:-1], self.groups, -1)[..., :rank]  # (*window, I, G, R)
        links = split.reshape(*first.shape[:-1], -1), second[..., :rank, :]
        return KernelChain(links, self._fits[key].feature_group_counts)

    def shapes(self, chain: KernelChain) -> KernelChain:
        """The shapes of the chain of one kernel."""
        lead = len(self.placement.stack)
        links = (jax.ShapeDtypeStruct(link.shape[lead:], link.dtype) for link in chain.kernels)
        return KernelChain(tuple(links), chain.feature_group_counts)

    def array(self, chain: KernelChain) -> jax.Array:
        """The parameter that holds a chain's dense kernels."""
        return self.placement.holding(chain)

    def calls(self, chain: KernelChain | None) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        """For each convolution, the function that computes it with a chain or as it was, and its operands."""
        found: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        for site in self.sites:
            image, kernel = (_random(aval) for aval in avals(site.equation)[:2])
            if chain is None:
                found.append((_as_it_was(site.equation), (image, kernel)))
            else:
                one = jax.tree.map(lambda link: link[(0,) * len(self.placement.stack)], chain)
                found.append((_chained(site.equation), (image, self.links(site, one))))
        return found


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _random(aval: Any) -> jax.Array:
    values = np.random.default_rng(0).standard_normal(aval.shape).astype(np.float32)
    return jnp.asarray(values).astype(aval.dtype)


def _as_it_was(equation: JaxprEqn) -> Callable[..., Any]:
    params = equation.primitive.get_bind_params(equation.params)
    return jax.jit(lambda image, kernel: equation.primitive.bind(image, kernel, **params))


def _chained(equation: JaxprEqn) -> Callable[..., Any]:
    return jax.jit(lambda image, chain: convolved(equation, image, chain))
