"""The conventions of the public names and of the source, checked over all of them."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest

import jaxcnn
from support import cases

ROOT = Path(jaxcnn.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]
FUNCTIONS = [name for name in jaxcnn.__all__ if inspect.isfunction(getattr(jaxcnn, name))]
CLASSES = [name for name in jaxcnn.__all__ if inspect.isclass(getattr(jaxcnn, name))]
ARRAYS = {"x", "kernel", "kernels", "values", "indices", "chain"}
REQUIRED = {
    "scheme",
    "window_shape",
    "output_shape",
    "x_shape",
    "kernel_shape",
    "layers",
    "input_shape",
    "f",
    "params",
    "args",
}

# What each room may import, as the design's table has it: by the first pattern that matches a file, patterns of the
# modules of jaxcnn. "public" is `import jaxcnn` and its names.
ARITHMETIC = ["checkpoints", "geometry", "receptive_field", "layout", "dtypes", "errors"]
OPTIONS = ["options", "chain", *ARITHMETIC]
COST = ["cost", "shapes", *OPTIONS]
LOWERING = ["lowering(\\..*)?", "native", "saving", "_compat", "processes", *COST]
PRIMITIVES = ["primitives", "epilogue", *LOWERING]
FUNCTIONS_ROOM = ["convolution", "pooling", "adaptive_pooling", "links", *PRIMITIVES]
NUMERICS = ["factorization\\.numerics(\\..*)?", "norms", *OPTIONS]
SCHEMES = ["factorization\\.schemes(\\..*)?", *NUMERICS]
FACTORIZATION = ["factorization(\\..*)?", "norms", "timing", *FUNCTIONS_ROOM]
JAXPR = ["transform\\.(jaxpr(\\..*)?|tables|progress)", *FUNCTIONS_ROOM]
TUNING = ["transform\\.(acceleration|summary|chains)(\\..*)?", *JAXPR, *FACTORIZATION]
TRANSFORM = ["transform(\\..*)?", *FACTORIZATION]
ROOMS = {
    r"__init__": TRANSFORM,
    r"demo\.chains": ["public", "factorization\\.schemes\\.registry"],
    r"(cli|__main__|demo(\..*)?)": [
        "public",
        "cli",
        "errors",
        "native",
        "norms",
        "saving",
        "drawing",
        "demo(\\..*)?",
        "transform\\.summary(\\..*)?",
        "timing",
    ],
    r"drawing(\..*)?": ["public", "saving", "drawing(\\..*)?", "options", "errors"],
    r"transform\.substitution(\..*)?": TRANSFORM,
    r"transform\.tuning": TUNING,
    r"transform\.acceleration(\..*)?": ["transform\\.acceleration(\\..*)?", *JAXPR],
    r"transform\.summary(\..*)?": ["transform\\.summary(\\..*)?", "partitioning", *JAXPR],
    r"transform\.chains(\..*)?": ["transform\\.chains(\\..*)?", *JAXPR],
    r"transform\.(jaxpr(\..*)?|tables|progress)": JAXPR,
    r"transform": [],
    r"factorization\.exact(\..*)?": OPTIONS,
    r"factorization\.numerics(\..*)?": NUMERICS,
    r"factorization\.schemes(\..*)?": SCHEMES,
    r"factorization\.responses(\..*)?": ["factorization\\.responses(\\..*)?", *SCHEMES],
    r"factorization\.selection(\..*)?": ["factorization\\.selection(\\..*)?", "timing", *SCHEMES, *FUNCTIONS_ROOM],
    r"factorization": [],
    r"(convolution|pooling|adaptive_pooling)": FUNCTIONS_ROOM,
    r"links": PRIMITIVES + OPTIONS,
    r"primitives": ["partitioning", "rematerialization", "splits", *LOWERING],
    r"splits": ["partitioning", *LOWERING],
    r"epilogue": ["primitives", "rematerialization", "native", *LOWERING],
    r"lowering(\..*)?": LOWERING,
    r"(cost|shapes)": COST,
    r"options": OPTIONS,
    r"chain": ARITHMETIC,
    r"(layout|receptive_field)": ["geometry", "errors"],
    r"(checkpoints|geometry|dtypes|errors|norms|timing|partitioning|processes)": [],
    r"(rematerialization|saving|_compat|native)": [],
}


def test_all_is_sorted_and_complete():
    assert jaxcnn.__all__ == sorted(jaxcnn.__all__)
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    imported = {alias.asname or alias.name: node.module for node in imports for alias in node.names}
    assert set(imported) == set(jaxcnn.__all__)
    for name, module in imported.items():
        assert getattr(jaxcnn, name) is getattr(importlib.import_module(module), name)
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z0-9.+]*)", jaxcnn.__version__)


def test_every_function_of_arrays_is_among_the_calls():
    of_arrays = {
        name for name in FUNCTIONS if {"x", "values"} & set(inspect.signature(getattr(jaxcnn, name)).parameters)
    }
    assert of_arrays <= set(cases.CALLS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_come_first_and_options_are_keyword_only(name):
    parameters = list(inspect.signature(getattr(jaxcnn, name)).parameters.values())
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind is kinds.POSITIONAL_OR_KEYWORD]
    arrays = [p.name in ARRAYS for p in positional]
    assert arrays == sorted(arrays, reverse=True), "arrays stand before everything else"
    for parameter in parameters:
        if parameter.kind is kinds.KEYWORD_ONLY:
            assert parameter.name not in ARRAYS, f"{parameter.name} is an array"
            assert parameter.default is not kinds.empty, f"{parameter.name} is required, but keyword-only"
        elif parameter.kind is kinds.POSITIONAL_OR_KEYWORD:
            assert parameter.default is kinds.empty, f"{parameter.name} is optional, but not keyword-only"
            assert parameter.name in ARRAYS | REQUIRED, f"{parameter.name} is neither an array nor needed by all"
        else:
            assert parameter.kind is kinds.VAR_POSITIONAL


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_spelled_in_one_way(name):
    others = {
        "stride",
        "pad",
        "dilation",
        "groups",
        "data_format",
        "dimension_numbers",
        "window",
        "kernel_size",
        "size",
    }
    used = others & set(inspect.signature(getattr(jaxcnn, name)).parameters)
    assert not used


def test_siblings_have_the_same_options_and_defaults():
    defaults: dict[str, dict[object, list[str]]] = {}
    for name in FUNCTIONS:
        for parameter in inspect.signature(getattr(jaxcnn, name)).parameters.values():
            if parameter.default is not inspect.Parameter.empty:
                defaults.setdefault(parameter.name, {}).setdefault(parameter.default, []).append(name)
    # A convolution keeps the size of its image, a pool does not pad.
    assert set(defaults.pop("padding")) == {"SAME", "VALID"}
    # Whether there is one, for a cost; the numbers, for what is folded into it.
    assert defaults.pop("bias") == {False: ["conv_cost"], None: ["fold_scale"]}
    # Measuring takes long by its nature.
    assert defaults.pop("progress") == {True: ["tune"], False: ["substitute"]}
    for option, by_default in defaults.items():
        assert len(by_default) == 1, f"{option}: {by_default}"


def _sections(docstring):
    """The text of each section of a Google-style docstring, by its heading."""
    parts = re.split(r"^(Args|Returns|Raises|Example|References):$", inspect.cleandoc(docstring), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_functions(name):
    function = getattr(jaxcnn, name)
    sections = _sections(function.__doc__)
    missing = {"Args", "Returns", "Raises", "Example", "References"} - set(sections)
    assert not missing, f"{name} lacks {sorted(missing)}"
    assert ">>> " in sections["Example"]
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"\b{parameter}\b", sections["Args"]), f"{parameter} is not described"
    first = inspect.cleandoc(function.__doc__).splitlines()[0]
    assert first.endswith("."), "the first line is a sentence"


@pytest.mark.parametrize("name", CLASSES)
def test_docstrings_of_classes(name):
    cls = getattr(jaxcnn, name)
    fields = [field for field in getattr(cls, "__dataclass_fields__", {}) if not field.startswith("_")]
    sections = _sections(cls.__doc__)
    assert ">>> " in sections.get("Example", ""), f"{name} has no example"
    args = sections["Args"]
    for field in fields:
        assert re.search(rf"\b{field}\b", args), f"{field} is not described"
    for attribute, value in vars(cls).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod)):
            assert inspect.getdoc(getattr(cls, attribute)), attribute


def _imports(path):
    """The modules that a file imports, absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            if node.module not in {f"jaxcnn.{name}" for name in jaxcnn.__all__}:
                yield node.module  # else a module with the name of its function, known by what is imported from it


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_of_jax(name):
    text = (ROOT / name).read_text()
    assert "jax._src" not in text
    assert "jaxlib" not in {module.split(".")[0] for module in _imports(ROOT / name)}


