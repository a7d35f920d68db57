"""What the gate's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from gate_models import make_adapters, make_model
from gate_reference import Reference

if TYPE_CHECKING:
    from test_gate_exact import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """The world of an architecture; made once."""
    from test_gate_exact import World

    known: dict[str, World] = {}

    def get(architecture: str) -> World:
        if architecture not in known:
            folder = tmp_path_factory.mktemp(architecture)
            model = make_model(architecture, folder / "base")
            adapters = make_adapters(model, folder)
            known[architecture] = World(model, adapters, Reference(model, adapters))
        return known[architecture]

    return get
