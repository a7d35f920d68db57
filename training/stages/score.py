"""Stage 3, score: the base's entropy at every generated position.

The entropies are what the gate, the selection and the calibration see. vLLM reports them while it
samples (`sample.py`). Rollouts of the transformers engine come without; for these the base runs
once over exactly the token ids that were sampled, in batches of similar length. The [T, V] logits
are made a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from tqdm import tqdm

from adapters.gate import entropy
from training import sharded_base
from training.hf_model import batches, head, hidden_states, pad_right
from training.run import Run
from training.run_folder import Parts, Stage
from training.stages.verify import VerifiedRollouts

SCHEMA = pa.schema([("row", pa.int64()), ("entropies", pa.list_(pa.float32()))])


@dataclass(frozen=True)
class Rollouts(VerifiedRollouts):
    """Rollouts with their rewards and the base's entropies: all that training needs of them."""

    entropies: list[npt.NDArray[np.float32]]  # N arrays [T], nats


def score(run: Run, verified: VerifiedRollouts) -> Rollouts:
    """Find the base's entropy at every token."""
    computed = verified.table["entropies"].null_count > 0  # not by the engine that sampled
    dtype = {"dtype": run.config.dtype} if computed and run.config.dtype != "auto" else {}
    stage = verified.stage.then("entropies", dtype)
    with run.clock(f"score{verified.note}", stage):
        entropies = rollout_entropies(stage, verified.table, run.load_base)
    return Rollouts(**vars(verified) | {"stage": stage, "entropies": entropies})


@torch.inference_mode()
def sequence_entropies(
    model: Any,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    chunk: int = 4096,
) -> list[npt.NDArray[np.float32]]:
    """Entropy in nats of the distribution each answer token was drawn from.

    Args:
        prompts, answers: token ids, row by row; one batch.
        chunk: positions whose logits exist at a time.

    Returns:
        One float32 array [len(answer)] a row.
    """
    ids, mask = pad_right([p + a for p, a in zip(prompts, answers, strict=True)])
    hidden = hidden_states(model, ids.to(model.device), mask.to(model.device))
    # Position t predicts token t + 1: the answer's distributions begin at the prompt's last token.
    states = torch.cat(
        [
            hidden[row, len(p) - 1 : len(p) + len(a) - 1]
            for row, (p, a) in enumerate(zip(prompts, answers, strict=True))
        ]
    )
    project = head(model)
    h = torch.cat([entropy(project(part)) for part in states.split(chunk)]).cpu().numpy()
    return np.split(h, np.cumsum([len(a) for a in answers])[:-1])


def rollout_entropies(
    stage: Stage, rollouts: pa.Table, load_base: Callable[..., Any], token_budget: int = 16384
) -> list[npt.NDArray[np.float32]]:
    """Entropies of every rollout, in the table's order: one array [T] each, nats.

    Args:
        rollouts: a table of `training.stages.sample.SCHEMA`.
        load_base: gives the base in transformers; called only if something is left to score.
        token_budget: padded size of a batch, tokens.
    """
    if not rollouts["entropies"].null_count:
        return [np.asarray(h.values) for h in rollouts["entropies"]]
    parts = Parts(stage.path(), SCHEMA)
    if not parts.complete:
        prompts, answers = rollouts["prompt_ids"].to_pylist(), rollouts["token_ids"].to_pylist()
        done = set(parts.read(["row"])["row"].to_pylist())
        missing = [row for row in range(len(answers)) if row not in done]
        lengths = [len(prompts[row]) + len(answers[row]) for row in missing]
        bar = tqdm(desc="score", unit="tok", total=sum(lengths), unit_scale=True)
        with sharded_base.lent(load_base) as model, bar:
            for batch in batches(lengths, token_budget):
                rows = [missing[place] for place in batch]
                found = sequence_entropies(
                    model, [prompts[row] for row in rows], [answers[row] for row in rows]
                )
                parts.add({"row": row, "entropies": h} for row, h in zip(rows, found, strict=True))
                bar.update(sum(lengths[place] for place in batch))
        parts.finish()
    table = parts.read().sort_by("row")
    return [np.asarray(h.values) for h in table["entropies"]]
