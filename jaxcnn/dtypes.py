"""The dtypes in which products and sums are added up."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def integer_at_least_int32(dtype: np.dtype) -> np.dtype:
    """int32 for narrower integers and booleans, whose sums would wrap; the dtype itself for all others."""
    narrow = dtype == np.bool_ or (jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4)
    return np.dtype(np.int32) if narrow else dtype


def floating_at_least_float32(dtype: np.dtype) -> np.dtype:
    """float32 for 16-bit floats, the dtype itself for all others."""
    return np.promote_types(dtype, np.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """float32 for 16-bit floats, int32 for narrower integers and booleans, the dtype itself for all others."""
    return floating_at_least_float32(integer_at_least_int32(dtype))
