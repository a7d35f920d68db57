"""The report: one HTML page of a run, or of two runs side by side.

    python -m loadtests.report RUN              writes RUN/report.html once more
    python -m loadtests.report RUN OTHER        writes RUN/beside-OTHER.html, and prints the ratios

RUN is a result folder of `python -m loadtests`. The page is report.html.j2 filled in; it is one
file, and needs no network.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from adapters.files import write_text
from benchmarks.report import print_table
from loadtests.charts import Chart, Line, line_chart

NONE = "–"
LONG_SECONDS = 300  # longer runs are shown in minutes
SLIGHT = 0.05  # a ratio this near to 1 is neither better nor worse
MARKS = {True: "ok", False: "FAILED", None: "not judged"}

# (column, value of a row, digits, 1: more is better, -1: less is better, 0: neither)
FIGURES: tuple[tuple[str, Callable[[dict[str, Any]], float | None], int, int], ...] = (
    ("requests", lambda row: row["requests"], 0, 0),
    ("failed", lambda row: row["failures"], 0, -1),
    ("requests/s", lambda row: row["requests_per_second"], 2, 1),
    ("tokens/s", lambda row: row["tokens_per_second"], 0, 1),
    *(
        (f"{name} {share}, ms", lambda row, k=key, s=share: (row[k] or {}).get(s), 1, -1)
        for name, key in (("TTFT", "ttft_ms"), ("inter-token", "inter_token_ms"))
        for share in ("p50", "p95", "p99")
    ),
    ("answer's tokens/s", lambda row: (row["request_tokens_per_second"] or {}).get("p50"), 1, 1),
    ("gate rate, %", lambda row: row["gate_rate"] and 100 * row["gate_rate"], 2, 0),
)
COLUMNS = tuple(name for name, *_ in FIGURES)
RATIO_COLUMNS = ("model", "figure", "A", "B", "B / A")

# (title, unit, {column of seconds.csv: legend})
OVER_TIME: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Tokens per second", "", {"tokens": "tokens"}),
    ("Users", "", {"users": "users"}),
    ("Time to first token", "ms", {"ttft_p50_ms": "p50", "ttft_p95_ms": "p95"}),
    ("Inter-token latency", "ms", {"inter_token_p50_ms": "p50", "inter_token_p95_ms": "p95"}),
    ("Requests per second", "", {"requests": "sent", "refused": "refused", "errors": "errors"}),
    ("Gate rate", "gated tokens / tokens", {"gate_rate": "gate rate"}),
    ("Memory of the server", "MiB", {"memory_mib": "memory"}),
)
BY_USERS = {  # title -> column of COLUMNS
    "Throughput by users": "tokens/s",
    "Time to first token by users": "TTFT p50, ms",
    "Inter-token latency by users": "inter-token p50, ms",
}
ONLY_IF_ANY = ("errors", "refused")  # columns that are 0 in most runs
# Of a run, and of another run beside it: first curve, second, third.
COLOURS = (("#3a76d8", "#9cc0f4", "#d03a38"), ("#d9622b", "#f2b592", "#8259c7"))


class ReportError(ValueError):
    """A folder has no results that can be read; the message names it."""


class Result(NamedTuple):
    """A result folder."""

    name: str
    summary: dict[str, Any]
    seconds: list[dict[str, float | None]]


def read(folder: Path) -> Result:
    """Read a result folder. Raises ReportError if it is none."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "seconds.csv").open(encoding="utf-8", newline="") as file:
            rows = [
                {name: float(text) if text else None for name, text in row.items()}
                for row in csv.DictReader(file)
            ]
        return Result(folder.resolve().name, summary, rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder}: no results of a load test ({error})") from error


def _over_time(results: Sequence[Result]) -> list[Chart | None]:
    """Charts of seconds.csv; the curves of a second run are drawn over those of the first."""
    scale = 60.0 if max(len(one.seconds) for one in results) > LONG_SECONDS else 1.0
    phases = results[0].summary["phases"]
    # Phases of a ramp begin when they have settled: the bands begin where the one before ends.
    ends = [0.0, *(one["end"] / scale for one in phases)]
    bands = [(one["phase"], *ends[at : at + 2]) for at, one in enumerate(phases)]
    options: dict[str, Any] = {
        "x_unit": "min" if scale > 1 else "s",
        "bands": bands if len(bands) > 1 else (),
    }
    charts = []
    for title, unit, columns in OVER_TIME:
        lines = []
        for place, (column, legend) in enumerate(columns.items()):
            for which, result in enumerate(results):
                points = [((row["second"] or 0.0) / scale, row[column]) for row in result.seconds]
                if column not in ONLY_IF_ANY or any(y for _, y in points):
                    name = f"{legend}, {'AB'[which]}" if len(results) > 1 else legend
                    lines.append(Line(name, points, COLOURS[which][place]))
        charts.append(line_chart(title, unit, lines, zero="memory_mib" not in columns, **options))
    return charts


