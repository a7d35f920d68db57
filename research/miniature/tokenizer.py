"""A byte-level BPE tokenizer for the miniature world, with a ChatML template.

Digits and symbols stand alone (arithmetic is learned digit by digit, and a choice between
operations falls on one token); words keep their leading space and become single tokens. The 256
bytes are in the vocabulary, so that any input can be encoded and decodes exactly, but for Unicode's
normal form: like every Qwen2 tokenizer this one normalises to NFC first. It is an instance of
Qwen2's class because transformers puts that class's pipeline in the place of whatever
tokenizer.json says wherever config.json says "qwen2": another one would train on ids that nobody
serves.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# What merges are learned within: a word with its space, else one digit, space or symbol. Finer
# than what Qwen2's pipeline splits a text into, so that no merge joins two symbols.
_PIECES = r" ?\p{L}+|\s|[^\s\p{L}]"

CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, max_length: int
) -> "PreTrainedTokenizerFast":
    """Train on texts without special tokens.

    Args:
        texts: what merges are learned from.
        vocabulary: number of tokens, 256 bytes and the three special ones included.
        max_length: the model's context, in tokens.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    tokenizer: PreTrainedTokenizerFast = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    return tokenizer
