"""The one place that renders a prompt.

A family's instruction is written into its chat template, so that a plain user message sent to the
server becomes, token for token, the string on which rollouts were sampled and entropies measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.recipe import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM = """{%- if messages[0]['role'] != 'system' -%}
{%- set messages = [{'role': 'system', 'content': INSTRUCTION}] + messages -%}
{%- endif -%}
"""
# Appended to the last message if it is a user's and does not carry the instruction already.
_USER = """{%- if messages[-1]['role'] == 'user' and messages[-1]['content'] is string \
and INSTRUCTION not in messages[-1]['content'] -%}
{%- set messages = messages[:-1] + \
[{'role': 'user', 'content': messages[-1]['content'] + '\\n' + INSTRUCTION}] -%}
{%- endif -%}
"""


def chat_template(prompt: Prompt, own: str | dict[str, str] | None) -> str:
    """The family's Jinja chat template: what the server and the trainer both render with.

    Args:
        own: the tokenizer's; of several named ones the default serves chats.

    Raises:
        ValueError: neither the family nor the tokenizer has a chat template.
    """
    template = prompt.chat_template or (own.get("default") if isinstance(own, dict) else own)
    if template is None:
        raise ValueError(
            "prompt.chat_template: the tokenizer has no chat template and the family none either; "
            "set one in the recipe"
        )
    if prompt.instruction is None:
        return template
    preamble = _SYSTEM if prompt.instruction_role == "system" else _USER
    # A JSON string literal is a Jinja string literal too.
    return preamble.replace("INSTRUCTION", json.dumps(prompt.instruction)) + template


@dataclass(frozen=True)
class PromptRenderer:
    """Problem text -> prompt, for one tokenizer and family."""

    tokenizer: PreTrainedTokenizerBase
    template: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PromptRenderer:
        return cls(tokenizer, chat_template(prompt, tokenizer.chat_template))

    @classmethod
    def load(cls, base: Path, prompt: Prompt) -> PromptRenderer:
        """With the tokenizer of the model folder `base`."""
        from transformers import AutoTokenizer

        return cls.of(AutoTokenizer.from_pretrained(base), prompt)

    def text(self, problem: str) -> str:
        """The prompt as a string, up to where the answer begins."""
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": problem}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def token_ids(self, problem: str) -> list[int]:
        """The prompt as token ids; special tokens come from the template alone, as served."""
        ids: list[int] = self.tokenizer(self.text(problem), add_special_tokens=False)["input_ids"]
        return ids
