"""`summarize`: the convolutions, pools and dense products of a function, with cost and method of each."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax

from jaxcnn import native
from jaxcnn.cost import Cost
from jaxcnn.receptive_field import ReceptiveField
from jaxcnn.transform.jaxpr.signature import flatten_call, has_split_array
from jaxcnn.transform.summary.layer_names import LayerNames, layer_of, layers_of_constants
from jaxcnn.transform.summary.row import SummaryRow
from jaxcnn.transform.summary.shards import split_program
from jaxcnn.transform.summary.table import received_line, summary_table, totals_line
from jaxcnn.transform.summary.walk import summarize_jaxpr

#: Values of `platform` for `summarize`, in Python and on the command line.
PLATFORMS = ("cpu", "gpu", "cuda", "rocm", "tpu")


@dataclasses.dataclass(frozen=True)
class Summary:
    """The convolutions, pools and dense products of a function, in order of execution; `print` shows a table.

    Args:
      rows: one `SummaryRow` for each.
      notes: remarks on bodies that were counted once but may be executed more or less often, or were not counted.
      native: line on whether this process has the compiled CPU kernels; empty for another platform.
      receptive_field: union of the receptive fields of all rows, and of the results that are images, at the stride of
        the widest; None if one of them is not known.
      received: pairs of a collective operation's name and the bytes that the operation leaves on each device, for all
        of the program; empty if no argument is split over several devices.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxcnn
      >>> f = lambda x, kernel: jaxcnn.max_pool(jaxcnn.conv(x, kernel, strides=2), 2)
      >>> summary = jaxcnn.summarize(f, jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4)))
      >>> [(row.kind, row.output_shape, row.cost.macs) for row in summary.rows]
      [('conv', (1, 4, 4, 4), 1728), ('max pool', (1, 3, 3, 4), 0)]
      >>> summary.total
      Cost(macs=1728, macs_valid=1452, flops=3564, params=108, bytes=1856)
    """

    rows: tuple[SummaryRow, ...]
    notes: tuple[str, ...] = ()
    native: str = ""
    receptive_field: ReceptiveField | None = None
    received: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> Cost:
        """Cost of all rows; a weight that several share counts once."""
        return sum((row.cost for row in self.rows), Cost())

    def to_json(self) -> str:
        """Returns all rows, totals, notes and the state of the native kernels as JSON."""
        content = {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "total": dataclasses.asdict(self.total),
            "notes": self.notes,
            "native": self.native,
            "received": self.received,
        }
        return json.dumps(content)

    def plot(self, *, path: str | os.PathLike[str] | None = None) -> Any:
        """Draws the multiply-accumulates of each layer, as `jaxcnn.drawing.draw_summary` does.

        Args:
          path: file for the picture; its ending decides the format (`.png`, `.svg`, `.pdf`).

        Returns:
          The `matplotlib.figure.Figure`.

        Raises:
          ImportError: matplotlib is not installed.
        """
        return importlib.import_module("jaxcnn.drawing").draw_summary(self, path=path)

    def __str__(self) -> str:
        return summary_table(self.rows).text(self._remarks)

    def _repr_html_(self) -> str:
        return summary_table(self.rows).html(self._remarks)

    @property
    def _remarks(self) -> tuple[str, ...]:
        return tuple(filter(None, (totals_line(self.total), received_line(self.received), *self.notes, self.native)))


def summarize(f: Callable[..., Any], *args: Any, platform: str | None = None) -> Summary:
    """Returns a table of the convolutions, pools and dense products of a function, with the cost and method of each.

    f is traced, not run: nothing is compiled and no device is needed, unless arguments are split over several devices.
    Then the program is compiled, since XLA decides there how to split it, and each row has the shapes, the method and
    the collective operations of one device's part. Bodies of `scan` are multiplied by their length,
    of a `cond` the branch with the most MACs is counted, and the body of a `while` once. A weight is the operand that
    does not depend on the result of a convolution; one that several rows share is counted in the first. The receptive
    field is that of the whole graph: parallel branches give their union, and a sort, a cumulative sum or a Fourier
    transform sees its whole axis (stride 0). The field is not known behind a reshape or a sum over the image.

    Args:
      f: function of arrays: a model, a loss, a gradient, a training step, accelerated or not.
      *args: arguments of f; `jax.ShapeDtypeStruct`s, with a sharding or without, may stand for arrays, and other leaves
        reach f unchanged.
      platform: platform whose methods are shown, `"cpu"` (if left out), `"gpu"`, `"cuda"`, `"rocm"` or `"tpu"`.

    Returns:
      A `Summary`: `.rows`, `.total`, `.to_json()`, and a table when printed or shown in a notebook.

    Raises:
      ValueError: the platform is unknown; an argument is split over a mesh without devices.
      TypeError: f is no function, or an argument that is not an array is not hashable.

    Example:
      >>> import jaxcnn
      >>> x, kernel = jax.ShapeDtypeStruct((1, 32, 32, 8), "float32"), jax.ShapeDtypeStruct((3, 3, 1, 8), "float32")
      >>> summary = jaxcnn.summarize(lambda x, kernel: jaxcnn.conv(x, kernel, feature_group_count=8), x, kernel)
      >>> summary.rows[0].kind, summary.rows[0].cost.macs, summary.rows[0].receptive_field.size
      ('conv', 73728, (3, 3))

    References:
      Receptive fields as in Araujo, Norris and Sim, Distill 2019; MACs as in `conv_cost`.
    """
    if not callable(f):
        raise TypeError(f"summarize: f must be a function, got {f!r}")
    if platform is not None and platform not in PLATFORMS:
        platforms = ", ".join(map(repr, PLATFORMS))
        raise ValueError(f"summarize: platform must be one of {platforms}, got {platform!r}")
    signature, arrays = flatten_call("summarize", args, {})
    platform = platform or "cpu"
    program = split_program(signature.flat(f), arrays) if has_split_array(arrays) else None
    layers = layers_of_constants(f)
    layers.update({number: layer_of(path[2:]) for number, path in enumerate(signature.key_paths())})
    rows, notes, field = summarize_jaxpr(
        jax.make_jaxpr(signature.flat(f))(*arrays), platform, program, LayerNames(layers)
    )
    received = () if program is None else program.received
    return Summary(rows, notes, native.status() if platform == "cpu" else "", field, received)
