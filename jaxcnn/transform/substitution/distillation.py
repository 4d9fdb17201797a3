"""Training of a substitution's parameters to the dense network's own results and to what its layers take."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.transform.acceleration.accelerate import accelerate
from jaxcnn.transform.chains.placement import Placement
from jaxcnn.transform.jaxpr.signature import flatten_call, short_name
from jaxcnn.transform.substitution.held_out import split_held_out

Loss = Callable[[Any, Any], jax.Array]
"""Function of the small and of the dense network's results to a number."""

_LEARNING_RATE = 0.01
"""Largest learning rate of the default optimizer: the size of a step over the size of the link that it changes."""
_WARM_UP_SHARE = 0.05
"""Share of the steps in which the learning rate rises from zero."""
_LARGEST_GRADIENT = 1.0
"""Norm of all gradients together to which larger ones are scaled."""
_HELD_OUT_BATCHES = 2
"""Number of batches of an iterator, the first ones, by which the parameters are judged after they were trained on."""
_JUDGEMENTS = 10
"""Number of times that the parameters are judged in a training."""


def squared_error(results: Any, targets: Any) -> jax.Array:
    """Returns the squared relative error of all floating results together, norm(results - targets)^2 / norm(targets)^2.

    Values that are NaN or infinite in `targets` do not count.
    """
    difference = norm = jnp.zeros((), jnp.float32)
    for result, target in zip(_inexact(results), _inexact(targets), strict=True):
        finite = jnp.isfinite(target)
        difference += jnp.sum(jnp.where(finite, jnp.abs(result - target).astype(jnp.float32) ** 2, 0))
        norm += jnp.sum(jnp.where(finite, jnp.abs(target).astype(jnp.float32) ** 2, 0))
    return difference / jnp.where(norm > 0, norm, 1)


