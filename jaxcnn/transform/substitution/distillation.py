"""Training of a substitution's parameters to the dense network's own results."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.chain import KernelChain
from jaxcnn.transform.acceleration.accelerate import accelerate
from jaxcnn.transform.jaxpr.signature import flatten_call, short_name

Loss = Callable[[Any, Any], jax.Array]
"""Function of the small and of the dense network's results to a number."""

_LEARNING_RATE = 1e-3
"""First learning rate of the default optimizer, which falls to zero along a cosine."""


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
      optimizer: optax transformation, or an object with its `init` and `update`; None for Adam.
      loss: function of the small and of the dense network's results to the number that is made small.
      is_trained: function from the name of a parameter, and whether it is a chain, to whether it is trained.
    """

    steps: int
    optimizer: Any
    loss: Loss
    is_trained: Callable[[str, bool], bool]


def train(
    apply: Callable[..., Any],
    params: Any,
    dense: Callable[..., Any],
    batches: Iterable[tuple[Any, ...]],
    training: Training,
    advance: Callable[[float], None],
) -> Any:
    """Returns the parameters after training.

    Args:
      apply: small network, a function of the parameters and a batch.
      params: parameters with chains, from which training starts.
      dense: dense network, a function of a batch.
      batches: inputs, one tuple of arguments for each step; a list is used again from its start when it ends.
      training: settings of the training.
      advance: function that is told of each step.

    Raises:
      ValueError: no parameter is trained; there are no inputs, or fewer than steps; the loss is not finite.
    """
    signature, values = flatten_call("distill", (params,), {}, (KernelChain,))
    trained = [
        training.is_trained(short_name(path), isinstance(value, KernelChain)) and _is_floating(value)
        for path, value in zip(signature.paths(), values, strict=True)
    ]
    if not any(trained):
        raise ValueError("distill: no parameter is trained: the substitution has no chain, or `train` names none")
    optimizer = training.optimizer or _adam(training.steps)
    student = accelerate(apply)

    def loss_of(chosen: list[Any], fixed: list[Any], batch: tuple[Any, ...], targets: Any) -> jax.Array:
        merged = iter(chosen), iter(fixed)
        values = [next(merged[0] if is_trained else merged[1]) for is_trained in trained]
        (small_params,), _ = signature.unflatten(values)
        return training.loss(student(small_params, *batch), targets)

    @jax.jit
    def step(chosen: list[Any], state: Any, fixed: list[Any], batch: tuple[Any, ...], targets: Any) -> Any:
        value, gradients = jax.value_and_grad(loss_of)(chosen, fixed, batch, targets)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it
            updates, state = optimizer.update(gradients, state, chosen)
        moved = jax.tree.map(lambda number, update: (number + update).astype(number.dtype), chosen, updates)
        return moved, state, value

    chosen = [jax.tree.map(jnp.asarray, value) for value, is_trained in zip(values, trained, strict=True) if is_trained]
    fixed = [value for value, is_trained in zip(values, trained, strict=True) if not is_trained]
    state = optimizer.init(chosen)
    taught = itertools.islice(_with_targets(batches, jax.jit(accelerate(dense))), training.steps)
    number = 0
    for number, (batch, targets) in enumerate(taught, start=1):
        chosen, state, value = step(chosen, state, fixed, batch, targets)
        if not math.isfinite(float(value)):
            raise ValueError(
                f"distill: the loss is {float(value)} at step {number} of {training.steps}; train at a lower rate, for "
                "example with optimizer=optax.adam(1e-4)"
            )
        advance(1)
    if number < training.steps:
        raise ValueError(
            f"distill: inputs end after {number} batches, steps={training.steps}; give a list to repeat them"
        )
    merged = iter(chosen), iter(fixed)
    return signature.unflatten([next(merged[0] if is_trained else merged[1]) for is_trained in trained])[0][0]


def _with_targets(batches: Iterable[tuple[Any, ...]], dense: Callable[..., Any]) -> Iterator[tuple[Any, Any]]:
    """Yields batches with the dense network's results, which are computed once for each batch of a list."""
    if not isinstance(batches, Sequence):
        for item in batches:
            batch = item if isinstance(item, tuple) else (item,)
            yield batch, dense(*batch)
        return
    results = [dense(*batch) for batch in batches]
    yield from itertools.cycle(zip(batches, results, strict=True))


def _is_floating(value: Any) -> bool:
    return all(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in jax.tree.leaves(value))


@functools.cache
def _adam(steps: int) -> Any:
    try:
        import optax
    except ImportError:
        raise ValueError(
            "distill: the default optimizer is optax's Adam, and optax is not installed: `pip install optax`, or give "
            "optimizer="
        ) from None
    return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, steps))