@pytest.mark.parametrize("name", NAMES)
def test_no_assert_and_no_long_file(name):
    text = (ROOT / name).read_text()
    assert not [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]
    lines = len(text.splitlines())
    assert lines <= 800, f"{lines} lines"


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_downwards(name):
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    allowed = next(allowed for pattern, allowed in ROOMS.items() if re.fullmatch(pattern, module))
    public = {*jaxcnn.__all__, "__version__"}
    for imported in set(_imports(ROOT / name)):
        first, _, rest = imported.partition(".")
        if first != "jaxcnn":
            continue
        if rest == "" or rest in public:
            # `import jaxcnn`, or `from jaxcnn import` a submodule, which is checked as such
            from_package = rest in public or "public" in allowed
            assert not from_package or "public" in allowed or rest == "", f"{module} imports {imported}"
            continue
        known = any(re.fullmatch(pattern, rest) or re.match(pattern + r"\.\w+$", rest) for pattern in allowed)
        assert known, f"{module} imports jaxcnn.{rest}"


def test_no_file_imports_itself_through_others():
    files = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): ROOT / name for name in NAMES}
    files.pop("__init__")
    graph = {}
    for name, path in files.items():
        imported = {module.removeprefix("jaxcnn.") for module in _imports(path)} & files.keys()
        # `from jaxcnn.drawing import _canvas` takes a file, and nothing of the package.
        graph[name] = imported - {name} - {module.rpartition(".")[0] for module in imported}
    while free := [name for name, imported in graph.items() if not imported]:
        graph = {name: imported.difference(free) for name, imported in graph.items() if imported}
    assert not graph, "these files import each other in a circle"


