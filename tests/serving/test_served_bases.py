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
from preloaded import Command
from quantised import FORMS, quantise
from test_gate_exact import World
from wrapped import WRAPPERS, wrap

from adapters.adapter import AdapterError
from adapters.base_checkpoint import BaseCheckpoint
from adapters.exchange import import_adapter
from adapters.store import Store

TOKENS = 16
TAU = 1.0  # nats
# Form -> (the engine's data type, largest difference of a log-probability in nats).
RUN = {
    "gptq": ("float16", 0.05),
    "awq": ("float16", 0.05),
    "compressed-tensors int4": ("float32", 0.05),
    "compressed-tensors int8": ("float32", 0.1),
    "fp8": ("float16", 0.3),
}


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


def asked() -> Iterator[Asked]:
    """The base, the adapter always-on, and the adapter behind the gate."""
    for number, prompt in enumerate(prompts(10, 20, seed=4)):
        yield Asked(prompt, "theirs", None, TOKENS)
        yield Asked(prompt, "theirs", TAU, TOKENS)
        if number < 3:
            yield Asked(prompt, None, None, TOKENS)


def differences(
    case: Case, store: Store, engine: Command, **options: Any
) -> Iterator[tuple[Asked, dict[str, Any], list[Forced]]]:
    """Each request, what the engine answered, and what the reference finds at its tokens."""
    reference = Reference(case.plain, {"theirs": case.adapter})
    world = World(case.base, {"theirs": case.imported(store)}, reference, engine)
    requests = [one._asdict() | {"logprobs": 1} for one in asked()]
    settings = {"enable_prefix_caching": False, "enforce_eager": True, **options}
    (result,) = world.run({"engine": settings, "waves": [requests]})
    for one, got in zip(asked(), result["results"], strict=True):
        yield one, got, reference.force(one, got["tokens"])


@pytest.mark.parametrize("form", RUN)
def test_a_quantised_base_serves_what_peft_computes(
    form: str, unquantised: Path, engine: Command, tmp_path: Path
) -> None:
    dtype, tolerance = RUN[form]
    exact = quantise(unquantised, form, tmp_path / "base")
    case = Case(tmp_path / "base", exact, adapter_of(exact, tmp_path / "lora"))
    gated, worst = 0, 0.0
    for one, got, forced in differences(case, Store(tmp_path / "store"), engine, dtype=dtype):
        unsure = sum(one.tau is not None and abs(at.entropy - one.tau) < tolerance for at in forced)
        opened = sum(at.gated for at in forced)
        if one.tau is not None:
            assert abs(got["gated"] - opened) <= unsure
            gated += got["gated"]
        if one.tau is not None and got["gated"] != opened:
            continue  # a token within a hair of tau, which half precision moves across
        apart = [abs(at.logprob - said) for at, said in zip(forced, got["logprobs"], strict=True)]
        worst = max([worst, *apart])
    print(f"{form}: {gated} gated tokens, largest difference {worst:.1e}")
    assert worst < tolerance
    assert gated > 30


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_language_model_inside_a_vision_language_one(
    wrapper: str, engine: Command, tmp_path: Path
) -> None:
    plain = make_model(WRAPPERS[wrapper].text, tmp_path / "plain")
    base = wrap(plain, wrapper, tmp_path / "base")
    case = Case(base, plain, adapter_of(plain, tmp_path / "lora"))
    gated, worst = 0, 0.0
    for one, got, forced in differences(
        case, Store(tmp_path / "store"), engine, language_model_only=True
    ):
        apart = [abs(at.logprob - said) for at, said in zip(forced, got["logprobs"], strict=True)]
        worst = max([worst, *apart])
        if one.tau is not None:
            assert got["gated"] == sum(at.gated for at in forced)
            gated += got["gated"]
    print(f"{wrapper}: {gated} gated tokens, largest difference {worst:.1e}")
    assert worst < 1e-4
    assert gated > 30


@pytest.mark.parametrize("form", sorted(set(FORMS) - set(RUN)))
def test_where_the_engine_cannot_run_the_base_its_adapters_are_still_checked(
    form: str, unquantised: Path, tmp_path: Path
) -> None:
    exact = quantise(unquantised, form, tmp_path / "base")
    case = Case(tmp_path / "base", exact, adapter_of(exact, tmp_path / "lora"))
    case.imported(Store(tmp_path / "store"))
    base = BaseCheckpoint.open(str(case.base))
    other = make_model("llama", tmp_path / "other")  # its keys and values have other shapes
    with pytest.raises(AdapterError, match="made for a"):
        import_adapter(
            *(Store(tmp_path / "other-store"), str(adapter_of(other, tmp_path / "wrong")), "wrong"),
            base=base,
            family="tiny",
        )
