"""Messages about arguments that are no arrays."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn

CALLS = {
    "conv": lambda kernel: jaxcnn.conv(jnp.ones((1, 6, 6, 2)), kernel),
    "conv_transpose": lambda kernel: jaxcnn.conv_transpose(jnp.ones((1, 6, 6, 4)), kernel),
    "avg_pool": lambda x: jaxcnn.avg_pool(x, (2, 2)),
    "adaptive_max_pool": lambda x: jaxcnn.adaptive_max_pool(x, 2),
    "factorize": lambda kernel: jaxcnn.factorize(kernel, tolerance=0.5),
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


def of_lax(params, x):
    kernel = params["conv"]["kernel"]
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def of_jaxcnn(params, x):
    return jaxcnn.conv(x, params["conv"]["kernel"])


TRANSFORMATIONS = {
    "substitute": lambda f, *args: jaxcnn.substitute(f, *args, rank=1, schemes="low_rank"),
    "accelerate": lambda f, *args: jaxcnn.accelerate(f)(*args),
    "summarize": jaxcnn.summarize,
    "with_chains": lambda f, *args: jaxcnn.with_chains(f)(*args),
    "tune": jaxcnn.tune,
}


@pytest.mark.parametrize("f", [of_lax, of_jaxcnn])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_tensor_among_the_arguments_of_a_function_is_named_by_its_path(name, f):
    torch = pytest.importorskip("torch")
    x = jnp.ones((1, 6, 6, 2))
    message = (
        f"{name}: argument 0['conv']['kernel'] must be an array, got {{}}; "
        "a PyTorch tensor is no JAX array: give tensor.detach().numpy()"
    )
    for kernel, kind in ((torch.ones(3, 3, 2, 4), "Tensor"), (torch.nn.Parameter(torch.ones(3, 3, 2, 4)), "Parameter")):
        with pytest.raises(TypeError) as error:
            TRANSFORMATIONS[name](f, {"conv": {"kernel": kernel}}, x)
        assert str(error.value) == message.format(kind)


@pytest.mark.parametrize(("value", "kind"), [("text", "str"), (object(), "object"), (np.array(["a"]), "ndarray")])
def test_what_is_no_array_is_named(value, kind):
    with pytest.raises(TypeError, match=rf"^conv: kernel must be an array, got {kind}"):
        CALLS["conv"](value)
