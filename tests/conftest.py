"""What the tests share: the miniature base, a store of good and bad adapters, one real server.

The servers are started once for the whole run, by the first test that asks for one: with tests in
several processes (`--dist loadgroup`) all that share a server run in the same one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT, Reference, Server, make_adapter, running_server, sign

from adapters.adapter import CONFIG, WEIGHTS

PISSA = {"init_lora_weights": "pissa"}  # vLLM's own loader refuses it
SERVERS = ("server", "gated")  # fixtures


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay together too, for what its fixtures make once."""
    for item in items:
        names = getattr(item, "fixturenames", ())
        group = next((one for one in SERVERS if one in names), item.path.stem)
        item.add_marker(pytest.mark.xdist_group(group))


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
    tampered = make_adapter(store, "tampered", base_folder, seed=4) / WEIGHTS
    content = bytearray(tampered.read_bytes())
    content[-1] ^= 1
    tampered.write_bytes(content)
    pickled = make_adapter(store, "pickled", base_folder, seed=5)
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    for name, field in (("odd-config", {"rank_pattern": ["q_proj"]}), ("pissa", PISSA)):
        config = make_adapter(store, name, base_folder, manifest=False) / CONFIG
        config.write_text(json.dumps(json.loads(config.read_text()) | field))
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
def server(
    store: Path, base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The real server over `store`, in float32, with a key."""
    with running_server(base_folder, store, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def reference(base_folder: Path, store: Path) -> Reference:
    """Hugging Face's greedy output for the same base and store."""
    import torch

    torch.set_num_threads(1)  # it runs beside the engine
    return Reference(base_folder, store)
