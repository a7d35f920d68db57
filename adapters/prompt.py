"""The one place that renders a prompt.

    renderer = PromptRenderer.load(folder, recipe.prompt)
    renderer.text("What is 2+2?")    # '<|im_start|>user\\nWhat is 2+2?...'
    renderer.token_ids("What is 2+2?")

A recipe's instruction and its few-shot examples are written into the chat template, so that a plain
user message sent to the server becomes, token for token, the string on which rollouts were sampled
and entropies measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.base_checkpoint import BaseCheckpoint
from adapters.recipe import Prompt, look_up

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# For a base model without a chat format. No space follows "Answer:", since tokenizers join a space
# to the word behind it.
PLAIN = """{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- 'Question: ' + message['content'] | trim + '\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Answer: ' + message['content'] | trim + '\\n\\n' -}}
{%- else -%}
{{- message['content'] | trim + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'Answer:' -}}
{%- endif -%}
"""
PLAIN_STOP = ("\nQuestion:",)  # a base model goes on with the next question
_BOS = "{{- bos_token -}}\n"

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
# Before the conversation, behind its system message.
_EXAMPLES = """{%- if messages[0]['role'] == 'system' -%}
{%- set messages = messages[:1] + EXAMPLES + messages[1:] -%}
{%- else -%}
{%- set messages = EXAMPLES + messages -%}
{%- endif -%}
"""


@dataclass(frozen=True)
class PromptFormat:
    """What server and trainer both render with, for one tokenizer and recipe."""

    template: str  # Jinja, with instruction and examples in it
    stop: tuple[str, ...]  # strings that end an answer
    source: str  # whose template it is, for people

    @property
    def digest(self) -> str:
        """SHA-256 of the template."""
        return digest(self.template)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PromptFormat:
        """The tokenizer's own chat template, else the recipe's, else a plain question and answer.

        Of several templates that a tokenizer names, the default serves chats.
        """
        own = getattr(tokenizer, "chat_template", None)
        own = own.get("default") if isinstance(own, dict) else own
        stop: Sequence[str] = ()
        if own is not None:
            template, source = own, "the tokenizer's own chat template"
        elif prompt.chat_template is not None:
            template, source = prompt.chat_template, "the recipe's (the tokenizer has none)"
        else:
            template, source = PLAIN, "a plain question and answer (the tokenizer has none)"
            stop = PLAIN_STOP
            if tokenizer.bos_token and (adds_bos(tokenizer) if prompt.bos is None else prompt.bos):
                template = _BOS + template
        stop = stop if prompt.stop is None else prompt.stop
        return cls(_preamble(prompt) + template, tuple(stop), source)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ValueError if it has none."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: its tokenizer cannot be read ({error})") from error
    if not tokenizer("0aA.")["input_ids"]:  # transformers makes an empty one of an empty folder
        raise ValueError(f"{folder}: the folder has no tokenizer")
    return tokenizer


def digest(template: str) -> str:
    """What manifests call a chat template by."""
    return hashlib.sha256(template.encode()).hexdigest()


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself begins a text with its BOS."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _preamble(prompt: Prompt) -> str:
    """Jinja that puts examples and instruction among the messages."""
    text = ""
    if prompt.instruction is not None:
        role = _SYSTEM if prompt.instruction_role == "system" else _USER
        text = role.replace("INSTRUCTION", _literal(prompt.instruction))
    if prompt.examples:
        text += _EXAMPLES.replace("EXAMPLES", _literal(_examples(prompt)))
    return text


def _examples(prompt: Prompt) -> list[dict[str, str]]:
    """The few-shot examples as messages; their questions are put as the user's will be."""
    asked = prompt.instruction if prompt.instruction_role == "user" else None
    messages = []
    for example in prompt.examples:
        repeat = asked is not None and asked not in example.question
        question = f"{example.question}\n{asked}" if repeat else example.question
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": example.answer})
    return messages


