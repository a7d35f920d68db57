r"""One way of writing for what can be written in many: "½·√2" is \frac{1}{2}\cdot\sqrt{2}.

Unicode becomes LaTeX, what carries no mathematics goes (dollar signs, \left, \text, Markdown), and
thousands separators that cannot be anything else are closed up. Nothing here changes a value.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()", strict=True))

_SIGNS = {
    "−": "-", "–": "-", "‒": "-", "‐": "-", "‑": "-", "﹣": "-", "⁄": "/", "∕": "/",
    "×": r"\times ", "✕": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ",
    "÷": "/", "∞": r"\infty ", "π": r"\pi ", "𝜋": r"\pi ", "≤": r"\le ", "⩽": r"\le ",
    "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ",
    "…": r"\ldots ", "⋯": r"\cdots ", "′": "'", "’": "'", "⟨": r"\langle ", "⟩": r"\rangle ",
    "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "λ": r"\lambda ",
    "μ": r"\mu ", "µ": r"\mu ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "ρ": r"\rho ",
    "τ": r"\tau ", "ε": r"\epsilon ", "Δ": r"\Delta ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]",
    "√": r"\sqrt", "→": r"\to ", "∖": r"\setminus ", "“": '"', "”": '"',
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))

_TEXT = r"\\(?:text(?:bf|it|rm|tt|sf|normal)?|mathrm|mbox|hbox|mathsf|mathtt|emph)\s*\{([^{}]*)\}"
_FONT = r"\\(?:mathbf|boldsymbol|mathit|bm|vec|pmb|mathcal|underline|uline|cancel)\s*\{([^{}]*)\}"

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan"
_Step = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _unwrapped(match: re.Match[str]) -> str:
    """The content of \\text, set apart by spaces unless it is one letter of a formula."""
    content = match[1].strip().strip("~").strip()
    before = match.string[match.start() - 1 : match.start()]
    if len(content) == 1 and not (before.isdigit() or before in "} "):
        return content
    return f" {content} "


def _quantity(match: re.Match[str]) -> str:
    r"""\SI{5}{\meter\per\second} is 5 meter per second."""
    return f"{match[1]} {match[2]}".replace("\\", " ")


def _arc(match: re.Match[str]) -> str:
    """30°30' is (30+30/60)°."""
    seconds = rf"+\frac{{{match[3]}}}{{3600}}" if match[3] else ""
    return rf"({match[1]}+\frac{{{match[2]}}}{{60}}{seconds})^\circ "


def _thousands(match: re.Match[str]) -> str:
    """1.234.567,89 is 1234567.89: no number has two points."""
    return match[0].replace(".", "").replace(",", ".")


