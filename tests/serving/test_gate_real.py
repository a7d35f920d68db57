"""Gated decoding of a real model is the reference's: SmolLM2-135M-Instruct, with its own prompts.

Real tokenizer and chat template, 30 layers, three query heads for each key head, three random
adapters; base, always-on and gated requests in one batch under memory pressure. The engine's
answers are forced through transformers and PEFT (`Reference.force`): at each token the gate, the
entropy, the choice and the log-probability must be the reference's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from gate_models import make_adapters, prompts
from gate_reference import TIE, Asked, Forced, Reference
from real_models import real_model
from test_gate_exact import CRAMPED, NEVER, World

from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.store import Store
from loadtests.preloaded import Command

NAMES = ("attention", "mlp", "all")  # ranks 8, 64 and 16
TAUS = (0.0, 1.0, 2.0, 3.0, 4.0, NEVER)
ENGINE = CRAMPED | {
    "num_gpu_blocks_override": 64,  # 63 blocks of 32 tokens for 36 requests
    "max_num_batched_tokens": 96,  # prompts in pieces
    "max_num_seqs": 36,
    "kv_cache_memory_bytes": 2**28,
    "skip_tokenizer_init": False,
}
QUESTIONS = (
    "What is 17 * 3 + 5?",
    "Who wrote Faust?",
    "Name a prime above 90, and say in one sentence how you know that it is one.",
    "Write a short poem about the sea.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take?",
    "Translate to German: The gate opens where the model is uncertain.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "List three uses of a paper clip.",
    "Why is the sky blue?",
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "Explain to a child of eight what a prime number is, and give the first five.",
    "日本の首都はどこですか？",
)
FOLLOW_UPS = ("Are you sure?", "Say it again, in other words.", "And now in one word.")


class Request(NamedTuple):
    """What is asked of the engine, and after which of the first wave's answers."""

    prompt: list[int]
    adapter: str | None
    tau: float | None
    tokens: int
    after: int | None = None

    @property
    def traced(self) -> bool:
        """Whether a gated request asks for the entropy of every token, and for logprobs."""
        return self.tau is not None and len(self.prompt) % 2 == 1

    def to_engine(self) -> dict[str, Any]:
        """As gate_engine.py takes it."""
        request = {k: v for k, v in self._asdict().items() if v is not None or k != "after"}
        request |= {"ignore_eos": False, "detokenize": True}
        if self.traced:
            request |= {"arguments": {"gate_trace": 2}, "logprobs": 1}
        return request


def make_request(
    choose: random.Random,
    number: int,
    prompt: list[int],
    after: int | None = None,
    same: str | None = None,
) -> Request:
    """Of six requests one is for the base, one always-on, and four are gated."""
    adapter = None if number % 6 == 0 else same or choose.choice(NAMES)
    tau = choose.choice(TAUS) if number % 6 > 1 else None
    return Request(prompt, adapter, tau, choose.choice((8, 16, 24)), after)


def make_waves(tokenizer: Any) -> list[list[Request]]:
    """36 questions, each asked with several adapters; then 36 follow-ups to their answers."""
    choose = random.Random(0)

    def render(*contents: str) -> str:
        roles = ("user", "assistant", "user")
        chat = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    questions = [encode(render(question)) for question in QUESTIONS]
    # What the template puts between an answer and the end of the next question's prompt.
    turns = [encode(render("Q", "ANSWER", then).partition("ANSWER")[2]) for then in FOLLOW_UPS]
    first = [make_request(choose, n, choose.choice(questions)) for n in range(36)]
    # Most with the same adapter, some of them now always-on: theirs must not be the base's cache.
    second = [
        make_request(choose, 5 * n, choose.choice(turns), n, before.adapter)
        for n, before in enumerate(first)
    ]
    return [first, second]


def differences(
    request: Request, got: dict[str, Any], forced: list[Forced], ends: set[int]
) -> list[str]:
    """What is not as the reference has it, at tokens where the reference is sure."""
    tokens, trace = got["tokens"], {entry["position"]: entry for entry in got["trace"]}
    bad = []
    if len(tokens) != request.tokens and tokens[-1:] not in [[end] for end in ends]:
        bad.append(f"{len(tokens)} of {request.tokens} tokens")
    if (got["gated"] is None) != (request.tau is None):
        bad.append(f"reports {got['gated']} gated tokens")
    for at, (token, wanted) in enumerate(zip(tokens, forced, strict=True)):
        entry = trace.get(at, {})
        if wanted.sure:
            if token != wanted.token:
                bad.append(f"token {at}: {token} instead of {wanted.token}")
            if request.traced and entry["gated"] != wanted.gated:
                bad.append(f"token {at}: gated {entry['gated']} instead of {wanted.gated}")
        # The entropy of the first token comes from a step that says nothing more of it.
        if "entropy" in entry and abs(entry["entropy"] - wanted.entropy) >= TIE:
            bad.append(f"token {at}: entropy {entry['entropy']} instead of {wanted.entropy}")
        for best in entry.get("base_top", []):
            if abs(best["probability"] - wanted.base_top.get(best["token_id"], -1)) >= TIE:
                bad.append(f"token {at}: {best} instead of {wanted.base_top}")
        if request.traced and wanted.sure and abs(got["logprobs"][at] - wanted.logprob) >= TIE:
            bad.append(f"token {at}: logprob {got['logprobs'][at]} instead of {wanted.logprob}")
    unsure = sum(not wanted.sure for wanted in forced)
    gates = sum(wanted.gated for wanted in forced)
    if request.tau is not None and abs(got["gated"] - gates) > unsure:
        bad.append(f"{got['gated']} gated tokens instead of {gates}")
    return bad


