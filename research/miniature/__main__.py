"""python -m research.miniature problems|corpus|pretrain|measure [flags]"""

import sys
from collections.abc import Callable

from research.miniature import commands, measure, pretrain

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "problems": commands.problems,
    "corpus": commands.corpus,
    "pretrain": pretrain.main,
    "measure": measure.main,
}


def main(argv: list[str]) -> None:
    """Run one sub-command. An unknown one ends with exit code 2."""
    if argv[:1] in (["-h"], ["--help"]):
        print(f"usage: {__doc__}")
        return
    if not argv or argv[0] not in COMMANDS:
        given = f"'{argv[0]}' is unknown" if argv else "none given"
        print(
            f"python -m research.miniature: error: command: {given}\nusage: {__doc__}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
