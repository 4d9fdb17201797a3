"""Errors that users read.

The code inside raises a ValueError or a TypeError that states the fact; the public function puts its name before it by
`ErrorPrefix`. What a command of the command line cannot do is a `CommandError`.
"""

from __future__ import annotations

import re
from contextlib import ContextDecorator
from types import TracebackType

_NO_ARRAY = re.compile(r"value is of type <class '([\w.]+)'> and was passed to the function at path ([\w\[\].]*\w\]?)")
"""Pattern of JAX's message about an argument that is no array: its type, and where it stands."""


class CommandError(Exception):
    """Tells the user of a command something that they can put right; its message is one line, for standard error."""


class ErrorPrefix(ContextDecorator):
    """Puts the name of a public function before the message of a ValueError or TypeError raised inside.

    Serves as a context or as a decorator. A message that begins with the name already stays as it is.

    Args:
      function: name of the public function, as the user called it.
    """

    def __init__(self, function: str) -> None:
        self.function = function

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The error itself is changed, so that its type, cause and traceback stay.
        if isinstance(error, RuntimeError) and "requires grad" in str(error):
            # PyTorch refuses to convert such a tensor.
            raise TypeError(f"{self.function}: {_HINT_FOR_TORCH}") from error
        if isinstance(error, OverflowError | MemoryError):
            raise ValueError(f"{self.function}: a number is too large: {str(error).splitlines()[0]}") from error
        if isinstance(error, AttributeError) and type(error.obj).__module__.startswith("jaxcnn."):
            # A chain has a shape and a dtype like an array, and is none.
            raise TypeError(f"{self.function}: expected an array, got a {type(error.obj).__name__}") from error
        if isinstance(error, TypeError) and not _is_text(error):
            # NumPy's errors about dtypes hold the dtypes in place of a text.
            raise TypeError(f"{self.function}: {error}") from error
        if isinstance(error, ValueError | TypeError) and _is_text(error):
            if error.args[0].startswith(f"{self.function}: "):
                return
            error.args = (f"{self.function}: {_in_users_terms(error.args[0])}",)


def _is_text(error: BaseException) -> bool:
    return len(error.args) == 1 and isinstance(error.args[0], str)


_HINT_FOR_TORCH = "a PyTorch tensor is no JAX array: give tensor.detach().numpy()"


def no_array(place: str, kind: str) -> str:
    """Returns the message about a value that stands where an array is needed.

    Args:
      place: place of the value, such as an argument's name.
      kind: whole name of its type, such as `torch.Tensor`.
    """
    hint = f"; {_HINT_FOR_TORCH}" if is_of_torch(kind) else ""
    return f"{place} must be an array, got {kind.rpartition('.')[2]}{hint}"


def is_of_torch(kind: str) -> bool:
    """Returns whether the whole name of a type is that of a PyTorch tensor."""
    return kind in ("torch.Tensor", "torch.nn.parameter.Parameter")


def _in_users_terms(message: str) -> str:
    """Returns the message of an error; one of JAX about an argument that is no array, in the words of this library."""
    match = _NO_ARRAY.search(message)
    if match is None:
        return message
    kind, place = match.groups()
    return no_array(place, kind)
