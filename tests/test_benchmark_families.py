"""The seeded families of layers, and what their layers are in each library."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from benchmarks.choice import beside_torch, families, layers, measure
from benchmarks.choice.families import BATCHES, FAMILIES, MACS, MAX_ELEMENTS, NARROW_MACS, ROLES, family, macs
from benchmarks.choice.torch_layers import as_lax, torch_function
from benchmarks.shared.arrays import relative_error
from jaxcnn.lowering.choice import METHODS, choose
from jaxcnn.lowering.spec import ConvSpec, conv_spec, spec_from_plain, spec_to_plain

COUNT = 60


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_a_family_are_convolutions_within_the_limits(name):
    for spec in family(name, 0, COUNT):
        lhs, rhs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in spec.operand_shapes)
        again = conv_spec(
            lhs,
            rhs,
            role=spec.role,
            stacked=False,
            strides=spec.strides,
            padding=spec.padding,
            input_dilation=spec.input_dilation,
            kernel_dilation=spec.kernel_dilation,
            feature_group_count=spec.feature_group_count,
            precision=None,
            preferred_element_type=np.dtype(np.float32),
            input_size=spec.input_shape[1:-1],
            window=spec.window,
        )
        assert spec == again == spec_from_plain(spec_to_plain(spec))
        assert jax.eval_shape(layers.lax_function(spec), lhs, rhs).shape == spec.result_shape
        assert min(MACS[0], NARROW_MACS[0]) <= macs(spec) <= MACS[1]
        assert max(map(math.prod, (spec.input_shape, spec.kernel_shape, spec.output_shape))) <= MAX_ELEMENTS
        assert spec.feature_group_count * spec.kernel_shape[-2] == spec.input_shape[-1]
        assert METHODS[choose(spec, "auto", "cpu").method].refusal(spec) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_its_seed(name):
    drawn = family(name, 0, COUNT)
    assert drawn == family(name, 0, COUNT)
    assert family(name, 0, 5) == drawn[:5]
    assert not set(drawn) & set(family(name, 1, COUNT))
    assert len(set(drawn)) == COUNT
    assert {(spec.role, spec.input_shape[0]) for spec in drawn} == set(itertools.product(ROLES, BATCHES))
    assert {spec.role for spec in family(name, 0, 4, ("kernel",))} == {"kernel"}


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_and_images_are_not_all_round(name):
    drawn = family(name, 0, COUNT)
    channels = [n for spec in drawn for n in (spec.input_shape[-1], spec.output_shape[-1])]
    assert COUNT / 4 < sum(n % 16 == 0 for n in channels) < 2 * COUNT - COUNT / 4
    assert any(n % 4 for n in channels)
    assert any(spec.output_shape[1] % 2 for spec in drawn)


def _kinds(name):
    """Returns for each family whether the drawn layers are of its kind."""
    specs = family(name, 0, COUNT)
    return {
        "depthwise": all(spec.kernel_shape[-2] == 1 < spec.feature_group_count for spec in specs),
        "grouped": all(1 < spec.feature_group_count < spec.input_shape[-1] for spec in specs),
        "dense": all(spec.feature_group_count == 1 == max(spec.strides) < max(spec.window) for spec in specs),
        "square": all(spec.window in ((3, 3), (5, 5)) and spec.feature_group_count == 1 for spec in specs),
        "pointwise": all(spec.window == (1, 1) for spec in specs),
        "one_dimensional": all(min(spec.window) == 1 < max(spec.window) for spec in specs),
        "strided": all(min(spec.strides) > 1 for spec in specs),
        "dilated": all(min(spec.kernel_dilation) > 1 for spec in specs),
        "one_axis": all(spec.rank == 1 for spec in specs),
        "three_axes": all(spec.rank == 3 for spec in specs),
        "transposed": all(
            min(spec.strides) > 1 and spec.input_shape[1] == spec.strides[0] * spec.output_shape[1] for spec in specs
        ),
    }[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_holds_what_its_name_says(name):
    assert _kinds(name)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of depthwise, .*, got 'pool'"):
        family("pool", 0, 1)


def _spec(role, window, strides, dilation, groups, pads, sizes, channels=(4, 6)):
    shape = (2, *sizes, channels[0])
    kernel = (*window, channels[0] // groups, channels[1])
    single = np.dtype(np.float32)
    y = [
        (n + 2 * pad - (w - 1) * d - 1) // s + 1
        for n, w, s, d, pad in zip(sizes, window, strides, dilation, pads, strict=True)
    ]
    padding = tuple((pad, pad) for pad in pads)
    shapes = (shape, kernel, (2, *y, channels[1]))
    ones = (1,) * len(window)
    return ConvSpec(
        role, *shapes, strides, padding, ones, dilation, groups, single, single, single, precision=None, stacked=None
    )


SMALL = [
    ((5,), (2,), (1,), 1, (2,), (17,)),
    ((3, 2), (2, 2), (1, 1), 1, (1, 0), (8, 6)),
    ((3, 3), (1, 1), (2, 2), 2, (2, 0), (9, 8)),
    ((2, 3, 1), (1, 2, 1), (1, 1, 1), 1, (0, 1, 0), (4, 6, 5)),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("options", SMALL, ids=str)
def test_layers_of_all_libraries_are_the_same(options, role, transposed, standard_promotion):
    pytest.importorskip("torch")
    spec = _spec(role, *options)
    lhs, rhs = layers.operands(spec)
    expected = jax.jit(layers.lax_function(spec))(lhs, rhs)
    assert expected.shape == spec.result_shape
    assert relative_error(jax.jit(layers.jaxcnn_function(spec))(lhs, rhs), expected) < 1e-5
    result = as_lax(spec, torch_function(spec, lhs, rhs, transposed=transposed)())
    assert relative_error(result, expected) < 1e-5


@pytest.fixture
def tiny(monkeypatch):
    """A family of small layers, for a test of what measures them."""

    def draft(rng):
        sizes = (int(rng.integers(4, 9)), 5)
        return families.Draft(sizes, (3, 1), 3, int(rng.integers(2, 20)), (1, 1), (1, 1), 1, (1, 0))

    monkeypatch.setitem(FAMILIES, "tiny", draft)
    monkeypatch.setattr(families, "MACS", (1, 1e6))
    monkeypatch.setattr(families, "NARROW_MACS", (1, 1e6))
    for module in (beside_torch, measure):  # which would keep the tests to come to these processors
        monkeypatch.setattr(module, "keep_to_processors", lambda count: None)
    return "tiny"


def test_every_method_is_measured_and_a_run_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch):
    path = tmp_path / "measured.json"
    arguments = ["--seed", "3", "--output", str(path), "--family", tiny, "--seconds", "0.001"]
    measure.main([*arguments, "--count", "2"])
    first = json.loads(path.read_text())
    assert (first["seed"], first["jax"], len(first["layers"])) == (3, jax.__version__, 2)
    for layer in first["layers"]:
        spec = spec_from_plain(layer["spec"])
        # Spectra between many channels are hopeless, and left out.
        supporting = {name for name, method in METHODS.items() if method.refusal(spec) is None and name != "fft"}
        assert set(layer["milliseconds"]) == set(layer["best_milliseconds"]) == supporting
        assert all(0 < layer["best_milliseconds"][name] <= layer["milliseconds"][name] for name in supporting)
    monkeypatch.setattr(measure, "measure", lambda *args: {"milliseconds": {"direct": 1.0}})
    measure.main([*arguments, "--count", "3"])
    second = json.loads(path.read_text())
    assert second["layers"][:2] == first["layers"]
    assert [layer["milliseconds"] for layer in second["layers"][2:]] == [{"direct": 1.0}]
    specs = [spec_from_plain(layer["spec"]) for layer in second["layers"]]
    assert specs == family(tiny, 3, 3)
    with pytest.raises(ValueError, match=r"holds measurements of .*'seed': 3.*, and these would be of .*'seed': 4"):
        measure.main([*arguments[2:], "--seed", "4", "--count", "2"])


def test_a_layer_whose_time_is_over_is_measured_by_direct(tiny):
    (spec,) = family(tiny, 0, 1)
    assert set(measure.method_calls(spec, 0.0)) == {"direct"}


def test_layers_beside_torch_are_measured_and_reported(tiny, tmp_path, capsys, standard_promotion, monkeypatch):
    pytest.importorskip("torch")
    path = tmp_path / "beside.json"
    arguments = ["--seed", "3", "--count", "2", "--family", tiny, "--seconds", "0.001", "--json", str(path)]
    beside_torch.main([*arguments, "--role", "output", "--role", "kernel", "--layers"])
    records = json.loads(path.read_text())
    assert [record["spec"]["role"] for record in records] == ["output"] * 2 + ["kernel"] * 2
    assert all(set(record["milliseconds"]) == {"jaxcnn", "lax", "torch"} for record in records)
    for record, milliseconds in zip(records, (2.0, 8.0, 3.0, 3.0), strict=True):
        record["milliseconds"] = {"jaxcnn": milliseconds, "lax": 2.0, "torch": 1.0}
    capsys.readouterr()
    beside_torch.report(records, Console(width=200))
    lines = capsys.readouterr().out.splitlines()
    first = lines[1].split()
    worst = beside_torch.short(spec_from_plain(records[1]["spec"])).split()
    assert first == [tiny, "output", "2", "4.00", "5.00", "8.00", *worst, "0.50", "0.40", "0.25", *worst]
    assert lines[3].split() == ["all", "4", "3.46", "0.58"]


def test_libraries_that_differ_are_not_compared(tiny, monkeypatch, standard_promotion):
    (spec,) = family(tiny, 0, 1)
    monkeypatch.setattr(
        beside_torch, "lax_function", lambda spec: lambda x, kernel: 0.9 * lax_function(spec)(x, kernel)
    )
    lax_function = layers.lax_function
    with pytest.raises(ArithmeticError, match=r"jaxcnn and lax differ by 1.1e-01, more than 1e-04: tiny output of"):
        beside_torch.measure(tiny, spec, 0.001)
