"""The real server as an `openai` client and a careless one see it."""

from __future__ import annotations

import concurrent.futures
import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import Reference, Server

from adapters.prompt import PromptRenderer
from adapters.recipe import get_recipe

PROMPT = "12 + 7 * 3 ="
HOSTILE = [
    *("../alpha", "..", ".", "/", "//", "/etc/passwd", "alpha/../beta", "alpha/", "./alpha"),
    *("..\\alpha", "alpha\\..\\beta", "%2e%2e%2falpha", "..%2falpha", "%2fetc%2fpasswd"),
    *("alpha\x00", "alpha\x00.safetensors", "alpha\n", "\nalpha", " alpha", "alpha ", "ALPHA"),
    *("~", "~root", "$HOME", "${HOME}", "`id`", "$(id)", "file:///etc/passwd", "C:\\Windows"),
    *("alpha@0123456789ab", "@", "*", "?", "[a]lpha", "al*", ".tmp-x", "-alpha", "_alpha"),
    *("а" + "lpha", "alpha\u202e", "\ud7ff", "😀", "a" * 65, "a" * 100_000, "....//alpha"),
    *("../" * 50 + "etc/passwd", "..;/alpha", "alpha;beta", "alpha,beta", "'", '"', "<script>"),
    *("None", "null", "0", "true", "{}", "[]", "{{7*7}}", "%s%n", "\\\\host\\share", "CON"),
]


# What else lies in the store of the fixture.
REFUSED = {
    *("corrupt", "tampered", "pickled", "odd-config", "pissa", "too-large"),
    *("wrong-shape", "wrong-weights", "link"),
}


def post(server: Server, path: str, body: bytes | dict[str, Any], key: str = "") -> tuple[int, Any]:
    """(status, parsed body) of a raw POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key or server.key}"}
    answer = httpx.post(server.url + path, content=data, headers=headers, timeout=60)
    return answer.status_code, answer.json() if answer.content else None


def get(server: Server, path: str) -> tuple[int, str]:
    """(status, body) of a GET without a key."""
    answer = httpx.get(server.url + path, timeout=60)
    return answer.status_code, answer.text


def complete(server: Server, model: str, prompt: str = PROMPT, tokens: int = 24) -> list[int]:
    """Greedy token ids."""
    answer = server.client().completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    ids: list[int] = answer.choices[0].token_ids
    return ids


def test_models_lists_base_and_the_adapters_that_fit(server: Server) -> None:
    cards = server.client().models.list().data
    # beta has no manifest; its threshold is the server's own (--default-gate-rate)
    names = [server.base.name, "alpha", "alpha:gated", "beta", "beta:gated"]
    assert [card.id for card in cards] == names
    assert cards[0].parent is None
    assert {card.parent for card in cards[1:]} == {server.base.name}
    assert not any("/" in str(value) for card in cards for value in card.model_dump().values())
    assert server.client().models.retrieve("alpha").parent == server.base.name
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("../alpha")


@pytest.mark.parametrize("model", ["base", "alpha", "beta"])
def test_greedy_output_is_that_of_hugging_face(
    server: Server, reference: Reference, model: str
) -> None:
    name = server.base.name if model == "base" else model
    expected = reference.greedy(None if model == "base" else model, PROMPT, 24)
    assert len(expected) >= 8, "too many near ties to tell anything"
    assert complete(server, name)[: len(expected)] == expected


def test_adapters_differ_from_the_base(server: Server) -> None:
    outputs = {tuple(complete(server, model)) for model in (server.base.name, "alpha", "beta")}
    assert len(outputs) == 3


def test_mixed_concurrent_traffic(server: Server, reference: Reference) -> None:
    """Base rows beside adapter rows: vLLM's own CPU kernels fail this."""
    models = [server.base.name, "alpha", "beta"]
    cases = [(models[i % 3], f"{i} + {i * i} * 2 =") for i in range(24)]
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        outputs = list(pool.map(lambda case: complete(server, *case), cases))
    compared = 0
    for (model, prompt), output in zip(cases, outputs, strict=True):
        expected = reference.greedy(None if model == server.base.name else model, prompt, 24)
        assert output[: len(expected)] == expected, (model, prompt)
        compared += len(expected)
    assert compared > 24 * 8, "too many near ties to tell anything"


