"""Loading the problems that a source string names.

    problems.jsonl | .json | .parquet | .csv | .tsv    columns id (optional), problem, answer
    gsm8k                                        a benchmark: a local copy, or from the hub
    gsm8k:rows.jsonl                             a file with that benchmark's own columns
    owner/dataset                                with --problem-field and --answer-field
    reasoning_gym:chain_sum,min_terms=3,seed=1   drawn by a generator and graded by it
    2*reasoning_gym:chain_sum+1*gsm8k_train      a mixture, two problems of one to one of the other

Whatever the source, a problem is kept only if answers to it can be compared with its reference, and
once. Those that are left out are named, with the reason.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.grading import Verifier
from training.grading.compare import HERE, NeedsWorkerError, compare
from training.gym.draw import draw
from training.gym.task import GymTask
from training.problems.benchmarks import BENCHMARKS, benchmark_of, local_copy
from training.problems.mixture import Part, interleave, parse_mixture
from training.problems.problem import Grading, Problem
from training.problems.table import Columns, Place, table_problems

logger = logging.getLogger(__name__)

GYM = "reasoning_gym"
GYM_COUNT = 400  # problems drawn where neither count= nor a limit says how many
_NAMED = 5  # problems named in a warning


@dataclass(frozen=True)
class Loader:
    """How sources are read; the arguments of `load_problems`."""

    columns: Columns
    place: Place
    data_dir: Path | None
    shuffle: int | None
    without: frozenset[str]  # questions

    def mixture(self, parts: Sequence[Part], limit: int | None) -> list[Problem]:
        """Problems of all parts, interleaved; ids and `source` name the part."""
        total = sum(part.weight for part in parts)
        names = _part_names(parts)
        loaded = []
        for part, name in zip(parts, names, strict=True):
            share = None if limit is None else math.ceil(limit * part.weight / total)
            problems = self.load(part.source, None, share)
            named = {"source": name}
            loaded.append(
                [one.model_copy(update={"id": f"{name}/{one.id}", **named}) for one in problems]
            )
        mixed = interleave(loaded, [part.weight for part in parts], limit)
        counts = Counter(one.source for one in mixed)
        summary = ", ".join(f"{counts[name]} of {name}" for name in names)
        logger.info("mixture: %s", summary)
        if limit is not None and len(mixed) < limit:
            logger.warning(
                "the mixture has %d problems, not %d: one source ran out (%s)",
                len(mixed), limit, summary,
            )  # fmt: skip
        return mixed

    def load(self, source: str, limit: int | None, draws: int | None) -> list[Problem]:
        """The sound problems of one source, the first `limit` of them, or as many at random.

        Args:
            draws: how many a generator draws where its `count` does not say.
        """
        name, colon, task = source.partition(":")
        if name.strip() == GYM and not os.path.isfile(source):
            found: Iterable[Problem] = gym_problems(task if colon else "", draws)
        else:
            found = table_problems(source, self.columns, self.place, self.data_dir)
        distinct = Distinct(source)
        kept = distinct.of(self._others(source, found))
        if self.shuffle is None:
            return distinct.undisputed(sound_problems(source, kept, limit))
        problems = distinct.undisputed(sound_problems(source, kept, None))
        random.Random(self.shuffle).shuffle(problems)
        return problems[:limit]

    def _others(self, source: str, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The problems whose questions are not in `without`."""
        known = there = 0
        for problem in problems:
            if problem.question in self.without:
                there += 1
            else:
                known += 1
                yield problem
        if there and not known:
            raise ValueError(f"all {there} problems of {source} are held out")
        if there:
            logger.warning("%d problems of %s are held out, so they are left out", there, source)


