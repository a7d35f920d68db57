"""The final answer inside a text, and what can be said of it without computer algebra.

Nearly every rollout ends in a boxed number or a short formula that equals its reference as a
string, or is a different number. Those are decided here, in microseconds; `decide` returns None for
the rest, which `training.grading.verifier` hands to math-verify.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

# An answer this much longer than its reference is not a final answer; it is not worth a process.
_LONGEST = 1000

_BRACES = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|(?P<bare>\\boxed\s+[^\s{}$\\]+)"
    r"|\\\\(?!(?:boxed|fbox)\b)|\\[{}]|(?P<open>\{)|(?P<close>\})"
)
_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_SCIENTIFIC = re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|×)\s*10\s*\^\s*\{?\s*([+-]?\d{1,3})\s*\}?$")
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d{1,3}(?:,\d{3})+|\d*)(?P<part>\.\d+|\.)?(?P<exponent>e[+-]?\d{1,3})?",
    re.IGNORECASE,
)
# math-verify compares decimals rounded to six places; what differs by more than this differs there.
_TOLERANCE = Fraction(1, 100_000)

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"\\\$|\$|\\!|\\\(|\\\)", ""),
        (r"\{,\}", ","),
        (r"\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|operatorname)\s*\{([^{}]*)\}", r"\1"),
        (r"\^\s*\{?\s*\\circ\s*\}?", ""),
        (r"\\%", "%"),
        (r"[−–]", "-"),
        (r"^\s+|[\s.]+$", ""),
        (r"\s+", " "),
    ]
]
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_CHOICE = re.compile(r"\(([A-Z])\)")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None. Linear in the length of `text`.

    Braces are balanced as TeX does it (`\{` is no brace); `\fbox{...}` and `\boxed 5` count too.
    """
    if "boxed" not in text and "fbox" not in text:
        return None
    stack: list[int] = []  # for each open brace: where its content begins if it is a box, else -1
    found, best = None, -1
    for match in _BRACES.finditer(text):
        kind = match.lastgroup
        if kind == "box":
            stack.append(match.end())
        elif kind == "open":
            stack.append(-1)
        elif kind == "close" and stack:
            start = stack.pop()
            if start > best:
                found, best = text[start : match.start()], start
        elif kind == "bare" and match.start() > best:
            found, best = match[0].split(maxsplit=1)[1], match.start()
    return found


def after_hashes(text: str) -> str | None:
    """The final answer in GSM8K's way of writing it, "#### 18", or None."""
    if "####" not in text:
        return None
    found = _HASHES.findall(text)
    return found[-1].strip() if found else None


def clean(text: str) -> str:
    """`text` without what carries no mathematics: dollar signs, thin spaces, \\left, \\text."""
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def number(text: str) -> Fraction | None:
    """The value of a plain decimal number (1,234.5; -3; 2e6; 2 \\times 10^{6}), else None."""
    if len(text) > 60:
        return None
    match = _NUMBER.fullmatch(_SCIENTIFIC.sub(r"e\1", text))
    if match is None or not (match["whole"] or len(match["part"] or "") > 1):
        return None
    digits = (match["whole"] or "0").replace(",", "")
    return Fraction(
        match["sign"] + digits + (match["part"] or ".") + "0" + (match["exponent"] or "")
    )


@lru_cache(maxsize=65536)
def _forms(text: str) -> tuple[str, Fraction | None]:
    cleaned = clean(text)
    # Spaces go, except between digits: "1 2" is not "12".
    compact = _CHOICE.sub(r"\1", _LOOSE_SPACE.sub("", cleaned))
    return compact, number(cleaned)


def decide(candidate: str, reference: str) -> bool | None:
    """Whether `candidate` equals `reference`, or None if that takes computer algebra."""
    if not candidate.strip() or len(candidate) > max(_LONGEST, 10 * len(reference)):
        return False
    (mine, value), (theirs, wanted) = _forms(candidate), _forms(reference)
    if mine == theirs and mine:
        return True
    if value is None or wanted is None:
        return None
    if value == wanted:
        return True
    return False if abs(value - wanted) > _TOLERANCE else None


def latex(text: str) -> str:
    """`text` as math-verify reads it best: a box, without dollar signs, 2e6 written out."""
    text = text.replace("\\$", "").replace("$", "")
    if number(text.strip()) is not None:
        text = re.sub(r"[eE]([+-]?\d+)$", r" \\times 10^{\1}", text.strip())
    return f"\\boxed{{{text}}}"
