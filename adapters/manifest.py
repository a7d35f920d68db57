"""What an adapter says of itself: `manifest.json` beside the PEFT files.

The manifest binds the weights to their base, family and gate threshold, and carries the scores that
were measured. It holds no time stamp: the same run gives the same bytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

if TYPE_CHECKING:
    from adapters.base_checkpoint import BaseCheckpoint

FILE = "manifest.json"
PROMPT = "prompt sha256"  # in `made_by`: digest of the chat template that it was fitted with
COLDEST, HOTTEST = 0.01, 100.0  # beyond which logits divided by them lose their meaning
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}[a-z0-9]$|^[a-z0-9]$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Mode = Literal["base", "always", "gated"]


def is_name(text: str) -> bool:
    """Whether `text` may name an adapter: lower case letters, digits, '.', '_', '-'; 64 at most."""
    return re.fullmatch(NAME_PATTERN, text) is not None and ".." not in text


class _Strict(BaseModel):
    # JSON has no infinite numbers: an answer that had one could not be written.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Base(_Strict):
    """The frozen model an adapter belongs to."""

    model: str = Field(description="Hub id or folder name of the base.")
    revision: str | None = Field(None, description="Hub commit, where the base came from the hub.")
    architecture: str = Field(description="First of config.json's `architectures`.")
    fingerprint: Sha256 | None = Field(
        None,
        description="SHA-256 as of adapters.base_checkpoint.fingerprint; None: not checked.",
    )

    @classmethod
    def of(cls, base: BaseCheckpoint) -> Base:
        """What a manifest says of `base`."""
        return cls(
            model=base.name,
            revision=base.revision,
            architecture=base.architecture,
            fingerprint=base.fingerprint,
        )


class Gate(_Strict):
    """The threshold and where it comes from; how sure the adapter is where the gate is open."""

    tau: float = Field(ge=0, description="Threshold in nats: the gate opens where H > tau.")
    rate: float = Field(ge=0, le=1, description="Gate rate that tau gave on the rollouts.")
    tokens: int = Field(gt=0, description="Generated positions the calibration looked at.")
    temperature: float = Field(
        1.0,
        ge=COLDEST,
        le=HOTTEST,
        description="Divides the adapter's logits where the gate is open, before a request's own.",
    )
    table: list[tuple[float, float]] = Field(
        default_factory=list, description="(gate rate, tau), rates ascending."
    )

    def __str__(self) -> str:
        text = f"tau {self.tau:.4f} nats, gate rate {self.rate:.3f}"
        return text if self.temperature == 1 else f"{text}, temperature {self.temperature:g}"

    @model_validator(mode="after")
    def _ordered(self) -> Gate:
        rates = [rate for rate, _ in self.table]
        taus = [tau for _, tau in self.table]
        if rates != sorted(rates) or taus != sorted(taus, reverse=True):
            raise ValueError("table: rates must ascend and thresholds descend")
        return self


class Score(_Strict):
    """One measured figure."""

    mode: Mode
    problems: str = Field(description="Benchmark name or problems file.")
    metric: str = Field(description="pass@1, pass@k, avg@k, boxed_rate, mean_tokens, gate_rate")
    value: float
    stderr: float | None = None
    n: int = Field(gt=0, description="Number of problems.")
    temperature: float = Field(ge=0)


class Manifest(_Strict):
    """The whole of `manifest.json`."""

    format: Literal[1] = 1
    name: Name
    family: str
    base: Base
    gate: Gate | None = Field(
        None, description="None: never calibrated, so a request must name the threshold."
    )
    scores: list[Score] = Field(default_factory=list)
    seed: int = 0
    files: dict[str, Sha256] = Field(description="SHA-256 of each file the adapter consists of.")
    made_by: dict[str, str] = Field(
        default_factory=dict, description="Library versions that made it, or where it came from."
    )

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Parse `folder/manifest.json`. Raises OSError or pydantic.ValidationError."""
        return cls.model_validate_json((folder / FILE).read_bytes())
