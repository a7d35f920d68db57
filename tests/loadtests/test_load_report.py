"""Charts and pages."""

from __future__ import annotations

import shutil
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtests import figures, report, run
from loadtests.answers import Answer, MemorySample, Phase
from loadtests.charts import Line, line_chart, thin
from loadtests.plan import Plan
from training.provenance import machine

VOID = {"meta"}
SVG = "{http://www.w3.org/2000/svg}"


class Strict(HTMLParser):
    """Every tag that is opened is closed, in order; nothing is fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens nothing."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_many_points_become_few() -> None:
    points = [(float(x), float(x % 2) if x > 9 else None) for x in range(1000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert few[0] == (4.5, None) and few[1] == (14.5, 0.5)
    assert thin(points[:5], 100) == points[:5]


def curves(svg: str) -> list[str]:
    """The paths of a chart's curves, which matplotlib puts into groups named line2d."""
    groups = ET.fromstring(svg).iter(f"{SVG}g")
    lines = [group for group in groups if (group.get("id") or "").startswith("line2d")]
    paths = [one for line in lines for one in line.findall(f"{SVG}path")]
    return [one.get("d", "") for one in paths if "#123456" in one.get("style", "")]


def test_a_line_breaks_where_nothing_is_known() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, 2.0)]
    chart = line_chart("a < b", "ms", [Line("x & y", points, "#123456")], bands=[("p", 0, 9)])
    assert chart is not None and chart.title == "a < b"
    path = curves(chart.svg)[0]
    assert path.count("M") == 2 and path.count("L") == 2
    assert "x &amp; y" in chart.svg and ">p</text>" in chart.svg
    assert line_chart("none", "", [Line("x", [(0, None)], "#123456")]) is None
    assert line_chart("none", "", []) is None


def test_a_point_without_neighbours_is_a_dot() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.0)]
    chart = line_chart("t", "", [Line("x", points, "#123456")])
    assert chart is not None and "<use " in chart.svg
    markers = [
        one for one in ET.fromstring(chart.svg).iter(f"{SVG}use") if "#123456" in str(one.attrib)
    ]
    assert len(markers) == 2  # one more is in the legend


def test_a_small_change_looks_small() -> None:
    lines = [Line("x", [(0, 2685.0), (1, 2698.0)], "#123456")]
    heights = {}
    for zero in (True, False):
        chart = line_chart("t", "", lines, zero=zero)
        assert chart is not None
        ys = [
            float(part.split()[1]) for part in curves(chart.svg)[0].replace("M", "L").split("L")[1:]
        ]
        heights[zero] = abs(ys[0] - ys[1])
    assert 0 < heights[True] < 2 < heights[False] < 20  # of 120 points


def test_a_chart_is_the_same_each_time() -> None:
    lines = [Line("x", [(1, 2.0), (2, 3.0)], "#123456")]
    assert line_chart("t", "", lines, doubling=True) == line_chart("t", "", lines, doubling=True)


def test_the_machine_of_a_client_has_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as the extra `load` alone installs
    assert machine()["accelerator"] is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where made-up runs lie, each of which is made once."""
    return tmp_path_factory.mktemp("runs")


def result(
    runs: Path, target: Path, scenario: str = "steady", ms: float = 10.0, length: int = 20
) -> Path:
    """The folder `target` of a made-up run."""
    made = runs / f"{scenario}-{ms}-{length}"
    if not made.exists():
        make(made, scenario, ms, length)
    shutil.copytree(made, target)
    return target


def make(folder: Path, scenario: str, ms: float, length: int) -> None:
    """Save a made-up run in `folder`."""
    plan = Plan(scenario, "http://x", 4, length, 0, {"m": 1.0, "n:gated": 1.0}, "p.jsonl")
    more: dict[str, Any] = {"status": 200, "ttft": 5 * ms, "gaps": [ms] * 9, "tokens": 10}
    answers = [Answer(at / 4, "m", **more) for at in range(4 * length)]
    answers += [Answer(at, "n:gated", gated=1, **more) for at in range(length)]
    phases = [Phase("1 user", 1, 0, length / 2), Phase("2 users", 2, length / 2, length)]
    samples = [MemorySample(at, 900.0 + at / 10) for at in range(length)]
    ran = run.Records(answers, phases, [], samples)
    folder.mkdir()
    seconds = figures.by_second(answers, phases, samples)
    run.save(folder, run.summarize(plan, ran), seconds)


@pytest.mark.parametrize("scenario", ["steady", "ramp", "hostile", "soak"])
def test_the_page_of_a_run(runs: Path, tmp_path: Path, scenario: str) -> None:
    page = (result(runs, tmp_path / "a", scenario) / "report.html").read_text()
    Strict(page)
    assert page.count("<figure>") == 7 + 3 * (scenario == "ramp")
    assert "n:gated" in page and "10.0%" in page
    assert ("a check failed" in page) == (scenario == "hostile")  # nobody was refused


def test_long_runs_are_shown_in_minutes(runs: Path, tmp_path: Path) -> None:
    page = (result(runs, tmp_path / "a", length=600) / "report.html").read_text()
    assert ">min</text>" in page and ">s</text>" not in page


def test_two_runs_beside_each_other(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = result(runs, tmp_path / "a"), result(runs, tmp_path / "b", ms=20.0)
    assert report.main([str(a), str(b)]) == 0
    said = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said]
    assert ["all", "inter-token p50, ms", "10.0", "20.0", "2.00"] in rows
    page = (a / "beside-b.html").read_text()
    Strict(page)
    assert "p50, A" in page and "p50, B" in page
    assert "<span class=worse>2.00</span>" in page


def test_no_results(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "no results of a load test" in capsys.readouterr().err
    assert report.main([]) == 2
    assert report.main(["--help"]) == 0
    damaged = result(runs, tmp_path / "a")
    (damaged / "seconds.csv").write_text("second\nx\n")
    assert report.main([str(damaged)]) == 2
