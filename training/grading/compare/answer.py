r"""Whether an answer equals its reference: by string, exact number, unit, shape, word, and algebra.

    compare(r"\frac{1}{2006!}", r"\frac{1}{2004!}", HERE)   # wrong
    compare("18 dollars", "18", HERE)                       # right
    compare("0.333333", r"\frac13", HERE)                   # cannot tell: rounded

The steps come in that order, the cheap ones first. What takes computer algebra or many digits
raises `NeedsWorkerError` if the effort forbids it: a worker process then compares again with more.
"""

from __future__ import annotations

import re

from training.grading.compare import containers, numbers, quantities, shorthand, spellings, words
from training.grading.compare.comparison import Comparison, Effort, NeedsWorkerError, Step
from training.grading.reading import choices
from training.grading.reading.arithmetic import read_number
from training.grading.reading.number_words import count_of_parts
from training.grading.reading.plain_latex import plain, squeezed
from training.grading.reading.units import spelled
from training.grading.verdict import Decision, right, unknown, wrong

_LONGEST = 1000  # characters; an answer this much longer than its reference is no final answer

_BOUND = re.compile(
    r"(?i)\s*(?:[<>]|\\[lg]e\b|(?:at (?:least|most)|(?:more|less|fewer) than|over|under|up to)\b)"
)

_EMPTY = re.compile(r"[\s{}().?!…$*_–—-]*")
_PLUS = re.compile(r"\$?\d[\d,.]*\s*\+")  # 5+ is 5 or more
_NONE_OF = re.compile(r"(?i)\s*(?:not|neither|none)\b")

HERE = Effort(bits=50_000, algebra=False)
WORKER = Effort(bits=4_000_000, algebra=True)


def compare(candidate: str, reference: str, effort: Effort) -> Decision:
    """Compare a final answer with a reference, both as written.

    Raises:
        NeedsWorkerError: it takes more than `effort` allows.
    """
    if _EMPTY.fullmatch(candidate) and r"\emptyset" not in plain(reference):
        return wrong("the answer is empty")
    if len(candidate) > max(_LONGEST, 10 * len(reference)):
        return wrong("the answer is far longer than its reference")
    chosen = _several_choices(candidate, reference) or _choices(candidate, reference)
    if chosen is not None:
        return chosen
    found = Comparison(effort, _STEPS).compare(spelled(plain(candidate)), spelled(plain(reference)))
    if found.correct is False and _counts_alike(plain(candidate), plain(reference)):
        return unknown("dozens or parts of one, or so many of them")
    if found.correct is None and found.reason == "the answer cannot be parsed":
        return _unparsed(candidate, reference) or found
    return found


def _unparsed(candidate: str, reference: str) -> Decision | None:
    """Wrong for an answer that cannot be parsed and certainly is not the reference, else None.

    Nonsense must not be left out of the pass rate.
    """
    text = plain(candidate)
    if _BOUND.match(text) or _PLUS.fullmatch(text):
        return wrong("a bound is no value")
    depth = 0
    for bracket in re.findall(r"[()\[\]{}]", text):
        depth += 1 if bracket in "([{" else -1
        if depth < 0:
            break
    if depth:
        return wrong("the answer has open brackets")
    if choices.is_choice(reference):
        return wrong("the answer names no option")
    number = read_number(plain(reference))
    if number is None or number.base is not None:
        return None
    found = [read_number(one) for one in re.findall(r"\d[\d,]*(?:\.\d+)?|\.\d+", text)]
    try:
        wanted = abs(number.value(HERE.bits))
        if any(one is not None and one.value(HERE.bits) == wanted for one in found):
            return None
    except ValueError:
        return None
    return wrong("the answer cannot be parsed and does not have the reference's number")


