"""The demo's first part: VGG-16 looking at a photograph, before and after its 3x3 kernels become separable pairs."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
import rich.markup
import rich.progress
from scipy import ndimage

import jaxcnn
from jaxcnn.demo import hed, timing
from jaxcnn.demo.images import load_image, to_png
from jaxcnn.demo.network import plain_convolution
from jaxcnn.demo.report import Picture, Section, Table, steps
from jaxcnn.norms import relative_error
from jaxcnn.timing import median_seconds

#: Photographs to whose responses the pairs may be fitted.
CALIBRATION = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "retina")

#: Probability beyond which a pixel counts as an edge.
EDGE_THRESHOLD = 0.5

DEFINITIONS = (
    (
        "Relative error",
        "norm(after - before) / norm(before) over the whole edge map of probabilities, where before is the dense "
        "network.",
    ),
    (
        "Edge F1",
        f"Edges are the pixels of probability above {EDGE_THRESHOLD}. Precision is the share of edge pixels after "
        "that have an edge pixel before within the tolerance (straight-line distance in pixels); recall the same "
        "with before and after exchanged; F1 is 2 x precision x recall / (precision + recall). Tolerance 0 asks "
        "for the very same pixel.",
    ),
)


def edge_f1(before: np.ndarray, after: np.ndarray, *, tolerance: float = 0.0) -> float:
    """Returns the agreement of two masks of edge pixels, from 0 to 1.

    Precision is the share of `after`'s pixels within `tolerance` of one of `before`'s; recall is the share of
    `before`'s within `tolerance` of one of `after`'s; the result is their harmonic mean.  Two empty masks agree
    (1); an empty and a non-empty one do not (0).
    """
    if not before.any() or not after.any():
        return float(before.any() == after.any())
    precision = float((ndimage.distance_transform_edt(~before)[after] <= tolerance).mean())
    recall = float((ndimage.distance_transform_edt(~after)[before] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def find_pairs(
    network: hed.Network,
    x: jax.Array,
    share: float,
    *,
    calibration: Sequence[jax.Array],
    seed: int,
    progress: Callable[[float, float], None] | bool = False,
) -> jaxcnn.Substitution:
    """Returns the edge detector with the 3x3 kernels of VGG-16 replaced by pairs of 3x1 and 1x3 kernels.

    Args:
      network: dense layers.
      x: preprocessed photograph, on which the result is verified.
      share: share of the multiply-accumulates of all convolutions that may stay.
      calibration: preprocessed photographs to whose responses the pairs are fitted; without any, the pairs are
        fitted to the weights.
      seed: seed for the places where responses are taken.
      progress: option of `jaxcnn.substitute`.
    """
    return jaxcnn.substitute(
        partial(hed.edge_map, convolution=plain_convolution),
        dict(network),
        x,
        macs=share,
        count="macs",
        max_error=math.inf,
        calibration=list(calibration) or None,
        schemes="separable",
        skip=("side", "fuse"),
        seed=seed,
        progress=progress,
    )


def calibration_photographs(name: str) -> list[jax.Array]:
    """Returns the bundled photographs other than `name`, preprocessed, 256 pixels at their longer side."""
    return [hed.preprocess(load_image(other, long_side=256)) for other in CALIBRATION if other != name]


def run_edges(
    photograph: np.ndarray,
    network: hed.Network,
    *,
    name: str,
    share: float,
    calibrate: bool,
    seed: int,
    bars: rich.progress.Progress,
    rounds: int = 5,
) -> Section:
    """Runs the edge detector dense and with separable pairs, and reports speed, error and pictures.

    The times of the dense network are printed above the bars as soon as they are known.

    Args:
      photograph: uint8 RGB, (height, width, 3).
      network: dense layers, from `hed.load_network`.
      name: name of the photograph in the report.
      share: share of the multiply-accumulates that the network may keep, in (0, 1].
      calibrate: flag that fits the pairs to the responses to other photographs, which takes minutes.
      seed: seed for the places where responses are taken.
      bars: progress bars.
      rounds: number of blocks of calls for each timing.
    """
    height, width = photograph.shape[:2]
    x = hed.preprocess(photograph)
    dense_map = jax.jit(partial(hed.edge_map, convolution=plain_convolution))
    exact_map = jaxcnn.accelerate(hed.edge_map)
    calls = {"before": lambda: dense_map(network, x), "exact": lambda: exact_map(network, x)}
    _, results = timing.compile_all(calls, bars, "the edge detector")
    bars.console.print(_first_result(name, median_seconds(calls, rounds=2)), highlight=False)

    photographs = calibration_photographs(name) if calibrate else []
    with steps(bars, "Fitting pairs to responses" if calibrate else "Finding pairs of kernels") as progress:
        substitution = find_pairs(network, x, share, calibration=photographs, seed=seed, progress=progress)

    pair_map = jaxcnn.accelerate(substitution.apply)
    calls["after"] = lambda: pair_map(substitution.params, x)
    results |= timing.compile_all({"after": calls["after"]}, bars, "the pairs")[1]
    task = bars.add_task("Timing the whole network", total=rounds)
    whole = median_seconds(calls, rounds=rounds, after_round=lambda: bars.advance(task))
    before, after = np.asarray(results["before"]), np.asarray(results["after"])

    error = relative_error(after, before)
    masks = before > EDGE_THRESHOLD, after > EDGE_THRESHOLD
    exact, near = edge_f1(*masks), edge_f1(*masks, tolerance=1.0)
    how = (
        f"fitted to the dense network's responses to {len(photographs)} other photographs"
        if calibrate
        else "made of the weights alone (truncated singular value decomposition); `--calibrate` fits them to responses"
    )
    return Section(
        title="VGG-16 looking at a photograph",
        text=(
            f"The trained edge detector HED (13 convolutions of VGG-16) on {name}, {height} x {width} pixels: "
            f"dense, and with its 3x3 kernels replaced by pairs of 3x1 and 1x3 kernels that keep at most {share:.4g} "
            f"of the network's MACs ({substitution.report.macs_share:.4f}), by jaxcnn.substitute: each layer as many "
            f"as serve the whole best. The pairs are {how}; nothing was trained again."
        ),
        figures=(
            ("Edge detector, same kernels by jaxcnn: times faster", f"{whole['before'] / whole['exact']:.2f}x"),
            ("Edge detector, pairs of kernels: times faster", f"{whole['before'] / whole['after']:.2f}x"),
            ("Edge detector: times fewer MACs", f"{1 / substitution.report.macs_share:.2f}x"),
            ("Relative error of the edge map", f"{error:.3f}"),
            ("Edge F1, same pixel", f"{exact:.3f}"),
            ("Edge F1, within 1 pixel", f"{near:.3f}"),
        ),
        pictures=(
            Picture(f"The photograph: {name}", to_png(photograph)),
            Picture(f"Edges before: dense kernels, {1e3 * whole['before']:.0f} ms", to_png(before)),
            Picture(f"Edges after: separable pairs, {1e3 * whole['after']:.0f} ms", to_png(after)),
        ),
        tables=(_layer_table(substitution.report, whole),),
    )


def _first_result(name: str, seconds: Mapping[str, float]) -> str:
    """Returns the times of the dense network in words, as rich's markup."""
    before, exact = seconds["before"], seconds["exact"]
    return (
        f"[bold]Edges in {rich.markup.escape(name)}[/bold], dense kernels: {1e3 * before:.0f} ms a call in jax.lax, "
        f"{1e3 * exact:.0f} ms through jaxcnn.accelerate ({before / exact:.1f}x). Now with small kernels:"
    )


