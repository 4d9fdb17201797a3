"""The progress bar of searches and measurements."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform import progress as bars

X, KERNEL = np.ones((1, 8, 8, 8), np.float32), np.ones((3, 3, 8, 1), np.float32)
SHORT = 0.02


class Terminal:
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize(("after", "progress", "shown"), [(0.0, True, True), (60.0, True, False), (0.0, False, False)])
def test_a_bar_is_shown_when_it_takes_long(monkeypatch, after, progress, shown):
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(bars, "_BAR_AFTER_SECONDS", after)
    monkeypatch.setenv("TERM", "xterm")
    jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT, progress=progress)
    assert ("Measuring convolutions" in terminal.text) == shown


def test_a_function_is_told_what_is_done_and_the_total_grows_with_it():
    told = []
    with bars.bar("Searching", 3, lambda done, total: told.append((done, total))) as advance:
        for step in (1, 0.5, 2):
            advance(step)
    assert told == [(0, 3), (1, 3), (1.5, 3), (3.5, 3.5)]


def test_rich_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT).entries
