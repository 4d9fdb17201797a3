"""A given kernel as what the schemes work on: float64 on the host, HWIO, one block for each group."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layout import Layout, parse_layout


def grouped_kernel(operation: str, kernel: Any, feature_group_count: int, layout: Layout) -> np.ndarray:
    """(G, *window, I, O) of each group's kernel, float64 or complex128, from a kernel in any layout."""
    array = np.asarray(kernel)
    if array.ndim < 3:
        raise ValueError(
            f"{operation}: kernel must have at least one window axis, an input and an output feature axis, "
            f"got shape {array.shape}"
        )
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(f"{operation}: kernel must be of floats, got dtype {array.dtype}")
    wide = array.astype(np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64)
    if not np.isfinite(wide).all():
        raise ValueError(f"{operation}: kernel has {int((~np.isfinite(wide)).sum())} values that are NaN or infinite")
    wide = parse_layout(operation, layout, array.ndim - 2).kernel_to_canonical(wide)
    groups = feature_group_count
    if groups < 1 or wide.shape[-1] % groups:
        raise ValueError(
            f"{operation}: the kernel's {wide.shape[-1]} output channels do not divide into "
            f"feature_group_count={groups} groups"
        )
    if wide.size == 0:
        raise ValueError(f"{operation}: kernel is empty, shape {array.shape}")
    blocks = wide.reshape(*wide.shape[:-1], groups, wide.shape[-1] // groups)
    return np.moveaxis(blocks, -2, 0)


def merged_link(blocks: np.ndarray, dtype: Any) -> Any:
    """(G, *window, I, O) as a link `(*window, I, G * O)` of that dtype."""
    merged = np.moveaxis(blocks, 0, -2)
    # A NumPy kernel of float64 becomes what JAX makes of it under the user's setting, without a warning.
    return jnp.asarray(merged.reshape(*merged.shape[:-2], -1), jax.dtypes.canonicalize_dtype(dtype))