def _by_users(results: Sequence[Result]) -> list[Chart | None]:
    """Charts of the steps of a ramp."""
    figures = {name: get for name, get, *_ in FIGURES}
    charts = []
    for title, column in BY_USERS.items():
        lines = []
        for which, result in enumerate(results):
            points = [(row["users"], figures[column](row)) for row in result.summary["phases"]]
            lines.append(Line(f"run {'AB'[which]}", points, COLOURS[which][0]))
        charts.append(line_chart(title, column, lines, x_unit="users", doubling=True))
    return charts


def _text(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a row of the summary as text, in the order of COLUMNS."""
    return [_text(get(row), digits) for _, get, digits, _ in FIGURES]


def _page(title: str, results: Sequence[Result], **values: Any) -> str:
    """Fill in the template."""
    loader = FileSystemLoader(Path(__file__).parent)
    templates = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = templates.get_template("report.html.j2")
    ramps = [one for one in results if one.summary["saturation"]]
    keys = ("host", "settings", "machine")
    return template.render(
        title=title,
        by_users=_by_users(ramps) if ramps else [],
        over_time=_over_time(results),
        details=[json.dumps({k: one.summary[k] for k in keys}, indent=2) for one in results],
        **{"columns": COLUMNS, "ratio_columns": RATIO_COLUMNS, "marks": MARKS} | values,
    )


def run_page(folder: Path) -> str:
    """Render the page of one run. Raises ReportError if `folder` has no results."""
    result = read(folder)
    summary = result.summary
    rows = {
        "models": [*summary["models"].items(), ("all", summary["all"])],
        "phases": [(f"{one['phase']} ({one['users']})", one) for one in summary["phases"]],
    }
    tables = {which: [[name, *cells(row)] for name, row in of] for which, of in rows.items()}
    tables["refused"] = [[kind, *row.values()] for kind, row in summary["refused"].items()]
    machine = "{cpu}, {cores} cores".format(**summary["machine"])
    lines = [summary["about"], f"{summary['began']} · {machine}"]
    return _page(
        f"{summary['scenario']}: load test", [result], summary=summary, lines=lines, **tables
    )


def ratios(a: Result, b: Result) -> list[list[str]]:
    """Rows of (model, figure, A, B, B / A): all models together, and each that both runs have."""
    rows = []
    first, second = ({"all": one.summary["all"]} | one.summary["models"] for one in (a, b))
    for model in [name for name in first if name in second]:
        for name, get, digits, better in FIGURES:
            old, new = get(first[model]), get(second[model])
            if old is None and new is None:
                continue
            ratio = f"{new / old:.2f}" if old and new is not None else NONE
            if old and new is not None and better and abs(new / old - 1) > SLIGHT:
                style = "better" if (new > old) == (better > 0) else "worse"
                ratio = Markup("<span class={}>{}</span>").format(style, ratio)
            rows.append([model, name, _text(old, digits), _text(new, digits), ratio])
    return rows


def two_runs_page(a: Result, b: Result) -> str:
    """Render the page of two runs."""
    title = f"{a.summary['scenario']}: {a.name} beside {b.name}"
    lines = [f"{at}: {one.name}, {one.summary['began']}" for at, one in (("A", a), ("B", b))]
    return _page(title, [a, b], lines=lines, ratios=ratios(a, b))


def main(argv: list[str]) -> int:
    """Render a page. Returns the exit code."""
    if len(argv) not in (1, 2) or argv[0].startswith("-"):
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    folders = [Path(text) for text in argv]
    try:
        if len(folders) == 1:
            path = folders[0] / "report.html"
            write_text(path, run_page(folders[0]))
        else:
            a, b = map(read, folders)
            path = folders[0] / f"beside-{b.name}.html"
            write_text(path, two_runs_page(a, b))
            rows = ratios(a, b)
            print_table(RATIO_COLUMNS, [[Markup(cell).striptags() for cell in r] for r in rows])
    except ReportError as error:
        print(f"python -m loadtests.report: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
