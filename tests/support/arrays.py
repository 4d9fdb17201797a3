"""Random arrays, and what makes two arrays equal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Seed = int | np.random.Generator


def normal(shape: tuple[int, ...], seed: Seed = 0, dtype: Any = np.float32) -> np.ndarray:
    """Returns normal values; a generator in place of a seed goes on where it stands."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def jax_normal(shape: tuple[int, ...], seed: Seed = 0, dtype: Any = np.float32) -> jax.Array:
    """Returns normal values as an array of JAX, for functions that are called without `jit`."""
    return jnp.asarray(normal(shape, seed, dtype))


def integers(shape: tuple[int, ...], seed: Seed = 0, low: int = -4, high: int = 5, dtype: Any = np.float32) -> Any:
    """Returns whole numbers, whose products and sums are exact in any dtype used here."""
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def relative_error(actual: Any, expected: Any) -> float:
    """Returns the norm of the difference over the norm of what is expected, of all arrays of a tree together."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    pairs = [tuple(np.asarray(array).astype(np.complex128) for array in pair) for pair in pairs]
    difference = np.linalg.norm([np.linalg.norm(a - b) for a, b in pairs])
    return float(difference / np.linalg.norm([np.linalg.norm(b) for _, b in pairs]))


def assert_close(actual: Any, expected: Any, relative: float = 2e-6, message: str = "") -> None:
    """Largest error at most `relative` times the largest expected magnitude, or times 1; equal shapes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{message}: shape {actual.shape}, expected {expected.shape}"
    if expected.size == 0:
        return
    scale = max(float(np.abs(expected).max()), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * scale, err_msg=message)


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Checks structure, shapes, dtypes and weak types; floats by the norm of error over norm, others exactly."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if not isinstance(b, jax.Array):
            assert type(a) is type(b)
            assert a == b
            continue
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        if not jax.numpy.issubdtype(b.dtype, np.inexact):
            np.testing.assert_array_equal(a, b)
            continue
        a, b = (np.asarray(value).astype(np.complex128) for value in (a, b))
        finite = np.isfinite(b)
        np.testing.assert_array_equal(a[~finite], b[~finite])
        a, b = a[finite], b[finite]
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)
