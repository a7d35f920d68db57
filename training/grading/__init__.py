"""Grading: whether the final answer of a text is right, by a grader for each kind of problem.

    verifier.py        Verifier: grades many answers, under a deadline and a memory limit
    worker.py          the processes in which it computes what is slow or may hang
    verdict.py         right, wrong, or cannot tell, with the reason
    grader.py          what a grader is, and the question that it leaves to a worker
    registry.py        the graders by name
    statement.py       the final answer that a text states; final_answer.py: boxes and ####
    math.py            the default grader; references.py: can answers be compared with a reference?
    compare/           the steps of its comparison, each in a file of its own
    reading/           what an answer says: numbers, units, dates, options, lists, regions
    exact.py           an option's letter, and texts word by word
    reasoning_gym.py   Reasoning Gym's problems, by their generator's own `score_answer`

A grader decides at once what it can. For the rest it makes a `Question`, which a worker answers.
"""

from training.grading.verdict import Verdict
from training.grading.verifier import Verifier

__all__ = ["Verdict", "Verifier"]
