"""Errors that users read.

The code inside raises a ValueError or a TypeError that states the fact; the public function puts its name before it by
`ErrorPrefix`. What a command of the command line cannot do is a `CommandError`.
"""

from __future__ import annotations

from types import TracebackType


class CommandError(Exception):
    """Tells the user of a command something that they can put right; its message is one line, for standard error."""


class ErrorPrefix:
    """Puts the name of a public function before the message of a ValueError or TypeError raised inside.

    Args:
      function: name of the public function, as the user called it.
    """

    __slots__ = ("function",)

    def __init__(self, function: str) -> None:
        self.function = function

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The error itself is changed, so that its type, cause and traceback stay.
        if isinstance(error, ValueError | TypeError) and len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (f"{self.function}: {error.args[0]}",)
