"""Adapters of any origin are served as PEFT computes them, always-on and gated, to 1e-4.

The table of docs/adapters-from-elsewhere.md says so; the refused ones are in
tests/adapters/test_origins.py.
"""

from __future__ import annotations

from pathlib import Path

from gate_models import make_model, prompts
from gate_reference import Asked, Reference
from origins import make_all
from test_gate_exact import World

from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.store import Store
from loadtests.preloaded import Command

TOLERANCE = 1e-4  # nats
ENGINE = {"enable_prefix_caching": False, "enforce_eager": True, "max_loras": 8}
TOKENS = 16


def short(name: str) -> str:
    """A store's name for an origin."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def test_what_is_served_is_what_peft_computes(engine: Command, tmp_path: Path) -> None:
    model = make_model("qwen3", tmp_path / "base", tied=True)
    base = BaseCheckpoint.open(str(model))
    made = make_all(model, tmp_path / "made")
    store = Store(tmp_path / "store")
    for name, origin in made.items():
        import_adapter(store, str(origin.folder), short(name), base=base)
    assert not store.listing(base, max_rank=16).refused

    served = {name: store.path(store.resolve(short(name))) for name in made}
    reference = Reference(model, {name: origin.judge for name, origin in made.items()})
    world = World(model, served, reference, engine)
    asked = [
        Asked(prompt, name, tau, TOKENS)
        for name, prompt in zip(made, prompts(len(made), 20, seed=4), strict=True)
        for tau in (None, 1.0)
    ]
    requests = [world.request(one) | {"logprobs": 1} for one in asked]
    (result,) = world.run({"engine": ENGINE, "waves": [requests]})

    bad, gated, worst = [], 0, 0.0
    for one, got in zip(asked, result["results"], strict=True):
        wanted = reference.decode(one)
        apart = [abs(a - b) for a, b in zip(got["logprobs"], wanted.logprobs, strict=False)]
        gated += got["gated"] or 0
        worst = max([worst, *apart])
        if not wanted.tokens:
            continue  # a tie at the first token
        if got["tokens"] != wanted.tokens or max(apart) > TOLERANCE:
            bad.append(f"{one.adapter} {one.tau}: {got['tokens']} for {wanted.tokens}, {apart}")
        if one.tau is not None and got["gated"] != len(wanted.points):
            bad.append(f"{one.adapter}: {got['gated']} decision points, not {len(wanted.points)}")
    print(f"{len(asked)} cases, {gated} gated tokens, largest difference {worst:.1e}")
    assert not bad, "\n".join(bad)
    assert gated > 3 * len(made)
