"""Pre-train a miniature base: corpus -> tokenizer -> transformers' Trainer -> a model folder.

    python -m research.miniature pretrain --base qwen2 --output models/tiny-qwen2

What is different from textbook pre-training: documents are rendered by the very chat template
that is served, so that a served prompt equals a training prompt token for token; and the loss is
on the solution alone, as the problems are random numbers. A killed run goes on from its last
checkpoint in the run folder. The same configuration gives the same weights on one machine.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.files import atomic_directory, write_text
from research.fits import whole_checkpoints
from research.miniature.config import PretrainConfig
from research.miniature.corpus import read_corpus, write_corpus
from research.miniature.data import batches, encode
from research.miniature.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback


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
    if config.init is not None:
        load_grown(model, AutoModelForCausalLM.from_pretrained(config.init))
    # No sampling defaults: a server would apply them to requests that name none.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def load_grown(model: "PreTrainedModel", smaller: "PreTrainedModel") -> None:
    """Give `model` the weights of `smaller`, of the same architecture with as many layers or fewer.

    A model n times as deep has each layer n times: itself, then copies whose output projections
    are zero, so that it computes what the smaller one does (block expansion, arXiv 2401.02415).

    Raises:
        ValueError: the number of layers is no multiple of the smaller model's, or a shape differs.
    """
    deep, shallow = model.config.num_hidden_layers, smaller.config.num_hidden_layers
    if deep % shallow:
        raise ValueError(f"--architecture.num-hidden-layers: {deep} is no multiple of {shallow}")
    times, theirs = deep // shallow, smaller.state_dict()
    grown = {}
    for name in model.state_dict():
        layer = re.match(r"(model\.layers\.)(\d+)(.*)", name)
        if layer is None:
            grown[name] = theirs[name]
            continue
        number = int(layer[2])
        value = theirs[f"{layer[1]}{number // times}{layer[3]}"]
        is_output = layer[3].startswith((".self_attn.o_proj", ".mlp.down_proj"))
        grown[name] = value.new_zeros(value.shape) if number % times and is_output else value
    try:
        model.load_state_dict(grown)
    except RuntimeError as error:
        raise ValueError(f"--init: {error}") from None


def make_corpus(config: PretrainConfig) -> Path:
    """The run folder's corpus, written unless it is there already.

    Raises:
        ValueError: the run folder belongs to another configuration.
    """
    _claim(config.run_folder, config)
    path = config.run_folder / "corpus.parquet"
    if not path.exists():
        write_corpus(config.corpus, path)
    return path


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
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    if config.init is not None and not (config.init / "config.json").is_file():
        raise ValueError(f"--init: {config.init} is no model folder; make it first")
    torch.set_num_threads(config.threads)
    run = config.run_folder
    rows = read_corpus(make_corpus(config))
    context = int(getattr(config.architecture, "max_position_embeddings", 2048))
    tokenizer: PreTrainedTokenizerFast = (
        AutoTokenizer.from_pretrained(config.init)
        if config.init
        else train_tokenizer(_texts(rows[:20_000]), config.vocabulary, context)
    )
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
    done = whole_checkpoints(run)
    trainer.train(resume_from_checkpoint=str(done[-1]) if done else None)
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
    """Write the recipe into the run folder, or check that it is the one there."""
    path = run / "recipe.yaml"
    text = config.recipe()
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

    from research.miniature.card import write_card
    from research.miniature.measure import measure

    model, tokenizer, counts = train(config)
    model = model.to(torch.bfloat16).eval()
    with atomic_directory(config.output) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes 0600; a model folder is for everybody
        measured = (
            measure(folder, problems=config.measure_problems, threads=config.threads)
            if config.measure_problems
            else None
        )
        write_card(folder, config, counts, measured)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of `python -m research.miniature pretrain`."""
    config = PretrainConfig.load(argv)
    print(config.to_yaml())
    os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
    with config.usage_errors():
        pretrain(config)
