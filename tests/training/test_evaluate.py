"""Evaluation: in process and over HTTP, resumed, compared, and refused."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from peft import LoraConfig, get_peft_model
from support import Refused, configured, write_rows

from adapters.adapter import AdapterVersion
from adapters.prompt import PromptRenderer
from training.evaluate import _applied, main
from training.evaluate_config import EvaluateConfig
from training.evaluation import (
    Endpoint,
    Evaluation,
    Recorder,
    Reply,
    Result,
    ServerError,
    compare,
    evaluate_generator,
    evaluate_url,
    table,
)
from training.generation import Applied, Completion, Generator, SamplingOptions, derive_seed
from training.grading import Verdict, Verifier
from training.gym.draw import draw_here
from training.hf_model import load_model
from training.problems import Problem, load_problems, sources

BASE = "models/tiny-qwen2"
PROBLEMS = [Problem(id=f"p{i}", problem=f"{i} + 1", answer=str(i + 1)) for i in range(8)]
OPTIONS = SamplingOptions(n=4, temperature=0.6, top_p=0.95, max_tokens=64, seed=3)


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier() as verifier:
        yield verifier


@pytest.fixture
def problems_file(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(problem.model_dump_json() + "\n" for problem in PROBLEMS))
    return path


# ------------------------------------------------------------------------------- in process


class Renderer:
    """Token ids are the problem's characters."""

    template = "{{ messages }}"
    stop = ()

    def token_ids(self, problem: str) -> list[int]:
        return [ord(letter) for letter in problem]


@dataclass
class Scripted(Generator):
    """Right on problem i for its first i % 5 samples; with an adapter, for one more."""

    asked: list[int] = field(default_factory=list)  # problem numbers
    seeds: dict[int, int] = field(default_factory=dict)
    dies_after: int | None = None

    def stream(
        self,
        prompts: Sequence[list[int]],
        options: SamplingOptions,
        applied: Applied | None = None,
        seeds: Sequence[int] | None = None,
        on_tokens: Callable[[int], object] = lambda _: None,
    ) -> Iterator[tuple[int, list[Completion]]]:
        assert seeds is not None
        on_tokens(7)
        for place in reversed(range(len(prompts))):  # never in the order of the prompts
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise RuntimeError("killed")
            number = int("".join(map(chr, prompts[place])).split()[0])
            self.asked.append(number)
            self.seeds[number] = seeds[place]
            right = number % 5 + (applied is not None)
            gated = int(applied is not None and applied.mode == "gated")
            yield place, [self.answer(number, sample < right, gated) for sample in range(options.n)]

    @staticmethod
    def answer(number: int, right: bool, gated: int) -> Completion:
        if right:
            return Completion([1, 2, 0], f"\\boxed{{{number + 1}}}", "stop", gated)
        return Completion([1, 2, 3, 4, 5], "and so on", "length")


def run(generator: Scripted, verifier: Verifier, **more: Any) -> Result:
    renderer = cast(PromptRenderer, Renderer())
    problems = more.pop("problems", PROBLEMS)
    options = more.pop("options", OPTIONS)
    applied, label = more.pop("applied", None), more.pop("label", None)
    evaluation = Evaluation(problems, renderer, options, verifier, **more)
    return evaluate_generator(generator, evaluation, applied, label)


def test_evaluate_generator(verifier: Verifier) -> None:
    generator = Scripted()
    result = run(generator, verifier, source="sums")
    assert result.problem_ids == [problem.id for problem in PROBLEMS]
    right = [0, 1, 2, 3, 4, 0, 1, 2]
    assert (result.scores * 4).tolist() == right
    assert result.pass_at_1.value == pytest.approx(13 / 32)
    assert result.boxed_rate.value == pytest.approx(13 / 32)
    assert result.truncated_rate.value == pytest.approx(19 / 32)
    assert result.mean_tokens.value == pytest.approx((13 * 3 + 19 * 5) / 32)
    assert generator.seeds[2] == derive_seed(3, "p2")

    report = result.report([1, 4])
    assert report["mode"] == "base"
    assert report["pass@1"] == report["avg@4"] == result.pass_at_1.value
    assert report["stderr"] == pytest.approx(result.stderr)
    assert report["pass@4"] == 6 / 8
    assert (report["n"], report["samples"]) == (8, 4)
    json.dumps(report, allow_nan=False)

    scores = {score.metric: score for score in result.to_scores([4])}
    assert scores["pass@1"].value == result.pass_at_1.value
    assert scores["pass@1"].problems == "sums"
    assert scores["pass@4"].n == 8


