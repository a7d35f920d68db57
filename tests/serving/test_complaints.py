"""What users complain of in vLLM's adapters, shown on stock vLLM 0.32; ours is tested beside it.

| stock | ours |
|---|---|
| cached prefixes of the old content under a reused name | test_server_adapters, test_server_swap |
| read from disk again at every step | fleet.Engine, which every story asks: no `load_inplace` |
| unloading frees nothing | test_aliases, test_server_swap: what is left when idle |
| a name leads out of the folder | tests/adapters/test_reference.py: hostile names |
| an adapter for other weights is accepted | test_server_adapters: wrong-weights |
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
