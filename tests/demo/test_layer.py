import jax
import numpy as np
import pytest
import rich.console

import jaxcnn
from jaxcnn.demo import layer, report
from support import terminal_tables


def run(single, ranks=()):
    with report.progress_bars(rich.console.Console(quiet=True)) as bars:
        return layer.run_layer(single, ranks=ranks, seed=0, bars=bars, rounds=1)


@pytest.mark.parametrize(
    "single",
    [
        layer.SingleLayer((1, 30, 4), (5,), 6, strides=2, padding="CAUSAL"),
        layer.SingleLayer((2, 9, 12, 4), (5, 5), 6, strides=(2, 1), padding=((0, 1), (2, 2)), groups=2),
        layer.SingleLayer((1, 9, 12, 4), (7, 3), 6, padding=1),
        layer.SingleLayer((1, 6, 7, 5, 2), (5, 5, 5), 4),
    ],
    ids=["1-D", "2-D, groups", "oblong", "3-D"],
)
def test_both_dense_ways_agree_and_chains_stand_for_the_same_kernel(single):
    x = jax.random.normal(jax.random.key(0), single.x_shape)
    kernel = jax.random.normal(jax.random.key(1), single.kernel_shape)
    y = layer.plain_layer(single)(x, kernel)
    assert y.shape == layer.check_layer(single)
    expected = jaxcnn.conv(x, kernel, feature_group_count=single.groups, **single.options)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)

    candidates = [*layer.separable_candidates(single, ())[0], *layer.stack_candidates(single)[0]]
    for candidate in candidates:
        assert candidate.chain.shape == single.kernel_shape
        assert candidate.chain.feature_group_count == single.groups


def test_costs_by_hand():
    # 56 * 56 pixels; dense 121 * 64 * 64; 11x1 and 1x11 of rank R: R * 11 * (64 + 64).
    single = layer.SingleLayer((1, 56, 56, 64), (11, 11), 64)
    assert single.cost(single.kernel_shape).macs == 56 * 56 * 121 * 64 * 64
    (candidate,), notes = layer.separable_candidates(single, (8,))
    assert notes == []
    assert single.cost(candidate.chain).macs == 56 * 56 * 8 * 11 * 128
    assert single.cost(candidate.chain).params == 8 * 11 * 128
    half = layer.SingleLayer((1, 56, 56, 64), (11, 11), 64, dtype="bfloat16")
    assert 2 * half.cost(half.kernel_shape).bytes == single.cost(single.kernel_shape).bytes


def test_default_ranks_and_widths_keep_to_their_shares():
    single = layer.SingleLayer((1, 16, 16, 16), (5, 5), 16)
    dense = single.cost(single.kernel_shape).macs
    separable, _ = layer.separable_candidates(single, ())
    assert [candidate.name for candidate in separable] == ["separable R=5", "separable R=10", "separable R=20"]
    for candidate, share in zip(separable, layer.SHARES, strict=True):
        assert single.cost(candidate.chain).macs <= share * dense
    stacked, _ = layer.stack_candidates(single)
    assert stacked[-1].name == "stack F=16"  # the width of the layer itself


@pytest.mark.parametrize(
    ("single", "reasons"),
    [
        (layer.SingleLayer((1, 30, 4), (4,), 6), ["extent along two axes", "this one is 4"]),
        (layer.SingleLayer((1, 9, 9, 4), (3, 3), 6), ["this one is 3x3"]),
        (layer.SingleLayer((1, 9, 9, 4), (1, 1), 6), ["extent along two axes", "this one is 1x1"]),
    ],
)
def test_what_does_not_apply_says_why(single, reasons):
    _, separable = layer.separable_candidates(single, ())
    _, stacked = layer.stack_candidates(single)
    notes = separable + stacked
    assert len(notes) == len(reasons)
    for note, reason in zip(notes, reasons, strict=True):
        assert reason in note


def test_ranks_beyond_the_kernel_are_left_out_with_the_reason():
    single = layer.SingleLayer((1, 9, 9, 2), (3, 3), 8)
    candidates, notes = layer.separable_candidates(single, (2, 2, 7))
    assert [candidate.name for candidate in candidates] == ["separable R=2"]
    assert notes == ["separable R=7: the kernel's rank is at most 6"]


def test_whole_command():
    section = run(layer.SingleLayer((1, 8, 8, 2), (5, 5), 2, dtype="bfloat16"), ranks=(3, 99))
    (table,) = section.tables
    assert [row[0] for row in table.rows][:3] == ["lax, dense", "jaxcnn, dense", "separable R=3"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    terminal_tables.assert_whole(
        table,
        (
            "separable R=128",
            "11x1x1 1x11x1 1x1x11",
            "11,586.42",
            "100%",
            "1,982,464",
            "1,103.02",
            "1117.520",
            "116.59x",
        ),
    )
    assert any("R=99" in note for note in table.notes)
    assert "error" in section.text


def test_layers_that_conv_refuses():
    with pytest.raises(ValueError, match="a window of 2 axes needs an input of 4 numbers"):
        layer.check_layer(layer.SingleLayer((1, 8, 4), (3, 3), 4))
    with pytest.raises(ValueError, match="must both divide into 3 groups"):
        layer.check_layer(layer.SingleLayer((1, 8, 8, 4), (3, 3), 6, groups=3))
    with pytest.raises(ValueError, match="window is larger than its padded input"):
        layer.check_layer(layer.SingleLayer((1, 2, 8, 4), (3, 3), 6, padding="VALID"))
