"""Functions that are timed by turns, and the bar that shows it."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

import jaxcnn
from jaxcnn.transform import timing as clock

X, KERNEL = np.ones((1, 8, 8, 8), np.float32), np.ones((3, 3, 8, 1), np.float32)
SHORT = 0.02


def test_medians_of_alternating_blocks_within_the_time(monkeypatch):
    # A clock that the calls themselves move: every other call of `noisy` takes ten times as long.
    now, lengths = 0.0, {"steady": itertools.repeat(2.0), "noisy": itertools.cycle([1.0, 1.0, 10.0])}
    order = []

    def call(name):
        nonlocal now
        order.append(name)
        now += next(lengths[name])

    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    calls = {name: lambda name=name: call(name) for name in lengths}
    assert clock.medians(calls, 40.0, lambda done: None) == {"steady": 2.0, "noisy": 1.0}
    assert order[2:6] == ["steady", "noisy", "noisy", "steady"]
    assert now < 50


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
    monkeypatch.setattr(clock, "_SECONDS_BEFORE_BAR", after)
    monkeypatch.setenv("TERM", "xterm")
    jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT, progress=progress)
    assert ("Measuring convolutions" in terminal.text) == shown


def test_a_function_is_told_what_is_done_and_the_total_grows_with_it():
    told = []
    with clock.bar("Searching", 3, lambda done, total: told.append((done, total))) as advance:
        for step in (1, 0.5, 2):
            advance(step)
    assert told == [(0, 3), (1, 3), (1.5, 3), (3.5, 3.5)]


def test_rich_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert jaxcnn.tune(jaxcnn.depthwise_conv, X, KERNEL, seconds=SHORT).entries
