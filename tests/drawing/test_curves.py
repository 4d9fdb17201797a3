"""Pictures of what substitutions cost and gain."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxcnn import RankCurve, TradeOff
from jaxcnn.drawing import draw_curves, draw_tradeoff


def test_a_tradeoff_is_a_line_of_speedups_and_errors_with_shares():
    axes = draw_tradeoff(TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06)))).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1.6, 0.02], [2.9, 0.06]]]
    assert [text.get_text() for text in axes.texts] == ["0.5", "0.25"]


def test_budgets_that_end_at_the_same_share_have_one_label():
    axes = draw_tradeoff(TradeOff(((0.6, 1.2, 0.02), (0.381, 1.6, 0.06), (0.379, 1.7, 0.06)))).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.6", "0.38"]


def test_a_tradeoff_draws_itself(tmp_path):
    path = tmp_path / "tradeoff.png"
    axes = TradeOff(((0.5, 1.6, 0.02), (0.25, 2.9, 0.06))).plot(path=path).axes[0]
    assert axes.get_xlabel() == "times faster"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_curves_are_lines_of_shares_and_errors():
    curves = [RankCurve("low_rank", (1, 2), (100, 200), (0.5, 0.1), 400), RankCurve("cp", (3,), (50,), (0.7,), 200)]
    lines = draw_curves(*curves).axes[0].lines
    assert [line.get_label() for line in lines] == ["low_rank", "cp"]
    np.testing.assert_array_equal(lines[0].get_xydata(), [[0.25, 0.5], [0.5, 0.1]])
    np.testing.assert_array_equal(lines[1].get_xydata(), [[0.25, 0.7]])


@pytest.mark.parametrize("draw", [draw_curves, draw_tradeoff])
def test_there_must_be_a_curve(draw):
    with pytest.raises(ValueError, match=f"{draw.__name__}: there must be at least one curve"):
        draw()
