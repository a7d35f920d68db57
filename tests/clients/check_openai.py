"""openai: chat, streams, tools, JSON schemas, responses, completions, embeddings refused.

python tests/clients/check_openai.py http://127.0.0.1:8000
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
from page import ADAPTER, BASE, GATED, QUESTION, XARGS, check_model, refused, run

TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "parameters": {
            "type": "object",
            "properties": {"operation": {"type": "string", "enum": ["plus", "minus"]}},
            "required": ["operation"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def blank_tokens() -> dict[str, int]:
    """A bias against white space, with which a miniature fills its JSON for ever."""
    vocabulary = json.loads(Path(BASE, "tokenizer.json").read_text())["model"]["vocab"]
    # As byte-level tokenizers write space, newline, tab and carriage return.
    return {str(number): -100 for text, number in vocabulary.items() if not text.strip("ĠĊĉč")}


def check_page() -> openai.OpenAI:
    """What the page shows."""
    names = run("openai")
    answer, chunk, response = names["answer"], names["chunk"], names["response"]
    choice = answer.choices[0]
    assert len(choice.gate_trace) == answer.usage.completion_tokens_details.gated_tokens
    assert chunk.usage.completion_tokens > 0
    assert names["parsed"].choices[0].message.parsed.operation in ("plus", "minus", "times")
    assert response.status in ("completed", "incomplete")
    assert response.usage.output_tokens_details.gated_tokens <= response.usage.output_tokens
    for one in (answer, chunk, response):
        check_model(one.model, GATED)
    client: openai.OpenAI = names["client"]
    return client


def check_names(client: openai.OpenAI) -> None:
    """Every listed name answers, can be retrieved, and is what the answer says."""
    names = [model.id for model in client.models.list()]
    assert ADAPTER in names and GATED in names
    for name in names:
        assert client.models.retrieve(name).id == name
        answer = client.chat.completions.create(model=name, messages=QUESTION, max_tokens=4)
        check_model(answer.model, name)
        free = client.completions.create(model=name, prompt="3 + 4", max_tokens=4)
        check_model(free.model, name)
        assert 1 <= free.usage.completion_tokens <= 4


def check_always_on(client: openai.OpenAI) -> None:
    """The plain adapter: streams like any model, and takes no argument of the gate."""
    arguments: dict[str, Any] = {"model": ADAPTER, "messages": QUESTION, "max_tokens": 200}
    whole = client.chat.completions.create(**arguments, temperature=0)
    with client.chat.completions.stream(
        **arguments, temperature=0, stream_options={"include_usage": True}
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage == whole.usage
    error = refused(
        openai.BadRequestError,
        lambda: client.chat.completions.create(**arguments, extra_body=XARGS),
    )
    assert error.body["param"] in ("gate_tau", "gate_trace"), error.body
    assert "gated" in error.message


def check_tools(client: openai.OpenAI) -> None:
    """Forced calls, whole and streamed."""
    bias = blank_tokens()
    for name, body in ((ADAPTER, {}), (GATED, XARGS)):
        arguments: dict[str, Any] = {
            **{"model": name, "messages": QUESTION, "tools": [TOOL], "tool_choice": "required"},
            **{"max_tokens": 300, "temperature": 0, "logit_bias": bias, "extra_body": body},
        }
        (call,) = client.chat.completions.create(**arguments).choices[0].message.tool_calls[:1]
        assert json.loads(call.function.arguments)["operation"] in ("plus", "minus")
        with client.chat.completions.stream(**arguments) as stream:
            final = stream.get_final_completion()
        streamed = final.choices[0].message.tool_calls[0].function
        assert json.loads(streamed.arguments) == json.loads(call.function.arguments)


def check_responses(client: openai.OpenAI) -> None:
    """The Responses API in a stream, and for the plain adapter."""
    for name, body in ((ADAPTER, {}), (GATED, XARGS)):
        arguments: dict[str, Any] = {
            **{"model": name, "input": "What is 3+4?", "max_output_tokens": 16},
            **{"temperature": 0, "extra_body": body},
        }
        whole = client.responses.create(**arguments)
        check_model(whole.model, name)
        with client.responses.stream(**arguments) as stream:
            final = stream.get_final_response()
        assert final.output_text == whole.output_text
        assert final.usage == whole.usage


def check_refusals(client: openai.OpenAI) -> None:
    """Each is an error of the right class, with a message and what it is about."""
    for kind, ask in (
        (openai.NotFoundError, lambda: client.embeddings.create(model=GATED, input="x")),
        (openai.NotFoundError, lambda: client.models.retrieve("nobody:gated")),
        (
            openai.NotFoundError,
            lambda: client.chat.completions.create(model="nobody", messages=QUESTION),
        ),
        (
            openai.BadRequestError,
            lambda: client.chat.completions.create(
                model=GATED, messages=QUESTION, extra_body={"vllm_xargs": {"gate_tau": "high"}}
            ),
        ),
    ):
        error = refused(kind, ask)
        assert error.body["message"], error.body
    stranger = openai.OpenAI(base_url=client.base_url, api_key="wrong", max_retries=0)
    assert "API key" in refused(openai.AuthenticationError, stranger.models.list).message


if __name__ == "__main__":
    CLIENT = check_page()
    check_names(CLIENT)
    check_always_on(CLIENT)
    check_tools(CLIENT)
    check_responses(CLIENT)
    check_refusals(CLIENT)
    print(f"openai {openai.__version__}: all checks passed ({BASE})")
