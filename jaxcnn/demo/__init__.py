"""Work of `jaxcnn demo` and `jaxcnn layer`: real networks, accelerated and substituted.

The packages of the `demo` extra (rich, matplotlib,
optax, h5py, scikit-image, mlxtend and others) are imported by the files that need them, never by `import jaxcnn`.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from jaxcnn.errors import CommandError

__all__ = ["DemoError", "packaged_file", "require_modules"]


class DemoError(CommandError):
    """Error that the user of the demo can put right."""


def require_modules(modules: Sequence[str]) -> None:
    """Raises `DemoError`, with the command that installs them, if any of these modules is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f'{", ".join(missing)} not installed; run: pip install "jaxcnn[demo]"')


def packaged_file(package: str, name: str) -> Path | None:
    """Returns a file in the folder of an installed package, without an import; None if there is no such file."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None
