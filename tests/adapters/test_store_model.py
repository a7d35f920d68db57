"""The store against a model of it that fits in a few lines: any operations, in any order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from obstore.store import MemoryStore
from tiny import MEMORY, make_adapter

from adapters.adapter import AdapterError
from adapters.audit import verify
from adapters.bucket.objects import Objects
from adapters.bucket.store import BucketStore
from adapters.collect import collect
from adapters.store import Leased, Store

NAMES = st.sampled_from(["alpha", "beta", "gamma"])
CONTENTS = st.integers(0, 4)


class StoreModel(RuleBasedStateMachine):
    """`there` are the versions, `paths` the way back of each alias, its present version last."""

    machines = 1

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.made = [self.make(f"store-{number}") for number in range(self.machines)]
        self.there: set[str] = set()
        self.paths: dict[str, list[str]] = {}
        self.moves: dict[str, int] = {}
        self.leases: list[Leased] = []
        self.hashes = []
        for value in range(5):
            folder = make_adapter(self.folder / str(value), value=value)
            probe = Store(self.folder / "probe").publish(folder, "probe")
            self.hashes.append(probe.hash)

    def make(self, name: str) -> Store:
        """The store, as one machine has it."""
        return Store(self.folder / name)

    @property
    def store(self) -> Store:
        """As the next machine has it."""
        self.made.append(self.made.pop(0))
        return self.made[-1]

    def teardown(self) -> None:
        for held in self.leases:
            held.lease.close()
        shutil.rmtree(self.folder)

    def _point(self, name: str, version: str) -> None:
        path = self.paths.setdefault(name, [])
        if path[-1:] != [version]:
            path.append(version)
            self.moves[name] = self.moves.get(name, 0) + 1

    @rule(name=NAMES, value=CONTENTS, alias=st.booleans())
    def publish(self, name: str, value: int, alias: bool) -> None:
        version = self.store.publish(self.folder / str(value), name, alias=alias)
        assert version.id == f"{name}@{self.hashes[value]}"
        self.there.add(version.id)
        if alias:
            self._point(name, version.id)

    @rule(name=NAMES, of=NAMES, value=CONTENTS)
    def alias(self, name: str, of: str, value: int) -> None:
        version = f"{of}@{self.hashes[value]}"
        if version in self.there:
            assert self.store.alias(name, version).version == version
            self._point(name, version)
        else:
            with pytest.raises(KeyError):
                self.store.alias(name, version)

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        path = self.paths.get(name)
        if path is None:
            with pytest.raises(KeyError):
                self.store.rollback(name)
        elif len(path) < 2 or path[-2] not in self.there:
            with pytest.raises(AdapterError, match="roll back to"):
                self.store.rollback(name)
        else:
            path.pop()
            self.moves[name] += 1
            assert self.store.rollback(name).version == path[-1]

    @rule(keep=st.integers(0, 2))
    def gc(self, keep: int) -> None:
        kept = {version for path in self.paths.values() for version in path[-1 - keep :]}
        kept |= {str(held.reference) for held in self.leases}
        self.before_gc()
        gone = {str(reference) for reference in collect(self.store, keep, grace=0)}
        assert gone == self.there - kept
        self.there &= kept

    def before_gc(self) -> None:
        """What has been let go is free at once."""

    @rule(pick=st.randoms(use_true_random=False))
    def lease(self, pick) -> None:
        if self.there:
            self.leases.append(self.store.lease(pick.choice(sorted(self.there))))

    @precondition(lambda self: self.leases)
    @rule()
    def release(self) -> None:
        self.leases.pop().lease.close()

    @invariant()
    def as_the_model_says(self) -> None:
        assert {
            f"{name}@{digest}"
            for name in self.store.folders()
            for digest in self.store.versions(name)
        } == self.there
        assert {name: str(self.store.resolve(name)) for name in self.store.names()} == {
            name: path[-1] for name, path in self.paths.items()
        }
        for name, moves in self.moves.items():
            assert len(self.store.history(name)) == moves
        assert verify(self.store) == []


class BucketModel(StoreModel):
    """Two machines take turns, each with a cache that holds little."""

    machines = 2

    def __init__(self) -> None:
        self.bucket = MemoryStore()
        super().__init__()

    def make(self, name: str) -> Store:
        """One machine's."""
        return BucketStore(Objects("memory://", self.bucket), self.folder / name, limit=2000)

    def before_gc(self) -> None:
        """What has been let go is free with the next renewal, a minute later."""
        for machine in self.made:
            assert isinstance(machine, BucketStore)
            machine.leases.renew()

    @property
    def store(self) -> Store:
        """As the next machine has it, after its look each second."""
        found = super().store
        assert isinstance(found, BucketStore)
        found.refresh()
        found.forget_hashes()
        return found


TestStoreModel: Callable = StoreModel.TestCase
TestStoreModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestBucketModel: Callable = BucketModel.TestCase
TestBucketModel.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
