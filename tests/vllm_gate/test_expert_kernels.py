"""LoRA kernels for experts do the same with metadata that is made on the device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import interpreter
from support import ROOT


@interpreter.needed
def test_experts_get_the_same() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("expert_kernels.py")],
        env=os.environ | interpreter.ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert len(found) == 16
    for case, (theirs, ours, largest) in found.items():
        assert max(theirs, ours) < 1e-4, case
        assert (largest > 0.1) == ("no adapter" not in case)
