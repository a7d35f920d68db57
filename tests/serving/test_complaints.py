"""What users complain of in vLLM's adapters, shown on stock vLLM 0.32; ours is tested beside it.

| stock | ours |
|---|---|
| cached prefixes of the old content under a reused name | test_server_adapters, test_server_swap |
| read from disk again at every step | test_registry: `load_inplace` is never set |
| unloading frees nothing | test_registry, test_server_swap: what is left when idle |
| a name leads out of the folder | below; tests/adapters: hostile names |
| an adapter for other weights is accepted | test_server_adapters: wrong-weights |
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import findings, make_adapter, sign

from adapters.adapter import CONFIG, AdapterError
from adapters.base_checkpoint import BaseCheckpoint
from adapters.store import Store


@pytest.mark.engine
def test_stock_vllm_has_them_all(tmp_path: Path, base_folder: Path) -> None:
    case = {
        "base": str(base_folder),
        "store": str(tmp_path / "store"),
        "adapter": str(make_adapter(tmp_path / "store", "alpha", base_folder, seed=1)),
        "other": str(make_adapter(tmp_path, "other", base_folder, seed=2)),
        "foreign": str(make_adapter(tmp_path, "foreign", base_folder, seed=3)),
    }
    outside = make_adapter(tmp_path, "outside", base_folder, seed=4)
    config = json.loads((outside / CONFIG).read_text())
    (outside / CONFIG).write_text(
        json.dumps(config | {"base_model_name_or_path": str(base_folder)})
    )
    sign(Path(case["foreign"]), base_folder, fingerprint="0" * 64)  # says whose it is
    found = findings(Path(__file__).with_name("stock_faults.py"), case)
    assert found.pop("loads of one request of 12 tokens") >= 12
    assert found.pop("tokens taken from the old content's cache") >= 64
    assert found == {
        "in the engine after unloading": [1],
        "tokens by an adapter made for other weights": 12,
        "path of ../outside": f"{tmp_path}/store/../outside",
    }
    with pytest.raises(AdapterError, match="made for other weights"):
        Store(tmp_path).get("foreign", BaseCheckpoint.open(str(base_folder)))


PIECES = st.sampled_from(["..", ".", "/", "outside", "alpha", "\\", "%2e", "\0", "~", "@", "\n"])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, min_size=1, max_size=8).map("".join), st.text(max_size=80)))
def test_no_name_leads_out(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp() / "hostile"
    for folder in ("store/alpha", "outside"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / CONFIG).write_text("{}")
    try:
        found = Store(root / "store").resolve(name)
    except KeyError:
        return
    assert Store(root / "store").path(found) == root / "store" / "alpha"
