"""Kernels by groups, the form that schemes take: float64 on the host, HWIO, one block for each group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.chain import KernelChain
from jaxcnn.errors import ErrorPrefix
from jaxcnn.geometry import whole_number
from jaxcnn.layout import Layout, parse_layout


def grouped_kernel(operation: str, kernel: Any, feature_group_count: int, layout: Layout) -> np.ndarray:
    """Returns the kernel of each group, (G, *window, I, O) in float64 or complex128, of a kernel in any layout."""
    if isinstance(kernel, KernelChain):
        raise TypeError(f"{operation}: kernel is a KernelChain already; its dense kernel is chain.dense()")
    try:
        with ErrorPrefix(operation):
            array = np.asarray(kernel)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            f"{operation}: kernel is traced by jit, vmap or grad, and the fit needs its values: call {operation} "
            "outside, and pass the chain in"
        ) from error
    if array.dtype == object or array.dtype.kind in "US":
        raise TypeError(f"{operation}: kernel must be an array of floats, got {type(kernel).__name__}")
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
    with ErrorPrefix(operation):
        wide = parse_layout(layout, array.ndim - 2).kernel_to_canonical(wide)
        groups = whole_number("feature_group_count", feature_group_count)
    if wide.shape[-1] % groups:
        raise ValueError(
            f"{operation}: the kernel's {wide.shape[-1]} output channels do not divide into "
            f"feature_group_count={groups} groups"
        )
    if wide.size == 0:
        raise ValueError(f"{operation}: kernel is empty, shape {array.shape}")
    blocks = wide.reshape(*wide.shape[:-1], groups, wide.shape[-1] // groups)
    return np.moveaxis(blocks, -2, 0)


def merged_kernel(blocks: np.ndarray) -> np.ndarray:
    """Returns the kernel `(*window, I, G * O)` whose groups are the blocks (G, *window, I, O)."""
    merged = np.moveaxis(blocks, 0, -2)
    return merged.reshape(*merged.shape[:-2], -1)


def merged_link(blocks: np.ndarray, dtype: Any) -> Any:
    """Returns the `merged_kernel` of blocks as an array of JAX's, of a dtype."""
    # NumPy does the cast: `jnp.asarray` compiles a program for each shape, and warns where float64 is switched off.
    return jax.device_put(merged_kernel(blocks).astype(jax.dtypes.canonicalize_dtype(dtype)))


def chain_of_blocks(links: Iterable[np.ndarray], dtype: Any) -> KernelChain:
    """Returns the chain of a dtype, from links by groups: each is (G, *window, I, O), with a G that may differ."""
    links = list(links)
    return KernelChain(tuple(merged_link(link, dtype) for link in links), tuple(map(len, links)))


def dense_blocks(chain: KernelChain) -> np.ndarray:
    """Returns a chain's dense kernel by groups, (G, *window, I, O) in float64 or complex128, without compiling."""
    groups = chain.feature_group_count
    in_features = chain.shape[-2]
    dense = np.broadcast_to(np.eye(in_features), (groups, *[1] * (chain.ndim - 2), in_features, in_features))
    for kernel, count in zip(chain.kernels, chain.feature_group_counts, strict=True):
        link = np.asarray(kernel)
        link = link.astype(np.complex128 if np.iscomplexobj(link) else np.float64)
        *size, width, features = link.shape
        finer = count // groups
        # (*size, G, finer, width, features of each finer group), each offset against (G, *window, finer, I, width)
        parts = np.moveaxis(link.reshape(*size, width, groups, finer, features // count), len(size), -2)
        parts = parts.reshape(*size, groups, *[1] * len(size), *parts.shape[-3:])
        image = np.swapaxes(dense.reshape(*dense.shape[:-1], finer, width), -3, -2)
        window = [a + b - 1 for a, b in zip(dense.shape[1:-2], size, strict=True)]
        total = np.zeros((groups, *window, in_features, features // groups), np.result_type(dense, link))
        for offset in np.ndindex(*size):
            product = np.swapaxes(image @ parts[offset], -3, -2)
            place = tuple(slice(start, start + extent) for start, extent in zip(offset, dense.shape[1:-2], strict=True))
            total[(slice(None), *place)] += product.reshape(*product.shape[:-2], -1)
        dense = total
    return dense
