"""The dashboard and the substitution page in a real browser, from made-up results and from the recorded ones."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.airspeed import RESULTS, ROOT
from benchmarks.asv import tracked
from support import asv_results
from support.browser import TIMEOUT_MS, check_layout, executable, opened, screenshot, served

playwright_sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
dashboard = pytest.importorskip("benchmarks.dashboard", reason="asv-tachyon or plotly is not installed")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(executable() is None, reason="there is no chromium on the path, and CHROMIUM names none"),
]

VIEWS = ("Overview", "Explore", "Heatmap", "Grid", "Multiples", "Compare", "Regressions", "Inventory")
WINDOWS = [(width, scheme) for width in (390, 1400) for scheme in ("light", "dark")]
NEWEST = len(asv_results.SUBJECTS) - 1
FILTER = "tracked.Schemes.track_error"


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium, or the one that `CHROMIUM` names; none is downloaded."""
    with playwright_sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"], timeout=TIMEOUT_MS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The pages of made-up results."""
    root = tmp_path_factory.mktemp("repository")
    asv_results.write_results(root)
    return dashboard.write_pages(root / "asv.conf.json")


@pytest.fixture(scope="module")
def recorded_folder(tmp_path_factory):
    """The pages of the results that the repository has."""
    if not list(RESULTS.glob("*/*-*.json")):
        pytest.skip("no results are recorded")
    settings = {
        "version": 1,
        "project": "jaxcnn",
        "repo": str(ROOT),
        "branches": ["HEAD"],
        "environment_type": "virtualenv",
        "results_dir": str(RESULTS),
        "html_dir": "html",
    }
    config = tmp_path_factory.mktemp("recorded") / "asv.conf.json"
    config.write_text(json.dumps(settings))
    return dashboard.write_pages(config)


@pytest.fixture(params=["folder", "recorded_folder"], ids=["made-up", "recorded"])
def site(request):
    """The address of the pages, and what their screenshots are named after."""
    with served(request.getfixturevalue(request.param)) as address:
        yield address, "made-up" if request.param == "folder" else "recorded"


@pytest.fixture
def page(browser, folder):
    """The substitution page of made-up results."""
    with served(folder) as address, opened(browser, f"{address}substitutions.html") as page:
        page.evaluate("document.getElementById('filters').open = true")
        yield page


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_each_view_of_the_dashboard(browser, site, width, scheme):
    address, name = site
    with opened(browser, address, width, scheme) as page:
        for view in VIEWS:
            page.get_by_role("button", name=view, exact=True).click()
            page.wait_for_function("!document.body.innerText.includes('Loading')")
            screenshot(page, f"{name}-{view.lower()}-{width}-{scheme}")
            check_layout(page)


@pytest.mark.parametrize(("width", "scheme"), WINDOWS)
def test_the_substitution_page(browser, site, width, scheme):
    address, name = site
    with opened(browser, f"{address}substitutions.html", width, scheme) as page:
        quantities = page.locator("#quantity option").evaluate_all("options => options.map(option => option.value)")
        page.locator("#trails").check()
        closed = page.locator("details:not([open]) > summary")
        while closed.count():
            closed.first.click()
        for quantity in quantities:
            page.locator("#quantity").select_option(quantity)
            screenshot(page, f"{name}-substitutions-{quantity}-{width}-{scheme}")
            check_layout(page)


def test_the_page_is_one_file_that_opens_without_a_server(browser, folder):
    with opened(browser, (folder / "substitutions.html").as_uri()) as page:
        assert curve_names(page, "clock")


def test_problems_are_noticed(browser, tmp_path):
    (tmp_path / "index.html").write_text(
        '<p>over</p><p style="position: absolute; top: 0">under</p><p style="width: 2000px">wide</p>'
        '<img src="https://example.org/x.png"><script>missing()</script>'
    )
    problems: list[str] = []
    with served(tmp_path) as address, opened(browser, address, problems=problems) as page:
        page.wait_for_load_state("networkidle")
        with pytest.raises(AssertionError, match="under"):
            check_layout(page)
        page.evaluate("document.querySelectorAll('p')[1].remove()")
        with pytest.raises(AssertionError, match="2008"):
            check_layout(page)
    assert any("missing is not defined" in problem for problem in problems)
    assert "request to https://example.org/x.png" in problems


def test_the_pages_link_to_each_other(browser, folder):
    with served(folder) as address, opened(browser, address) as page:
        page.get_by_role("link", name="Small kernels for large ones").click()
        page.wait_for_url("**/substitutions.html")
        page.get_by_role("link", name="All tracked values").click()
        page.wait_for_url("**/index.html")


