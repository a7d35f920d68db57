"""The mean of several adapters of one base, as one adapter.

    average([AdapterVersion.read(path) for path in fits], Path("mean"), "mean")

Fits that differ in their training seed alone differ in accuracy too; their mean depends less on
any of them. An adapter adds scaling * B A to a weight. The mean of n such updates is a LoRA again:
its A has the rows of all A, its B the columns of all B, each times scaling / n. Nothing is
approximated, so that its rank is the sum of theirs. PEFT can do the same:
`add_weighted_adapter(combination_type="cat")`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapters.adapter import CONFIG, TRAINED_ON, WEIGHTS, AdapterVersion
from adapters.files import atomic_directory, sha256_file
from adapters.manifest import FILE as MANIFEST
from adapters.manifest import PROMPT, Manifest
from adapters.peft_config import lean
from adapters.safetensors_file import as_float32, write_float32

LARGEST_RANK = 512  # that vLLM has kernels for
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def average(versions: Sequence[AdapterVersion], folder: Path, name: str) -> None:
    """Write the mean of `versions` to the PEFT folder `folder`, as the adapter `name`.

    It keeps their threshold, their prompt and the list of their problems where these are the same.
    A module that only some of them adapt counts as zero in the others.

    Raises:
        ValueError: there are fewer than two, they were not made for one base, or vLLM could not
            serve a mean of that rank.
    """
    if len(versions) < 2:
        raise ValueError("name at least two adapters; their mean is made")
    for one, other in combinations(versions, 2):
        _refuse_other_base(one, other)
    sides = {side.key: side for version in versions for side, _ in version.folder.sides.values()}
    tensors = [version.folder.tensors() for version in versions]
    ranks: Counter[str] = Counter()
    for version in versions:
        ranks.update({module: pair["A"][0] for module, pair in version.modules().items()})
    rank = max(ranks.values())
    if rank > LARGEST_RANK:
        raise ValueError(
            f"the mean of these {len(versions)} adapters would have rank {rank}, the sum of "
            f"theirs, and vLLM serves at most {LARGEST_RANK}: name fewer"
        )
    shapes = {}
    for key, side in sides.items():
        shape = next(found[key].shape for found in tensors if key in found)
        shapes[key] = [rank, shape[1]] if side.side == "A" else [shape[0], rank]

    def joined(key: str) -> npt.NDArray[np.float32]:
        """One side of a pair: those of the adapters side by side, zeros up to `rank`."""
        side, parts = sides[key], []
        for version, found in zip(versions, tensors, strict=True):
            if key in found:
                scaling = version.config.scaling_of(side.module) / len(versions)
                factor = np.float32(1 if side.side == "A" else scaling)
                parts.append(as_float32(found[key]) * factor)
        axis = 0 if side.side == "A" else 1
        missing = rank - sum(part.shape[axis] for part in parts)
        return np.pad(np.concatenate(parts, axis), [(0, missing * (axis == at)) for at in (0, 1)])

    with atomic_directory(folder) as build:
        config = json.dumps(_config(versions, sorted(ranks), rank), indent=2, sort_keys=True)
        (build / CONFIG).write_text(config + "\n")
        write_float32(build / WEIGHTS, shapes, joined)
        told = [version.path / TRAINED_ON for version in versions]
        if all(map(Path.is_file, told)) and len(set(map(sha256_file, told))) == 1:
            (build / TRAINED_ON).write_bytes(told[0].read_bytes())
        manifest = _manifest(versions, name)
        if manifest:
            files = {file: sha256_file(build / file) for file in (CONFIG, WEIGHTS)}
            manifest = manifest.model_copy(update={"files": files})
            (build / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        AdapterVersion.read(build, name)


def _refuse_other_base(one: AdapterVersion, other: AdapterVersion) -> None:
    """Raise ValueError unless both adapters add to the same weights."""
    told = [
        (version.manifest.base.fingerprint, version.manifest.family) if version.manifest else None
        for version in (one, other)
    ]
    same = None in told or told[0] == told[1]
    if not same or one.config.fan_in_fan_out != other.config.fan_in_fan_out:
        raise ValueError(
            f"{one.name} and {other.name} were fitted on other weights or for another prompt "
            "format, so that their mean means nothing; name adapters of one base and family"
        )
    others = other.modules()
    for module, pair in one.modules().items():
        theirs = others.get(module, pair)
        if (pair["A"][1], pair["B"][0]) != (theirs["A"][1], theirs["B"][0]):
            raise ValueError(
                f"{one.name} and {other.name} have other shapes at {module[:200]}; name adapters "
                "of one base"
            )


def _config(versions: Sequence[AdapterVersion], modules: list[str], rank: int) -> dict[str, Any]:
    """The configuration: that of the first, with a scaling of 1 and what all of them adapt."""
    raws = [version.config.raw for version in versions]
    raw = raws[0] | {"r": rank, "lora_alpha": rank, "use_rslora": False}
    raw |= {"rank_pattern": {}, "alpha_pattern": {}}
    if any(_targets(one) != _targets(raw) for one in raws):
        raw |= dict.fromkeys(TARGETS) | {"target_modules": modules}
    return lean(raw)


def _targets(raw: dict[str, Any]) -> list[Any]:
    """What a configuration adapts; PEFT writes a set of modules in any order."""
    found = [raw.get(field) or None for field in TARGETS]
    return [sorted(one) if isinstance(one, list) else one for one in found]


def _manifest(versions: Sequence[AdapterVersion], name: str) -> Manifest | None:
    """The manifest, without digests; None: one of the adapters has none."""
    made = [version.manifest for version in versions if version.manifest]
    if len(made) < len(versions):
        return None
    first = made[0]
    prompts = {one.made_by.get(PROMPT) for one in made}
    prompt = prompts.pop() if len(prompts) == 1 else None
    made_by = {PROMPT: prompt} if prompt else {}
    return first.model_copy(
        update={
            "name": name,
            "gate": first.gate if all(one.gate == first.gate for one in made) else None,
            "scores": [],
            "made_by": made_by | {"mean of": ", ".join(version.id for version in versions)},
        }
    )
