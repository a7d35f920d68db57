"""Stage 5, train: LoRA layers around the frozen base, by the Trainer of transformers.

One model is in memory: the base is the model with its adapter switched off. Where the adapter runs
while it is trained is the trainer's business (`training/contrastive_trainer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from adapters.files import write_json, write_text
from adapters.recipe import Checkpoints, Lora, Objective, Optimizer
from training import processes, sharded_base
from training.base_cache import Budget, CacheStore
from training.contrastive_trainer import (
    WHOLE,
    ContrastiveTrainer,
    DecisionPointTrainer,
    EveryPositionTrainer,
    FactsCallback,
    OnCheckpoint,
    TrainingRow,
    points_of,
)
from training.fit_config import FitConfig
from training.lora_model import load_adapter, peft_model
from training.run import Run
from training.run_folder import Stage
from training.stages.checkpoint_estimates import CheckpointEstimates
from training.stages.score import Rollouts
from training.stages.select_rollouts import TrainingSet
from training.trackers import Tracking

LOG = "log.json"  # the Trainer's history, in the stage's folder
NOT_TRACKED = Tracking()


class Trained(NamedTuple):
    """What one round of training gives."""

    stage: Stage
    rollouts: Rollouts  # those that it trained on, and those that it left out
    checkpoints: list[Path]  # PEFT folders, oldest first
    rows: int  # rollouts that it trained on

    @property
    def last_step(self) -> int:
        """The number of the last step."""
        return _step(self.checkpoints[-1])


def checkpoints_of(rounds: Sequence[Trained]) -> list[Path]:
    """The checkpoints of all rounds, oldest first."""
    return [path for one in rounds for path in one.checkpoints]


def train(
    run: Run,
    examples: TrainingSet,
    estimates: CheckpointEstimates,
    start: Path | None = None,
) -> Trained:
    """Train on `examples`; every checkpoint of a gated adapter gets its held-out estimate.

    Args:
        start: the adapter that sampled the examples, which training goes on from; None: the base
            sampled them.
    """
    config = run.config
    gated = config.mode == "gated"
    settings = config.model_dump(include={"selection", "objective", "optimizer"}) | {
        "gate": examples.gate.tau,
        "lora": run.lora.model_dump(),
        "dtype": config.dtype,
    }
    if config.training_seed is not None:
        settings["seed"] = config.training_seed
    settings |= config.checkpoints.model_dump(include={"every", "apart"})
    stage = examples.rollouts.stage.then("training", settings)
    with run.clock("train" if start is None else f"train from {start.name}", stage):
        checkpoints = train_adapter(
            stage,
            run.load_base,
            examples.rows,
            lora=run.lora,
            objective=config.objective,
            optimizer=config.optimizer,
            checkpoints=config.checkpoints,
            seed=run.training_seed,
            budget=run.budget,
            kept=run.kept_caches,
            start=start,
            on_start=estimates.prepare if gated else None,
            on_checkpoint=estimates.update if gated else None,
            tracking=_tracking(config, examples, estimates),
        )
    return Trained(stage, examples.rollouts, checkpoints, len(examples.rows))


def _tracking(config: FitConfig, examples: TrainingSet, estimates: CheckpointEstimates) -> Tracking:
    """What trackers are told before the first step."""
    facts = {
        "rollouts_pass_at_1": float(np.nanmean(examples.rollouts.rewards)),
        "rollouts_trained_on": len(examples.rows),
        "gate_tau": examples.gate.tau,
        "gate_rate": examples.gate.rate,
        "eval_base_pass_at_1": float(np.nanmean(estimates.heldout.rewards)),
    }
    return Tracking(config.report_to, config.name, facts)


def train_adapter(
    stage: Stage,
    load_base: Callable[..., Any],
    rows: Sequence[TrainingRow],
    *,
    lora: Lora,
    objective: Objective,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    seed: int,
    budget: Budget | None = None,
    kept: Path | None = None,
    start: Path | None = None,
    on_start: Callable[[Any], None] | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    tracking: Tracking = NOT_TRACKED,
) -> list[Path]:
    """Train an adapter on `rows`; a killed training goes on from its last whole checkpoint.

    Args:
        stage: where checkpoints are kept.
        load_base: gives the base; called, and LoRA layers injected, only if work is left.
        checkpoints: how far apart they are.
        budget: of the base's caches, for training at decision points; None: no limit.
        kept: a folder where later trainings find these caches; None: they go at the end.
        start: the adapter that sampled `rows` and is trained on; None: the base sampled them.
        on_start: called with the model before the first step.
        on_checkpoint: called for each checkpoint that is made.
        tracking: where the run is reported.

    Returns:
        The checkpoints' folders, PEFT adapters, oldest first.

    Processes that were launched together (training/processes.py) train together: the first one
    calls the others, which need none of what is told of a checkpoint.
    """
    folder = stage.path()
    done = folder / "complete"
    if not done.exists():
        processes.call_the_others(
            train_adapter,
            **{"stage": stage, "load_base": load_base, "rows": list(rows), "lora": lora},
            **{"objective": objective, "optimizer": optimizer, "seed": seed, "start": start},
            **{"checkpoints": checkpoints, "budget": budget, "kept": kept},
        )
        model = peft_model(sharded_base.load(load_base), lora, seed)
        if start is not None:
            load_adapter(model, start)
        given: dict[str, Any] = {
            "model": model,
            "args": training_arguments(folder, len(rows), optimizer, checkpoints, seed, tracking),
            "rows": rows,
            "objective": objective,
            "strongest_first": optimizer.order == "strongest",
            "on_checkpoint": on_checkpoint,
        }
        store, trainer = None, None
        if objective.positions == "all":
            trainer = EveryPositionTrainer(**given)
        else:
            store = base_caches(
                stage, model, rows, budget or Budget(float("inf"), float("inf")), kept
            )
            trainer = DecisionPointTrainer(store=store, **given)
        if tracking.trackers:
            trainer.add_callback(FactsCallback(trainer, tracking.facts))
        with sharded_base.in_step(model):
            if on_start is not None:
                on_start(model)
        _run(trainer, folder)
        if store is not None:
            store.close()
        if processes.rank() == 0:
            write_text(done, "")
    return _checkpoints(folder)


def base_caches(
    stage: Stage, model: Any, rows: Sequence[TrainingRow], budget: Budget, kept: Path | None
) -> CacheStore:
    """The base's keys and values of `rows`, up to the last decision point of each."""
    store = CacheStore(
        model,
        [row["prompt_ids"] for row in rows],
        [row["token_ids"] for row in rows],
        budget,
        _of_this_process(kept or stage.scratch),
        [points_of(row).reads for row in rows],
        keep=kept is not None,
    )
    with sharded_base.in_step(model):
        store.fill("base cache")
    return store


