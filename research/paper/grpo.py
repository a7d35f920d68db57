r"""The reinforcement-learning baseline: GRPO by TRL, on the same base, problems and verifier.

    uv pip install -e '.[research]'
    python -m research.paper.grpo --model models/tiny-qwen2 --problems problems.jsonl \
        --output runs/grpo/model

All weights are trained, or with --lora-rank a LoRA alone, until the accuracy on held-out problems
has stopped rising. The best checkpoint is kept: an ordinary model folder, or an adapter folder.
Rollouts of a LoRA come from the engine that also answers the held-out problems: with vLLM they take
a fraction of the time that TRL's own sampling takes on a CPU.
report.json in the run folder counts what it cost: generated tokens, optimizer steps, seconds. A
killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from peft import LoraConfig
from pydantic import Field
from transformers import TrainerCallback

from adapters.adapter import CONFIG
from adapters.files import atomic_directory, write_json
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, recipe_for
from research.fits import whole_checkpoints
from research.paper.measure import untrained
from training.evaluation import Evaluation, Result, evaluate_generator
from training.generation import (
    Applied,
    EngineName,
    Generator,
    SamplingOptions,
    derive_seed,
    longest_sequence,
    open_generator,
)
from training.grading import Verifier
from training.hf_model import load_model, open_base
from training.lora_model import lora_config
from training.problems import Problem, load_problems
from training.problems.settings import ProblemsConfig

logger = logging.getLogger("research.paper.grpo")


class GrpoConfig(ProblemsConfig):
    """Settings of the baseline."""

    program: ClassVar[str] = "python -m research.paper.grpo"

    model: str = Field(description="Base model: a folder or a hub id.")
    problems: str = Field(description="To train on, as of training.fit.")
    heldout: str = Field(description="Problems that say when to stop and which checkpoint to keep.")
    output: Path = Field(description="The model folder to write.")
    run_dir: Path = Field(Path("runs/grpo"), description="Checkpoints, answers and report.json.")
    limit: int | None = Field(None, ge=2, description="Train on at most so many problems.")
    family: str = Field("", description="Default: by the model's name.")
    engine: EngineName = Field("auto", description="What answers the held-out problems.")
    seed: int = Field(0, ge=0, lt=2**31)

    prompts: int = Field(16, ge=1, description="Problems per optimizer step.")
    generations: int = Field(8, ge=2, description="Completions of each.")
    learning_rate: float = Field(3e-5, gt=0)
    temperature: float = Field(1.0, gt=0)
    clip: float = Field(
        0.2, gt=0, lt=1, description="Largest change of the probability ratio, both ways."
    )
    beta: float = Field(0.0, ge=0, description="Weight of the KL to the base.")
    max_tokens: int | None = Field(None, ge=1, description="Default: the family's.")
    every: int = Field(25, ge=1, description="Steps between looks at the held-out problems.")
    patience: int = Field(4, ge=1, description="Looks without a rise after which it stops.")
    max_steps: int = Field(1000, ge=1)
    accumulation: int = Field(1, ge=1, description="Passes of an optimizer step; saves memory.")
    lora_rank: int | None = Field(
        None, ge=1, description="Train a LoRA of the recipe's modules; default: all weights."
    )
    samples: int = Field(2, ge=1, description="Answers to each held-out problem and look.")

    def lora(self, recipe: Recipe) -> LoraConfig | None:
        """The LoRA that is trained; None: all weights are."""
        if self.lora_rank is None:
            return None
        shape = {"rank": self.lora_rank, "alpha": 2 * self.lora_rank}
        return lora_config(recipe.lora.model_copy(update=shape))


class Look(NamedTuple):
    """At the held-out problems, after so many steps."""

    step: int
    accuracy: float
    stderr: float
    tokens: int  # generated for it


def best(looks: Sequence[Look]) -> Look:
    """The most accurate, the earliest of equals."""
    return max(looks, key=lambda look: (look.accuracy, -look.step))


def stopped_rising(looks: Sequence[Look], patience: int) -> bool:
    """The last `patience` looks brought nothing better."""
    return len(looks) - 1 - list(looks).index(best(looks)) >= patience


class HeldOut(TrainerCallback):
    """Asks the held-out problems after each checkpoint, and says when to stop."""

    def __init__(self, ask: Callable[[Path], Result], patience: int, path: Path) -> None:
        self._ask, self._patience, self._path = ask, patience, path
        known = json.loads(path.read_text()) if path.exists() else []
        self.looks = [Look(**one) for one in known]

    def look(self, step: int, folder: Path) -> None:
        """Once for each step."""
        if step in {look.step for look in self.looks}:
            return
        result = self._ask(folder)
        look = Look(step, result.pass_at_1.value, result.stderr, int(result.tokens.sum()))
        self.looks.append(look)
        write_json(self._path, [one._asdict() for one in self.looks])
        logger.info("step %d: held out %.3f ± %.3f", look.step, look.accuracy, look.stderr)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the Trainer when a checkpoint is written."""
        self.look(state.global_step, Path(args.output_dir, f"checkpoint-{state.global_step}"))
        control.should_training_stop |= stopped_rising(self.looks, self._patience)


