"""Messages about arguments that are no arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn

CALLS = {
    "conv": lambda kernel: jaxcnn.conv(jnp.ones((1, 6, 6, 2)), kernel),
    "max_pool": lambda x: jaxcnn.max_pool(x, (2, 2)),
    "separable": lambda kernel: jaxcnn.separable(kernel, rank=1),
    "dense": lambda kernel: jaxcnn.KernelChain((kernel,)).dense(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_of_pytorch_is_told_how_to_become_an_array(name):
    torch = pytest.importorskip("torch")
    kernel = torch.nn.Parameter(torch.ones(3, 3, 2, 4))
    with pytest.raises(TypeError, match=rf"^{name}: .*\.detach\(\)\.numpy\(\)"):
        CALLS[name](kernel)
    CALLS[name](kernel.detach().numpy())


@pytest.mark.parametrize(("value", "kind"), [("text", "str"), (object(), "object"), (np.array(["a"]), "ndarray")])
def test_what_is_no_array_is_named(value, kind):
    with pytest.raises(TypeError, match=rf"^conv: kernel must be an array, got {kind}"):
        CALLS["conv"](value)
