"""Questions about this process: its processors, PyTorch, jaxcnn's native library and public names."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import jaxcnn


def require(*names: str) -> None:
    """Skips a benchmark on commits of the library that lack one of the public names."""
    for name in names:
        if not hasattr(jaxcnn, name):
            raise NotImplementedError(f"this commit has no jaxcnn.{name}")


def processors() -> int:
    """Returns the number of processors that this process may use, which is how many threads each library takes."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to_processors(count: int) -> None:
    """Keeps this process to its first `count` processors, and libraries that are loaded later to as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def native_available() -> bool:
    """Returns whether this process has the library's native kernels; older commits have none."""
    try:
        return bool(importlib.import_module("jaxcnn.native").is_available())
    except ImportError:
        return False


@functools.cache
def torch_or_none() -> Any:
    """Returns PyTorch, or None where it is not installed; imports it when first asked."""
    try:
        import torch
    except ImportError:
        return None
    return torch
