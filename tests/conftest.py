"""What the tests share: the miniature base, a store of good and bad adapters, real servers.

The servers are started once for the whole run, by the first test that asks for one: with tests in
several processes (`--dist loadgroup`) all that share a server run in the same one (markers.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support import (
    ROOT,
    Reference,
    Refused,
    Server,
    StartServer,
    configured,
    flip_bit,
    make_adapter,
    running_server,
    sign,
)

from adapters.adapter import WEIGHTS

if TYPE_CHECKING:
    from cloud import Cloud

pytest_plugins = ("markers",)
settings.register_profile("any machine", deadline=None)  # one that is busy is slow
settings.load_profile("any machine")
PISSA = {"init_lora_weights": "pissa"}  # vLLM's own loader refuses it


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Call a command that must end with exit code 2; returns what it says on stderr."""

    def call(command: Callable[..., object], *arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            command(*arguments)
        assert stop.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Tests that are coroutines run in asyncio's event loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The shipped miniature base, or the one REASONMAXXER_TEST_BASE names."""
    return Path(os.environ.get("REASONMAXXER_TEST_BASE", ROOT / "models" / "tiny-qwen2"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """A store of two good adapters and one of each kind that must be refused."""
    store = tmp_path_factory.mktemp("store")
    make_adapter(store, "alpha", base_folder, seed=1)
    make_adapter(store, "beta", base_folder, seed=2, manifest=False)

    corrupt = make_adapter(store, "corrupt", base_folder, seed=3, manifest=False) / WEIGHTS
    corrupt.write_bytes(corrupt.read_bytes()[:-100])
    flip_bit(make_adapter(store, "tampered", base_folder, seed=4) / WEIGHTS)
    pickled = make_adapter(store, "pickled", base_folder, seed=5)
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    for name, field in (("odd-config", {"rank_pattern": ["q_proj"]}), ("pissa", PISSA)):
        configured(make_adapter(store, name, base_folder, manifest=False), **field)
    make_adapter(store, "too-large", base_folder, rank=65)
    make_adapter(
        store,
        "wrong-shape",
        base_folder,
        manifest=False,
        config={"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2},
    )
    sign(make_adapter(store, "wrong-weights", base_folder), base_folder, fingerprint="0" * 64)
    outside = make_adapter(tmp_path_factory.mktemp("outside"), "link", base_folder)
    (store / "link").symlink_to(outside)
    (store / "empty").mkdir()
    (store / "empty" / "README.md").write_text("to be filled\n")
    return store


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """A real S3 over HTTP behind a proxy that can fail; the environment has its keys."""
    from cloud import KEYS, running_cloud

    with pytest.MonkeyPatch.context() as environment, running_cloud() as running:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": running.endpoint}.items():
            environment.setenv(name, value)
        environment.delenv("AWS_PROFILE", raising=False)
        yield running


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    """What starts a server asks for this, and bears the marker `server` for it (markers.py)."""
    return running_server


@pytest.fixture(scope="session")
def server(
    start_server: StartServer,
    store: Path,
    base_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The real server over `store`, in float32, with a key; it looks at the base's entropies."""
    work = tmp_path_factory.mktemp("server")
    with start_server(base_folder, store, work, "--default-gate-rate", "0.05") as running:
        yield running


@pytest.fixture(scope="session")
def pressed(
    start_server: StartServer, base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with few KV blocks (preemptions), small steps (prompts in pieces), and more adapters
    than slots; its log is for machines. Its temporary files lie in a folder of their own.
    """
    work = tmp_path_factory.mktemp("pressed")
    store = work / "store"
    shutil.copytree(ROOT / "adapters" / "store" / "tiny-math", store / "tiny-math")
    make_adapter(store, "alpha", base_folder, seed=1)
    wide = ("q_proj", "v_proj", "up_proj", "down_proj")
    make_adapter(store, "gamma", base_folder, seed=3, rank=16, targets=wide)
    make_adapter(store, "plain", base_folder, seed=2, manifest=False)
    flags = ["--block-size", "32", "--kv-cache-memory-bytes", str(2**21)]
    flags += ["--max-num-batched-tokens", "128", "--max-loras", "2", "--max-cpu-loras", "2"]
    flags += ["--max-num-seqs", "48", "--log-format", "json"]
    flags += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with pytest.MonkeyPatch.context() as environment:
        # vLLM's sockets lie there, and a socket's path may have 107 characters.
        environment.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        with start_server(base_folder, store, work, *flags) as running:
            environment.undo()
            yield running


@pytest.fixture(scope="session")
def reference(base_folder: Path, store: Path) -> Reference:
    """Hugging Face's greedy output for the same base and store."""
    import torch

    torch.set_num_threads(1)  # it runs beside the engine
    return Reference(base_folder, store)
