"""Part a of the demo: VGG-16 looking at a photograph, before and after its 3x3 kernels become separable pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import rich.progress
from scipy import ndimage

import jaxcnn
from jaxcnn.demo import hed, timing
from jaxcnn.demo.chains import separable_shapes, widest_within
from jaxcnn.demo.images import to_png
from jaxcnn.demo.network import Layer, plain_convolution
from jaxcnn.demo.report import Picture, Section, Table

#: A layer with less than this share of the network's MACs keeps its dense kernel.  In VGG-16 that is the first layer
#: alone: nothing is gained there, and an error made on the raw pixels reaches every layer after it.
NEGLIGIBLE = 0.01

#: A pixel is an edge where the network's probability exceeds this.
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


@dataclass(frozen=True)
class LayerPlan:
    """What is done with one layer: the rank of its separable pair (0: it stays dense) and its MACs."""

    name: str
    x_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    rank: int
    macs_before: int
    macs_after: int


def pair_macs(x_shape: Sequence[int], kernel_shape: Sequence[int], rank: int) -> int:
    """MACs of a (height, 1) kernel to `rank` channels and then a (1, width) kernel, as `jaxcnn.conv` runs them."""
    return jaxcnn.conv_cost(x_shape, separable_shapes(kernel_shape, rank)).macs


def rank_for_share(x_shape: Sequence[int], kernel_shape: Sequence[int], share: float) -> int:
    """The largest rank at which a separable pair costs at most this share of the dense layer's MACs.

    It is at least 1, at most the rank at which the pair is exact, and 0 (keep the dense kernel) where even rank
    1 would cost more than the dense layer does.
    """
    height, width, channels, features = kernel_shape
    dense = jaxcnn.conv_cost(x_shape, kernel_shape).macs
    if pair_macs(x_shape, kernel_shape, 1) > dense:
        return 0
    rank = widest_within(lambda rank: pair_macs(x_shape, kernel_shape, rank), share * dense)
    return max(1, min(rank, height * channels, width * features))


def plan_layers(
    x_shapes: Mapping[str, Sequence[int]], kernel_shapes: Mapping[str, Sequence[int]], share: float
) -> tuple[LayerPlan, ...]:
    """Choose each layer's rank so that its pair keeps at most `share` of its MACs; negligible layers stay dense."""
    dense = {name: jaxcnn.conv_cost(x_shapes[name], kernel_shapes[name]).macs for name in x_shapes}
    total = sum(dense.values())
    plans = []
    for name, macs in dense.items():
        negligible = macs < NEGLIGIBLE * total
        rank = 0 if negligible else rank_for_share(x_shapes[name], kernel_shapes[name], share)
        after = pair_macs(x_shapes[name], kernel_shapes[name], rank) if rank else macs
        plans.append(LayerPlan(name, tuple(x_shapes[name]), tuple(kernel_shapes[name]), rank, macs, after))
    return tuple(plans)


def edge_f1(before: np.ndarray, after: np.ndarray, *, tolerance: float = 0.0) -> float:
    """Agreement of two masks of edge pixels, from 0 to 1.

    Precision is the share of `after`'s pixels within `tolerance` of one of `before`'s; recall is the share of
    `before`'s within `tolerance` of one of `after`'s; the result is their harmonic mean.  Two empty masks agree
    (1); an empty and a non-empty one do not (0).
    """
    if not before.any() or not after.any():
        return float(before.any() == after.any())
    precision = float((ndimage.distance_transform_edt(~before)[after] <= tolerance).mean())
    recall = float((ndimage.distance_transform_edt(~after)[before] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def relative_error(after: np.ndarray, before: np.ndarray) -> float:
    """norm(after - before) / norm(before)."""
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def substitute_pairs(
    network: hed.Network, plans: Sequence[LayerPlan], bars: rich.progress.Progress
) -> dict[str, Layer]:
    """The network with each planned kernel replaced by its separable pair of the planned rank."""
    substituted = dict(network)
    for plan in bars.track(plans, description="Splitting kernels"):
        if plan.rank:
            layer = network[plan.name]
            substituted[plan.name] = Layer(jaxcnn.separable(layer.kernel, rank=plan.rank), layer.bias)
    return jax.block_until_ready(substituted)


def time_layers(
    network: hed.Network,
    substituted: hed.Network,
    plans: Sequence[LayerPlan],
    *,
    rounds: int,
    seed: int,
    bars: rich.progress.Progress,
) -> dict[str, tuple[float, float]]:
    """Seconds before and after of each layer alone, on input of the shape that it has in the network."""
    plain, chained = jax.jit(plain_convolution), jax.jit(jaxcnn.conv)
    seconds = {}
    for index, plan in enumerate(bars.track(plans, description="Timing each layer")):
        x = jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), plan.x_shape)
        calls = {"before": partial(plain, x, network[plan.name].kernel)}
        if plan.rank:
            calls["after"] = partial(chained, x, substituted[plan.name].kernel)
        medians = timing.compare(calls, rounds=rounds, block_seconds=0.05)
        seconds[plan.name] = (medians["before"], medians.get("after", medians["before"]))
    return seconds


