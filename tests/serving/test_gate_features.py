"""OpenAI features on a gated model, over HTTP; what can be computed is held against the reference.

A grammar masks tokens before the gate's test, so a trace shows the entropy of the admissible ones;
bias, penalties and temperature change what is sampled and never where the gate opens.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_reference import TIE, Asked, Decoded, Reference, sums_grammar
from support import Server, adapter_folder
from test_gate_server import MESSAGES, ask, gated_tokens, text
from test_server_protocol import post

TAUS = (0.0, 0.05, 0.2, 0.5, 1e9)
PROBLEMS = ("3 + 4 * 2", "12 + 7 * 3 =", "What is 9-11*7+12+9?", "8", "(1 + 2) * (3 + 4)")
OPERATION = {
    "type": "object",
    "properties": {
        "operation": {"type": "string", "enum": ["plus", "minus", "times"]},
        "exact": {"type": "boolean"},
    },
    "required": ["operation", "exact"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "calculate", "parameters": OPERATION, "strict": True},
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "operation", "schema": OPERATION}}
NAMED = {"type": "function", "function": {"name": "calculate"}}


@pytest.fixture(scope="module")
def judge(base_folder: Path, gated_store: Path) -> Reference:
    """The gate's reference on the server's base and adapter."""
    torch.set_num_threads(1)  # it runs beside the engine
    return Reference(base_folder, {"alpha": adapter_folder(gated_store, "alpha")})


@pytest.fixture(scope="module")
def tokenizer(base_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_folder)


def request(tokenizer: Any, problem: str, tau: float | None = 0.2, tokens: int = 24) -> Asked:
    """A gated request, or with `tau` None one for the plain adapter."""
    return Asked(tokenizer(problem, add_special_tokens=False)["input_ids"], "alpha", tau, tokens)


def complete(server: Server, asked: Asked, extra: Any = None, **more: Any) -> Any:
    """The completion of `asked`, greedy unless told otherwise."""
    model, body = "alpha", {"return_token_ids": True, "ignore_eos": True}
    if asked.tau is not None:
        model, body["vllm_xargs"] = "alpha:gated", {"gate_tau": asked.tau, "gate_trace": 1}
    return server.client().completions.create(
        **{"model": model, "prompt": asked.prompt, "max_tokens": asked.tokens, "temperature": 0}
        | {"extra_body": body | (extra or {})}
        | more
    )


def compared(answer: Any, asked: Asked, wanted: Decoded) -> int:
    """How many tokens were compared: all the reference is sure of. Fails where they differ."""
    choice, count = answer.choices[0], len(wanted.tokens)
    assert choice.token_ids[:count] == wanted.tokens
    if asked.tau is not None:
        trace = choice.gate_trace
        assert gated_tokens(answer) == len(trace)
        trace = [entry for entry in trace if entry["position"] < count]
        first = len(asked.prompt) - 1
        assert [first + entry["position"] for entry in trace] == wanted.points
        for entry in trace:
            assert abs(entry["entropy"] - wanted.entropies[entry["position"]]) < TIE
    return count


def test_answers_are_the_references(gated: Server, judge: Reference, tokenizer: Any) -> None:
    cases = [request(tokenizer, problem, tau) for problem in PROBLEMS for tau in (None, *TAUS)]
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(partial(complete, gated), cases))
    counts = [
        compared(answer, asked, judge.decode(asked))
        for answer, asked in zip(answers, cases, strict=True)
    ]
    assert sum(counts) > 12 * len(cases), "too many near ties to tell anything"


@pytest.mark.parametrize(
    "feature",
    [
        {"logprobs": True, "top_logprobs": 3},
        {"logit_bias": {"20": 2, "21": -2}},
        {"frequency_penalty": 0.8, "presence_penalty": 0.4},
        {"temperature": 1, "seed": 3, "n": 3, "top_p": 0.9},
        {"stop": ["4", "+"]},
        {"max_tokens": 1},
        {"max_tokens": 120, "response_format": JSON_SCHEMA},
        {"max_tokens": 120, "tools": [TOOL], "tool_choice": "required"},
        {"temperature": 0.7, "seed": 1, "extra_body": {"top_k": 9, "min_tokens": 5}},
        {"extra_body": {"repetition_penalty": 1.3, "stop_token_ids": [21]}},
    ],
    ids=lambda feature: next(iter(feature)) + str(len(feature)),
)
def test_a_gate_that_never_opens_is_the_base(gated: Server, feature: dict[str, Any]) -> None:
    def said(answer: Any) -> list[Any]:
        calls = [choice.message.tool_calls or [] for choice in answer.choices]
        return [
            (choice.finish_reason, choice.message.content, [call.function for call in made])
            for choice, made in zip(answer.choices, calls, strict=True)
        ]

    base, never, often = (
        ask(gated, model, xargs, **feature)
        for model, xargs in (
            (gated.base.name, None),
            ("alpha:gated", {"gate_tau": 1e9}),
            ("alpha:gated", {"gate_tau": 0.01, "gate_trace": 1}),
        )
    )
    assert said(never) == said(base)
    assert gated_tokens(never) == 0
    assert 0 < gated_tokens(often) == sum(len(choice.gate_trace) for choice in often.choices)
    assert gated_tokens(often) <= often.usage.completion_tokens


def test_logprobs_are_those_of_the_pass_that_gave_the_token(
    gated: Server, judge: Reference, tokenizer: Any
) -> None:
    asked = request(tokenizer, PROBLEMS[0], 0.05)
    wanted = judge.decode(asked)
    answer = complete(gated, asked, logprobs=3)
    assert compared(answer, asked, wanted) > 8
    assert wanted.points
    given = answer.choices[0].logprobs
    for got, expected in zip(given.token_logprobs, wanted.logprobs, strict=False):
        assert abs(got - expected) < TIE
    assert all(len(top) >= 3 for top in given.top_logprobs)
    assert len(given.token_logprobs) == asked.tokens


@pytest.mark.parametrize("tau", [0.0, 0.2, 1e9])
def test_logprobs_of_the_prompt_are_the_bases(
    gated: Server, judge: Reference, tokenizer: Any, tau: float
) -> None:
    """Also where the gate opens at the prompt's last position, whose step gives no token."""
    asked = request(tokenizer, PROBLEMS[2], tau, tokens=4)
    wanted = judge.prompt_logprobs(asked.prompt)
    answer = complete(gated, asked, {"prompt_logprobs": 2, "echo": True}, logprobs=2)
    choice = answer.choices[0]
    for token, best, expected in zip(
        asked.prompt[1:], choice.prompt_logprobs[1:], wanted, strict=True
    ):
        assert abs(best[str(token)]["logprob"] - expected) < TIE
    # The prompt's tokens come first in what is echoed, and the first of them has no logprob.
    echoed = choice.logprobs.token_logprobs
    assert echoed[0] is None
    assert len(echoed) == len(asked.prompt) + 4
    for got, expected in zip(echoed[1:], wanted, strict=False):
        assert abs(got - expected) < TIE
    assert gated_tokens(answer) == (4 if tau == 0 else 0 if tau > 1 else len(choice.gate_trace))
    chat = ask(gated, xargs={"gate_tau": tau}, extra_body={"prompt_logprobs": 1})
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens


