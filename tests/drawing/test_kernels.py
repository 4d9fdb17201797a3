"""Pictures of kernels and chains."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

import jaxcnn
from jaxcnn.drawing import draw_kernels


def test_each_weight_is_a_pixel_of_its_window():
    kernel = np.random.default_rng(0).standard_normal((3, 2, 2, 4)).astype(np.float32)
    image = draw_kernels(kernel).axes[0].images[0].get_array()
    assert image.shape == (2 * 4 - 1, 4 * 3 - 1)
    for inputs, outputs in np.ndindex(2, 4):
        window = image[inputs * 4 : inputs * 4 + 3, outputs * 3 : outputs * 3 + 2]
        np.testing.assert_array_equal(window, kernel[:, :, inputs, outputs])
    assert np.isnan(np.asarray(image)[3]).all()


def test_a_chain_is_drawn_kernel_by_kernel_and_dense():
    rng = np.random.default_rng(0)
    chain = jaxcnn.separable(jnp.asarray(rng.standard_normal((5, 5, 3, 40)), jnp.float32), rank=2)
    panels = draw_kernels(chain).axes
    assert [axes.get_title().split(",")[0] for axes in panels] == ["5×1", "1×5", "dense 5×5"]  # noqa: RUF001
    assert panels[2].get_xlabel() == "output channel\n(the first 16 of 40)"
    assert panels[2].get_ylabel() == "input channel"
    assert len(draw_kernels(chain, dense=False).axes) == 2


def test_one_spatial_axis_is_one_row():
    assert draw_kernels(np.ones((5, 1, 1))).axes[0].images[0].get_array().shape == (1, 5)


def test_errors():
    with pytest.raises(ValueError, match=r"input and output channels, got shape \(3, 3\)"):
        draw_kernels(np.ones((3, 3)))
    with pytest.raises(ValueError, match="max_inputs and max_outputs must be at least 1, got 0, 16"):
        draw_kernels(np.ones((3, 3, 1, 1)), max_inputs=0)