def run_edges(
    photograph: np.ndarray,
    network: hed.Network,
    *,
    name: str,
    share: float,
    seed: int,
    bars: rich.progress.Progress,
    rounds: int = 5,
) -> Section:
    """Run the edge detector dense and with separable pairs, and report speed, error and pictures.

    Args:
      photograph: uint8 RGB, (height, width, 3).
      network: the dense layers, from `hed.load_network`.
      name: what the photograph is called in the report.
      share: the share of its MACs that each layer may keep, in (0, 1].
      seed: of the random input on which single layers are timed.
      bars: where progress is shown.
      rounds: blocks of calls for each timing.
    """
    height, width = photograph.shape[:2]
    shapes = hed.input_shapes(network, height, width)
    plans = plan_layers(shapes, {layer: network[layer].kernel.shape for layer in shapes}, share)
    substituted = substitute_pairs(network, plans, bars)

    x = hed.preprocess(photograph)
    dense_map = jax.jit(partial(hed.edge_map, convolution=plain_convolution))
    chain_map = jax.jit(hed.edge_map)
    task = bars.add_task("Timing the whole network", total=rounds)
    whole = timing.compare(
        {
            "before": lambda: dense_map(network, x),
            "exact": lambda: chain_map(network, x),
            "after": lambda: chain_map(substituted, x),
        },
        rounds=rounds,
        after_round=lambda: bars.advance(task),
    )
    before, after = np.asarray(dense_map(network, x)), np.asarray(chain_map(substituted, x))
    # Fewer rounds for single layers: there are thirteen, and the speed-up reported is the whole network's.
    layers = time_layers(network, substituted, plans, rounds=min(rounds, 3), seed=seed, bars=bars)

    error = relative_error(after, before)
    masks = before > EDGE_THRESHOLD, after > EDGE_THRESHOLD
    exact, near = edge_f1(*masks), edge_f1(*masks, tolerance=1.0)
    speedup = whole["before"] / whole["after"]
    macs_before, macs_after = sum(p.macs_before for p in plans), sum(p.macs_after for p in plans)
    return Section(
        title="VGG-16 looking at a photograph",
        text=(
            f"The trained edge detector HED (13 convolutions of VGG-16) on {name}, {height} x {width} pixels: "
            f"dense, and with each 3x3 kernel replaced by a 3x1 and a 1x3 kernel that keep at most {share:.4g} of "
            f"its MACs ({macs_after / macs_before:.4f} of all). The pairs come from the weights alone (truncated "
            "singular value decomposition); nothing was trained again."
        ),
        figures=(
            ("Edge detector, same kernels by jaxcnn: times faster", f"{whole['before'] / whole['exact']:.2f}x"),
            ("Edge detector, pairs of kernels: times faster", f"{speedup:.2f}x"),
            ("Edge detector: times fewer MACs", f"{macs_before / macs_after:.2f}x"),
            ("Relative error of the edge map", f"{error:.3f}"),
            ("Edge F1, same pixel", f"{exact:.3f}"),
            ("Edge F1, within 1 pixel", f"{near:.3f}"),
        ),
        pictures=(
            Picture(f"The photograph: {name}", to_png(photograph)),
            Picture(f"Edges before: dense kernels, {1e3 * whole['before']:.0f} ms", to_png(before)),
            Picture(f"Edges after: separable pairs, {1e3 * whole['after']:.0f} ms", to_png(after)),
        ),
        tables=(_layer_table(plans, layers, whole),),
    )


def _layer_table(
    plans: Sequence[LayerPlan], layers: Mapping[str, tuple[float, float]], whole: Mapping[str, float]
) -> Table:
    """One row for each layer, then their sum, then the network run as a whole."""

    def row(label: str, kernel: str, rank: str, macs: Sequence[int], seconds: Sequence[float]) -> tuple[str, ...]:
        before, after = seconds
        return (
            label,
            kernel,
            rank,
            *(f"{count / 1e6:,.0f}" for count in macs),
            *(f"{1e3 * time:.2f}" for time in seconds),
            f"{before / after:.2f}x",
        )

    rows: list[tuple[str, ...]] = []
    for plan in plans:
        height, width, channels, features = plan.kernel_shape
        rows.append(
            row(
                plan.name,
                f"{height}x{width} {channels}->{features}",
                str(plan.rank) if plan.rank else "dense",
                (plan.macs_before, plan.macs_after),
                layers[plan.name],
            )
        )
    macs = (sum(p.macs_before for p in plans), sum(p.macs_after for p in plans))
    seconds = (sum(before for before, _ in layers.values()), sum(after for _, after in layers.values()))
    rows.append(row("13 layers", "", "", macs, seconds))
    rows.append(row("network", "", "", macs, (whole["before"], whole["after"])))
    kept = [plan.name for plan in plans if not plan.rank]
    notes = ["Million MACs (multiplications each with an addition) and milliseconds, before and after."]
    if kept:
        notes.append(
            f"{', '.join(kept)} stays dense: it has under {NEGLIGIBLE:.0%} of the MACs, so a pair could save next "
            "to nothing, and an error made there reaches every layer after it."
        )
    return Table(
        "Layer by layer",
        ("layer", "kernel", "rank", "M MACs\nbefore", "M MACs\nafter", "ms\nbefore", "ms\nafter", "times\nfaster"),
        tuple(rows),
        text_columns=2,
        notes=tuple(notes),
    )
