"""Tuning tables: their files, and what `auto` does inside and outside of `with table:`."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.lowering import choice
from jaxcnn.lowering import tuning_table as table
from jaxcnn.lowering.spec import conv_spec
from jaxcnn.lowering.tuning_table import Measurement

pytestmark = pytest.mark.without_native

# Strided and dense: what `auto` leaves to `direct`.
X, KERNEL = np.ones((1, 8, 8, 16), np.float32), np.ones((3, 3, 16, 16), np.float32)
conv = partial(jaxcnn.conv, strides=2)
OPTIONS = {
    "role": "output",
    "stacked": False,
    "strides": (2, 2),
    "padding": ((0, 1), (0, 1)),
    "input_dilation": (1, 1),
    "kernel_dilation": (1, 1),
    "feature_group_count": 1,
    "precision": None,
    "preferred_element_type": np.float32,
    "input_size": None,
    "window": None,
}
SPEC = conv_spec(X, KERNEL, **OPTIONS)  # what `conv(X, KERNEL)` is


def made(method="matmul", spec=SPEC, **fields):
    device = jax.devices()[0]
    entries = (Measurement(spec, method, (("direct", 2.5), (method, 0.125))),)
    version = table.metadata.version("jaxlib")
    given = {"platform": device.platform, "device_kind": table.device_kind(device), "jaxlib_version": version}
    return jaxcnn.TuningTable(**{"entries": entries, **given, **fields})


def text(jitted, *args):
    return jitted.lower(*args).as_text()


def is_direct(module):
    assert ("stablehlo.convolution" in module) != ("stablehlo.dot_general" in module)
    return "stablehlo.convolution" in module


def spec_of(**changes):
    return dataclasses.replace(SPEC, **changes)


VARIED = [
    SPEC,
    spec_of(role="input", xla_only=True),
    spec_of(role="kernel", stacked=3),
    spec_of(precision=lax.Precision.HIGHEST),
    spec_of(precision=(lax.Precision.HIGH, lax.Precision.DEFAULT)),
    spec_of(precision="highest"),
    spec_of(precision="tensorfloat32"),
    spec_of(lhs_dtype=np.dtype(jnp.bfloat16), rhs_dtype=np.dtype(np.int8), out_dtype=np.dtype(np.int32)),
    spec_of(strides=(2, 3), kernel_dilation=(1, 2), input_dilation=(3, 1), padding=((0, 1), (2, 3))),
    spec_of(feature_group_count=4, kernel_shape=(3, 3, 4, 16)),
]


def test_a_file_is_read_back_exactly(tmp_path):
    entries = tuple(
        Measurement(spec, "shift", (("direct", 0.1 + n), ("shift", 1 / 3))) for n, spec in enumerate(VARIED)
    )
    written = made(entries=entries)
    written.save(tmp_path / "table.json")
    read = jaxcnn.TuningTable.load(tmp_path / "table.json")
    assert read == written
    assert hash(read) == hash(written)
    for spec in VARIED:
        result = read.find(spec, "cpu")
        assert result.spec == spec
        assert [type(value) for value in dataclasses.astuple(result.spec)] == [
            type(v) for v in dataclasses.astuple(spec)
        ]


def test_what_has_no_plain_form_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a precision must be None, a string or a lax"):
        made(spec=spec_of(precision=lax.DotAlgorithmPreset.F32_F32_F32)).save(tmp_path / "table.json")
    (size,) = jax.export.symbolic_shape("b")
    with pytest.raises(ValueError, match="symbolic shape"):
        made(spec=spec_of(input_shape=(size, 8, 8, 16))).save(tmp_path / "table.json")


def changed(plain, path, value):
    *way, last = path
    for step in way:
        plain = plain[step]
    if value is KeyError:
        del plain[last]
    else:
        plain[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format_version"], 2, "its format_version is 2, and this jaxcnn reads 1"),
        (["format_version"], KeyError, "'format_version' is missing"),
        (["device_kind"], None, "device_kind must be a string, got None"),
        (["entries"], KeyError, "'entries' is missing"),
        (["entries"], 3, "not iterable"),
        (["entries", 0], 3, "holds no table"),
        (["entries", 0, "method"], 3, "method must be a string, got 3"),
        (["entries", 0, "milliseconds"], [1], "holds no table"),
        (["entries", 0, "milliseconds", "direct"], "fast", "the milliseconds of direct must be a number, got 'fast'"),
        (["entries", 0, "spec", "role"], KeyError, "a convolution must have the fields"),
        (["entries", 0, "spec", "role"], "pool", "role, shapes and options must fit together"),
        (["entries", 0, "spec", "strides"], [1], "role, shapes and options must fit together"),
        (["entries", 0, "spec", "strides"], [1, 1.5], r"strides must hold whole numbers, got \[1, 1.5\]"),
        (["entries", 0, "spec", "padding", 0], [1], "role, shapes and options must fit together"),
        (["entries", 0, "spec", "padding", 0], 1, "padding must hold whole numbers, got 1"),
        (["entries", 0, "spec", "lhs_dtype"], "real", "lhs_dtype must name a dtype, got 'real'"),
        (["entries", 0, "spec", "precision"], "Precision.BEST", "precision must be None, a string or one of"),
        (["entries", 0, "spec", "xla_only"], 1, "xla_only must be true or false, got 1"),
        (["entries", 0, "spec", "stacked"], "yes", "feature_group_count and stacked must hold whole numbers"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, path, value, message):
    made().save(tmp_path / "table.json")
    plain = json.loads((tmp_path / "table.json").read_text())
    changed(plain, path, value)
    (tmp_path / "table.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match=message) as caught:
        jaxcnn.TuningTable.load(tmp_path / "table.json")
    assert "table.json holds no table" in str(caught.value)


@pytest.mark.parametrize("contents", ["", "[]", "{}", "3", '{"format_version": 1'])
def test_another_file_is_refused(tmp_path, contents):
    (tmp_path / "table.json").write_text(contents)
    with pytest.raises(ValueError, match=r"table\.json holds no table"):
        jaxcnn.TuningTable.load(tmp_path / "table.json")


def test_tables_merge():
    first = made(entries=(*made("matmul").entries, *made("shift", VARIED[1]).entries))
    second = made(entries=(*made("shift").entries, *made("fft", VARIED[2]).entries))
    merged = first | second
    assert {entry.spec: entry.method for entry in merged.entries} == {
        SPEC: "shift",
        VARIED[1]: "shift",
        VARIED[2]: "fft",
    }
    for field in ("platform", "device_kind", "jaxlib_version"):
        with pytest.raises(ValueError, match=f"tables of {field} .* and 'other' do not merge"):
            first | made(**{field: "other"})
    with pytest.raises(TypeError):
        first | {}
    with pytest.raises(ValueError, match="the same convolution stands in two entries"):
        made(entries=made().entries * 2)


def test_it_prints_what_was_measured():
    assert (
        "output of 1x8x8x16 * 3x3x16x16 -> 1x4x4x16 float32 strides=(2, 2): matmul (matmul 0.125 ms, direct 2.5 ms)"
        in str(made())
    )
    line = str(VARIED[9])
    assert line.endswith("float32 strides=(2, 2) feature_group_count=4")
    assert str(VARIED[8]).endswith("strides=(2, 3) kernel_dilation=(1, 2) input_dilation=(3, 1)")
    assert str(VARIED[2]).endswith("stacked=3")


def test_processors_of_one_model_name_and_other_vectors_are_told_apart():
    text = "processor\t: {0}\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2{1}\n\n"
    assert table.processor_name(text.format(0, " avx512f") + text.format(1, " avx512f")) == "AMD EPYC with AVX-512"
    assert table.processor_name(text.format(0, "")) == "AMD EPYC with AVX2"
    assert table.processor_name("processor\t: 0\nFeatures\t: fp asimd crc32\n").endswith(" with NEON")
    assert table.processor_name("")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device_kind": "abacus"}, "the table is of 'abacus', not of this process: its cpu is"),
        ({"platform": "gpu"}, "not of this process: it has no gpu"),
        ({"platform": "loom"}, "not of this process: it has no loom"),
        ({"jaxlib_version": "0.1"}, "the table is of jaxlib 0.1, this process has"),
    ],
)
def test_a_table_of_another_device_is_refused_but_may_be_looked_at(tmp_path, fields, message):
    foreign = made(**fields)
    foreign.save(tmp_path / "table.json")
    assert jaxcnn.TuningTable.load(tmp_path / "table.json") == foreign
    str(foreign)
    with pytest.raises(ValueError, match=message), foreign:
        pass
    with pytest.raises(ValueError, match=message):
        foreign.install()
    assert table.active_table() is None


def test_a_jitted_function_is_compiled_again_inside_and_is_what_it_was_after():
    traces = []
    conv(X, KERNEL)  # the first call of all imports modules of JAX, after which the newest jax traces once more

    @jax.jit
    def f(x, kernel):
        traces.append(None)
        return conv(x, kernel)

    def compiled():
        f(X, KERNEL)
        return is_direct(text(f, X, KERNEL))

    assert compiled()
    with made("matmul"):
        assert not compiled()
        with made("direct"):
            assert compiled()
        assert not compiled()
    assert compiled()
    assert len(traces) == 3
    with made("matmul"):  # an equal table, though another object
        assert not compiled()
    assert len(traces) == 3


def test_eager_calls_see_the_table_too(compilations):
    compiled, _ = compilations
    before = conv(X, KERNEL)
    compiled.clear()
    with made("matmul"):
        np.testing.assert_allclose(conv(X, KERNEL), before)
        assert "conv" in compiled[0]
        compiled.clear()
        conv(X, KERNEL)
    conv(X, KERNEL)
    assert not compiled


def test_installed_for_the_whole_process():
    import threading

    f = jax.jit(partial(conv))
    made("matmul").install()
    try:
        assert not is_direct(text(f, X, KERNEL))
        answers = []
        thread = threading.Thread(target=lambda: answers.append(is_direct(text(f, X, KERNEL))))
        thread.start()
        thread.join()
        assert answers == [False]
        with made("direct"):
            assert is_direct(text(f, X, KERNEL))
        assert not is_direct(text(f, X, KERNEL))
    finally:
        jaxcnn.TuningTable.uninstall()
    assert is_direct(text(f, X, KERNEL))


def test_the_table_ends_with_an_error():
    with pytest.raises(KeyError), made():
        raise KeyError
    assert table.active_table() is None


def test_the_choice_says_what_was_measured():
    assert choice.choose(SPEC, "auto", "cpu").method == "direct"
    with made("matmul"):
        chosen = choice.choose(SPEC, "auto", "cpu")
        assert chosen.method == "matmul"
        assert chosen.reason == "the tuning table has it: matmul 0.125 ms, direct 2.5 ms"
        assert choice.choose(SPEC, "shift", "cpu").method == "shift", "what the user asks for comes first"
        assert choice.choose(SPEC, "auto", None).method == "direct"
        assert choice.choose(SPEC, "auto", "gpu").method == "direct", "the table is of a CPU"
        assert choice.choose(VARIED[8], "auto", "cpu").method == "direct", "not in the table"
    with made("no more"):
        assert choice.choose(SPEC, "auto", "cpu").method == "direct"
    with made("fft", VARIED[3]):
        assert choice.choose(VARIED[3], "auto", "cpu").method == "direct", "fft refuses HIGHEST"


def test_a_table_of_a_gpu_is_asked_there(monkeypatch):
    monkeypatch.setattr(jaxcnn.TuningTable, "check_device", lambda self: None)
    with made("matmul", platform="gpu", device_kind="some GPU"):
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (X, KERNEL)]
        for name, direct in {"cuda": False, "cpu": True}.items():
            assert is_direct(jax.export.export(jax.jit(conv), platforms=[name])(*shapes).mlir_module()) == direct


def test_derivatives_take_their_methods_from_the_table():
    gradient = jax.jit(jax.grad(lambda kernel: (conv(X, kernel) * 2).sum()))
    assert not is_direct(text(gradient, KERNEL))
    with made("direct", spec_of(role="kernel")):
        assert is_direct(text(gradient, KERNEL))
