# /// script
# requires-python = ">=3.11"
# dependencies = ["langchain-openai==1.7.4"]
# ///
"""LangChain: invoke, stream, tools, structured output, the Responses API; embeddings refused.

uv run tests/clients/check_langchain.py http://127.0.0.1:8000
"""

from __future__ import annotations

from typing import Any, Literal

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from page import ADAPTER, GATED, PROBLEM, URL, XARGS, check_model, refused, run
from pydantic import BaseModel


class Operation(BaseModel):
    """How two numbers are joined."""

    operation: Literal["plus", "minus"]


def model(name: str, **more: Any) -> ChatOpenAI:
    """A greedy one."""
    return ChatOpenAI(
        **{"model": name, "base_url": f"{URL}/v1", "temperature": 0, "max_tokens": 24}
        | {"max_retries": 0, "extra_body": XARGS if name == GATED else None}
        | more
    )


def check_page() -> None:
    """What the page shows."""
    names = run("LangChain")
    check_model(names["answer"].response_metadata["model_name"], GATED)
    assert names["answer"].usage_metadata["output_tokens"] > 0


def check_answers(name: str) -> None:
    """Whole, streamed with usage, as an object, and by the Responses API."""
    whole = model(name).invoke(PROBLEM)
    chunks = list(model(name, stream_usage=True).stream(PROBLEM))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    used = sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)
    assert used == whole.usage_metadata["output_tokens"]
    made = model(name, max_tokens=60).with_structured_output(Operation, method="json_schema")
    assert made.invoke(PROBLEM).operation in ("plus", "minus")
    answer = model(name, use_responses_api=True).invoke(PROBLEM)
    assert answer.text == whole.content
    # The miniature's template shows no tools, so nothing else may differ.
    tools = model(name).bind_tools([Operation], tool_choice="auto")
    assert tools.invoke(PROBLEM).content == whole.content


def check_refusals() -> None:
    """openai's errors, which LangChain passes on."""
    embeddings = OpenAIEmbeddings(
        model=GATED, base_url=f"{URL}/v1", check_embedding_ctx_length=False, max_retries=0
    )
    for kind, act in (
        (openai.NotFoundError, lambda: embeddings.embed_query("x")),
        (openai.NotFoundError, lambda: model("nobody").invoke(PROBLEM)),
        (openai.BadRequestError, lambda: model(ADAPTER, extra_body=XARGS).invoke(PROBLEM)),
    ):
        refused(kind, act)


if __name__ == "__main__":
    check_page()
    check_answers(ADAPTER)
    check_answers(GATED)
    check_refusals()
    print("langchain-openai: all checks passed")