def neutral_rewards(correct: Sequence[bool | None], groups: Sequence[int]) -> list[float]:
    """1, 0, or the mean of its group where the grader cannot tell: an advantage of zero."""
    found: dict[int, list[bool]] = {}
    for one, group in zip(correct, groups, strict=True):
        if one is not None:
            found.setdefault(group, []).append(one)
    means = {group: sum(graded) / len(graded) for group, graded in found.items()}
    return [
        means.get(group, 0.0) if one is None else float(one)
        for one, group in zip(correct, groups, strict=True)
    ]


class Rollouts:
    """Samples with the LoRA as it is now, in the place of TRL's own sampling.

    Args:
        tokens_of: prompt -> its token ids.
        options: the seed is derived anew for each step.
        folder: where the weights of the step lie while the engine reads them.
    """

    def __init__(
        self,
        generator: Generator,
        tokens_of: dict[str, list[int]],
        options: SamplingOptions,
        folder: Path,
    ) -> None:
        self._generator, self._tokens_of = generator, tokens_of
        self._options, self._folder = options, folder

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """The answers to `prompts`, of which each stands there `n` times in a row."""
        step = trainer.state.global_step
        options = replace(self._options, seed=derive_seed(self._options.seed, step))
        asked = [self._tokens_of[prompt] for prompt in prompts[:: options.n]]
        adapter = self._folder / str(step)  # engines tell adapters apart by their paths
        trainer.model.save_pretrained(adapter)
        answers = self._generator.generate(asked, options, Applied(adapter), f"step {step}")
        shutil.rmtree(adapter)
        return {
            "prompt_ids": [self._tokens_of[prompt] for prompt in prompts],
            "completion_ids": [one.token_ids for group in answers for one in group],
            "logprobs": None,  # on policy: each answer is trained on once, by what sampled it
        }


def train(
    config: GrpoConfig,
    recipe: Recipe,
    folder: Path,
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    max_tokens: int,
    verifier: Verifier,
    heldout: HeldOut,
    generator: Generator | None,
) -> None:
    """Run TRL's trainer from its last checkpoint until `heldout` stops it.

    Args:
        generator: samples the rollouts; None: TRL does.

    Raises:
        ValueError: TRL is not installed.
    """
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise ValueError(
            f"the baseline needs TRL: uv pip install -e '.[research]' ({error})"
        ) from error
    from transformers import AutoTokenizer

    def reward(completions: list[str], number: list[int], **_: Any) -> list[float]:
        asked = [problems[one] for one in number]
        verdicts = verifier.check(completions, asked)
        return neutral_rewards([verdict.correct for verdict in verdicts], number)

    class Trainer(GRPOTrainer):  # type: ignore[misc]
        """Leaves out the passes of groups that have no gradient: all answers right, or wrong."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if config.beta or inputs["advantages"].any():
                return super().compute_loss(model, inputs, *args, **kwargs)
            return sum(0 * one.sum() for one in model.parameters() if one.requires_grad)

    rows = [
        {"prompt": renderer.text(one.problem), "number": number}
        for number, one in enumerate(problems)
    ]
    batch = config.prompts * config.generations
    if batch % config.accumulation:
        raise ValueError(
            f"--accumulation: {config.accumulation} is no divisor of the {batch} answers of a step"
        )
    model = load_model(str(folder)).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if renderer.stop:  # transformers looks for stop strings in the text of what it generates
        model.generation_config.stop_strings = list(renderer.stop)
        model.generate = partial(model.generate, tokenizer=tokenizer)
    rollouts = generator and Rollouts(
        generator,
        {renderer.text(one.problem): renderer.token_ids(one.problem) for one in problems},
        SamplingOptions(
            *(config.generations, config.temperature, 1.0, max_tokens),
            seed=derive_seed(config.seed, "rollouts"),
            stop=renderer.stop,
        ),
        config.run_dir / "rollouts",
    )
    trainer = Trainer(
        model=model,
        peft_config=config.lora(recipe),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[heldout],
        rollout_func=rollouts,
        args=GRPOConfig(
            output_dir=str(config.run_dir),
            per_device_train_batch_size=batch // config.accumulation,
            gradient_accumulation_steps=config.accumulation,
            num_generations=config.generations,
            max_completion_length=max_tokens,
            temperature=config.temperature,
            learning_rate=config.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=10,
            weight_decay=0.0,
            max_grad_norm=1.0,
            epsilon=config.clip,
            beta=config.beta,
            loss_type="grpo",
            max_steps=config.max_steps,
            save_steps=config.every,
            logging_steps=1,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=model.device.type == "cpu",
            seed=config.seed,
            report_to=[],
        ),
    )
    done = whole_checkpoints(config.run_dir)
    trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)


def cost(config: GrpoConfig, history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Generated tokens, optimizer steps and seconds, by the trainer's own rows."""
    steps = [row for row in history if "completions/mean_length" in row]
    each = config.prompts * config.generations
    return {
        "tokens": round(sum(row["completions/mean_length"] for row in steps) * each),
        "steps": len(steps),
        "seconds": round(sum(row["step_time"] for row in steps), 1),
    }


