"""Axes of a convolution's kernel in the parameter that holds it, and the links that compute a use of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxcnn.chain import KernelChain
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.transform.chains.axis_views import Factor, Factors, Ints, View, factors_of, merge_factors, size_of
from jaxcnn.transform.jaxpr.convolutions import forward_axes, is_convolution, is_stacked, role_of

Relation = Literal["same", "exchanged"]
"""Relation of two kernels: one is the other, or it takes the other's outputs to its inputs."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """The axes of a kernel, `(*window, I / groups, O)`, in the parameter that holds it.

    Args:
      shape: shape of the parameter.
      taps: factors of the parameter's axes that make up each window axis.
      inputs: factors that make up the input features of a group.
      outputs: factors that make up the output features.
      stack: axes of the parameter that stack kernels.
    """

    shape: Ints
    taps: tuple[Factors, ...]
    inputs: Factors
    outputs: Factors
    stack: Ints = ()

    @property
    def kernel_shape(self) -> Ints:
        """Shape of the kernel, `(*window, I / groups, O)`."""
        return (*map(size_of, self.taps), size_of(self.inputs), size_of(self.outputs))

    @property
    def _factors(self) -> list[Factor]:
        stack = [factor for axis in self.stack for factor in factors_of(axis, self.shape[axis])]
        return [*stack, *(factor for factors in self.taps for factor in factors), *self.inputs, *self.outputs]

    def covers(self) -> bool:
        """Returns whether the kernel holds every value of the parameter exactly once."""
        factors = self._factors
        return len(set(factors)) == len(factors) and math.prod(f[2] for f in factors) == math.prod(self.shape)

    def exchange(self, groups: int) -> Placement | None:
        """Returns the placement of the kernel that takes outputs to inputs, in some groups; None if there is none."""
        split = View(self.shape, (self.outputs,)).reshape((groups, size_of(self.outputs) // groups))
        if split is None:
            return None
        group, features = split.axes
        return dataclasses.replace(self, inputs=features, outputs=merge_factors((*group, *self.inputs)))

    def relation(self, other: Placement, groups: int) -> Relation | None:
        """Returns "same" for a placement of the same kernel, "exchanged" for one from outputs to inputs, else None."""
        indexed_axes = tuple(axis for axis in self.stack if axis not in other.stack)
        if other.taps != self.taps or math.prod(self.shape[axis] for axis in indexed_axes) > 1:
            return None
        if other.stack != tuple(axis for axis in self.stack if axis in other.stack):
            return None
        if (other.inputs, other.outputs) == (self.inputs, self.outputs):
            return "same"
        exchanged = self.exchange(groups)
        if exchanged is not None and (other.inputs, other.outputs) == (exchanged.inputs, exchanged.outputs):
            return "exchanged"
        return None

    def parameter(self, kernel: Any, sliced: Ints = ()) -> Any:
        """Returns the parameter that holds a kernel, `(*stack, *window, I / groups, O)`.

        The kernel has no axes for those of `stack` in `sliced`; the parameter has size 1 there.
        """
        factors = [factor for factor in self._factors if factor[0] not in sliced]
        order = sorted(range(len(factors)), key=lambda n: (factors[n][0], -factors[n][1]))
        shape = [1 if axis in sliced else size for axis, size in enumerate(self.shape)]
        return kernel.reshape([size for _, _, size in factors]).transpose(order).reshape(shape)

    def parameter_of_chain(self, chain: KernelChain, sliced: Ints = ()) -> jax.Array:
        """Returns the parameter that holds a chain's dense kernels; links have a leading axis for each of `stack`."""
        dense: Callable[[KernelChain], jax.Array] = KernelChain.dense
        for _ in range(len(self.stack) - len(sliced)):
            dense = jax.vmap(dense)
        return self.parameter(dense(chain), sliced)

    def kernel(self, parameter: Any) -> Any:
        """Returns the kernel, `(*stack, *window, I / groups, O)`, in a parameter."""
        stack = tuple(factors_of(axis, self.shape[axis]) for axis in self.stack)
        view = View(self.shape, (*stack, *self.taps, self.inputs, self.outputs))
        return view.apply_to(parameter)