def test_a_mixture_is_reported_by_source(verifier: Verifier) -> None:
    sources = ["small"] * 4 + ["large"] * 4
    problems = [
        one.model_copy(update={"source": source})
        for one, source in zip(PROBLEMS, sources, strict=True)
    ]
    result = run(Scripted(), verifier, problems=problems)
    by_source = result.report()["by_source"]
    assert {name: one["pass@1"] for name, one in by_source.items()} == {
        "small": pytest.approx(6 / 16),
        "large": pytest.approx(7 / 16),
    }
    assert [one["n"] for one in by_source.values()] == [4, 4]
    lines = table([result]).splitlines()
    assert lines[4].startswith("pass@1 by source  n  base")
    assert [line.split()[:2] for line in lines[6:]] == [["small", "4"], ["large", "4"]]
    assert "by_source" not in run(Scripted(), verifier).report()


def test_one_problem_reports_no_standard_error(verifier: Verifier) -> None:
    result = run(Scripted(), verifier, problems=PROBLEMS[1:2])
    assert result.report()["stderr"] is None
    assert result.to_scores()[0].stderr is None


def test_killed_and_resumed(tmp_path: Path, verifier: Verifier) -> None:
    killed = Scripted(dies_after=5)
    with pytest.raises(RuntimeError, match="killed"):
        run(killed, verifier, output=tmp_path)
    resumed = Scripted()
    result = run(resumed, verifier, output=tmp_path)
    assert sorted(killed.asked + resumed.asked) == list(range(8))
    assert resumed.seeds | killed.seeds == {i: derive_seed(3, f"p{i}") for i in range(8)}
    again = Scripted()
    assert run(again, verifier, output=tmp_path).report() == result.report()
    assert again.asked == []
    assert result.report() == run(Scripted(), verifier).report()

    [folder] = tmp_path.iterdir()
    kept = pq.read_table(folder).to_pylist()
    assert len(kept) == 32
    assert Counter(row["problem_id"] for row in kept) == {f"p{i}": 4 for i in range(8)}
    assert {row["text"] for row in kept if row["problem_id"] == "p4"} == {r"\boxed{5}"}


def test_other_settings_are_asked_anew_and_changed_problems_too(
    tmp_path: Path, verifier: Verifier
) -> None:
    run(Scripted(), verifier, output=tmp_path, problems=PROBLEMS[:4])
    more = Scripted()
    run(more, verifier, output=tmp_path)
    assert sorted(more.asked) == [4, 5, 6, 7]  # a larger set asks for the rest
    hotter = Scripted()
    run(hotter, verifier, output=tmp_path, options=SamplingOptions(n=4, temperature=1.0, seed=3))
    assert len(hotter.asked) == 8
    changed = Scripted()
    problems = [Problem(id="p0", problem="9 + 1", answer="10"), *PROBLEMS[1:]]
    run(changed, verifier, output=tmp_path, problems=problems)
    assert changed.asked == [9]


def test_base_and_adapter_are_paired(tmp_path: Path, verifier: Verifier) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    base = run(Scripted(), verifier, output=tmp_path / "out")
    tuned = run(Scripted(), verifier, output=tmp_path / "out", applied=Applied(adapter))
    gated = run(Scripted(), verifier, output=tmp_path / "out", applied=Applied(adapter, 0.5))
    assert (base.mode, tuned.mode, gated.mode) == ("base", "always", "gated")
    # One token of each right answer: 20 of them of 3 tokens, 12 wrong ones of 5.
    assert gated.gate_rate.value == pytest.approx(20 / (20 * 3 + 12 * 5))
    assert "gate_rate" in gated.report() and "gate_rate" not in tuned.report()
    table_of_all = table([base, tuned, gated]).splitlines()
    assert table_of_all[0].split()[-1] == "gate_rate"
    assert table_of_all[4].split()[-3] == "0.167"
    [difference] = compare([base, tuned])
    # One more right of four on every problem but p4, which was right throughout: squares of
    # deviations sum to 7/16 - 8 (7/32)^2 = 7/128, and sqrt(7/128 / 7 / 8) = 1/32.
    assert difference["pass@1"] == pytest.approx(7 / 32)
    assert difference["stderr"] == pytest.approx(1 / 32)
    assert "always - base: pass@1 +0.219 ± " in table([base, tuned], [4])
    with pytest.raises(ValueError, match="different problems"):
        tuned.against(run(Scripted(), verifier, problems=PROBLEMS[:3]))


