r"""The exact value of what is written in numbers alone: \frac{1}{2006!}, 3\frac{1}{2}, 2^{99}+1.

    read_number("1,234.50").value()   # Fraction(2469, 2)
    read_number("x + 1")              # None: not numbers alone
    read_number(r"\sqrt{2}")          # None: not rational; that takes computer algebra

Nothing is ever rounded. A value with more digits than `bits` allows raises `TooLargeError`;
`residues.py` compares such values without computing them.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from training.grading.reading.plain_latex import closing

_LONGEST = 50_000  # characters of one number
_COMPUTED = 10_000  # a larger exponent of ten stays one
_DEEPEST = 60  # brackets within brackets


class TooLargeError(ValueError):
    """The value exists but has more digits than were allowed."""


class UndefinedError(ValueError):
    """There is no such value: a division by zero, say."""


class IrrationalError(ValueError):
    """The value is real or complex but no fraction: computer algebra must compare it."""


class _NotNumbersError(ValueError):
    """The text is not made of numbers alone."""


class Node(NamedTuple):
    """A part of an expression: an operator and its parts, or a number."""

    operator: str  # number + - * / ^ ! !! root binomial
    parts: tuple[Node, ...] = ()
    number: Fraction = Fraction(0)


class Number(NamedTuple):
    """What `read_number` read."""

    node: Node
    percent: bool = False  # the value is written with a % sign and counts hundredths
    decimals: int | None = None  # digits behind the point, if it is one plain decimal number
    digits: int = 0  # significant ones of such a number
    base: int | None = None  # of a numeral like 203_5

    def value(self, bits: int) -> Fraction:
        """The exact value; with a % sign, the number before the sign.

        Raises:
            TooLargeError: it has more than `bits` bits.
            UndefinedError: there is none.
        """
        return evaluate(self.node, bits)


_PLAIN = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d+)|\.)?")
_NUMERAL = re.compile(
    r"\(?\s*(?P<digits>[0-9A-Za-z]+)\s*\)?\s*_\s*\{?\s*(?:\\text)?\{?\s*"
    r"(?P<base>\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)\s*\}?\}?"
)
_PREFIXED = re.compile(r"0(?:[xX](?P<x>[0-9a-fA-F]+)|[bB](?P<b>[01]+)|[oO](?P<o>[0-7]+))")
_BASES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "twelve": 12, "sixteen": 16,
}  # fmt: skip


@lru_cache(maxsize=65536)
def read_number(text: str) -> Number | None:
    """The number that `text` (as `plain` writes it) is, or None if it is something else."""
    text = text.strip()
    if not text or len(text) > _LONGEST or not any(sign.isdigit() for sign in text):
        return None
    numeral = _numeral(text)
    if numeral is not None:
        return numeral
    percent = text.endswith("%")
    body = text[:-1].rstrip() if percent else text
    try:
        node = _Parser(body).whole()
    except (_NotNumbersError, RecursionError):
        return None
    written = _PLAIN.fullmatch(body)
    decimals = len(written[1] or "") if written else None
    digits = len(re.sub(r"\D", "", body).lstrip("0")) if written else 0
    return Number(node, percent, decimals, digits)


def _numeral(text: str) -> Number | None:
    """203_5, 1F_{16}, 0x1F; None for anything else."""
    if prefixed := _PREFIXED.fullmatch(text):
        base = {"x": 16, "b": 2, "o": 8}[str(prefixed.lastgroup)]
        digits = prefixed[str(prefixed.lastgroup)]
        return Number(Node("number", number=Fraction(int(digits, base))))
    match = (
        _NUMERAL.fullmatch(text) if "_" in text and text[0] in "(0123456789ABCDEFabcdef" else None
    )
    if match is None:
        return None
    base = _BASES.get(match["base"]) or int(match["base"])
    if not 2 <= base <= 36 or (not match["digits"][0].isdigit() and base <= 10):
        return None
    try:
        value = int(match["digits"], base)
    except ValueError:
        return None
    return Number(Node("number", number=Fraction(value)), base=base)


# ------------------------------------------------------------------------------------ reading


class _Parser:
    """Reads sums of products of powers, with TeX's commands and the usual precedence."""

    def __init__(self, text: str, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise _NotNumbersError
        self._text, self._place, self._depth = text, 0, depth

    def whole(self) -> Node:
        node = self._sum()
        if self._rest():
            raise _NotNumbersError
        return node

    def _rest(self) -> str:
        return self._text[self._place :].lstrip()

    def _take(self, *signs: str) -> str | None:
        rest = self._rest()
        for sign in signs:
            if rest.startswith(sign):
                after = rest[len(sign) : len(sign) + 1]
                if sign[0] == "\\" and after.isalpha():
                    continue
                self._place = len(self._text) - len(rest) + len(sign)
                return sign
        return None

    def _sum(self) -> Node:
        node = self._signed()
        while sign := self._take("+", "-"):
            node = Node(sign, (node, self._product()))
        return node

    def _signed(self) -> Node:
        if self._take("-"):
            return Node("-", (Node("number"), self._signed()))
        if self._take("+"):
            return self._signed()
        return self._product()

    def _product(self) -> Node:
        node = self._power()
        while True:
            if self._take("*", r"\times", r"\cdot"):
                node = Node("*", (node, self._factor()))
            elif self._take("/", r"\div"):
                node = Node("/", (node, self._factor()))
            elif re.match(r"x\s*10\s*\^", self._rest()) and self._take("x"):
                node = Node("*", (node, self._factor()))
            elif self._rest()[:1] in ("(", "\\", "{"):
                node = Node("*", (node, self._power()))
            else:
                return node

    def _factor(self) -> Node:
        if self._take("-"):
            return Node("-", (Node("number"), self._factor()))
        return self._power()

    def _power(self) -> Node:
        node = self._factorial()
        if self._take("^"):
            node = Node("^", (node, self._exponent()))
        return node

    def _exponent(self) -> Node:
        rest = self._rest()
        if rest.startswith("{"):
            return self._group()
        if self._take("-"):
            return Node("-", (Node("number"), self._exponent()))
        return self._power()  # 2^3^2 is 2^(3^2)

    def _factorial(self) -> Node:
        node = self._atom()
        if self._take("!!"):
            node = Node("!!", (node,))
        while self._take("!"):
            node = Node("!", (node,))
        return node

    def _atom(self) -> Node:
        rest = self._rest()
        if rest[:1] in ("(", "{"):
            return self._group()
        if self._take(r"\frac"):
            return Node("/", (self._group(), self._group()))
        if self._take(r"\binom", r"\dbinom"):
            return Node("binomial", (self._group(), self._group()))
        if self._take(r"\sqrt"):
            order = Node("number", number=Fraction(2))
            if self._rest().startswith("["):
                order = self._group()
            return Node("root", (self._group(), order))
        return self._number()

    def _group(self) -> Node:
        """What stands in brackets."""
        rest = self._rest()
        if rest[:1] not in ("(", "{", "["):
            raise _NotNumbersError
        end = closing(rest, 0)
        if end < 0:
            raise _NotNumbersError
        self._place = len(self._text) - len(rest) + end + 1
        return _Parser(rest[1:end], self._depth + 1).whole()

    def _number(self) -> Node:
        rest = self._rest()
        match = _LITERAL.match(rest)
        if match is None or not match[0]:
            raise _NotNumbersError
        self._place = len(self._text) - len(rest) + match.end()
        node = _literal(match)
        fraction = _MIXED.match(self._text, self._place)
        if fraction and match[0].isdigit():
            return self._mixed(node)
        return node

    def _mixed(self, whole: Node) -> Node:
        r"""3\frac{1}{2} and "3 1/2" are 3 + 1/2, if the fraction is a proper one."""
        self._take("\\ ")
        fraction = self._atom()
        if fraction.operator == "number":
            if not self._take("/"):
                raise _NotNumbersError
            fraction = Node("/", (fraction, self._number()))
        above, below = fraction.parts
        if above.operator != "number" or below.operator != "number":
            raise _NotNumbersError
        if not 0 < above.number < below.number:
            raise _NotNumbersError  # 2\frac{3}{2} may be a product
        return Node("+", (whole, fraction))


_LITERAL = re.compile(
    r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.(?!\.))?|\.(?=[\d\\]))"
    r"(?P<part>(?<=\.)\d+)?"
    r"(?:(?<=[.\d])\\overline\s*\{(?P<over>\d+)\}|(?<=[.\d])\\dot\s*\{?(?P<dot>\d)\}?"
    r"|(?<=\.)\((?P<round>\d+)\)|(?<=\.\d)\((?P<round1>\d+)\)|(?<=\.\d\d)\((?P<round2>\d+)\))?"
    r"(?:[eE](?P<exponent>[+-]?\d{1,18})(?![\d.]))?"
)
_MIXED = re.compile(r"\s*\\frac\{\d+\}\{\d+\}(?!\s*[\^!(])|\s+\d+\s*/\s*\d+(?!\s*[\^!(\d])")