def judge(
    here: World, waves: list[list[Request]], result: dict[str, Any]
) -> tuple[list[str], list[Forced]]:
    """(the cases that differ from the reference, what the reference finds at each token)."""
    requests, results = [one for wave in waves for one in wave], result["results"]
    bad, found, prompts_before = [], [], []
    for number, (request, got) in enumerate(zip(requests, results, strict=True)):
        prompt = request.prompt
        if request.after is not None:
            prompt = prompts_before[request.after] + results[request.after]["tokens"] + prompt
        prompts_before.append(prompt)
        asked = Asked(prompt, request.adapter, request.tau, request.tokens)
        forced = here.reference.force(asked, got["tokens"])
        found += forced
        if wrong := differences(request, got, forced, here.reference.ends):
            bad.append(f"case {number}, {request[1:]}: {'; '.join(wrong[:3])}")
    return bad, found


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, engine: Command) -> World:
    """The real model with three random adapters; `all`, as PEFT writes it, comes by an import."""
    model = real_model()
    adapters = make_adapters(model, tmp_path_factory.mktemp("adapters"), NAMES)
    store, base = Store(tmp_path_factory.mktemp("store")), BaseCheckpoint.open(str(model))
    imported = import_adapter(store, str(adapters["all"]), "all", base=base)
    assert imported.gate is None  # its thresholds are the requests' own
    assert imported.inert() == ["k_proj", "v_proj"]  # for the reference too, which gates likewise
    return World(model, adapters | {"all": imported.path}, Reference(model, adapters), engine)


def test_every_case_of_a_real_model_is_the_references(
    real: World, record_property: Callable[[str, Any], None]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real.model)
    waves = make_waves(tokenizer)
    given = [[request.to_engine() for request in wave] for wave in waves]
    job = {"engine": ENGINE, "waves": given, "reset": [20, 50, 90]}
    # Half of the first wave, once more on an engine whose replays write keys and values.
    half = [waves[0][:18]]
    broken = {"engine": ENGINE, "waves": [given[0][:18]], "break": "the replay writes"}
    result, wrong = real.run(job, broken)
    bad, found = judge(real, waves, result)
    answers = result["results"]
    for got in answers:
        text = tokenizer.decode(got["tokens"], skip_special_tokens=True)
        assert got["text"] == text.rstrip("\ufffd")  # vLLM holds half a character back
    plain = sum(one.sure for one in found)
    gated = sum(one.gated for one in found)
    broken_bad, _ = judge(real, half, wrong)
    elsewhere = [one for wave in waves for one in wave if one.adapter == "all" and one.tau]
    figures = {
        "cases": len(answers),
        "gated, from elsewhere": len(elsewhere),
        "bad": len(bad),
        "tokens": len(found),
        "of them certain": plain,
        "gated": gated,
        "preempted": result["preempted"],
        "bad when broken": len(broken_bad),
    }
    record_property("figures", figures)
    print(figures)
    assert not bad, "\n".join(bad[:5])
    assert len(answers) >= 60
    assert len(elsewhere) >= 10
    assert plain > 0.95 * len(found)
    assert 200 < gated < len(found) - 200
    assert result["preempted"] >= 20
    assert any(got["cached"] for got in answers)
    assert result["left"] == [0, 0, 0.0]
    assert broken_bad


def test_answers_forced_are_answers_decoded(world: Callable[[str], World]) -> None:
    """Both ways of the reference agree: position by position, and all positions at once."""
    for architecture in ("qwen2", "gemma3", "llama4"):
        here = world(architecture)
        for seed, tau in enumerate((None, 0.0, 1.5, 2.0)):
            asked = Asked(prompts(1, 60, seed)[0], "mlp", tau, 40)
            decoded = here.reference.decode(asked)
            forced = here.reference.force(asked, decoded.tokens)
            assert [one.token for one in forced] == decoded.tokens
            points = [59 + at for at, one in enumerate(forced) if one.gated]
            assert points == decoded.points
            for one, logprob in zip(forced, decoded.logprobs, strict=True):
                assert abs(one.logprob - logprob) < TIE / 10
