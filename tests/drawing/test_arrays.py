"""Pictures of arrays in a row."""

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from jaxcnn.drawing import draw_arrays


def texts(figure):
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


def test_arrays_in_a_row():
    figure = draw_arrays([[1], [2]], "times", [3, 4.5], titles=["column"])
    assert texts(figure) == ["1", "2", "column", "times", "3", "4.5", ""]


def test_large_arrays_have_no_numbers():
    assert texts(draw_arrays(np.ones((20, 20)))) == [""]


@pytest.mark.parametrize("items", [("=",), (np.ones((2, 2, 2)),)])
def test_errors(items):
    with pytest.raises(ValueError, match="there must be arrays of one or two axes, got shapes"):
        draw_arrays(*items)
