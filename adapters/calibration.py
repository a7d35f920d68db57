"""A gate for an adapter of the store: the same weights with another calibration, as a new version.

    version = add_gate(store, "their-math", gate, base, made_by={"calibrated on": "my.jsonl"})

The measurement needs the base model and is done by `training.calibrate`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from adapters.adapter import ALONGSIDE, FILES, AdapterVersion, first_manifest, read_origin
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import copy_file
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import Gate, Manifest
from adapters.recipe import look_up
from adapters.store import Store

CARD = "README.md"
HEADING = "## Calibration"  # the last section of the card
TOLD = ("calibrated on", "calibrated at")  # entries of `made_by`


def add_gate(
    store: Store,
    reference: str,
    gate: Gate,
    base: BaseCheckpoint,
    *,
    family: str = "",
    made_by: dict[str, str] | None = None,
    alias: bool = True,
    by: str | None = None,
) -> AdapterVersion:
    """Publish what `reference` means once more, with `gate` in its manifest.

    An adapter without a manifest gets one that binds it to `base`. Scores of the gated adapter were
    measured behind its gate of then, so another tau or temperature leaves them out.

    Args:
        family: for the manifest of an adapter that has none; default: found for the base.
        made_by: entries to add to the manifest's own; those of TOLD stand in the model card too.
        alias: False leaves the alias where it is.

    Raises:
        KeyError, AdapterError: as `Store.get`; it must fit `base`.
        ValueError: `family` is unknown.
        StoreError: the store cannot be written.
    """
    held = store.lease(reference)
    with held.lease, tempfile.TemporaryDirectory() as copy:
        version = store.get(str(held.reference), base)
        folder = Path(copy)
        for file, limit in (FILES | ALONGSIDE).items():
            if (version.path / file).is_file():
                copy_file(version.path / file, folder / file, limit, mode=0o644)
        before = version.manifest or first_manifest(
            folder, held.reference.name, look_up(base, family).recipe.family, base
        )
        manifest = before.model_copy(
            update={
                "gate": gate,
                "scores": [
                    score
                    for score in before.scores
                    if score.mode != "gated" or _opens_alike(before.gate, gate)
                ],
                "made_by": before.made_by | (made_by or {}),
            }
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        _tell(folder / CARD, manifest, gate)
        origin = read_origin(version.path)  # the weights are still what the import made of them
        return store.publish(
            *(folder, held.reference.name), base=base, alias=alias, by=by, origin=origin
        )


def _tell(card: Path, manifest: Manifest, gate: Gate) -> None:
    """Say in the model card what the gate is now; the card may tell of an earlier one."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    text = text.partition(HEADING)[0].rstrip() or f"# {manifest.name}"
    by = ", ".join(f"{key} {value}" for key, value in manifest.made_by.items() if key in TOLD)
    card.write_text(
        f"{text}\n\n{HEADING}\n\nGate: {gate}, by {gate.tokens:,} generated positions ({by}). This "
        "replaces what is said above\nof the gate and of scores behind it.\n",
        encoding="utf-8",
    )


def _opens_alike(before: Gate | None, now: Gate) -> bool:
    return before is not None and (before.tau, before.temperature) == (now.tau, now.temperature)
