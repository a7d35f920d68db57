"""vLLM's Triton kernels on this CPU, under Triton's interpreter, which is slow.

In need of the `triton` package: `make test-gate-gpu` runs the tests that use it.
"""

from __future__ import annotations

import importlib.util
import os
import types
from typing import Any

import pytest

ENVIRONMENT = {"TRITON_INTERPRET": "1"}  # of a process that calls `install`

needed = pytest.mark.skipif(
    os.environ.get("REASONMAXXER_GATE_V2") != "1" or importlib.util.find_spec("triton") is None,
    reason="make test-gate-gpu",
)


def install() -> None:
    """Have vLLM find a device; before it is imported, in a process with `ENVIRONMENT`."""
    import triton.backends
    from triton.backends.driver import DriverBase

    class Driver(DriverBase):  # type: ignore[misc]
        """A driver for a device that is always there."""

        @classmethod
        def is_active(cls) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    Driver.__abstractmethods__ = frozenset()
    triton.backends.backends.clear()
    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=Driver, compiler=None)
