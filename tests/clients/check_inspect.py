# /// script
# requires-python = ">=3.11"
# dependencies = ["inspect-ai==0.3.285", "openai>=3"]
# ///
"""Inspect: a task with the gated name, with the plain one, and one that is refused.

uv run tests/clients/check_inspect.py http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import tempfile

from page import ADAPTER, URL, check_model, run

QUIET = {"INSPECT_LOG_DIR": tempfile.mkdtemp(), "INSPECT_DISPLAY": "none"}


if __name__ == "__main__":
    os.environ |= QUIET
    names = run("Inspect")
    log = names["log"]
    assert log.status == "success", log.error
    (sample,) = log.samples
    check_model(sample.output.model, f"{ADAPTER}:gated")
    assert sample.output.usage.output_tokens > 0
    sent = [event.call.request for event in sample.events if event.event == "model"]
    assert sent[0]["extra_body"]["vllm_xargs"] == {"gate_tau": 0.8}, sent[0]

    def evaluate(name: str, **config: object) -> object:
        model = names["get_model"](
            f"openai-api/reasonmaxxer/{name}",
            base_url=f"{URL}/v1",
            api_key=os.environ["OPENAI_API_KEY"],
            config=names["GenerateConfig"](max_tokens=16, max_retries=0, **config),
        )
        return names["eval"](names["sums"], model=model)[0]

    assert evaluate(ADAPTER).status == "success"
    refused = evaluate(ADAPTER, extra_body={"vllm_xargs": {"gate_tau": 1}})
    assert refused.status == "error" and "gated" in refused.error.message
    print("inspect-ai: all checks passed")
