"""transformers' Trainer with our objective: at decision points, or at every position.

`DecisionPointTrainer` runs the adapter at decision points alone, behind the base's cache, as the
server does behind the gate. `EveryPositionTrainer` is the paper's own fit: the adapter runs over
whole rollouts and is held to the base off the gate, as it is served always-on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from adapters.files import write_text
from adapters.recipe import Objective
from training import processes, sharded_base
from training.base_cache import CacheStore
from training.decision_points import (
    Batch,
    Points,
    layer_windows,
    log_probs,
    make_batch,
    point_states,
)
from training.hf_model import head, hidden_states, pad_right
from training.objective import Counts, batch_loss, point_loss

WHOLE = "whole"  # marks a checkpoint that was written to its end


class CheckpointNote(NamedTuple):
    """What is known of a checkpoint as soon as it is made."""

    text: str  # for the progress bar
    metrics: Mapping[str, float] = {}  # for trackers


# Told of each checkpoint while the model still has it on.
OnCheckpoint = Callable[[Any, Path], CheckpointNote]


class TrainingRow(TypedDict):
    """A rollout that is trained on: its tokens, and what each of them weighs."""

    prompt_ids: list[int]
    token_ids: list[int]  # [T]
    advantages: list[float]  # [T]
    decisions: list[bool]  # [T]


def strength(row: TrainingRow) -> float:
    """|A| over D / length: how much a rollout has to say, per token (paper, recipe)."""
    said = zip(row["advantages"], row["decisions"], strict=True)
    return sum(abs(advantage) for advantage, at in said if at) / len(row["token_ids"])


def order(rows: Sequence[TrainingRow], strongest_first: bool) -> list[int]:
    """Indices of rollouts as the Trainer's data: in the order in which they are trained on."""
    indices = list(range(len(rows)))
    if strongest_first:
        indices.sort(key=lambda index: strength(rows[index]), reverse=True)
    return indices


