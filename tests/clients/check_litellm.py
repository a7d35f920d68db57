# /// script
# requires-python = ">=3.11"
# dependencies = ["litellm==1.110.2", "pyyaml"]
# ///
"""LiteLLM: chat, streams, tools, JSON schemas, responses, the proxy's model list, refusals.

uv run tests/clients/check_litellm.py http://127.0.0.1:8000
"""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched when litellm is imported

import litellm
import yaml
from page import ADAPTER, GATED, QUESTION, URL, XARGS, blocks, check_model, refused, replaced, run

KEY = os.environ["OPENAI_API_KEY"]
COMMON: dict[str, Any] = {"api_base": f"{URL}/v1", "api_key": KEY, "max_tokens": 16}
SCHEMA = {
    "type": "object",
    "properties": {"exact": {"type": "boolean"}},
    "required": ["exact"],
    "additionalProperties": False,
}


def ask(name: str, **more: Any) -> Any:
    """A completion."""
    return litellm.completion(
        **{"model": f"hosted_vllm/{name}", "messages": QUESTION, "temperature": 0} | COMMON | more
    )


def check_page() -> None:
    """What the page shows."""
    answer = run("LiteLLM", {"api_base=": f"api_key={KEY!r}, api_base="})["answer"]
    details = answer.usage.completion_tokens_details
    trace = answer.choices[0].provider_specific_fields["gate_trace"]
    assert details.gated_tokens == len(trace)


def check_answers() -> None:
    """Whole and streamed, for either name."""
    for name, body in ((ADAPTER, {}), (GATED, XARGS)):
        whole = ask(name, extra_body=body)
        check_model(whole.model.removeprefix("hosted_vllm/"), name)
        chunks = list(
            ask(name, extra_body=body, stream=True, stream_options={"include_usage": True})
        )
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == whole.choices[0].message.content
        usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)][-1]
        assert usage.completion_tokens == whole.usage.completion_tokens
        form = {"type": "json_schema", "json_schema": {"name": "exact", "schema": SCHEMA}}
        parsed = ask(name, extra_body=body, response_format=form, max_tokens=60)
        assert set(json.loads(parsed.choices[0].message.content)) == {"exact"}
        response = litellm.responses(
            model=f"hosted_vllm/{name}",
            input="What is 3+4?",
            max_output_tokens=8,
            **{key: COMMON[key] for key in ("api_base", "api_key")},
        )
        assert response.usage.output_tokens > 0


def check_tools() -> None:
    """A call that may be made; the miniature's template shows no tools."""
    tool = {"type": "function", "function": {"name": "exact", "parameters": SCHEMA}}
    answer = ask(GATED, tools=[tool], tool_choice="auto", extra_body=XARGS)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def check_router() -> None:
    """The proxy's model list, as the router of the proxy reads it."""
    (text,) = blocks("LiteLLM", "yaml")
    models = yaml.safe_load(replaced(text))["model_list"]
    router = litellm.Router(model_list=models)
    answer = router.completion(model="alpha-gated", messages=QUESTION, max_tokens=8)
    assert answer.usage.completion_tokens_details.gated_tokens >= 0


def check_refusals() -> None:
    """Errors of LiteLLM's own classes."""
    for kind, act in (
        (litellm.NotFoundError, lambda: ask("nobody")),
        (litellm.BadRequestError, lambda: ask(ADAPTER, extra_body=XARGS)),
        (litellm.AuthenticationError, lambda: ask(ADAPTER, api_key="wrong")),
        (
            litellm.NotFoundError,
            lambda: litellm.embedding(
                model=f"hosted_vllm/{GATED}", input=["x"], api_base=f"{URL}/v1", api_key=KEY
            ),
        ),
    ):
        refused(kind, act)


if __name__ == "__main__":
    check_page()
    check_answers()
    check_tools()
    check_router()
    check_refusals()
    print("litellm: all checks passed")
