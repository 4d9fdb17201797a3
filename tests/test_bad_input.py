"""Bad input to every public function: an error in the user's terms or a correct result, and never half a file."""

from __future__ import annotations

import inspect
import io
import json
import math
import pickle
import signal
import threading
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxcnn
from jaxcnn.cli import main
from jaxcnn.lowering.choice import METHODS
from jaxcnn.saving import whole_file
from support import cases
from support.substitutions import IMAGE, SMALL, two_layers

MAX_SECONDS = 60
"""Longest time of one call; what hangs takes longer by far."""


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


SCALARS = (
    *(None, True, 0, -1, 1, 2, 7, 10**6, 10**12, 2**70, -(2**70), 1.5, math.nan, math.inf, 1j),
    *("", "SAME", "nonsense", "NCHW", "\x00", b"x", "float16", "complex64", "O"),
    *((), [], (0,), (-1, -1), (2,), (1, 2, 3), (2, 2), ((1, 1), (1, 1)), ((-5, -5), (-5, -5)), ((0, 10**12), (0, 0))),
    *([[1]], {}, {"a": 1}, object(), len, int, slice(None), ..., range(2)),
)
ARRAYS = (
    *(np.array(3), np.array([1.0, 2.0]), np.array(["a"]), np.array([None])),
    *(ones(), ones(2, 2), ones(4, 6, 7, 2), ones(4, 0, 7, 2), ones(0, 6, 7, 2), ones(4, 6, 7, 0), ones(0, 0, 0, 0)),
    *(ones(4, 6, 7, 2, dtype=dtype) for dtype in (np.int8, bool, np.complex64, "M8[s]", "U1", [("a", np.float32)])),
    jax.ShapeDtypeStruct((4, 6, 7, 2), np.float32),
    jaxcnn.KernelChain((ones(3, 1, 2, 3), ones(1, 3, 3, 4))),
)

KERNEL, X = ones(3, 3, 2, 4), (4, 6, 7, 2)
IDENTITY = jnp.tanh
# A good call of each other public function: arguments and options.
OTHERS = {
    "conv_cost": ((X, KERNEL.shape), {"strides": 2}),
    "conv_output_shape": ((X, KERNEL.shape), {"strides": 2}),
    "pool_cost": ((X, 2), {"strides": 2}),
    "pool_output_shape": ((X, 2), {"strides": 2}),
    "receptive_field": (([jaxcnn.FieldLayer(3), jaxcnn.FieldLayer(3)],), {}),
    "FieldLayer": ((3,), {"strides": 2}),
    "KernelChain": (((ones(3, 1, 2, 3), ones(1, 3, 3, 4)),), {"feature_group_counts": (1, 1)}),
    "compose": ((KERNEL, ones(1, 1, 4, 2)), {}),
    "separable": ((KERNEL,), {"rank": 2}),
    "low_rank": ((KERNEL,), {"rank": 2}),
    "tucker2": ((KERNEL,), {"ranks": (2, 2)}),
    "depthwise_separable": ((KERNEL,), {"multiplier": 1}),
    "fold_scale": ((KERNEL, ones(4)), {}),
    "merge": ((ones(3, 3, 4, 4),), {"identity": 2.0}),
    "split": ((KERNEL, 2), {"padding": 1}),
    "cp": ((KERNEL,), {"rank": 2}),
    "stack": ((KERNEL,), {"windows": ((2, 2), (2, 2)), "features": 1}),
    "factorize": ((KERNEL,), {"tolerance": 0.3, "schemes": "separable"}),
    "select_rank": ((KERNEL, "separable"), {"energy": 0.5}),
    "curve": ((KERNEL, "separable"), {"points": 2}),
    "accelerate": ((IDENTITY,), {"method": "auto"}),
    "with_chains": ((IDENTITY,), {}),
    "summarize": ((IDENTITY, ones(2)), {}),
}
TRANSFORMATIONS = ("accelerate", "with_chains", "summarize")


