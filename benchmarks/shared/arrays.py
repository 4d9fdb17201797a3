"""Random arrays from fixed seeds, and the distance between two results."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def array(*shape: int, seed: int = 0) -> jax.Array:
    """Returns an array of normal random numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def kernel(*shape: int, seed: int = 1) -> jax.Array:
    """Returns a random kernel (*window, I, O) that keeps the size of the values that it is convolved with."""
    return array(*shape, seed=seed) / np.sqrt(np.prod(shape[:-1])).astype(np.float32)


def decaying_kernel(*shape: int, seed: int = 1) -> jax.Array:
    """Returns a kernel whose singular values fall off as 1/r, as in trained kernels, if unfolded as by `separable`."""
    height, width, inputs, outputs = shape
    matrix = np.asarray(kernel(*shape, seed=seed), np.float64).transpose(0, 2, 1, 3).reshape(height * inputs, -1)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    matrix = (left * values / np.arange(1, values.size + 1)) @ right
    return jnp.asarray(matrix.reshape(height, inputs, width, outputs).transpose(0, 2, 1, 3), jnp.float32)


def relative_error(result: Any, reference: Any) -> float:
    """Returns norm(result - reference) / norm(reference) over all arrays of two results."""
    pairs = list(zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True))
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    error = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in wide))
    norm = np.sqrt(sum(np.sum(b**2) for _, b in wide))
    return float(error / norm) if norm else float(error)
