"""Requests that must be refused, and a word that each refusal must hold.

Each row makes one kind: `make(random, target) -> (path, body, word)`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.traffic import Target

Bad = tuple[str, dict[str, Any] | bytes, str]
Make = Callable[[Random, "Target"], Bad]

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = [{"role": "user", "content": "3 + 4 * 2"}]

NAN, INFINITY, HUGE = float("nan"), float("inf"), 10**400
# Values that the gate refuses of each of its arguments on a gated model, naming the argument...
GATE_VALUES: dict[str, tuple[Any, ...]] = {
    "gate_tau": (-1, -1e-9, NAN, INFINITY, HUGE, "0.5", [0.5], None, {"nats": 1}),
    "gate_rate": (-0.1, 1.1, NAN, HUGE, "much", []),
    "correction_temperature": (-1, HUGE, NAN, "cold", None),
    "gate_trace": (3, -1, "yes", [1], NAN),
    **dict.fromkeys(("gate_tally", "gate_", "gate_taus", "gate_TAU"), (1,)),
}
GATE: tuple[tuple[dict[str, Any], str], ...] = (
    *(({name: value}, name) for name, values in GATE_VALUES.items() for value in values),
    ({"gate_tau": 1, "gate_rate": 0.1}, "one of them"),
    ({"gate_temperature": 0}, "correction_temperature"),
)
# ... and of these any on a model that is not.
ANY_GATE = (
    *("gate_tau", "gate_rate", "correction_temperature", "gate_temperature", "gate_trace"),
    "gate_other",
)

# What does not go with a gate though it goes without one.
NOT_GATED: tuple[tuple[str, dict[str, Any], str], ...] = (
    (CHAT, {"use_beam_search": True, "n": 2, "temperature": 0}, "beam"),
    (COMPLETIONS, {"use_beam_search": True, "n": 2, "temperature": 0}, "beam"),
)

# Values of vLLM's own arguments that it refuses on any model, naming the argument...
OF_CHATS: dict[str, tuple[Any, ...]] = {
    "temperature": ("hot", -1, NAN),
    "top_p": (0, 1.5),
    "top_k": (-2, "all"),
    "min_p": (2,),
    "presence_penalty": (9,),
    "repetition_penalty": (0, INFINITY),
    "max_tokens": (0, -5, "many", 10**9),
    "seed": (2**80, "x"),
    "stop": ([""], 7),
    "stop_token_ids": (["x"],),
    "logit_bias": ({"x": 1}, {str(10**9): 1}),
    "allowed_token_ids": ([], [10**9]),
    "bad_words": ([""],),
    "stream": ("maybe",),
    "cache_salt": ("",),
    "vllm_xargs": (7, {"x": {"y": 1}}),
    "tools": ([],),
    "response_format": ({"type": "poem"},),
    "messages": ("hello", [{"role": "user"}, 7]),
}
OF_COMPLETIONS: dict[str, tuple[Any, ...]] = {
    "logprobs": (-7, 10**6),
    "suffix": ("end",),
    "prompt": ([], [[]], {"x": 1}),
    "prompt_embeds": ("AAAA",),
}
# ... and others. An empty word: the message names no field of ours.
VALUES: tuple[tuple[str, dict[str, Any], str], ...] = (
    *((CHAT, {name: one}, name) for name, values in OF_CHATS.items() for one in values),
    *((COMPLETIONS, {name: x}, name) for name, values in OF_COMPLETIONS.items() for x in values),
    (CHAT, {"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    (CHAT, {"n": 0}, "n must"),
    (CHAT, {"n": 10**6}, "n must"),
    (CHAT, {"n": 2, "temperature": 0}, "n must"),
    (CHAT, {"top_logprobs": 3}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 10**6}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": "x"}, "logprobs"),
    (COMPLETIONS, {"use_beam_search": True, "stream": True}, "beam"),
    (CHAT, {"stream_options": {"include_usage": True}}, "tream"),
    (CHAT, {"vllm_xargs": {"x": 2**70}}, "x"),
    (CHAT, {"chat_template": "{{ 7 * 7 }}"}, "chat template"),
    (CHAT, {"tool_choice": "required"}, "tool"),
    (CHAT, {"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
    (CHAT, {"structured_outputs": {"regex": "["}}, ""),
    (CHAT, {"structured_outputs": {"choice": []}}, "hoice"),
    (CHAT, {"structured_outputs": {"json": "{"}}, ""),
    (CHAT, {"structured_outputs": {"grammar": "root ::= ("}}, ""),
    (CHAT, {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured"),
    (CHAT, {"messages": []}, "message"),
    (COMPLETIONS, {"prompt": [10**9]}, ""),
    (COMPLETIONS, {"prompt": [-1]}, ""),
    (RESPONSES, {"input": 7}, "input"),
    (RESPONSES, {"background": True}, "background"),
)
BODIES = (
    *(b"{", b"", b"[]", b'"x"', b"7", b"null", b"\xff\xfe", b'{"model": 7}', b"[" * 10_000),
    b'{"model": ' + b"9" * 5_000 + b"}",
)
NAMES = (
    *("nobody", "../{}", "{}/", "{}\x00", " {}", "{}:gated:gated", "{}:", "{}:GATED", ":gated"),
    *("{}@0123456789ab", "/etc/passwd", "..", ".", "%2e%2e%2f{}", "*", "{}\n", "😀", "x" * 10_000),
    *("{}/../x", "~root", "$(id)", ".tmp-x", "../../:gated", "/:gated"),
)


def _asked(path: str, model: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model}
    if path == CHAT:
        return body | {"messages": MESSAGES, "max_tokens": 4}
    if path == COMPLETIONS:
        return body | {"prompt": "3 + 4", "max_tokens": 4}
    return body | {"input": "3 + 4", "max_output_tokens": 4}


def _model(random: Random, target: Target) -> str:
    return random.choice((target.base, *target.adapters, *target.gated))


def gate_argument(random: Random, target: Target) -> Bad:
    """An argument of the gate that does not fit."""
    path = random.choice((CHAT, COMPLETIONS, RESPONSES))
    arguments, word = random.choice(GATE)
    model = random.choice(target.gated)
    return path, _asked(path, model) | {"vllm_xargs": arguments}, word


def gate_elsewhere(random: Random, target: Target) -> Bad:
    """An argument of the gate to a model without one."""
    path = random.choice((CHAT, COMPLETIONS, RESPONSES))
    name = random.choice(ANY_GATE)
    model = random.choice((target.base, *target.adapters))
    return path, _asked(path, model) | {"vllm_xargs": {name: 1}}, name


def not_gated(random: Random, target: Target) -> Bad:
    """A feature that does not go with the gate."""
    path, more, word = random.choice(NOT_GATED)
    return path, _asked(path, random.choice(target.gated)) | more, word


def value(random: Random, target: Target) -> Bad:
    """A value vLLM refuses."""
    path, more, word = random.choice(VALUES)
    return path, _asked(path, _model(random, target)) | more, word


def name(random: Random, target: Target) -> Bad:
    """A model that is not there, or a path in its place."""
    path = random.choice((CHAT, COMPLETIONS, RESPONSES))
    known = random.choice((target.base, *target.adapters))
    gated = [name.partition(":")[0] for name in target.gated]
    without = [f"{name}:gated" for name in (target.base, *target.adapters) if name not in gated]
    return path, _asked(path, random.choice((*NAMES, *without)).format(known)), ""


def length(random: Random, target: Target) -> Bad:
    """A prompt that leaves no room for an answer."""
    more = random.choice((0, 1, 100, 10 * target.length))
    ids = [random.choice(target.ids) for _ in range(target.length + more)]
    word = "length" if more else "max_tokens"
    return COMPLETIONS, _asked(COMPLETIONS, _model(random, target)) | {"prompt": ids}, word


def body(random: Random, _: Target) -> Bad:
    """Bytes that are no request."""
    return random.choice((CHAT, COMPLETIONS, RESPONSES)), random.choice(BODIES), ""


OF_GATED: tuple[tuple[str, Make], ...] = (
    ("gate argument", gate_argument),
    ("with the gate", not_gated),
)
OF_ANY: tuple[tuple[str, Make], ...] = (
    ("gate elsewhere", gate_elsewhere),
    ("value", value),
    ("value", value),
    ("model", name),
    ("length", length),
    ("body", body),
)


def refusals(target: Target) -> tuple[tuple[str, Make], ...]:
    """The kinds that can be asked of this server; one that stands twice is asked twice as often."""
    return (*OF_GATED, *OF_ANY) if target.gated else OF_ANY
