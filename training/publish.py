"""Stage 7, publish: an ordinary PEFT folder, with manifest and model card beside the weights.

Loads with `PeftModel.from_pretrained` and with stock vLLM. The same run gives the same bytes: no
time stamps, and every list in a fixed order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.base import BaseModel
from adapters.files import atomic_directory, sha256_file
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import PROMPT, Base, Gate, Manifest, Score
from adapters.version import CONFIG, WEIGHTS, AdapterVersion
from training.machine import library_versions


def publish(
    output: Path,
    name: str,
    checkpoint: Path,
    base: BaseModel,
    base_reference: str,
    family: str,
    gate: Gate,
    scores: Sequence[Score],
    seed: int,
    settings: str,
    command: str,
    prompt: str,
) -> AdapterVersion:
    """Write the adapter folder `output` in one rename, and read it back through every check.

    Args:
        checkpoint: a PEFT folder.
        base_reference: what `base_model_name_or_path` says: a hub id or a relative path.
        settings: the run's whole configuration, YAML; kept as fit.yaml.
        prompt: SHA-256 of the chat template.
    """
    config = json.loads((checkpoint / CONFIG).read_text())
    config["base_model_name_or_path"] = base_reference
    config["revision"] = base.revision
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set
    with atomic_directory(output) as folder:
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (folder / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes())
        (folder / "fit.yaml").write_text(settings)
        manifest = Manifest(
            name=name,
            family=family,
            base=Base(
                model=base.name,
                revision=base.revision,
                architecture=base.architecture,
                fingerprint=base.fingerprint,
            ),
            gate=gate,
            scores=list(scores),
            seed=seed,
            files={file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS, "fit.yaml")},
            made_by={"command": command, PROMPT: prompt} | library_versions(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        (folder / "README.md").write_text(model_card(manifest, gate, base_reference, config["r"]))
        AdapterVersion.read(folder, name).check_fits(base)
    return AdapterVersion.read(output, name)


def publish_zeros(output: Path, like: Path, name: str, base: BaseModel) -> AdapterVersion:
    """Write an adapter that changes nothing, with the gate of the published folder `like`.

    Behind that gate it shows what the gate alone does: its temperature at decision points.
    """
    manifest = Manifest.read(like)
    assert manifest.gate is not None
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        (checkpoint / CONFIG).write_bytes((like / CONFIG).read_bytes())
        weights = load_file(like / WEIGHTS)
        save_file(
            {key: np.zeros_like(value) for key, value in weights.items()}, checkpoint / WEIGHTS
        )
        reference = json.loads((like / CONFIG).read_text())["base_model_name_or_path"]
        return publish(
            output, name, checkpoint, base, reference, manifest.family, manifest.gate, [],
            manifest.seed, "", *(manifest.made_by.get(key, "") for key in ("command", PROMPT)),
        )  # fmt: skip


def model_card(manifest: Manifest, gate: Gate, base_reference: str, rank: int) -> str:
    """The README.md of an adapter, in the hub's format."""
    rows = "\n".join(
        f"| {s.mode} | {s.problems} | {s.metric} | {s.temperature:g} | {s.value:.3f} "
        f"| {'' if s.stderr is None else f'{s.stderr:.3f}'} | {s.n} |"
        for s in manifest.scores
    )
    return f"""---
base_model: {base_reference}
library_name: peft
license: apache-2.0
pipeline_tag: text-generation
tags: [lora, reasonmaxxer, {manifest.family}]
---

# {manifest.name}

A LoRA of rank {rank} for `{base_reference}` ({manifest.base.architecture}), fitted by the
ReasonMaxxer method (arXiv 2605.06241): a contrastive loss at the base model's high-entropy decision
points, on its own rollouts, without reinforcement learning.

Gate: {gate}; calibrated on {gate.tokens:,} generated positions.

## Scores

Measured on the held-out problems that also chose the checkpoint, so slightly optimistic.

| mode | problems | metric | T | value | stderr | n |
|---|---|---|---|---|---|---|
{rows}

## How it was made

    {manifest.made_by.get("command", "")}

Every setting is in `fit.yaml`; seed {manifest.seed}.
{", ".join(f"{k} {v}" for k, v in manifest.made_by.items() if k not in ("command", PROMPT))}.
"""
