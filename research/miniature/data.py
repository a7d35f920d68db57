"""Documents as the model sees them: rendered by the served chat template, encoded, batched."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from adapters.prompt import PromptRenderer
from adapters.recipe import Prompt
from research.miniature.tokenizer import END

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Batch = dict[str, "torch.Tensor"]


class Document(NamedTuple):
    """Token ids of prompt and solution; how many of them are the prompt."""

    ids: list[int]
    prompt: int


def encode(tokenizer: "PreTrainedTokenizerFast", rows: Sequence[dict[str, str]]) -> list[Document]:
    """Encode the rows of a corpus.

    Prompt and solution are encoded apart, as in serving, where the prompt comes alone.
    """
    renderer = PromptRenderer.of(tokenizer, Prompt())
    documents = []
    for start in range(0, len(rows), 10_000):  # the fast tokenizer's results are bulky
        part = rows[start : start + 10_000]
        prompts = [renderer.text(row["problem"]) for row in part]
        solutions = [row["solution"] + END for row in part]
        for prompt, solution in zip(
            tokenizer(prompts, add_special_tokens=False)["input_ids"],
            tokenizer(solutions, add_special_tokens=False)["input_ids"],
            strict=True,
        ):
            documents.append(Document(prompt + solution, len(prompt)))
    return documents


def batches(documents: list[Document], size: int, pad: int, seed: int) -> list[Batch]:
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
        group = sorted(order[start : start + 64 * size], key=lambda i: len(documents[i].ids))
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
