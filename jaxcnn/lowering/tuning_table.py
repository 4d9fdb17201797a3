"""`TuningTable`: the method that was measured to be the fastest for each convolution, on one device."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform as machine
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcnn.lowering.spec import ConvSpec, spec_from_plain, spec_to_plain
from jaxcnn.processes import bytes_of_all
from jaxcnn.saving import whole_file

FORMAT_VERSION = 1
"""Version of the files that `TuningTable.save` writes."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Holds the measured times of one convolution.

    Args:
      spec: the convolution.
      method: the method that computes the convolution.
      milliseconds: pairs (method, median time of a call), one for each method that was measured.
    """

    spec: ConvSpec
    method: str
    milliseconds: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class TuningTable:
    """The fastest method for each of some convolutions, as `tune` measured them on one device.

    Within `with table:`, or after `table.install()`, `method="auto"` takes a convolution's method from the table and
    falls back to the estimate for convolutions that the table does not hold. The shapes, options and dtypes must be
    exactly those that were measured. A function that was jitted before `with table:` is compiled again inside the
    block; after the block the first program is used again.

    A table is valid on one device under one jaxlib only. Activating a table anywhere else raises a ValueError; loading,
    printing and merging a table work anywhere. In a program of several processes all activate the same table.

    Args:
      entries: one `Measurement` for each convolution.
      platform: `"cpu"`, `"gpu"` or `"tpu"`.
      device_kind: the device's name; for a CPU the model, the widest vectors and the number of processors.
      jaxlib_version: version of the jaxlib that compiled the measured programs.
      format_version: version of the file format.

    Raises:
      ValueError: two entries have the same convolution.

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
        return self._hash  # JAX hashes the table at every call of a jitted function

    def find(self, spec: ConvSpec, platform: str) -> Measurement | None:
        """Returns the measurement of a convolution, or None.

        The result is None for every convolution if exactly one of the table's platform and `platform` is `"cpu"`.
        """
        return self._by_spec.get(spec) if (self.platform == "cpu") == (platform == "cpu") else None

    def __or__(self, other: TuningTable) -> TuningTable:
        """Returns a table with the entries of both; the other's entry wins where both hold a convolution.

        Raises:
          ValueError: the tables are of two platforms, devices or jaxlibs.
        """
        if not isinstance(other, TuningTable):
            return NotImplemented
        for name in ("platform", "device_kind", "jaxlib_version"):
            value, other_value = getattr(self, name), getattr(other, name)
            if value != other_value:
                raise ValueError(f"TuningTable: tables of {name} {value!r} and {other_value!r} do not merge")
        return dataclasses.replace(self, entries=tuple({**self._by_spec, **other._by_spec}.values()))

    def __str__(self) -> str:
        rows = [
            f"{len(self.entries)} convolutions on {self.device_kind} ({self.platform}), jaxlib {self.jaxlib_version}"
        ]
        rows += [f"  {entry.spec}: {entry.method} ({times_text(entry)})" for entry in self.entries]
        return "\n".join(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a JSON file, from which `load` returns an equal table.

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
        text = json.dumps(plain, indent=1) + "\n"
        with whole_file(path) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TuningTable:
        """Returns the table that `save` wrote, of this device or of another one.

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
        except (TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"TuningTable: {os.fspath(path)} holds no table: {error}") from None

    def check_device(self) -> None:
        """Raises a ValueError unless the table is of a device of this process and of this jaxlib.

        Raises:
          ValueError: the table is of another device or another jaxlib.
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

    def check_processes(self) -> None:
        """Raises a ValueError unless every process of the program activates this table, at the same point.

        All processes compare their tables, at each activation.

        Raises:
          ValueError: another process has another table, or does not activate one in time.
        """
        if jax.process_count() == 1:
            return
        digests = bytes_of_all(self._digest(), "activates a TuningTable")
        if len(set(digests)) > 1:
            other = next(process for process, digest in enumerate(digests) if digest != digests[0])
            raise ValueError(
                f"TuningTable: processes 0 and {other} activate different tables, so that their parts of a program "
                f"might not fit together; process {jax.process_index()} has one of {len(self.entries)} convolutions; "
                "measure on one process, save the table, and load that file on all"
            )

    def _digest(self) -> bytes:
        """Returns bytes that differ for tables that choose differently, and agree between processes."""
        choices = sorted(repr((dataclasses.replace(e.spec, platform=None), e.method)) for e in self.entries)
        return hashlib.sha256("\n".join((self.platform, *choices)).encode()).digest()

    def __enter__(self) -> TuningTable:
        self.check_device()
        self.check_processes()
        activate(self)
        return self

    def __exit__(self, *details: object) -> None:
        deactivate(*details)

    def install(self) -> None:
        """Makes the table the active one of the whole process until `uninstall`, in place of any other table.

        Raises:
          ValueError: the table is of another device or another jaxlib, or other processes do not install it.
        """
        self.check_device()
        self.check_processes()
        _ACTIVE.set_global(self)

    @staticmethod
    def uninstall() -> None:
        """Removes the installed table, if there is one."""
        _ACTIVE.set_global(None)


class Recorder:
    """Records the convolutions that `choose` looks up, in place of a table.

    No two recorders are equal, so JAX traces a function again under each instead of using a cached program.
    """

    def __init__(self) -> None:
        """Starts with no convolutions."""
        self.specs: dict[ConvSpec, None] = {}  # in the order of the lookups

    def find(self, spec: ConvSpec, platform: str) -> None:
        """Records a convolution."""
        del platform
        self.specs[spec] = None


# The active table is a part of the key of JAX's caches: a program compiled under one table is not used under another.
# JAX forbids creating such a context while another thread compiles, so this module creates the context on import.
_ACTIVE = jax.make_user_context(default_value=None)
_thread_contexts = threading.local()


def active_table() -> TuningTable | Recorder | None:
    """Returns the table of the innermost `with table:` of this thread, else the installed table, else None."""
    return _ACTIVE.value


def activate(table: TuningTable | Recorder) -> None:
    """Makes a table the active one of this thread, until `deactivate`."""
    context: AbstractContextManager[Any] = _ACTIVE(table)
    context.__enter__()
    _thread_contexts.__dict__.setdefault("contexts", []).append(context)


def deactivate(*details: Any) -> None:
    """Ends the last `activate` of this thread."""
    _thread_contexts.contexts.pop().__exit__(*(details or (None, None, None)))


@contextmanager
def table_context(table: TuningTable | Recorder | None) -> Iterator[None]:
    """Returns a context in which a table, or none, is the active one of this thread."""
    with _ACTIVE(table):
        yield


def times_text(entry: Measurement) -> str:
    """Returns the measured times as text, the fastest first."""
    times = sorted(entry.milliseconds, key=lambda pair: pair[1])
    return ", ".join(f"{method} {milliseconds:.3g} ms" for method, milliseconds in times)


_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}
"""Names of vector instructions by their flags in /proc/cpuinfo, the widest of each architecture first."""


