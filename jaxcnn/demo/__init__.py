"""The main job behind `jaxcnn demo` and `jaxcnn layer`: real networks, accelerated and substituted.

Everything here calls only the public names of `jaxcnn`.  The packages of the `demo` extra (rich, matplotlib,
optax, h5py, scikit-image, mlxtend and others) are imported by the files that need them, never by `import jaxcnn`.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from jaxcnn.errors import CommandError

__all__ = ["DemoError", "packaged_file", "require_modules"]


class DemoError(CommandError):
    """Tells the user of the demo something that they can put right."""


def require_modules(modules: Sequence[str]) -> None:
    """Raise `DemoError`, with the command that installs them, if any of these modules cannot be found."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f'{", ".join(missing)} not installed; run: pip install "jaxcnn[demo]"')


def packaged_file(package: str, name: str) -> Path | None:
    """A file in the folder of an installed package, which is not imported; None if either is not there."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if path.is_file():
            return path
    return None