def test_recorder_refuses_what_it_cannot_tell_apart(verifier: Verifier) -> None:
    with pytest.raises(ValueError, match="none to ask"):
        Recorder([], 1, verifier)
    with pytest.raises(ValueError, match="twice"):
        Recorder([PROBLEMS[0], PROBLEMS[0]], 1, verifier)
    with (
        pytest.raises(RuntimeError, match="1 answers came"),
        Recorder(PROBLEMS, 2, verifier) as one,
    ):
        one.add(0, [Reply("", 0, "stop")])


def test_answers_that_cannot_be_graded_count_in_no_score(
    tmp_path: Path, verifier: Verifier
) -> None:
    problems = [Problem(id=name, problem=name, answer=r"\frac13") for name in ("a", "b", "c")]
    texts = [
        [r"\boxed{1/3}", r"\boxed{0.3333}"],
        [r"\boxed{0.3333}", r"\boxed{0.3333}"],
        [r"\boxed{2}", r"\boxed{1/3}"],
    ]
    for _ in range(2):  # the second time they are read back
        with Recorder(problems, 2, verifier, tmp_path) as recorder:
            for index in recorder.missing:
                recorder.add(index, [Reply(text, 3, "stop") for text in texts[index]])
            result = recorder.result("base", "base", "made up", 0.6)
        assert result.scores[[0, 2]].tolist() == [1, 0.5] and np.isnan(result.scores[1])
        assert (result.pass_at_1.value, result.pass_at_1.n) == (0.75, 2)
        report = result.report()
        assert (report["not_graded"], report["n"], report["pass@1"]) == (3, 3, 0.75)
        assert report["not_graded_because"] == {"equal up to rounding": 3}
        assert (
            "base: 3 of 6 answers could not be graded and are left out (3: equal up to rounding)"
            in table([result])
        )
        assert result.against(result).n == 2


def test_answers_that_overran_another_deadline_are_graded_again(tmp_path: Path) -> None:
    texts = [[r"\boxed{2}", "no answer"], [r"\boxed{3}", r"\boxed{3}"]]
    checked: list[Sequence[str]] = []

    class Slow(Verifier):
        """Takes 9 seconds for a boxed answer to p0, and forever for one to another problem."""

        def check(self, texts: Sequence[str], problems: Sequence[Any]) -> list[Verdict]:
            if texts:
                checked.append(texts)
            return [self.one(*both) for both in zip(texts, problems, strict=True)]

        def one(self, text: str, problem: Problem) -> Verdict:
            if "boxed" not in text:
                return Verdict(False, False, False, "no answer")
            if problem.id == "p0" and self.deadline >= 9:
                return Verdict(True, True, False, "equal")
            return Verdict(None, True, True, self.overdue)

    def result(deadline: float, problems: list[Problem]) -> Result:
        with Slow(deadline) as slow, Recorder(problems, 2, slow, tmp_path) as recorder:
            for index in recorder.missing:
                recorder.add(index, [Reply(text, 3, "stop") for text in texts[index]])
            return recorder.result("base", "base", "made up", 0.6)

    first = result(5, PROBLEMS[:2])
    assert first.timed_out == 3
    assert result(5, PROBLEMS[:2]).timed_out == 3 and len(checked) == 1  # nothing new to learn
    later = result(30, PROBLEMS[:2])
    assert checked[1:] == [[texts[0][0], *texts[1]]]
    assert later.timed_out == 2 and later.correct[0].tolist() == [1, 0]
    assert later.reasons == {"the grader came to no decision within 30 s": 2}
    assert result(30, PROBLEMS[:1]).timed_out == 0  # of those that are asked
    assert checked[2:] == [[texts[0][0]]]
    assert len(pq.read_table(tmp_path)) == 4  # each answer once


# ------------------------------------------------------------------------------- over HTTP


