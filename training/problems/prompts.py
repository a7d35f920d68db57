"""Prompts without reference answers: from a file, or the questions of any source of problems.

    {"messages": [{"role": "user", "content": "What is 2+2?"}, ...]}     a conversation
    {"prompt": "What is 2+2?"}                                          a question

Conversations have the forms that `chat.py` reads. A column `problem` or `question` holds a question
too. What the assistant says at the end of a conversation is left out: the model is to answer
itself.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from training.problems.chat import COLUMNS as CHATS
from training.problems.chat import messages_of
from training.problems.rows import Row, read_rows
from training.problems.sources import load_problems

Prompt = list[dict[str, str]]  # messages: role, content
COLUMNS = (*CHATS, "problem", "question")
ROLES = ("system", "user", "assistant")


def load_prompts(
    source: str, *, limit: int | None = None, data_dir: Path | None = None, seed: int = 0
) -> list[Prompt]:
    """The prompts that `source` names: a file of rows, or a source of problems.

    Args:
        limit: at most so many, drawn at random with `seed`.
        data_dir: folder with local copies of benchmarks.

    Raises:
        ValueError: the source cannot be read, or a row is no prompt; the message names both.
    """
    if os.path.isfile(source):
        prompts = [_prompt(row) for row in read_rows(Path(source))]
        if limit is not None and len(prompts) > limit:
            prompts = random.Random(seed).sample(prompts, limit)
    else:
        try:
            problems = load_problems(source, limit=limit, data_dir=data_dir, shuffle=seed)
        except ValueError as error:
            raise ValueError(str(error).removeprefix("problems: ")) from error
        prompts = [question(problem.problem) for problem in problems]
    if not prompts:
        raise ValueError(f"{source} holds none")
    return prompts


def question(text: str) -> Prompt:
    """A conversation of one question."""
    return [{"role": "user", "content": text}]


def _prompt(row: Row) -> Prompt:
    column = next((name for name in COLUMNS if row.values.get(name)), None)
    if column is None:
        raise ValueError(f"{row.where}: has none of the columns {', '.join(COLUMNS)}")
    value = row.values[column]
    try:
        messages = messages_of(value)
    except ValueError as error:
        raise ValueError(f"{row.where}: {column}: {error}") from None
    if messages is None:
        if isinstance(value, str) and value.strip():
            return question(value)
        raise ValueError(f"{row.where}: {column}: must be text or a list of messages")
    for number, message in enumerate(messages, 1):
        if message.role not in ROLES:
            raise ValueError(
                f"{row.where}: {column}: message {number} has the role '{message.role}', which is "
                f"none of {', '.join(ROLES)}"
            )
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "user":
        raise ValueError(f"{row.where}: {column}: holds no question of a user to answer")
    return [message._asdict() for message in messages]
