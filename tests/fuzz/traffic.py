"""Random requests, good and bad, each with what must come of it.

Request number N of a seed is the same in every run, whatever the server did before: what went wrong
can be asked again alone (`python -m tests.fuzz --only N`). Good requests draw their features
independently, as far as vLLM takes them together; refusals.py holds the bad ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.fuzz.refusals import refusals

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
NEVER = 1e9  # nats: no vocabulary has that much entropy, the gate stays shut
SUFFIX = ":gated"

# Shares of all traffic. The rest are good requests that are read to the end.
BAD, OTHER, WITNESS, HANG_UP = 0.15, 0.03, 0.12, 0.15

QUESTION = "What is {} {} {} {} {}? Say each step, then the result. "
GRAMMAR = 'root ::= [0-9] [0-9]? " + " [0-9] [0-9]?'
GRAMMAR_AS_REGEX = r"[0-9]{1,2} \+ [0-9]{1,2}"
REGEX = "[0-9]{2,4}"
CHOICES = ["1 + 1", "2 - 2", "2 - 21"]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "report",
        "description": "Says the result.",
        "parameters": SCHEMA,
        "strict": True,  # else vLLM lets the arguments be any JSON
    },
}


@dataclass(frozen=True)
class Target:
    """What requests can be about: the server's models and how it counts tokens."""

    base: str
    adapters: tuple[str, ...]  # at every step
    gated: tuple[str, ...]  # at decision points
    by_rate: tuple[str, ...]  # those of `gated` that have a calibration
    length: int  # tokens of prompt and answer together, at most
    ids: tuple[int, ...]  # at least `length` of them: a text in the server's tokens
    overhead: int  # tokens that the chat template adds to a message
    tools: bool  # whether it was started with a parser for them
    bias: bool = True  # whether it takes logit_bias and min_p: not with speculative decoding

    def models(self, mode: str) -> tuple[str, ...]:
        """The names of a mode: base, always or gated."""
        return {"base": (self.base,), "always": self.adapters, "gated": self.gated}[mode]


@dataclass(frozen=True)
class Case:
    """One request, and what must come of it."""

    number: int
    kind: str  # its row of the report
    path: str
    body: dict[str, Any] | bytes | None  # None: a GET
    mode: str = ""  # base, always, gated; empty where no model answers
    refusal: str | None = None  # it must be refused, and the message must hold this
    hang_up: float | None = None  # leaves after so many events of the stream, or else seconds
    features: tuple[str, ...] = ()
    witness: int | None = None  # must be answered as this witness was when the server was idle

    @property
    def content(self) -> bytes | None:
        """The body as it is sent; Python's NaN and Infinity go out as such."""
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()

    @property
    def streams(self) -> bool:
        """Whether the answer comes as events."""
        return isinstance(self.body, dict) and self.body.get("stream") is True


def question(random: Random) -> str:
    """A problem like those the miniature was made for; other models take it as well."""
    numbers = [random.randint(1, 30) for _ in range(3)]
    signs = [random.choice("+-*") for _ in range(2)]
    return QUESTION.format(numbers[0], signs[0], numbers[1], signs[1], numbers[2])


