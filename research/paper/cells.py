"""A cell of the tables: one small JSON file, made once.

docs/results/cells/tiny-qwen2/fit/method/seed0.json

{"cell": "tiny-qwen2/fit/method/seed0", "settings": {...}, "base": "5ab0...", "machine": {...},
 "seconds": 151.2, "result": {...}}

`base` is the fingerprint of the base's weights: a base made anew may differ in its last bits, and
its cells are no longer of one table. The first cells lack it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.files import write_json
from training.machine import machine

Kind = Literal["base", "fit", "grpo", "footprint", "intervene", "greedy"]


@dataclass(frozen=True)
class Cell:
    """What is done to a base.

    Attributes:
        base: its name.
        kind: what is done.
        variant: of a fit, its ablation; of what looks at something tuned, what it was.
        seed: None for what has none.
        flags: of the command that makes it.
    """

    base: str
    kind: Kind
    variant: str = ""
    seed: int | None = None
    flags: tuple[str, ...] = field(default=(), hash=False)

    @property
    def id(self) -> str:
        """BASE/KIND[/VARIANT][/seedN]"""
        parts = [self.base, self.kind, self.variant]
        parts += [] if self.seed is None else [f"seed{self.seed}"]
        return "/".join(part for part in parts if part)

    def path(self, root: Path) -> Path:
        """Its file."""
        return root / f"{self.id}.json"

    def read(self, root: Path, base: str | None = None) -> dict[str, Any] | None:
        """Its result; None if it was not made yet.

        Args:
            base: fingerprint of the base that is at hand; None: any will do.

        Raises:
            ValueError: its file is no cell's, or was made with other flags or from another base.
        """
        path = self.path(root)
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            flags, result = values["settings"]["flags"], values["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a cell ({error!r}); remove it") from None
        if flags != list(self.flags):
            raise ValueError(f"{path}: made with {flags}, wanted {list(self.flags)}; remove it")
        if base is not None and values.get("base", base) != base:
            raise ValueError(
                f"{path}: made from other weights of {self.base}; bring them back, or remove "
                f"{root / self.base} to make its cells anew"
            )
        found: dict[str, Any] = result
        return found

    def write(self, root: Path, result: dict[str, Any], seconds: float, base: str) -> None:
        """Keep `result`, and the fingerprint of the `base` it was made from, atomically."""
        values = {
            "cell": self.id,
            "settings": {"flags": list(self.flags), "seed": self.seed},
            "base": base,
            "machine": machine(),
            "seconds": round(seconds, 1),
            "result": result,
        }
        write_json(self.path(root), values)
