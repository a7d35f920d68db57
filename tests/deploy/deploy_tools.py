"""Where the tools of `make tools-deploy` are; tests that need them are skipped without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import ROOT

DEPLOY = ROOT / "deploy"
PYTHON = Path(os.environ.get("REASONMAXXER_DEPLOY_PYTHON", ROOT / ".venv-deploy/bin/python"))

needs_tools = pytest.mark.skipif(
    not PYTHON.exists(), reason="Helm and the schemas are not there; `make tools-deploy` gets them"
)
