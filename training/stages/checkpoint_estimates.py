"""What each checkpoint would score on the held-out problems, without asking it anything.

Training and the selection of a checkpoint both need it: a checkpoint is estimated as soon as it is
made, while the model still has it on. The figures lie in the run folder, so that a killed run
estimates no checkpoint twice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adapters.files import write_json
from adapters.manifest import Gate
from training import sharded_base
from training.contrastive_trainer import CheckpointNote
from training.evaluation import Estimate
from training.evaluation.heldout_scorer import Answers, HeldoutScorer, Setting
from training.evaluation.importance_sampling import WeightedScore
from training.hf_model import free_memory
from training.lora_model import load_adapter, peft_model
from training.run import Run
from training.stages.score import Rollouts


class Candidate(NamedTuple):
    """A checkpoint behind a gate, and its estimated score."""

    checkpoint: Path
    gate: Gate
    estimate: WeightedScore
    round: int | None = None  # that made the checkpoint; None: there is one round

    @property
    def label(self) -> str:
        """The checkpoint's name, its round and its gate, as reports name the candidate."""
        of_round = "" if self.round is None else f" of round {self.round}"
        text = f"{self.checkpoint.name}{of_round} at {self.gate.tau:.3f}"
        cooled = self.gate.temperature != 1
        return f"{text}, temperature {self.gate.temperature:g}" if cooled else text

    @property
    def at_most(self) -> float:
        """What it may score at best: all that the weights do not account for might be right."""
        lost = max(0.0, 1 - self.estimate.mean_weight)
        return self.estimate.score.value + lost + self.estimate.score.stderr


class CheckpointEstimates:
    """Estimated held-out scores, by checkpoint and gate; kept in the run folder as they are made.

    The scorer that makes them holds a model and the base's caches; it is made when first needed.

    Args:
        heldout: answers of the base to the held-out problems.
        gates: those that the adapter may be served behind, the one to train for first.
    """

    def __init__(self, run: Run, heldout: Rollouts, gates: Sequence[Gate]) -> None:
        self.heldout, self.gates = heldout, list(gates)
        self._run = run
        self._settings = [Setting(gate.tau, gate.temperature) for gate in gates]
        self._stage = heldout.stage.then("estimates", {"settings": self._settings})
        self._scorer: HeldoutScorer | None = None

    def _path(self, checkpoint: Path) -> Path:
        return self._stage.path() / f"{checkpoint.parent.name}-{checkpoint.name}.json"

    def prepare(self, model: Any) -> None:
        """Compute what the scorer reads of `model`'s base, unless that is done."""
        if self._scorer is None:
            self._scorer = HeldoutScorer(
                model,
                _answers(self.heldout),
                self._settings,
                self._run.config.sampling.temperature,
                self._run.budget,
                self._run.kept_caches or self._stage.scratch,
                keep=self._run.kept_caches is not None,
            )

    def update(self, model: Any, checkpoint: Path) -> CheckpointNote:
        """Estimate the adapter that `model` has on, the `checkpoint`.

        Returns:
            The estimate behind the first gate.
        """
        self.prepare(model)
        assert self._scorer is not None
        training = model.training
        model.eval()
        scores = self._scorer.score(model)
        model.train(training)
        write_json(self._path(checkpoint), [scores[setting] for setting in self._settings])
        first = scores[self._settings[0]]
        metrics = {"eval_mean_weight": first.mean_weight}
        if first.trusted:
            metrics |= {
                "eval_pass_at_1": first.score.value,
                "eval_pass_at_1_stderr": first.score.stderr,
                "eval_gain": first.gain.value,
                "eval_gain_stderr": first.gain.stderr,
            }
        return CheckpointNote(f"held-out {first}", metrics)

    def candidates(self, checkpoints: Sequence[Path]) -> list[Candidate]:
        """Every checkpoint behind every gate; the first gate's first, in the checkpoints' order."""
        missing = [path for path in checkpoints if not self._path(path).exists()]
        if missing:
            self.close()
            run = self._run
            with sharded_base.lent(run.load_base) as base:
                model = peft_model(base, run.lora, run.config.seed)
                for path in missing:
                    load_adapter(model, path)
                    self.update(model, path)
        self.close()
        scores = {path: _read_scores(self._path(path)) for path in checkpoints}
        folders = list(dict.fromkeys(path.parent for path in checkpoints))
        rounds = {folder: place for place, folder in enumerate(folders, 1) if len(folders) > 1}
        return [
            Candidate(path, gate, scores[path][number], rounds.get(path.parent))
            for number, gate in enumerate(self.gates)
            for path in checkpoints
        ]

    def best(self, checkpoints: Sequence[Path]) -> Path:
        """The checkpoint with the best estimate behind the first gate."""
        first = [one for one in self.candidates(checkpoints) if one.gate is self.gates[0]]
        return best_estimated(first).checkpoint

    def close(self) -> None:
        """Give the scorer's memory back: what comes next is an engine of its own."""
        if self._scorer is not None:
            self._scorer.close()
            self._scorer = None
        free_memory()


def _read_scores(path: Path) -> list[WeightedScore]:
    """The scores by gate, as `CheckpointEstimates.update` wrote them."""
    return [
        WeightedScore(Estimate(*value), Estimate(*gain), *rest)
        for value, gain, *rest in json.loads(path.read_text())
    ]


def _answers(rollouts: Rollouts) -> Answers:
    """Convert the rollouts to what the scorer reads."""
    return Answers(
        rollouts.table["problem"].to_numpy(),
        rollouts.table["prompt_ids"].to_pylist(),
        rollouts.table["token_ids"].to_pylist(),
        rollouts.rewards,
        rollouts.entropies,
    )


def shortlist(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The candidates to decode: the `count` best, and up to twice as many that may be better.

    Best is by the estimated gain less its standard error. Ties go to the earlier candidate: an
    earlier checkpoint has moved less from the base. Estimates that are not trusted say nothing of
    each other: an adapter that they call ruined may be the best. So of those that may beat the best
    trusted one, checkpoints from the whole training are taken, the last among them, behind the gate
    that was trained for.

    Args:
        candidates: in the order of `CheckpointEstimates.candidates`.
    """
    trusted = [one for one in _ranked(candidates) if one.estimate.trusted]
    doubtful = [one for one in candidates if not one.estimate.trusted]
    if trusted:
        best = trusted[0].estimate.score.value
        doubtful = [one for one in doubtful if one.at_most > best]
    doubtful = [one for one in doubtful if one.gate == candidates[0].gate] or doubtful
    places = np.linspace(0, len(doubtful) - 1, min(2 * count, len(doubtful))).round().astype(int)
    return trusted[:count] + [doubtful[place] for place in places]


def best_estimated(candidates: Sequence[Candidate]) -> Candidate:
    """The best trusted candidate, or the best of all where none is trusted."""
    ranked = _ranked(candidates)
    return next((one for one in ranked if one.estimate.trusted), ranked[0])


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda one: -one.estimate.at_least)
