"""The kernels of a function that chains may take the place of, and the chains that may."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.factorization.numerics.blocks import dense_blocks, merged_link
from jaxcnn.factorization.responses.fit import refit
from jaxcnn.factorization.responses.samples import Responses, response_error
from jaxcnn.factorization.responses.start import ResponseFits, last_link_solved, response_start
from jaxcnn.factorization.schemes.registry import SCHEMES
from jaxcnn.factorization.schemes.scheme import first_channels
from jaxcnn.factorization.selection.candidates import FAST_MULTIPLES, GivenKernel, SchemeCandidates, count_while
from jaxcnn.transform.chains.convolve import convolved, direction, linked_macs, seen
from jaxcnn.transform.chains.find_kernels import Found, Site
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.convolutions import avals

_POINTS = 40
"""Most ranks of a scheme that are considered, evenly spread in the logarithm of their cost."""
_NEAR = 40
"""How many ranks to each side of one are looked at for a multiple that the device likes: for each multiply-accumulate
such ranks take 0.87 of the time of others."""
_JUDGED = 7
"""Ranks of a scheme whose chains are tried on a layer's responses."""
_TYPICAL_ERRORS = (0.2, 0.5, 0.8)
"""Relative errors of the layers of a network at a quarter to a half of its multiply-accumulates; late ones may err by
more. The pairs of an edge detector at a quarter, fitted to weights, err by 0.25 where each layer was probed at 0.2
alone. A transposed kernel before a mean over the plane, fitted to responses, does 0.002 at 0.24 and 0.038 at 0.61,
where the mean is lost too."""


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


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What the responses of one kernel say: the error of each option, and of some the chains by which to weigh it."""

    number: int
    errors: Sequence[float]
    weighing: Sequence[Option]
    probes: Sequence[tuple[KernelChain, float]]


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
    _judged: list[_Judged] = dataclasses.field(default_factory=list)
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

    @property
    def why_dense(self) -> str:
        """Why no chain can take the kernel's place, or ""."""
        if self.refusal or self.families:
            return self.refusal
        *inner, outputs = self.placement.kernel_shape
        blocks = (self.groups, *inner, outputs // self.groups)
        return "; ".join(f"no {scheme} chain: {SCHEMES[scheme].refusal(blocks)}" for scheme in self.schemes)

    @cached_property
    def families(self) -> dict[str, list[SchemeCandidates]]:
        """By scheme, the chains that there are for each kernel."""
        found = {}
        subjects = [GivenKernel("substitute", kernel, self.groups, None) for kernel in self.kernels]
        blocks = np.concatenate([subject.blocks for subject in subjects])
        for scheme in self.schemes:
            if SCHEMES[scheme].refusal(subjects[0].blocks.shape) is None:
                # Of stacked kernels one rank must do for all, so they share the ranks and errors of all together.
                family = SchemeCandidates(subjects[0], scheme, self.macs, table=SCHEMES[scheme].ranks(blocks))
                found[scheme] = [family.for_kernel(subject) for subject in subjects]
        return found

    def weights_of_an_output(self, site: Site) -> int:
        """How many weights make up one output feature of a convolution."""
        *window, inputs, outputs = self.placement.kernel_shape
        backward, _ = direction(site, self.placement)
        return math.prod(window) * (outputs // self.groups if backward else inputs)

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
                macs = self.macs(family.shapes_at(index))
                found.append(Option(scheme, family.ranks[index], macs, self._error(scheme, index)))
        return found

    def at_rank(self, rank: Any) -> Option | None:
        """The chain of the first scheme that does for the kernel at a rank, or at the full one if that is less.

        It may have more multiply-accumulates than the kernel. None if no scheme does.
        """
        for scheme, families in self.families.items():
            allowed = families[0].clipped(rank)
            return Option(scheme, allowed, self.macs(families[0].shapes(allowed)), self._fit_error(scheme, allowed))
        return None

    def _indices(self, family: SchemeCandidates) -> list[int]:
        """Ranks with fewer multiply-accumulates than the kernel, spread over their cost."""

        def up_to(macs: float, count: int) -> int:
            return count_while(count, lambda index: self.macs(family.shapes_at(index)) <= macs)

        count = up_to(self.dense.macs - 1, len(family.ranks))
        if count == 0:
            return []
        # A search has no errors beforehand, and takes long: few of its ranks.
        points = 6 if family.scheme.is_search else _POINTS
        ends = [self.macs(family.shapes_at(index)) for index in (0, count - 1)]
        wanted = np.linspace(np.log(ends[0]), np.log(ends[1]), points)
        return sorted({self._suited(family, max(up_to(np.exp(macs) + 0.5, count) - 1, 0), count) for macs in wanted})

    def _suited(self, family: SchemeCandidates, index: int, count: int) -> int:
        """The rank nearest to a rank whose features are multiples of 8, if it costs within an eighth of it."""
        macs = self.macs(family.shapes_at(index))
        for near in sorted(range(max(index - _NEAR, 0), min(index + _NEAR + 1, count)), key=lambda n: abs(n - index)):
            chain = family.shapes_at(near)
            multiples = all(link.shape[-1] % FAST_MULTIPLES[0] == 0 for link in chain.kernels[:-1])
            if multiples and abs(self.macs(chain) - macs) <= macs / 8:
                return near
        return index

    def _error(self, scheme: str, index: int) -> float:
        """The relative error of all kernels together."""
        family = self.families[scheme][0]
        return (
            float(family.errors[index]) if family.errors is not None else self._fit_error(scheme, family.ranks[index])
        )

    def _fit_error(self, scheme: str, rank: Any) -> float:
        families = self.families[scheme]
        norms = [float(np.linalg.norm(kernel)) for kernel in self.kernels]
        errors = [family.error(self._fit(family, number, rank)) for number, family in enumerate(families)]
        return float(np.linalg.norm(np.multiply(errors, norms)) / (np.linalg.norm(norms) or 1.0))

    def judge(self, number: int, site: Site, responses: Responses) -> None:
        """Takes the responses of one kernel, of those that the parameter stacks, into account.

        Once all were, the errors of responses stand in place of the kernel's in the options.
        """
        solved = self._solver(number, site, responses)
        # Each rank is a program to compile, half a second: a few, and between them the errors' logarithms.
        errors: list[float] = [self.dense.error]
        for scheme in self.families:
            options = [option for option in self.options if option.scheme == scheme]
            few = sorted({round(place) for place in np.linspace(0, len(options) - 1, min(_JUDGED, len(options)))})
            if few:  # some rank of the scheme has fewer multiply-accumulates
                found = [solved(options[place])[1] for place in few]
                errors += np.exp(np.interp(range(len(options)), few, np.log(np.maximum(found, 1e-12)))).tolist()
        own = [dataclasses.replace(option, error=error) for option, error in zip(self.options, errors, strict=True)]
        # All kernels are weighed by the options that do for the first.
        weighing = self._judged[0].weighing if self._judged else _typical(own)
        tried = map(solved, weighing)
        probes = [(seen(site, chain, self.placement), error) for chain, error in tried]
        self._judged.append(_Judged(number, errors, weighing, probes))
        if len(self._judged) == len(self.kernels):
            together = np.sqrt(np.square([judged.errors for judged in self._judged]).mean(0))
            self.options = [dataclasses.replace(o, error=float(e)) for o, e in zip(self.options, together, strict=True)]
            ordered = sorted(self._judged, key=lambda judged: judged.number)
            # Their own errors, for those of the options may lie between two that were tried.
            self.probes = [
                (self.stacked([chain for chain, _ in each]), float(np.sqrt(np.square([e for _, e in each]).mean())))
                for each in zip(*(judged.probes for judged in ordered), strict=True)
            ]

    def _solver(self, number: int, site: Site, responses: Responses) -> Callable[[Option], tuple[KernelChain, float]]:
        """What makes of an option a chain whose last link is the best one for the responses, and its error."""
        if self._is_plain(site):
            fits = ResponseFits(self.kernels[number], responses, feature_group_count=self.groups)
            return lambda option: fits.at(option.scheme, option.rank)

        def solved(option: Option) -> tuple[KernelChain, float]:
            chain = last_link_solved(self._seen_fit(number, site, option), responses)
            return chain, response_error(chain, responses)

        return solved

    def _is_plain(self, site: Site) -> bool:
        """Whether a convolution's patches meet the kernel as it is."""
        return direction(site, self.placement) == (False, ())

    def _seen_fit(self, number: int, site: Site, option: Option) -> KernelChain:
        return seen(site, self._fit(self.families[option.scheme][number], number, option.rank), self.placement)

    @cached_property
    def probes(self) -> list[tuple[KernelChain, float]]:
        """Chains by which to weigh the layer, each with its error; none if no chain makes one."""
        return [(self.chain(option), option.error) for option in _typical(self.options)]

    def fitted(self, number: int, site: Site, option: Option, responses: Responses) -> tuple[KernelChain, float]:
        """The chain of an option for one kernel, fitted to responses, and its error."""
        scheme, rank, kernel = option.scheme, option.rank, self.kernels[number]
        if self._is_plain(site):
            start = response_start(kernel, scheme, rank, responses, feature_group_count=self.groups)
        else:
            # The schemes start in the metric of the kernel's inputs, which here are what leaves.
            start = self._seen_fit(number, site, option)
        (dense,) = seen(site, KernelChain((kernel,), (self.groups,)), self.placement).kernels
        chain = refit(start, responses, kernel=dense)
        return seen(site, chain, self.placement), response_error(chain, responses)

    def stacked(self, chains: Sequence[KernelChain]) -> KernelChain:
        """The chains of all kernels as one, its links stacked as the parameter stacks kernels."""
        stack = [self.placement.shape[axis] for axis in self.placement.stack]
        if not stack:
            return chains[0]
        return jax.tree.map(lambda *links: jnp.stack(links).reshape(*stack, *links[0].shape), *chains)

    def apart(self, chain: KernelChain) -> list[KernelChain]:
        """The inverse of `stacked`."""
        if not self.placement.stack:
            return [chain]
        lead = len(self.placement.stack)
        flat = jax.tree.map(lambda link: link.reshape(-1, *link.shape[lead:]), chain)
        return [jax.tree.map(lambda link, number=number: link[number], flat) for number in range(len(self.kernels))]

    def chain(self, option: Option) -> KernelChain:
        """The chain of an option, its links stacked as the parameter stacks kernels."""
        families = self.families[option.scheme]
        return self.stacked([self._fit(family, number, option.rank) for number, family in enumerate(families)])

    def _fit(self, family: SchemeCandidates, number: int, rank: Any) -> KernelChain:
        # One decomposition, at full rank, serves all ranks of a scheme that can be sliced.
        is_sliceable = family.scheme.is_sliceable(family.kernel.shape)
        key = family.name, number, None if is_sliceable else rank
        if key not in self._fits:
            self._fits[key] = family.fit(rank=family.ranks[-1] if is_sliceable else rank)
        return first_channels(self._fits[key], rank) if is_sliceable else self._fits[key]

    def shapes(self, chain: KernelChain) -> KernelChain:
        """The shapes of the chain of one kernel."""
        lead = len(self.placement.stack)
        links = (jax.ShapeDtypeStruct(link.shape[lead:], link.dtype) for link in chain.kernels)
        return KernelChain(tuple(links), chain.feature_group_counts)

    def array(self, chain: KernelChain) -> jax.Array:
        """The parameter that holds a chain's dense kernels."""
        if self.placement.stack:
            return self.placement.holding(chain)
        # In NumPy: in JAX each rank would be a program to compile.
        return jnp.asarray(self.placement.parameter(merged_link(dense_blocks(chain), chain.dtype)))

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


def _typical(options: Sequence[Option]) -> list[Option]:
    """Of the chains among the options those whose errors are nearest to the typical ones; none if none makes one."""
    chains = [option for option in options[1:] if 0 < option.error < np.inf]
    nearest = (min(chains, key=lambda o: abs(o.error - error), default=None) for error in _TYPICAL_ERRORS)
    return [option for option in dict.fromkeys(nearest) if option is not None]


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
