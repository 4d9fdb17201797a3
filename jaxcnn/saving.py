"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a file to write to, which takes its place at the path only when all is written.

    If anything fails before that, the path holds what it held, or nothing. A device or a pipe is written to directly.

    Args:
      path: path of the file.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as file:
            yield file
        return
    part = f"{target}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        file = open(part, "wb")  # noqa: SIM115 (its errors are told apart from those of what is written)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        with file:
            yield file
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