def _layer_table(report: jaxcnn.SubstitutionReport, whole: Mapping[str, float]) -> Table:
    """Returns the table of MACs and times, one row for each layer and one for the whole network."""
    rows: list[tuple[str, ...]] = []
    for row in report.rows:
        *window, channels, features = row.kernel
        times = ("", "", "")
        if row.ms_before is not None and row.ms_after is not None:
            times = (f"{row.ms_before:.2f}", f"{row.ms_after:.2f}", f"{row.ms_before / row.ms_after:.2f}x")
        rows.append(
            (
                row.name.removesuffix("/kernel"),
                f"{'x'.join(map(str, window))} {channels}->{features}",
                str(row.rank or "dense"),
                f"{row.macs_before / 1e6:,.1f}",
                f"{row.macs_after / 1e6:,.1f}",
                *times,
            )
        )
    macs = f"{report.macs_before / 1e6:,.1f}", f"{report.macs_after / 1e6:,.1f}"
    before, after = whole["before"], whole["after"]
    rows.append(("network", "", "", *macs, f"{1e3 * before:.2f}", f"{1e3 * after:.2f}", f"{before / after:.2f}x"))
    explained_rows = [row for row in report.rows if row.reason and not row.name.startswith(("side", "fuse"))]
    reasons = {row.reason for row in explained_rows if row.scheme == "dense"}
    slower = ", ".join(row.name.removesuffix("/kernel") for row in explained_rows if row.scheme != "dense")
    return Table(
        "Layer by layer",
        ("layer", "kernel", "rank", "M MACs\nbefore", "M MACs\nafter", "ms\nbefore", "ms\nafter", "times\nfaster"),
        tuple(rows),
        text_columns=2,
        notes=(
            "Million MACs (multiplications each with an addition) and milliseconds, before and after. The 1x1 kernels "
            "of the side outputs stay as they are.",
            *(f"Of the 3x3 kernels that stay dense: {reason}." for reason in sorted(reasons)),
            *(
                (f"Slower than the kernel, and there because multiply-accumulates are what counts: {slower}.",)
                if slower
                else ()
            ),
        ),
    )