def test_a_chat_message_is_rendered_as_in_training(server: Server, reference: Reference) -> None:
    problem = "What is 3 * (4 + 5)?"
    renderer = PromptRenderer.of(reference.tokenizer, get_recipe("tiny").prompt)
    status, tokens = post(
        server,
        "/tokenize",
        {"model": server.base.name, "messages": [{"role": "user", "content": problem}]},
    )
    assert status == 200
    assert tokens["tokens"] == renderer.token_ids(problem)
    for model in (server.base.name, "alpha"):
        answer = server.client().chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": problem}],
            max_tokens=1,
            extra_body={"return_token_ids": True},
        )
        assert answer.prompt_token_ids == renderer.token_ids(problem)
        assert answer.usage.prompt_tokens == len(renderer.token_ids(problem))


@pytest.mark.parametrize("adapter", [False, True])
def test_chat_streaming_and_whole_agree(server: Server, adapter: bool) -> None:
    arguments: dict[str, Any] = {
        "model": "alpha" if adapter else server.base.name,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 16,
        "temperature": 0,
    }
    client = server.client()
    whole = client.chat.completions.create(**arguments)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**arguments | options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_logprobs_n_stop_and_max_tokens(server: Server) -> None:
    client = server.client()
    messages = [{"role": "user", "content": PROMPT}]
    answer = client.chat.completions.create(
        model="alpha",
        messages=messages,
        max_tokens=4,
        n=3,
        logprobs=True,
        top_logprobs=2,
        temperature=1,
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert len(token.top_logprobs) >= 2
    one = client.chat.completions.create(model="alpha", messages=messages, max_tokens=1)
    assert one.usage.completion_tokens == 1
    assert one.choices[0].finish_reason in ("length", "stop")

    free = client.completions.create(
        model=server.base.name, prompt=PROMPT, max_tokens=16, temperature=0
    )
    text = free.choices[0].text
    stop = text[len(text) // 2]
    cut = client.completions.create(
        model=server.base.name, prompt=PROMPT, max_tokens=16, temperature=0, stop=[stop]
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_one_seed_gives_one_text(server: Server) -> None:
    def sample(seed: int) -> str:
        answer = server.client().completions.create(
            model="beta", prompt=PROMPT, max_tokens=24, temperature=1.0, seed=seed
        )
        text: str = answer.choices[0].text
        return text

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_wrong_key_is_refused_everywhere_but_on_the_machine_read_paths(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        server.client(key="wrong").models.list()
    assert "API key" in str(refused.value)
    for path in ("/v1/chat/completions", "/tokenize", "/invocations", "/openapi.json", "/nothing"):
        assert post(server, path, {}, key="wrong")[0] == 401, path
    assert get(server, "/health")[0] == 200
    status, metrics = get(server, "/metrics")
    assert status == 200
    assert "vllm:generation_tokens_total" in metrics


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "body",
    [b"{", b"", b"[]", b'"x"', b"\xff\xfe", b'{"model": 7}', b"[" * 10_000, b'{"prompt": "x"'],
)
def test_malformed_bodies(server: Server, path: str, body: bytes) -> None:
    status, answer = post(server, path, body)
    assert status in (400, 422)
    assert answer["error"]["message"]


def test_a_prompt_of_a_megabyte(server: Server) -> None:
    with pytest.raises(openai.BadRequestError):
        server.client().completions.create(model="alpha", prompt="1 + " * 2**18, max_tokens=1)
    assert get(server, "/health")[0] == 200
    assert complete(server, "alpha", tokens=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_model_names(server: Server, name: str) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        status, answer = post(server, path, {"model": name, "max_tokens": 1, **body})
        assert status in (400, 404), (name, answer)
        assert "passwd" in name or "root:" not in json.dumps(answer)


@settings(max_examples=200, deadline=None)
@given(
    name=st.lists(
        st.sampled_from(["..", ".", "/", "\\", "%2e", "%2f", "alpha", "\x00", "@", "~", "\n", "a"])
        | st.text(max_size=3),
        min_size=1,
        max_size=8,
    ).map("".join)
)
def test_generated_hostile_model_names(server: Server, name: str) -> None:
    assume(name.strip() and name not in {"alpha", "beta", *REFUSED})
    body = {"model": name, "prompt": "x", "max_tokens": 1}
    assert post(server, "/v1/completions", body)[0] == 404


def test_no_client_can_load_a_path(server: Server) -> None:
    alpha = str(server.store / "alpha")
    for path, body in (
        ("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": alpha}),
        ("/v1/unload_lora_adapter", {"lora_name": "alpha"}),
        ("/adapters", {"name": "mine", "src": alpha}),
        ("/invocations", {"model": "alpha", "prompt": "x", "max_tokens": 1}),
        ("/v1/completions", {"model": alpha, "prompt": "x", "max_tokens": 1}),
    ):
        assert post(server, path, body)[0] == 404, path
