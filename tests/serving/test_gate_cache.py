"""Base and gated turns of a conversation share one cache, over prompts and answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gate_models import prompts
from gate_reference import Asked
from test_gate_exact import ROOMY, World, assert_exact, job
from vllm.lora.request import LoRARequest
from vllm.v1.core.block_pool import BlockPool

from vllm_gate.scheduler import _tell_as_the_bases

BLOCK = 32
Turn = tuple[str | None, float | None]  # (adapter, tau); tau None: always-on, or the base
BASE: Turn = (None, None)
TURNS: tuple[Turn, ...] = (
    BASE,
    ("attention", 1.0),
    ("all", 0.5),  # an adapter swapped, or an alias moved, in mid-conversation
    BASE,
    ("attention", 1.0),
    ("all", None),  # always-on: nobody else's cache, and for nobody else
    ("all", 0.5),
    ("all", None),
    BASE,
)


def conversation(world: World, turns: tuple[Turn, ...] = TURNS) -> list[Asked]:
    """Each turn's prompt is all that was said before, and a few tokens more."""
    asked: list[Asked] = []
    history: list[int] = []
    for (adapter, tau), said in zip(turns, prompts(len(turns), 40, seed=90), strict=True):
        history += said if not asked else said[:5]
        # A length at which every turn fills a block or more that the next one can find.
        asked.append(Asked(list(history), adapter, tau, 20))
        history += world.reference.decode(asked[-1]).tokens
    return asked


def blocks_to_find(asked: list[Asked], results: list[dict[str, Any]]) -> list[int]:
    """The tokens in full blocks that earlier turns with the same keys and values computed."""
    computed: dict[str | None, int] = {}
    found = []
    for turn, got in zip(asked, results, strict=True):
        keys = turn.adapter if turn.tau is None else None
        found.append(computed.get(keys, 0) // BLOCK * BLOCK)
        # The last token of an answer is not run.
        computed[keys] = len(turn.prompt) + len(got["tokens"]) - 1
    return found


def test_every_full_block_of_prompt_and_answers_is_found(here: World) -> None:
    asked = conversation(here)
    waves = [[turn] for turn in asked]
    (result,) = here.run(job(here, waves, ROOMY | {"max_loras": 2, "max_model_len": 320}))
    assert_exact(here, waves, result)
    wanted = blocks_to_find(asked, result["results"])
    assert [got["cached"] for got in result["results"]] == wanted
    # All but the first turn of the base's keys, and the first of the always-on adapter's.
    first = [turn for turn, tokens in zip(TURNS, wanted, strict=True) if not tokens]
    assert first == [BASE, ("all", None)]
    assert sum(got["gated"] or 0 for got in result["results"]) > 20


def test_a_gated_request_shares_what_it_writes_while_it_runs(here: World) -> None:
    """Another finds the blocks of its answer before it has ended, decision points included."""
    first = Asked(prompts(1, 30, seed=91)[0], "all", 0.0, 60)  # a replay at every position
    answer = here.reference.decode(first).tokens
    assert len(answer) > 40
    follower = Asked(first.prompt + answer[:35] + [7, 8], None, None, 10)
    given = job(here, [[first, follower]], ROOMY)
    given["hold"] = {"1": [0, 40]}  # until request 0 has said so many tokens
    (result,) = here.run(given)
    assert_exact(here, [[first, follower]], result)
    one, other = result["results"]
    assert one["gated"] == len(one["tokens"])
    assert other["cached"] == 64


def test_events_tell_of_a_gated_requests_blocks_as_the_bases() -> None:
    """As they arise while the scheduler counts LoRA slots, when the request names its adapter."""
    pool = BlockPool(4, True, BLOCK, enable_kv_cache_events=True)
    _tell_as_the_bases(pool, {"gated"})

    def event(name: str, lora: LoRARequest | None, salt: str | None) -> Any:
        request: Any = SimpleNamespace(
            request_id=name,
            lora_request=lora,
            cache_salt=salt,
            all_token_ids=[*range(BLOCK)],
            block_hashes=[b"0" * 32],
            mm_features=[],
            prompt_embeds=None,
            session_id=None,
        )
        pool.emit_cached_block_events(request, 1, BLOCK, 0)
        return pool.kv_event_queue.pop()

    lora = LoRARequest("math@0", 1, "/math")
    for salt in (None, "salt"):
        assert event("gated", lora, salt) == event("base", None, salt)
    assert event("always", lora, None).lora_name == "math@0"
