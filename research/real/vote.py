"""Self-consistency: of several answers to a problem, the final answer that most of them give.

    samples 7, 7.0, 9 and none    the vote is 7

Wang et al. 2022. Final answers are compared as text, and numbers by value. An answer without a
final answer has no vote; of equal counts the one said first wins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from training.evaluation.recorder import SCHEMA
from training.grading import Verifier
from training.grading.statement import stated_answer
from training.problems import Problem
from training.run_folder import Parts


def vote(answers: Sequence[str]) -> int | None:
    """The place of the first answer whose final answer most have; None: none has one."""
    said = [normal(stated_answer(text).answer or "") for text in answers]
    counts = Counter(one for one in said if one)
    if not counts:
        return None
    return said.index(counts.most_common(1)[0][0])  # the first of equals


def answer_texts(folder: Path, label: str, problems: Sequence[Problem]) -> list[list[str]]:
    """The texts of the answers that `evaluate_generator` left in `folder`, [P][K].

    Raises:
        ValueError: some are missing.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    folders = sorted(folder.glob(f"answers-{label}-*"), key=lambda one: one.stat().st_mtime)
    rows = Parts(folders[-1], SCHEMA).read(["problem_id", "sample", "text"]) if folders else None
    for row in rows.to_pylist() if rows is not None else []:
        found.setdefault(row["problem_id"], []).append((row["sample"], row["text"]))
    if missing := [one.id for one in problems if one.id not in found]:
        raise ValueError(f"{folder}: no answers to {', '.join(missing[:5])}")
    return [[text for _, text in sorted(found[one.id])] for one in problems]


def normal(answer: str) -> str:
    """What is compared: the answer without spaces, dollars, and zeros that say nothing."""
    text = "".join(answer.split()).strip("$.").casefold()
    try:
        number = float(text.replace(",", ""))
    except ValueError:
        return text
    return repr(number)


def vote_scores(
    answers: Sequence[Sequence[str]], problems: Sequence[Problem], verifier: Verifier
) -> list[float]:
    """The score of each problem's vote, [P]; one without a vote is wrong, NaN: not graded."""
    places = [vote(texts) for texts in answers]
    asked = [place for place, chosen in enumerate(places) if chosen is not None]
    chosen = [answers[place][places[place] or 0] for place in asked]
    verdicts = verifier.check(chosen, [problems[place] for place in asked])
    scores = [0.0] * len(problems)
    for place, verdict in zip(asked, verdicts, strict=True):
        scores[place] = math.nan if verdict.correct is None else float(verdict.correct)
    return scores
