r"""Equations and inequalities: x = 5 and 5, y = 2x and 2x - y = 0, x + y \le 3 and 3 \ge y + x."""

from __future__ import annotations

import re
from itertools import pairwise

from training.grading.compare.comparison import Comparison, NeedsWorkerError
from training.grading.compare.numbers import number_values
from training.grading.reading.arithmetic import read_number
from training.grading.reading.plain_latex import squeezed
from training.grading.reading.shapes import Shape, is_name
from training.grading.verdict import Decision, all_of, right, unknown, wrong

# Of a set that is not listed but described.
DESCRIBED = re.compile(r"\\mid|:|\\setminus|\\mathbb|\\emptyset|\\\{|(?<![\\A-Za-z])[a-z]{3}")


def relations(
    by: Comparison, a: Shape, b: Shape, candidate: str, reference: str
) -> Decision | None:
    if a.kind == b.kind == "relation":
        return _two_relations(by, a, b)
    relation = a if a.kind == "relation" else b
    equation = set(relation.signs) <= {"=", r"\approx", r"\in"}
    if not equation:
        if DESCRIBED.search(candidate + reference):
            return unknown("sets that may be equal")
        return wrong(f"a {a.kind} is no {b.kind}")
    fault = _contradiction(by, relation)
    if fault:
        return fault if relation is a else unknown("the reference contradicts itself")
    value = relation.items[-1]
    if len(relation.items) == 2 and not is_name(relation.items[0]) and is_name(value):
        value = relation.items[0]  # 5 = x
    named = is_name(relation.items[0]) or value == relation.items[0]
    numeric = read_number(relation.items[0]) is not None
    if relation is b and not named and not numeric:
        return wrong(f"a {a.kind} is no equation")
    decision = by.inner(value, reference) if relation is a else by.inner(candidate, value)
    if named or numeric or decision.correct is False:
        return decision
    return unknown("an equation whose right side agrees")


def _contradiction(by: Comparison, relation: Shape) -> Decision | None:
    """Wrong if numbers are said to be equal that are not: "18 = 19"."""
    numbers = [one for one in map(read_number, relation.items) if one is not None]
    if set(relation.signs) != {"="}:
        return None
    for one, other in pairwise(numbers):
        decision = number_values(by, one, other)
        if decision is not None and decision.correct is False:
            return wrong("the answer contradicts itself")
    return None


def _two_relations(by: Comparison, a: Shape, b: Shape) -> Decision:
    if set(a.signs) <= {"=", r"\approx"} and set(b.signs) <= {"=", r"\approx"}:
        return _equations(by, a, b)
    if a.signs == b.signs:
        same = [by.tried(x, y) for x, y in zip(a.items, b.items, strict=True)]
        if all(one is not None and one.correct for one in same):
            return right("the same relation")
        if a.signs in ((r"\ne",), (r"\in",)):
            return all_of([by.inner(x, y) for x, y in zip(a.items, b.items, strict=True)], "")
    order = {"<": 1, r"\le": 2, ">": -1, r"\ge": -2}
    if len(a.signs) == len(b.signs) == 1 and a.signs[0] in order and b.signs[0] in order:
        return _inequalities(by, a, b, order[a.signs[0]], order[b.signs[0]])
    if set(a.signs) & {"=", r"\ne"} != set(b.signs) & {"=", r"\ne"}:
        return wrong("different relations")
    return unknown("relations that may mean the same")


def _equations(by: Comparison, a: Shape, b: Shape) -> Decision:
    for one in (a, b):
        fault = _contradiction(by, one)
        if fault:
            return fault
    names = [one.items[0] for one in (a, b)]
    if all(map(is_name, names)):
        value = by.inner(a.items[-1], b.items[-1])
        if squeezed(names[0]) == squeezed(names[1]):
            return value
        if value.correct is not False and any("(" in name or " " in name for name in names):
            return unknown("equal values under different names")
    if not by.effort.algebra:
        raise NeedsWorkerError
    from training.grading.compare.algebra import same_relation

    sides = [(one.items[0], one.items[-1]) for one in (a, b)]
    return same_relation(sides[0], sides[1], "equation")


def _inequalities(by: Comparison, a: Shape, b: Shape, x: int, y: int) -> Decision:
    if abs(x) != abs(y):
        return wrong("a strict inequality is no weak one")
    if not by.effort.algebra:
        raise NeedsWorkerError
    from training.grading.compare.algebra import same_relation

    sides = [
        (one.items[0], one.items[1]) if sign > 0 else (one.items[1], one.items[0])
        for one, sign in ((a, x), (b, y))
    ]
    return same_relation(sides[0], sides[1], "inequality")