class RateBar(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar, with tokens per second, the loss, the last held-out estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0  # trained on so far: decision points, or all of the rollouts'
        self.text = self.loss = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("train")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None:
            seconds = self.training_bar.format_dict["elapsed"]
            rate = f"{self.tokens / seconds:,.0f} tok/s" if seconds > 0 else ""
            shown = filter(None, (rate, self.loss, self.text))
            self.training_bar.set_postfix_str(", ".join(shown))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Show the loss in the bar, where transformers prints a line."""
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3g}"


class FactsCallback(TrainerCallback):  # type: ignore[misc]
    """Reports once, to experiment trackers, what was known before training."""

    def __init__(self, trainer: Trainer, facts: Mapping[str, float]) -> None:
        self._trainer, self._facts = trainer, dict(facts)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Behind the trackers' own callbacks, which have begun their runs by now."""
        self._trainer.log(self._facts)


class ContrastiveTrainer(Trainer):
    """Trains on rollouts with the contrastive loss; the two trainers below say at which positions.

    Args:
        rows: the rollouts.
        strongest_first: in the paper's order rather than shuffled.
        on_checkpoint: called before a checkpoint counts as whole.
    """

    def __init__(
        self,
        *,
        rows: Sequence[TrainingRow],
        objective: Objective,
        strongest_first: bool,
        on_checkpoint: OnCheckpoint | None = None,
        **kwargs: Any,
    ) -> None:
        self.rows, self.objective, self.in_order = rows, objective, strongest_first
        self.on_checkpoint = on_checkpoint
        self.bar = RateBar()
        super().__init__(
            train_dataset=order(rows, strongest_first), data_collator=self.collate, **kwargs
        )
        self.remove_callback(ProgressCallback)
        self.add_callback(self.bar)
        # The losses of an optimizer step's batches add up: the Trainer must not divide them.
        self.loss_is_scaled_for_ga = True

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The tensors that `loss` needs of the rollouts `indices`."""
        raise NotImplementedError

    def loss(self, model: Any, inputs: dict[str, Any], step: Counts) -> torch.Tensor:
        """A batch's part, a scalar, of the mean loss over an optimizer step; as `collate` gave it.

        Args:
            step: what that mean is over.
        """
        raise NotImplementedError

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Any]], Counts]:
        """The batches of an optimizer step, and what their loss is the mean over."""
        batches, _ = super().get_batch_samples(*args)
        found = [Counts.of(batch["decision"], batch["rollout"]) for batch in batches]
        return batches, Counts(*processes.total(torch.tensor(found).view(len(found), 3).sum(0)))

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        self.bar.tokens += len(inputs["tokens"])
        loss = partial(self.loss, step=num_items_in_batch)
        part = forwarded(model, self.accelerator.unwrap_model(model), loss, inputs)
        return part * processes.count()  # gradients are averaged over the processes

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.in_order:
            return SequentialSampler(train_dataset or self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def _save_checkpoint(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(model, *args, **kwargs)
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        module = self.accelerator.unwrap_model(model)
        with sharded_base.in_step(module):
            if self.on_checkpoint is not None:
                note = self.on_checkpoint(module, folder)
                self.bar.text = note.text
                if note.metrics:
                    self.log(dict(note.metrics))
        if self.is_world_process_zero():
            # The marker comes last: a checkpoint without it was cut short by a kill.
            write_text(folder / WHOLE, "")

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if processes.sharded() and training:
            return sharded_base.averaged(model)
        return super()._wrap_model(model, training, dataloader)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not processes.sharded():  # shards are where they belong
            super()._move_model_to_device(model, device)


def forwarded(
    wrapper: Any, module: Any, loss: Callable[[Any, Any], torch.Tensor], inputs: Any
) -> torch.Tensor:
    """`loss(module, inputs)`, computed within the forward pass of what is wrapped around `module`.

    DistributedDataParallel averages gradients of what its own forward pass has begun, and of
    nothing else. One pass of ours calls the module's layers several times, so for that pass
    `module.forward` is the whole loss. Lightning and TRL do the same.
    """
    if wrapper is module:
        return loss(module, inputs)
    own = module.__dict__.get("forward")  # of the instance, over that of its class

    def restore() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.forward = own

    def once(**given: Any) -> torch.Tensor:
        restore()
        return loss(module, given)

    module.forward = once
    try:
        found: torch.Tensor = wrapper(**inputs)
    finally:
        restore()
    return found


class DecisionPointTrainer(ContrastiveTrainer):
    """The adapter at decision points, each reading the base's cache up to and including itself.

    Args:
        store: the base's caches of `rows`, up to the last decision point of each.

    The adapter that the model has on at first is the policy which sampled the rollouts: a fresh one
    is the base.
    """

    def __init__(self, *, model: Any, store: CacheStore, **kwargs: Any) -> None:
        self.store = store
        self.windows = layer_windows(model.config)
        super().__init__(model=model, **kwargs)
        self.points = [points_of(row) for row in self.rows]
        model.eval()
        with sharded_base.in_step(model):
            (self.sampled_log_p,) = log_probs(
                model, self.points, store, self.windows, label="sampling policy"
            )

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        points = [self.points[index] for index in indices]
        with sharded_base.in_step(self.model):  # what is not kept is computed
            caches = self.store.get(indices)
        batch = make_batch(points, caches, self.windows)
        sizes = torch.tensor([len(one.ids) for one in points])
        advantages = [
            torch.tensor(row["advantages"])[torch.tensor(row["decisions"])]
            if self.objective.name != "sequence"
            else torch.full((len(self.points[index].ids),), row["advantages"][0])
            for index in indices
            for row in (self.rows[index],)
        ]
        return {
            **{"input_ids" if key == "ids" else key: v for key, v in batch._asdict().items()},
            "tokens": torch.tensor([token for one in points for token in one.targets]),
            "sampled_log_p": torch.cat([self.sampled_log_p[index] for index in indices]),
            "advantage": torch.cat(advantages),
            "decision": torch.ones(int(sizes.sum()), dtype=torch.bool),
            "rollout": torch.arange(len(points)).repeat_interleave(sizes),
        }

    def loss(self, model: Any, inputs: dict[str, Any], step: Counts) -> torch.Tensor:
        batch = Batch(
            inputs["input_ids"], *(inputs[field] for field in Batch._fields if field != "ids")
        )
        base = None
        if self.objective.anchor_weight > 0:
            with torch.no_grad(), model.disable_adapter():
                base = point_states(model, batch)
        return point_loss(
            point_states(model, batch),
            head(model),
            inputs["tokens"],
            inputs["sampled_log_p"],
            inputs["advantage"],
            inputs["rollout"],
            self.objective,
            base,
            step=step,
        )


def points_of(row: TrainingRow) -> Points:
    """The decision points of `row`, as tokens and positions."""
    return Points.of(row["prompt_ids"], row["token_ids"], row["decisions"])


class EveryPositionTrainer(ContrastiveTrainer):
    """The adapter over whole rollouts, with the base beside it: one model, adapter on and off.

    Rollouts of like length are batched together, so that little is padding.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.in_order or self.args.train_batch_size == 1:
            return super()._get_train_sampler(train_dataset)
        lengths = [len(row["prompt_ids"]) + len(row["token_ids"]) for row in self.rows]
        accumulation = self.args.gradient_accumulation_steps * processes.count()
        return OfLikeLength(self, self.args.train_batch_size * accumulation, lengths=lengths)

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        return collate([self.rows[index] for index in indices])

    def loss(self, model: Any, inputs: dict[str, Any], step: Counts) -> torch.Tensor:
        with torch.no_grad(), model.disable_adapter():
            base = predicting_states(model, inputs)
        return batch_loss(
            predicting_states(model, inputs),
            base,
            head(model),
            inputs["tokens"],
            inputs["advantage"],
            inputs["decision"],
            inputs["rollout"],
            self.objective,
            step=step,
        )


class OfLikeLength(LengthGroupedSampler):  # type: ignore[misc]
    """Rollouts of like length together, in an order of its own for each epoch.

    The order follows from the trainer's seed and epoch alone: it is the same in every process, and
    in a run that was killed and goes on.
    """

    def __init__(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trainer = trainer

    def __iter__(self) -> Iterator[int]:
        seed = self._trainer.args.seed + int(self._trainer.state.epoch or 0)
        self.generator = torch.Generator().manual_seed(seed)
        indices: Iterator[int] = super().__iter__()
        return indices


def collate(rows: Sequence[TrainingRow]) -> dict[str, torch.Tensor]:
    """B rollouts -> padded ids and mask [B, S], and flat [N] tensors over all their answer tokens.

    `states` indexes the [B * S] hidden states: the position that predicts each answer token.
    """
    input_ids, attention_mask = pad_right([row["prompt_ids"] + row["token_ids"] for row in rows])
    width = input_ids.shape[1]
    states, rollout = [], []
    for number, row in enumerate(rows):
        first = number * width + len(row["prompt_ids"]) - 1
        states.append(torch.arange(first, first + len(row["token_ids"])))
        rollout.append(torch.full((len(row["token_ids"]),), number))
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "states": torch.cat(states),
        "tokens": torch.cat([torch.tensor(row["token_ids"]) for row in rows]),
        "decision": torch.cat([torch.tensor(row["decisions"]) for row in rows]),
        "advantage": torch.cat([torch.tensor(row["advantages"]) for row in rows]),
        "rollout": torch.cat(rollout),
    }


def predicting_states(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[N, d] hidden states that predict the answer tokens of a collated batch."""
    hidden = hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
    states: torch.Tensor = hidden.flatten(0, 1)[inputs["states"]]
    return states
