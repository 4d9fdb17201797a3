"""`fold_scale`: a batch normalisation in the kernel before it, by convolving."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import KernelChain, conv, fold_scale
from support import arrays
from support.arrays import normal

assert_close = partial(arrays.assert_close, relative=1e-5)


def batch_norm(y, scale=1.0, offset=0.0, mean=0.0, variance=None, epsilon=1e-5):
    """Its definition, in float64."""
    y = np.asarray(y, np.float64)
    deviation = 1.0 if variance is None else np.sqrt(np.asarray(variance, np.float64) + epsilon)
    return (y - mean) / deviation * scale + offset


@pytest.mark.parametrize(
    "names", [(), ("scale",), ("offset",), ("mean",), ("variance",), ("scale", "offset", "mean", "variance")]
)
@pytest.mark.parametrize("biased", [False, True])
def test_a_batch_norm_goes_into_the_kernel(names, biased, rng):
    kernel, x = normal((3, 3, 2, 4), rng), normal((2, 6, 6, 4), rng)
    drawn = {name: normal((4,), rng) for name in ("scale", "offset", "mean")}
    drawn["variance"] = np.square(normal((4,), rng))
    norm = {name: drawn[name] for name in names}
    bias = normal((4,), rng) if biased else None
    y = np.asarray(conv(x, kernel, feature_group_count=2)) + (0 if bias is None else bias)
    folded, folded_bias = fold_scale(kernel, bias=bias, epsilon=1e-3, **norm)
    assert folded.shape == kernel.shape
    assert folded_bias.shape == (4,)
    assert_close(
        np.asarray(conv(x, folded, feature_group_count=2)) + np.asarray(folded_bias),
        batch_norm(y, epsilon=1e-3, **norm),
    )


def test_a_batch_norm_goes_into_the_last_link_of_a_chain(rng):
    chain = KernelChain((normal((3, 1, 2, 3), rng), normal((1, 3, 3, 4), rng)))
    scale, mean, x = normal((4,), rng), normal((4,), rng), normal((2, 6, 6, 2), rng)
    folded, bias = fold_scale(chain, scale=scale, mean=mean, layout="NCHW")
    assert isinstance(folded, KernelChain)
    assert folded.kernels[0] is chain.kernels[0]
    assert_close(np.asarray(conv(x, folded)) + np.asarray(bias), batch_norm(conv(x, chain), scale=scale, mean=mean))


def test_fold_scale_in_channels_first_and_in_16_bits(rng):
    kernel, scale = normal((3, 3, 2, 4), rng), normal((4,), rng)
    expected, _ = fold_scale(kernel, scale=scale, variance=np.full(4, 1e-6, np.float32))
    first, _ = fold_scale(
        kernel.transpose(3, 2, 0, 1), scale=scale, variance=np.full(4, 1e-6, np.float32), layout="NCHW"
    )
    np.testing.assert_array_equal(first.transpose(2, 3, 1, 0), expected)
    narrow, bias = fold_scale(jnp.asarray(kernel, jnp.float16), scale=scale, variance=np.full(4, 1e-6, np.float32))
    assert narrow.dtype == bias.dtype == jnp.float16
    np.testing.assert_allclose(narrow.astype(np.float32), expected, rtol=2e-3)


def test_flax_and_torch_agree_on_what_a_batch_norm_is(rng):
    torch = pytest.importorskip("torch")
    layer, norm = torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.BatchNorm2d(5)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.from_numpy(np.abs(normal((5,), rng))))
    x = normal((2, 3, 6, 6), rng)
    with torch.no_grad():
        expected = norm.eval()(layer(torch.from_numpy(x))).numpy()
    of = {"scale": norm.weight, "offset": norm.bias, "mean": norm.running_mean, "variance": norm.running_var}
    numbers = {name: tensor.detach().numpy() for name, tensor in of.items()}
    kernel, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    folded, folded_bias = fold_scale(kernel, bias=bias, layout="NCHW", epsilon=norm.eps, **numbers)
    assert_close(conv(x, folded, padding=1, layout="NCHW") + folded_bias.reshape(1, 5, 1, 1), expected)


@pytest.mark.parametrize("name", ["scale", "offset", "mean", "variance", "bias"])
def test_errors_of_fold_scale(name):
    message = rf"fold_scale: {name} must have one value for each of the kernel's 4 output channels, got shape \(3,\)"
    with pytest.raises(ValueError, match=message):
        fold_scale(np.ones((3, 3, 3, 4), np.float32), **{name: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match=r"fold_scale: kernel must have at least one window axis.*got shape \(3, 4\)"):
        fold_scale(np.ones((3, 4), np.float32))
    with pytest.raises(TypeError, match=r"fold_scale: kernel must be of floats, .* got dtype int32"):
        fold_scale(np.ones((3, 3, 3, 4), np.int32), scale=np.full(4, 0.5, np.float32))