def _python(code, *options):
    result = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT.parent,
    )
    return result


def test_import_brings_no_heavy_packages():
    code = """
    import jax, sys
    before = set(sys.modules)
    import jaxcnn
    print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    added = set(_python(code).stdout.split()) - {"jaxcnn", "jax"}
    for heavy in ("scipy", "matplotlib", "rich", "optax", "h5py", "skimage", "torch", "flax"):
        assert heavy not in added
    modules = _python("import sys, jaxcnn; print(*sys.modules)").stdout.split()
    assert not [name for name in modules if name.startswith(("jaxcnn.demo", "jaxcnn.cli", "jaxcnn.drawing"))]


def test_import_leaves_jax_extensions_and_most_of_jaxcnn_to_the_first_call():
    loaded = set(_python("import sys, jaxcnn; print(*sys.modules)").stdout.split())
    assert not {"jaxcnn.convolution", "jaxcnn.pooling", "jaxcnn.primitives", "jaxcnn.transform"} & loaded
    # Registered at once: a chain in a program that is read from a file, and the context of tuning tables.
    assert {"jaxcnn.chain", "jaxcnn.lowering.tuning_table"} <= loaded


def test_every_name_is_reached_from_a_fresh_package_whatever_was_imported_before():
    modules = [f"jaxcnn/{name}".removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in NAMES]
    modules = [name for name in modules if not name.startswith(("jaxcnn.demo", "jaxcnn.drawing", "jaxcnn.__main__"))]
    code = f"""
    import importlib, inspect
    for name in {modules!r}:
        importlib.import_module(name)
    import jaxcnn
    assert set(jaxcnn.__all__) <= set(dir(jaxcnn))
    print(*(name for name in jaxcnn.__all__ if inspect.ismodule(getattr(jaxcnn, name))))
    """
    assert _python(code).stdout.split() == []


def test_modules_are_attributes_of_the_package_without_an_import():
    code = """
    import jaxcnn
    print(jaxcnn.native.status(), jaxcnn.geometry.dilated_size(3, 2), jaxcnn.pooling.max_pool is jaxcnn.max_pool)
    """
    assert _python(code).stdout.endswith(" 5 True\n")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'jaxcnn' has no attribute 'convolve'$"):
        jaxcnn.convolve  # noqa: B018


@pytest.mark.parametrize(
    ("former", "name"),
    [("Curve", "RankCurve"), ("Layer", "FieldLayer"), ("Report", "SubstitutionReport"), ("Row", "SummaryRow")],
)
def test_a_former_name_warns_and_is_the_new_one(former, name):
    with pytest.warns(DeprecationWarning, match=rf"jaxcnn\.{former} is now jaxcnn\.{name}"):
        assert getattr(jaxcnn, former) is getattr(jaxcnn, name)
    assert former not in jaxcnn.__all__


def test_import_starts_no_backend():
    code = """
    import jax, jaxcnn
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *a, **k: events.append(name))
    jax.config.update("jax_platforms", "cpu")
    import jaxcnn.convolution
    print(len(events))
    """
    assert _python(code).stdout.split() == ["0"]


@pytest.mark.parametrize("given", [[[1.0], [2.0], [3.0]], None])
@pytest.mark.parametrize(
    "name",
    [
        *("max_pool", "min_pool", "sum_pool", "avg_pool", "lp_pool", "max_pool_with_indices"),
        *("extract_patches", "adaptive_avg_pool", "adaptive_max_pool"),
    ],
)
def test_what_is_no_array_is_refused(name, given):
    with pytest.raises(TypeError, match=rf"^{name}: x must be an array, got {type(given).__name__}"):
        getattr(jaxcnn, name)(given, (2,))


@pytest.mark.parametrize("name", ["conv", "conv_transpose", "depthwise_conv"])
def test_operands_of_convolutions_are_arrays(name):
    function, array = getattr(jaxcnn, name), jnp.ones((2, 1, 1))
    with pytest.raises(TypeError, match=rf"^{name}: x must be an array, got list"):
        function([[1.0], [2.0]], array)
    with pytest.raises(TypeError, match=rf"^{name}: kernel must be an array, got list"):
        function(array, [[[1.0]]])


def test_other_operands_are_arrays():
    with pytest.raises(TypeError, match=r"^global_avg_pool: x must be an array, got list"):
        jaxcnn.global_avg_pool([1.0])
    with pytest.raises(TypeError, match=r"^max_unpool: indices must be an array, got list"):
        jaxcnn.max_unpool(jnp.ones((2, 1)), [[0], [1]], (4,))
