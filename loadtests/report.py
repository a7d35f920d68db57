"""The page of a run, of two runs side by side, or of a comparison with plain vLLM.

    python -m loadtests.report RUN              RUN/report.html once more
    python -m loadtests.report RUN OTHER        RUN/beside-OTHER.html, and a table of ratios

One file, with nothing to be fetched. RUN is a result folder of `python -m loadtests` (or of
`loadtests.compare`).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from adapters.files import write_text
from benchmarks.report import print_table
from loadtests.charts import Band, Bar, Line, bar_chart, line_chart

STYLE = Path(__file__).with_name("report.css")
NONE = "–"
LONG = 300  # seconds; longer runs are shown in minutes


class ReportError(ValueError):
    """A folder holds no results that can be read; the message names it."""


class Result(NamedTuple):
    """A result folder, read."""

    name: str
    summary: dict[str, Any]
    seconds: list[dict[str, float | None]]

    @property
    def bands(self) -> list[Band]:
        """The phases; those of a ramp are described without the time in which they settle."""
        ends = [0.0, *(one["end"] for one in self.summary["phases"])]
        return [
            Band(one["phase"], start, one["end"])
            for one, start in zip(self.summary["phases"], ends, strict=False)
        ]

    def curve(self, column: str) -> list[tuple[float, float | None]]:
        """A column of seconds.csv over time."""
        return [(row["second"] or 0.0, row[column]) for row in self.seconds]

    @property
    def scale(self) -> float:
        """Seconds in a unit of the time axis."""
        return 60.0 if len(self.seconds) > LONG else 1.0


def read(folder: Path) -> Result:
    """Read a result folder.

    Raises:
        ReportError: it is none.
    """
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


# ------------------------------------------------------------------------------------------ charts

# (title, unit, [(column, legend, style with one run, style of the other run)], y axis from 0)
OVER_TIME: tuple[tuple[str, str, tuple[tuple[str, str, str, str], ...], bool], ...] = (
    ("Tokens a second", "", (("tokens", "tokens", "a", "b"),), True),
    ("Users", "", (("users", "users", "c", "b"),), True),
    (
        "Time to first token",
        "ms",
        (("ttft_p95_ms", "p95", "a2", "b2"), ("ttft_p50_ms", "p50", "a", "b")),
        True,
    ),
    (
        "Inter-token latency",
        "ms",
        (("inter_token_p95_ms", "p95", "a2", "b2"), ("inter_token_p50_ms", "p50", "a", "b")),
        True,
    ),
    (
        "Requests a second",
        "",
        (
            ("requests", "sent", "a", "b"),
            ("refused", "hostile, refused", "e", "e"),
            ("errors", "errors", "bad", "bad"),
        ),
        True,
    ),
    ("Gate rate", "gated tokens / tokens", (("gate_rate", "gate rate", "d", "b"),), True),
    ("Memory of the server", "MiB", (("memory_mib", "memory", "c", "b"),), False),
)
# Columns that are all 0 in most runs, and then say nothing.
ONLY_IF_ANY = {"errors", "refused"}


def _over_time(results: Sequence[Result]) -> str:
    charts = []
    scale = max(one.scale for one in results)
    for title, unit, columns, zero in OVER_TIME:
        lines = []
        for column, name, style, other in columns:
            for which, result in enumerate(results):
                points = [(x / scale, y) for x, y in result.curve(column)]
                if column in ONLY_IF_ANY and not any(y for _, y in points):
                    continue
                said = f"{name}, {'AB'[which]}" if len(results) > 1 else name
                lines.append(Line(said, points, other if which else style))
        bands = [Band(one.name, one.start / scale, one.end / scale) for one in results[0].bands]
        bands = bands if len(bands) > 1 else []
        x_unit = "min" if scale > 1 else "s"
        charts.append(line_chart(title, lines, bands, unit=unit, x_unit=x_unit, zero=zero))
    return "".join(charts)


def _ramp(results: Sequence[Result]) -> str:
    """Of steps: figures over users."""
    figures: tuple[tuple[str, str, Callable[[Any], float | None]], ...] = (
        ("Throughput by users", "tokens/s", lambda row: row["tokens_per_second"]),
        ("Time to first token by users", "ms, p50", lambda row: (row["ttft_ms"] or {}).get("p50")),
        (
            "Inter-token latency by users",
            "ms, p50",
            lambda row: (row["inter_token_ms"] or {}).get("p50"),
        ),
    )
    charts = []
    for title, unit, figure in figures:
        lines = [
            Line(
                f"run {'AB'[which]}" if len(results) > 1 else "",
                [(row["users"], figure(row)) for row in result.summary["phases"]],
                "ab"[which],
            )
            for which, result in enumerate(results)
            if result.summary["saturation"]
        ]
        charts.append(line_chart(title, lines, unit=unit, x_unit="", doubling=True))
    return "".join(charts)


# ------------------------------------------------------------------------------------------ tables


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() or cell == NONE


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], last: bool = False) -> str:
    text = ["" if _is_number(cell) else " class=text" for cell in rows[0]]
    head = "".join(f"<th{t}>{escape(cell)}</th>" for cell, t in zip(header, text, strict=True))
    body = []
    for index, row in enumerate(rows):
        style = " class=all" if last and index == len(rows) - 1 else ""
        cells = "".join(f"<td{t}>{cell}</td>" for cell, t in zip(row, text, strict=True))
        body.append(f"<tr{style}>{cells}</tr>")
    return (
        f"<div class=sheet><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


FIGURES: tuple[tuple[str, Callable[[dict[str, Any]], float | None], int, int], ...] = (
    # (name, where, digits, 1: more is better, -1: less is, 0: neither)
    ("requests", lambda row: row["requests"], 0, 0),
    ("failed", lambda row: row["failures"], 0, -1),
    ("requests/s", lambda row: row["requests_per_second"], 2, 1),
    ("tokens/s", lambda row: row["tokens_per_second"], 0, 1),
    *(
        (f"{name} {share}, ms", lambda row, k=key, s=share: (row[k] or {}).get(s), 1, -1)
        for name, key in (("TTFT", "ttft_ms"), ("inter-token", "inter_token_ms"))
        for share in ("p50", "p95", "p99")
    ),
    (
        "tokens/s of an answer",
        lambda row: (row["request_tokens_per_second"] or {}).get("p50"),
        1,
        1,
    ),
    (
        "gate rate, %",
        lambda row: None if row["gate_rate"] is None else 100 * row["gate_rate"],
        2,
        0,
    ),
)


def _shown(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def _figures(rows: Sequence[tuple[str, dict[str, Any]]], first: str, last: bool = False) -> str:
    return _table(
        [first, *(name for name, *_ in FIGURES)],
        [
            [escape(name), *(_shown(get(row), digits) for _, get, digits, _ in FIGURES)]
            for name, row in rows
        ],
        last,
    )


def _checks(summary: dict[str, Any]) -> str:
    marks = {True: ("ok", "holds"), False: ("failed", "FAILED"), None: ("none", "not judged")}
    rows = []
    for check in summary["checks"]:
        style, word = marks[check["ok"]]
        rows.append(
            f'<tr><td><span class="mark {style}">{word}</span></td>'
            f"<td class=text>{escape(check['what'])}</td>"
            f'<td class="text said">{escape(check["said"])}</td></tr>'
        )
    return f"<div class=sheet><table><tbody>{''.join(rows)}</tbody></table></div>"


def _cards(summary: dict[str, Any]) -> str:
    row, saturation = summary["all"], summary["saturation"]
    cards = [
        ("requests", f"{row['requests']:,}", f"in {summary['seconds']:,.0f} s", False),
        ("failed", f"{row['failures']:,}", "", row["failures"] > 0),
        ("tokens a second", f"{row['tokens_per_second']:,.0f}", "", False),
    ]
    for key, name in (
        ("ttft_ms", "time to first token"),
        ("inter_token_ms", "inter-token latency"),
    ):
        if row[key]:
            p50, p99 = row[key]["p50"], row[key]["p99"]
            cards.append((name, f"{p50:.1f} ms", f"p99 {p99:,.1f}", False))
    if row["gate_rate"] is not None:
        cards.append(("gate rate", f"{row['gate_rate']:.1%}", "", False))
    if saturation:
        said = f"{saturation['tokens_per_second']:,.0f}"
        cards.append(("saturation, tokens/s", said, f"from {saturation['users']} users", False))
    if of := summary.get("of_saturation"):
        said = f"{of['share']:.0%} of {of['requests_per_second']:.1f}"
        cards.append(("requests a second", f"{row['requests_per_second']:.1f}", said, False))
    if summary["moves_ms"]:
        moves = summary["moves_ms"]
        cards.append(("moves of the alias", f"{moves['moves']:,}", f"p50 {moves['p50']:.0f} ms", 0))
    if summary["memory_mib"]:
        memory = summary["memory_mib"]
        cards.append(("memory at the end", f"{memory['end']:,.0f}", "MiB", False))
    return "".join(
        f"<div class=card><span>{escape(name)}</span><b{' class=bad' if bad else ''}>{value}</b> "
        f"<small>{escape(small)}</small></div>"
        for name, value, small, bad in cards
    )


def _document(title: str, body: str) -> str:
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _details(summary: dict[str, Any]) -> str:
    shown = {name: summary[name] for name in ("host", "settings", "machine") if name in summary}
    return (
        "<details><summary>Settings, machine and versions</summary>"
        f"<pre>{escape(json.dumps(shown, indent=2))}</pre></details>"
    )


# ------------------------------------------------------------------------------------------- pages


def page(folder: Path) -> str:
    """The page of one run.

    Raises:
        ReportError: `folder` holds no results.
    """
    result = read(folder)
    summary = result.summary
    badge = "<span class=badge>all holds</span>"
    if not summary["passed"]:
        badge = '<span class="badge failed">something failed</span>'
    machine = summary["machine"]
    where = f"{summary['began']} · {machine['cpu']}, {machine['cores']} cores"
    parts = [
        f"<header><h1>{escape(summary['scenario'])}{badge}</h1>"
        f"<p>{escape(summary['about'])}</p><p>{escape(where)}</p></header>",
        f"<div class=cards>{_cards(summary)}</div>",
        f"<h2>What has to hold</h2>{_checks(summary)}",
        f"<h2>Over time</h2><div class=charts>{_over_time([result])}</div>",
    ]
    if summary["saturation"]:
        parts.insert(3, f"<h2>By users</h2><div class=charts>{_ramp([result])}</div>")
    models = [*summary["models"].items(), ("all", summary["all"])]
    parts.append(f"<h2>By model</h2>{_figures(models, 'model', last=True)}")
    if len(summary["phases"]) > 1:
        rows = [(f"{one['phase']} ({one['users']})", one) for one in summary["phases"]]
        parts.append(f"<h2>By phase, chat users alone</h2>{_figures(rows, 'phase (users)')}")
    if summary["refused"]:
        table = [
            [escape(kind), f"{row['requests']:,}", f"{row['wrong']:,}", f"{row['most_ms']:,.0f}"]
            for kind, row in summary["refused"].items()
        ]
        header = ("kind", "requests", "not refused as due", "longest, ms")
        parts.append(f"<h2>Hostile requests</h2>{_table(header, table)}")
    parts.append(_details(summary))
    return _document(f"{summary['scenario']}: load test", "".join(parts))


def ratios(a: Result, b: Result) -> list[list[str]]:
    """Rows of (what, figure, A, B, B / A), of all models together and of each both have."""
    rows = []
    pairs = [("all", a.summary["all"], b.summary["all"])]
    pairs += [
        (name, row, b.summary["models"][name])
        for name, row in a.summary["models"].items()
        if name in b.summary["models"]
    ]
    for what, one, other in pairs:
        for name, get, digits, _ in FIGURES:
            old, new = get(one), get(other)
            if old is None and new is None:
                continue
            ratio = f"{new / old:.2f}" if old and new is not None else NONE
            rows.append([what, name, _shown(old, digits), _shown(new, digits), ratio])
    return rows


SLIGHT = 0.05  # a ratio this near to 1 is neither better nor worse


def _coloured(row: Sequence[str]) -> list[str]:
    sign = next(better for name, _, _, better in FIGURES if name == row[1])
    cells = [escape(cell) for cell in row]
    if row[4] != NONE and sign and abs(float(row[4]) - 1) > SLIGHT:
        better = (float(row[4]) > 1) == (sign > 0)
        cells[4] = f"<span class={'better' if better else 'worse'}>{row[4]}</span>"
    return cells


def beside(a: Result, b: Result) -> str:
    """The page of two runs."""
    parts = [
        f"<header><h1>{escape(a.summary['scenario'])}: two runs</h1>"
        f"<p><b>A</b> {escape(a.name)}, {escape(a.summary['began'])} · "
        f"<b>B</b> {escape(b.name)}, {escape(b.summary['began'])}</p></header>"
    ]
    if a.summary["saturation"] or b.summary["saturation"]:
        parts.append(f"<h2>By users</h2><div class=charts>{_ramp([a, b])}</div>")
    parts.append(f"<h2>Over time</h2><div class=charts>{_over_time([a, b])}</div>")
    header = ("model", "figure", "A", "B", "B / A")
    rows = [_coloured(row) for row in ratios(a, b)]
    parts.append(f"<h2>Ratios</h2>{_table(header, rows)}")
    for which, one in (("A", a), ("B", b)):
        parts.append(_details(one.summary).replace("Settings", f"{which}: settings"))
    return _document(f"{a.name} beside {b.name}", "".join(parts))


# Plain vLLM in grey and violet, ours in blues and green; in the order of loadtests.compare.
STYLES = ("e", "c", "a2", "a", "d")


def comparison(folder: Path) -> str:
    """The page of a comparison with plain vLLM.

    Raises:
        ReportError: `folder` holds none.
    """
    from loadtests.compare import FIGURES as COLUMNS
    from loadtests.compare import HEADER, SYSTEMS, Rows

    try:
        found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
        rows = Rows()
        for row in found["rows"]:
            for run in row["each_run"]:
                rows.add(row["users"], row["system"], run)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder}: no comparison ({error})") from error
    users = sorted({row["users"] for row in found["rows"]})
    charts = []
    for figure, title in COLUMNS.items():
        groups = []
        for count in users:
            bars = []
            for system, style in zip(SYSTEMS, STYLES, strict=True):
                if (count, system) in rows.runs:
                    values = rows.values(count, system, figure)
                    middle = sorted(values)[len(values) // 2]
                    bars.append(Bar(middle, min(values), max(values), style, system))
            groups.append((f"{count} user{'s' * (count > 1)}", bars))
        charts.append(bar_chart(title, groups))
    settings, machine = found["settings"], found["machine"]
    said = (
        f"{settings['runs']} run(s) of {settings['seconds']:g} s, in turn; answers of "
        f"{settings['max_tokens']} tokens at temperature {settings['temperature']:g}; "
        f"servers on core {_cores(settings['server_cores'])}, "
        f"users on {_cores(settings['client_cores'])} · "
        f"{machine['cpu']}, {machine['cores']} cores"
    )
    table = [[escape(cell) for cell in row] for row in rows.table()]
    body = (
        f"<header><h1>Beside plain vLLM</h1><p>{escape(said)}</p></header>"
        f"<h2>Figures: median of the runs, whisker from lowest to highest</h2>"
        f"<div class=charts>{''.join(charts)}</div><h2>Table</h2>{_table(HEADER, table)}"
        f"{_details(found)}"
    )
    return _document("Beside plain vLLM", body)


def _cores(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores)) or "any"


def main(argv: list[str]) -> int:
    """Render. Returns the exit code."""
    if len(argv) not in (1, 2) or argv[0].startswith("-"):
        print(__doc__, file=sys.stdout if argv and argv[0] in ("-h", "--help") else sys.stderr)
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    folders = [Path(text) for text in argv]
    try:
        if len(folders) == 1:
            path = folders[0] / "report.html"
            is_comparison = (folders[0] / "compare.json").exists()
            write_text(path, (comparison if is_comparison else page)(folders[0]))
        else:
            a, b = map(read, folders)
            path = folders[0] / f"beside-{b.name}.html"
            write_text(path, beside(a, b))
            print_table(("model", "figure", "A", "B", "B / A"), ratios(a, b))
    except ReportError as error:
        print(f"python -m loadtests.report: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
