"""Pre-train a miniature base: corpus -> tokenizer -> transformers' Trainer -> a model folder.

    python -m training.tiny pretrain --base qwen2 --output models/tiny-qwen2

What is different from textbook pre-training: documents are rendered by the very chat template
that is served, so that a served prompt equals a training prompt token for token; and the loss is
on the solution alone, as the problems are random numbers. A killed run goes on from its last
checkpoint in the run folder. The same configuration gives the same weights on one machine.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from adapters.files import atomic_directory, write_text
from adapters.prompt import PromptRenderer
from adapters.recipe import Prompt
from training.config import Config, usage_error
from training.tiny.corpus import CorpusConfig, read_corpus, write_corpus
from training.tiny.tokenizer import END, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

BASES = Path(__file__).parent / "bases"

Batch = dict[str, "torch.Tensor"]


class Architecture(BaseModel):
    """config.json in transformers' words; fields beside the model type are the architecture's."""

    model_config = ConfigDict(extra="allow")

    model_type: str = "qwen2"


class OptimizerConfig(BaseModel):
    """AdamW with a cosine schedule, one pass over the corpus."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    learning_rate: float = Field(3e-3, gt=0)
    documents_per_batch: int = Field(48, ge=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


class PretrainConfig(Config):
    """Everything a base is made from; `bases/NAME.yaml` holds the values of base NAME."""

    program: ClassVar[str] = "python -m training.tiny pretrain"

    base: str = Field("qwen2", description="Name of a file in training/tiny/bases.")
    output: Path = Field(Path("models/tiny-qwen2"), description="The model folder to write.")
    run: Path | None = Field(None, description="Run folder; default: runs/NAME of the output.")
    architecture: Architecture = Architecture()
    vocabulary: int = Field(352, ge=259, description="Tokens, 256 bytes and 3 special included.")
    corpus: CorpusConfig = CorpusConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["bf16", "float32"] = Field("bf16", description="Of matrix products.")
    threads: int = Field(1, ge=1, description="Part of the recipe: sums depend on it.")
    seed: int = 0
    save_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    measure_problems: int = Field(400, ge=0, description="Held-out problems for the card; 0: none.")

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The base's own YAML lies below the flags."""
        name = str(given.get("base", "qwen2"))
        path = BASES / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in BASES.glob("*.yaml")))
            raise ValueError(f"--base: '{name}' is unknown; known: {known}")
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return values

    @property
    def run_folder(self) -> Path:
        return self.run or Path("runs") / self.output.name


def render(tokenizer: "PreTrainedTokenizerFast", problem: str, solution: str) -> tuple[str, str]:
    """(prompt, continuation) of a document, as text: what is served, and what is to be learned."""
    return PromptRenderer.of(tokenizer, Prompt()).text(problem), solution + END


def encode(
    tokenizer: "PreTrainedTokenizerFast", rows: Sequence[dict[str, str]]
) -> list[tuple[list[int], int]]:
    """(token ids, number of prompt tokens) of every document."""
    texts = [render(tokenizer, row["problem"], row["solution"]) for row in rows]
    prompts = tokenizer([prompt for prompt, _ in texts], add_special_tokens=False)["input_ids"]
    answers = tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
    return [(p + a, len(p)) for p, a in zip(prompts, answers, strict=True)]


def batches(documents: list[tuple[list[int], int]], size: int, pad: int, seed: int) -> list[Batch]:
    """Documents of similar length together, padded on the right.

    Right padding needs no attention mask: under causal attention nothing real sees the padding,
    and its labels are ignored.

    Returns:
        Each batch: input_ids and labels, [size, T] int64; labels are -100 off the solution.
    """
    import torch

    rng = Random(seed)
    order = list(range(len(documents)))
    rng.shuffle(order)
    made = []
    for start in range(0, len(order), 64 * size):  # sorting all of them would fix who meets whom
        group = sorted(order[start : start + 64 * size], key=lambda i: len(documents[i][0]))
        for first in range(0, len(group), size):
            members = [documents[i] for i in group[first : first + size]]
            width = max(len(ids) for ids, _ in members)
            ids = torch.full((len(members), width), pad)
            labels = torch.full((len(members), width), -100)
            for row, (tokens, prompt) in enumerate(members):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
            made.append({"input_ids": ids, "labels": labels})
    rng.shuffle(made)
    return made


