"""`python -m serving` in a process that was forked from one that has imported vLLM.

Its engine and worker are forks too, where serving/preloading.py would begin a fork server for them.
"""

from serving import preloading
from serving.__main__ import main as serve


def main() -> int:
    """Serve; the command line is that of `python -m serving`."""
    preloading.use("fork")
    return serve()
