"""Adapters on quantised bases, and on language models inside vision-language ones.

The reference is PEFT on the plain model that the base is worth: with the de-quantised weights
(quantised.py), or without the vision tower (wrapped.py). docs/adapters-from-elsewhere.md has the
table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gate_models import ATTENTION, MLP, make_model, prompts
from gate_reference import Asked, Forced, Reference
from origins import lora
from quantised import FORMS, quantise
from test_gate_exact import World
from wrapped import TEXT, wrap

from adapters.adapter import AdapterError
from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.store import Store
from loadtests.preloaded import Command

TOKENS = 16
TAU = 1.0  # nats
TOLERANCE = 0.05  # nats, in half precision, the only one that vLLM has for these on a CPU
# vLLM's CPU build runs these with LoRA. Of the others it has no kernel (FP8), or its LoRA layers
# find no weight (eight-bit integers).
RUN = ("gptq", "awq", "compressed-tensors int4")


class Case(NamedTuple):
    """An adapter in a store, its base, and the plain model and the folder to compare with."""

    base: Path
    plain: Path
    adapter: Path  # PEFT's own folder

    def imported(self, store: Store) -> Path:
        """The adapter's version in `store`, checked against the base."""
        base = BaseCheckpoint.open(str(self.base))
        import_adapter(store, str(self.adapter), "theirs", base=base, family="tiny")
        assert not store.listing(base, max_rank=16).refused
        return store.path(store.resolve("theirs"))


def adapter_of(plain: Path, folder: Path) -> Path:
    """A LoRA on every projection of the plain model, as PEFT saves it."""
    return lora(plain, folder, target_modules=[*ATTENTION, *MLP])


@pytest.fixture(scope="module")
def unquantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3", tmp_path_factory.mktemp("unquantised") / "base")


def quantised_case(unquantised: Path, form: str, folder: Path) -> Case:
    """A base in this form, and an adapter of what it is worth."""
    base = folder / form.replace(" ", "-")
    exact = quantise(unquantised, form, base)
    return Case(base, exact, adapter_of(exact, folder / "lora"))


def asked() -> Iterator[Asked]:
    """The base, the adapter always-on, and the adapter behind the gate."""
    for number, prompt in enumerate(prompts(10, 20, seed=4)):
        yield Asked(prompt, "theirs", None, TOKENS)
        yield Asked(prompt, "theirs", TAU, TOKENS)
        if number < 3:
            yield Asked(prompt, None, None, TOKENS)


def compare(case: Case, store: Store, engine: Command, tolerance: float, **options: Any) -> None:
    """Ask the engine, and force its answers through the reference: they must agree."""
    reference = Reference(case.plain, {"theirs": case.adapter})
    world = World(case.base, {"theirs": case.imported(store)}, reference, engine)
    requests = [one._asdict() | {"logprobs": 1} for one in asked()]
    settings = {"enable_prefix_caching": False, "enforce_eager": True, **options}
    (result,) = world.run({"engine": settings, "waves": [requests]})
    gated = 0  # tokens
    worst = 0.0  # difference of a log-probability from the reference's, in nats
    effect = 0.0  # largest difference that leaving the adapter out would make
    for one, got in zip(asked(), result["results"], strict=True):
        forced = reference.force(one, got["tokens"])
        if one.tau is not None:
            gated += got["gated"]
            if got["gated"] != sum(at.gated for at in forced):
                # Half precision moved a token across tau, which must have been within a hair of it.
                assert any(abs(at.entropy - one.tau) < tolerance for at in forced)
                continue
        worst = max([worst, *apart(forced, got["logprobs"])])
        without = reference.force(one._replace(adapter=None, tau=None), got["tokens"])
        effect = max([effect, *apart(without, got["logprobs"])])
    print(f"{case.base.name}: {gated} gated tokens, {worst:.1e} apart, adapter {effect:.1f}")
    assert worst < tolerance
    assert gated > 30
    assert effect > 1


def apart(forced: list[Forced], logprobs: list[float]) -> list[float]:
    """Differences of log-probabilities, token by token."""
    return [abs(at.logprob - said) for at, said in zip(forced, logprobs, strict=True)]


@pytest.mark.parametrize("form", RUN)
def test_a_quantised_base_serves_what_peft_computes(
    form: str, unquantised: Path, engine: Command, tmp_path: Path
) -> None:
    case = quantised_case(unquantised, form, tmp_path)
    compare(case, Store(tmp_path / "store"), engine, TOLERANCE, dtype="float16")


def test_a_language_model_inside_a_vision_language_one(engine: Command, tmp_path: Path) -> None:
    plain = make_model(TEXT, tmp_path / "plain")
    base = wrap(plain, tmp_path / "wrapped")
    case = Case(base, plain, adapter_of(plain, tmp_path / "lora"))
    compare(case, Store(tmp_path / "store"), engine, 1e-4, language_model_only=True)


@pytest.mark.parametrize("form", sorted(set(FORMS) - set(RUN)))
def test_where_the_engine_cannot_run_the_base_its_adapters_are_still_checked(
    form: str, unquantised: Path, tmp_path: Path
) -> None:
    case = quantised_case(unquantised, form, tmp_path)
    case.imported(Store(tmp_path / "store"))
    other = make_model("llama", tmp_path / "other")  # its keys and values have other shapes
    with pytest.raises(AdapterError, match="made for a"):
        import_adapter(
            *(Store(tmp_path / "other-store"), str(adapter_of(other, tmp_path / "wrong")), "wrong"),
            base=BaseCheckpoint.open(str(case.base)),
            family="tiny",
        )
