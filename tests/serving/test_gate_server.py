"""Gated models over HTTP: names, arguments, what is refused, what answers and metrics say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support import Reference, Server, until
from test_server_protocol import complete

MESSAGES = [{"role": "user", "content": "3 + 4 * 2"}]


def ask(server: Server, model: str = "alpha:gated", xargs: Any = None, **more: Any) -> Any:
    """One chat completion, greedy unless told otherwise."""
    body = {"vllm_xargs": xargs} if xargs is not None else {}
    return server.client().chat.completions.create(
        **{"model": model, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
        | {"extra_body": body | more.pop("extra_body", {})}
        | more
    )


def gated_tokens(answer: Any) -> int:
    """As the answer's usage says."""
    return answer.usage.completion_tokens_details.gated_tokens


def text(answer: Any) -> str:
    """The first choice."""
    return answer.choices[0].message.content


def test_names(gated: Server) -> None:
    names = [model.id for model in gated.client().models.list()]
    assert names == [gated.base.name, "alpha", "alpha:gated", "plain"]
    card = gated.client().models.retrieve("alpha:gated")
    assert card.parent == gated.base.name
    assert card.gate == {"tau": 0.3, "source": "manifest", "rate": 0.2, "tokens": 1000}
    # It answers where the request names a threshold.
    asked = gated.client().models.retrieve("plain:gated")
    assert asked.gate["tau"] is asked.gate["source"] is None


def test_an_adapter_without_a_manifest_is_gated_by_the_requests_threshold(gated: Server) -> None:
    base, never = ask(gated, gated.base.name), ask(gated, "plain:gated", {"gate_tau": 1e9})
    assert text(never) == text(base)
    some = ask(gated, "plain:gated", {"gate_tau": 0.2, "gate_trace": 2})
    trace = some.choices[0].gate_trace
    assert [entry["gated"] for entry in trace] == [entry["entropy"] > 0.2 for entry in trace]
    assert 0 < gated_tokens(some) < some.usage.completion_tokens


def test_thresholds_by_manifest_by_nats_and_by_rate(gated: Server) -> None:
    assert text(ask(gated)) == text(ask(gated, xargs={"gate_tau": 0.3}))
    assert text(ask(gated, xargs={"gate_rate": 0.1})) == text(ask(gated, xargs={"gate_tau": 0.5}))
    between = ask(gated, xargs={"gate_rate": 0.3, "gate_trace": 1})
    assert min(entry["entropy"] for entry in between.choices[0].gate_trace) > 0.275 - 1e-6
    assert gated_tokens(ask(gated, xargs={"gate_rate": 0})) == 0


def test_a_lower_temperature_makes_gated_tokens_surer_and_no_others(gated: Server) -> None:
    plain, cooler = (
        ask(gated, xargs={"gate_tau": 0.2, "gate_trace": 1} | temperature, logprobs=True)
        # The second by its deprecated name.
        for temperature in ({"correction_temperature": 1}, {"gate_temperature": 0.25})
    )
    assert text(plain) == text(cooler)  # greedy
    points = {entry["position"] for entry in plain.choices[0].gate_trace}
    said = zip(*(one.choices[0].logprobs.content for one in (plain, cooler)), strict=True)
    for position, (before, after) in enumerate(said):
        if position in points:
            assert before.logprob < after.logprob or before.logprob > -1e-6
        else:
            assert before.logprob == pytest.approx(after.logprob, abs=1e-5)
    assert points


@pytest.mark.parametrize("usage", [True, False])
def test_streaming_says_the_same(gated: Server, usage: bool) -> None:
    xargs = {"gate_tau": 0.2, "gate_trace": 1}
    whole = ask(gated, xargs=xargs)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = list(ask(gated, xargs=xargs, stream=True, **options))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == text(whole)
    ends = [c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason]
    assert [end.gate_trace for end in ends] == [whole.choices[0].gate_trace]
    if usage:
        assert gated_tokens(chunks[-1]) == gated_tokens(whole)


def test_several_prompts_and_sequences(gated: Server) -> None:
    answer = gated.client().completions.create(
        model="alpha:gated",
        prompt=["3 + 4", "2 * 3"],
        n=2,
        max_tokens=12,
        temperature=0.9,
        seed=3,
        extra_body={"vllm_xargs": {"gate_tau": 0.2, "gate_trace": 1}},
    )
    assert len(answer.choices) == 4
    assert gated_tokens(answer) == sum(len(choice.gate_trace) for choice in answer.choices)


