"""Functions that are timed by turns."""

from __future__ import annotations

import itertools

from jaxcnn.transform import timing as clock


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
