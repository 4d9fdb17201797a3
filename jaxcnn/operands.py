"""The operands of a public function, brought to the form that the primitives take: dtype, padding, links in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from jaxcnn.arguments import PADDING_MODES, ConvArguments
from jaxcnn.chain import plan_links
from jaxcnn.dtypes import floating_at_least_float32, integer_at_least_int32
from jaxcnn.geometry import Pair, dilated_size, output_sizes
from jaxcnn.primitives import bind_conv


def _setting(name: str) -> Any:
    """A setting of JAX, as the active context has it."""
    return getattr(jax.config, name)


def check_arrays(operation: str, **operands: Any) -> None:
    """Refuses a list, a tuple or None in the place of an array, as JAX's functions do."""
    for name, operand in operands.items():
        if not (hasattr(operand, "shape") and hasattr(operand, "dtype")):
            raise TypeError(f"{operation}: {name} must be an array, got {type(operand).__name__}")


def common_dtype(operation: str, x: jax.Array, kernel: Any) -> np.dtype:
    """The dtype to which x and the kernel promote under the user's promotion setting."""
    try:
        return jnp.promote_types(x.dtype, kernel.dtype)
    except ValueError as error:
        raise TypeError(
            f"{operation}: x is {x.dtype} and kernel is {kernel.dtype}, which do not promote under "
            f"jax_numpy_dtype_promotion={_setting('jax_numpy_dtype_promotion')!r}; cast one of them"
        ) from error


def result_dtype(operation: str, dtype: np.dtype, preferred_element_type: DTypeLike | None) -> np.dtype:
    """The dtype of the result: the operands', int32 at least for integers, unless another is preferred."""
    if preferred_element_type is None:
        return integer_at_least_int32(dtype)
    preferred = jax.dtypes.canonicalize_dtype(preferred_element_type)
    if jnp.issubdtype(dtype, jnp.inexact) and not jnp.issubdtype(preferred, jnp.inexact):
        raise TypeError(f"{operation}: preferred_element_type {preferred} cannot hold results of {dtype} operands")
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.issubdtype(preferred, jnp.complexfloating):
        raise TypeError(f"{operation}: preferred_element_type {preferred} cannot hold results of {dtype} operands")
    return preferred


def user_precision(precision: Any) -> Any:
    """The precision asked for, or the one set for all matrix products."""
    # Read here, where the user's context is still active, and not when the primitive is lowered.
    return _setting("jax_default_matmul_precision") if precision is None else precision


def pad_edges(x: jax.Array, padding: Sequence[Pair], fill: Any = 0, mode: str = "zeros") -> jax.Array:
    """Pads the spatial axes of (N, *spatial, C) with a value or in one of `PADDING_MODES`; crops where negative."""
    if mode != "zeros":
        added = [(max(low, 0), max(high, 0)) for low, high in padding]
        if any(map(any, added)):
            x = jnp.pad(x, ((0, 0), *added, (0, 0)), mode=PADDING_MODES[mode])
        padding = [(min(low, 0), min(high, 0)) for low, high in padding]
    if not any(map(any, padding)):
        return x
    return lax.pad(x, jnp.asarray(fill, x.dtype), ((0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)))


def _padded_input(x: jax.Array, arguments: ConvArguments) -> tuple[jax.Array, dict[str, Any]]:
    """x with everything done to it that the primitive does not do, and the padding and input dilation that are left.

    The primitive takes no padding of another mode than zeros and no negative padding (XLA reads out of bounds for some:
    openxla/xla#48713).
    """
    if arguments.padding_mode != "zeros":
        x = pad_edges(x, arguments.padding, mode=arguments.padding_mode)
        return x, {"padding": ((0, 0),) * arguments.order.rank, "input_dilation": arguments.input_dilation}
    padding, dilation = list(arguments.padding), list(arguments.input_dilation)
    for axis, (low, high) in enumerate(arguments.padding):
        # lax refuses symbolic padding of a convolution, which "SAME" of a symbolic size is with a stride.
        if not (isinstance(low, int) and isinstance(high, int)) or min(low, high) < 0:
            config = [(0, 0, 0)] * x.ndim
            config[axis + 1] = (low, high, dilation[axis] - 1)
            x = lax.pad(x, jnp.zeros((), x.dtype), config)
            padding[axis], dilation[axis] = (0, 0), 1
    return x, {"padding": tuple(padding), "input_dilation": tuple(dilation)}


def bind_links(
    x: jax.Array, kernels: Sequence[jax.Array], counts: Sequence[int], arguments: ConvArguments, **params: Any
) -> jax.Array:
    """The convolution of (N, *spatial, C) with kernels in a row, bound link by link."""
    x, rest = _padded_input(x, arguments)
    windows = [tuple(kernel.shape[:-2]) for kernel in kernels]
    out_dtype = params.pop("preferred_element_type")
    inner = floating_at_least_float32(out_dtype)  # what 16-bit floats stay between links
    for index, link in enumerate(plan_links(windows, arguments.strides, **rest)):
        x = bind_conv(
            x,
            kernels[index],
            feature_group_count=counts[index],
            kernel_dilation=arguments.kernel_dilation,
            preferred_element_type=out_dtype if index == len(kernels) - 1 else inner,
            **link,
            **params,
        )
    return x


def bind_links_transposed(
    y: jax.Array, kernels: Sequence[jax.Array], counts: Sequence[int], arguments: ConvArguments, **params: Any
) -> jax.Array:
    """The adjoint of `bind_links`: from (N, *output, C_out) to (N, *spatial, C_in), link by link from the last."""
    cropped = [min(pair) < 0 for pair in arguments.padding]
    edges = [pair if crops else (0, 0) for pair, crops in zip(arguments.padding, cropped, strict=True)]
    padding = [(0, 0) if crops else pair for pair, crops in zip(arguments.padding, cropped, strict=True)]
    windows = [tuple(kernel.shape[:-2]) for kernel in kernels]
    plan = plan_links(windows, arguments.strides, padding, arguments.input_dilation)
    inputs = [tuple(size + low + high for size, (low, high) in zip(arguments.sizes, edges, strict=True))]
    for window, link in zip(windows, plan, strict=True):
        extents = tuple(map(dilated_size, window, arguments.kernel_dilation))
        inputs.append(output_sizes("conv_transpose", inputs[-1], link["padding"], extents, link["strides"]))
    for index in reversed(range(len(kernels))):
        y = bind_conv(
            y,
            kernels[index],
            role="input",
            input_size=inputs[index],
            sharding=batch_sharding(y),
            feature_group_count=counts[index],
            kernel_dilation=arguments.kernel_dilation,
            **plan[index],
            **params,
        )
    return pad_edges(y, [(-low, -high) for low, high in edges])


def batch_sharding(y: jax.Array) -> Any:
    """On an Explicit mesh, a sharding of the batch axis alone, as y's."""
    sharding = jax.typeof(y).sharding
    if sharding.mesh.empty:
        return None
    spec = jax.sharding.PartitionSpec(sharding.spec[0], *(None,) * (y.ndim - 1))
    return jax.sharding.NamedSharding(sharding.mesh, spec)
