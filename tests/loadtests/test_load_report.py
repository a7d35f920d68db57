"""Charts and pages."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtests import figures, report, run
from loadtests.answers import Answer, Phase
from loadtests.charts import Band, Bar, Line, bar_chart, line_chart, number, thin, ticks
from loadtests.plan import Plan
from loadtests.vitals import Sample

VOID = {"meta", "rect", "line", "path", "circle"}


class Strict(HTMLParser):
    """Every tag that is opened is closed, in order; nothing is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_ticks_are_round_and_cover_all() -> None:
    assert ticks(0, 97) == [0, 25, 50, 75, 100]
    assert ticks(0, 0.07, 4) == [0, 0.02, 0.04, 0.06, 0.08]
    assert ticks(2685, 2698) == [2685, 2690, 2695, 2700]
    assert ticks(5, 5)[0] <= 5 < ticks(5, 5)[-1]
    assert [number(value) for value in (0, 0.25, 1500, 12_500)] == ["0", "0.25", "1,500", "12.5k"]


def test_many_points_become_few() -> None:
    points = [(float(x), float(x % 2) if x > 9 else None) for x in range(1000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert few[0] == (4.5, None) and few[1] == (14.5, 0.5)
    assert thin(points[:5], 100) == points[:5]


def test_a_line_breaks_where_nothing_is_known() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.0)]
    chart = line_chart("a < b", [Line("x & y", points, "a")], [Band("p", 0, 9)])
    assert "a &lt; b" in chart and "x &amp; y" in chart
    paths = [p.get("d") for p in ET.fromstring(chart[chart.index('<svg class="chart"') : -9])]
    (curve,) = [path for path in paths if path]
    assert curve.count("M") == 2 and curve.count("L") == 1
    assert line_chart("none", [Line("x", [(0, None)], "a")]) == ""
    assert line_chart("none", []) == ""


def test_bars_reach_their_values() -> None:
    chart = bar_chart("t", [("1 user", [Bar(50, 40, 60, "a", "x"), Bar(100, 100, 100, "b", "y")])])
    heights = [float(part.split('"')[0]) for part in chart.split(' height="')[1:]]
    assert heights[-1] == pytest.approx(2 * heights[-2], abs=0.2)
    assert chart.count('class="whisker"') == 1


def result(folder: Path, scenario: str = "steady", ms: float = 10.0, length: int = 20) -> Path:
    """The folder of a made-up run."""
    plan = Plan(scenario, "http://x", 4, length, 0, {"m": 1.0, "n:gated": 1.0}, "p.jsonl")
    more: dict[str, Any] = {"status": 200, "ttft": 5 * ms, "gaps": [ms] * 9, "tokens": 10}
    answers = [Answer(at / 4, "m", **more) for at in range(4 * length)]
    answers += [Answer(at, "n:gated", gated=1, **more) for at in range(length)]
    phases = [Phase("1 user", 1, 0, length / 2), Phase("2 users", 2, length / 2, length)]
    samples = [Sample(at, at, 900.0 + at / 10, 1, 1, 0) for at in range(length)]
    ran = run.Ran(answers, phases, [], samples)
    folder.mkdir()
    seconds = figures.by_second(answers, phases, samples)
    run.save(folder, run.summarize(plan, ran), seconds)
    return folder


@pytest.mark.parametrize("scenario", ["steady", "ramp", "hostile", "soak"])
def test_the_page_of_a_run(tmp_path: Path, scenario: str) -> None:
    page = (result(tmp_path / "a", scenario) / "report.html").read_text()
    Strict(page)
    assert page.count("<figure>") == 7 + 3 * (scenario == "ramp")
    assert "n:gated" in page and "10.0%" in page
    assert ("something failed" in page) == (scenario == "hostile")  # nobody was refused


def test_long_runs_are_shown_in_minutes(tmp_path: Path) -> None:
    page = (result(tmp_path / "a", length=600) / "report.html").read_text()
    assert " min</text>" in page and " s</text>" not in page


def test_two_runs_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = result(tmp_path / "a"), result(tmp_path / "b", ms=20.0)
    assert report.main([str(a), str(b)]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said]
    assert ["all", "inter-token p50, ms", "10.0", "20.0", "2.00"] in rows
    page = (a / "beside-b.html").read_text()
    Strict(page)
    assert "p50, A" in page and "p50, B" in page
    assert "<span class=worse>2.00</span>" in page


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "no results of a load test" in capsys.readouterr().err
    assert report.main([]) == 2
    assert report.main(["--help"]) == 0
    damaged = result(tmp_path / "a")
    (damaged / "seconds.csv").write_text("second\nx\n")
    assert report.main([str(damaged)]) == 2