def _literal(match: re.Match[str]) -> Node:
    r"""The value of 1,234.5, .5, 2e-3, 0.\overline{3} or 0.(3)."""
    text = match[0]
    whole = re.match(r"[\d,]*", text)
    digits = (whole[0] if whole else "").replace(",", "")
    part = match["part"] or ""
    value = Fraction(integer(digits + part or "0"), 10 ** len(part))
    repeated = match["over"] or match["dot"] or match["round"] or match["round1"] or match["round2"]
    if repeated:
        if "." not in text:
            raise _NotNumbersError
        value += Fraction(integer(repeated), (10 ** len(repeated) - 1) * 10 ** len(part))
    exponent = int(match["exponent"] or 0)
    if abs(exponent) <= _COMPUTED:
        return Node("number", number=value * Fraction(10) ** exponent)
    power = (Node("number", number=Fraction(10)), Node("number", number=Fraction(exponent)))
    return Node("*", (Node("number", number=value), Node("^", power)))


def integer(digits: str) -> int:
    """`int(digits)` for any length: Python's own stops at 4,300 digits."""
    value = 0
    for place in range(0, len(digits), 4000):
        chunk = digits[place : place + 4000]
        value = value * 10 ** len(chunk) + int(chunk)
    return value


# --------------------------------------------------------------------------------- evaluation