def load_problems(
    source: str,
    *,
    limit: int | None = None,
    problem_field: str = "problem",
    answer_field: str = "answer",
    id_field: str = "id",
    grader: str = "math",
    config: str | None = None,
    split: str | None = None,
    data_dir: Path | None = None,
    shuffle: int | None = None,
    without: Iterable[Problem] = (),
    field: str = "problems",
) -> list[Problem]:
    """The problems that `source` names (see the module's text), `limit` of them.

    Args:
        problem_field, answer_field, id_field: columns, for files and hub datasets; a benchmark
            has its own.
        grader: what grades answers to them, "math", "choice" or "text", where a row does not say.
        config, split: of a hub dataset; by default the benchmark's, or "train".
        data_dir: folder with local copies of benchmarks; by default the one that the environment
            variable REASONMAXXER_DATA_DIR names.
        shuffle: draw the problems of each source at random with this seed; None: the first ones.
        without: problems whose questions are left out: the held-out ones.
        field: the setting that names the source, for messages.

    Raises:
        ValueError: the source is unknown or unreadable, one of its rows is unusable, or no
            reference answer can be graded. The message names file, line and field.
    """
    loader = Loader(
        Columns(problem_field, answer_field, id_field, grader),
        Place(config, split),
        data_dir,
        shuffle,
        frozenset(problem.question for problem in without),
    )
    try:
        parts = parse_mixture(source)
        if len(parts) == 1:
            problems = loader.load(parts[0].source, limit, limit)
        else:
            problems = loader.mixture(parts, limit)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    if not problems:
        raise ValueError(f"{field}: {source} holds none")
    return problems


# --------------------------------------------------------------------------- reference answers


def sound_problems(
    source: str, problems: Iterable[Problem], limit: int | None = None
) -> list[Problem]:
    """Those problems, `limit` at most, answers to which can be compared with their references.

    The others are counted, and the first few named with the reason, in a warning.

    Raises:
        ValueError: there are problems and none is sound.
    """
    waiting = iter(problems)
    sound: list[Problem] = []
    unsound: list[str] = []
    with Verifier() as verifier:
        while limit is None or len(sound) < limit:
            missing = None if limit is None else limit - len(sound)
            batch = list(itertools.islice(waiting, missing))
            if not batch:
                break
            for problem, fault in zip(batch, verifier.check_references(batch), strict=True):
                if fault is None:
                    sound.append(problem)
                else:
                    unsound.append(f"{problem.id} ({problem.answer[:60]!r}: {fault})")
    if unsound:
        message = f"whose reference answer cannot be graded: {_listed(unsound)}"
        if not sound:
            raise ValueError(f"{source} has only problems {message}")
        logger.warning(
            "%s: %d of %d problems are left out, %s",
            source, len(unsound), len(unsound) + len(sound), message,
        )  # fmt: skip
    return sound