_REWRITES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:h|v)?phantom\s*\{[^{}]*\}", ""),
    (r"\\num\s*\{([^{}]*)\}", r"\1"),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}", _quantity),
    (r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?(?![\d.,]*\d)", _thousands),
    (r"\\text\s*\{\s*(?:\\\$|\$)\s*\}|\\text(?:dollar|sterling|euro)\b\{?\}?", " USD "),
    (r"\\\$(?=\s*[\d.\\-])|\\\$", " USD "),
    (r"\$|(?<!\\)\\[!()\[\]]|\\(?:displaystyle|textstyle|limits|nolimits)", ""),
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\<>.{}]|$)", ""),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:leqslant|leqq|leq|le)(?![A-Za-z])|<=", r"\\le "),
    (r"\\(?:geqslant|geqq|geq|ge)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\(?:neq|ne)(?![A-Za-z])|!=", r"\\ne "),
    (r"\\(?:lt)(?![A-Za-z])", "<"),
    (r"\\(?:gt)(?![A-Za-z])", ">"),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\(?:dots|dotsc|dotsb|ldots|cdots|vdots)(?![A-Za-z])|\.\s?\.\s?\.", r"\\ldots "),
    (r"\\(?:varnothing|emptyset)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\ast(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"(?<=\d)\s*(?:\{\\?,\}|(?<!\\)\\[,;: ]|~|[\u2009\u202f\u00a0]|[_'])(?=\d{3}(?!\d))", "\x00"),
    (r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:h|v)space\{[^{}]*\}", " "),
    (_TEXT, _unwrapped),
    (_TEXT, _unwrapped),
    (_FONT, r" \1"),
    (r"(?<=\d)\s*\^\s*\{?\s*(?:th|st|nd|rd)\s*\}?", " th"),
    (r"\\operatorname\*?\s*\{([^{}]*)\}", r"\\\1 "),
    (r"\\(?:rm|bf|it|tt)(?![A-Za-z])", " "),
    (r"\{,\}", ","),
    (r"\\%", "%"),
    (r"\\(&|_|#)", r"\1"),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![A-Za-z])|\\circ(?=\s*$)", r"^\\circ "),
    (r"(?<=\d)\s*\^\s*(?:\{\s*o\s*\}|o(?![A-Za-z]))", r"^\\circ "),
    (r"(\d+)\s*\^\\circ\s*(\d{1,2})\s*'(?!')\s*(?:(\d{1,2})\s*(?:''|\"))?", _arc),
    (r"(\d[\d,]*(?:\.\d+)?)\s*‰", r"\\frac{\1}{1000}"),
    (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
    (r"(?<=[(\[,+-])\s*(?:inf|oo)(?=\s*[,)\]]|$)", r"\\infty "),
    (r"^<([^<>=]*,[^<>=]*)>$", r"\\langle \1\\rangle "),
    (r"\\sqrt\s*(\[[^\]]*\])?\s*\(", r"\\sqrt\1("),
    (r"(?<![\\A-Za-z])(sqrt|cbrt)\s*\(", r"\\\1("),
    (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
    (r"(?<![\\A-Za-z])(pi|infty|alpha|beta|theta|lambda)(?![A-Za-z])", r"\\\1 "),
    (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({+-])", "^"),
    (rf"(?<![\\A-Za-z])({_FUNCTIONS})\s*(?=\()", r"\\\1"),
    (r"(?i)(?<=[\d})\s])\s*(?:per ?cent|percentage|pct)(?:\s+points?)?\b\.?", "%"),
    (r"\s+", " "),
]  # fmt: skip
_STEPS: list[_Step] = [(re.compile(pattern), form) for pattern, form in _REWRITES]

_ROOT_SIGN = re.compile(r"√\s*(\d+(?:\.\d+)?)")  # the bar of a printed root covers all digits
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d,])(?!\.\d*\s\d)")


# What NFKC would turn into letters, and what is not seen.
_BEFORE_NFKC = {
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}", "∶": ":", "º": "°", "˚": "°",
    **dict.fromkeys(map(chr, [*range(9), *range(14, 32), 127]), " "),
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
    **dict.fromkeys(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]), ""),
}  # fmt: skip
_TABLE_BEFORE = str.maketrans(_BEFORE_NFKC)


@lru_cache(maxsize=65536)
def plain(text: str) -> str:
    """`text` in the one way of writing."""
    text = _powers(text.translate(_TABLE_BEFORE).strip()[:20_000])
    text = _fractions(text)
    text = unicodedata.normalize("NFKC", text)
    text = _ROOT_SIGN.sub(r"\\sqrt{\1}", text)
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], text)
    text = _markdown(text)
    text = _dollars(text)
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    text = text.replace("\x00", "")
    text = _GROUPED.sub(lambda match: match[1] + match[2].replace(" ", ""), text)
    if r"\frac" in text:
        text = _braced_fractions(text)
    if "sqrt" in text or "cbrt" in text:
        text = _braced_roots(text)
    return _without_end(text)


@lru_cache(maxsize=65536)
def squeezed(text: str) -> str:
    """A plain text without the spaces that carry no meaning, to compare it as a string."""
    return _SPACE.sub("", text).replace("{}", "")


_SPACE = re.compile(r"(?<![A-Za-z\d]) | (?![A-Za-z\d])|(?<=[\d]) (?=[A-Za-z])|(?<=[A-Za-z]) (?=\d)")


def _without_end(text: str) -> str:
    """`text` without closing punctuation; a factorial keeps its mark."""
    text = text.strip()
    while text and text[-1] in ".,;:" and not text.endswith("\\ldots"):
        text = text[:-1].rstrip(" \\")
    return text.strip()


def _powers(text: str) -> str:
    """x² is x^{2}, a₁ is a_{1}."""
    for table, mark in ((_SUPERSCRIPTS, "^"), (_SUBSCRIPTS, "_")):
        if any(sign in text for sign in table):
            signs = "[" + re.escape("".join(table)) + "]+"
            text = re.sub(signs, partial(_marked, table, mark), text)
    return text