def alarmed(function, *args, **options):
    """Calls a function, and fails if it does not come back."""

    def ring(*_):
        pytest.fail(f"it hangs: {args} {options}")

    if threading.current_thread() is not threading.main_thread():
        return function(*args, **options)
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(MAX_SECONDS)
    try:
        return function(*args, **options)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def calls():
    """Each public function of arrays, and the others, with their good arguments."""
    for name, (function, arrays) in cases.CALLS.items():
        yield name, getattr(function, "func", function), arrays, dict(getattr(function, "keywords", {}))
    for name, (args, options) in OTHERS.items():
        yield name, getattr(jaxcnn, name), args, options


def spoilt(function, args, options):
    """The arguments with one of them, or one option, replaced by something else."""
    for position, name in enumerate(inspect.signature(function).parameters):
        for value in (*SCALARS, *ARRAYS) if position < len(args) else SCALARS:
            if position < len(args):
                yield (*args[:position], value, *args[position + 1 :]), options
            else:
                yield args, {**options, name: value}


def refuses_or_computes(name, function, args, options):
    """Checks that one call raises nothing but errors that a user can read, without compiling anything."""
    try:
        if name in OTHERS:
            alarmed(function, *args, **options)
        else:
            alarmed(jax.eval_shape, lambda: function(*args, **options))
    except OverflowError as error:
        # `jax.jit` raises it, too, for a number that no integer of JAX holds.
        if name not in TRANSFORMATIONS:
            pytest.fail(f"{error!r} of {args} {options}")
    except (TypeError, ValueError) as error:
        # An error of the user's own function stays as it is.
        if name not in TRANSFORMATIONS and not str(error).startswith(function.__name__):
            pytest.fail(f"{error!r} of {args} {options}")


@pytest.mark.parametrize("name", [name for name, *_ in calls()])
def test_one_bad_argument(name):
    (_, function, args, options), *_ = (call for call in calls() if call[0] == name)
    every = list(spoilt(function, args, options))
    rng = np.random.default_rng([*name.encode()])
    for index in rng.permutation(len(every))[:12]:
        refuses_or_computes(name, function, *every[index])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, *_ in calls()])
def test_every_bad_argument(name):
    (_, function, args, options), *_ = (call for call in calls() if call[0] == name)
    for bad_args, bad_options in spoilt(function, args, options):
        refuses_or_computes(name, function, bad_args, bad_options)


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("axis", ["batch", "input", "output"])
def test_each_method_on_arrays_without_elements(method, axis):
    x = jnp.zeros((0 if axis == "batch" else 2, 6, 6, 0 if axis == "input" else 4))
    kernel = jnp.zeros((3, 3, 0 if axis == "input" else 4, 0 if axis == "output" else 4))
    assert jaxcnn.conv(x, kernel, method=method).shape == (x.shape[0], 6, 6, kernel.shape[-1])
    x = jnp.zeros((x.shape[0], 6, 6, kernel.shape[-1]))
    result = jaxcnn.conv_transpose(x, kernel, method=method)
    assert result.shape == (x.shape[0], 6, 6, kernel.shape[-2])
    assert not result.any()


HUGE = {
    # name: (function, options), of an image whose padding or holes no program can hold
    "dilation of a pool": (jaxcnn.max_pool, {"window_shape": 2, "window_dilation": 2**31, "padding": "SAME"}),
    "padding of a pool": (jaxcnn.avg_pool, {"window_shape": 2, "strides": 2**40, "padding": 2**40}),
    "dilation": (jaxcnn.conv, {"kernel_dilation": 2**40}),
    "dilation of the input": (jaxcnn.conv, {"input_dilation": 2**40}),
    "stride of a transposed convolution": (jaxcnn.conv_transpose, {"strides": 2**40}),
}


@pytest.mark.parametrize("name", HUGE)
def test_an_image_that_no_program_can_hold_is_refused(name):
    """XLA would end the process."""
    function, options = HUGE[name]
    kernel = () if "window_shape" in options else (ones(3, 3, 4, 4),)
    with pytest.raises(
        ValueError, match=r"^\w+: the image with its padding has spatial sizes \d+ x \d+, .*more than 2\^58"
    ):
        jax.eval_shape(lambda: function(ones(2, 8, 8, 4), *kernel, **options))


