"""A byte-level BPE tokenizer for the miniature world, with a ChatML template.

Digits and symbols stand alone (arithmetic is learned digit by digit, and a choice between
operations falls on one token); words keep their leading space and become single tokens. The 256
bytes are in the vocabulary, so that any input encodes and decodes exactly.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# A word with its space and perhaps a backslash (\boxed), else one digit, space or symbol.
_PIECES = r" ?\\?\p{L}+|\s|[^\s\p{L}]"

CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str], vocabulary: int, max_length: int
) -> "PreTrainedTokenizerFast":
    """Train on rendered documents.

    Args:
        texts: documents as the model will see them, special tokens included.
        vocabulary: number of tokens, 256 bytes and the special ones included.
        max_length: the model's context, in tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The trainer does not know special tokens when it reads them: cut them out.
    special = re.compile("|".join(map(re.escape, (PAD, START, END))))
    tokenizer.train_from_iterator((part for text in texts for part in special.split(text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
