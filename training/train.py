"""Stage 5, train: transformers' Trainer with our objective.

One model in memory: the base is the model with its adapter switched off. Each step runs the batch
twice, without gradients for the base and with them for the adapter; see training/objective.py for
what is made of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments, set_seed

from adapters.files import write_json, write_text
from adapters.recipe import Lora, Objective, Optimizer
from training.model import head, hidden_states, pad_right
from training.objective import batch_loss
from training.run import Stage

LOG = "log.json"  # the Trainer's history
WHOLE = "whole"  # marks a checkpoint that was written to its end


class TrainingRow(TypedDict):
    """One rollout, ready to train on."""

    prompt_ids: list[int]
    token_ids: list[int]  # [T]
    advantages: list[float]  # [T]
    decisions: list[bool]  # [T]


class Rollouts(Dataset[TrainingRow]):
    """Rollouts in the order in which they are trained on."""

    def __init__(self, rows: Sequence[TrainingRow], strongest_first: bool) -> None:
        self.rows = list(rows)
        if strongest_first:
            self.rows.sort(key=strength, reverse=True)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TrainingRow:
        return self.rows[index]


def strength(row: TrainingRow) -> float:
    """|A| over D / length: how much a rollout has to say, per token (paper, recipe)."""
    said = zip(row["advantages"], row["decisions"], strict=True)
    return sum(abs(advantage) for advantage, at in said if at) / len(row["token_ids"])


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


class ContrastiveTrainer(Trainer):
    """Trainer whose loss is `training.objective.batch_loss`."""

    def __init__(self, *, objective: Objective, in_order: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        self.in_order = in_order
        # batch_loss is a mean over the batch: the Trainer must divide by the accumulation steps.
        self.loss_is_scaled_for_ga = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.in_order:
            return SequentialSampler(train_dataset or self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> torch.Tensor:
        peft_model = self.accelerator.unwrap_model(model)
        gated = self.objective.mode == "gated"
        with lora_at(peft_model, decision_mask(inputs)) if gated else nullcontext():
            hidden = predicting_states(peft_model, inputs)
        return batch_loss(
            hidden,
            self.held_against(peft_model, inputs),
            head(peft_model),
            inputs["tokens"],
            inputs["advantage"],
            inputs["decision"],
            inputs["rollout"],
            self.objective,
        )

    @torch.no_grad()
    def held_against(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """[N, d] states of what the adapter is held against: the base."""
        with model.disable_adapter():
            return predicting_states(model, inputs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        # The marker comes last: a checkpoint without it was cut short by a kill.
        write_text(Path(self.args.output_dir, f"checkpoint-{self.state.global_step}", WHOLE), "")


def predicting_states(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[N, d] hidden states that predict the answer tokens of a collated batch."""
    hidden = hidden_states(model, inputs["input_ids"], inputs["attention_mask"])
    states: torch.Tensor = hidden.flatten(0, 1)[inputs["states"]]
    return states


def decision_mask(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, S] bool of a collated batch: the positions that predict a token of a decision point."""
    mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    mask.view(-1)[inputs["states"][inputs["decision"]]] = True
    return mask


@contextmanager
def lora_at(model: Any, mask: torch.Tensor) -> Iterator[None]:
    """Within, the LoRA of `model` (PEFT) adds nothing off `mask`, [B, S] bool; as when gated."""
    hooks = [
        up.register_forward_hook(lambda _module, _inputs, output: output * mask[..., None])
        for module in model.modules()
        if hasattr(module, "lora_B")
        for up in module.lora_B.values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def peft_model(model: Any, lora: Lora, seed: int) -> Any:
    """`model` with fresh LoRA layers (B = 0: it still is the base)."""
    set_seed(seed)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=sorted(lora.target_modules),
            bias="none",
            task_type="CAUSAL_LM",
        ),
    )


def training_arguments(
    folder: Path, rollouts: int, optimizer: Optimizer, checkpoint_every: float, seed: int
) -> TrainingArguments:
    """The Trainer's settings for so many rollouts; checkpoints go to `folder`."""
    steps_per_epoch = max(1, rollouts // (optimizer.batch_size * optimizer.accumulation))
    max_steps = max(1, round(optimizer.epochs * steps_per_epoch))
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=optimizer.batch_size,
        gradient_accumulation_steps=optimizer.accumulation,
        max_steps=max_steps,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        # A warm-up longer than the run would never reach the learning rate.
        warmup_steps=min(optimizer.warmup_steps, max_steps // 3),
        lr_scheduler_type=optimizer.schedule,
        max_grad_norm=optimizer.max_grad_norm,
        gradient_checkpointing=optimizer.gradient_checkpointing,
        save_strategy="steps",
        save_steps=min(max(1, round(checkpoint_every * steps_per_epoch)), max_steps),
        logging_steps=max(1, max_steps // 20),
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def train(
    stage: Stage,
    load_base: Callable[[], Any],
    rows: Sequence[TrainingRow],
    lora: Lora,
    objective: Objective,
    optimizer: Optimizer,
    checkpoint_every: float,
    seed: int,
) -> list[Path]:
    """Train and return the checkpoints' folders (PEFT adapters), oldest first.

    Args:
        load_base: gives the base; called, and LoRA layers injected, only if work is left.
        checkpoint_every: in epochs.
    """
    folder = stage.path()
    done = folder / "complete"
    if not done.exists():
        in_order = optimizer.order == "strongest"
        trainer = ContrastiveTrainer(
            model=peft_model(load_base(), lora, seed),
            args=training_arguments(folder, len(rows), optimizer, checkpoint_every, seed),
            train_dataset=Rollouts(rows, strongest_first=in_order),
            data_collator=collate,
            objective=objective,
            in_order=in_order,
        )
        last = _checkpoints(folder)[-1:]
        trainer.train(resume_from_checkpoint=str(last[0]) if last else None)
        write_json(folder / LOG, trainer.state.log_history)
        write_text(done, "")
    return _checkpoints(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    whole = (path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}"))
    return sorted(whole, key=lambda path: int(path.name.split("-")[1]))
