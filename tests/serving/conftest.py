"""What the gate's tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gate_models import make_adapters, make_model
from gate_reference import Reference
from support import Server, StartServer, make_adapter, sign

from adapters.manifest import Gate
from loadtests.preloaded import Command, preloaded

if TYPE_CHECKING:
    from test_gate_exact import World

CALIBRATED = [(0.01, 1.0), (0.1, 0.5), (0.5, 0.05)]  # (rate, tau)
FLAGS = (
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    # Else a small model may fill its JSON with white space for ever.
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)


# What they import by and by, so that it is there before the first call.
SERVING = ("serving.launch", "transformers.models.auto", "vllm.entrypoints.launchers.cli_args")
ENGINE = ("vllm_gate.scheduler", "vllm_gate.cpu.worker", "vllm_gate.runner_v1")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> list[Path]:
    """Adapters of different content, to be published under any name."""
    place = tmp_path_factory.mktemp("folders")
    return [make_adapter(place, f"v{seed}", base_folder, seed=seed) for seed in range(4)]


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """`python -m serving`, offline, forked for every call from a process that has imported vLLM."""
    folder, environment = tmp_path_factory.mktemp("serving"), os.environ | {"HF_HUB_OFFLINE": "1"}
    with preloaded("serving.__main__", folder, *SERVING, environment=environment) as command:
        yield command


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """gate_engine.py, forked for every call from a process that has imported vLLM."""
    from test_gate_exact import engine_environment

    folder = tmp_path_factory.mktemp("engine")
    environment = engine_environment(tmp_path_factory.mktemp("metrics"))
    with preloaded("gate_engine", folder, *ENGINE, environment=environment) as command:
        yield command


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, engine: Command) -> Callable[[str], World]:
    """The world of an architecture; made once."""
    from test_gate_exact import World

    known: dict[str, World] = {}

    def get(architecture: str) -> World:
        if architecture not in known:
            folder = tmp_path_factory.mktemp(architecture)
            model = make_model(architecture, folder / "base")
            adapters = make_adapters(model, folder)
            known[architecture] = World(model, adapters, Reference(model, adapters), engine)
        return known[architecture]

    return get


@pytest.fixture(scope="session")
def here(world: Callable[[str], World]) -> World:
    """The world of Qwen2, where the architecture does not matter."""
    return world("qwen2")


@pytest.fixture(scope="session")
def gated_store(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """`alpha` with a calibration, `plain` without a manifest."""
    store = tmp_path_factory.mktemp("gated-store")
    gate = Gate(tau=0.3, rate=0.2, tokens=1000, table=CALIBRATED)
    sign(make_adapter(store, "alpha", base_folder, seed=1), base_folder, gate=gate)
    make_adapter(store, "plain", base_folder, seed=2, manifest=False)
    return store


@pytest.fixture(scope="session")
def gated(
    start_server: StartServer,
    gated_store: Path,
    base_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The real server over `gated_store`; it makes responses in the background."""
    work = tmp_path_factory.mktemp("gated-server")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_RESPONSES_API_STORE", "1")
        with start_server(base_folder, gated_store, work, *FLAGS) as running:
            environment.undo()
            yield running


@pytest.fixture(autouse=True)
def plain_folders_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a plain folder is taken as complete when it is found."""
    from serving import plain_folders

    monkeypatch.setattr(plain_folders, "QUIET", 0.0)
