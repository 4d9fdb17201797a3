"""The library of native kernels: how it is looked for and loaded, and what is said where it cannot be used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from jaxcnn import native

FOLDER = Path(native.__file__).parent
ROOT = FOLDER.parents[1]

needs_library = pytest.mark.skipif(not native.is_available(), reason=f"needs the compiled library: {native.status()}")


@pytest.fixture
def unloaded(monkeypatch):
    """The module as it is before its first use; targets that it registers are recorded instead."""
    registered = []

    def register(name, _, platform):
        time.sleep(0.01)  # long enough for another thread to come in between
        registered.append((name, platform))

    monkeypatch.setattr(native, "_state", None)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", register)
    monkeypatch.delenv("JAXCNN_NATIVE", raising=False)
    return registered


def library_file() -> Path:
    return next(Path(folder, native.LIBRARY_NAME) for folder in native.__path__)


def test_status_agrees_with_the_rest():
    if native.is_available():
        assert native.status() == f"native kernels: yes ({native.instruction_set()})"
        assert native.instruction_set() in {"avx512", "avx2", "baseline", "neon"}
    else:
        assert native.status().startswith("native kernels: no: ")
        assert native.instruction_set() is None


def test_switched_off_for_a_process():
    program = """
import jax, jax.numpy as jnp
import jaxcnn
from jaxcnn import native
print(native.status(), native.is_available(), native.instruction_set())
print(jaxcnn.conv(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), padding="VALID").ravel()[0])
"""
    environment = os.environ | {"JAXCNN_NATIVE": "0", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == ["native kernels: no: JAXCNN_NATIVE=0 False None", "9.0"]


def test_without_a_library(unloaded, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    assert native.status() == (
        "native kernels: no: the library was not built (no C++ compiler was found at installation)"
    )
    assert not native.is_available()
    assert native.instruction_set() is None
    assert unloaded == []


def test_a_file_that_is_no_library(unloaded, monkeypatch, tmp_path):
    (tmp_path / native.LIBRARY_NAME).write_text("text")
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    assert native.status().startswith(f"native kernels: no: {native.LIBRARY_NAME} cannot be loaded: ")
    assert "\n" not in native.status()
    assert unloaded == []


@needs_library
def test_the_library_is_found_in_any_folder_of_the_package(unloaded, monkeypatch, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    shutil.copy(library_file(), tmp_path / "second")
    monkeypatch.setattr(native, "__path__", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert native.is_available()
    assert {name for name, _ in unloaded} == set(native.TARGETS)


@needs_library
def test_a_library_of_another_version_is_not_used(unloaded, monkeypatch):
    version = native.ABI_VERSION
    monkeypatch.setattr(native, "ABI_VERSION", version + 1)
    assert native.status() == (
        f"native kernels: no: {native.LIBRARY_NAME} has version {version}, this is for version {version + 1}: "
        "build it again"
    )
    assert unloaded == []


@needs_library
def test_a_library_without_one_of_the_targets_is_not_used(unloaded, monkeypatch):
    monkeypatch.setattr(native, "TARGETS", (*native.TARGETS, "jaxcnn_dance"))
    assert re.match(r"native kernels: no: .* cannot be loaded: .*jaxcnn_dance", native.status())
    assert unloaded == []


@needs_library
def test_threads_register_each_target_once(unloaded):
    barrier = threading.Barrier(8)
    available = []

    def ask():
        barrier.wait()
        available.append(native.is_available())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert available == [True] * 8
    assert sorted(unloaded) == sorted((name, "cpu") for name in native.TARGETS)


def names_of(path: Path, *options: str) -> list[list[str]]:
    """The fields of each line of `nm`, the name last."""
    if not shutil.which("nm"):
        pytest.skip("needs the program nm")
    run = subprocess.run(["nm", *options, str(path)], capture_output=True, text=True, check=True)
    return [line.split(maxsplit=2)[-2:] for line in run.stdout.splitlines()]


@needs_library
def test_the_library_exports_the_targets_and_nothing_else():
    exported = {name for _, name in names_of(library_file(), "--dynamic", "--defined-only", "--format=bsd")}
    functions = {"jaxcnn_native_abi_version", "jaxcnn_native_instruction_set"}
    assert exported == functions | set(native.TARGETS)


@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"])
def test_no_function_of_an_instruction_set_is_shared_with_another(instruction_set):
    """A linker keeps one of several equal templates: it might be the one for a processor that is not this one."""
    objects = sorted(ROOT.glob(f"build/*/CMakeFiles/kernels_{instruction_set}.dir/src/*.o"))
    if not objects:
        pytest.skip("needs the object files of `make native` or of an editable installation")
    for path in objects:
        weak = [name for kind, name in names_of(path, "--demangle", "--defined-only") if kind == "W"]
        assert [name for name in weak if f"jaxcnn::{instruction_set}::" not in name] == []
