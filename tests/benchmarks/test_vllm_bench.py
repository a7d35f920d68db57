"""`vllm bench serve` on plain vLLM and on ours: checks, table, command line."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support import Refused

from benchmarks import vllm_bench
from benchmarks.vllm_bench import (
    HEADER,
    PLAIN_BASE,
    PLAIN_LORA,
    SYSTEMS,
    BenchConfig,
    BenchError,
    Comparison,
    System,
    check,
    turns,
)

RESULT = dict.fromkeys(vllm_bench.FIGURES, 5.0) | {
    **{"completed": 8, "duration": 2.0, "total_input_tokens": 90, "total_output_tokens": 300},
    **{"mean_tpot_ms": 1.0},
}


def test_a_failed_run_has_no_figures() -> None:
    found = check(RESULT, 8, 300)
    assert found["output_throughput"] == 5.0 and "mean_tpot_ms" not in found
    with pytest.raises(BenchError, match="1 of 9 requests failed"):
        check(RESULT, 9, 300)
    with pytest.raises(BenchError, match="300 tokens, not 310"):
        check(RESULT, 8, 310)


def test_prompts_are_the_same_for_all_and_lengths_differ(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    total = vllm_bench.write_prompts(path, vllm_bench.BASE, 20, 64, seed=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lengths = [row["output_tokens"] for row in rows]
    assert sum(lengths) == total and 32 <= min(lengths) < max(lengths) <= 96
    assert len({row["prompt"] for row in rows}) > 1
    assert vllm_bench.write_prompts(path, vllm_bench.BASE, 20, 64, seed=1) == total
    assert vllm_bench.write_prompts(path, vllm_bench.BASE, 20, 64, seed=2) != total


class Completions(BaseHTTPRequestHandler):
    """A server of completions with exactly the tokens that are asked for."""

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        page = 'reasonmaxxer_gated_tokens_total{mode="gated"} 3.0\n'
        page += 'reasonmaxxer_generated_tokens_total{mode="gated"} 12.0\n'
        self.answer("text/plain", page)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "a:gated" and body["temperature"] == 0.6
        assert body["ignore_eos"] is True and body["add_special_tokens"] is False
        tokens = body["max_tokens"]
        events: list[dict[str, Any]] = [{"choices": [{"text": "1"}]}] * tokens
        events.append({"usage": {"completion_tokens": tokens, "prompt_tokens": 9}})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self.answer("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

    def answer(self, kind: str, text: str) -> None:
        """A whole answer; the connection is closed after it."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


def test_both_servers_name_the_base_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(vllm_bench.BASE)
    monkeypatch.setattr(vllm_bench, "running", lambda *flags: flags)
    flags: Any = vllm_bench.plain_server(tmp_path / "link", ("a", tmp_path), [])
    assert flags[flags.index("--served-model-name") + 1] == vllm_bench.BASE.name


def test_vllm_takes_the_flags_and_its_result_has_the_figures(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    system = System(f"http://127.0.0.1:{server.server_port}", "a:gated")
    prompts = tmp_path / "prompts.jsonl"
    options = BenchConfig.load(["--requests", "2", "--max-tokens", "8"])
    try:
        tokens = vllm_bench.write_prompts(prompts, vllm_bench.BASE, 6, options.max_tokens, seed=0)
        flags = vllm_bench.bench_flags(system, 3, prompts, options)
        found = check(vllm_bench.bench_serve(*flags), 6, tokens)
        assert vllm_bench.gated_and_generated(system.host) == (3.0, 12.0)
    finally:
        server.shutdown()
    assert found["total_input_tokens"] == 6 * 9
    assert all(found[figure] >= 0 for figure in vllm_bench.FIGURES)


def test_every_system_is_measured_in_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    @contextmanager
    def running_systems(_: BenchConfig) -> Any:
        yield {name: System("http://x", name) for name in SYSTEMS}

    def bench_serve(*flags: str) -> dict[str, Any]:
        options = dict(pairwise(flags))
        asked.append(options["--model"])
        prompts = Path(options["--dataset-path"]).read_text().splitlines()
        tokens = sum(json.loads(line)["output_tokens"] for line in prompts)
        return RESULT | {"completed": len(prompts), "total_output_tokens": tokens}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm_bench, "running_systems", running_systems)
    monkeypatch.setattr(vllm_bench, "bench_serve", bench_serve)
    monkeypatch.setattr(vllm_bench, "gated_and_generated", lambda _: (len(asked), 4 * len(asked)))
    assert vllm_bench.main(["--runs", "2", "--users", "1,3", "--requests", "2"]) == 0
    assert asked[:5] == list(SYSTEMS) and len(asked) == 20
    said = capsys.readouterr().out
    assert all(f" {system} " in said for system in SYSTEMS)
    saved = json.loads((tmp_path / "runs" / "benchmarks" / "vllm_bench.json").read_text())
    assert len(saved["rows"]) == 10 and saved["settings"]["users"] == [1, 3]
    assert {run["gate_rate"] for row in saved["rows"] for run in row["each_run"]} == {0.25}


def test_each_system_takes_its_turn() -> None:
    orders = [turns(5, run) for run in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders[0] == [0, 1, 2, 3, 4]
    assert orders[1] == [0, 4, 3, 2, 1]
    assert len({tuple(order) for order in orders}) == 4


def comparison() -> Comparison:
    """Two runs of every system; the second run's machine is twice as slow."""
    made = Comparison()
    for slow in (1, 2):
        for place, system in enumerate(SYSTEMS, start=1):
            figures = dict.fromkeys(vllm_bench.FIGURES, 10.0 * place * slow)
            made.add(8, system, figures | {"output_throughput": 100 * place / slow})
    return made


def test_ratios_are_of_runs_side_by_side() -> None:
    made = comparison()
    assert made.ratios(8, SYSTEMS[4], PLAIN_BASE, "output_throughput") == [5, 5]
    assert made.ratios(8, SYSTEMS[3], PLAIN_LORA, "median_ttft_ms") == [2, 2]
    table = made.table()
    assert [row[1] for row in table] == list(SYSTEMS)
    assert all(len(row) == len(HEADER) for row in table)
    assert table[1] == [
        *("8", PLAIN_LORA, "150 (100-200)", *["30.0 (20.0-40.0)"] * 4),
        *("2.00 (2.00-2.00)", "1.00 (1.00-1.00)"),
    ]


def test_defaults() -> None:
    options = BenchConfig.load([])
    assert (options.runs, options.requests, options.users) == (3, 8, [1, 8, 32])
    assert BenchConfig.load(["--users", "1,8", "--server-cores", "0"]).users == [1, 8]
    flags = vllm_bench.server_flags(options)
    assert flags[flags.index("--max-num-seqs") + 1] == "64"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--runs", "0"], "--runs"),
        (["--requests", "0"], "--requests"),
        (["--users", ""], "--users"),
        (["--users", "0,1"], "--users"),
        (["--users", "one"], "--users"),
        (["--max-tokens", "1"], "--max-tokens"),
        (["--server-cores", "4096"], "this machine has"),
        (["--model", "nowhere"], "--model: no folder"),
        (["--adapters", "nowhere"], "--adapters: no store"),
        (["--adapter", "nobody"], "--adapter: there are"),
        (["--color"], "--color"),
    ],
)
def test_bad_arguments(argv: list[str], word: str, refused: Refused) -> None:
    assert word in refused(BenchConfig.load, argv)
