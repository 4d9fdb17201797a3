"""The two commands from their options to the report; what can be refused is refused before any work begins."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import rich.console
import rich.markup

from jaxcnn.demo import DemoError, report, timing
from jaxcnn.demo.layer import DEFINITIONS as LAYER_DEFINITIONS
from jaxcnn.demo.layer import SingleLayer, check_layer, run_layer

MACS = (
    "MACs",
    "Multiplications each with an addition, counted by formula: output pixels x kernel taps x input channels of a "
    "group x output channels, taps on padding included. For a chain, the sum over its kernels. FLOPs would be "
    "twice that.",
)
#: The photograph whose edges are found, unless the user has another.
EDGES_IMAGE = "astronaut"

TIME = ("Time", timing.HOW_TIMED)
BASELINE = (
    "Times faster",
    "Time of the network as it was, its convolutions written with jax.lax.conv_general_dilated and compiled by "
    "jax.jit, divided by the time of what is compared with it.",
)


@dataclass(frozen=True)
class DemoOptions:
    """The options of `jaxcnn demo`, as its help describes them."""

    part: str = "all"
    image: str | None = None  # each part has its own
    long_side: int = 512
    share: float = 0.25
    calibrate: bool = False
    epochs: int = 10
    seed: int = 0
    output: str = "jaxcnn-demo.html"


def run_demo(options: DemoOptions) -> None:
    """Run the demo, show its report on the terminal and write it as one HTML page.

    Raises:
      DemoError: if the image, the weights or the folder of the output are not there.
    """
    # Here, not above: `jaxcnn layer` has to run without the packages that these files import.
    import threadpoolctl

    # The fits are many small solves: with a BLAS thread on each core, on a busy machine, they wait for each other
    # (31 s instead of 1 for one kernel of LeNet-5).
    with threadpoolctl.threadpool_limits(1, "blas"):
        _run_parts(options)


def _run_parts(options: DemoOptions) -> None:
    from jaxcnn.demo import digits, edges, hed, images, lite0, naming

    start = time.perf_counter()
    output = check_output(options.output)
    console = rich.console.Console()
    parts: list[Callable[..., report.Section]] = []
    definitions: list[tuple[str, str]] = [MACS, BASELINE, TIME]

    if options.part in ("naming", "all"):
        photographs = naming.load_photographs(options.image, long_side=options.long_side)
        lite = lite0.load_network(lite0.find_weights())
        parts.append(partial(naming.run_naming, photographs, lite, seed=options.seed))
        definitions.extend(naming.DEFINITIONS)

    if options.part in ("edges", "all"):
        name = options.image or EDGES_IMAGE
        photograph = images.load_image(name, long_side=options.long_side)
        network = hed.load_network(hed.find_weights())
        parts.append(
            partial(
                edges.run_edges,
                photograph,
                network,
                name=Path(name).name,
                share=options.share,
                calibrate=options.calibrate,
                seed=options.seed,
            )
        )
        definitions.extend(edges.DEFINITIONS)

    if options.part in ("digits", "all"):
        train, test = digits.load_digits(options.seed)
        parts.append(partial(digits.run_digits, train, test, epochs=options.epochs, seed=options.seed))
        definitions.extend(digits.DEFINITIONS)

    sections: list[report.Section] = []
    for part in parts:
        if sections:
            console.print()
        with report.progress_bars(console) as bars:
            section = part(bars=bars)
        report.print_section(section, console)
        sections.append(section)

    summary = report.Section(
        title="Summary",
        text=(
            "Trained networks measured on this machine: computed better by jaxcnn, and with their kernels replaced by "
            "chains of smaller ones."
        ),
        figures=(
            *(figure for section in sections for figure in section.figures[:3]),
            ("Total time of the demo", f"{time.perf_counter() - start:.0f} s"),
        ),
    )
    page = report.Report(
        title="jaxcnn demo: trained networks, faster",
        machine=report.describe_machine(),
        sections=(summary, *sections),
        definitions=tuple(definitions),
    )
    report.print_definitions(page, console)
    report.print_section(summary, console)
    write_page(output, report.render_html(page))
    console.print(f"Report with pictures: {rich.markup.escape(str(output))}", highlight=False, soft_wrap=True)


def run_single_layer(layer: SingleLayer, *, ranks: Sequence[int], seed: int) -> None:
    """Measure one layer and show the comparison on the terminal.

    Raises:
      DemoError: if the layer is not one that `jaxcnn.conv` accepts.
    """
    try:
        check_layer(layer)
    except ValueError as error:
        raise DemoError(" ".join(str(error).removeprefix("conv_output_shape: ").split())) from None
    console = rich.console.Console()
    with report.progress_bars(console) as bars:
        section = run_layer(layer, ranks=ranks, seed=seed, bars=bars)
    report.print_section(section, console)
    page = report.Report("", report.describe_machine(), (section,), (MACS, *LAYER_DEFINITIONS, TIME))
    report.print_definitions(page, console)


def check_output(name: str) -> Path:
    """The path of the report, if a file can be written there."""
    path = Path(name)
    if not path.parent.is_dir():
        raise DemoError(f"the output folder {path.parent} does not exist")
    if path.is_dir():
        raise DemoError(f"the output {path} is a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DemoError(f"the output {path} cannot be written: permission denied")
    return path


def write_page(path: Path, page: str) -> None:
    """Write the HTML page."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DemoError(f"the output {path} cannot be written: {error.strerror}") from None