def device_kind(device: jax.Device) -> str:
    """Returns the name of a device.

    JAX names every CPU "cpu". The name of a CPU here is the model, the widest vectors and the number of processors:
    virtual machines give one model name to processors of different generations.
    """
    if device.platform != "cpu":
        return device.device_kind
    return f"{_processor()}, {os.cpu_count()} processors"


@functools.cache
def _processor() -> str:
    """Returns the model of the processor, as the system names it, and its widest vectors."""
    try:
        return processor_name(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        return processor_name("")


def processor_name(cpuinfo: str) -> str:
    """Returns the model and the widest vectors of a processor that Linux describes by a text (`/proc/cpuinfo`)."""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in cpuinfo.splitlines())}
    model = fields.get("model name") or machine.processor() or machine.machine()
    flags = fields.get("flags", fields.get("Features", "")).split()
    widest = next((name for flag, name in _VECTORS.items() if flag in flags), None)
    return f"{model} with {widest}" if widest else model


def _measurement(plain: Any) -> Measurement:
    """Returns the entry that `save` wrote; raises a ValueError for a wrong field."""
    method, milliseconds = plain["method"], plain["milliseconds"]
    if not isinstance(method, str):
        raise ValueError(f"method must be a string, got {method!r}")
    for name, value in milliseconds.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the milliseconds of {name} must be a number, got {value!r}")
    return Measurement(spec_from_plain(plain["spec"]), method, tuple((k, float(v)) for k, v in milliseconds.items()))
