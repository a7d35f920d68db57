"""Stage 5, train: LoRA layers around the frozen base, transformers' Trainer, checkpoints.

One model is in memory: the base is the model with its adapter switched off. Where the adapter runs
while it is trained is the trainer's business (training/trainers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainingArguments, set_seed

from adapters.files import write_json, write_text
from adapters.recipe import Lora, Objective, Optimizer
from adapters.version import WEIGHTS
from training.base_cache import Budget, CacheStore
from training.run import Stage
from training.trainers import (
    WHOLE,
    ContrastiveTrainer,
    DecisionPointTrainer,
    EveryPositionTrainer,
    OnCheckpoint,
    TrainingRow,
    points_of,
)

LOG = "log.json"  # the Trainer's history


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


def load_adapter(model: Any, checkpoint: Path) -> None:
    """Put the weights of a checkpoint of the same shape into the LoRA layers of `model`."""
    set_peft_model_state_dict(model, load_file(checkpoint / WEIGHTS))


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
    *,
    budget: Budget | None = None,
    start: Path | None = None,
    on_start: Callable[[Any], None] | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> list[Path]:
    """Train and return the checkpoints' folders (PEFT adapters), oldest first.

    Args:
        load_base: gives the base; called, and LoRA layers injected, only if work is left.
        checkpoint_every: in epochs.
        budget: of the base's caches, for training at decision points; None: all in memory.
        start: the adapter that sampled `rows` and is trained on; None: the base sampled them.
        on_start: called with the model before the first step.
        on_checkpoint: called for each checkpoint that is made.
    """
    folder = stage.path()
    done = folder / "complete"
    if not done.exists():
        model = peft_model(load_base(), lora, seed)
        if start is not None:
            load_adapter(model, start)
        given: dict[str, Any] = {
            "model": model,
            "args": training_arguments(folder, len(rows), optimizer, checkpoint_every, seed),
            "rows": rows,
            "objective": objective,
            "strongest_first": optimizer.order == "strongest",
            "on_checkpoint": on_checkpoint,
        }
        store, trainer = None, None
        if objective.positions == "all":
            trainer = EveryPositionTrainer(**given)
        else:
            store = CacheStore(
                model,
                [row["prompt_ids"] for row in rows],
                [row["token_ids"][: points_of(row).reads - len(row["prompt_ids"])] for row in rows],
                budget or Budget(float("inf"), 0),
                stage.path("-base-cache"),
            )
            store.fill("base cache")
            trainer = DecisionPointTrainer(store=store, **given)
        if on_start is not None:
            on_start(model)
        _run(trainer, folder)
        if store is not None:
            store.close()
        write_text(done, "")
    return _checkpoints(folder)


def _run(trainer: ContrastiveTrainer, folder: Path) -> None:
    """Train from the last whole checkpoint on, and keep the history."""
    last = _checkpoints(folder)[-1:]
    trainer.train(resume_from_checkpoint=str(last[0]) if last else None)
    write_json(folder / LOG, trainer.state.log_history)


def _checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    whole = (path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}"))
    return sorted(whole, key=lambda path: int(path.name.split("-")[1]))