def test_the_search_of_the_dashboard_filters(browser, folder):
    with served(folder) as address, opened(browser, address) as page:
        tile = page.get_by_text(re.compile(r"^tracked\.\w+\.track_\w+$"))
        tile.first.wait_for()
        assert tile.count() == len(asv_results.benchmarks_of(tracked))
        page.get_by_placeholder(re.compile("Search")).fill("Schemes.track_error")
        page.wait_for_function("n => document.body.innerText.match(/tracked\\.\\w+\\.track_/g).length === n", arg=1)
        page.get_by_text(FILTER, exact=True).click()
        page.get_by_text("3x3 by cp").first.wait_for()


def test_regressions_of_the_dashboard_are_those_above_the_threshold(folder):
    """Values of made-up results only fall; tests of asv's threshold are in test_dashboard.py."""
    assert json.loads((folder / "regressions.json").read_text())["regressions"] == []


def curve_names(page, place):
    """The names of the series that a figure shows."""
    names = page.evaluate("place => document.getElementById(place).data.map(curve => curve.name)", place)
    return [name for name in names if name != "guide"]


def curve(page, place, name):
    """The abscissas and ordinates of a series in a figure."""
    curves = page.evaluate("place => document.getElementById(place).data.map(({name, x, y}) => [name, [x, y]])", place)
    return dict(curves)[name]


def share(name, quantity, commit, cls=tracked.Schemes):
    """A made-up value."""
    return asv_results.value(cls, f"track_{quantity}", name, commit)


def test_points_are_speed_up_against_macs_ratio_and_error_against_speed_up(page):
    name = "3x3 by low_rank"
    for reference in ("exact", "lax", "torch"):
        page.locator("#over").select_option(reference)
        for commit in (NEWEST, 0):
            page.locator("#commit").select_option(str(commit))
            speed = 1 / share(name, f"time_over_{reference}", commit)
            assert curve(page, "clock", name) == [[pytest.approx(4)], [pytest.approx(speed, rel=1e-4)]]
            error = share(name, "error", commit)
            assert curve(page, "error", name) == [[pytest.approx(speed, rel=1e-4)], [pytest.approx(error)]]
    diagonal = page.evaluate("document.getElementById('clock').data[0]")
    assert diagonal["x"] == diagonal["y"]


def test_trails_lead_through_the_commits_before(page):
    name = "3x3 by low_rank"
    page.locator("#commit").select_option("3")
    page.locator("#trails").check()
    speeds = [1 / share(name, "time_over_exact", commit) for commit in range(4)]
    assert curve(page, "clock", name)[1] == pytest.approx(speeds, rel=1e-4)


def test_a_value_that_a_commit_lacks_is_a_gap(page):
    first = asv_results.GAPS["Substituted"]
    speeds = curve(page, "plot-substitution", "four layers by substitute")[1]
    assert speeds[:first] == [None] * first
    assert None not in speeds[first:]
    page.locator("#commit").select_option(str(first - 1))
    assert "four layers by substitute" not in curve_names(page, "clock")


def test_commits_are_named_by_what_they_brought_or_by_their_subject(page):
    lines = "texts => texts.map(text => [...text.childNodes].map(line => line.textContent).join(' '))"
    shown = page.locator("#plot-layer .xtick text").evaluate_all(lines)
    assert shown[0] == "lax alone"
    assert shown[NEWEST] == "native kernels"
    assert shown[2].startswith("Shifted products")
    assert "native kernels" in page.locator("#steps").inner_text()


@pytest.mark.parametrize(
    ("filtered", "value", "gone", "stays"),
    [
        ("scheme", "cp", "3x3 by cp", "3x3 by tucker2"),
        ("layer", "5x5", "5x5 as two 3x3", "3x3 by cp"),
        ("network", "four layers", "four layers by substitute", "3x3 by cp"),
    ],
)
def test_filters_change_what_is_drawn(page, filtered, value, gone, stays):
    places = ("clock", "error", "plot-substitution")
    box = page.locator(f'input[data-filter="{filtered}"][value="{value}"]')
    for checked in (True, False, True):
        box.set_checked(checked)
        for place in places:
            assert (gone in curve_names(page, place)) == checked
            assert stays in curve_names(page, place)
        assert page.locator("#figures th", has_text=gone).count() == checked
        assert page.locator("#clock-legend li", has_text=gone).count() == checked
        assert page.locator("#filter-count").inner_text() == ("all are shown" if checked else "1 hidden")


def test_filters_keep_the_look_of_a_series(page):
    def look():
        figures = "document.getElementById('clock').data"
        return page.evaluate(f"{figures}.filter(one => one.name === '3x3 by tucker2').map(one => one.marker)[0]")

    before = look()
    page.locator('input[data-filter="scheme"][value="cp"]').uncheck()
    assert look() == before


def test_nothing_left_says_so(page):
    for group in ("layer", "network"):
        page.locator(f'button[data-filter="{group}"]', has_text="none").click()
    assert page.locator("#empty").is_visible()
    assert not page.locator("#clock").is_visible()
    for group in ("layer", "network"):
        page.locator(f'button[data-filter="{group}"]', has_text="all").click()
    assert page.locator("#clock").is_visible()
    assert not page.locator("#empty").is_visible()


