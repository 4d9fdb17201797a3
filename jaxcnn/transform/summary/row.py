"""`SummaryRow`: one line of a summary."""

from __future__ import annotations

import dataclasses

from jaxcnn.cost import Cost
from jaxcnn.receptive_field import ReceptiveField


@dataclasses.dataclass(frozen=True)
class Shard:
    """Each device's part of an operation whose arrays are split over several devices.

    Args:
      input_shape: shape of the part of the first operand.
      output_shape: shape of the part of the result.
      method: name of the method that computes the part.
      reason: reason for this method.
      received: pairs of a collective operation's name and the bytes that the operation leaves on the device.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    method: str
    reason: str
    received: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class SummaryRow:
    """One convolution, pool or dense product of a function.

    Args:
      kind: `"conv"`, `"transposed conv"`, `"kernel gradient"`, `"max pool"`, `"min pool"`, `"sum pool"`, the gradients
        of pools, or `"dense"`.
      name: name stack of the call, a model's layer; without a named scope the path of the module or the dictionary that
        holds the weight.
      source: line of the user's code that makes the call, outside of libraries of layers.
      input_shape: shape of the first operand, in the function's own layout.
      output_shape: shape of the result.
      kernel: taps of the window on each spatial axis; the shape of the second operand of a dense product.
      strides: step of the window on each spatial axis.
      padding: (low, high) on each spatial axis.
      dilation: distance between neighbouring taps.
      groups: feature groups.
      count: number of executions: the product of the lengths of the scans around the call.
      cost: cost of all executions; the parameters of a weight that several rows share are those of the first row.
      receptive_field: receptive field of an output pixel, in pixels of the function's argument; None if not known.
      method: name of the method that computes the operation.
      reason: reason for this method.
      shards: parts that the devices compute, where the function's arrays are split over several; more than one if the
        same operation is split in several ways.

    Example:
      >>> import jax
      >>> import jaxcnn
      >>> x, kernel = jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"), jax.ShapeDtypeStruct((3, 3, 3, 4), "float32")
      >>> row = jaxcnn.summarize(lambda x, kernel: jaxcnn.conv(x, kernel, strides=2), x, kernel).rows[0]
      >>> row.kind, row.output_shape, row.kernel, row.strides, row.cost.macs
      ('conv', (1, 4, 4, 4), (3, 3), (2, 2), 1728)
    """

    kind: str
    name: str
    source: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    count: int
    cost: Cost
    receptive_field: ReceptiveField | None
    method: str
    reason: str
    shards: tuple[Shard, ...] = ()
