"""Measuring in processes of their own: one run each, whose figures are its last line, as JSON."""

from __future__ import annotations

import json
import resource
import subprocess
import sys


def measured_by(module: str, *flags: str) -> dict[str, float]:
    """What `python -m MODULE FLAGS` has measured; it shows its own progress."""
    command = [sys.executable, "-m", module, *flags]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def peak_mib(*, children: bool = False) -> float:
    """The most memory that this process has had, or the largest of its children."""
    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return resource.getrusage(who).ru_maxrss / 1024