@dataclass
class Draft:
    """A good request under construction."""

    random: Random
    target: Target
    mode: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)

    def chance(self, share: float, feature: str) -> bool:
        """True in `share` of all cases, and then `feature` is noted."""
        taken = self.random.random() < share
        if taken:
            self.features.append(feature)
        return taken

    def prompt(self) -> None:
        """A prompt, and a max_tokens that leaves room for it.

        Lengths are known without a tokenizer: completions are asked by token ids, and a message of
        n ASCII characters is at most n tokens.
        """
        random, length = self.random, self.target.length
        tokens = random.choice((1, random.randint(2, 16), random.randint(16, length // 4)))
        room = length - tokens - self.target.overhead
        if self.chance(0.08, "long prompt"):
            size = room - random.randint(0, min(16, room - 1))
        elif self.chance(0.3, "shared prompt"):
            size = 0  # a prefix that others have too, and an end of its own
        else:
            size = random.randint(1, min(48, room))
        which = random.randrange(4)
        if self.path == COMPLETIONS:
            start = random.randrange(len(self.target.ids))
            turned = self.target.ids[start:] + self.target.ids[:start]
            prefix = self.target.ids[which * 7 :][: length // 3]
            self.body["prompt"] = list(turned[:size] if size else prefix + turned[:8])
            if self.chance(0.1, "several prompts"):
                self.body["prompt"] = [self.body["prompt"], list(turned[:5])]
        else:
            text = question(random)
            text = (text * (size // len(text) + 1))[:size] if size else f"{SHARED[which]}{text}"
            self.body["messages"] = [{"role": "user", "content": text[:room]}]
        self.body["max_tokens"] = tokens
        if tokens == 1:
            self.features.append("max_tokens 1")

    def sampling(self) -> None:
        """Temperature and its like, or greedy."""
        random, body = self.random, self.body
        body["temperature"] = 0 if self.chance(0.25, "greedy") else random.uniform(0.1, 1.5)
        sampled = body["temperature"] > 0
        for name, share, value in (
            ("top_p", 0.2, random.uniform(0.1, 1)),
            ("top_k", 0.2, random.randint(1, 40)),
            ("min_p", 0.1, random.uniform(0, 0.3)),
            ("seed", 0.3, random.getrandbits(40)),
            ("n", 0.15, random.randint(2, 4)),
        ):
            if sampled and self.chance(share, name) and (self.target.bias or name != "min_p"):
                body[name] = value
        for name in ("presence_penalty", "frequency_penalty"):
            if self.chance(0.1, "penalties"):
                body[name] = random.uniform(-2, 2)
        if self.chance(0.05, "penalties"):
            body["repetition_penalty"] = random.uniform(0.5, 2)
        if self.target.bias and self.chance(0.1, "logit_bias"):
            ids = self.target.ids
            bias = {str(random.choice(ids)): random.uniform(-100, 100) for _ in range(3)}
            body["logit_bias"] = bias

    def ending(self) -> None:
        """When to stop; not where a grammar decides it."""
        random, body = self.random, self.body
        if self.chance(0.15, "stop"):
            body["stop"] = random.sample(["1", "=", " ", "is", "\n"], random.randint(1, 3))
        if self.chance(0.1, "stop_token_ids"):
            body["stop_token_ids"] = random.sample(self.target.ids, 3)
        if self.chance(0.2, "ignore_eos"):
            body["ignore_eos"] = True
        if self.chance(0.1, "min_tokens"):
            body["min_tokens"] = random.randint(1, body["max_tokens"])
        if self.chance(0.05, "bad_words"):
            body["bad_words"] = ["7", "is"]
        if self.chance(0.05, "allowed_token_ids"):
            body["allowed_token_ids"] = sorted(set(random.sample(self.target.ids, 40)))

    def structure(self) -> bool:
        """A form for the answer, in some requests. Returns whether there is one."""
        if not self.chance(0.2, "structured"):
            return False
        kind = self.random.choice(("regex", "choice", "grammar", "json", "json_schema"))
        if kind == "json_schema":
            schema = {"name": "result", "schema": SCHEMA, "strict": True}
            self.body["response_format"] = {"type": kind, kind: schema}
        else:
            forms = {"regex": REGEX, "choice": CHOICES, "grammar": GRAMMAR, "json": SCHEMA}
            self.body["structured_outputs"] = {kind: forms[kind]}
        return True

    def telling(self) -> None:
        """What the answer is to say besides its text."""
        random, body = self.random, self.body
        if self.path == CHAT:
            if self.chance(0.25, "logprobs"):
                body |= {"logprobs": True, "top_logprobs": random.randint(0, 20)}
        elif self.chance(0.25, "logprobs"):
            body["logprobs"] = random.randint(0, 20)
        elif self.chance(0.1, "echo"):
            body["echo"] = True
        if self.chance(0.2, "token ids"):
            body["return_token_ids"] = True

    def tools(self) -> bool:
        """A tool that must be called, in some requests. Returns whether there is one."""
        if self.path != CHAT or not self.target.tools or not self.chance(0.08, "tools"):
            return False
        named = {"type": "function", "function": {"name": TOOL["function"]["name"]}}
        self.body |= {"tools": [TOOL], "tool_choice": self.random.choice(("required", named))}
        return True

    def gate(self) -> None:
        """The gate's arguments."""
        random, arguments = self.random, {}
        if self.chance(0.6, "gate_tau"):
            tau = random.choice((0, random.uniform(0, 2), random.uniform(0, 0.3), NEVER))
            arguments["gate_tau"] = tau
        elif self.body["model"] in self.target.by_rate and self.chance(0.5, "gate_rate"):
            arguments["gate_rate"] = random.choice((0, 1, random.uniform(0.05, 0.5)))
        if self.chance(0.4, "gate_trace"):
            arguments["gate_trace"] = 1
        if self.chance(0.2, "correction_temperature"):
            arguments["correction_temperature"] = random.choice((1, random.uniform(0.05, 2)))
        if arguments:
            self.body["vllm_xargs"] = arguments

    def stream(self) -> None:
        """Events, in half of all requests."""
        if self.chance(0.5, "stream"):
            self.body["stream"] = True
            if self.random.random() < 0.7:
                every = self.random.random() < 0.3
                options = {"include_usage": True, "continuous_usage_stats": every}
                self.body["stream_options"] = options


SHARED = tuple(question(Random(which)) * 3 for which in range(4))


def _good(random: Random, target: Target) -> Draft:
    mode = random.choices(("base", "always", "gated"), (2, 2, 4))[0]
    if not target.models(mode):
        mode = "base"
    path = random.choices((CHAT, COMPLETIONS, RESPONSES), (10, 9, 1))[0]
    draft = Draft(random, target, mode, path, {"model": random.choice(target.models(mode))})
    draft.prompt()
    if path == RESPONSES:
        (message,) = draft.body.pop("messages")
        draft.body |= {"input": message["content"], "temperature": random.uniform(0, 1.5)}
        draft.body["max_output_tokens"] = draft.body.pop("max_tokens")
    elif mode != "gated" and draft.chance(0.03, "beam search"):
        draft.body |= {"use_beam_search": True, "n": 2, "temperature": 0}
        draft.body["max_tokens"] = min(draft.body["max_tokens"], 8)
        return draft  # vLLM streams no beams
    else:
        draft.sampling()
        if not draft.tools() and not draft.structure():
            draft.ending()
            draft.telling()
    if mode == "gated":
        draft.gate()
    draft.stream()
    return draft


def draw(seed: int, number: int, target: Target, witnesses: int) -> Case:
    """Request `number` of `seed`; `witnesses` is how many there are to ask again."""
    random = Random(f"{seed}:{number}")
    share = random.random()
    if share < BAD:
        return _bad(random, number, target)
    if share < BAD + OTHER:
        path = random.choice(("/v1/models", "/metrics", "/health", "/tokenize"))
        body = {"model": target.base, "prompt": question(random)} if path == "/tokenize" else None
        return Case(number, "other", path, body)
    if share < BAD + OTHER + WITNESS and witnesses:
        return Case(number, "witness", COMPLETIONS, None, witness=random.randrange(witnesses))
    draft = _good(random, target)
    hang_up: float | None = None
    if random.random() < HANG_UP:
        hang_up = random.randint(0, 12) if "stream" in draft.features else random.uniform(0, 1)
        draft.features.append("hangs up")
    return Case(
        number,
        f"{draft.path.removeprefix('/v1/')} {draft.mode}",
        draft.path,
        draft.body,
        draft.mode,
        hang_up=hang_up,
        features=tuple(draft.features),
    )


def _bad(random: Random, number: int, target: Target) -> Case:
    kind, make = random.choice(refusals(target))
    path, body, word = make(random, target)
    return Case(number, f"bad {kind}", path, body, refusal=word)


def witness_bodies(target: Target, seed: int) -> list[dict[str, Any]]:
    """Greedy completions whose tokens are known from an idle server, in every mode.

    A request whose gate never opens stands right behind the base's of the same prompt.
    """
    random = Random(seed)
    asked: list[tuple[str, dict[str, Any] | None]] = [(target.base, None)]
    asked += [(name, {"gate_tau": NEVER, "gate_trace": 1}) for name in target.gated[:1]]
    asked += [(name, {"gate_tau": 0.4, "gate_trace": 1}) for name in target.gated]
    asked += [(name, {"gate_tau": 0.05, "gate_trace": 1}) for name in target.gated[:1]]
    asked += [(name, None) for name in target.adapters]
    bodies = []
    for size in (6, 40, target.length // 2, target.length // 2 + 9):
        start = random.randrange(len(target.ids) - size)
        for model, arguments in asked:
            body = {
                "model": model,
                "prompt": list(target.ids[start : start + size]),
                "max_tokens": min(16, target.length // 4),
                "temperature": 0,
                "ignore_eos": True,
                "logprobs": 2,
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
            }
            bodies.append(body | ({"vllm_xargs": arguments} if arguments else {}))
    return bodies