def _listed(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


class Distinct:
    """The problems of a source without repetitions, which are named in a warning.

    Args:
        source: its name, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._first: dict[str, Problem] = {}
        self._repeated: list[str] = []
        self._disputed: dict[str, str] = {}  # question -> which problems answer it differently

    def of(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """The first problem of each question."""
        for problem in problems:
            first = self._first.setdefault(problem.question, problem)
            if first is problem:
                yield problem
            elif _same_answer(first, problem):
                self._repeated.append(f"{problem.id} (as {first.id})")
            else:
                self._disputed[problem.question] = (
                    f"{first.id} ({first.answer[:40]!r}) and {problem.id} ({problem.answer[:40]!r})"
                )

    def undisputed(self, problems: list[Problem]) -> list[Problem]:
        """`problems` without those that a later one answers differently.

        Raises:
            ValueError: none is left.
        """
        if self._repeated:
            logger.warning(
                "%s: %d problems repeat the question of an earlier one and are left out: %s",
                self._source, len(self._repeated), _listed(self._repeated),
            )  # fmt: skip
        if not self._disputed:
            return problems
        pairs = _listed(list(self._disputed.values()))
        kept = [one for one in problems if one.question not in self._disputed]
        if not kept:
            raise ValueError(f"{self._source} has only questions with different answers: {pairs}")
        logger.warning(
            "%s: %d questions have different reference answers and are left out: %s",
            self._source, len(self._disputed), pairs,
        )  # fmt: skip
        return kept


def _same_answer(one: Problem, other: Problem) -> bool:
    """Whether two references are the same; what would take computer algebra counts as not."""
    if one.answer == other.answer or one.grading is not None or other.grading is not None:
        return one.answer == other.answer
    try:
        return bool(compare(one.answer, other.answer, HERE).correct)
    except NeedsWorkerError:
        return False


def benchmarks_at_hand(data_dir: Path | None, besides: str) -> dict[str, list[Problem]]:
    """The problems of each benchmark for evaluation that has a local copy; nothing is downloaded.

    Args:
        besides: a source; the benchmarks that it names are left out.
    """
    named = {part.source.partition(":")[0] for part in parse_mixture(besides)}
    found: dict[str, list[Problem]] = {}
    for name, benchmark in BENCHMARKS.items():
        if name in named or benchmark.trains or benchmark.copy:
            continue
        copy = local_copy(name, data_dir)
        if copy is not None:
            rows = table_problems(f"{name}:{copy}", Columns(), Place(), data_dir)
            found[name] = list(rows)
    return found


# -------------------------------------------------------------------------------- Reasoning Gym


def gym_problems(text: str, draws: int | None = None) -> list[Problem]:
    """Problems of NAME[,option=value...], of which `seed` and `count` are ours.

    Args:
        draws: how many to draw where `count` does not say.

    Raises:
        ValueError: the generator, an option or a value is unknown, or there are no answers.
    """
    given = GymTask.parse(text)
    options = dict(given.options)
    seed = _whole(given.name, "seed", options.pop("seed", "0"), 0)
    count = _whole(given.name, "count", options.pop("count", str(draws or GYM_COUNT)), 1)
    if "size" in options:
        raise ValueError(f"reasoning_gym:{given.name}: give count=, not size=")
    task = GymTask(given.name, options)
    drawn = draw(task, seed, count)
    if len(drawn) < count:
        logger.warning(
            "reasoning_gym:%s has %d different problems, not %d", task, len(drawn), count
        )
    answered = [one for one in drawn if one.answer.strip() and one.question.strip()]
    if not answered:
        raise ValueError(f"reasoning_gym:{task} gives no reference answers")
    if len(answered) < len(drawn):
        logger.warning(
            "reasoning_gym:%s: %d problems have no reference answer and are left out",
            task, len(drawn) - len(answered),
        )  # fmt: skip
    return [
        Problem(
            id=f"{task.name}-{seed}-{one.draw:05d}",
            problem=one.question,
            answer=one.answer,
            grading=Grading(grader=GYM, task=str(task), entry=one.entry),
        )
        for one in answered
    ]


def _whole(name: str, option: str, text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise ValueError(
            f"reasoning_gym:{name}: {option}: a whole number from {least} on (got '{text}')"
        )
    return int(text)


# ----------------------------------------------------------------------------- names of sources


def source_name(source: str) -> str:
    """The source as results name it: without the folders of this machine.

    `/data/p.jsonl` is `p.jsonl`; `2*a/p.jsonl+gsm8k` is `2*p.jsonl+gsm8k`.
    """
    parts = parse_mixture(source)
    if len(parts) == 1:
        return _one_name(parts[0].source)
    return "+".join(f"{part.weight:g}*{_one_name(part.source)}" for part in parts)


def _one_name(source: str) -> str:
    if os.path.isfile(source):
        return Path(source).name
    name, colon, path = source.partition(":")
    return f"{name}:{Path(path).name}" if colon and benchmark_of(source) else source


def _part_names(parts: Sequence[Part]) -> list[str]:
    """A short name for each part, no two alike: its generator, benchmark, file or dataset."""
    names: list[str] = []
    for part in parts:
        name, colon, rest = part.source.partition(":")
        if colon and name == GYM:
            short = rest.partition(",")[0].strip()
        elif benchmark_of(part.source):
            short = name
        else:
            short = Path(part.source).stem
        times = sum(other.partition("#")[0] == short for other in names)
        names.append(f"{short}#{times + 1}" if times else short)
    return names
