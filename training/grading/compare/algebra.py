r"""Computer algebra for what takes it: \frac{\sqrt{8}}{2} and \sqrt{2}, (x+1)^2 and x^2+2x+1.

math-verify's LaTeX parser reads the formulas, each as a whole: a fragment that happens to parse is
no answer. sympy compares them exactly. Decimals become fractions first. A difference is evaluated
with up to 600 digits, so that neither 1/2006! nor \pi + 10^{-100} is mistaken for something else.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Literal

from training.grading.reading.arithmetic import (
    IrrationalError,
    TooLargeError,
    UndefinedError,
    read_number,
)
from training.grading.verdict import Decision, right, unknown, wrong

_DIGITS = 600
_BITS = 100_000  # of a number inside a formula
_SAME = 200  # digits in which two values agree if no formula can tell them apart
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?!\d*\.)")
_EXPONENT = re.compile(r"(?<=\d)[eE]([+-]?\d+)(?![\d.])")  # 2e5
_WORD = re.compile(
    r"(?<![\\A-Za-z{])[A-Za-z]{4,}|(?<![\\A-Za-z])(?:is|the|of|to|an|be|not|yes|no)(?![A-Za-z])"
)
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_])i(?![A-Za-z])|\\(?:imath|mathrm\{i\})")
_INDEXED_E = re.compile(r"(?<![A-Za-z\\])([EeiId])_\s*\{?\s*([A-Za-z0-9]+)\s*\}?")  # no constants
_PRIME = re.compile(r"([A-Za-z])('+)")
_TRANSPOSED = re.compile(
    r"(?<=[A-Za-z}])\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\dagger)\s*\}?(?![A-Za-z\d])"
)
# The parser takes \gamma - 1 for the gamma function at -1.
_FUNCTION_NAMES = re.compile(
    r"\\(gamma|beta|zeta|psi|chi|delta)(?![A-Za-z])(?:\s*_\s*\{?([A-Za-z\d]+)\}?)?"
)
_RATE = re.compile(r"\\frac\s*\{\s*d\s*(\\?[A-Za-z]+)\s*\}\s*\{\s*d\s*(\\?[A-Za-z]+)\s*\}")
_MARKED_BRACKET = re.compile(
    r"[)\]]\s*(?:'|\^\s*\{?\s*(?:T|\\top|\\dagger|\*|\\prime)(?![A-Za-z]))"
)
_ON_LETTERS = re.compile(
    r"\\(?:gcd|lcm|mod|det|tr|rank)\b.*[A-Za-z]"
)  # sympy gives 1 for gcd(a, b)
_MIXED = re.compile(r"\d\s*\\frac\{\d+\}\{\d+\}")  # a mixed number, or a product?
# 1/2x: half of x, or one in 2x?
_SLASHED = re.compile(
    r"/\s*\d+\s*(?:[A-Za-z({]|\\(?!r(?:floor|ceil|angle|vert)|cdot|times|[pm][pm]|[lgn]e|in|cup)[a-z])"
)
_BLANK = re.compile(r"\\(?:left|right)?\s*$|\?|@|`|\"")


def same_value(candidate: str, reference: str) -> Decision:
    """Whether two formulas are equal."""
    a, b = formula(candidate, reference), formula(reference, candidate)
    if b is None:
        return unknown("the reference cannot be parsed")
    if a is None:
        return unknown("the answer cannot be parsed")
    return _decided(_equal(a, b), "formulas")


def same_relation(
    candidate: tuple[str, str], reference: tuple[str, str], kind: Literal["equation", "inequality"]
) -> Decision:
    """Whether left - right of one is that of the other, up to a constant factor.

    Args:
        kind: the factor of an inequality is positive.
    """
    from sympy import simplify

    beside = " ".join((*candidate, *reference))
    sides: list[Any] = [formula(side, beside) for side in (*candidate, *reference)]
    if any(side is None for side in sides):
        return unknown(f"the {kind} cannot be parsed")
    a, b = sides[0] - sides[1], sides[2] - sides[3]
    if a.free_symbols != b.free_symbols:
        return wrong(f"{kind}s in different variables")
    factor = simplify(a / b) if b != 0 else None
    if factor is not None and not factor.free_symbols:
        if factor == 0 or (kind == "inequality" and not factor.is_positive):
            return wrong(f"different {kind}s")
        return right(f"equal {kind}s")
    if a.is_polynomial(*a.free_symbols) and b.is_polynomial(*b.free_symbols):
        return wrong(f"different {kind}s")
    return unknown(f"{kind}s that may have the same solutions")


# x^{100000}, 1e100000, x^{10^{10}}, and numbers of hundreds of digits
_HUGE = re.compile(r"(?:\^|[eE])\s*\{?\s*[+-]?\d{5,}|\^\s*\{?\s*\d+\s*\^\s*\{?\s*\d{2,}|\d{400}")
_DEEP = 24  # brackets within brackets; the parser takes ever longer


def _takes_too_long(text: str) -> bool:
    """Whether sympy would write out what nobody can, or its parser get lost in brackets."""
    if _HUGE.search(text):
        return True
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest > _DEEP


def formula(text: str, beside: str = "") -> Any | None:
    """`text` as a sympy expression, or None if not all of it is one.

    Args:
        beside: what it will be compared with; an imaginary unit there makes i one here.
    """
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
    from sympy import Basic, I, MatrixBase, Rational, Symbol

    number = read_number(text)
    if number is not None:
        try:
            value = number.value(_BITS) / (100 if number.percent else 1)
            return Rational(value.numerator, value.denominator)
        except UndefinedError:
            return None
        except (TooLargeError, IrrationalError):
            pass
    if _WORD.search(text) or _BLANK.search(text) or not text.strip() or _takes_too_long(text):
        return None
    if any(one.search(text) for one in (_MARKED_BRACKET, _ON_LETTERS, _MIXED, _SLASHED)):
        return None
    text = _FUNCTION_NAMES.sub(r"\\nu_{\1\2}", text)
    text = _RATE.sub(_rate, text)
    text = _TRANSPOSED.sub("_{T}", _primed(text))
    text = _EXPONENT.sub(r"\\cdot 10^{\1}", text.replace("%", ""))
    text = _DECIMAL.sub(_as_fraction, text)
    text = _INDEXED_E.sub(r"Y_{\1\2}", text.replace(r"\odot", "sun").replace(r"\hbar", "h_{bar}"))
    imaginary = bool(_IMAGINARY.search(text) or _IMAGINARY.search(beside))
    try:
        parsed = latex2sympy(
            text,
            is_real=True,
            convert_degrees=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
        if not isinstance(parsed, Basic | MatrixBase) or _is_treacherous(parsed):
            return None
        parsed = parsed.doit()
        if imaginary:
            parsed = parsed.subs(Symbol("i", real=True), I)
    except (RecursionError, MemoryError):
        raise
    except Exception:  # the parser raises plain exceptions, sympy a dozen kinds
        return None
    return parsed


def _primed(text: str) -> str:
    """`text` with x' as a variable of its own, which the parser takes for x."""
    text = re.sub(r"\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda m: "'" * m[1].count("prime"), text)
    return _PRIME.sub(lambda m: f"{m[1]}_{{p{len(m[2])}}}", text)


def _rate(match: re.Match[str]) -> str:
    """dv/dt as a variable of its own: to sympy v is a constant."""
    return f"D_{{{match[1]}{match[2]}}}".replace("\\", "")


def _is_treacherous(parsed: Any) -> bool:
    """Whether sympy would evaluate something that it knows too little of.

    It takes dy/dx for 0, as y is a constant to it, and the sum of a_k for n a_k.
    """
    from sympy import Derivative, Integral, Limit, Product, Sum

    for one in parsed.atoms(Derivative, Integral, Limit, Product, Sum):
        if _functions(one):
            return True
        if isinstance(one, Derivative):
            bound, inside = one.variables, one.expr
            if not set(bound) <= inside.free_symbols:
                return True
        elif isinstance(one, Limit):
            bound, inside = (one.args[1],), one.args[0]
        else:
            bound, inside = one.variables, one.function
        names = {str(variable) for variable in bound}
        for symbol in inside.free_symbols:
            _, _, index = symbol.name.partition("_")
            if names & set(re.findall(r"[A-Za-z]+", index)):
                return True
    return False


def _as_fraction(match: re.Match[str]) -> str:
    value = Fraction(f"{match[1] or '0'}.{match[2]}")
    if value.denominator == 1:
        return str(value.numerator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _decided(equal: bool | None, what: str) -> Decision:
    if equal is None:
        return unknown(f"{what} that may be equal")
    return right(f"equal {what}") if equal else wrong(f"different {what}")


def _equal(a: Any, b: Any) -> bool | None:
    """Whether two parsed formulas are equal; None: it could not be found out."""
    from sympy import Expr, MatrixBase, nan, zoo

    if a.has(zoo, nan) or b.has(zoo, nan):
        return None  # 1/0 is not 2/0
    if a == b:
        return True
    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        if not (isinstance(a, MatrixBase) and isinstance(b, MatrixBase)):
            return False
        if a.shape != b.shape:
            return False
        found = [_equal(x, y) for x, y in zip(a, b, strict=True)]
        return False if False in found else None if None in found else True
    if not isinstance(a, Expr) or not isinstance(b, Expr):
        return False if _is_named_set(a) and _is_named_set(b) else None
    difference = a - b
    if difference.is_Rational:
        return bool(difference == 0)
    if not difference.free_symbols and not _functions(difference):
        return _is_zero(difference, a, b)
    return _equal_at_points(a, b)


def _is_named_set(value: Any) -> bool:
    """Whether it is one of the sets N, Z, Q, R and C, which differ."""
    from sympy import S

    return value in (S.Naturals, S.Naturals0, S.Integers, S.Rationals, S.Reals, S.Complexes)


def _functions(expression: Any) -> set[Any]:
    from sympy.core.function import AppliedUndef

    found: set[Any] = expression.atoms(AppliedUndef)
    return found


def _is_zero(difference: Any, a: Any, b: Any) -> bool | None:
    """Whether a number is zero, by its size against the numbers that it is a difference of."""
    from sympy import Float, nan, oo, zoo

    sizes = [abs(one.evalf(20, maxn=_DIGITS)) for one in (difference, a, b)]
    if any(size in (nan, oo, zoo) or not size.is_number or size.has(nan, zoo) for size in sizes):
        return None
    size, *others = sizes
    if size == 0:
        return True
    largest = max(others)
    return bool(size <= largest * Float(10) ** -_SAME)


# Values for the variables: both signs, no small whole numbers, and then whole ones for n.
_POINTS = [
    ((7, 3), (11, 5), (13, 7), (17, 11), (19, 13)),
    ((5, 11), (3, 7), (23, 9), (2, 13), (29, 17)),
    ((-9, 7), (-4, 11), (15, 4), (-21, 8), (6, 5)),
    ((-31, 12), (25, 7), (-8, 3), (9, 14), (-5, 3)),
    ((41, 6), (37, 10), (43, 9), (47, 8), (53, 12)),
    ((1, 9), (1, 13), (2, 17), (3, 19), (1, 6)),
]
_WHOLE = [((n, 1), (n + 2, 1), (n + 5, 1), (n + 1, 1), (n + 7, 1)) for n in (2, 3, 5, 8, 12, 13)]


def _equal_at_points(a: Any, b: Any) -> bool | None:
    r"""Compare two formulas at fixed points; they differ if they do at one.

    Where a variable is negative, only real values count: \sqrt{1/n} and 1/\sqrt{n} are equal.
    """
    from sympy import Dummy, Rational, simplify

    for applied in sorted(_functions(a) | _functions(b), key=str):
        stand_in = Dummy(real=True)
        a, b = a.subs(applied, stand_in), b.subs(applied, stand_in)
    names = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols and a.is_polynomial() and b.is_polynomial():
        return bool((a - b).expand() == 0)
    for points in (_POINTS, _WHOLE):
        agreed = 0
        for point in points:
            values = {
                name: Rational(*point[place % len(point)]) + place // len(point)
                for place, name in enumerate(names)
            }
            x, y = a.subs(values), b.subs(values)
            signed = any(value < 0 for value in values.values())
            if not (_finite(x, signed) and _finite(y, signed)):
                continue
            zero = _is_zero(x - y, x, y)
            if zero is False:
                return False
            agreed += zero is True
        if agreed >= 3:
            return True
    return True if simplify(a - b) == 0 else None


def _finite(value: Any, real: bool) -> bool:
    """Whether a number is finite, and real if it must be."""
    from sympy import I, nan, oo, zoo

    number = value.evalf(20, maxn=100)
    return bool(number.is_number and not number.has(nan, oo, zoo) and not (real and number.has(I)))