class FakeServer(ThreadingHTTPServer):
    """Enough of an OpenAI server: right for the model 'good', else wrong. `failures` come first."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.failures: list[int] = []
        self.refused = ""  # a problem that gets a 400
        self.page = ""  # HTML, for every request
        self.stalls_after: int | None = None  # requests; later ones wait
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        problem = body["messages"][0]["content"]
        with self.server.lock:
            self.server.keys.add(self.headers["Authorization"])
            failure = self.server.failures.pop() if self.server.failures else None
            if failure is None and problem != self.server.refused:
                self.server.requests.append(body)
        while self.server.stalls_after is not None and (
            len(self.server.requests) > self.server.stalls_after
        ):
            time.sleep(0.05)
        if self.server.page:
            return self.reply(200, self.server.page, "text/html")
        if failure is not None:
            return self.reply(failure, {"error": {"message": "try again"}})
        if problem == self.server.refused:
            return self.reply(400, {"error": {"message": "the prompt is too long"}})
        answer = int(problem.split()[0]) + (1 if body["model"] == "good" else 2)
        message = {"role": "assistant", "content": f"\\boxed{{{answer}}}"}
        return self.reply(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
            },
        )

    def reply(self, status: int, body: Any, kind: str = "application/json") -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_evaluate_url(server: FakeServer, verifier: Verifier) -> None:
    endpoint = Endpoint(server.url, "good", api_key="secret", extra_body={"gate": "on"})
    result = evaluate_url(endpoint, PROBLEMS, OPTIONS, verifier, mode="gated")
    assert result.pass_at_1.value == 1
    assert result.mean_tokens.value == 7
    assert (result.label, result.mode) == ("good", "gated")
    assert server.keys == {"Bearer secret"}
    assert len(server.requests) == 32
    first = next(body for body in server.requests if body["messages"][0]["content"] == "0 + 1")
    assert first["temperature"] == 0.6
    assert first["max_tokens"] == 64
    assert first["gate"] == "on"
    wanted = {derive_seed(3, problem.id, sample) for problem in PROBLEMS for sample in range(4)}
    assert {body["seed"] for body in server.requests} == wanted
    assert "secret" not in repr(endpoint)


def test_passing_failures_are_retried(server: FakeServer, verifier: Verifier) -> None:
    server.failures = [429, 500, 503, 429, 500]
    result = evaluate_url(Endpoint(server.url, "good"), PROBLEMS, OPTIONS, verifier)
    assert result.pass_at_1.value == 1
    assert len(server.requests) == 32


def test_lasting_failures_are_reported(server: FakeServer, verifier: Verifier) -> None:
    server.failures = [500] * 1000
    endpoint = Endpoint(server.url, "good", retries=1)
    with pytest.raises(ServerError, match=r"500: .*try again"):
        evaluate_url(endpoint, PROBLEMS, OPTIONS, verifier)


def test_a_refused_request_is_reported_and_the_finished_ones_kept(
    server: FakeServer, verifier: Verifier, tmp_path: Path
) -> None:
    server.refused = "6 + 1"
    endpoint = Endpoint(server.url, "good", concurrency=1)
    with pytest.raises(ServerError, match=r"problem p6, model good: 400: .*the prompt is too long"):
        evaluate_url(endpoint, PROBLEMS, OPTIONS, verifier, output=tmp_path)
    assert len(server.requests) == 24
    server.refused, server.requests = "", []
    assert evaluate_url(endpoint, PROBLEMS, OPTIONS, verifier, output=tmp_path).n == 8
    assert len(server.requests) == 8  # p6 and p7


def test_a_page_for_people_is_no_answer(server: FakeServer, verifier: Verifier) -> None:
    server.page = "<html>Please log in</html>"
    with pytest.raises(ServerError, match=r"problem p\d: an answer without choices"):
        evaluate_url(Endpoint(server.url, "good"), PROBLEMS, OPTIONS, verifier)


def test_nobody_there(verifier: Verifier) -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "good", retries=0)
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9"):
        evaluate_url(endpoint, PROBLEMS[:1], OPTIONS, verifier)


# ------------------------------------------------------------------------------- the command


def test_command_over_url(
    server: FakeServer,
    problems_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THE_KEY", "secret")
    output = tmp_path / "out"
    args = f"--url {server.url} --models bad,good --problems {problems_file} --output {output}"
    main([*args.split(), "--samples", "2", "--k", "1,2", "--api-key-env", "THE_KEY"])
    report = json.loads((output / "report.json").read_text())
    assert report["results"]["bad"]["pass@1"] == 0
    assert report["results"]["good"]["pass@2"] == 1
    assert report["results"]["good"]["mode"] == "always"
    assert report["differences"][0]["pass@1"] == 1
    printed = capsys.readouterr().out
    assert "good - bad: pass@1 +1.000 ± 0.000 (paired, 8 problems)" in printed
    kept = (output / "evaluate.yaml").read_text()
    assert "secret" not in kept
    again = EvaluateConfig.load(["--config", str(output / "evaluate.yaml")])
    assert again.models == ["bad", "good"]
    server.requests = []
    main([*args.split(), "--samples", "2", "--api-key-env", "THE_KEY"])
    assert server.requests == []
    there = args.replace("127.0.0.1", "localhost")  # another server, for all that is known
    main([*there.split(), "--samples", "2", "--api-key-env", "THE_KEY"])
    assert len(server.requests) == 2 * 2 * 8


def test_command_reports_a_refusing_server(
    server: FakeServer, problems_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refused = "6 + 1"
    with pytest.raises(SystemExit) as caught:
        main(f"--url {server.url} --model good --problems {problems_file}".split())
    assert caught.value.code == 1
    assert "the prompt is too long" in capsys.readouterr().err


def test_paper_default_of_samples() -> None:
    config = EvaluateConfig.load(["--model", "m", "--problems", "aime24"])
    assert (config.answers_each, config.ks) == (8, [1, 8])
    config = EvaluateConfig.load(["--model", "m", "--problems", "gsm8k"])
    assert (config.answers_each, config.ks) == (1, [1])
    for where in (["--model", "m"], ["--model", "m", "--url", "http://x/v1"]):
        config = EvaluateConfig.load([*where, "--problems", "aime24", "--temperature", "0"])
        assert (config.answers_each, config.ks) == (1, [1])


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ("--problems gsm8k", "--model"),
        ("--model m", "--problems"),
        ("--model m --problems gsm8k --samples 0", "--samples"),
        ("--model m --problems gsm8k --temperature -1", "--temperature"),
        ("--model m --problems gsm8k --temperature 0 --samples 4", "--samples: 4 answers at"),
        ("--model m --problems gsm8k --top-p 1.5", "--top-p"),
        ("--model m --problems gsm8k --samples 4 --k 1,8", "--k"),
        ("--model m --problems gsm8k --mode always", "--adapter"),
        ("--model m --problems gsm8k --mode gated", "--adapter"),
        ("--model m --problems gsm8k --adapter a --tau -1", "--tau"),
        ("--model m --problems gsm8k --adapter a --gate random", "--gate"),
        ("--model m --problems gsm8k --adapter a --gate-rate 0", "--gate-rate"),
        ("--model m --problems gsm8k --adapter a --gate-rate 1.5", "--gate-rate"),
        ("--model m --problems gsm8k --adapter a --gate-rate 0.1 --tau 1", "--gate-rate"),
        ("--model m --problems gsm8k --adapter a --mode always --gate-rate 0.1", "--gate-rate"),
        ("--model m --problems gsm8k --url http://x/v1 --gate-rate 0.1", "--gate-rate"),
        ("--models a,b --problems gsm8k", "--models"),
        ("--model m --problems gsm8k --url ftp://x", "--url"),
        ("--model m --problems gsm8k --url http://x/v1 --adapter a", "--adapter"),
        ("--model m --problems gsm8k --url http://x/v1 --tau 0.5", "--tau"),
        ("--model m --problems gsm8k --url http://x/v1 --engine vllm", "--engine"),
        ("--model m --models a,b --problems gsm8k --url http://x/v1", "--model"),
        ("--model m --problems gsm8k --tau 0.5", "--tau"),
        ("--model m --problems gsm8k --adapter a --mode base,always --tau 0.5", "--tau"),
        ("--model m --problems gsm8k --concurrency 3", "--concurrency"),
        ("--models a,b --problems gsm8k --url http://x/v1 --mode base", "--mode"),
        ("--models a,a --problems gsm8k --url http://x/v1", "--models"),
        ("--model m --problems gsm8k --url http://x/v1 --api-key-env NO_SUCH_KEY", "--api-key-env"),
        ("--model m --problems no-such-file", "problems: 'no-such-file'"),
        ("--model m --problems gsm8k --nonsense 1", "--nonsense"),
    ],
)
def test_bad_arguments(flags: str, field: str, refused: Refused) -> None:
    assert field in refused(main, flags.split()).splitlines()[-1]


def test_a_gate_rate_stands_for_the_threshold_of_the_calibration() -> None:
    version = AdapterVersion.read(Path("research/adapters/qwen2.5-coder-0.5b-chain-sum"))
    assert version.gate is not None
    table = dict(version.gate.table)
    args = f"--model m --problems gsm8k --adapter {version.path}"

    def applied(flags: str) -> Applied:
        found = _applied(EvaluateConfig.load(f"{args} {flags}".split()), "gated", version)
        assert found is not None
        return found

    assert applied("--gate-rate 0.2") == Applied(version.path, table[0.2])
    between = applied("--gate-rate 0.125").tau
    assert between == pytest.approx((table[0.1] + table[0.15]) / 2)
    controlled = applied("--gate-rate 0.2 --gate random --engine transformers")
    assert controlled == Applied(version.path, random_rate=0.2)
    with pytest.raises(ValueError, match=r"gate_rate: 0\.001 is not between 0\.005 and 1"):
        applied("--gate-rate 0.001")


def test_command_in_process(
    problems_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers' generation; the adapter is loaded, and the two get the same seeds."""
    adapter, output = tmp_path / "adapter", tmp_path / "out"
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(BASE), lora).save_pretrained(adapter)  # B is zero: it changes nothing
    args = f"--model {BASE} --adapter {adapter} --engine transformers --max-tokens 4"
    main(f"{args} --problems {problems_file} --limit 3 --output {output}".split())
    report = json.loads((output / "report.json").read_text())
    assert set(report["results"]) == {"base", "always"}  # no manifest: no threshold to gate by
    assert report["differences"] == [
        {"of": "always", "against": "base", "pass@1": 0.0, "stderr": 0.0, "n": 3}
    ]
    texts = [
        [row["text"] for row in pq.read_table(folder).sort_by("problem_id").to_pylist()]
        for folder in sorted(output.glob("answers-*"))
    ]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert "always - base: pass@1 +0.000" in capsys.readouterr().out
    configured(adapter, lora_alpha=64)  # the same weights are another adapter now
    main(f"{args} --problems {problems_file} --limit 3 --output {output}".split())
    kept = Counter(folder.name.split("-")[1] for folder in output.glob("answers-*"))
    assert kept == {"base": 1, "always": 2}


