"""Where the default store lies: named, in the working directory, in a checkout, or the user's."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters import places
from adapters.places import STORE_VARIABLE, default_model, default_store, user_store
from adapters.store import SHIPPED


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an installed wheel: neither a store nor a model beside the code."""
    monkeypatch.setattr(places, "SHIPPED", tmp_path / "site-packages" / "adapters" / "store")
    monkeypatch.setattr(places, "SHIPPED_MODEL", tmp_path / "site-packages" / "models" / "tiny")


def test_a_checkout_has_a_store_and_a_model() -> None:
    assert default_store() == SHIPPED
    assert Path(default_model(), "config.json").is_file()


def test_the_working_directory_comes_before_the_checkout(tmp_path: Path) -> None:
    folder = tmp_path / "adapters" / "store"
    folder.mkdir(parents=True)
    assert default_store() == folder


def test_the_variable_comes_first_and_an_empty_one_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapters" / "store").mkdir(parents=True)
    monkeypatch.setenv(STORE_VARIABLE, "elsewhere")
    assert default_store() == tmp_path / "elsewhere"
    monkeypatch.setenv(STORE_VARIABLE, "")
    assert default_store() == tmp_path / "adapters" / "store"


@pytest.mark.usefixtures("installed")
def test_an_installed_package_uses_the_users_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_store() == tmp_path / "home" / ".local" / "share" / "reasonmaxxer" / "store"
    assert default_model() == ""
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_store() == tmp_path / "home" / ".local" / "share" / "reasonmaxxer" / "store"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_store() == user_store() == tmp_path / "data" / "reasonmaxxer" / "store"


@pytest.mark.usefixtures("installed")
def test_a_user_without_a_home_gets_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_store() == tmp_path / "adapters" / "store"