@dataclasses.dataclass(frozen=True)
class Use:
    """A convolution's kernel as a view of a parameter.

    Args:
      placement: axes of the kernel as the convolution has them.
      flipped: window axes that are reversed.
    """

    placement: Placement
    flipped: Ints

    def links(self, chain: KernelChain, placement: Placement) -> KernelChain | None:
        """Returns the chain with which this use computes, from one of the kernel at a placement; None if none fits."""
        relation = placement.relation(self.placement, chain.feature_group_count)
        if relation is None:
            return None
        lead = len(set(placement.stack) - set(self.placement.stack))
        links = tuple(link.reshape(link.shape[lead:]) for link in chain.kernels)
        return turn(KernelChain(links, chain.feature_group_counts), relation == "exchanged", self.flipped)


def turn(chain: KernelChain, exchanged: bool, flipped: Ints) -> KernelChain:
    """Returns a chain with window axes flipped, and from outputs to inputs if these are exchanged."""
    kernels, counts = chain.kernels, chain.feature_group_counts
    if exchanged:
        kernels = tuple(transposed_kernel(k, count) for k, count in zip(kernels, counts, strict=True))[::-1]
        counts = counts[::-1]
    if flipped:
        kernels = tuple((np if isinstance(kernel, np.ndarray) else jnp).flip(kernel, flipped) for kernel in kernels)
    return KernelChain(kernels, counts)


def use_of(equation: JaxprEqn, view: View) -> Use | None:
    """Returns the use of a parameter by an equation whose second operand is a view of it; None if that is no kernel."""
    if not is_convolution(equation) or equation.params.get("batch_group_count", 1) > 1:
        return None
    if role_of(equation) == "kernel" or is_stacked(equation):
        return None
    *taps, inputs, features = forward_axes(equation)[1]
    windows = tuple(view.axes[axis] for axis in taps)
    parameter_axes = [{axis for axis, _, _ in factors} for factors in windows]
    flipped = tuple(number for number, axes in enumerate(parameter_axes) if axes and axes <= view.flipped)
    if set().union(*(parameter_axes[axis] for axis in flipped)) != view.flipped:
        return None  # a part of a window axis is reversed, or the features are
    placement = Placement(view.shape, windows, view.axes[inputs], view.axes[features], view.sliced)
    return Use(placement, flipped) if placement.covers() else None


ORDERS = ("HWIO", "OIHW", "HWCM")
"""Orders of a kernel's axes: of JAX's and TensorFlow's libraries, of PyTorch and Equinox, and of Keras for a depthwise
kernel (any other is HWIO there)."""


def guesses(chains: Sequence[KernelChain]) -> Iterator[list[Placement]]:
    """Yields placements of the kernels that chains stand for; all kernels of one function have the same order.

    The chains with the most axes may also be stacks of chains: their links have one more leading axis, all of one size.
    """
    max_ndim = max(chain.ndim for chain in chains)
    stacks = [chain.ndim == max_ndim > 3 and len({link.shape[0] for link in chain.kernels}) == 1 for chain in chains]
    for stacked in (False, True) if any(stacks) else (False,):
        for order in ORDERS:
            yield [
                _placement_in_order(chain, stacked and stack, order)
                for chain, stack in zip(chains, stacks, strict=True)
            ]


def _placement_in_order(chain: KernelChain, stacked: bool, order: str) -> Placement:
    """Returns the placement of a chain's kernel in a parameter with axes in an order: HWIO, OIHW or HWCM."""
    lead = (chain.kernels[0].shape[0],) if stacked else ()
    if stacked:
        links = (jax.ShapeDtypeStruct(link.shape[1:], link.dtype) for link in chain.kernels)
        chain = KernelChain(tuple(links), chain.feature_group_counts)
    *window, inputs, outputs = chain.shape
    rank, groups = len(window), chain.feature_group_count
    output_axes: Ints
    shape, first_tap, input_axis, output_axes = (*window, inputs, outputs), 0, rank, (rank + 1,)
    if order == "OIHW":
        shape, first_tap, input_axis, output_axes = (outputs, inputs, *window), 2, 1, (0,)
    elif order == "HWCM" and inputs == 1:
        # A group has one input feature, so the parameter's axes C and M together are the outputs.
        shape, output_axes = (*window, groups, outputs // groups), (rank, rank + 1)
    shape = (*lead, *shape)

    def factors(axis: int) -> Factors:
        return factors_of(len(lead) + axis, shape[len(lead) + axis])

    return Placement(
        shape,
        tuple(factors(first_tap + axis) for axis in range(rank)),
        factors(input_axis) if inputs > 1 else (),
        tuple(factor for axis in output_axes for factor in factors(axis)),
        tuple(range(len(lead))),
    )