def test_bias_and_penalties_change_the_token_and_not_the_gate(
    gated: Server, judge: Reference, tokenizer: Any
) -> None:
    bias = {"20": 6, "27": -6}
    asked = request(tokenizer, PROBLEMS[2], 0.1)

    def change(logits: torch.Tensor, said: list[int]) -> torch.Tensor:
        for token, by in bias.items():
            logits[int(token)] += by
        times = torch.bincount(torch.tensor(said, dtype=torch.long), minlength=len(logits))
        return logits - 1.8 * times - 1.5 * (times > 0)

    answer = complete(gated, asked, logit_bias=bias, frequency_penalty=1.8, presence_penalty=1.5)
    wanted = judge.decode(asked, change=change)
    assert compared(answer, asked, wanted) > 8
    assert wanted.points
    assert wanted.tokens != judge.decode(asked).tokens


def test_a_trace_shows_the_entropy_of_the_admissible_tokens(
    gated: Server, judge: Reference, tokenizer: Any
) -> None:
    pattern, grammar = sums_grammar(tokenizer)
    structure = {"structured_outputs": {"regex": pattern.pattern}, "ignore_eos": False}
    gates = total = 0
    for problem in PROBLEMS:
        asked = request(tokenizer, problem, 0.6)
        wanted = judge.decode(asked, grammar=grammar)
        answer = complete(gated, asked, structure)
        total += compared(answer, asked, wanted)
        gates += len(wanted.points)
        assert pattern.fullmatch(answer.choices[0].text)
        for entry in answer.choices[0].gate_trace:
            likely = [best for best in entry["base_top"] if best["probability"] > 0]
            said = answer.choices[0].token_ids[: entry["position"]]
            assert {best["token_id"] for best in likely} <= set(grammar(said))
    assert total > 6 * len(PROBLEMS)
    assert 0 < gates < total