def _of_this_process(folder: Path) -> Path:
    """A folder beside that of the first process, for what each process computes itself."""
    number = processes.rank()
    return folder if number == 0 else folder.with_name(f"{folder.name}-{number}")


def _run(trainer: ContrastiveTrainer, folder: Path) -> None:
    """Train from the last whole checkpoint on, and keep the history."""
    last = _checkpoints(folder)[-1:]
    if last and _step(last[0]) >= trainer.args.max_steps:
        # Killed behind its last step. The Trainer would go on with the epoch.
        trainer.state = TrainerState.load_from_json(str(last[0] / TRAINER_STATE_NAME))
    else:
        trainer.train(resume_from_checkpoint=str(last[0]) if last else None)
    if processes.rank() == 0:
        write_json(folder / LOG, trainer.state.log_history)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, oldest first."""
    whole = (path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}"))
    return sorted(whole, key=_step)


def _step(checkpoint: Path) -> int:
    """The step after which it was written."""
    return int(checkpoint.name.split("-")[1])


def training_arguments(
    folder: Path,
    rollouts: int,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    seed: int,
    tracking: Tracking = NOT_TRACKED,
) -> TrainingArguments:
    """The Trainer's settings for so many rollouts; checkpoints go to `folder`."""
    batch_size, accumulation = processes.share(optimizer.batch_size, optimizer.accumulation)
    steps_per_epoch = max(1, rollouts // (optimizer.batch_size * optimizer.accumulation))
    max_steps = max(1, round(optimizer.epochs * steps_per_epoch))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=max_steps,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        # A warm-up longer than the run would never reach the learning rate.
        warmup_steps=min(optimizer.warmup_steps, max_steps // 3),
        lr_scheduler_type=optimizer.schedule,
        max_grad_norm=optimizer.max_grad_norm,
        gradient_checkpointing=optimizer.gradient_checkpointing,
        save_strategy="steps",
        save_steps=min(
            max(checkpoints.apart, round(checkpoints.every * steps_per_epoch)), max_steps
        ),
        logging_steps=max(1, max_steps // 20),
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        ddp_timeout=int(processes.PATIENCE.total_seconds()),
        **tracking.arguments(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    # Where a process sees several GPUs, the Trainer would spread it over them by DataParallel: a
    # batch for each, and every tensor of the batch cut into pieces.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
