"""Arrays for the tests of transformations, and what must be equal between a function and its transform."""

from __future__ import annotations

import jax
import numpy as np


def normal(shape, seed=0, dtype=np.float32):
    return jax.numpy.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def assert_same(actual, expected, tolerance=1e-5):
    """Same structure, shapes, dtypes and weak types; floats to the norm of the error over the norm, others exactly."""
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