@pytest.mark.parametrize("adapter", ["alpha", None], ids=["adapter", "base"])
def test_guidance_at_decision_points(
    gated: Server, judge: Reference, tokenizer: Any, adapter: str | None
) -> None:
    """The prompt as a text and as tokens; the adapter's logits, or the base's own."""
    text = "8 - 8"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    model = f"{adapter}:gated" if adapter else gated.base.name
    changed = 0
    for problem in PROBLEMS[:3]:
        asked = request(tokenizer, problem, 0.1)._replace(
            adapter=adapter, guidance_scale=2.5, guidance_prompt=tuple(ids)
        )
        wanted = judge.decode(asked)
        for prompt in (text, ids):
            guidance = {"guidance_scale": 2.5, "guidance_prompt": prompt}
            arguments = {"gate_tau": 0.1, "gate_trace": 1} | guidance
            answer = complete(gated, asked, {"vllm_xargs": arguments}, model=model)
            compared(answer, asked, wanted)
        plain = asked._replace(guidance_scale=1.0, guidance_prompt=())
        changed += wanted.tokens != judge.decode(plain).tokens
    assert changed


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"guidance_scale": "wide"}, "guidance_scale"),
        ({"guidance_scale": 21}, "guidance_scale"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_prompt": "wrong"}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": []}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": [5] * 17}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": "1 " * 100}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": [-1]}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": [10**6]}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": [1.5]}, "guidance_prompt"),
        ({"guidance_scale": 2, "guidance_prompt": 7}, "guidance_prompt"),
        ({"guidance_strength": 2}, "guidance_strength"),
    ],
    ids=str,
)
def test_guidance_that_does_not_fit(gated: Server, arguments: Any, field: str) -> None:
    for model in ("alpha:gated", gated.base.name):
        body = {"model": model, "prompt": "3 + 4", "max_tokens": 2}
        told = {"vllm_xargs": {"gate_tau": 0} | arguments}
        status, answer = post(gated, "/v1/completions", body | told)
        assert status == 400, answer
        named = field if model.endswith(":gated") or "guidance_scale" in arguments else "gate_tau"
        assert named in answer["error"]["message"]  # the base is told that it takes none
    assert ask(gated, xargs={"gate_tau": 0, "guidance_scale": 1}).choices