def _literal(value: object) -> str:
    """A Jinja literal. JSON is one, but for escapes beyond the first 65,536 characters."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class PromptRenderer:
    """Problem text -> prompt, for one tokenizer and recipe."""

    tokenizer: PreTrainedTokenizerBase
    template: str
    stop: tuple[str, ...] = ()  # strings that end an answer

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> PromptRenderer:
        found = PromptFormat.of(tokenizer, prompt)
        return cls(tokenizer, found.template, found.stop)

    @classmethod
    def load(cls, base: Path, prompt: Prompt) -> PromptRenderer:
        """With the tokenizer of the model folder `base`. Raises ValueError if it has none."""
        renderer = cls.of(read_tokenizer(base), prompt)
        if prompt.chat_template is not None and renderer.tokenizer.chat_template is not None:
            logger.info("prompt.chat_template is not used: the tokenizer has its own")
        return renderer

    @property
    def digest(self) -> str:
        """SHA-256 of the template."""
        return digest(self.template)

    def text(self, problem: str) -> str:
        """The prompt as a string, up to where the answer begins."""
        return self._chat([{"role": "user", "content": problem}])

    def token_ids(self, problem: str) -> list[int]:
        """The prompt as token ids; special tokens come from the template alone, as served."""
        return self._ids(self.text(problem))

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The prompt of a whole conversation as token ids."""
        return self._ids(self._chat(messages))

    def _chat(self, messages: Sequence[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


@dataclass(frozen=True)
class ShownPrompt:
    """A question's prompt, and where it comes from; `print` shows it to people."""

    model: str
    recipe: str
    reason: str  # why this recipe
    template: str  # whose
    stop: tuple[str, ...]
    bos: str
    text: str
    token_ids: list[int]
    tokens: list[str]

    def facts(self) -> dict[str, Any]:
        """The same for programs."""
        return asdict(self)

    def __str__(self) -> str:
        stop = ", ".join(map(repr, self.stop)) or "none beside the end-of-sequence token"
        head = [
            f"model     {self.model}",
            f"recipe    {self.recipe}: {self.reason}",
            f"template  {self.template}",
            f"stop      {stop}",
            f"BOS       {self.bos}",
            f"tokens    {len(self.token_ids)}",
        ]
        rows = [
            f"{token_id:>8}  {token!r}"
            for token_id, token in zip(self.token_ids, self.tokens, strict=True)
        ]
        return "\n".join([*head, "", self.text, "", *rows])


def show_prompt(base: BaseCheckpoint, question: str, family: str = "") -> ShownPrompt:
    """The prompt that server and trainer make of `question`.

    Raises:
        ValueError: `family` is unknown, or the tokenizer cannot be read.
    """
    found = look_up(base, family)
    tokenizer = read_tokenizer(base.folder)
    form = PromptFormat.of(tokenizer, found.recipe.prompt)
    renderer = PromptRenderer(tokenizer, form.template, form.stop)
    ids = renderer.token_ids(question)
    return ShownPrompt(
        model=f"{base.name} ({base.architecture})",
        recipe=found.recipe.family,
        reason=found.reason,
        template=form.source,
        stop=form.stop,
        bos=_bos(tokenizer, ids),
        text=renderer.text(question),
        token_ids=ids,
        tokens=[tokenizer.decode([token_id]) for token_id in ids],
    )


def _bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """How a prompt begins, as to the beginning-of-sequence token."""
    bos = tokenizer.bos_token
    if bos is None:
        return "the tokenizer has none"
    leading = next((at for at, one in enumerate(ids) if one != tokenizer.bos_token_id), len(ids))
    if leading > 1:
        return f"{bos}, {leading} times: the template adds one too many"
    if leading == 1:
        return f"{bos}, once"
    return f"{bos} is not added" + (
        ", though the tokenizer adds it to plain texts" if adds_bos(tokenizer) else ""
    )
