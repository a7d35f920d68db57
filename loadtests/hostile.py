"""The requests of hostile users, and what is wrong where one is not refused properly.

There are six kinds: a value, an argument of the gate, a name, a length, a body, and bodies of
megabytes. The fuzzer (tests/fuzz) knows more than a hundred.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGE = {"role": "user", "content": "3 + 4 * 2"}
# (field, value): the refusal names the field.
VALUES: tuple[tuple[str, Any], ...] = (
    *(("temperature", -1), ("temperature", "hot"), ("top_p", 1.5), ("top_k", -2), ("seed", 2**80)),
    *(("max_tokens", 0), ("max_tokens", 10**9), ("vllm_xargs", 7), ("messages", "hello")),
)
GATE_VALUES: tuple[tuple[str, Any], ...] = (
    *(("gate_tau", -1), ("gate_tau", float("nan")), ("gate_tau", "0.5"), ("gate_tau", 10**400)),
    *(("gate_rate", 1.1), ("gate_trace", 3), ("gate_taus", 1)),
)
BODIES = (b"{", b"", b"[]", b"null", b"\xff\xfe", b'{"model": 7}', b"[" * 10_000)
NAMES = ("nobody", "../{}", "{}\x00", "{}:gated:gated", "{}@0123456789ab", "..", "😀", "x" * 10_000)


class BadRequest(NamedTuple):
    """A request that must be refused."""

    kind: str
    path: str
    content: bytes
    word: str = ""  # the refusal must contain it


def bad_requests(models: tuple[str, ...], context: int) -> list[BadRequest]:
    """All of them, for a server of `models`, the base first, and `context` tokens."""
    gated = next((name for name in models if name.endswith(":gated")), "")

    def chat(kind: str, word: str, model: str = models[0], **fields: Any) -> BadRequest:
        body = {"model": model, "messages": [MESSAGE], "max_tokens": 4} | fields
        return BadRequest(kind, CHAT, json.dumps(body).encode(), word)  # NaN goes out as such

    too_long = json.dumps({"model": models[0], "prompt": [5] * (context + 1)}).encode()
    return [
        *(chat("value", field, **{field: value}) for field, value in VALUES),
        chat("gate", "gate_tau", vllm_xargs={"gate_tau": 1}),  # the base has no gate
        *(chat("name", "", name.format(models[0])) for name in NAMES),
        *(BadRequest("body", path, body) for path in (CHAT, COMPLETIONS) for body in BODIES),
        BadRequest("length", COMPLETIONS, too_long, "length"),
        chat("huge", "", messages=[MESSAGE | {"content": "12 + " * 2**19}]),
        chat("huge", "", messages=[MESSAGE] * 20_000),
        BadRequest("huge", CHAT, b"{" + b'"a": ' * 2**19),
        *(chat("gate", name, gated, vllm_xargs={name: v}) for name, v in GATE_VALUES if gated),
    ]


def refusal_faults(status: int, content: bytes, word: str) -> Iterator[str]:
    """Yield what is wrong with a refusal, which is 4xx, in OpenAI's shape, and contains `word`."""
    if not 400 <= status < 500:
        yield f"status {status}, not a refusal"
        return
    try:
        error = json.loads(content)["error"]
        message, _ = error["message"], error["code"]
    except (ValueError, KeyError, TypeError):
        yield f"status {status} without an error in OpenAI's shape"
        return
    if not isinstance(message, str) or not message or {"type", "param"} - set(error):
        yield "an error without message, type or param"
    elif word and word not in f"{message} {error['param']}":
        yield f"the refusal does not say '{word}': {message[:200]}"
