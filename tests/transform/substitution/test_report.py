"""Tests of the report of `substitute`, as text, HTML and JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

import jaxcnn
from support.substitutions import substituted

pytestmark = pytest.mark.usefixtures("clock_of_macs")


def test_report():
    small = substituted(macs=0.3)
    report, text = small.report, str(small.report)
    assert str(small) == text
    assert small._repr_html_() == report._repr_html_()
    assert "Array(" not in repr(small)
    assert max(map(len, text.splitlines())) <= 100
    for row in report.rows:
        assert row.name in text
    assert f"{report.macs_share:.3f} of them" in text
    assert "<table>" in report._repr_html_()
    assert json.loads(report.to_json())["error"] == report.error
    assert jaxcnn.SubstitutionReport.from_json(report.to_json()) == report
    assert report.speedup == report.ms_before / report.ms_after
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.error = 0
