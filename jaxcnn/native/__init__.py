"""Compiled CPU kernels: loads their library, if there is one, and registers its functions as targets of `jax.ffi`.

The library is built at installation where a C++ compiler is present. Without it, or with `JAXCNN_NATIVE=0` in the
environment, every function computes the same values from XLA's operations.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

import jax

#: Names of the targets of `jax.ffi`, which are also the names of the library's symbols.
TARGETS = ("jaxcnn_slide", "jaxcnn_kernel_gradient")

LIBRARY_NAME = "libjaxcnn_kernels.so"

#: Version of the targets' attributes and operands. A library of another version is not used.
ABI_VERSION = 3

_SWITCHED_OFF = "JAXCNN_NATIVE=0"
_NOT_BUILT = "the library was not built (no C++ compiler was found at installation)"

_lock = threading.Lock()
_state: _State | None = None


class _State:
    """Holds the loaded library and its instruction set, or the reason why there is none."""

    def __init__(self, library: ctypes.CDLL | None = None, instruction_set: str = "", reason: str = "") -> None:
        self.library = library
        self.instruction_set = instruction_set
        self.reason = reason


def is_available() -> bool:
    """Returns whether the kernels can be called in this process, and registers their targets at the first call."""
    return _load().library is not None


def instruction_set() -> str | None:
    """Returns the instruction set that the kernels use on this processor, such as "avx512"; None without a library."""
    return _load().instruction_set or None


def status() -> str:
    """Returns one line that says whether the kernels are used, and for which instruction set or why not."""
    state = _load()
    return f"native kernels: yes ({state.instruction_set})" if state.library else f"native kernels: no: {state.reason}"


def _load() -> _State:
    global _state
    if _state is None:
        with _lock:
            if _state is None:
                _state = _open()
    return _state


def _open() -> _State:
    """Returns the library after registering its targets, or why it cannot be used."""
    if os.environ.get("JAXCNN_NATIVE") == "0":
        return _State(reason=_SWITCHED_OFF)
    paths = [Path(folder, LIBRARY_NAME) for folder in __path__]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return _State(reason=_NOT_BUILT)
    try:
        library = ctypes.CDLL(str(path))
        version = library.jaxcnn_native_abi_version()
        if version != ABI_VERSION:
            reason = f"{path.name} has version {version}, this is for version {ABI_VERSION}: build it again"
            return _State(reason=reason)
        library.jaxcnn_native_instruction_set.restype = ctypes.c_char_p
        instruction_set = library.jaxcnn_native_instruction_set().decode()
        handlers = {name: getattr(library, name) for name in TARGETS}
    except (OSError, AttributeError) as error:  # built for another system, or of another version
        return _State(reason=f"{path.name} cannot be loaded: {error}")
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    return _State(library, instruction_set)
