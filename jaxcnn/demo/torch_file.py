"""Tensors read from a file in torch's old format, without torch, and without a call that the file asks for.

Such a file (torch.save before version 1.6, or without its zip format) is five pickles and then the numbers: a magic
number, a version, facts of the machine, a dictionary whose tensors name the storage that they look into, the names of
the storages, and for each of these its length and its numbers.  A pickle may call any function that it can name, so
this one can name four: whatever else it asks for is refused before it is imported.
"""

import collections
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.demo import DemoError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C

#: torch's classes of storage to the type of their numbers.
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class _Tensor(NamedTuple):
    """Holds the place of a tensor in a storage; offset and strides count numbers."""

    storage: tuple[str, str]  # its name, and the type of its numbers
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Reads pickles of tensors alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time: a pickle may set attributes of what it is given, and these go with the file.
            return lambda storage, offset, shape, strides, *rest: _Tensor(storage, offset, shape, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        _, dtype, name, *_ = pid
        return str(name), str(dtype)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns every tensor of a file by name.

    Raises:
      DemoError: if the file is not of this format, is cut short, or asks for anything but tensors.
    """
    try:
        return _read(io.BytesIO(path.read_bytes()))
    except Exception as error:  # a broken pickle raises whatever it met
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DemoError(f"{path} is not a file of weights that can be read ({reason})") from None


def _read(file: io.BytesIO) -> dict[str, np.ndarray]:
    """Returns every tensor of a file that holds the bytes."""
    if _Unpickler(file).load() != MAGIC_NUMBER:
        raise ValueError("it does not begin with torch's magic number")
    _version, _machine, tensors, names = (_Unpickler(file).load() for _ in range(4))
    if not all(isinstance(tensor, _Tensor) for tensor in tensors.values()):
        raise ValueError("it holds other things than tensors")
    dtypes = {name: np.dtype(dtype) for name, dtype in (tensor.storage for tensor in tensors.values())}
    numbers = {}
    for name in names:
        size = int.from_bytes(file.read(8), "little") * dtypes[name].itemsize
        numbers[name] = file.read(size)
        if len(numbers[name]) != size:
            raise ValueError("it is cut short")
    return {name: _array(tensor, numbers) for name, tensor in tensors.items()}


def _array(tensor: _Tensor, numbers: dict[str, bytes]) -> np.ndarray:
    """Returns a tensor as an array; NumPy refuses a tensor that reaches outside of its storage."""
    name, dtype = tensor.storage
    size = np.dtype(dtype).itemsize
    strides = [stride * size for stride in tensor.strides]
    return np.array(np.ndarray(tensor.shape, dtype, numbers[name], tensor.offset * size, strides))