@pytest.mark.parametrize("method", ["auto", "direct", "shift"])
def test_a_stride_of_more_than_32_bits(method):
    y = jaxcnn.conv(ones(1, 8, 8, 4), ones(3, 3, 4, 4), strides=2**40, method=method)
    # SAME has no padding where the one window fits.
    np.testing.assert_allclose(y, np.full((1, 1, 1, 4), 9 * 4.0))


NO_BUDGET = (-1, 1.5, math.nan, math.inf, -math.inf, 0, 2**70, "", "nonsense", 1j, (), [1], {}, object(), len)
"""Values that are no share of multiply-accumulates."""
BAD_OPTIONS = {
    "schemes": (5, 1.5, (), "nonsense", ("separable", 1), [["separable"]], object()),
    "skip": (5, (1,), 1.5, object()),
    "seed": (-1, 1.5, "x", None, (1,), object()),
    "count": ("", None, 3, "times"),
    "max_error": (-1, math.nan, "x", None, 1j, ()),
    "measure": (3, "x", ()),
    "calibration": (3, "x", True, (), [], [[1]], {}, [object()], iter(())),
    "rank": (1, "x"),  # beside another budget
    "budget": (0.1, math.nan),
}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.sampled_from(NO_BUDGET),
    st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in BAD_OPTIONS.items()}),
)
def test_substitutions_without_a_budget(macs, options):
    with pytest.raises((TypeError, ValueError), match=r"^substitute: "):
        alarmed(jaxcnn.substitute, two_layers, SMALL, IMAGE, macs=macs, **options)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD_OPTIONS for value in BAD_OPTIONS[name]])
def test_substitutions_with_a_bad_option(name, value):
    with pytest.raises((TypeError, ValueError), match=r"^substitute: "):
        alarmed(jaxcnn.substitute, two_layers, SMALL, IMAGE, **{"macs": 0.5, "count": "macs", name: value})


def one_layer(kernel, x):
    return jaxcnn.conv(x, kernel)


@pytest.mark.parametrize(
    "args",
    [
        (3, SMALL, IMAGE),
        (one_layer, jaxcnn.KernelChain((ones(5, 1, 4, 2), ones(1, 5, 2, 4))), IMAGE),
        (one_layer, np.full((5, 5, 4, 4), np.nan, np.float32), IMAGE),
        (one_layer, ones(5, 5, 4, 4, dtype=np.int32), IMAGE),
        (one_layer, None, IMAGE),
        (one_layer, "x", IMAGE),
        (one_layer, ones(5, 5, 3, 4), IMAGE),
        (one_layer, ones(5, 4), IMAGE),
        (one_layer, SMALL["first"], ones(1, 8, 8, 3)),
        (one_layer, SMALL["first"], ones(8)),
        (one_layer, SMALL["first"], "x"),
        (one_layer, SMALL["first"], None),
        (one_layer, SMALL["first"], np.array(["x"])),
        (one_layer, SMALL["first"], IMAGE, IMAGE),
        (jnp.sum, SMALL["first"]),
    ],
)
def test_substitutions_of_what_is_no_network(args):
    with pytest.raises((TypeError, ValueError)):
        alarmed(jaxcnn.substitute, *args, macs=0.5, count="macs", schemes="separable")


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "x", None, 1j, (), [1], 10**400])
def test_tuning_for_no_time(seconds):
    with pytest.raises((TypeError, ValueError), match=r"^tune: "):
        jaxcnn.tune(jaxcnn.conv, ones(1, 4, 4, 2), ones(3, 3, 2, 2), seconds=seconds)


@pytest.mark.parametrize("args", [(3, ones(2)), (jaxcnn.conv, ones(1, 4, 4, 2), "x"), (jaxcnn.conv, ones(1, 4, 4, 2))])
def test_tuning_of_what_is_no_function_of_arrays(args):
    with pytest.raises((TypeError, ValueError)):
        jaxcnn.tune(*args, seconds=0.01)


