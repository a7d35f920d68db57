"""The commands that need no model: problems and corpus."""

import sys
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from adapters.files import write_text
from research.miniature.benchmarks import benchmark_problems
from research.miniature.config import PretrainConfig
from research.miniature.kinds import KINDS
from research.miniature.pretrain import make_corpus
from research.miniature.world import Problem, puzzles
from training.config import Config


class ProblemsConfig(Config):
    """Flags of `python -m research.miniature problems`."""

    program: ClassVar[str] = "python -m research.miniature problems"

    seed: int = 0
    count: int = Field(100, ge=1, le=1_000_000)
    split: Literal["train", "heldout"] = "train"
    kind: list[str] = Field(
        default=list(KINDS), description="Kinds to cycle through, NAME or NAME:LENGTH."
    )
    benchmark: str | None = Field(
        None, description="One of the held-out benchmarks, as it is; in place of all the others."
    )
    out: Path | None = Field(None, description="JSONL file; default: standard output.")


class CorpusCommand(PretrainConfig):
    """Flags of `python -m research.miniature corpus`, the first stage of `pretrain`."""

    program: ClassVar[str] = "python -m research.miniature corpus"


def _problems(config: ProblemsConfig) -> list[Problem]:
    if config.benchmark is not None:
        return benchmark_problems(config.benchmark)
    stream = islice(puzzles(config.seed, config.split, config.kind), config.count)
    return [puzzle.problem for puzzle in stream]


def problems(argv: list[str]) -> None:
    """Write problems as JSONL: id, kind, problem, answer, split."""
    config = ProblemsConfig.load(argv)
    with config.usage_errors((ValueError, OSError)):
        lines = "".join(problem.model_dump_json() + "\n" for problem in _problems(config))
        if config.out is None:
            sys.stdout.write(lines)
        else:
            write_text(config.out, lines)


def corpus(argv: list[str]) -> None:
    """Write the run folder's corpus as Parquet (id, kind, problem, solution); print its path."""
    config = CorpusCommand.load(argv)
    with config.usage_errors((ValueError, OSError)):
        print(make_corpus(config))