def test_each_quantity_has_a_history(page):
    for quantity, place, name, cls in [
        ("clock_over_arithmetic", "plot-substitution", "3x3 by cp", tracked.Schemes),
        ("error", "plot-substitution", "3x3 by cp", tracked.Schemes),
        ("compilation_over_lax", "plot-layer", "3x3", tracked.Compilation),
    ]:
        page.locator("#quantity").select_option(quantity)
        expected = [share(name, quantity, commit, cls) for commit in range(NEWEST + 1)]
        assert curve(page, place, name)[1] == pytest.approx(expected, rel=1e-4)
        assert not page.locator("#history-network").is_visible()


def test_headlines_have_their_measured_counterparts(page):
    cards = page.locator("#cards li").all_inner_texts()
    for card, text, name in [
        (cards[0], "121 to 22 multiplications", "11x11 filter as 11x1, 1x11: 121 to 22"),
        (cards[1], "25 to 18 multiplications", "5x5 as two 3x3: 25 to 18"),
    ]:
        assert text in card
        for reference in ("exact", "lax", "torch"):
            assert f"{1 / share(name, f'time_over_{reference}', NEWEST):.3g}x" in card
        assert f"{1 / share(name, 'time_over_exact', 0):.3g}x with “lax alone”" in card
    assert "5.5x" in cards[0]
    assert "1.39x" in cards[1]


def test_tables_hold_the_figures_of_the_charts(page):
    row = page.locator("#figures tr", has_text="3x3 by low_rank").locator("td").all_inner_texts()
    name = "3x3 by low_rank"
    speeds = [f"{1 / share(name, f'time_over_{reference}', NEWEST):.3g}x" for reference in ("exact", "lax", "torch")]
    assert row[:4] == ["4x", *speeds]
    assert row[-1] == f"{share(name, 'error', NEWEST):.3g}"


def test_everything_is_reached_by_the_keyboard(page):
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
              const element = document.activeElement, style = getComputedStyle(element);
              return [element.id || element.value || element.className || element.tagName, style.outlineStyle,
                element.matches("a, summary, button, [role=region]") || Boolean(element.labels?.length)];
            }"""
        )
        if focus[0] == "BODY":
            break
        reached.append(focus[0])
        assert focus[1] != "none", f"{focus[0]} does not show that it has the focus"
        assert focus[2], f"{focus[0]} has no label"
    assert reached[0] == "skip"
    for name in ("auto", "commit", "over", "trails", "cp", "5x5", "MobileNetV2", "scroll", "quantity"):
        assert name in reached


def test_keys_change_what_is_drawn(page):
    page.locator("#commit").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".commit-label").first.inner_text() == f"“{asv_results.LABELS[-2]}”"
    page.locator('input[value="cp"]').focus()
    page.keyboard.press("Space")
    assert "3x3 by cp" not in curve_names(page, "clock")
    page.locator("#filters > summary").focus()
    page.keyboard.press("Enter")
    assert not page.locator("#fieldsets").is_visible()
    page.locator('input[value="auto"]').focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_figures_are_described_to_those_who_do_not_see_them(page):
    for place in ("clock", "error", "plot-substitution", "plot-layer", "plot-network"):
        assert re.search(r"\d+ (substitutions|series)", page.locator(f"#{place}").get_attribute("aria-label"))
    assert page.locator("#figures caption").count() == 1
    assert page.locator("#figures tbody th[scope=row]").count() == page.locator("#figures tbody tr").count()


def colours(page):
    """The colours of the ground and of the text in a figure."""
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return ground, page.evaluate("document.getElementById('clock').layout.font.color")


def test_light_and_dark(browser, folder):
    with served(folder) as address:
        colours_of = {}
        for scheme in ("light", "dark"):
            with opened(browser, f"{address}substitutions.html", scheme=scheme) as page:
                colours_of[scheme] = colours(page)
        assert colours_of["light"][0] != colours_of["dark"][0]
        assert colours_of["light"][1] != colours_of["dark"][1]
        with opened(browser, f"{address}substitutions.html", scheme="light") as page:
            page.locator('input[value="dark"]').check()
            assert colours(page) == colours_of["dark"]
            page.reload()
            assert colours(page) == colours_of["dark"]
            page.locator('input[value="auto"]').check()
            assert colours(page) == colours_of["light"]
            page.emulate_media(color_scheme="dark")
            page.wait_for_function(
                "colour => document.getElementById('clock').layout.font.color === colour", arg=colours_of["dark"][1]
            )


def test_a_page_of_no_results_says_so(browser, tmp_path):
    from benchmarks.substitution_page.page import write_page

    write_page(tmp_path / "page.html", tmp_path, tmp_path)
    with opened(browser, (tmp_path / "page.html").as_uri()) as page:
        assert page.locator("#nothing").is_visible()
        assert not page.locator("#content").is_visible()