def _marked(table: dict[str, str], mark: str, match: re.Match[str]) -> str:
    return mark + "{" + "".join(table[sign] for sign in match[0]) + "}"


def _fractions(text: str) -> str:
    r"""½ is \frac{1}{2}, and 3½ is the mixed number 3\frac{1}{2}."""
    if text.isascii():
        return text
    found = []
    for sign in text:
        form = unicodedata.normalize("NFKC", sign)
        if "⁄" in form and len(form) > 2:
            above, below = form.split("⁄")
            found.append(rf"\frac{{{above}}}{{{below}}}")
        else:
            found.append(sign)
    return "".join(found)


def _markdown(text: str) -> str:
    """`text` without emphasis around all of it."""
    for mark in ("**", "__", "`"):
        if text.startswith(mark) and text.endswith(mark) and len(text) > 2 * len(mark):
            text = text[len(mark) : -len(mark)]
    return text.strip()


_AMOUNT = re.compile(r"(?<!\\)\$(?=\s*[\d.])")


_DOLLARS = {"C": "CAD", "CA": "CAD", "A": "AUD", "AU": "AUD", "NZ": "NZD", "HK": "HKD", "S": "SGD"}
_NAMED_DOLLAR = re.compile(r"(?<![A-Za-z\\])(CA?|AU?|NZ|HK|S)\\?\$(?=\s*\d)")


def _dollars(text: str) -> str:
    """A dollar sign that opens no formula is a currency: $18 is USD 18, $18$ is 18."""
    if text.count("$") == 1:
        text = _NAMED_DOLLAR.sub(lambda match: f"{_DOLLARS[match[1]]} ", text)
    if text.count("$") - 2 * text.count("$$") - text.count(r"\$") == 1:
        return _AMOUNT.sub(" USD ", text)
    return text


def _braced_fractions(text: str) -> str:
    r"""\frac12, \frac1{2} and \frac{1}2 are \frac{1}{2}, at any depth."""
    done, rest = "", text
    while (place := rest.find(r"\frac")) >= 0:
        done += rest[:place]
        above, after = _argument(rest[place + 5 :].lstrip())
        below, after = _argument(after.lstrip())
        if above is None or below is None:
            return done + rest[place:]
        done += rf"\frac{{{_braced_fractions(above)}}}{{{_braced_fractions(below)}}}"
        rest = after
    return done + rest


def _argument(text: str) -> tuple[str | None, str]:
    """The TeX argument at the start of `text`, without its braces, and what follows it."""
    if not text or text[0] in "}^_&":
        return None, text
    if text[0] == "{":
        end = closing(text, 0)
        return (None, text) if end < 0 else (text[1:end], text[end + 1 :])
    command = re.match(r"\\[A-Za-z]+", text)
    end = command.end() if command else 1
    return text[:end], text[end:]


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes; -1: nowhere."""
    opening = text[start]
    close = {"(": ")", "[": "]", "{": "}"}[opening]
    depth = 0
    index = start
    while index < len(text):
        sign = text[index]
        if sign == "\\":
            index += 2
            continue
        if sign == opening:
            depth += 1
        elif sign == close:
            depth -= 1
            if depth == 0:
                return index
        index += 1
    return -1


_ROOT = re.compile(r"\\(?P<name>sqrt|cbrt)\s*(?P<order>\[[^\[\]]*\])?\s*")


def _braced_roots(text: str) -> str:
    r"""\sqrt(2), \sqrt2 and \sqrt 12x are \sqrt{2}, \sqrt{2} and \sqrt{1}2x; \cbrt is \sqrt[3]."""
    done, rest = "", text
    while match := _ROOT.search(rest):
        done += rest[: match.start()]
        rest = rest[match.end() :]
        order = "[3]" if match["name"] == "cbrt" else (match["order"] or "")
        if rest.startswith(("(", "{")):
            end = closing(rest, 0)
            if end < 0:
                return text
            inside, rest = _braced_roots(rest[1:end]), rest[end + 1 :]
        else:
            atom = re.match(r"\\[A-Za-z]+|\w", rest)
            if atom is None:
                return text
            inside, rest = atom[0], rest[atom.end() :]
        done += rf"\sqrt{order}{{{inside}}}"
    return done + rest
