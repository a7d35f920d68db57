"""Chat-format data: a question and its answer from a list of messages.

    {"messages": [{"role": "user", "content": "1 + 1?"},
                  {"role": "assistant", "content": "#### 2"}]}

The question is the one user message, and the answer what the last assistant message states as its
final answer, unless the row has an answer column. ShareGPT's `from` and `value` are read too. A
system message is left out: the recipe of the base has its own.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from training.grading.statement import stated_answer

COLUMNS = ("messages", "conversations", "conversation", "prompt")  # where such data keeps them
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


def messages_of(value: Any) -> list[Message] | None:
    """The messages that a column holds, also as JSON text; None: it holds something else.

    Raises:
        ValueError: they are messages, but one has no role or no text.
    """
    if isinstance(value, str) and value.lstrip().startswith("[") and '"content"' in value:
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return None
    if not any({"role", "from"} & one.keys() for one in value):
        return None
    return [_message(number, one) for number, one in enumerate(value, 1)]


def _message(number: int, values: dict[str, Any]) -> Message:
    role, content = (
        values.get("role", values.get("from")),
        values.get("content", values.get("value")),
    )
    if isinstance(content, list):  # parts, as OpenAI's API has them
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"message {number} has parts that are no text")
        content = "\n".join(map(str, texts))
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(f"message {number} needs a role and a content that are text")
    return Message(_ROLES.get(role.lower(), role.lower()), content)


def question_of(messages: list[Message]) -> str:
    """The one question that is asked. Raises ValueError where there is none, or several."""
    asked = [one.content for one in messages if one.role == "user" and one.content.strip()]
    if not asked:
        raise ValueError("has no user message")
    if len(asked) > 1:
        raise ValueError(f"has {len(asked)} user messages; a problem is one question")
    return asked[0]


def answer_of(messages: list[Message]) -> str:
    """The final answer of the last assistant message. Raises ValueError where there is none."""
    given = [one.content for one in messages if one.role == "assistant"]
    if not given:
        raise ValueError("has no assistant message to take the answer from")
    stated = stated_answer(given[-1])
    if not stated.answer or not stated.answer.strip():
        raise ValueError(f"the last assistant message states no final answer ({stated.reason})")
    return stated.answer
