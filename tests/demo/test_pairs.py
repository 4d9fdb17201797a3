import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn.demo import lite0, pairs
from support import demo_networks


def test_pairs_take_the_place_of_5x5_alone(lite0_network):
    substituted = pairs.find_pairs(lite0_network, jnp.ones((1, 32, 32, 3)), calibration=(), seed=0).params
    chains = {name for name, layer in substituted.items() if isinstance(layer.kernel, jaxcnn.KernelChain)}
    assert chains == {"depthwise1"}
    chain = substituted["depthwise1"].kernel
    assert [link.shape for link in chain.kernels] == [
        (5, 1, 1, 2 * demo_networks.LITE0_WIDE),
        (1, 5, 2, demo_networks.LITE0_WIDE),
    ]
    np.testing.assert_array_equal(substituted["depthwise1"].bias, lite0_network["depthwise1"].bias)
    assert isinstance(lite0_network["depthwise1"].kernel, jax.Array)  # the network itself is as it was


def test_pairs_of_responses_are_nearer_than_those_of_weights(lite0_network, monkeypatch):
    monkeypatch.setattr(lite0, "SIDE", 32)
    random = np.random.default_rng(0)
    photographs = [random.integers(0, 256, (40, 50, 3)).astype(np.uint8) for _ in range(3)]
    x = lite0.preprocess(lite0.central_square(photographs[2]))
    fitted, of_weights = (
        pairs.find_pairs(lite0_network, x, calibration=calibration, seed=0) for calibration in (photographs[:2], ())
    )
    links = fitted.params["depthwise1"].kernel.kernels
    assert [link.shape for link in links] == [
        (5, 1, 1, 2 * demo_networks.LITE0_WIDE),
        (1, 5, 2, demo_networks.LITE0_WIDE),
    ]
    assert fitted.report.error < 0.5 * of_weights.report.error
