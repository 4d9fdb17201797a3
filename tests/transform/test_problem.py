"""A function whose kernels are to be replaced: its layers, what its results weigh, and the clock."""

from __future__ import annotations

import jaxcnn
from jaxcnn.transform import problem
from jaxcnn.transform.allocation import Harm
from support.substitutions import PARAMS, F, X


def test_the_clock_of_this_device_is_asked(real_clock):
    found = jaxcnn.substitute(F, PARAMS, X, macs=0.5)
    for row in found.report.rows:
        if row.scheme != "dense":
            assert row.ms_before > 0
            assert row.ms_after > 0
    assert found.report.ms_before > 0
    assert found.report.ms_after > 0


def test_the_least_share_can_be_met():
    found = problem.Problem(F, PARAMS, (X,), ("low_rank",), lambda name: False, 0)
    found.harms = dict.fromkeys(found.layers, Harm((1.0,), (1.0,)))
    # With some more convolutions that have no chains, until the product of the share falls short of what it came from.
    own, saved = found.total_macs, round(found.total_macs * (1 - found.least_share(())))
    found.total_macs = next(t for t in range(own, 2 * own) if (t - saved) / t * t < t - saved)
    assert found.choose(found.least_share(()), ()) is not None
