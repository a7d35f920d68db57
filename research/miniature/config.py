"""What a base is made from: one pydantic model, one YAML file a base (`bases/*.yaml`)."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from research.miniature.corpus import CorpusConfig
from training.config import Config

BASES = Path(__file__).parent / "bases"


class Architecture(BaseModel):
    """config.json in transformers' words; fields beside the model type are the architecture's."""

    model_config = ConfigDict(extra="allow")

    model_type: str = "qwen2"


class OptimizerConfig(BaseModel):
    """AdamW with a cosine schedule, one pass over the corpus."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    learning_rate: float = Field(3e-3, gt=0)
    documents_per_batch: int = Field(48, ge=1)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    beta2: float = Field(0.98, gt=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)


class PretrainConfig(Config):
    """Everything a base is made from; `bases/NAME.yaml` holds the values of base NAME."""

    program: ClassVar[str] = "python -m research.miniature pretrain"

    base: str = Field("qwen2", description="Name of a file in research/miniature/bases.")
    output: Path = Field(Path("models/tiny-qwen2"), description="The model folder to write.")
    run: Path | None = Field(None, description="Run folder; default: runs/NAME of the output.")
    init: Path | None = Field(
        None, description="Model folder to go on from, weights and tokenizer; None: from nothing."
    )
    architecture: Architecture = Architecture()
    vocabulary: int = Field(352, ge=259, description="Tokens, 256 bytes and 3 special included.")
    corpus: CorpusConfig = CorpusConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["bf16", "float32"] = Field(
        "bf16", description="Precision of matrix products."
    )
    threads: int = Field(1, ge=1, description="Part of the recipe: sums depend on it.")
    seed: int = 0
    save_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    measure_problems: int = Field(400, ge=0, description="Held-out problems for the card; 0: none.")

    @classmethod
    def defaults(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The base's own YAML lies below the flags."""
        name = str(given.get("base", "qwen2"))
        path = BASES / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(path.stem for path in BASES.glob("*.yaml")))
            raise ValueError(f"--base: '{name}' is unknown; known: {known}")
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return values

    @property
    def run_folder(self) -> Path:
        return self.run or Path("runs") / self.output.name

    def recipe(self) -> str:
        """As YAML: what decides the weights, not where things go and what is measured after."""
        values = self.model_dump(
            mode="json", exclude={"config", "base", "output", "run", "measure_problems"}
        )
        return yaml.safe_dump(values, sort_keys=False)
