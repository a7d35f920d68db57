"""KV connectors carry the base's cache to gated requests, and theirs to others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gate_models import prompts
from gate_reference import Asked
from test_gate_exact import CRAMPED, PLAIN, World, assert_exact, job, mixed, next_turns

BLOCK = 32


def through(folder: Path, role: str, name: str = "TellingConnector") -> dict[str, Any]:
    """Engine arguments of an instance that keeps prompts in `folder`."""
    connector = {
        "kv_connector": name,
        "kv_connector_module_path": "kv_connectors",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    return PLAIN | {"kv_transfer_config": connector}


def prefilled(world: World, folder: Path) -> list[Asked]:
    """Requests whose prompts an instance of stock vLLM, without adapters, has put into `folder`."""
    adapters, taus = (None, "one", "attention", "mlp", "all"), (0.0, 1.0, 2.0)
    asked = [
        Asked(prompt[: 36 + index], adapters[index % 5], taus[index % 3], 20)
        for index, prompt in enumerate(prompts(24, 60, seed=95))
    ]
    prefill = [Asked(one.prompt, None, None, 1)._asdict() for one in asked]
    world.run({"engine": through(folder, "kv_producer"), "waves": [prefill], "gate": False})
    return [one if one.adapter else one._replace(tau=None) for one in asked]


def test_prefill_on_an_instance_that_knows_no_adapter(here: World, tmp_path: Path) -> None:
    decode = prefilled(here, tmp_path)
    # Two processes of their own, with adapters; the second loses what it loads first.
    (result,) = here.run(job(here, [decode], through(tmp_path, "kv_consumer")))
    failing = through(tmp_path, "kv_consumer", "FailingConnector")
    (lost,) = here.run(job(here, [decode], failing))
    for one in (result, lost):
        assert_exact(here, [decode], one)
    assert lost["steps"] > result["steps"]
    loaded = [(len(a.prompt) - 2) // BLOCK * BLOCK for a in decode]
    assert [got["cached"] for got in result["results"]] == loaded
    assert min(loaded) == BLOCK
    assert result["counted"][1] > 100
    # The connector's own answer comes through beside the gate's report; it sees base requests.
    for asked, got in zip(decode, result["results"], strict=True):
        tokens = len(asked.prompt) + len(got["tokens"]) - 1
        assert got["params"] == {"blocks": -(-tokens // BLOCK), "adapter": None}


def test_what_gated_requests_wrote_is_offloaded_as_the_bases(here: World) -> None:
    first = mixed(96)
    turns = [first, next_turns(here, first, 96)]
    connector = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "spec_name": "HostSpec",
            "spec_module_path": "kv_connectors",
            "cpu_bytes_to_use": 2**25,
            "offload_prompt_only": False,  # answers and their decision points, too
        },
    }
    without, offloaded = here.run(
        job(here, turns, CRAMPED), job(here, turns, CRAMPED | {"kv_transfer_config": connector})
    )
    assert_exact(here, turns, offloaded)
    assert offloaded["preempted"] > 0
    cached = [sum(got["cached"] for got in result["results"]) for result in (without, offloaded)]
    assert cached[1] > 2 * cached[0], "little was loaded from the host"
