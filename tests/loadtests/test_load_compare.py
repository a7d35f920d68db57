"""The comparison with plain vLLM: its figures, its table, its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests import compare, report
from loadtests.answers import Answer
from loadtests.compare import HEADER, PLAIN_BASE, PLAIN_LORA, SYSTEMS, Rows, measure, parse, turns
from loadtests.run import LocustError


def answer(at: float, **more: object) -> Answer:
    """Three tokens: 100 ms to the first, then two gaps of 50 ms."""
    values = {"model": "m", "status": 200, "ttft": 100.0, "gaps": [50.0, 50.0], "tokens": 3}
    return Answer(at, **values | {"prompt": 9} | more)


def test_only_the_time_after_the_warm_up_counts() -> None:
    early = answer(0.0, tokens=1, gaps=[], ttft=5000.0)  # the first is of any length
    found = measure([early, answer(2.0), answer(3.0), answer(9.0, gaps=[1.0, 1.0])], 1, 4, 3)
    assert found["tokens_per_second"] == 2.0  # 6 tokens in 3 s
    assert found["ttft_p99_ms"] == 100.0
    assert found["inter_token_p50_ms"] == 50.0
    assert (found["requests"], found["prompt_tokens"], found["tokens_per_piece"]) == (2, 9, 1)


def test_a_failed_run_has_no_figures() -> None:
    with pytest.raises(LocustError, match="HTTP 500"):
        measure([answer(2), Answer(2, "m", status=500, error="HTTP 500")], 0, 9, 3)
    with pytest.raises(LocustError, match="2 tokens, not 3"):
        measure([answer(2), answer(2, tokens=2)], 0, 9, 3)
    with pytest.raises(LocustError, match="nothing was answered"):
        measure([answer(2)], 5, 9, 3)


def test_each_system_takes_its_turn() -> None:
    orders = [turns(5, run) for run in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders[0] == [0, 1, 2, 3, 4]
    assert orders[1] == [0, 4, 3, 2, 1]
    assert len({tuple(order) for order in orders}) == 4


def rows() -> Rows:
    """Two runs of every system; the second run's machine is twice as slow."""
    made = Rows()
    for slow in (1, 2):
        for place, system in enumerate(SYSTEMS, start=1):
            figures = dict.fromkeys(compare.FIGURES, 10.0 * place * slow)
            made.add(8, system, figures | {"tokens_per_second": 100 * place / slow})
    return made


def test_ratios_are_of_runs_side_by_side() -> None:
    made = rows()
    assert made.ratios(8, SYSTEMS[4], PLAIN_BASE, "tokens_per_second") == [5, 5]
    assert made.ratios(8, SYSTEMS[3], PLAIN_LORA, "ttft_p50_ms") == [2, 2]
    table = made.table()
    assert [row[1] for row in table] == list(SYSTEMS)
    assert all(len(row) == len(HEADER) for row in table)
    assert table[1] == [
        *("8", PLAIN_LORA, "150 (100-200)", *["30.0 (20.0-40.0)"] * 4),
        *("2.00 (2.00-2.00)", "1.00 (1.00-1.00)"),
    ]
    single = Rows()
    single.add(1, PLAIN_BASE, made.runs[8, PLAIN_BASE][0])
    single.add(1, PLAIN_LORA, made.runs[8, PLAIN_LORA][0])
    assert single.table()[0][2] == "100"


def test_the_page_shows_every_system(tmp_path: Path) -> None:
    made = rows()
    machine = {"cpu": "a <fast> one", "cores": 2}
    settings = {"runs": 2, "seconds": 5.0, "max_tokens": 64, "temperature": 0.6}
    settings |= {"server_cores": [0], "client_cores": []}
    found = {"machine": machine, "settings": settings, "rows": made.result()}
    (tmp_path / "compare.json").write_text(json.dumps(found))
    page = report.comparison(tmp_path)
    assert all(system in page for system in SYSTEMS)
    assert "a &lt;fast&gt; one" in page and "<fast>" not in page
    assert page.count('class="whisker"') == len(compare.FIGURES) * len(SYSTEMS)
    assert report.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_text() == page


def test_defaults() -> None:
    options = parse([])
    assert (options.runs, options.seconds, options.users) == (3, 15, [1, 8, 32])
    assert parse(["--users", "1,8", "--server-cores", "0"]).users == [1, 8]
    flags = compare.flags(options)
    assert flags[flags.index("--max-num-seqs") + 1] == "64"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--runs", "0"], "--runs"),
        (["--users", ""], "--users"),
        (["--users", "0,1"], "--users"),
        (["--users", "one"], "--users"),
        (["--max-tokens", "1"], "--max-tokens"),
        (["--server-cores", "4096"], "this machine has"),
        (["--model", "nowhere"], "--model nowhere"),
        (["--adapters", "nowhere"], "--adapters nowhere"),
        (["--adapter", "nobody"], "--adapter nobody"),
        (["--color"], "--color"),
    ],
)
def test_bad_arguments(argv: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    assert stop.value.code == 2
    assert word in capsys.readouterr().err
