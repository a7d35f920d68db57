"""What an error says, in one line: for messages and logs that are one line themselves."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of its text; of an error without a text, the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
