"""The rules of plain English in the source that can be checked without a reader."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxcnn

ROOT = Path(jaxcnn.__file__).parent
NAMES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))

# A first sentence has a subject or a verb of its own, and does not lean on the docstring above.
NO_OPENERS = re.compile(
    r"(the same|also|and|but|or|what|whether|how|which|where|when|if|of|from|to|it|this|that|these|those|as|see)\b",
    re.I,
)

# An entry of a parameter says what the parameter is.
NO_ENTRY_OPENERS = re.compile(
    r"(the same|what|whether|how|which|where|when|if|of|from|it|that|also|as|like|see|none|true|false)\b", re.I
)

# States of a value, where the name of the value belongs.
STATES = {
    "found",
    "own",
    "each",
    "given",
    "seen",
    "asked",
    "kept",
    "wanted",
    "known",
    "others",
    "met",
    "made",
    "taken",
    "held",
}

MEASUREMENT = re.compile(
    r"\b\d+(\.\d+)? ?(ms|us|µs|milliseconds?|microseconds?|times (faster|slower|as)|GB/s|GFLOPS)\b"
)


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The name and the docstring of a module, and of each class and function in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield getattr(node, "name", "module"), text


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The name and the text of each entry of a section Args."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", docstring, re.MULTILINE | re.DOTALL)
    if section:
        yield from re.findall(r"^  (\*{0,2}\w[^:\n]*): *(.*)$", section[1], re.MULTILINE)


def docstring_faults(source: str) -> list[str]:
    """Returns the faults of the docstrings of a source file."""
    faults = []
    for name, text in docstrings(ast.parse(source)):
        summary = text.split("\n\n")[0]
        if not summary.endswith((".", ":")):
            faults.append(f"{name}: the first paragraph has no end: {summary!r}")
        if NO_OPENERS.match(summary):
            faults.append(f"{name}: the first sentence does not stand alone: {summary!r}")
        for parameter, entry in entries(text):
            if not entry or NO_ENTRY_OPENERS.match(entry):
                faults.append(f"{name}: the entry of {parameter} does not start with a noun: {entry!r}")
    return faults


def name_faults(source: str) -> list[str]:
    """The variables and parameters of a source file that are named after a state."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in STATES:
            faults.append(f"line {node.lineno}: {node.id}")
        elif isinstance(node, ast.arg) and node.arg in STATES:
            faults.append(f"line {node.lineno}: {node.arg}")
    return faults


def comment_faults(source: str) -> list[str]:
    """The comments of a source file that hold a measurement."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT and MEASUREMENT.search(token.string)]


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_start_with_a_sentence_that_stands_alone_and_entries_with_a_noun(name):
    assert not docstring_faults((ROOT / name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_named_after_things(name):
    assert not name_faults((ROOT / name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_comments_hold_no_measurement(name):
    assert not comment_faults((ROOT / name).read_text())


def test_the_rules_notice_what_they_forbid():
    docstring = '"""{}\n\nArgs:\n  seed: {}\n"""'
    assert not docstring_faults(docstring.format("Returns the sum.", "Seed for the positions."))
    assert len(docstring_faults(docstring.format("The same for pools.", "Seed for the positions."))) == 1
    assert len(docstring_faults(docstring.format("Whether it pays.", "whether to draw."))) == 2
    assert len(docstring_faults(docstring.format("Returns the sum", "of the positions."))) == 2
    assert name_faults("found = 1\nfor each in range(3): pass\ndef f(given): pass") == [
        "line 1: found", "line 2: each", "line 3: given"
    ]  # fmt: skip
    assert comment_faults("x = 1  # takes 3.5 ms\ny = '# 2 ms'\nz = 2  # 8 channels") == ["# takes 3.5 ms"]
