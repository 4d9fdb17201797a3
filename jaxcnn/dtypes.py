"""Dtypes and precision: how operands promote, in which dtype sums are added up, which dtype a result has."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike


def integer_at_least_int32(dtype: np.dtype) -> np.dtype:
    """Returns int32 for narrower integers and booleans, whose sums would wrap, and the dtype itself for all others."""
    narrow = dtype == np.bool_ or (jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4)
    return np.dtype(np.int32) if narrow else dtype


def floating_at_least_float32(dtype: np.dtype) -> np.dtype:
    """Returns float32 for 16-bit floats, and the dtype itself for all others."""
    return np.promote_types(dtype, np.float32) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def accumulation_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype in which a sum is added up.

    It is float32 for 16-bit floats, int32 for narrower integers and booleans, and the dtype itself for all others.
    """
    return floating_at_least_float32(integer_at_least_int32(dtype))


def average_dtype(dtype: np.dtype) -> np.dtype:
    """Returns the dtype of an average: the dtype itself for floats, float32 or float64 for integers and booleans."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return dtype
    return np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)


def check_arrays(**operands: Any) -> None:
    """Refuses a list, a tuple or None in the place of an array, as JAX's functions do."""
    for name, operand in operands.items():
        if not (hasattr(operand, "shape") and hasattr(operand, "dtype")):
            raise TypeError(f"{name} must be an array, got {type(operand).__name__}")


def common_dtype(x: jax.Array, kernel: Any) -> np.dtype:
    """Returns the dtype to which x and the kernel promote under the user's promotion setting."""
    try:
        return jnp.promote_types(x.dtype, kernel.dtype)
    except ValueError as error:
        raise TypeError(
            f"x is {x.dtype} and kernel is {kernel.dtype}, which do not promote under "
            f"jax_numpy_dtype_promotion={_setting('jax_numpy_dtype_promotion')!r}; cast one of them"
        ) from error


def result_dtype(dtype: np.dtype, preferred_element_type: DTypeLike | None) -> np.dtype:
    """Returns the dtype of a convolution: the preferred one, or the operands', at least int32 for integers."""
    if preferred_element_type is None:
        return integer_at_least_int32(dtype)
    preferred = jax.dtypes.canonicalize_dtype(preferred_element_type)
    for kind in (jnp.inexact, jnp.complexfloating):
        if jnp.issubdtype(dtype, kind) and not jnp.issubdtype(preferred, kind):
            raise TypeError(f"preferred_element_type {preferred} cannot hold results of {dtype} operands")
    return preferred


def user_precision(precision: Any) -> Any:
    """Returns the precision asked for, or the one that the user set for all matrix products.

    It must be called while the user's context is active, which is no longer so when a primitive is lowered.

    Raises:
      ValueError: a precision that lax does not know.
    """
    if precision is None:
        return _setting("jax_default_matmul_precision")
    _check_precision(precision)
    return precision


@lru_cache
def _check_precision(precision: Any) -> None:
    """Lets lax refuse a precision, since a compiled kernel would not read it."""
    pixel = jax.ShapeDtypeStruct((1, 1, 1), np.float32)
    jax.eval_shape(lambda x: lax.conv(x, x, (1,), "SAME", precision=precision), pixel)


def _setting(name: str) -> Any:
    """Returns the value of a setting of JAX in the active context."""
    return getattr(jax.config, name)
