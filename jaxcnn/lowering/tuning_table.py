"""`TuningTable`: which method was measured to be the fastest for each convolution, on one device."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform as machine
import threading
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcnn.lowering.spec import ConvSpec, spec_from_plain, spec_to_plain

FORMAT_VERSION = 1
"""Version of the files that `TuningTable.save` writes."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The times of one convolution.

    Args:
      spec: the convolution.
      method: the method to compute it with.
      milliseconds: (method, median time of a call) for each method that was measured.
    """

    spec: ConvSpec
    method: str
    milliseconds: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class TuningTable:
    """The fastest method for each of some convolutions, as `tune` measured it on one device.

    Within `with table:`, or after `table.install()`, `method="auto"` takes a convolution's method from the table and
    falls back to the estimate for those that it does not hold: a convolution is found only with exactly the shapes,
    options and dtypes that were measured. A function that was jitted before is compiled again inside `with table:`, and
    is what it was after it.

    A table says something of one device under one jaxlib only. Activating it anywhere else is a ValueError; loading,
    printing and merging it are not.

    Args:
      entries: one `Measurement` for each convolution.
      platform: `"cpu"`, `"gpu"` or `"tpu"`.
      device_kind: the device's name; of a CPU with its number of processors.
      jaxlib_version: the jaxlib that compiled what was measured.
      format_version: version of the file format.

    Raises:
      ValueError: the same convolution stands in two entries.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
      >>> table = jaxcnn.tune(jaxcnn.conv, x, kernel, seconds=0.1)
      >>> with table:
      ...     y = jaxcnn.conv(x, kernel)
      >>> table.install()  # for the whole process
      >>> table.uninstall()
    """

    entries: tuple[Measurement, ...]
    platform: str
    device_kind: str
    jaxlib_version: str
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if len(self._by_spec) < len(self.entries):
            raise ValueError("TuningTable: the same convolution stands in two entries")

    @functools.cached_property
    def _by_spec(self) -> dict[ConvSpec, Measurement]:
        return {entry.spec: entry for entry in self.entries}

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.entries, self.platform, self.device_kind, self.jaxlib_version, self.format_version))

    def __hash__(self) -> int:
        return self._hash  # asked for at every call of a jitted function

    def find(self, spec: ConvSpec, platform: str) -> Measurement | None:
        """The measurement of a convolution, or None; only a CPU's tables speak of `platform` `"cpu"`."""
        return self._by_spec.get(spec) if (self.platform == "cpu") == (platform == "cpu") else None

    def __or__(self, other: TuningTable) -> TuningTable:
        """Both tables' entries; where both hold a convolution, the other's."""
        if not isinstance(other, TuningTable):
            return NotImplemented
        for name in ("platform", "device_kind", "jaxlib_version"):
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                raise ValueError(f"TuningTable: tables of {name} {mine!r} and {its!r} do not merge")
        return dataclasses.replace(self, entries=tuple({**self._by_spec, **other._by_spec}.values()))

    def __str__(self) -> str:
        rows = [
            f"{len(self.entries)} convolutions on {self.device_kind} ({self.platform}), jaxlib {self.jaxlib_version}"
        ]
        rows += [f"  {entry.spec}: {entry.method} ({times_text(entry)})" for entry in self.entries]
        return "\n".join(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a file of JSON, which `load` reads back exactly.

        Raises:
          ValueError: a convolution has a precision or a shape that has no plain form.
        """
        plain = {
            "format_version": self.format_version,
            "platform": self.platform,
            "device_kind": self.device_kind,
            "jaxlib_version": self.jaxlib_version,
            "entries": [
                {"spec": spec_to_plain(e.spec), "method": e.method, "milliseconds": dict(e.milliseconds)}
                for e in self.entries
            ],
        }
        Path(path).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TuningTable:
        """The table that `save` wrote, whatever device it is of.

        Raises:
          ValueError: the file does not hold a table, or one of another format version.
        """
        content = Path(path).read_bytes()
        try:
            plain = json.loads(content)
            version = plain["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"its format_version is {version!r}, and this jaxcnn reads {FORMAT_VERSION}")
            names = ("platform", "device_kind", "jaxlib_version")
            if wrong := [name for name in names if not isinstance(plain[name], str)]:
                raise ValueError(f"{wrong[0]} must be a string, got {plain[wrong[0]]!r}")
            return cls(tuple(map(_measurement, plain["entries"])), *(plain[name] for name in names))
        except KeyError as error:
            raise ValueError(f"TuningTable: {os.fspath(path)} holds no table: {error} is missing") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"TuningTable: {os.fspath(path)} holds no table: {error}") from None

    def check_device(self) -> None:
        """Refuses the table unless it is of a device of this process and of this jaxlib.

        Raises:
          ValueError: it is of another device or another jaxlib.
        """
        try:
            kind = device_kind(jax.devices(self.platform)[0])
        except RuntimeError:
            kind = None
        if kind != self.device_kind:
            here = f"its {self.platform} is {kind!r}" if kind else f"it has no {self.platform}"
            raise ValueError(f"TuningTable: the table is of {self.device_kind!r}, not of this process: {here}")
        if self.jaxlib_version != (version := metadata.version("jaxlib")):
            raise ValueError(f"TuningTable: the table is of jaxlib {self.jaxlib_version}, this process has {version}")

    def __enter__(self) -> TuningTable:
        self.check_device()
        activate(self)
        return self

    def __exit__(self, *details: object) -> None:
        deactivate(*details)

    def install(self) -> None:
        """Makes the table the active one of the whole process, in the place of any other, until `uninstall`.

        Raises:
          ValueError: it is of another device or another jaxlib.
        """
        self.check_device()
        _ACTIVE.set_global(self)

    @staticmethod
    def uninstall() -> None:
        """Ends what `install` did, whichever table was installed."""
        _ACTIVE.set_global(None)


class Recorder:
    """Stands in a table's place and takes down what is asked of it; no two are equal, so nothing cached is taken."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self.specs: dict[ConvSpec, None] = {}  # in the order in which they were asked for

    def find(self, spec: ConvSpec, platform: str) -> None:
        """Takes down a convolution."""
        del platform
        self.specs[spec] = None


# A part of the key of JAX's caches: what is compiled under one table is not taken under another. Made on import, for
# JAX forbids making it while another thread compiles.
_ACTIVE = jax.make_user_context(default_value=None)
_entered = threading.local()


def active() -> TuningTable | Recorder | None:
    """What `choose` has to ask first: the innermost `with table:` of this thread, or else the table installed."""
    return _ACTIVE.value


def activate(table: TuningTable | Recorder) -> None:
    """Makes a table the active one of this thread, until `deactivate`."""
    context: AbstractContextManager[Any] = _ACTIVE(table)
    context.__enter__()
    _entered.__dict__.setdefault("contexts", []).append(context)


def deactivate(*details: Any) -> None:
    """Ends the last `activate` of this thread."""
    _entered.contexts.pop().__exit__(*(details or (None, None, None)))


def times_text(entry: Measurement) -> str:
    """The measured times, the fastest first."""
    times = sorted(entry.milliseconds, key=lambda pair: pair[1])
    return ", ".join(f"{method} {milliseconds:.3g} ms" for method, milliseconds in times)


def device_kind(device: jax.Device) -> str:
    """A device's name; JAX calls every CPU "cpu", so a CPU's is its model and the number of its processors."""
    if device.platform != "cpu":
        return device.device_kind
    return f"{_processor()}, {os.cpu_count()} processors"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return machine.processor() or machine.machine()


def _measurement(plain: Any) -> Measurement:
    method, milliseconds = plain["method"], plain["milliseconds"]
    if not isinstance(method, str):
        raise ValueError(f"method must be a string, got {method!r}")
    for name, value in milliseconds.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the milliseconds of {name} must be a number, got {value!r}")
    return Measurement(spec_from_plain(plain["spec"]), method, tuple((k, float(v)) for k, v in milliseconds.items()))
