"""The commands that need no model: problems and corpus."""

import sys
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from adapters.files import write_text
from training.config import Config
from training.tiny.benchmarks import benchmark_problems
from training.tiny.config import PretrainConfig
from training.tiny.kinds import KINDS
from training.tiny.pretrain import make_corpus
from training.tiny.world import Problem, puzzles


class ProblemsConfig(Config):
    """Flags of `python -m training.tiny problems`."""

    program: ClassVar[str] = "python -m training.tiny problems"

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
    """Flags of `python -m training.tiny corpus`: those of `pretrain`, whose first stage it is."""

    program: ClassVar[str] = "python -m training.tiny corpus"


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
