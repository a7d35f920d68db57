"""Stage 7, publish: an ordinary PEFT folder, with manifest and model card beside the weights.

`PeftModel.from_pretrained` and stock vLLM load it. The same run gives the same bytes: there are no
time stamps, and every list is in a fixed order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.adapter import CONFIG, TRAINED_ON, WEIGHTS, AdapterVersion
from adapters.base_checkpoint import BaseCheckpoint
from adapters.files import atomic_directory, sha256_file
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import PROMPT, Base, Manifest
from adapters.model_card import base_facts, model_card
from adapters.peft_config import lean
from adapters.places import default_store, open_store
from adapters.recipe import look_up
from adapters.reference import Reference
from training.problems import write_trained_on
from training.provenance import library_versions
from training.run import Run
from training.stages.select_checkpoint import Choice

logger = logging.getLogger("training.fit")


def publish(run: Run, choice: Choice, command: str = "") -> Path:
    """Write the adapter to --output or the run folder, and into the store with --publish.

    Args:
        command: as for `write_adapter`.

    Returns:
        Its folder: the version's in the store, or the plain one.
    """
    config = run.config
    folder = config.output or config.run_dir / "adapter"
    manifest = Manifest(
        name=config.name,
        family=look_up(run.base, config.family).recipe.family,
        base=Base.of(run.base),
        gate=choice.gate,
        scores=[score for one in (choice.base, choice.kept) for score in one.to_scores()],
        seed=config.seed,
        files={},
        made_by={PROMPT: run.renderer.digest},
    )
    # Never a path of this machine's.
    reference = run.base.name if Path(config.model).is_absolute() else config.model
    write_adapter(
        *(folder, choice.checkpoint, manifest, run.base, reference, config.to_yaml(), command),
        trained_on=lambda path: write_trained_on(path, train=run.problems, heldout=run.heldout),
    )
    if config.publish is None:
        logger.info("adapter: %s", folder)
        return folder
    store = open_store(config.store or default_store())
    version = store.publish(folder, config.publish, base=run.base)
    logger.info("adapter: %s in %s", version.id, store.place)
    return store.path(Reference(config.publish, version.hash))


def write_adapter(
    output: Path,
    checkpoint: Path,
    manifest: Manifest,
    base: BaseCheckpoint,
    base_reference: str,
    settings: str,
    command: str = "",
    trained_on: Callable[[Path], None] | None = None,
) -> AdapterVersion:
    """Write the adapter folder `output` in one rename, and read it back through every check.

    Args:
        checkpoint: a PEFT folder.
        manifest: its digests of files and library versions are filled in here.
        base_reference: what `base_model_name_or_path` says: a hub id or a relative path.
        settings: the run's whole configuration, YAML; kept as fit.yaml.
        command: what the card says that it was made with. Neither is in the manifest: the same run
            in another folder gives the same version.
        trained_on: writes the fingerprints of the problems to the path that it is given.

    Raises:
        AdapterError: the checkpoint is damaged or does not fit `base`; nothing is written then.
    """
    config = json.loads((checkpoint / CONFIG).read_text())
    config["base_model_name_or_path"] = base_reference
    config["revision"] = base.revision
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set
    with atomic_directory(output) as folder:
        (folder / CONFIG).write_text(json.dumps(lean(config), indent=2, sort_keys=True) + "\n")
        (folder / WEIGHTS).write_bytes((checkpoint / WEIGHTS).read_bytes())
        (folder / "fit.yaml").write_text(settings)
        if trained_on is not None:
            trained_on(folder / TRAINED_ON)
        manifest = manifest.model_copy(
            update={
                "files": {file: sha256_file(folder / file) for file in (CONFIG, WEIGHTS)},
                "made_by": manifest.made_by | library_versions(),
            }
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        facts = base_facts(base.folder, base_reference)
        card = model_card(manifest, config["r"], facts, command=command)
        (folder / "README.md").write_text(card)
        AdapterVersion.read(folder, manifest.name).check_fits(base)
    return AdapterVersion.read(output, manifest.name)


def publish_zeros(output: Path, like: Path, name: str, base: BaseCheckpoint) -> AdapterVersion:
    """Write an adapter that changes nothing, with the gate of the published folder `like`.

    Behind that gate it shows what the gate alone does: its temperature at decision points.
    """
    made = Manifest.read(like)
    manifest = made.model_copy(
        update={
            "name": name,
            "base": Base.of(base),
            "scores": [],
            "made_by": {PROMPT: made.made_by.get(PROMPT, "")},
        }
    )
    reference = json.loads((like / CONFIG).read_text())["base_model_name_or_path"]
    with TemporaryDirectory() as folder:
        checkpoint = Path(folder)
        (checkpoint / CONFIG).write_bytes((like / CONFIG).read_bytes())
        weights = load_file(like / WEIGHTS)
        save_file(
            {key: np.zeros_like(value) for key, value in weights.items()}, checkpoint / WEIGHTS
        )
        return write_adapter(output, checkpoint, manifest, base, reference, "")
