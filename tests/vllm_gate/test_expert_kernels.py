"""LoRA kernels for experts do the same with metadata that is made on the device."""

from __future__ import annotations

from pathlib import Path

import interpreter
from support import findings


@interpreter.needed
def test_experts_get_the_same() -> None:
    found = findings(Path(__file__).with_name("expert_kernels.py"), **interpreter.ENVIRONMENT)
    assert len(found) == 16
    for case, (theirs, ours, largest) in found.items():
        assert max(theirs, ours) < 1e-4, case
        assert (largest > 0.1) == ("no adapter" not in case)
