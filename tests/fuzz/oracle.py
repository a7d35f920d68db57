"""The fuzzer's oracle: what is wrong with an answer, in words.

`check_answer` and `check_refusal` yield nothing where an answer is as its request wants it.
`divergence` says where two answers to one greedy request part, and whether rounding explains it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loadtests.hostile import refusal_faults
from tests.fuzz.traffic import (
    CHAT,
    CHOICES,
    GRAMMAR_AS_REGEX,
    NEVER,
    REGEX,
    RESPONSES,
    SUFFIX,
    Case,
)

REASONS = {"stop", "length", "tool_calls"}


@dataclass
class Choice:
    """One sequence of an answer, whole or put together from a stream."""

    text: str = ""
    arguments: str = ""  # of a tool
    reasons: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # where token ids were asked for
    logprobs: int | None = None  # how many tokens have some
    trace: list[dict[str, Any]] | None = None

    def add(self, part: dict[str, Any]) -> None:
        """Add a choice of a whole answer, or of one event."""
        message = part.get("message") or part.get("delta") or {}
        self.text += part.get("text") or message.get("content") or ""
        for call in message.get("tool_calls") or []:
            self.arguments += (call.get("function") or {}).get("arguments") or ""
        if part.get("finish_reason"):
            self.reasons.append(part["finish_reason"])
        self.tokens += part.get("token_ids") or []
        logprobs = part.get("logprobs")
        if logprobs is not None:
            some = logprobs["content"] if "content" in logprobs else logprobs["tokens"]
            self.logprobs = (self.logprobs or 0) + len(some or [])
        if part.get("gate_trace") is not None:
            self.trace = part["gate_trace"]


class Answer(NamedTuple):
    """An answer to a chat or a completion."""

    choices: dict[int, Choice]
    usage: dict[str, Any] | None


def gather(parts: list[dict[str, Any]]) -> Answer:
    """Put together one whole answer, or all events of a stream."""
    choices: dict[int, Choice] = {}
    usage = None
    for part in parts:
        for choice in part["choices"]:
            choices.setdefault(choice["index"], Choice()).add(choice)
        usage = part.get("usage") or usage
    return Answer(choices, usage)


def check_refusal(case: Case, status: int, content: bytes) -> Iterator[str]:
    """Yield what is wrong with the answer to a bad request."""
    yield from refusal_faults(status, content, case.refusal or "")


def events(content: bytes) -> list[dict[str, Any]]:
    """The parsed events of a stream.

    Raises:
        ValueError: an event is not JSON or an error, or the stream does not end as it should.
    """
    lines = [line[6:] for line in content.split(b"\n") if line.startswith(b"data: ")]
    if b"[DONE]" in lines and lines.pop() != b"[DONE]":
        raise ValueError("an event after [DONE]")
    parsed = [json.loads(line) for line in lines]
    broken = next((event for event in parsed if "error" in event), None)
    if broken is not None:
        raise ValueError(f"an error in the stream: {broken['error']}")
    return parsed


def check_answer(case: Case, status: int, content: bytes) -> Iterator[str]:
    """Yield what is wrong with status, shape, and all that the request's features promise."""
    if status != 200:
        yield f"status {status}: {content[:300].decode(errors='replace')}"
        return
    if not isinstance(case.body, dict) or not case.mode:
        return
    try:
        yield from _judged(case, content)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        yield f"malformed: {error!r}"


def _judged(case: Case, content: bytes) -> Iterator[str]:
    assert isinstance(case.body, dict)
    parts = events(content) if case.streams else [json.loads(content)]
    if case.path == RESPONSES:
        yield from _response(case.body, parts[-1]["response"] if case.streams else parts[-1])
        return
    if case.streams and not content.rstrip().endswith(b"data: [DONE]"):
        yield "the stream ended without [DONE]"
    answer = gather(parts)
    yield from _shape(case.body, answer)
    for choice in answer.choices.values():
        yield from _promises(case.body, choice)
    if answer.usage is not None:
        yield from _usage(case.body, answer)
    elif not case.streams or "include_usage" in case.body.get("stream_options", {}):
        yield "no usage"


def _response(body: dict[str, Any], response: dict[str, Any]) -> Iterator[str]:
    if response["status"] not in ("completed", "incomplete"):
        yield f"a response that is {response['status']}"
    elif not 0 < response["usage"]["output_tokens"] <= body["max_output_tokens"]:
        yield f"{response['usage']['output_tokens']} tokens"


def _shape(body: dict[str, Any], answer: Answer) -> Iterator[str]:
    prompt = body.get("prompt")
    prompts = len(prompt) if prompt and isinstance(prompt[0], list) else 1
    wanted = prompts * body.get("n", 1)
    if sorted(answer.choices) != list(range(wanted)):
        yield f"choices {sorted(answer.choices)}, not {wanted} of them"
    for index, choice in answer.choices.items():
        if len(choice.reasons) != 1 or choice.reasons[0] not in REASONS:
            yield f"choice {index} finished {choice.reasons}"