def grpo(config: GrpoConfig) -> dict[str, Any]:
    """Train, keep the best checkpoint, return what report.json holds."""
    base = open_base(config.model)
    recipe = recipe_for(base, config.family)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    read = partial(load_problems, data_dir=config.data_dir)
    asked = read(config.heldout, field="heldout")
    problems = read(config.problems, limit=config.limit, without=asked)
    max_tokens = config.max_tokens or recipe.sampling.max_tokens
    config.save(config.run_dir / "grpo.yaml")
    options = SamplingOptions(
        config.samples,
        recipe.sampling.temperature,
        recipe.sampling.top_p,
        max_tokens,
        derive_seed(config.seed, "held-out"),
    )
    longest = max(len(renderer.token_ids(one.problem)) for one in (*asked, *problems))

    def generator_of(model: Path) -> AbstractContextManager[Generator]:
        return open_generator(
            str(model),
            engine=config.engine,
            max_rank=config.lora_rank,
            max_model_len=longest_sequence(str(base.folder), longest, max_tokens),
        )

    with Verifier() as verifier, generator_of(base.folder) as of_base:

        def ask(folder: Path) -> Result:
            evaluation = Evaluation(asked, renderer, options, verifier)
            if config.lora_rank:
                applied = Applied(folder) if (folder / CONFIG).exists() else None
                return evaluate_generator(of_base, evaluation, applied, folder.name)
            with generator_of(folder) as generator:
                return evaluate_generator(generator, evaluation, None, folder.name)

        heldout = HeldOut(ask, config.patience, config.run_dir / "looks.json")
        heldout.look(0, base.folder)
        for folder in whole_checkpoints(config.run_dir):  # a kill may have come before the look
            heldout.look(int(folder.name.split("-")[1]), folder)
        if not stopped_rising(heldout.looks, config.patience):
            train(
                *(config, recipe, base.folder, problems, renderer, max_tokens, verifier, heldout),
                of_base if config.lora_rank else None,
            )
    last = whole_checkpoints(config.run_dir)[-1]
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    kept = best(heldout.looks)
    if kept.step:
        chosen = config.run_dir / f"checkpoint-{kept.step}"
    elif config.lora_rank:  # an adapter that changes nothing
        chosen = untrained(whole_checkpoints(config.run_dir)[0], config.run_dir / "untrained")
    else:
        chosen = base.folder
    write_model(chosen, config.output)
    report = {
        "base": base.name,
        **cost(config, history),
        "heldout_tokens": sum(look.tokens for look in heldout.looks),
        "kept": kept._asdict(),
        "stopped_rising": stopped_rising(heldout.looks, config.patience),
        "looks": [look._asdict() for look in heldout.looks],
    }
    write_json(config.run_dir / "report.json", report)
    return report


TRAINER_FILES = (
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"),
)


def write_model(checkpoint: Path, output: Path) -> None:
    """The model folder of a checkpoint: what the Trainer needs to go on stays behind."""
    with atomic_directory(output) as folder:
        for file in checkpoint.iterdir():
            if file.is_file() and file.name not in TRAINER_FILES:
                shutil.copy(file, folder / file.name)


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = GrpoConfig.begin(argv)
    with config.usage_errors():
        report = grpo(config)
    print(
        json.dumps({key: report[key] for key in ("tokens", "steps", "seconds", "kept")}, indent=2)
    )


if __name__ == "__main__":
    main()