def evaluate(node: Node, bits: int) -> Fraction:
    """The exact value of `node`. Raises TooLargeError or UndefinedError."""
    if node.operator == "number":
        return _checked(node.number, bits)
    values = [evaluate(part, bits) for part in node.parts]
    return _checked(_OPERATIONS[node.operator](values, bits), bits)


def _checked(value: Fraction, bits: int) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 2 * bits:
        raise TooLargeError
    return value


def _divide(values: list[Fraction], _: int) -> Fraction:
    if values[1] == 0:
        raise UndefinedError("a division by zero")
    return values[0] / values[1]


def _power(values: list[Fraction], bits: int) -> Fraction:
    base, exponent = values
    if exponent.denominator != 1:
        return _rational_power(base, exponent, bits)
    if base == 0 and exponent <= 0:
        raise UndefinedError("a power of zero")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent.numerator) > 2 * bits:
        raise TooLargeError
    return base ** (exponent.numerator if size > 1 else exponent.numerator % 2)


def _rational_power(base: Fraction, exponent: Fraction, bits: int) -> Fraction:
    if exponent.denominator > 1000:
        raise IrrationalError
    root = _root([base, Fraction(exponent.denominator)], bits)
    return _power([root, Fraction(exponent.numerator)], bits)


def _root(values: list[Fraction], _: int) -> Fraction:
    radicand, order = values
    if order.denominator != 1 or not 1 <= order <= 1000:
        raise IrrationalError
    degree = order.numerator
    if radicand < 0:
        if degree % 2 == 0 or degree == 1:
            raise IrrationalError
        return -_root([-radicand, order], 0)
    above, below = (
        _whole_root(radicand.numerator, degree),
        _whole_root(radicand.denominator, degree),
    )
    if above is None or below is None:
        raise IrrationalError
    return Fraction(above, below)


def _whole_root(value: int, degree: int) -> int | None:
    """The whole number whose `degree`-th power is `value`, if there is one."""
    if degree == 2:
        root = math.isqrt(value)
        return root if root * root == value else None
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == value else None


def _natural(values: list[Fraction], what: str) -> list[int]:
    """The values as natural numbers; `what` is undefined for others."""
    if any(value.denominator != 1 or value < 0 for value in values):
        raise UndefinedError(f"{what} of no natural number{'s' * (len(values) > 1)}")
    return [value.numerator for value in values]


def _factorial(values: list[Fraction], bits: int) -> Fraction:
    [n] = _natural(values, "a factorial")
    if n > 2 and n * (n.bit_length() - 1) > 2 * bits:
        raise TooLargeError
    return Fraction(math.factorial(n))


def _double_factorial(values: list[Fraction], bits: int) -> Fraction:
    [n] = _natural(values, "a factorial")
    if n * n.bit_length() > 2 * bits:
        raise TooLargeError
    return Fraction(math.prod(range(n, 0, -2)))


def _binomial(values: list[Fraction], bits: int) -> Fraction:
    n, k = _natural(values, "a binomial coefficient")
    if min(k, n - k) > 0 and min(k, n - k) * n.bit_length() > 2 * bits:
        raise TooLargeError
    return Fraction(math.comb(n, k))


_OPERATIONS = {
    "+": lambda values, _: values[0] + values[1],
    "-": lambda values, _: values[0] - values[1],
    "*": lambda values, _: values[0] * values[1],
    "/": _divide,
    "^": _power,
    "root": _root,
    "!": _factorial,
    "!!": _double_factorial,
    "binomial": _binomial,
}
