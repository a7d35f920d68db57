"""Requests of hostile users: the refusals of the soak, and bodies far too large."""

from __future__ import annotations

import json
from random import Random

from loadtests.refusals import CHAT, COMPLETIONS, refusals
from loadtests.traffic import Ask, World

MEGABYTE = 2**20
HUGE = 0.04  # share of them that are huge


def huge(random: Random, world: World) -> tuple[str, bytes]:
    """(path, body) of megabytes: a long text, many messages, many ids, or bytes of nothing."""
    model = random.choice((world.base, *world.adapters, *world.gated))
    kind = random.randrange(4)
    if kind == 0:
        text = "12 + " * (MEGABYTE // 2)
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return CHAT, json.dumps(body).encode()
    if kind == 1:
        body = {"model": model, "messages": [{"role": "user", "content": "1 + 2"}] * 20_000}
        return CHAT, json.dumps(body).encode()
    if kind == 2:
        return COMPLETIONS, json.dumps({"model": model, "prompt": [5] * 500_000}).encode()
    return CHAT, b"{" + b'"a": ' * (MEGABYTE // 2)


def bad_request(random: Random, world: World) -> Ask:
    """One that must be refused."""
    if random.random() < HUGE:
        path, content = huge(random, world)
        return Ask(0, "huge", path, content, refusal="")
    kind, make = random.choice(refusals(world))
    path, body, word = make(random, world)
    return Ask(0, kind, path, body, refusal=word)
