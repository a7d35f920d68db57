r"""The plainest baseline: supervised fine-tuning of a LoRA on the reference answers.

    python -m research.real.sft --model BASE --problems train.jsonl --output runs/sft/adapter

A problem's target is its reference answer in a box, as the recipe's instruction asks for it. The
reference solutions that some benchmarks have are not used: most tasks have none. The LoRA has the
shape of the method's and runs at every step. TRL's SFTTrainer does the work.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from pydantic import Field

from adapters.files import atomic_directory
from adapters.prompt import PromptRenderer
from adapters.recipe import recipe_for
from training.hf_model import load_model, open_base
from training.lora_model import lora_config
from training.problems import Problem, load_problems
from training.problems.settings import ProblemsConfig


class SftConfig(ProblemsConfig):
    """Settings of the baseline."""

    program: ClassVar[str] = "python -m research.real.sft"

    model: str = Field(description="Base model: a folder or a hub id.")
    family: str = Field("", description="Default: by the model's name.")
    problems: str = Field(description="To train on, as of training.fit.")
    output: Path = Field(description="The adapter folder to write.")
    limit: int | None = Field(None, ge=1, description="Train on at most so many problems.")
    epochs: float = Field(2.0, gt=0)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(8, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)


def target(problem: Problem) -> str:
    """What the model is taught to answer."""
    return f"The final answer is $\\boxed{{{problem.answer.strip('$')}}}$."


def rows(problems: list[Problem], renderer: PromptRenderer, end: str) -> list[dict[str, str]]:
    """Prompts and completions as TRL reads them."""
    return [
        {"prompt": renderer.text(one.problem), "completion": target(one) + end} for one in problems
    ]


def train(config: SftConfig) -> None:
    """Train, and write the adapter.

    Raises:
        ValueError: TRL is not installed, or the problems cannot be read.
    """
    try:
        from datasets import Dataset
        from trl import SFTConfig as TrlConfig
        from trl import SFTTrainer
    except ImportError as error:
        raise ValueError(
            f"the baseline needs TRL: uv pip install -e '.[research]' ({error})"
        ) from error
    from transformers import AutoTokenizer

    base = open_base(config.model)
    recipe = recipe_for(base, config.family)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    problems = load_problems(config.problems, limit=config.limit, data_dir=config.data_dir)
    model: Any = load_model(str(base.folder))
    with TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            train_dataset=Dataset.from_list(rows(problems, renderer, tokenizer.eos_token or "")),
            processing_class=tokenizer,
            peft_config=lora_config(recipe.lora),
            args=TrlConfig(
                output_dir=scratch,
                per_device_train_batch_size=config.batch_size,
                num_train_epochs=config.epochs,
                learning_rate=config.learning_rate,
                completion_only_loss=True,
                save_strategy="no",
                logging_steps=5,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=model.device.type == "cpu",
                seed=config.seed,
                report_to=[],
            ),
        )
        trainer.train()
        with atomic_directory(config.output) as folder:
            trainer.model.save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input."""
    config = SftConfig.begin(argv)
    with config.usage_errors():
        if config.output.exists():
            return
        train(config)


if __name__ == "__main__":
    main()
