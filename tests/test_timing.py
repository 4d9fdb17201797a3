"""The timer: functions that take turns, and the median over their blocks."""

from __future__ import annotations

import itertools
import math

import jax
import pytest

from jaxcnn import timing
from support.clocks import Clock


@pytest.fixture
def clock(monkeypatch):
    """The timer's clock, which only the functions under test advance."""
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)
    return clock


def test_a_figure_is_the_median_over_blocks(clock):
    # Two calls that are not counted, then three blocks of one call: the median of 3, 100 and 4 is 4.
    functions = {"slow": clock.takes(50.0, 9.0, 3.0, 100.0, 4.0), "fast": clock.takes(50.0, 9.0, 1.0, 1.0, 2.0)}
    medians = timing.median_seconds(functions, rounds=3)
    assert medians == {"slow": 4.0, "fast": 1.0}
    assert list(medians) == ["slow", "fast"]


def test_a_block_counts_its_best_call_after_a_rest(clock):
    # Blocks begin with 10 ms of calls that are not counted, eleven here; 5 ms hold five of them.
    call = 2.0**-10  # seconds, whose sums are exact
    times = [call] * 2 + ([call] * 11 + [2 * call, call / 2, 3 * call, 4 * call, 5 * call]) * 3
    blocks = timing.block_seconds({"f": clock.takes(*times, name="f")}, rounds=3)
    assert blocks == {"f": [call / 2] * 3}
    assert len(clock.calls) == len(times)


def test_a_long_call_is_a_block_by_itself(clock):
    timing.block_seconds({"f": clock.takes(0.2, name="f")}, rounds=2)
    assert len(clock.calls) == 2 + 2


def test_a_short_call_is_counted_at_least_three_times(clock):
    timing.block_seconds({"f": clock.takes(0.05, name="f")}, rounds=1)
    assert len(clock.calls) == 2 + 1 + 3


def test_functions_whose_time_is_over_have_three_single_calls(clock):
    blocks = timing.block_seconds({"f": clock.takes(0.001, name="f")}, 0.0)
    assert blocks == {"f": pytest.approx([0.001] * 3)}
    assert len(clock.calls) == 2 + 3


@pytest.mark.parametrize(("seconds", "rounds"), [(0.5, 3), (8.0, 8), (math.inf, 25)])
def test_there_are_as_many_blocks_as_the_time_holds(clock, seconds, rounds):
    functions = {"a": clock.takes(0.25), "b": clock.takes(0.75)}
    blocks = timing.block_seconds(functions, seconds)
    assert {name: len(times) for name, times in blocks.items()} == {"a": rounds, "b": rounds}


def test_blocks_alternate_and_every_other_round_is_reversed(clock):
    rounds = []
    functions = {name: clock.takes(1.0, name=name) for name in "ab"}
    timing.block_seconds(functions, rounds=3, after_round=lambda: rounds.append(len(clock.calls)))
    assert clock.calls[4:] == ["a", "b", "b", "a", "a", "b"]
    assert rounds == [6, 8, 10]


def test_medians_within_the_time_leave_out_calls_that_were_disturbed(clock):
    lengths = {"steady": [2.0] * 30, "noisy": [1.0, 1.0, 10.0] * 10}
    functions = {name: clock.takes(*times, name=name) for name, times in lengths.items()}
    assert timing.median_seconds(functions, 40.0) == {"steady": 2.0, "noisy": 1.0}


def test_a_hopeless_function_has_a_single_block(clock):
    functions = {
        "fast": clock.takes(1.0),
        "slow": clock.takes(9.0, name="slow"),
        "slower": clock.takes(50.0, name="slower"),
    }
    blocks = timing.block_seconds(functions, rounds=4, hopeless=8.0)
    assert blocks == {"fast": [1.0] * 4, "slow": [9.0], "slower": [50.0]}
    # From four times the limit a second call would say nothing new.
    assert clock.calls.count("slow") == 2
    assert clock.calls.count("slower") == 1


def test_no_rounds_is_refused():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        timing.block_seconds({"f": lambda: None}, rounds=0)


def test_results_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    results = itertools.count()
    timing.block_seconds({"f": lambda: next(results)}, 0.0)
    assert waited == list(range(next(results)))
    assert len(waited) >= 5
