"""The threshold of adapters that bring none: sampled, measured, waited for, and said."""

from __future__ import annotations

import asyncio
import json
import re
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from fleet import answered, completion, make_admission, nothing, put_plain
from support import Server, until

from adapters.gate import calibrate
from adapters.manifest import Gate
from adapters.store import Store
from serving import shipped_prompts
from serving.admission import Admission
from serving.default_gate import FEWEST, DefaultGate, EntropySample, threshold
from serving.metrics_page import Gauges
from vllm_gate.params import NEVER, WATCHED

OWN = Gate(tau=0.3, rate=0.05, tokens=1000, table=[(0.05, 0.3)])
RATE = 0.1


def default_gate(ask: Callable[[int], Awaitable[None]] = nothing, **more: Any) -> DefaultGate:
    return DefaultGate(RATE, ask, **more)


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}" + "{# x #}" * 400
BUILT_IN = "template_chatml.jinja"


@pytest.mark.parametrize("given", ["inline", "file", "built in"])
def test_the_shipped_prompts_are_rendered_with_the_template_that_vllm_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    from vllm.transformers_utils.chat_templates.registry import CHAT_TEMPLATES_DIR

    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    argument = {"inline": TEMPLATE, "file": str(file), "built in": BUILT_IN}[given]
    seen: list[str] = []
    monkeypatch.setattr(
        shipped_prompts, "shipped_prompts", lambda engine, template, *_: seen.append(template)
    )
    args = Namespace(
        default_gate_rate=RATE, prompt=None, chat_template=argument, sampling_temperature=1.0
    )
    engine: Any = None
    assert shipped_prompts.make_default_gate(engine, args) is not None
    built_in = (CHAT_TEMPLATES_DIR / BUILT_IN).read_text()
    assert seen == [built_in if given == "built in" else TEMPLATE]


# -------------------------------------------------------------------------------- the estimate


def test_a_sample_is_uniform_over_all_that_was_seen() -> None:
    sample = EntropySample(size=2000)
    for number in range(1500):
        sample.add(number)
    assert sorted(sample.values) == list(range(1500))  # all of them, while there is room
    for number in range(1500, 40_000):
        sample.add(number)
    assert (sample.seen, len(sample.values)) == (40_000, 2000)
    shares = np.histogram(sample.values, bins=4, range=(0, 40_000))[0] / 2000
    assert shares == pytest.approx([0.25] * 4, abs=0.04)  # four standard errors


def test_tau_is_calibrated_on_what_was_seen_and_moves_ever_more_rarely() -> None:
    gate = default_gate(size=4096)
    entropies = np.random.default_rng(0).exponential(0.4, 20_000)
    moves: list[int] = []
    for number, entropy in enumerate(entropies, start=1):
        before = gate.gate
        gate.observe(float(entropy))
        if gate.gate is not before:
            moves.append(number)
    assert gate.needed == FEWEST
    assert moves == [FEWEST * 2**power for power in range(5)]
    assert gate.gate is not None
    assert gate.gate.tau == pytest.approx(calibrate(entropies[:16_000], RATE), abs=0.1)
    assert gate.gate.rate == pytest.approx(RATE, abs=0.001)
    assert [rate for rate, _ in gate.gate.table][:2] == [0.005, 0.01]


def test_a_small_rate_needs_more_tokens() -> None:
    assert DefaultGate(0.005, nothing).needed == 20_000


# --------------------------------------------------------------------------- where it is needed


def test_where_a_threshold_comes_from() -> None:
    default = default_gate()
    assert threshold(None, None, None).facts()["source"] is None
    assert threshold(OWN, None, default)[1:] == (0.3, "manifest")
    assert threshold(OWN, 0.5, default)[1:] == (0.5, "admin")
    assert threshold(None, 0.5, None)[1:] == (0.5, "admin")
    assert threshold(None, None, default) == (None, None, "default_gate_rate")
    for _ in range(FEWEST):
        default.observe(1.0)
    found = threshold(None, None, default)
    assert found.facts() == {
        "tau": 1.0, "source": "default_gate_rate", "rate": 0.0, "tokens": FEWEST,
    }  # fmt: skip


@pytest.fixture
def admission(tmp_path: Path, base_folder: Path, folders: list[Path]) -> Admission:
    """`plain` brings no threshold, `own` has one without a table."""
    store = tmp_path / "store"
    put_plain(folders[0], store, "plain")
    Store(store).publish(folders[0], "own")
    return make_admission(tmp_path, base_folder)


async def _arguments(admission: Admission, model: str, **arguments: Any) -> dict[str, Any]:
    """What the engine is told of a request."""
    request = completion(model, **arguments)
    await admission.admit(request)
    return dict(request.vllm_xargs or {})


async def test_a_requests_own_threshold_works_for_every_adapter(admission: Admission) -> None:
    for name in ("plain", "own"):
        told = await _arguments(admission, f"{name}:gated", gate_tau=0.7, gate_trace=1)
        assert told == {"gate_tau": 0.7, "correction_temperature": 1.0, "gate_trace": 1}
        told = await _arguments(admission, f"{name}:gated", gate_rate=0)
        assert told["gate_tau"] == NEVER
    with pytest.raises(ValueError, match=r"^gate_tau: .*store calibrate"):
        await _arguments(admission, "plain:gated")
    for name in ("plain", "own"):
        with pytest.raises(ValueError, match=r"^gate_rate: .*no table.*gate_tau.*calibrate"):
            await _arguments(admission, f"{name}:gated", gate_rate=0.05)
    admission.aliases.taus["plain"] = 1.5  # by the admin API
    assert (await _arguments(admission, "plain:gated"))["gate_tau"] == 1.5


async def test_the_first_request_waits_for_the_shipped_prompts_and_all_others_with_it(
    admission: Admission,
) -> None:
    rounds: list[int] = []

    async def ask(number: int) -> None:
        rounds.append(number)
        for _ in range(400):
            default.observe(0.25)
            await asyncio.sleep(0)

    default = admission.aliases.default_gate = default_gate(ask)

    assert (await _arguments(admission, "plain:gated", gate_tau=2))["gate_tau"] == 2
    assert (await _arguments(admission, "own:gated"))["gate_tau"] == 0.3
    assert (await _arguments(admission, "plain:gated", gate_rate=0))["gate_tau"] == NEVER
    assert not rounds  # nobody needed it
    quitter = asyncio.ensure_future(_arguments(admission, "plain:gated"))
    others = [asyncio.ensure_future(_arguments(admission, "plain:gated")) for _ in range(3)]
    await asyncio.sleep(0)
    quitter.cancel()
    told = [await one for one in others]
    assert [one["gate_tau"] for one in told] == [0.25] * 3
    assert rounds == [0, 1, 2]
    # From its table, now that there is one.
    assert (await _arguments(admission, "plain:gated", gate_rate=0.5))["gate_tau"] == 0.25


@pytest.mark.parametrize("fails", [False, True])
async def test_a_threshold_that_cannot_be_measured(admission: Admission, fails: bool) -> None:
    async def ask(number: int) -> None:
        default.observe(0.25)
        if fails:
            raise RuntimeError("the engine is gone")

    default = admission.aliases.default_gate = default_gate(ask)

    for _ in range(2):  # each request tries again
        with pytest.raises(ValueError, match=r"^gate_tau: .*1000 tokens.*send gate_tau"):
            await _arguments(admission, "plain:gated")
    assert default.sample.seen == (2 if fails else 16)
    for _ in range(FEWEST):
        default.observe(0.5)  # traffic of the base
    assert (await _arguments(admission, "plain:gated"))["gate_tau"] == 0.5


async def test_one_request_in_eight_is_looked_at(admission: Admission) -> None:
    admission.aliases.default_gate = default_gate()
    seen: list[dict[str, Any]] = []

    async def look(request: Any) -> None:
        seen.append(dict(request.vllm_xargs or {}))
        await admission.admit(request)  # vLLM asks twice
        assert seen[-1] == dict(request.vllm_xargs or {})

    for _ in range(160):
        await answered(admission, "base", look, theirs=1)
    watched = [told for told in seen if WATCHED in told]
    assert 8 <= len(watched) <= 40
    assert all(told["gate_tau"] == NEVER and told["theirs"] == 1 for told in watched)
    assert all(told == {"theirs": 1} for told in seen if told not in watched)
    told = [await _arguments(admission, "own:gated") for _ in range(160)]
    assert 8 <= sum(WATCHED in one for one in told) <= 40
    with pytest.raises(ValueError, match=WATCHED):  # no client may ask for it
        await _arguments(admission, "own:gated", **{WATCHED: 1})


async def test_the_metrics_say_so(admission: Admission) -> None:
    def page() -> str:
        return Gauges(admission.aliases).page()

    await answered(admission, "plain")
    assert "reasonmaxxer_adapter_tau_nats{" not in page()
    assert "\nreasonmaxxer_default_gate_rate 0\n" in page()
    default = admission.aliases.default_gate = default_gate()
    assert "reasonmaxxer_adapter_tau_nats{" not in page()
    for _ in range(FEWEST):
        default.observe(1.25)
    text = page()
    assert f"\nreasonmaxxer_default_gate_rate {RATE}\n" in text
    assert f"\nreasonmaxxer_default_gate_tokens {FEWEST}\n" in text
    (line,) = (one for one in text.splitlines() if one.startswith("reasonmaxxer_adapter_tau"))
    assert 'adapter="plain"' in line
    assert 'source="default_gate_rate"' in line
    assert line.endswith(" 1.25")


# ---------------------------------------------------------------------------- the real server


def _gauge(server: Server, name: str) -> float:
    (value,) = re.findall(rf"^reasonmaxxer_{name} (\S+)$", server.page(), re.MULTILINE)
    return float(value)


def test_an_adapter_from_elsewhere_is_gated_by_the_servers_own_measure(server: Server) -> None:
    client = server.client()

    def ask(model: str, **xargs: Any) -> Any:
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "What is 3 + 4 * 2 - 6?"}],
            temperature=0,
            max_tokens=24,
            extra_body={"vllm_xargs": xargs} if xargs else {},
        )

    measured = ask("beta:gated")  # the first one to need it, unless another test was
    card = client.models.retrieve("beta:gated")
    assert card.gate["source"] == "default_gate_rate"
    assert card.gate["rate"] == pytest.approx(0.05, abs=0.01)
    assert card.gate["tokens"] >= 2000
    assert "beta:gated" in [model.id for model in client.models.list()]
    assert client.models.retrieve("alpha:gated").gate["source"] == "manifest"
    named = ask("beta:gated", gate_tau=card.gate["tau"])
    text = measured.choices[0].message.content
    assert text == named.choices[0].message.content
    assert ask("beta:gated", gate_rate=0.05).choices[0].message.content == text
    with pytest.raises(openai.BadRequestError, match="gate_rate"):
        ask("alpha:gated", gate_rate=0.05)  # a threshold, but no table

    # Its traffic counts, and no client sees that it was looked at.
    until(lambda: not _gauge(server, "gate_requests"))  # what is left of the shipped prompts
    seen = _gauge(server, "default_gate_tokens")
    for _ in range(200):
        answer = ask(server.base.name)
        assert answer.usage.completion_tokens_details is None
        body = json.loads(answer.model_dump_json())
        assert body.get("kv_transfer_params") is None
        assert "gate_trace" not in body["choices"][0]
        if (now := _gauge(server, "default_gate_tokens")) > seen:
            break
    assert now - seen == answer.usage.completion_tokens