def test_command_on_a_mixture(
    problems_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Graded by both graders, reported by source, and stored so that it can be graded again."""
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(sources, "draw", draw_here)  # test_gym.py has it in a process of its own
    mixture = f"reasoning_gym:chain_sum,seed=5+2*{problems_file}"
    args = f"--model {BASE} --engine transformers --max-tokens 4 --limit 6 --output {tmp_path}"
    main([*args.split(), "--problems", mixture])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["problems"] == f"1*reasoning_gym:chain_sum,seed=5+2*{problems_file.name}"
    parts = report["results"]["base"]["by_source"]
    assert {name: part["n"] for name, part in parts.items()} == {
        "chain_sum": 2,
        problems_file.stem: 4,
    }
    assert "pass@1 by source" in capsys.readouterr().out
    stored = load_problems(str(tmp_path / "problems.jsonl"))
    assert sum(one.grading is not None for one in stored) == 2


def test_an_adapter_that_is_nowhere(problems_file: Path, refused: Refused) -> None:
    flags = f"--model {BASE} --adapter nope --problems {problems_file}"
    assert "--adapter: 'nope' is neither" in refused(main, flags.split())


@pytest.mark.engine  # a whole run, in a process of its own
def test_command_survives_kill_9(server: FakeServer, tmp_path: Path) -> None:
    """What was written before the kill is not asked again."""
    rows = ({"id": str(i), "problem": f"{i} + 1", "answer": str(i + 1)} for i in range(400))
    problems = write_rows(tmp_path / "problems.jsonl", *rows)
    args = f"--url {server.url} --model good --problems {problems} --output {tmp_path} --retries 0"
    server.stalls_after = 350
    process = subprocess.Popen(
        [sys.executable, "-m", "training.evaluate", *args.split()], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("answers-*/part-*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    server.stalls_after = None
    kept = sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("answers-*/*.parquet"))
    assert 256 <= kept < 400
    server.requests = []
    main(args.split())
    assert len(server.requests) == 400 - kept
    report = json.loads((tmp_path / "report.json").read_text())["results"]["good"]
    assert (report["n"], report["pass@1"]) == (400, 1)
