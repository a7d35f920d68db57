"""What a command calls itself in usage lines and errors.

`reasonmaxxer fit` runs the same function as `python -m training.fit`. The console script says so in
`sys.argv[0]`, where argparse looks for a program's name too.
"""

from __future__ import annotations

import sys

CONSOLE = "reasonmaxxer"


def program(module: str) -> str:
    """`reasonmaxxer COMMAND` where the console script started it, else `python -m MODULE`."""
    called = sys.argv[0] if sys.argv else ""
    return called if called.startswith(f"{CONSOLE} ") else module
