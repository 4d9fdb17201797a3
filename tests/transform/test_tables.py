"""Tables as text and HTML, and counts with a unit."""

from __future__ import annotations

import pytest

from jaxcnn.transform.tables import Table, with_unit


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (4_089_184_256, "4.09 G"), (99_960, "100 k"), (9_996, "10.0 k")],
)
def test_counts_have_three_digits(number, text):
    assert with_unit(number) == text


def test_columns_give_way_in_their_order():
    table = Table(("name", "text", "n"), [("a" * 70, "b" * 80, "7")], {2}, ((0, 25), (1, 10)), [{0: "<tip>"}])
    head, rule, row, blank, remark = table.text(["c" * 120]).splitlines()
    assert (len(row), blank) == (100, "")
    assert row == "…" + "a" * 24 + "  " + "…" + "b" * 69 + "  7"
    assert rule == "-" * 100
    assert head.split() == ["name", "text", "n"]
    assert remark == "c" * 99 + "…"
    assert '<td title="&lt;tip&gt;">' in table.html([])
    assert '<td style="text-align:right">7</td>' in table.html(["<"])
    assert table.html(["<"]).endswith("<p>&lt;</p>")
