"""The users: how they read a stream, and a whole run against a server that misbehaves."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import run_command

from loadtests.answers import Answer, Phase, read_answers, read_lines, read_stream
from loadtests.hostile import bad_requests, refusal_faults


def event(text: str | None = None, reason: str | None = None, **more: Any) -> bytes:
    """One event of a stream."""
    choices = [{"delta": {"content": text}, "finish_reason": reason}] if text is not None else []
    content = json.dumps({"system_fingerprint": "m@1", "choices": choices} | more)
    return f"data: {content}\n\n".encode()


USAGE = {"prompt_tokens": 9, "completion_tokens": 3}
GATED = USAGE | {"completion_tokens_details": {"gated_tokens": 2}}
WHOLE = [event(""), event("a"), event("b"), event("c", "stop"), event(usage=GATED)]
DONE = b"data: [DONE]\n\n"


def heard(events: list[bytes]) -> Answer:
    """The answer of a stream of `events`."""
    answer, pieces = Answer(0, "m"), iter(events)
    read_stream(answer, 0.0, lambda _: next(pieces, b""))
    return answer


def test_a_whole_stream() -> None:
    answer = heard([*WHOLE, DONE])
    assert (answer.served, answer.tokens, answer.prompt, answer.gated) == ("m@1", 3, 9, 2)
    assert answer.ttft is not None and len(answer.gaps) == 2  # the empty one is no text
    assert heard([*WHOLE[:-1], event(usage=USAGE), DONE]).gated is None
    choice = {"delta": {"reasoning": "so"}, "finish_reason": None}
    thinking = heard([event(choices=[choice]), *WHOLE, DONE])
    assert len(thinking.gaps) == 3  # thoughts are generated as all text is


@pytest.mark.parametrize(
    ("events", "word"),
    [
        (WHOLE[:3], "without a finish_reason"),
        ([], "without a finish_reason"),
        ([DONE], "without a finish_reason"),
        ([WHOLE[1], event(error={"message": "engine is gone"})], "engine is gone"),
        ([b"data: {\n\n"], "Expecting"),
    ],
)
def test_a_broken_stream(events: list[bytes], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        heard(events)


def test_hostile_requests_are_of_many_kinds_and_some_are_huge() -> None:
    bad = bad_requests(("tiny", "a", "a:gated"), 512)
    assert {one.kind for one in bad} == {"value", "gate", "name", "length", "body", "huge"}
    assert all(one.path.startswith("/v1/") for one in bad)
    assert len({(one.path, one.content) for one in bad}) == len(bad) > 40
    assert min(len(one.content) for one in bad if one.kind == "huge") > 500_000
    # A server without gated models is asked what it can refuse, too.
    assert {one.word for one in bad_requests(("tiny",), 512) if one.kind == "gate"} == {"gate_tau"}


ERROR = {"message": "top_p: no", "type": "BadRequestError", "param": "top_p", "code": 400}


@pytest.mark.parametrize(
    ("status", "error", "good"),
    [
        (400, ERROR, True),
        (200, ERROR, False),
        (500, ERROR, False),
        (400, ERROR | {"message": "no", "param": None}, False),
        (400, ERROR | {"message": ""}, False),
        (400, {"message": "top_p: no", "code": 400}, False),
        (400, "top_p: no", False),
    ],
)
def test_a_bad_refusal_is_noticed(status: int, error: Any, good: bool) -> None:
    content = json.dumps({"error": error}).encode()
    assert (not list(refusal_faults(status, content, "top_p"))) == good


class Misbehaving(BaseHTTPRequestHandler):
    """A server of models that answer as their names say."""

    protocol_version = "HTTP/1.1"
    pause = 0.0  # seconds before an answer

    def log_message(self, *_: Any) -> None:
        """Silence."""

    def end_headers(self) -> None:
        """Say so where this is the connection's last answer, as a real server does."""
        if self.close_connection:
            self.send_header("Connection", "close")
        super().end_headers()

    def do_GET(self) -> None:
        names = ("good", "cut", "error", "busy", "gone")
        cards = [{"id": name, "max_model_len": 512} for name in names]
        self.reply(200, json.dumps({"data": cards}).encode())

    def reply(self, status: int, body: bytes) -> None:
        """A whole answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        model = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"]
        time.sleep(self.pause)
        if model == "busy":
            self.reply(503, b'{"error": {"message": "no room"}}')
            return
        if model == "gone":
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        broken = {"error": [event(error={"message": "engine is gone"}), DONE]}.get(model)
        for piece in broken or ([*WHOLE, DONE] if model == "good" else WHOLE[:3]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if model == "cut":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def misbehaving() -> Iterator[str]:
    """Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(host: str, out: Path, *flags: str) -> tuple[int, str, dict[str, Any]]:
    """(exit code, what was said, summary.json) of a run with one user a second."""
    problems = out / "problems.jsonl"
    problems.write_text('{"problem": "1 + 1"}\n')
    command = [sys.executable, "-m", "loadtests", *flags, "--host", host, "--results", str(out)]
    environment = os.environ | {"REASONMAXXER_API_KEY": ""}
    ended = run_command(*command, "--problems", problems, env=environment, timeout=120)
    said = ended.stdout + ended.stderr
    return ended.returncode, said, json.loads((out / "summary.json").read_text())


@pytest.mark.engine  # a whole run of locust
def test_every_way_to_fail_is_a_failure(misbehaving: str, tmp_path: Path) -> None:
    flags = ("steady", "--users", "8", "--seconds", "1", "--rate", "80")
    code, said, summary = run(misbehaving, tmp_path, *flags)
    assert code == 1, said
    assert "FAILED  every good request is answered" in said
    assert "no answer from busy, cut, error, gone" in said
    for name, row in summary["models"].items():
        assert row["requests"] > 0, said
        assert row["failures"] == (0 if name == "good" else row["requests"]), name
    errors = {one.model: one.error for one in read_answers(tmp_path)}
    assert "no room" in errors["busy"] and "engine is gone" in errors["error"]
    assert errors["cut"] and errors["gone"] and not errors["good"]
    assert summary["models"]["good"]["gate_rate"] == round(2 / 3, 4)
    assert "a check failed" in (tmp_path / "report.html").read_text()


@pytest.mark.engine
def test_a_ramp_ends_where_more_users_add_nothing(misbehaving: str, tmp_path: Path) -> None:
    flags = ("ramp", "--users", "16", "--seconds", "0.5", "--mix", "good=1")
    code, said, summary = run(misbehaving, tmp_path, *flags)
    phases = read_lines(tmp_path / "phases.jsonl", Phase)
    assert [phase.users for phase in phases] == [2**step for step in range(len(phases))]
    assert summary["saturation"]["reached"] == (phases[-1].users < 16 or code == 0), said
    assert summary["models"]["good"]["failures"] == 0, said
    assert summary["saturation"]["requests_per_second"] > 0
    assert "Throughput by users" in (tmp_path / "report.html").read_text()


@pytest.mark.engine
def test_a_server_that_is_too_slow_for_the_rate_makes_requests_late(
    misbehaving: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Misbehaving, "pause", 0.4)
    flags = ("steady", "--users", "1", "--seconds", "2", "--rate", "10", "--mix", "good=1")
    code, said, summary = run(misbehaving, tmp_path, *flags)
    assert code == 1 and "FAILED  the server keeps up with the rate" in said
    firsts = [one.first or 0.0 for one in read_answers(tmp_path)]
    assert len(firsts) > 1 and firsts == sorted(firsts)
    assert summary["all"]["ttft_ms"]["max"] > max(one.ttft or 0.0 for one in read_answers(tmp_path))
