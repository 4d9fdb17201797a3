"""The one relative error of host-side code. `KernelChain.relative_error` is the same for traced arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np


def relative_error(actual: Any, expected: Any) -> float:
    """Returns norm(actual - expected) / norm(expected) over all arrays of two pytrees, computed in float64.

    Places where `expected` is NaN or infinite do not count. Where `expected` is zero, the error is 0 if `actual` is
    zero too, else infinity; it is also infinity where `actual` is NaN or infinite and `expected` is not.
    """
    differences, norms = [0.0], [0.0]
    for result, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        wide, wide_reference = _wide(result), _wide(reference)
        finite = np.isfinite(wide_reference)
        differences.append(float(np.linalg.norm(wide[finite] - wide_reference[finite])))
        norms.append(float(np.linalg.norm(wide_reference[finite])))
    difference, norm = math.hypot(*differences), math.hypot(*norms)
    if not math.isfinite(difference):
        return math.inf
    return difference / norm if norm else (math.inf if difference else 0.0)


def _wide(array: Any) -> np.ndarray:
    host = np.asarray(array)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64, copy=False)