def new_model(config: PretrainConfig, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A freshly initialised model, its special tokens and generation config set."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    values = config.architecture.model_dump()
    model_type = values.pop("model_type")
    architecture = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
        **values,
    )
    torch.manual_seed(config.seed)
    # Eager attention: the CPU's fused kernel has a slow backward pass in bf16.
    model = AutoModelForCausalLM.from_config(
        architecture, attn_implementation="eager", dtype=torch.float32
    )
    # No sampling defaults: a server would apply them to requests that name none.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def last_checkpoint(run: Path) -> str | None:
    """The newest checkpoint that was written to its end (its trainer state is written last)."""
    for folder in sorted(run.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def train(
    config: PretrainConfig, callbacks: Sequence["TrainerCallback"] = ()
) -> tuple["PreTrainedModel", "PreTrainedTokenizerFast", dict[str, float]]:
    """Corpus, tokenizer and the training run; takes up again what the run folder holds.

    Returns:
        The trained model (float32), its tokenizer, and counts for the card: documents, tokens,
        steps, loss (nats per solution token, mean of the last logged steps).

    Raises:
        ValueError: the run folder belongs to another configuration.
    """
    import torch
    from transformers import Trainer, TrainingArguments

    torch.set_num_threads(config.threads)
    run = config.run_folder
    _claim(run, config)
    corpus_file = run / "corpus.parquet"
    if not corpus_file.exists():
        write_corpus(config.corpus, corpus_file)
    rows = read_corpus(corpus_file)
    context = int(getattr(config.architecture, "max_position_embeddings", 2048))
    tokenizer = train_tokenizer(_texts(rows[:20_000]), config.vocabulary, context)
    documents = encode(tokenizer, rows)
    assert tokenizer.pad_token_id is not None
    data = batches(
        documents, config.optimizer.documents_per_batch, tokenizer.pad_token_id, config.seed
    )
    trainer = Trainer(
        model=new_model(config, tokenizer),
        args=TrainingArguments(
            output_dir=str(run),
            num_train_epochs=1,
            per_device_train_batch_size=1,  # an item of `data` is a batch already
            learning_rate=config.optimizer.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=config.optimizer.warmup_steps,
            weight_decay=config.optimizer.weight_decay,
            adam_beta2=config.optimizer.beta2,
            max_grad_norm=config.optimizer.max_grad_norm,
            bf16=config.precision == "bf16",
            use_cpu=True,
            seed=config.seed,
            data_seed=config.seed,
            logging_steps=50,
            save_steps=config.save_every,
            save_total_limit=2,
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=data,
        data_collator=lambda items: items[0],
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(run))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return (
        trainer.model,
        tokenizer,
        {
            "documents": len(documents),
            "tokens": sum(len(ids) for ids, _ in documents),
            "steps": trainer.state.global_step,
            "loss": sum(losses[-5:]) / max(len(losses[-5:]), 1),
        },
    )


def _claim(run: Path, config: PretrainConfig) -> None:
    """Write config.yaml into the run folder, or check that it is the one there."""
    path = run / "config.yaml"
    text = config.to_yaml()
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"--run: {run} holds a run of another configuration; remove or name one")
    run.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _texts(rows: Sequence[dict[str, str]]) -> list[str]:
    """What the tokenizer is trained on: the words of the documents and of the template."""
    turns = ["system\n", "user\n", "assistant\n"] * len(rows)
    return turns + [row[field] for row in rows for field in ("problem", "solution")]


def pretrain(config: PretrainConfig) -> None:
    """Train, measure and write the model folder: weights in bf16, tokenizer, card."""
    import torch

    from training.tiny.card import write_card
    from training.tiny.measure import measure

    model, tokenizer, counts = train(config)
    model = model.to(torch.bfloat16).eval()
    with atomic_directory(config.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes 0600; a model folder is for everybody
        measured = (
            measure(folder, problems=config.measure_problems, threads=config.threads)
            if config.measure_problems
            else None
        )
        write_card(folder, config, counts, measured)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `python -m training.tiny pretrain`."""
    config = PretrainConfig.load(argv)
    print(config.to_yaml())
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    try:
        pretrain(config)
    except ValueError as error:
        usage_error(config.program, str(error))