# Files.


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of a tuning table and of a substitution, each with the function that loads one from a path."""
    folder = tmp_path_factory.mktemp("saved")
    jaxcnn.tune(jaxcnn.conv, jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), seconds=0.01).save(folder / "table.json")
    small = jaxcnn.substitute(two_layers, SMALL, IMAGE, macs=0.6, count="macs", schemes="separable")
    small.save(folder / "found.npz")
    return {
        "table": ((folder / "table.json").read_bytes(), jaxcnn.TuningTable.load),
        "substitution": (
            (folder / "found.npz").read_bytes(),
            lambda path: jaxcnn.Substitution.load(path, two_layers, SMALL),
        ),
    }


def check_named(error):
    if not str(error).startswith(("TuningTable: ", "load: ")):
        pytest.fail(str(error))


def refuses_file(load, path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^(TuningTable|load): ") as caught:
        alarmed(load, path)
    assert path.name in str(caught.value)


class Exploit:
    """An object whose unpickling is noticed."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("kind", ["table", "substitution"])
def test_files_that_are_cut_or_no_files_of_ours(kind, saved, tmp_path):
    content, load = saved[kind]
    load_from = tmp_path / "file"
    pieces = [content[: len(content) * part // 7] for part in range(7)]
    foreign = [b"\x00" * 100, b"{}", b"[]", b"null", b"1", b"[" * 100_000, b"PK\x03\x04", "é".encode("utf-16")]
    for piece in (*pieces, *foreign, pickle.dumps(Exploit())):
        refuses_file(load, load_from, piece)
    for bit in np.random.default_rng(0).integers(0, 8 * len(content), 20):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        load_from.write_bytes(flipped)
        try:
            alarmed(load, load_from)  # a digit of a time may have changed, and nothing tells
        except ValueError as error:
            check_named(error)


def mutations(plain):
    """A JSON document with each of its values replaced or missing."""
    for key, value in list(plain.items()) if isinstance(plain, dict) else list(enumerate(plain)):
        for other in (None, -1, "nonsense", [], {}, 10**400, [[1]], 1.5):
            changed = plain.copy()
            changed[key] = other
            yield changed
        changed = plain.copy()
        del changed[key]
        yield changed
        if isinstance(value, dict | list):
            for inner in mutations(value):
                changed = plain.copy()
                changed[key] = inner
                yield changed


def loads_or_refuses(load, path, content):
    path.write_bytes(content)
    try:
        alarmed(load, path)
    except ValueError as error:
        check_named(error)


def sample(items, count=150):
    items = list(items)
    return (items[index] for index in np.random.default_rng(0).permutation(len(items))[:count])


def test_tables_with_wrong_values(saved, tmp_path):
    content, load = saved["table"]
    for plain in sample(mutations(json.loads(content))):
        loads_or_refuses(load, tmp_path / "table.json", json.dumps(plain).encode())


def archive(arrays, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as content:
        for name, data in arrays.items():
            content.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array, allow_pickle=False):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=allow_pickle)
    return file.getvalue()


def members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name.removesuffix(".npy"): file.read(name) for name in file.namelist()}


def test_substitutions_with_wrong_values(saved, tmp_path):
    content, load = saved["substitution"]
    arrays = members(content)
    structure = json.loads(str(np.load(io.BytesIO(arrays["structure"]))))
    for plain in sample(mutations(structure)):
        spoilt_arrays = {**arrays, "structure": npy(json.dumps(plain))}
        loads_or_refuses(load, tmp_path / "found.npz", archive(spoilt_arrays))


def test_substitutions_with_wrong_arrays(saved, tmp_path):
    content, load = saved["substitution"]
    arrays = members(content)
    huge = npy(ones(2)).replace(b"(2,)", b"(10000000000000,)".ljust(4))
    for name in arrays:
        for data in (
            b"",
            huge,
            npy(ones(2, 3)),
            npy(np.array([Exploit()], object), allow_pickle=True),
            npy(np.array(["a"])),
            arrays[name][:-1],
        ):
            refuses_file(load, tmp_path / "found.npz", archive({**arrays, name: data}))
        refuses_file(load, tmp_path / "found.npz", archive({key: arrays[key] for key in arrays if key != name}))
    refuses_file(load, tmp_path / "found.npz", archive(arrays, zipfile.ZIP_DEFLATED))


