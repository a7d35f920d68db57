"""Stage 3, score: the base's entropy at every generated position, teacher-forced.

vLLM reports entropies while it samples (training/sample.py); this pass is for rollouts that came
without: those of the transformers engine.

Runs on exactly the token ids that were sampled, in batches of similar length; the [T, V] logits are
made a chunk at a time. The entropies are what the gate, the selection and the calibration see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from adapters.gate import entropy
from training.model import batches, head, hidden_states, pad_right
from training.run import Parts, Stage

SCHEMA = pa.schema([("row", pa.int64()), ("entropies", pa.list_(pa.float32()))])


@torch.inference_mode()
def sequence_entropies(
    model: Any,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    chunk: int = 4096,
) -> list[np.ndarray]:
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


def score(
    stage: Stage, rollouts: pa.Table, load_base: Callable[[], Any], token_budget: int = 16384
) -> list[np.ndarray]:
    """Entropies of every rollout, in the table's order: float32 arrays.

    `load_base` is called only if there is something left to score.
    """
    if not rollouts["entropies"].null_count:
        return [np.asarray(h.values) for h in rollouts["entropies"]]
    parts = Parts(stage.path(), SCHEMA)
    if not parts.complete:
        model = load_base()
        prompts, answers = rollouts["prompt_ids"].to_pylist(), rollouts["token_ids"].to_pylist()
        done = set(parts.read(["row"])["row"].to_pylist())
        missing = [row for row in range(len(answers)) if row not in done]
        lengths = [len(prompts[row]) + len(answers[row]) for row in missing]
        with tqdm(desc="score", unit="tok", total=sum(lengths), unit_scale=True) as bar:
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
