"""Run a plan: locust in a process of its own, the server's memory beside it, then the results.

A result folder holds plan.json, summary.json, seconds.csv, report.html, locust's own tables
(locust_*.csv, locust.log), and what all is computed from: answers.jsonl, phases.jsonl, moves.jsonl.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tqdm import tqdm

from adapters.files import atomic_write, write_json, write_text
from benchmarks.report import machine, print_table
from loadtests import figures, vitals
from loadtests.answers import Answer, Move, Phase, read_answers, read_moves, read_phases
from loadtests.plan import Plan
from loadtests.verdict import judge

HERE = Path(__file__).parent
FINISHING = 60  # seconds that answers under way may take after the end
STARTING = 60  # seconds that locust may take to begin
SAMPLE_SECONDS = 1.0


class LocustError(RuntimeError):
    """locust itself failed; the message holds the end of its log."""


class Ran(NamedTuple):
    """What a run left behind."""

    answers: list[Answer]
    phases: list[Phase]
    moves: list[Move]
    samples: list[vitals.Sample]


def drive(plan: Plan, folder: Path, pid: int | None = None, cores: Sequence[int] = ()) -> Ran:
    """Run `plan` on its server; `pid` is the server's process, `cores` those for the users.

    Raises:
        LocustError: locust did not run to its end.
    """
    folder = folder.resolve()  # locust runs elsewhere: where it finds this package
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("start.txt", "answers.jsonl", "phases.jsonl", "moves.jsonl"):
        (folder / name).unlink(missing_ok=True)
    plan.write(folder / "plan.json")
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["--host", plan.host, "--plan", str(folder / "plan.json"), "--only-summary"]
    command += ["--csv", str(folder / "locust"), "--stop-timeout", str(FINISHING)]
    command += ["--exit-code-on-error", "0"]  # the verdict is ours
    samples: list[vitals.Sample] = []
    log = folder / "locust.log"
    with log.open("w", encoding="utf-8") as file:
        locust = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=HERE.parent)
        try:
            if cores:
                psutil.Process(locust.pid).cpu_affinity(list(cores))
            _watch(locust, plan, folder, pid, samples)
        finally:
            if locust.poll() is None:
                locust.terminate()
                locust.wait()
    if locust.returncode or not (folder / "phases.jsonl").exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise LocustError(f"locust ended with {locust.returncode}:\n{tail}")
    answers = read_answers(folder)
    if samples:
        start = float((folder / "start.txt").read_text(encoding="utf-8"))
        samples = _dated(samples, start, answers)
    return Ran(answers, read_phases(folder), read_moves(folder), samples)


def _watch(
    locust: subprocess.Popen[bytes],
    plan: Plan,
    folder: Path,
    pid: int | None,
    samples: list[vitals.Sample],
) -> None:
    """Sample the server's memory and show progress until locust ends.

    Raises:
        LocustError: it does not begin, or does not end in time.
    """
    begun, asked = 0.0, time.monotonic()
    most = plan.seconds if plan.curve.stages else plan.seconds * (plan.users.bit_length() + 2)
    with tqdm(
        total=int(most),
        unit="s",
        desc=plan.scenario,
        mininterval=1 if sys.stderr.isatty() else 60,
        disable=None if most < JUST_A_MOMENT else False,
    ) as bar:
        while locust.poll() is None:
            if not begun and (folder / "start.txt").exists():
                begun = time.monotonic()
            passed = time.monotonic() - begun if begun else 0.0
            if not begun and time.monotonic() - asked > STARTING:
                raise LocustError(f"locust did not begin within {STARTING} s")
            if passed > most + 2 * FINISHING:
                raise LocustError(f"locust did not end within {passed:.0f} s")
            if pid is not None and begun:
                try:
                    samples.append(vitals.sample(pid, time.perf_counter(), 0))
                except psutil.NoSuchProcess:
                    pid = None  # the users' requests say so
                else:
                    bar.set_postfix(memory=f"{samples[-1].rss:.0f} MiB", refresh=False)
            bar.update(min(int(passed), int(most)) - bar.n)
            try:
                locust.wait(SAMPLE_SECONDS)
            except subprocess.TimeoutExpired:
                continue


JUST_A_MOMENT = 60  # seconds; below, progress is shown on a terminal only


def _dated(
    samples: Sequence[vitals.Sample], start: float, answers: Sequence[Answer]
) -> list[vitals.Sample]:
    """Samples in seconds since the test began, with the requests that had ended by then."""
    ends = sorted(answer.at + answer.ms / 1000 for answer in answers)
    dated, ended = [], 0
    for sample in samples:
        seconds = sample.seconds - start
        while ended < len(ends) and ends[ended] <= seconds:
            ended += 1
        dated.append(sample._replace(seconds=round(seconds, 2), requests=ended))
    return [sample for sample in dated if sample.seconds >= 0]


def summarize(plan: Plan, ran: Ran, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """summary.json of a run."""
    length = ran.phases[-1].end if ran.phases else 0.0
    rising = not plan.curve.stages
    phases = (figures.steps if rising else figures.by_phase)(ran.answers, ran.phases)
    found = figures.saturation(phases, plan.users) if rising else None
    checks = judge(plan, ran.answers, phases, ran.moves, ran.samples, found)
    took = [1000 * (move.end - move.start) for move in ran.moves[1:]]
    settings = {k: v for k, v in vars(plan).items() if k != "world"}
    return {
        "scenario": plan.scenario,
        "about": plan.curve.about,
        "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - length)),
        "passed": all(check.ok is not False for check in checks),
        "checks": [check._asdict() for check in checks],
        "host": plan.host,
        "seconds": round(length, 2),
        # A report is shown around: no path of this machine's.
        "settings": settings
        | {"versions": list(plan.versions), "problems": Path(plan.problems).name},
        "machine": machine() | {"locust": _version("locust")},
        "all": figures.describe(figures.good_users(ran.answers), 0.0, length),
        "models": figures.by_model(ran.answers, 0.0, length),
        "phases": phases,
        "saturation": found._asdict() if found else None,
        "refused": figures.refusals(ran.answers),
        "moves_ms": (figures.percentiles(took) or {}) | {"moves": len(took)} if took else None,
        "memory_mib": (
            vitals.memory(ran.samples)._asdict() if len(ran.samples) >= vitals.FEWEST else None
        ),
        **(more or {}),
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def save(folder: Path, summary: dict[str, Any], seconds: Sequence[figures.Second]) -> None:
    """Write summary.json, seconds.csv and report.html."""
    from loadtests.report import page

    write_json(folder / "summary.json", summary)
    with atomic_write(folder / "seconds.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(figures.Second._fields)
        table.writerows(seconds)
    write_text(folder / "report.html", page(folder))


def perform(
    plan: Plan, folder: Path, pid: int | None = None, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Drive, summarize, save and show one run. Returns the summary."""
    ran = drive(plan, folder, pid)
    summary = summarize(plan, ran, more)
    save(folder, summary, figures.by_second(ran.answers, ran.phases, ran.samples))
    show(summary)
    print(f"\n{folder / 'report.html'}")
    return summary