def _inexact(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of a training.

    Args:
      steps: number of updates.
      optimizer: optax transformation, or an object with its `init` and `update`; None for `default_optimizer`.
      loss: function of the small and of the dense network's results to the number that is made small.
      is_trained: function from the name of a parameter, and whether it is a chain, to whether it is trained.
      layers: weight of the mean squared relative error of the layers' images, which is added to the loss.
      seed: seed for the draws from a list of inputs.
    """

    steps: int
    optimizer: Any
    loss: Loss
    is_trained: Callable[[str, bool], bool]
    layers: float = 0.0
    seed: int = 0


def train(
    network: Callable[..., Any],
    params: Any,
    dense: Any,
    inputs: Iterable[tuple[Any, ...]],
    training: Training,
    advance: Callable[[float], None],
) -> Any:
    """Returns the parameters that made the least loss on held-out inputs, of several times in the training.

    Args:
      network: function of the parameters and a batch to a pair: the results, and the images that layers take.
      params: parameters with chains, from which training starts.
      dense: parameters with which the network is the dense one.
      inputs: inputs, one tuple of arguments for each step. Batches of a list are drawn at random, with replacement, and
        a fifth of three or more are held out; the first two of an iterator are the first to train on, and judge later.
      training: settings of the training.
      advance: function that is told of each step.

    Raises:
      ValueError: no parameter is trained; there are no inputs, or too few; the loss is not finite.
    """
    signature, values = flatten_call("distill", (params,), {}, (KernelChain,))
    is_trained = [
        training.is_trained(short_name(path), isinstance(value, KernelChain)) and _is_floating(value)
        for path, value in zip(signature.paths(), values, strict=True)
    ]
    if not any(is_trained):
        raise ValueError("distill: no parameter is trained: the substitution has no chain, or `train` names none")
    optimizer = training.optimizer or default_optimizer(training.steps)
    fast = accelerate(network)

    def merged(chosen: Sequence[Any], fixed: Sequence[Any]) -> Any:
        parts = iter(chosen), iter(fixed)
        return signature.unflatten([next(parts[0] if is_in else parts[1]) for is_in in is_trained])[0][0]

    def loss_of(chosen: list[Any], fixed: list[Any], dense: Any, batch: tuple[Any, ...]) -> jax.Array:
        results, images = fast(merged(chosen, fixed), *batch)
        targets, dense_images = fast(dense, *batch)
        loss = training.loss(results, targets)
        if training.layers and images:
            loss += training.layers * jnp.mean(jnp.stack(list(map(squared_error, images, dense_images))))
        return loss

    @jax.jit
    def step(chosen: list[Any], state: Any, fixed: list[Any], dense: Any, batch: tuple[Any, ...]) -> Any:
        value, gradients = jax.value_and_grad(loss_of)(chosen, fixed, dense, batch)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it
            updates, state = optimizer.update(gradients, state, chosen)
        moved = jax.tree.map(lambda number, update: (number + update).astype(number.dtype), chosen, updates)
        return moved, state, value

    chosen = [jax.tree.map(jnp.asarray, value) for value, is_in in zip(values, is_trained, strict=True) if is_in]
    fixed = [value for value, is_in in zip(values, is_trained, strict=True) if not is_in]
    batches, held_out = split_batches(inputs, training.seed)
    judge = jax.jit(loss_of)

    def held_out_loss(chosen: list[Any]) -> float:
        losses = [float(judge(chosen, fixed, dense, batch)) for batch in held_out]
        return sum(losses) / len(losses) if losses else math.inf

    best, least_loss = chosen, held_out_loss(chosen)
    state = optimizer.init(chosen)
    number = 0
    for number, batch in enumerate(itertools.islice(batches, training.steps), start=1):
        chosen, state, value = step(chosen, state, fixed, dense, batch)
        if not math.isfinite(float(value)):
            raise ValueError(
                f"distill: the loss is {float(value)} at step {number} of {training.steps}; train at a lower rate, for "
                "example with optimizer=optax.adam(1e-4)"
            )
        if number % max(1, training.steps // _JUDGEMENTS) == 0 or number == training.steps:
            loss = held_out_loss(chosen)
            if loss < least_loss or not held_out:
                best, least_loss = chosen, loss
        advance(1)
    if number < training.steps:
        raise ValueError(
            f"distill: inputs end after {number} batches, steps={training.steps}; give a list to repeat them"
        )
    return merged(best, fixed)


def dense_chains(small: Any, dense: Any, placements: Mapping[str, Placement]) -> Any:
    """Returns dense parameters, with chains of one link in the place of the kernels for which there are small chains.

    With them a network computes what it did with arrays, and its layers with chains are the same.

    Args:
      small: parameters with chains.
      dense: parameters of the same paths, with arrays.
      placements: axes of each kernel in its parameter, by path.
    """
    small_signature, small_values = flatten_call("distill", (small,), {}, (KernelChain,))
    chains = dict(zip(small_signature.paths(), small_values, strict=True))
    signature, values = flatten_call("distill", (dense,), {})
    for position, path in enumerate(signature.paths()):
        if path in placements:
            kernel = placements[path].kernel(values[position])
            values[position] = KernelChain.tree_unflatten((chains[path].feature_group_count,), (kernel,))
    return signature.unflatten(values)[0][0]


def split_batches(
    inputs: Iterable[tuple[Any, ...]], seed: int
) -> tuple[Iterator[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Returns the batches in the order of the training, and those that judge."""
    if isinstance(inputs, Sequence):
        batches, held_out = split_held_out(inputs)
        draws = np.random.default_rng(seed)
        return (batches[int(draws.integers(len(batches)))] for _ in itertools.count()), held_out
    tuples = (batch if isinstance(batch, tuple) else (batch,) for batch in inputs)
    # An iterator that has a batch for each step, and no more, is enough.
    first = list(itertools.islice(tuples, _HELD_OUT_BATCHES))
    return itertools.chain(first, tuples), first


def _is_floating(value: Any) -> bool:
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(value))


def default_optimizer(steps: int) -> Any:
    """Returns Adam whose steps are relative to the size of each array, with a warm-up and a decay along a cosine.

    The links of a chain differ in size by orders of magnitude, so that no one absolute rate suits them all.
    """
    try:
        import optax
    except ImportError:
        raise ValueError(
            "distill: the default optimizer is made of optax's, and optax is not installed: `pip install optax`, or "
            "give optimizer="
        ) from None
    warm_up = max(1.0, _WARM_UP_SHARE * steps)

    def rate(count: Any) -> jax.Array:
        return _LEARNING_RATE * jnp.minimum(1, (count + 1) / warm_up) * (1 + jnp.cos(jnp.pi * count / steps)) / 2

    return optax.chain(
        optax.clip_by_global_norm(_LARGEST_GRADIENT),
        optax.scale_by_adam(),
        optax.scale_by_param_block_rms(),
        optax.scale_by_learning_rate(rate),
    )
