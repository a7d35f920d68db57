"""`python -m reasonmaxxer`: the console script without its installation."""

import sys

from reasonmaxxer.cli import main

if __name__ == "__main__":  # vLLM spawns processes that import this module again
    sys.exit(main())
