"""The documents a base is pre-trained on: problems of the train split, solved by mixed authors.

A document's author has one habit from first step to last, so that a model can infer it from the
steps already written and stays torn about the next one. Problems of the held-out split never
come here: `world.puzzles` cannot draw them.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from adapters.files import atomic_write
from research.miniature.kinds import KINDS
from research.miniature.world import CAREFUL, CARELESS, PLAIN, Author, puzzles, write_solution

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("problem", pa.string()),
        ("solution", pa.string()),
    ]
)
ROWS = 10_000  # written at a time


class CorpusConfig(BaseModel):
    """What the corpus is made of."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    seed: int = 0
    documents: int = Field(160_000, ge=1)
    authors: int = Field(2, ge=1, description="Documents per problem, each by another author.")
    habits: dict[str, list[float]] = Field(
        default={name: [0.2, 0.5, 0.8] for name in KINDS},
        description="Per kind: probabilities of following the right rule, one drawn per document.",
    )
    hurry: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How often an author who does not follow it takes the first move that reads "
        "from the left, instead of any: a popular mistake, likelier than what is right.",
    )
    voices: bool = Field(
        False,
        description="Authors of the highest habit of a kind have words of their own, so that "
        "how a solution is worded tells how well it will go.",
    )

    def author(self, kind: str, rng: Random) -> Author:
        """One of those who solve problems of `kind`."""
        habit = rng.choice(self.habits[kind])
        voice = PLAIN
        if self.voices:
            voice = CAREFUL if habit == max(self.habits[kind]) else CARELESS
        return Author(habit, self.hurry, voice)


def documents(config: CorpusConfig) -> Iterator[dict[str, str]]:
    """Rows of `SCHEMA`, in the order of the problems."""
    rng = Random(f"authors:{config.seed}")
    stream = puzzles(config.seed, "train", list(config.habits))
    for number in range(config.documents):
        if number % config.authors == 0:
            puzzle = next(stream)
        problem = puzzle.problem
        yield {
            "id": problem.id,
            "kind": problem.kind,
            "problem": problem.problem,
            "solution": write_solution(puzzle, config.author(problem.kind, rng), rng),
        }


def write_corpus(config: CorpusConfig, path: Path) -> None:
    """Write the corpus as Parquet, atomically."""
    # One iterator: tqdm ends for good when an iteration over it is dropped.
    stream = iter(tqdm(documents(config), total=config.documents, desc="corpus", unit="doc"))
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        while rows := list(islice(stream, ROWS)):
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def read_corpus(path: Path) -> list[dict[str, str]]:
    """The rows that `write_corpus` wrote."""
    rows: list[dict[str, str]] = pq.read_table(path, schema=SCHEMA).to_pylist()
    return rows
