"""Where decision points lie in an answer, and how much gradient each way of training has.

Gates that open at equally many tokens are not equal: a token that the base is sure of has next to
no gradient. For the policy gradient of one token, A grad log p(token), the part in the logits is
A (onehot(token) - p), whose length is |A| sqrt(1 - 2 p(token) + sum p^2). This is the *signal* of a
token; a gate's signal is the sum over its tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.fit_config import FitConfig
from training.hf_model import head, hidden_states
from training.run import Run
from training.stages.sample import sample_base
from training.stages.score import score
from training.stages.select_rollouts import calibrate_gates, examples_of
from training.stages.verify import verify

# Which positions train -> `selection.gate`.
GATES = {"entropy": "entropy", "random": "random", "shut": "shut", "every position": "none"}
TENTHS = 10  # of an answer
CHUNK = 512  # positions whose probabilities exist at a time


def signal(config: FitConfig, count: int) -> dict[str, Any]:
    """Figures of the first `count` rollouts that a finished fit trained on.

    Returns:
        "gates": positions -> tokens, signal per token, share of the signal of all positions;
        "places": share of decision points in each tenth of their answer; "rollouts".
    """
    with Run.open(config) as run:
        rollouts = score(run, verify(run, sample_base(run, run.shares[0]).rollouts))
        gate = calibrate_gates(rollouts.entropies, run.config.gate)[0]

        def chosen(which: str) -> dict[int, Any]:
            selection = run.config.selection.model_copy(update={"gate": which})
            examples = examples_of(rollouts, gate, selection, run.training_seed)
            return {one.row: one for one in examples}

        examples = {name: chosen(which) for name, which in GATES.items()}
        rows = sorted(set.intersection(*map(set, examples.values())))[:count]
        columns = ("prompt_ids", "token_ids")
        prompts, answers = (rollouts.table[one].take(rows).to_pylist() for one in columns)
        lengths = gradient_lengths(run.load_base(), prompts, answers)
    strengths = [
        length * np.abs(examples["entropy"][row].advantages)
        for row, length in zip(rows, lengths, strict=True)
    ]
    opened = {name: [found[row].decisions for row in rows] for name, found in examples.items()}
    return {
        "gates": share_of_signal(opened, strengths),
        "places": places(opened["entropy"]),
        "rollouts": len(rows),
    }


@torch.inference_mode()
def gradient_lengths(
    model: Any, prompts: list[list[int]], answers: list[list[int]]
) -> list[npt.NDArray[np.float64]]:
    """sqrt(1 - 2 p(token) + sum p^2) at each token of the answers, [T] each."""
    to_logits, found = head(model), []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer], device=model.device)
        states = hidden_states(model, ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
        parts = []
        for start in range(0, len(answer), CHUNK):
            p = to_logits(states[start : start + CHUNK]).float().softmax(-1)
            tokens = ids[0, len(prompt) + start :][: len(p)]
            said = p.gather(-1, tokens[:, None])[:, 0]
            parts.append((1 - 2 * said + p.square().sum(-1)).clamp(min=0).sqrt())
        found.append(torch.cat(parts).double().cpu().numpy())
    return found


def share_of_signal(
    opened: dict[str, list[npt.NDArray[np.bool_]]], strengths: list[npt.NDArray[np.float64]]
) -> dict[str, dict[str, float]]:
    """Of each gate: how many tokens, how much signal a token, and its share of all signal."""
    everything = sum(float(one.sum()) for one in strengths)
    found = {}
    for name, gates in opened.items():
        tokens = sum(int(gate.sum()) for gate in gates)
        mass = sum(float(s[g].sum()) for s, g in zip(strengths, gates, strict=True))
        found[name] = {
            "tokens": tokens,
            "signal_per_token": mass / max(tokens, 1),
            "share": mass / everything if everything else 0.0,
        }
    return found


def places(opened: list[npt.NDArray[np.bool_]]) -> list[float]:
    """The share of decision points in each tenth of their answer, from its beginning."""
    at = [np.flatnonzero(gate) / gate.size for gate in opened]
    counts, _ = np.histogram(np.concatenate(at), bins=TENTHS, range=(0.0, 1.0))
    return [round(float(one), 4) for one in counts / max(1, counts.sum())]
