"""Extras: declared, found installed or missing, and what the wheel carries."""

from __future__ import annotations

import subprocess
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from support import ROOT

from reasonmaxxer import extras
from reasonmaxxer.extras import PURPOSES, install_command, requirements

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Libraries that training needs and serving does not.
TRAINING = {"accelerate", "datasets", "math-verify", "peft", "reasoning-gym", "trl"}


def names(texts: list[str]) -> set[str]:
    return {Requirement(text).name for text in texts}


def test_every_extra_has_a_purpose_and_every_purpose_an_extra() -> None:
    assert set(PURPOSES) == set(PROJECT["project"]["optional-dependencies"]) - {"dev"}


def test_what_the_serving_image_installs_has_no_training_library() -> None:
    declared = PROJECT["project"]["optional-dependencies"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    for build in ("cpu", "gpu"):
        assert f"-e '.[serve,cloud,{build}]'" in dockerfile
        parts = ("serve", "cloud", build)
        installed = names([one for part in parts for one in declared[part]])
        installed |= names(PROJECT["project"]["dependencies"])
        assert not installed & TRAINING
    assert "COPY training" not in dockerfile


def test_installed_metadata_and_the_checkout_say_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkout = requirements()
    declared = [
        f"{text} ; extra == '{extra}'"
        for extra, texts in PROJECT["project"]["optional-dependencies"].items()
        for text in texts
    ]
    everything = [*PROJECT["project"]["dependencies"], *declared, "no requirement ;;"]
    monkeypatch.setattr(extras, "PYPROJECT", tmp_path / "absent.toml")
    monkeypatch.setattr(metadata, "requires", lambda _: everything)
    found = requirements()
    assert set(found) == set(PURPOSES)
    for name, listed in found.items():
        assert list(map(str, listed)) == list(map(str, checkout[name]))
    assert {"peft", "trl"} <= {one.name for one in found["research"]}  # it trains, too
    assert install_command("serve", "gpu") == "pip install 'reasonmaxxer[serve,gpu]'"


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"httpx": "0.1", "locust": None}
    monkeypatch.setattr(extras, "installed_version", lambda name: versions.get(name, "99.0"))
    found = {extra.name: extra for extra in extras.extras()}
    assert found["load"].missing == ("httpx>=0.28", "locust>=2.40")
    assert found["gguf"].installed


def test_a_package_that_is_not_installed_has_no_requirements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "PYPROJECT", tmp_path / "absent.toml")
    monkeypatch.setattr(metadata, "requires", absent)
    monkeypatch.setattr(metadata, "version", absent)
    assert extras.extras() == []
    assert extras.own_version() == "unknown"


def test_every_data_file_of_a_package_is_declared() -> None:
    """`make wheel-test` looks into a built wheel; this finds a forgotten file in milliseconds."""
    setuptools = PROJECT["tool"]["setuptools"]
    packages = {name.rstrip("*") for name in setuptools["packages"]["find"]["include"]}
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path in map(Path, filter(None, listed.stdout.split("\0"))):
        package, inside = path.parts[0], "/".join(path.parts[1:])
        if package not in packages or path.suffix == ".py" or inside.startswith("store/"):
            continue
        patterns = setuptools["package-data"].get(package, [])
        assert any(fnmatch(inside, pattern) for pattern in patterns), path


def test_the_shipped_store_stays_out_of_site_packages() -> None:
    for patterns in PROJECT["tool"]["setuptools"]["package-data"].values():
        assert not any(pattern.startswith("store") for pattern in patterns)
