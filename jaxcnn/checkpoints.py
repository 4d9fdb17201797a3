"""Classes of jaxcnn in the state dicts of Flax, whose `flax.serialization` does not know other libraries' pytrees.

Orbax, Equinox and the functions of `jax.tree_util` need nothing: they read any pytree. Flax is not imported here; a
class is made known to it when the user's program imports it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ToState = Callable[[Any], dict[str, Any]]
FromState = Callable[[Any, dict[str, Any]], Any]

_FLAX_MODULE = "flax.serialization"


def register_state(kind: type, to_state: ToState, from_state: FromState) -> None:
    """Makes a class known to `flax.serialization`, at once if that is imported already.

    Args:
      kind: class.
      to_state: function from an object to a dict of its parts by name.
      from_state: function from an object and such a dict to the object with the parts of the dict.
    """

    def register(module: ModuleType) -> None:
        def state_of(target: Any) -> dict[str, Any]:
            return {name: module.to_state_dict(part) for name, part in to_state(target).items()}

        def restored(target: Any, state: dict[str, Any]) -> Any:
            parts = to_state(target)
            if parts.keys() != state.keys():
                raise ValueError(
                    f"flax.serialization: a {kind.__name__} of the parts {sorted(parts)} cannot be restored from a "
                    f"state of {sorted(state)}"
                )
            return from_state(target, {name: module.from_state_dict(parts[name], state[name], name) for name in parts})

        module.register_serialization_state(kind, state_of, restored, override=True)

    if _FLAX_MODULE in sys.modules:
        register(sys.modules[_FLAX_MODULE])
    else:
        _finder().registrations.append(register)


class _FlaxFinder(MetaPathFinder):
    """The finder that waits for the import of `flax.serialization`, then registers classes with it."""

    def __init__(self) -> None:
        self.registrations: list[Callable[[ModuleType], None]] = []

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Returns the module's own spec, with a loader that registers the classes after loading."""
        del path, target
        if name != _FLAX_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, self.registrations)
        return spec


class _RegisteringLoader(Loader):
    """The loader of a module, followed by registrations with it."""

    def __init__(self, loader: Loader, registrations: Sequence[Callable[[ModuleType], None]]) -> None:
        self.loader, self.registrations = loader, registrations

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Returns what the module's own loader creates."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Loads the module, then registers."""
        self.loader.exec_module(module)
        for register in self.registrations:
            register(module)


def _finder() -> _FlaxFinder:
    waiting = [finder for finder in sys.meta_path if isinstance(finder, _FlaxFinder)]
    if not waiting:
        waiting = [_FlaxFinder()]
        sys.meta_path.insert(0, waiting[0])
    return waiting[0]