class Failure(Exception):
    pass


def write_half(path):
    with whole_file(path) as file:
        file.write(b"half")
        raise Failure


@pytest.mark.parametrize("before", [None, b"the old file"])
def test_a_file_that_fails_midway_leaves_what_was_there(before, tmp_path):
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(Failure):
        write_half(path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert list(tmp_path.iterdir()) == ([] if before is None else [path])
    with whole_file(path) as file:
        file.write(b"all")
    assert path.read_bytes() == b"all"


def test_files_in_no_folder_and_links_and_devices(tmp_path):
    missing = tmp_path / "nowhere" / "file"
    with pytest.raises(FileNotFoundError, match=r"nowhere/file'$"), whole_file(missing):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with whole_file(tmp_path / "link") as file:
        file.write(b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"x"
    with whole_file("/dev/null") as file:
        file.write(b"x")


def fail_while_writing(*args, **options):
    raise Failure


@pytest.mark.parametrize("kind", ["table", "substitution"])
def test_saving_that_fails_keeps_the_old_file(kind, saved, tmp_path, monkeypatch):
    content, load = saved[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    item = load(path)
    monkeypatch.setattr(np, "savez", lambda file, **_: (file.write(b"half"), fail_while_writing()))
    monkeypatch.setattr(json, "dumps", fail_while_writing)
    with pytest.raises(Failure):
        item.save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


# The command line.

BAD_COMMANDS = [
    [],
    ["nonsense"],
    ["--nonsense"],
    ["draw"],
    ["draw", "--input", "5x5"],
    ["draw", "--input", "0x5", "--kernel", "3x3"],
    ["draw", "--input", "-1", "--kernel", "3"],
    ["draw", "--input", "5x5", "--kernel", "9x9", "--padding", "VALID", "-o", "a.png"],
    ["draw", "--input", "5x5x5x5", "--kernel", "3x3x3x3", "-o", "a.png"],
    ["draw", "--input", "5x5", "--kernel", "3", "-o", "a.png"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "-o", "a.nonsense"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "-o", "nowhere/a.png"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "--step", "1000", "-o", "a.png"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "--groups", "3", "-o", "a.png"],
    ["draw", "--input", "9999999999x5", "--kernel", "3x3", "-o", "a.png"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "--stride", "nan"],
    ["draw", "--input", "5x5", "--kernel", "3x3", "--padding", "1x2x3", "-o", "a.png"],
    ["summarize"],
    ["summarize", "nonsense", "--input", "1x4x4x3"],
    ["summarize", "nowhere:f", "--input", "1x4x4x3"],
    ["summarize", "jaxcnn:nothing", "--input", "1x4x4x3"],
    ["summarize", "jaxcnn:__version__", "--input", "1x4x4x3"],
    ["summarize", "jaxcnn:KernelChain", "--input", "1x4x4x3"],
    ["summarize", "jaxcnn:conv", "--input", "1x4x4x3"],
    ["summarize", "jax.numpy:sin", "--input", "1xx4"],
    ["summarize", "jax.numpy:sin", "--input", "4", "--dtype", "float8"],
    ["layer", "--input", "1x4x4x3", "--kernel", "9x9", "--features", "4", "--padding", "VALID"],
    ["layer", "--input", "4", "--kernel", "3x3", "--features", "4"],
]


@pytest.mark.parametrize("arguments", BAD_COMMANDS, ids=" ".join)
def test_a_bad_command_says_so_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = alarmed(main, arguments)
    except SystemExit as end:
        status = end.code
    output, errors = capsys.readouterr()
    assert (status, output) == (2, "")
    assert errors.startswith("jaxcnn")
    assert errors.endswith("\n")
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
