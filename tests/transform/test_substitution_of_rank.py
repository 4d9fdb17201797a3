"""`substitute` at one rank for all layers, whatever that costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn.transform import searching
from support.arrays import normal, relative_error
from support.planted import clock_by_arithmetic, conv, network

F, PARAMS, X = network()


@pytest.fixture(autouse=True)
def every_chain_is_faster(monkeypatch):
    clock_by_arithmetic(monkeypatch)
    monkeypatch.setattr(searching, "_SECONDS", 0.01)


def depthwise(params, x):
    for stride, name in ((1, "first"), (2, "strided"), (1, "small")):
        kernel = params[name]
        x = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=kernel.shape[-1],
        )
        x = jnp.minimum(jax.nn.relu(x), 6)
    return lax.conv_general_dilated(x, params["pointwise"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


DEPTHWISE = {
    "first": jnp.asarray(normal((5, 5, 1, 16), 1)),
    "strided": jnp.asarray(normal((5, 5, 1, 16), 2)),
    "small": jnp.asarray(normal((1, 3, 1, 16), 3)),
    "pointwise": jnp.asarray(normal((1, 1, 16, 8), 4)),
}


def images(seed):
    return jnp.asarray(normal((2, 20, 20, 16), seed))


def smooth(seed):
    """Images of which neighbouring pixels are alike, as those of photographs."""
    return jnp.cumsum(jnp.cumsum(images(seed), axis=1), axis=2) / 8


def test_every_layer_takes_the_chain_of_the_rank():
    found = jaxcnn.substitute(depthwise, DEPTHWISE, images(0), rank=2, schemes="separable", skip="pointwise")
    rows = {row.name: row for row in found.report.rows}
    assert [rows[name].rank for name in ("first", "strided")] == [2, 2]
    for name in ("first", "strided"):
        expected = jaxcnn.separable(DEPTHWISE[name], rank=2, feature_group_count=16)
        assert found.params[name].kernels[0].shape == (5, 1, 1, 32)
        np.testing.assert_allclose(found.params[name].dense(), expected.dense(), atol=1e-5)
    # Its first link is computed at the full height or width: more of the arithmetic than the kernel, and still there.
    assert rows["strided"].macs_after > rows["strided"].macs_before
    assert rows["pointwise"].reason == "it is skipped"
    assert found.params["pointwise"] is not None
    assert found.report.error == pytest.approx(
        relative_error(found.apply(found.params, images(0)), depthwise(DEPTHWISE, images(0))), rel=1e-3
    )


def test_a_layer_of_less_takes_its_full_rank():
    found = jaxcnn.substitute(depthwise, DEPTHWISE, images(0), rank=9, schemes="separable", skip="pointwise")
    assert {row.name: row.rank for row in found.report.rows}["first"] == 5
    assert found.report.error < 1e-5


def test_responses_are_nearer_than_weights():
    options = {"rank": 2, "schemes": "separable", "skip": ["pointwise", "small"]}
    of_weights = jaxcnn.substitute(depthwise, DEPTHWISE, smooth(0), **options)
    fitted = jaxcnn.substitute(depthwise, DEPTHWISE, smooth(0), calibration=[smooth(1), smooth(2)], **options)
    assert fitted.report.error < 0.8 * of_weights.report.error
    assert [link.shape for link in fitted.params["first"].kernels] == [(5, 1, 1, 32), (1, 5, 2, 16)]


@pytest.mark.parametrize("rank", [3, (3, 3), [3, 3]])
def test_ranks_of_tucker2(rank):
    found = jaxcnn.substitute(F, PARAMS, X, rank=rank, schemes="tucker2", skip="stem")
    for name in ("low", "high"):
        links = found.params[name]["kernel"].kernels
        assert [link.shape[-1] for link in links[:2]] == [3, 3]


@pytest.mark.parametrize(("scheme", "features"), [("low_rank", 4), ("depthwise_separable", 2), ("cp", 3), ("stack", 6)])
def test_every_scheme_has_a_rank(scheme, features):
    kernel = jnp.asarray(normal((5, 5, 6, 8)))
    found = jaxcnn.substitute(lambda k, x: conv(x, k), kernel, images(0)[..., :6], rank=features, schemes=scheme)
    width = features * 6 if scheme == "depthwise_separable" else features
    assert found.params.kernels[0].shape[-1] == width
    assert found.report.rows[0].rank == features


def test_stacked_kernels_have_it_each():
    kernels = jnp.asarray(normal((3, 5, 5, 16, 16)))

    def f(kernels, x):
        return lax.scan(lambda x, kernel: (jax.nn.relu(conv(x, kernel)), None), x, kernels)[0]

    found = jaxcnn.substitute(f, kernels, images(0), rank=2, schemes="separable")
    assert [link.shape for link in found.params.kernels] == [(3, 5, 1, 16, 2), (3, 1, 5, 2, 16)]


def test_volumes_have_one_for_each_gap():
    kernel = jnp.asarray(normal((3, 3, 3, 4, 4)))
    x = jnp.asarray(normal((1, 6, 6, 6, 4)))

    def f(kernel, x):
        return lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))

    for rank, widths in ((2, [2, 2]), ((3, 2), [3, 2])):
        found = jaxcnn.substitute(f, kernel, x, rank=rank, schemes="separable")
        assert [link.shape[-1] for link in found.params.kernels] == [*widths, 4]
    with pytest.raises(ValueError, match=r"'separable' has 2 ranks for a window of \(3, 3, 3\), got rank=\(1, 2, 3\)"):
        jaxcnn.substitute(f, kernel, x, rank=(1, 2, 3), schemes="separable")


def test_curve_and_file(tmp_path):
    options = {"rank": 2, "schemes": "separable", "skip": "stem"}
    for calibration in (None, [X]):
        found = jaxcnn.substitute(F, PARAMS, X, calibration=calibration, **options)
        assert len(found.curve((0.5,)).points) == 2
    found.save(tmp_path / "found.npz")
    loaded = jaxcnn.Substitution.load(tmp_path / "found.npz", F, PARAMS)
    assert loaded.report == found.report
    np.testing.assert_array_equal(loaded.apply(loaded.params, X), found.apply(found.params, X))


def test_what_no_chain_can_replace_says_so():
    found = jaxcnn.substitute(
        lambda params, x: conv(_signal(x[0], params["signal"])[None], params["image"]),
        {"signal": jnp.asarray(normal((3, 16, 16))), "image": jnp.asarray(normal((5, 5, 16, 16)))},
        images(0),
        rank=2,
        schemes="separable",
    )
    rows = {row.name: row for row in found.report.rows}
    assert rows["image"].rank == 2
    assert rows["signal"].reason.startswith("no separable chain: it needs two or more window axes")
    with pytest.raises(ValueError, match=r"no layer can take a chain of rank 2: .*two or more window axes"):
        jaxcnn.substitute(
            lambda k, x: _signal(x[0], k), jnp.asarray(normal((3, 16, 16))), images(0), rank=2, schemes="separable"
        )


def _signal(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


ERRORS = {
    "no scheme": ({"rank": 2}, ValueError, "rank is that of one scheme's chains, but schemes="),
    "two": ({"rank": 2, "schemes": ["cp", "stack"]}, ValueError, "rank is that of one scheme's chains"),
    "zero": ({"rank": 0, "schemes": "cp"}, ValueError, "rank must be at least 1, got 0"),
    "none": ({"rank": (), "schemes": "tucker2"}, ValueError, r"rank must be at least 1, got \(\)"),
    "share": ({"rank": 0.5, "schemes": "cp"}, TypeError, "rank must be a whole number, or a tuple of them, got 0.5"),
    "pair": ({"rank": (2, 3), "schemes": "cp"}, ValueError, r"'cp' has one rank, got rank=\(2, 3\)"),
    "three": ({"rank": (2, 3, 4), "schemes": "tucker2"}, ValueError, "'tucker2' has 2 ranks"),
    "pair of an image": ({"rank": (2, 3), "schemes": "separable"}, ValueError, "'separable' has 1 rank"),
    "and macs": ({"rank": 2, "macs": 0.5, "schemes": "cp"}, ValueError, "give one of"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    options, kind, text = ERRORS[case]
    with pytest.raises(kind, match=text):
        jaxcnn.substitute(F, PARAMS, X, **options)