def _promises(body: dict[str, Any], choice: Choice) -> Iterator[str]:
    if body.get("return_token_ids") and not 0 < len(choice.tokens) <= body["max_tokens"]:
        yield f"{len(choice.tokens)} tokens"
    if body.get("return_token_ids") and len(choice.tokens) < body.get("min_tokens", 0):
        yield f"{len(choice.tokens)} tokens, fewer than min_tokens"
    if choice.logprobs is None and body.get("logprobs") not in (None, False):
        yield "no logprobs"
    unstopped = body.get("echo") or body.get("min_tokens")  # not looked for within those
    if not unstopped and any(stop in choice.text for stop in body.get("stop", [])):
        yield f"a stop string in {choice.text!r}"
    finished = choice.reasons[:1] != ["length"]
    yield from _form(body, choice, finished)
    traced = bool(body.get("vllm_xargs", {}).get("gate_trace"))
    if (choice.trace is not None) != traced:
        yield "a trace unasked" if choice.trace is not None else "no trace"
    for entry in choice.trace or []:
        best = [token["probability"] for token in entry["base_top"]]
        if best != sorted(best, reverse=True) or entry["entropy"] < 0 or "token_id" not in entry:
            yield f"an odd decision point: {entry}"
        if choice.tokens and choice.tokens[entry["position"]] != entry["token_id"]:
            yield f"the trace's token at {entry['position']} is not the answer's"
    positions = [entry["position"] for entry in choice.trace or []]
    if positions != sorted(set(positions)):
        yield f"decision points out of order: {positions}"


def _form(body: dict[str, Any], choice: Choice, finished: bool) -> Iterator[str]:
    """Structured output; cut short by max_tokens it need not be whole."""
    form = body.get("structured_outputs", {})
    said = choice.text
    good = True
    if not finished:
        return
    if "regex" in form or "grammar" in form:
        good = re.fullmatch(REGEX if "regex" in form else GRAMMAR_AS_REGEX, said) is not None
    elif "choice" in form:
        good = said in CHOICES
    elif "json" in form or "response_format" in body:
        good = _fits_schema(said)
    elif "tools" in body:
        good = _fits_schema(choice.arguments)
    if not good:
        yield f"not in the form asked for: {said or choice.arguments!r}"


def _fits_schema(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(value, dict)
        and set(value) == {"answer", "sure"}
        and isinstance(value["answer"], int)
        and isinstance(value["sure"], bool)
    )


def _usage(body: dict[str, Any], answer: Answer) -> Iterator[str]:
    usage = answer.usage or {}
    tokens = usage["completion_tokens"]
    fewest = 0 if body.get("use_beam_search") else 1  # vLLM does not count the end of a beam
    if not fewest * len(answer.choices) <= tokens <= body["max_tokens"] * len(answer.choices):
        yield f"{tokens} tokens in {len(answer.choices)} choices"
    counted = [choice.logprobs for choice in answer.choices.values() if choice.logprobs is not None]
    if counted and not body.get("echo") and sum(counted) != tokens:
        yield f"logprobs of {sum(counted)} tokens in {tokens}"
    details = usage.get("completion_tokens_details") or {}
    gated = details.get("gated_tokens")
    if not body["model"].endswith(SUFFIX):
        if gated is not None:
            yield f"{gated} gated tokens without a gate"
        return
    arguments = body.get("vllm_xargs", {})
    if not isinstance(gated, int) or not 0 <= gated <= tokens:
        yield f"{gated} gated tokens of {tokens}"
        return
    if gated and (arguments.get("gate_tau") == NEVER or arguments.get("gate_rate") == 0):
        yield f"{gated} gated tokens at a threshold that nothing exceeds"
    if arguments.get("gate_trace"):
        traces = [choice.trace or [] for choice in answer.choices.values()]
        if sum(map(len, traces)) != gated:
            yield f"{gated} gated tokens, {sum(map(len, traces))} in the traces"
        tau = arguments.get("gate_tau", 0)
        if any(entry["entropy"] < tau - 1e-6 for trace in traces for entry in trace):
            yield "a decision point below the threshold"


def gated_tokens(case: Case, content: bytes) -> int:
    """Gated tokens that a good answer to a chat or completion reports."""
    if case.path not in (CHAT, "/v1/completions") or not case.mode:
        return 0
    usage = gather(events(content) if case.streams else [json.loads(content)]).usage or {}
    return int((usage.get("completion_tokens_details") or {}).get("gated_tokens") or 0)


class Greedy(NamedTuple):
    """A greedy answer, token by token."""

    tokens: list[int]
    gaps: list[float]  # nats between the two best, at each token
    points: dict[int, float]  # decision point -> entropy


def greedy(answer: dict[str, Any]) -> Greedy:
    """Read a completion with logprobs, token ids and, where gated, a trace."""
    (choice,) = answer["choices"]
    best = [sorted(top.values(), reverse=True) for top in choice["logprobs"]["top_logprobs"]]
    gaps = [top[0] - top[1] if len(top) > 1 else float("inf") for top in best]
    points = {entry["position"]: entry["entropy"] for entry in choice.get("gate_trace") or []}
    return Greedy(choice["token_ids"], gaps, points)


def divergence(
    one: Greedy, other: Greedy, tau: float | None, tie: float
) -> tuple[bool, str | None]:
    """(whether two answers to one greedy request differ, why that is a fault or None).

    Batches of another shape round otherwise. That may turn a near tie of the two best tokens, or of
    an entropy and `tau`, both within `tie` nats; it explains a difference only where the answers
    part, and nothing else does.
    """
    length = min(len(one.tokens), len(other.tokens))
    words = (at for at in range(length) if one.tokens[at] != other.tokens[at])
    word = next(words, None if len(one.tokens) == len(other.tokens) else length)
    gates = sorted(one.points.keys() ^ other.points.keys())
    gate = next(iter(gates), None)
    if word is None and gate is None:
        return False, None
    if gate is not None and (word is None or gate <= word):
        h = one.points.get(gate, other.points.get(gate, float("nan")))
        if tau is not None and abs(h - tau) < tie:
            return True, None
        return True, f"the gate at {gate} differs, at H = {h:g} and tau = {tau}"
    assert word is not None
    if word < length and min(one.gaps[word], other.gaps[word]) < tie:
        return True, None
    return True, f"token {word} differs, and the two best are not near each other"
