"""Killed, out of space or read-only at every step of every operation: the old state or the new."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from faults import (
    CHANGING,
    GROWING,
    Fault,
    KillBefore,
    KillHalfway,
    Outcome,
    RefuseFrom,
    every_step,
    every_write,
    run,
    steps_of,
)
from safetensors.numpy import load_file, save_file
from tiny import contents, make_adapter

from adapters import vllm_loader
from adapters.__main__ import main
from adapters.adapter import WEIGHTS
from adapters.audit import verify
from adapters.collect import collect
from adapters.moves import FILE, LINE_LIMIT
from adapters.store import Store

Operation = Callable[[Store, Path], object]


def served(store: Store) -> dict[str, str]:
    """What each name gives: the hash of its content, which `verify` holds against it."""
    return {
        name: store.resolve(name).hash or store.get(name).hash  # a plain folder has none yet
        for name in store.names()
    }


def oldest(store: Store) -> str:
    """A version of alpha that no alias points at."""
    return store.history("alpha")[0].version


OPERATIONS: dict[str, Operation] = {
    "publish a new name": lambda store, sources: store.publish(sources / "5", "gamma"),
    "publish a new version": lambda store, sources: store.publish(sources / "5", "alpha"),
    "publish an old version": lambda store, sources: store.publish(sources / "1", "alpha"),
    "publish behind a torn line": lambda store, sources: store.publish(sources / "3", "beta"),
    "publish over a plain folder": lambda store, sources: store.publish(sources / "1", "plain"),
    "publish foreign names": lambda store, sources: store.publish(sources / "foreign", "alpha"),
    "publish over foreign names": lambda store, sources: store.publish(sources / "1", "foreign"),
    "adopt a plain folder": lambda store, _: store.adopt("plain"),
    "alias": lambda store, _: store.alias("alpha", oldest(store)),
    "alias a new name": lambda store, _: store.alias("newest", oldest(store)),
    "alias over a plain folder": lambda store, _: store.alias("plain", oldest(store)),
    "rollback": lambda store, _: store.rollback("alpha"),
    "gc": lambda store, _: collect(store, keep=0, grace=0),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for value in range(1, 6):
        make_adapter(folder / str(value), value=value)
    foreign = make_adapter(folder / "foreign", value=6) / WEIGHTS
    tensors = {key.removeprefix("base_model.model."): v for key, v in load_file(foreign).items()}
    save_file(tensors, foreign)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """A store with a past: versions wanted and not, a plain folder, rests of killed writers."""
    store = Store(tmp_path_factory.mktemp("prepared") / "store")
    for value in "1234":
        store.publish(sources / value, "alpha")
    store.publish(sources / "1", "beta")
    store.alias("latest", store.publish(sources / "2", "beta", alias=False).id)
    shutil.copytree(sources / "5", store.root / "plain")
    shutil.copytree(sources / "foreign", store.root / "foreign")
    (store.root / "alpha" / ".trash-1").mkdir()
    shutil.copy(sources / "1" / "adapter_config.json", store.root / "alpha" / ".trash-1")
    shutil.copytree(sources / "1", store.root / "beta" / ".tmp-1")
    with (store.root / "beta" / FILE).open("ab") as torn:
        torn.write(b'{"version":"beta@')
    shutil.copy(sources / "1" / "adapter_config.json", store.root / "beta")  # of an adoption
    assert verify(store) == []
    return store.root


CHECKED: dict[str, set[int]] = {}  # the states of the disk that were looked at


def state(root: Path) -> int:
    """All that is on the disk below `root`, but for random names and the times of moves."""
    found = []
    for path in root.rglob("*"):
        name = re.sub(r"\.(tmp|trash)-[^/]*", r".\1-", str(path.relative_to(root)))
        content = path.read_bytes() if path.is_file() else b""
        if path.name == FILE:
            content = re.sub(rb'"at":"[^"]*"', b"", content)
        found.append((name, path.lstat().st_mode, content))
    return hash(tuple(sorted(found)))


class Apply(NamedTuple):
    """An operation on a store, as another process can be told of it."""

    name: str
    root: Path
    sources: Path

    def __call__(self) -> object:
        return OPERATIONS[self.name](Store(self.root), self.sources)


class Trial:
    """One operation on fresh copies of the prepared store."""

    def __init__(self, folder: Path, prepared: Path, sources: Path, name: str) -> None:
        self.prepared, self.name = prepared, name
        self.store = Store(folder / "store")
        self.apply = Apply(name, self.store.root, sources)
        self.reset()
        self.old = served(self.store)
        self.steps = steps_of(self.apply)
        self.new = served(self.store)
        self.after = contents(self.store.root)
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.store.root, ignore_errors=True)
        shutil.copytree(self.prepared, self.store.root)

    def check(self) -> None:
        """Sound, old or new; and the operation still works, after which nothing is left over.

        Many steps leave the same on the disk; it is looked at once.
        """
        known = CHECKED.setdefault(self.name, set())
        if (found := state(self.store.root)) not in known:
            self._check()
            known.add(found)

    def _check(self) -> None:
        assert verify(self.store) == []
        assert served(self.store) in (self.old, self.new)
        if self.name == "rollback" and served(self.store) == self.new:
            return  # once more would lead further back
        self.apply()
        assert served(self.store) == self.new
        collect(self.store, keep=10, grace=0)
        assert verify(self.store) == []
        rests = [path for path in self.store.root.rglob(".*") if path.name[:2] in (".t", ".T")]
        assert rests == []


@pytest.fixture(params=OPERATIONS)
def trial(request: pytest.FixtureRequest, quick_disk: Path, prepared: Path, sources: Path) -> Trial:
    return Trial(quick_disk, prepared, sources, request.param)


def test_killed_before_any_step_it_is_the_old_state_or_the_new(trial: Trial) -> None:
    kills = 0
    for outcome in every_step(trial.apply, KillBefore):
        kills += outcome.killed
        trial.check()
        trial.reset()
    assert outcome.error is None  # the last one ran undisturbed
    assert kills == len(outcome.steps) > 1


def test_killed_halfway_through_any_write_it_is_the_old_state_or_the_new(trial: Trial) -> None:
    """Killed after a step that is no write, it is killed before the next."""
    for outcome in every_write(trial.apply, KillHalfway, trial.steps):
        assert outcome.killed
        trial.check()
        trial.reset()


def refused_by_a_full_disk(trial: Trial, outcomes: Iterable[Outcome]) -> int:
    """How many of the outcomes are refusals, all of which are as they should be."""
    refused = 0
    for outcome in outcomes:
        if outcome.error is not None:
            refused += 1
            assert outcome.error[0] == "StoreError"
            assert os.strerror(errno.ENOSPC) in outcome.error[1]
            assert served(trial.store) == trial.old
        else:
            assert served(trial.store) == trial.new
        trial.check()
        trial.reset()
    return refused


def test_a_disk_that_is_full_from_any_step_on(trial: Trial) -> None:
    outcomes = every_step(trial.apply, lambda n: RefuseFrom(n, errno.ENOSPC, GROWING))
    assert refused_by_a_full_disk(trial, outcomes) > 0


def test_a_disk_that_is_full_halfway_through_any_write(trial: Trial) -> None:
    def fault(n: int) -> Fault:
        return RefuseFrom(n, errno.ENOSPC, GROWING, half=True)

    refused_by_a_full_disk(trial, every_write(trial.apply, fault, trial.steps))


def test_a_disk_that_turns_read_only_at_any_step(trial: Trial) -> None:
    before = contents(trial.store.root)
    for number, outcome in enumerate(
        every_step(trial.apply, lambda n: RefuseFrom(n, errno.EROFS, CHANGING)), 1
    ):
        if number == 1:
            assert contents(trial.store.root) == before
            assert outcome.error is not None
        if outcome.error is not None:
            assert outcome.error[0] == "StoreError"
            assert os.strerror(errno.EROFS) in outcome.error[1]
        trial.check()
        trial.reset()


@pytest.mark.parametrize(
    "command",
    [
        *("publish {sources}/5 --name gamma", "alias alpha {oldest}", "rollback alpha"),
        *("gc --keep 0 --grace 0", "import {sources}/5 --name gamma --no-base"),
    ],
)
def test_the_commands_say_so_and_end_with_1(
    tmp_path: Path, prepared: Path, sources: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    vllm_loader.bring_in()  # here: what it opens is none of the store's
    shutil.copytree(prepared, tmp_path / "store")
    before = contents(tmp_path / "store")
    filled = command.format(sources=sources, oldest=oldest(Store(prepared)))
    argv = [*filled.split(), "--store", str(tmp_path / "store")]

    def read_only_store(number, name, call, args):
        below = isinstance(args[0], str | Path) and str(args[0]).startswith(str(tmp_path))
        if below:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return call()

    outcome = run(lambda: exec_main(argv), read_only_store)
    assert outcome.error == ("SystemExit", "1")
    message = capfd.readouterr().err
    assert "cannot be written: Read-only file system" in message
    assert len(message.splitlines()) == 1
    assert contents(tmp_path / "store") == before


def exec_main(argv: list[str]) -> None:
    raise SystemExit(main(argv))


@pytest.mark.parametrize("without", [(), (".lease", ".lock")])
def test_a_read_only_store_can_be_read_and_leased(
    tmp_path: Path, prepared: Path, without: tuple[str, ...]
) -> None:
    """Also one that a tool copied without the files that locks are held on."""
    store = Store(tmp_path / "store")
    shutil.copytree(prepared, store.root, ignore=shutil.ignore_patterns(*without))

    def read_everything() -> None:
        for name in store.names():
            with store.lease(name).lease:
                store.get(name)
        assert verify(store) == []
        assert store.listing().refused == {}

    outcome = run(read_everything, RefuseFrom(1, errno.EROFS, CHANGING))
    assert outcome.error is None


def test_a_line_of_the_longest_writer_fits(tmp_path: Path, sources: Path) -> None:
    store = Store(tmp_path / "store")
    version = store.publish(sources / "1", "n" * 64, by="\x00" * 200).id
    assert (store.root / ("n" * 64) / FILE).stat().st_size < LINE_LIMIT
    assert str(store.resolve("n" * 64)) == version
    with pytest.raises(ValueError, match="200"):
        store.publish(sources / "2", "n" * 64, by="x" * 201)
    assert str(store.resolve("n" * 64)) == version
