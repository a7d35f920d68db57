"""`reasonmaxxer reproduce --suite real|miniature`: measure the claims anew, or go on measuring.

    reasonmaxxer reproduce --suite real --bases Qwen/Qwen2.5-Coder-0.5B-Instruct
    reasonmaxxer reproduce --suite miniature --quick

The other options are those of the suite: `reasonmaxxer reproduce --suite real --help`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from adapters.program import program

SUITES = {"real": "research.real.__main__", "miniature": "research.paper.__main__"}


def main(argv: list[str] | None = None) -> int:
    """Hand the other arguments to the suite's own command."""
    parser = argparse.ArgumentParser(
        prog=program("python -m research.reproduce"),
        description="Measure the claims on models that anyone can get. A suite has more options: "
        "--suite NAME --help.",
        add_help=False,
    )
    parser.add_argument("--suite", choices=list(SUITES), help="real language models, or miniatures")
    given, rest = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    if given.suite is None:
        asked = bool({"-h", "--help"} & set(rest))
        parser.print_help(sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    importlib.import_module(SUITES[given.suite]).main(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
