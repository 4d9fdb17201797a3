"""Facts about this process: its processors, PyTorch, jaxcnn's native library and public names."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import jaxcnn


def require(*names: str) -> None:
    """Raises NotImplementedError, which skips a benchmark, on commits of jaxcnn that lack one of the public names."""
    for name in names:
        if not hasattr(jaxcnn, name):
            raise NotImplementedError(f"this commit has no jaxcnn.{name}")


def processors() -> int:
    """Returns the number of processors that this process may use, which is the number of threads of each library."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_to_processors(count: int) -> None:
    """Restricts this process to its first `count` processors, and libraries that load later to as many threads."""
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
    """Returns the module of PyTorch, or None if PyTorch is not installed. The first call imports the module."""
    try:
        import torch
    except ImportError:
        return None
    return torch
