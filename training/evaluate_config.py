"""Settings of `python -m training.evaluate`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from adapters.manifest import Mode
from adapters.places import Place
from training.config import check_greedy
from training.generation import EngineName
from training.problems import benchmark_of
from training.problems.overlap import Action
from training.problems.settings import ColumnsConfig

# Settings of one way of asking, which the other one would ignore.
IN_PROCESS = (
    *("adapter", "store", "tau", "gate_rate", "gate", "family", "engine"),
    *("tensor_parallel_size", "data_parallel_size"),
)
OVER_URL = ("api_key_env", "concurrency", "retries", "timeout", "extra_body")
INSTEAD = {
    "adapter": "name the adapter with --models BASE,ADAPTER",
    "tau": """give --extra-body '{"vllm_xargs": {"gate_tau": 0.8}}'""",
    "gate_rate": """give --extra-body '{"vllm_xargs": {"gate_rate": 0.1}}'""",
    "family": "the server renders prompts by its own; leave it out",
}


class EvaluateConfig(ColumnsConfig):
    """Settings of an evaluation."""

    program: ClassVar[str] = "python -m training.evaluate"

    model: str | None = Field(
        None, description="Base model: a folder or a hub id; with --url: its name there."
    )
    models: list[str] = Field([], description="With --url: several names, the first the baseline.")
    adapter: str | None = Field(None, description="A PEFT folder, or a name in --store.")
    store: Place | None = Field(
        None,
        description="The store, a folder or a bucket; `reasonmaxxer doctor` prints the default.",
    )
    mode: list[Mode] = Field(
        [],
        description="In process: base, always, gated. With --url: what the models are; by default "
        "as their names say, the first the base.",
    )
    tau: float | None = Field(
        None, ge=0, description="Threshold of the gate, in nats; default: the manifest's."
    )
    gate_rate: float | None = Field(
        None, gt=0, le=1, description="Instead of --tau: its gate rate, by the manifest's table."
    )
    gate: Literal["entropy", "random"] = Field(
        "entropy", description="random: a control, the manifest's gate rate drawn at random."
    )
    family: str = Field(
        "",
        description="Recipe, by name or as a YAML file; default: the adapter's, else found for "
        "the model.",
    )
    engine: EngineName = Field("auto", description="What samples: auto, vllm or transformers.")
    tensor_parallel_size: int = Field(
        1, ge=1, description="GPUs that share the base's weights while vLLM samples."
    )
    data_parallel_size: int = Field(
        1, ge=1, description="vLLM engines that sample side by side, each with GPUs of its own."
    )

    url: str | None = Field(None, description="An OpenAI-compatible server, with its /v1.")
    api_key_env: str | None = Field(None, description="Environment variable with the key.")
    concurrency: int = Field(64, ge=1, description="Requests in flight.")
    retries: int = Field(5, ge=0, description="Retries after a connection error, 429 or 5xx.")
    timeout: float = Field(600.0, gt=0, description="Seconds for one answer.")
    extra_body: dict[str, Any] = Field({}, description="JSON added to every request.")

    problems: str = Field(
        description="File, benchmark[:FILE], hub dataset, reasoning_gym:NAME, or a mixture with +."
    )
    limit: int | None = Field(None, ge=1, description="The first so many problems.")
    trained_on: str | None = Field(
        None,
        description="Problems that the adapter was fitted to; default: what its folder says.",
    )
    overlap: Action = Field(
        "name",
        description="What to do with problems that share 13 words in a row with those that the "
        "adapter was fitted to: name them, drop them, or refuse to evaluate.",
    )

    samples: int | None = Field(
        None,
        ge=1,
        description="Answers per problem; default 1, for aime24 and amc23 8 above temperature 0.",
    )
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer; default: the family's, with --url 2048."
    )
    seed: int = Field(0, ge=0, lt=2**31)
    k: list[int] = Field([], description="pass@k for these k; default 1 and the samples.")
    deadline: float = Field(5.0, gt=0, description="Seconds for verifying one answer.")
    output: Path | None = Field(None, description="Folder for answers and report.json.")

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Parse flags and YAML. Bad input ends the process with exit code 2."""
        # pydantic-settings gives a field of one letter the flag -k only.
        args = sys.argv[1:] if argv is None else argv
        return super().load([re.sub(r"^--k(?==|$)", "-k", arg) for arg in args])

    @property
    def answers_each(self) -> int:
        """How many answers each problem gets."""
        benchmark = benchmark_of(self.problems) if self.temperature else None
        return self.samples or (benchmark.samples if benchmark else 1)

    @property
    def ks(self) -> list[int]:
        """The k of each pass@k that is reported."""
        return self.k or sorted({1, self.answers_each})

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        names = self.models or [name for name in [self.model] if name]
        problem = None
        if not names:
            problem = "--model: is missing"
        elif self.url is None:
            problem = self._in_process_problem()
        elif not re.match(r"https?://\S+$", self.url):
            problem = f"--url: '{self.url}' is not http://... or https://..."
        elif self.model and self.models:
            problem = "--model: with --models, name it there"
        elif given := self._changed(IN_PROCESS):
            problem = f"{given[0]}: with --url, {INSTEAD.get(given[1], 'it says nothing')}"
        elif self.mode and len(self.mode) != len(names):
            problem = f"--mode: {len(self.mode)} modes for {len(names)} models"
        elif len(set(names)) < len(names):
            problem = "--models: a name occurs twice"
        elif self.api_key_env and not os.environ.get(self.api_key_env):
            problem = f"--api-key-env: the environment has no {self.api_key_env}"
        if problem is None and not all(1 <= k <= self.answers_each for k in self.k):
            problem = f"--k: each must lie between 1 and --samples ({self.answers_each})"
        if problem:
            raise ValueError(problem)
        if self.url is None:
            check_greedy("--samples", self.answers_each, self.temperature)
        return self

    def _changed(self, names: Sequence[str]) -> tuple[str, str] | None:
        """The first of these settings that is not at its default, as flag and name."""
        fields = type(self).model_fields
        for name in names:
            if getattr(self, name) != fields[name].default:
                return f"--{name.replace('_', '-')}", name
        return None

    def _in_process_problem(self) -> str | None:
        problem = None
        if self.models:
            problem = "--models: needs --url; in process, give --model and --adapter"
        elif given := self._changed(OVER_URL):
            problem = f"{given[0]}: needs --url"
        elif set(self.mode) - {"base"} and not self.adapter:
            problem = f"--adapter: is missing for --mode {','.join(self.mode)}"
        elif len(set(self.mode)) < len(self.mode):
            problem = "--mode: one occurs twice"
        elif not self._has_gated and (given := self._changed(("tau", "gate_rate", "gate"))):
            problem = f"{given[0]}: is of a gated adapter; give --adapter, and gated among --mode"
        elif self.tau is not None and self.gate_rate is not None:
            problem = "--gate-rate: stands in the place of --tau; give one of them"
        elif self.gate == "random" and (self.engine != "transformers" or self.tau is not None):
            problem = "--gate: random goes with --engine transformers and without --tau"
        return problem

    @property
    def _has_gated(self) -> bool:
        """Whether an adapter runs behind its gate, in process."""
        return self.adapter is not None and (not self.mode or "gated" in self.mode)