def test_structured_output(gated: Server) -> None:
    asked = {"xargs": {"gate_tau": 0.05}, "max_tokens": 80, "response_format": JSON_SCHEMA}
    answer = ask(gated, **asked)
    found = json.loads(text(answer))
    assert set(found) == {"operation", "exact"}
    assert found["operation"] in ("plus", "minus", "times")
    assert 0 < gated_tokens(answer) < answer.usage.completion_tokens
    chunks = list(ask(gated, **asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (said, gated_tokens(chunks[-1])) == (text(answer), gated_tokens(answer))
    choice = ask(gated, extra_body={"structured_outputs": {"choice": ["1 + 1", "2 - 2"]}})
    assert text(choice) in ("1 + 1", "2 - 2")


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_tools(gated: Server, tokenizer: Any, choice: Any) -> None:
    xargs = {"gate_tau": 0.05, "gate_trace": 1}
    # A small model may fill its JSON with white space for ever.
    blank = [token for token in range(len(tokenizer)) if not tokenizer.decode([token]).strip()]
    tools = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    tools |= {"max_tokens": 300, "logit_bias": {str(token): -100 for token in blank}}
    answer = ask(gated, xargs=xargs, **tools)
    assert answer.choices[0].message.tool_calls, answer.choices[0].message
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "calculate"
    assert json.loads(call.function.arguments)["operation"] in ("plus", "minus", "times")
    assert 0 < gated_tokens(answer) == len(answer.choices[0].gate_trace)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(ask(gated, xargs=xargs, **tools, **options))
    parts = [
        c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or []
    ]
    streamed = [part.function.arguments or "" for part in parts if part.index == 0]
    # The text may differ in its white space: vLLM writes whole calls anew.
    assert json.loads("".join(streamed)) == json.loads(call.function.arguments)
    assert gated_tokens(chunks[-1]) == gated_tokens(answer)


def test_tools_that_the_model_may_leave_alone(gated: Server) -> None:
    xargs = {"gate_tau": 0.2}
    plain = ask(gated, xargs=xargs)
    answer = ask(gated, xargs=xargs, tools=[TOOL], tool_choice="auto")
    # The miniature's template shows no tools, so nothing else may differ.
    assert (text(answer), gated_tokens(answer)) == (text(plain), gated_tokens(plain))


def test_seeds_with_several_sequences_in_any_company(gated: Server, tokenizer: Any) -> None:
    asked = request(tokenizer, PROBLEMS[1], 0.1)

    def sample(seed: int) -> list[tuple[str, Any]]:
        answer = complete(gated, asked, n=3, temperature=1.0, seed=seed, top_p=0.95)
        assert gated_tokens(answer) == sum(len(c.gate_trace) for c in answer.choices)
        taken = [[(e["position"], e["token_id"]) for e in c.gate_trace] for c in answer.choices]
        return [(c.text, where) for c, where in zip(answer.choices, taken, strict=True)]

    alone = sample(1)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(sample, [1, 2, 3, 1, 4, 5, 6, 1]))
    assert [together[index] for index in (0, 3, 7)] == [alone] * 3
    assert len({said for said, _ in alone}) == 3
    assert together[1] != alone


def test_what_ends_at_a_decision_point(gated: Server, judge: Reference, tokenizer: Any) -> None:
    xargs = {"gate_tau": 0, "gate_trace": 1}
    end = ask(gated, xargs=xargs, logit_bias={str(tokenizer.eos_token_id): 100})
    assert (text(end), end.choices[0].finish_reason) == ("", "stop")
    assert gated_tokens(end) == end.usage.completion_tokens == 1

    asked = request(tokenizer, PROBLEMS[0], 0.05)
    wanted = judge.decode(asked)
    at = next(
        position
        for position in (point - len(asked.prompt) + 1 for point in reversed(wanted.points))
        if position and wanted.tokens.index(wanted.tokens[position]) == position
    )
    for more in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
        by_id = complete(gated, asked, {"stop_token_ids": [wanted.tokens[at]]}, **more)
        last, ids = by_id, []
        for last in by_id if more else [by_id]:
            ids += [token for choice in last.choices for token in choice.token_ids or []]
        assert ids == wanted.tokens[: at + 1]
        assert gated_tokens(last) == sum(
            point <= len(asked.prompt) - 1 + at for point in wanted.points
        )

    spelled = [tokenizer.decode(wanted.tokens[: index + 1]) for index in range(at + 1)]
    stop = spelled[at][len(spelled[at - 1]) :]
    by_text = complete(gated, asked, stop=[stop])
    assert by_text.choices[0].finish_reason == "stop"
    assert by_text.choices[0].text == spelled[at][: spelled[at].index(stop)]


def test_the_responses_api(gated: Server) -> None:
    xargs = {"vllm_xargs": {"gate_tau": 0.2, "gate_trace": 1}}
    asked = {"model": "alpha:gated", "input": MESSAGES[0]["content"], "max_output_tokens": 24}
    responses = gated.client().responses
    whole = responses.create(**asked, temperature=0, extra_body=xargs)
    chat = ask(gated, xargs=xargs["vllm_xargs"])
    assert whole.output_text == text(chat)
    trace = whole.model_extra["gate_trace"]
    assert trace == chat.choices[0].gate_trace
    assert whole.usage.output_tokens_details.gated_tokens == len(trace) == gated_tokens(chat) > 0
    events = list(responses.create(**asked, temperature=0, extra_body=xargs, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text(chat)
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage == whole.usage
    assert events[-1].response.model_extra["gate_trace"] == trace
    base = responses.create(**asked | {"model": "alpha"}, temperature=0)
    assert not hasattr(base.usage.output_tokens_details, "gated_tokens")


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/v1/responses", {"model": "alpha", "vllm_xargs": {"gate_tau": 1}}, 400, "gated"),
        ("/v1/responses", {"vllm_xargs": {"gate_tau": -1}}, 400, "gate_tau"),
        ("/v1/chat/completions/batch", {"messages": [MESSAGES]}, 400, "cannot gate"),
        ("/v1/systemone", {"state": "x", "questions": {}}, (400, 501), ""),
        ("/v1/embeddings", {}, 404, ""),
        ("/pooling", {}, 404, ""),
        ("/v1/score", {"text_1": "1", "text_2": "2"}, 404, ""),
        ("/v1/messages", {"messages": MESSAGES, "vllm_xargs": {"gate_x": 1}}, 400, "gate_x"),
    ],
)
def test_other_doors_are_refused(
    gated: Server, path: str, body: dict[str, Any], status: Any, word: str
) -> None:
    found, answer = post(
        gated, path, {"model": "alpha:gated", "input": "1", "max_tokens": 1} | body
    )
    assert found in (status if isinstance(status, tuple) else (status,)), answer
    assert word in json.dumps(answer)
    assert text(ask(gated))  # and it goes on answering


def test_anthropics_messages_are_gated_too(gated: Server) -> None:
    body = {"model": "alpha:gated", "messages": MESSAGES, "max_tokens": 24, "temperature": 0}
    answers = {}
    for tau in (0.05, 1e9):
        status, answer = post(gated, "/v1/messages", body | {"vllm_xargs": {"gate_tau": tau}})
        assert status == 200, answer
        answers[tau] = answer["content"][0]["text"]
        assert answers[tau] == text(ask(gated, xargs={"gate_tau": tau}))
    assert answers[0.05] != answers[1e9]
