"""Which axes of a parameter are those of a convolution's kernel, and the links that compute a use of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jax.extend.core.primitives import conv_general_dilated_p

from jaxcnn.chain import KernelChain
from jaxcnn.lowering.common.forms import transposed_kernel
from jaxcnn.primitives import conv_p
from jaxcnn.transform.chains.axis_views import Factor, Factors, Ints, View, factors_of, merged, size_of


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the axes of a kernel, `(*window, I / groups, O)`, lie in the parameter that holds it.

    Args:
      shape: of the parameter.
      taps: for each window axis, the factors of the parameter's axes that make it up.
      inputs: the same for the input features of a group.
      outputs: the same for the output features.
      stack: axes of the parameter that number kernels.
    """

    shape: Ints
    taps: tuple[Factors, ...]
    inputs: Factors
    outputs: Factors
    stack: Ints = ()

    @property
    def kernel_shape(self) -> Ints:
        """`(*window, I / groups, O)`."""
        return (*map(size_of, self.taps), size_of(self.inputs), size_of(self.outputs))

    @property
    def _factors(self) -> list[Factor]:
        stack = [factor for axis in self.stack for factor in factors_of(axis, self.shape[axis])]
        return [*stack, *(factor for factors in self.taps for factor in factors), *self.inputs, *self.outputs]

    def covers(self) -> bool:
        """Whether every value of the parameter is one of the kernel's, once."""
        factors = self._factors
        return len(set(factors)) == len(factors) and math.prod(f[2] for f in factors) == math.prod(self.shape)

    def exchanged(self, groups: int) -> Placement | None:
        """Where the axes lie of the kernel that takes outputs to inputs, with as many groups; None if nowhere."""
        split = View(self.shape, (self.outputs,)).reshaped((groups, size_of(self.outputs) // groups))
        if split is None:
            return None
        group, features = split.axes
        return dataclasses.replace(self, inputs=features, outputs=merged((*group, *self.inputs)))

    def parameter(self, kernel: Any, sliced: Ints = ()) -> Any:
        """The parameter that holds a kernel, `(*stack, *window, I / groups, O)`.

        Without the axes of `stack` that were sliced, which are left with size 1.
        """
        factors = [factor for factor in self._factors if factor[0] not in sliced]
        order = sorted(range(len(factors)), key=lambda n: (factors[n][0], -factors[n][1]))
        shape = [1 if axis in sliced else size for axis, size in enumerate(self.shape)]
        return kernel.reshape([size for _, _, size in factors]).transpose(order).reshape(shape)

    def holding(self, chain: KernelChain, sliced: Ints = ()) -> jax.Array:
        """The parameter that holds a chain's dense kernels; its links have an axis in front for each of the stack's."""
        dense: Callable[[KernelChain], jax.Array] = KernelChain.dense
        for _ in range(len(self.stack) - len(sliced)):
            dense = jax.vmap(dense)
        return self.parameter(dense(chain), sliced)

    def kernel(self, parameter: Any) -> Any:
        """The kernel, `(*stack, *window, I / groups, O)`, in a parameter."""
        stack = tuple(factors_of(axis, self.shape[axis]) for axis in self.stack)
        view = View(self.shape, (*stack, *self.taps, self.inputs, self.outputs))
        return view.apply_to(parameter)


@dataclasses.dataclass(frozen=True)
class Use:
    """A convolution's kernel as a view of a parameter.

    Args:
      placement: of the kernel as the convolution has it.
      flipped: window axes that are reversed.
    """

    placement: Placement
    flipped: Ints

    def links(self, chain: KernelChain, placement: Placement) -> KernelChain | None:
        """The chain that this use computes with, of a chain for the kernel at a placement; None if they do not fit."""
        own = self.placement
        left = tuple(axis for axis in placement.stack if axis not in own.stack)
        if own.taps != placement.taps or math.prod(placement.shape[axis] for axis in left) > 1:
            return None
        kernels, counts = (
            [kernel.reshape(kernel.shape[len(left) :]) for kernel in chain.kernels],
            chain.feature_group_counts,
        )
        if (own.inputs, own.outputs) != (placement.inputs, placement.outputs):
            exchanged = placement.exchanged(chain.feature_group_count)
            if exchanged is None or (own.inputs, own.outputs) != (exchanged.inputs, exchanged.outputs):
                return None
            # From the outputs to the inputs: the links in reverse, each from its outputs to its inputs.
            kernels = [transposed_kernel(k, count) for k, count in zip(kernels, counts, strict=True)][::-1]
            counts = counts[::-1]
        if self.flipped:
            kernels = [jnp.flip(kernel, self.flipped) for kernel in kernels]
        return KernelChain(tuple(kernels), counts)


def use_of(equation: JaxprEqn, view: View) -> Use | None:
    """The use of a parameter, of which the second operand of a convolution is a view; None for any other equation."""
    if equation.primitive is conv_general_dilated_p:
        features, inputs, *taps = equation.params["dimension_numbers"].rhs_spec
        if equation.params["batch_group_count"] > 1:
            return None
    elif equation.primitive is conv_p:
        if equation.params["role"] == "kernel" or equation.params["stacked"]:
            return None
        *taps, inputs, features = range(len(view.axes))
    else:
        return None
    windows = tuple(view.axes[axis] for axis in taps)
    whole = [{own for own, _, _ in factors} for factors in windows]
    flipped = tuple(axis for axis, own in enumerate(whole) if own and own <= view.flipped)
    if set().union(*(whole[axis] for axis in flipped)) != view.flipped:
        return None  # a part of a window axis is reversed, or the features are
    placement = Placement(view.shape, windows, view.axes[inputs], view.axes[features], view.sliced)
    return Use(placement, flipped) if placement.covers() else None


ORDERS = ("HWIO", "OIHW", "HWCM")
"""How a kernel may lie in a parameter: as JAX's and TensorFlow's libraries have it, as PyTorch and Equinox do, and as
Keras does for a depthwise kernel (any other is HWIO there)."""


def guesses(chains: Sequence[KernelChain]) -> Iterator[list[Placement]]:
    """Where the kernels that chains stand for may lie in their parameters; all of one function in the same order.

    The chains with the most axes may also be stacks of chains: their links have one more axis in front, all of one
    size.
    """
    most = max(chain.ndim for chain in chains)
    stacks = [chain.ndim == most > 3 and len({link.shape[0] for link in chain.kernels}) == 1 for chain in chains]
    for stacked in (False, True) if any(stacks) else (False,):
        for order in ORDERS:
            yield [_placed(chain, stacked and stack, order) for chain, stack in zip(chains, stacks, strict=True)]


def _placed(chain: KernelChain, stacked: bool, order: str) -> Placement:
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
        # The axis of the channels has none of a group's input features, of which there is one.
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