def _counts_alike(candidate: str, reference: str) -> bool:
    """Whether one text says "16 quarters", which are 4 or 16 coins, and the other the bare 16."""
    counts = [count_of_parts(text) for text in (candidate, reference)]
    if all(counts) or not any(counts):
        return False
    a, b = (count or text for count, text in zip(counts, (candidate, reference), strict=True))
    try:
        return Comparison(HERE, _STEPS).compare(spelled(a), spelled(b)).correct is True
    except NeedsWorkerError:
        return False


def _choices(candidate: str, reference: str) -> Decision | None:
    """Multiple choice; None: the reference is no option."""
    wanted = choices.choice(reference)
    if wanted is None or wanted.letter not in "ABCDEFGHIJ" or wanted.lower:
        return None
    if wanted.text and not re.match(r"\s*(?:\(|\\text|[A-J]\s*[.:)])", reference):
        return None
    if squeezed(choices.undressed(candidate)) == squeezed(choices.undressed(reference)):
        return right("the same option")
    several = choices.names_several(candidate)
    if several:
        return wrong("the answer names several options")
    given = choices.choice(candidate)
    if given is None and _NONE_OF.match(candidate) and not _NONE_OF.match(wanted.text):
        return wrong("the answer names what is not right")
    if given is None:
        return None if not wanted.text else _text_alone(candidate, wanted.text)
    if given.letter != wanted.letter:
        return wrong(f"option {given.letter} is not {wanted.letter}")
    if given.lower and given.letter in "EI":
        return unknown("e or i may be a constant, not an option")
    if several is None and not wanted.text:
        return unknown("the option's text, or the answer, names another option")
    if given.text and wanted.text and squeezed(given.text) != squeezed(wanted.text):
        return unknown(f"option {given.letter}, but with another text")
    return right(f"option {given.letter}")


def _several_choices(candidate: str, reference: str) -> Decision | None:
    """AC against A, C; None: the reference does not list options."""
    parts = re.split(r",|;|&|\band\b", choices.undressed(reference))
    listed = [part.strip(" ()") for part in parts]
    if len(listed) < 2 or any(not re.fullmatch("[A-J]", one) for one in listed):
        return None
    letters = choices.undressed(candidate).strip("() .")
    if not re.fullmatch("[A-J]{2,}", letters):
        return None
    same = sorted(letters) == sorted(listed)
    return right("the same options") if same else wrong("other options")


def _text_alone(candidate: str, text: str) -> Decision:
    """An answer that names no letter against the text of the right option."""
    try:
        return Comparison(HERE, _STEPS).compare(spelled(plain(candidate)), spelled(plain(text)))
    except NeedsWorkerError:
        return unknown("an option's text against a formula")


def _algebra(by: Comparison, candidate: str, reference: str) -> Decision:
    if not by.effort.algebra:
        raise NeedsWorkerError
    from training.grading.compare.algebra import same_value

    decision = same_value(candidate, reference)
    if decision.correct is False and _may_be_rounded(candidate, reference):
        return unknown("equal up to rounding")
    return decision


def _may_be_rounded(candidate: str, reference: str) -> bool:
    """The same for an irrational value: 3.1416 may stand for \\pi."""
    from training.grading.compare.algebra import formula

    for one, other, fewest in ((candidate, reference, 4), (reference, candidate, 3)):
        number = read_number(one)
        if number is None or not number.decimals or number.digits < fewest or number.percent:
            continue
        exact = formula(other)
        if exact is None or exact.free_symbols:
            continue
        value = exact.evalf(40)
        if value.is_real and abs(value - formula(one)) < 10 ** -float(number.decimals):
            return True
    return False


_STEPS: tuple[Step, ...] = (
    shorthand.ellipses,
    quantities.moments,
    numbers.numbers,
    spellings.abbreviations,
    spellings.ordinals,
    spellings.romans,
    quantities.quantities,
    shorthand.infinities,
    shorthand.congruences,
    shorthand.signs,
    containers.regions,
    containers.shapes,
    numbers.ratios,
    words.words,
    shorthand.constants,
    _algebra,
)