def show(summary: dict[str, Any]) -> None:
    """The figures as tables, and the checks."""
    print(f"\n{summary['scenario']}: {summary['about']}\n")
    header = (
        *("", "requests", "failed", "tokens/s", "TTFT p50 / p99, ms"),
        *("inter-token p50 / p99, ms", "gate rate"),
    )
    rows = [_row(name, row) for name, row in summary["models"].items()]
    print_table(header, [*rows, _row("all", summary["all"])])
    if len(summary["phases"]) > 1:
        print()
        rows = [_row(f"{one['phase']} ({one['users']})", one) for one in summary["phases"]]
        print_table(("phase (users)", *header[1:]), rows)
    if summary["refused"]:
        print()
        columns = ("requests", "wrong", "most_ms")
        rows = [(kind, *(str(row[c]) for c in columns)) for kind, row in summary["refused"].items()]
        print_table(("hostile", "requests", "not refused as due", "longest, ms"), rows)
    print()
    for check in summary["checks"]:
        print(f"{MARKS[check['ok']]:>10}  {check['what']}: {check['said']}")


MARKS = {True: "ok", False: "FAILED", None: "not judged"}


def _row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    def pair(figures: dict[str, float] | None) -> str:
        return f"{figures['p50']:.1f} / {figures['p99']:.1f}" if figures else ""

    rate = "" if row["gate_rate"] is None else f"{row['gate_rate']:.1%}"
    counts = f"{row['requests']:,}", f"{row['failures']:,}", f"{row['tokens_per_second']:,.0f}"
    return name, *counts, pair(row["ttft_ms"]), pair(row["inter_token_ms"]), rate