@pytest.mark.parametrize(
    ("model", "xargs", "more", "word"),
    [
        ("BASE", {"gate_tau": 1}, {}, "gated"),
        ("alpha", {"gate_rate": 0.1}, {}, "gated"),
        ("alpha", {"gate_trace": 1}, {}, "gated"),
        ("alpha:gated", {"gate_tau": -1}, {}, "gate_tau"),
        ("alpha:gated", {"gate_tau": "0.5"}, {}, "gate_tau"),
        ("alpha:gated", {"gate_tau": [1]}, {}, "gate_tau"),
        ("alpha:gated", {"gate_rate": 2}, {}, "gate_rate"),
        ("alpha:gated", {"gate_rate": 0.001}, {}, "gate_rate"),
        ("alpha:gated", {"gate_tau": 1, "gate_rate": 0.1}, {}, "one of them"),
        ("alpha:gated", {"gate_trace": 3}, {}, "gate_trace"),
        ("alpha:gated", {"gate_temperature": 0}, {}, "correction_temperature"),
        ("alpha:gated", {"correction_temperature": "1"}, {}, "correction_temperature"),
        ("alpha:gated", {"gate_tally": 1}, {}, "no such argument"),
        ("alpha:gated", {}, {"extra_body": {"use_beam_search": True}}, "beam"),
        ("plain:gated", {}, {}, "threshold"),
    ],
)
def test_refused_with_a_reason(gated: Server, model: str, xargs: Any, more: Any, word: str) -> None:
    import openai

    model = gated.base.name if model == "BASE" else model
    with pytest.raises(openai.BadRequestError, match=word):
        ask(gated, model, xargs, **more)
    assert text(ask(gated))  # and it goes on answering


def test_unknown_name(gated: Server) -> None:
    import openai

    with pytest.raises(openai.NotFoundError):
        ask(gated, "nobody:gated")


def test_metrics_say_how_the_server_is_doing(gated: Server) -> None:
    page = gated.page()
    for series in ("process_resident_memory_bytes", "process_open_fds", "python_gc_collections"):
        assert re.search(rf"^{series}", page, re.MULTILINE), series
    assert page.count("# HELP vllm:generation_tokens_total") == 1


def test_vllm_writes_no_series_of_the_adapters_in_flight(gated: Server) -> None:
    ask(gated)
    mapped = Path(f"/proc/{gated.process.pid}/maps").read_text()
    files = set(re.findall(r"/\S+/metrics/gauge_\S+\.db$", mapped, re.MULTILINE))
    assert files
    for file in files:
        assert b"alpha@" not in Path(file).read_bytes(), file


def test_always_is_the_plain_adapter(gated: Server, base_folder: Path, gated_store: Path) -> None:
    prompt = "3 + 4 * 2"
    wanted = Reference(base_folder, gated_store).greedy("alpha", prompt, 12)
    assert complete(gated, "alpha", prompt, 12)[: len(wanted)] == wanted


def test_a_response_in_the_background_holds_its_adapter_until_it_is_made(gated: Server) -> None:
    responses = gated.client().responses
    asked = {"model": "alpha:gated", "input": "3 + 4 * 2", "max_output_tokens": 400}
    body = {"ignore_eos": True, "vllm_xargs": {"gate_tau": 0.2}}
    made = responses.create(**asked, background=True, extra_body=body)
    held, response = [], made
    while response.status in ("queued", "in_progress"):
        held.append(in_flight(gated))
        response = responses.retrieve(made.id)
    assert response.status != "failed"
    assert len(held) > 1 and set(held[:-1]) == {1}  # the last look may have come after its end
    until(lambda: in_flight(gated) == 0)


def test_a_stored_response_is_complete_for_who_asks_later(gated: Server) -> None:
    responses = gated.client().responses
    asked = {"model": "alpha:gated", "input": "3 + 4 * 2", "max_output_tokens": 24}
    body = {"extra_body": {"vllm_xargs": {"gate_tau": 0.2, "gate_trace": 1}}}
    (*_, end) = responses.create(**asked, **body, stream=True)
    (*_, behind) = responses.create(**asked, **body, stream=True, background=True)
    for made in (responses.create(**asked, **body), end.response, behind.response):
        again = responses.retrieve(made.id)
        assert again.model == made.model == "alpha:gated"
        assert again.usage.output_tokens_details.gated_tokens > 0
        assert again.usage.output_tokens_details == made.usage.output_tokens_details
        assert len(again.gate_trace) == again.usage.output_tokens_details.gated_tokens
        assert not again.kv_transfer_params


def test_a_response_is_cancelled_and_logged_once_it_is_over(gated: Server) -> None:
    responses = gated.client().responses
    asked = {"model": "alpha:gated", "input": "3 + 4 * 2", "max_output_tokens": 400}
    body = {"ignore_eos": True, "vllm_xargs": {"gate_tau": 0.2}}
    made = responses.create(**asked, background=True, extra_body=body)
    cancelled = responses.cancel(made.id)
    assert (cancelled.status, cancelled.model) == ("cancelled", "alpha:gated")
    until(lambda: in_flight(gated) == 0)
    (line,) = until(lambda: re.findall(rf".* request_id={made.id}.*", gated.log))
    assert "outcome=aborted" in line


def in_flight(server: Server) -> float:
    """Requests that hold `alpha`."""
    (count,) = re.findall(r'adapter_requests_in_flight\{adapter="alpha".*\} (.*)', server.page())
    return float(count)
