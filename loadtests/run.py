"""Run a plan: locust in a process of its own, samples of the server beside it, then the results.

A result folder holds plan.json, summary.json, seconds.csv, report.html, locust's own tables
(locust_*.csv, locust.log), and the data behind them: answers.jsonl, phases.jsonl, moves.jsonl.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from tqdm import tqdm

from adapters.files import atomic_write, write_json, write_text
from benchmarks.report import print_table
from benchmarks.streams import resident_mib
from loadtests import figures
from loadtests.answers import Answer, MemorySample, Move, Phase, read_answers, read_lines
from loadtests.checks import run_checks
from loadtests.plan import Plan
from loadtests.report import COLUMNS, MARKS, cells, run_page
from training.provenance import machine

HERE = Path(__file__).parent
START_SECONDS = 60  # that locust may take to begin
FINISH_SECONDS = 130  # that answers under way may take after the end: until they time out
SAMPLE_SECONDS = 1.0
SHORT_SECONDS = 60  # a shorter run shows no progress in a log


class LocustError(RuntimeError):
    """locust itself failed; the message has the end of its log."""


class Records(NamedTuple):
    """What a run left behind."""

    answers: list[Answer]
    phases: list[Phase]
    moves: list[Move]
    samples: list[MemorySample]


def drive(plan: Plan, folder: Path, pid: int | None = None) -> Records:
    """Run `plan` on its server, whose process is `pid`. Raises LocustError if locust fails."""
    folder = folder.resolve()  # locust runs in this package's folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("start.txt", "answers.jsonl", "phases.jsonl", "moves.jsonl"):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / "plan.json", vars(plan))
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["--host", plan.host, "--plan", str(folder / "plan.json"), "--only-summary"]
    command += ["--csv", str(folder / "locust"), "--stop-timeout", str(FINISH_SECONDS)]
    command += ["--exit-code-on-error", "0"]  # the checks decide
    log = folder / "locust.log"
    with log.open("w", encoding="utf-8") as file:
        locust = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=HERE.parent)
        try:
            samples = _watch(locust, plan, pid)
        finally:
            if locust.poll() is None:
                locust.terminate()
                locust.wait()
    if locust.returncode or not (folder / "phases.jsonl").exists():
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise LocustError(f"locust ended with {locust.returncode}:\n{tail}")
    start = float((folder / "start.txt").read_text(encoding="utf-8"))
    dated = [MemorySample(round(one.seconds - start, 2), one.mib) for one in samples]
    return Records(
        read_answers(folder),
        read_lines(folder / "phases.jsonl", Phase),
        read_lines(folder / "moves.jsonl", Move),
        [one for one in dated if one.seconds >= 0],
    )


def _watch(locust: subprocess.Popen[bytes], plan: Plan, pid: int | None) -> list[MemorySample]:
    """Show progress until locust ends. Returns the server's samples, by perf_counter."""
    samples: list[MemorySample] = []
    begun = time.monotonic()
    most = plan.seconds if plan.curve.stages else plan.seconds * (plan.users.bit_length() + 2)
    quiet = None if most < SHORT_SECONDS else False  # None: shown on a terminal only
    often = 1 if sys.stderr.isatty() else 60
    with tqdm(
        total=int(most), unit="s", desc=plan.scenario, mininterval=often, disable=quiet
    ) as bar:
        while locust.poll() is None:
            passed = time.monotonic() - begun
            if passed > most + START_SECONDS + 2 * FINISH_SECONDS:
                raise LocustError(f"locust did not end within {passed:.0f} s")
            if pid is not None:
                with suppress(psutil.NoSuchProcess):  # if all have ended, failed requests tell
                    samples.append(MemorySample(time.perf_counter(), resident_mib(pid)))
                    bar.set_postfix(memory=f"{samples[-1].mib:.0f} MiB", refresh=False)
            bar.update(min(int(passed), int(most)) - bar.n)
            with suppress(subprocess.TimeoutExpired):
                locust.wait(SAMPLE_SECONDS)
    return samples


def summarize(plan: Plan, ran: Records, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make summary.json of a run."""
    length = ran.phases[-1].end if ran.phases else 0.0
    ramp = not plan.curve.stages
    phases = figures.by_phase(ran.answers, ran.phases, figures.SETTLING if ramp else 0.0)
    found = figures.saturation(phases, plan.users) if ramp else None
    checks = run_checks(plan, ran.answers, phases, ran.moves, ran.samples, found)
    took = [1000 * (move.end - move.start) for move in ran.moves[1:]]
    memory = figures.memory_growth(ran.samples)
    return {
        "scenario": plan.scenario,
        "about": plan.curve.about,
        "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() - length)),
        "passed": all(check.ok is not False for check in checks),
        "checks": [check._asdict() for check in checks],
        "host": plan.host,
        "seconds": round(length, 2),
        "settings": vars(plan) | {"problems": Path(plan.problems).name},  # no path of this machine
        "machine": machine() | {"locust": version("locust")},
        "all": figures.describe(figures.without_hostile(ran.answers), 0.0, length),
        "models": figures.by_model(ran.answers, 0.0, length),
        "phases": phases,
        "saturation": found._asdict() if found else None,
        "refused": figures.refusals(ran.answers),
        "moves_ms": (figures.percentiles(took) or {}) | {"moves": len(took)} if took else None,
        "memory_mib": memory._asdict() if memory else None,
        **(more or {}),
    }


def save(folder: Path, summary: dict[str, Any], seconds: Sequence[figures.Second]) -> None:
    """Write summary.json, seconds.csv and report.html."""
    write_json(folder / "summary.json", summary)
    with atomic_write(folder / "seconds.csv") as path, path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(figures.Second._fields)
        table.writerows(seconds)
    write_text(folder / "report.html", run_page(folder))


def perform(
    plan: Plan, folder: Path, pid: int | None = None, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run a plan, save its results and print them. Returns the summary."""
    ran = drive(plan, folder, pid)
    summary = summarize(plan, ran, more)
    save(folder, summary, figures.by_second(ran.answers, ran.phases, ran.samples))
    show(summary)
    print(f"\n{folder / 'report.html'}")
    return summary


def show(summary: dict[str, Any]) -> None:
    """Print the figures of the models as a table, and the checks."""
    print(f"\n{summary['scenario']}: {summary['about']}\n")
    models = [*summary["models"].items(), ("all", summary["all"])]
    print_table(("model", *COLUMNS), [[name, *cells(row)] for name, row in models])
    print()
    for check in summary["checks"]:
        print(f"{MARKS[check['ok']]:>10}  {check['what']}: {check['said']}")
