"""The README.md of an adapter: metadata that the hub accepts, scores as `model-index`, and prose.

    card = model_card(manifest, rank=8, base=BaseFacts("Qwen/Qwen2.5-0.5B", "apache-2.0"))

The licence is the base's own, as its model card names it; where it names none, neither does this
one. `base_model` is a hub id or is left out: a path of some machine means nothing to anybody else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from adapters.manifest import PROMPT, Manifest, Score

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_CACHE = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)", re.ASCII)
_LICENCE = ("license", "license_name", "license_link")
# The hub's words for what was measured; what it has none for keeps its own.
_METRICS = {"pass@1": "pass@1", "boxed_rate": "boxed rate", "gate_rate": "gate rate"}


class BaseFacts(NamedTuple):
    """What a card says of the base."""

    hub_id: str | None = None
    licence: dict[str, Any] = {}  # noqa: RUF012 - license, license_name, license_link


def base_facts(folder: Path, asked: str) -> BaseFacts:
    """Hub id and licence of the base in `folder`, which was asked for as `asked`."""
    return BaseFacts(_hub_id(folder, asked), _licence(folder))


def _hub_id(folder: Path, asked: str) -> str | None:
    """The id under which the hub has the base; None: nobody says."""
    cached = next((_HUB_CACHE.fullmatch(part) for part in folder.parts if "--" in part), None)
    if cached:
        return f"{cached['owner']}/{cached['name']}"
    return asked if HUB_ID.fullmatch(asked) and not os.path.exists(asked) else None


def _licence(folder: Path) -> dict[str, str]:
    metadata = front_matter(folder / "README.md")
    return {key: metadata[key] for key in _LICENCE if isinstance(metadata.get(key), str)}


def front_matter(path: Path) -> dict[str, Any]:
    """The metadata at the head of a model card; empty where there is none."""
    try:
        parts = path.read_text(encoding="utf-8").split("---\n", 2)
        found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def model_card(
    manifest: Manifest,
    rank: int,
    base: BaseFacts,
    *,
    command: str = "",
    libraries: dict[str, str] | None = None,
) -> str:
    """The card of an adapter of ours.

    Args:
        command: with which it was made, for the reader.
        libraries: their versions, for the reader.
    """
    shown = base.hub_id or manifest.base.model
    parts = [
        f"---\n{metadata(manifest, base)}---",
        f"# {manifest.name}",
        f"A LoRA of rank {rank} for `{shown}` ({manifest.base.architecture}), fitted by the\n"
        "ReasonMaxxer method (arXiv 2605.06241): a contrastive loss at the base model's "
        "high-entropy decision\npoints, on its own rollouts, without reinforcement learning.",
    ]
    if manifest.gate:
        parts.append(
            f"Gate: {manifest.gate}; calibrated on {manifest.gate.tokens:,} generated positions."
        )
    if manifest.scores:
        parts.append(_scores(manifest.scores))
    parts.append(_making(manifest, command, libraries or {}))
    return "\n\n".join(parts) + "\n"


def metadata(manifest: Manifest, base: BaseFacts) -> str:
    """The front matter, YAML, as huggingface_hub writes and checks it."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base.hub_id,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "reasonmaxxer", manifest.family],
        model_name=manifest.name,
        eval_results=_results(manifest.scores) or None,
        **base.licence,
    )
    return f"{data.to_yaml()}\n"


def _results(scores: Sequence[Score]) -> list[EvalResult]:
    """The scores as the hub's `model-index` lists them; the base's own are not this model's."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name="Reasoning",
            dataset_type=_slug(score.problems),
            dataset_name=score.problems,
            dataset_config=score.mode,  # else one figure of a benchmark would replace another
            metric_type=_slug(score.metric),
            metric_name=f"{_METRICS.get(score.metric, score.metric)} ({score.mode})",
            metric_value=score.value,
            metric_args={"temperature": score.temperature, "n": score.n},
        )
        for score in scores
        if score.mode != "base"
    ]


def _slug(text: str) -> str:
    """A word that the hub accepts as a type."""
    return re.sub(r"[^\w.@/-]+", "-", text).strip("-/") or "unknown"


def _scores(scores: Sequence[Score]) -> str:
    rows = "\n".join(
        f"| {s.mode} | {s.problems} | {s.metric} | {s.temperature:g} | {s.value:.3f} "
        f"| {'' if s.stderr is None else f'{s.stderr:.3f}'} | {s.n} |"
        for s in scores
    )
    return (
        "## Scores\n\n"
        "Measured on the held-out problems that also chose the checkpoint, so slightly "
        "optimistic.\n\n"
        "| mode | problems | metric | T | value | stderr | n |\n|---|---|---|---|---|---|---|\n"
        f"{rows}"
    )


def _making(manifest: Manifest, command: str, libraries: dict[str, str]) -> str:
    text = "## How it was made\n\n"
    if command:
        text += f"    {command}\n\n"
    text += f"Every setting is in `fit.yaml`; seed {manifest.seed}."
    told = libraries or {k: v for k, v in manifest.made_by.items() if k not in ("command", PROMPT)}
    return text + (f"\n{', '.join(f'{k} {v}' for k, v in told.items())}." if told else "")


def plain_card(name: str, base: BaseFacts, tags: Sequence[str] = ()) -> str:
    """The card of somebody else's adapter that has none."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base.hub_id,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", *tags],
        **base.licence,
    )
    about = f" for `{base.hub_id}`" if base.hub_id else ""
    return f"---\n{data.to_yaml()}\n---\n\n# {name}\n\nA LoRA{about}, in PEFT's format.\n"
