r"""The final answer that a text states, and nothing that it merely mentions.

    \boxed{18}                        the last complete box
    #### 18                           GSM8K's way of writing it
    <answer>18</answer>               the way of many RL prompts
    **Final Answer:** 18              announced, in Markdown or plain: "The answer is 18."

They count in that order. An announced answer may stand below its announcement: on a line of its
own, in a list, as a displayed formula, or in a fence that names no programming language. What the
text states or takes back behind its answer is kept beside it.

What stands inside think tags is no answer. A box that was cut off hides every earlier answer: the
model had not finished. "The answer is not 18" states nothing, and neither does a number that merely
comes last; "the answer is not known" is an answer in words.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from training.grading.final_answer import Boxes, boxes, hashes
from training.grading.reading.number_words import in_digits

_TAIL = 4000  # characters in which an unboxed answer is looked for
_PROSE = 3  # words; an item of a list that has more is no value

_NAMES = r"think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis"
_OPEN = re.compile(
    rf"<(?:seed:)?(?:{_NAMES})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE
)
_CLOSE = re.compile(
    rf"</(?:seed:)?(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE
)
_END_OF_TURN = re.compile(r"(?:<\|(?:im_end|eot_id|endoftext|end_of_text|return)\|>|</s>)\s*$")

# "#### Step 3" and "#### Final Answer" are headings, not answers.
_HEADING_WORD = re.compile(
    r"(?i)[*_\s]*(?:step|final(?:ly)?|answer|conclusion|solution|part|therefore|summary|explanation|"
    r"verification|reasoning|calculation|proof|note)s?\d*\b"
)
# "#### Given: 3 apples" and "#### Add both of them up" may be: they count where nothing else does.
_HEADING_TEXT = re.compile(r"(?i)[*_\s]*(?:[a-z]\w+:[*_]*(?:\s|$)|[a-z]+\s+[a-z]+\s+[a-z]+\s)")
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)  # code states nothing
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_NOUN = r"(?:(?:final|correct|right)\s+)*(?:answer|option|choice)"
# "Final Answer: 73", "**Answer:** 5", "**Answer**: 5", and a heading with the answer below it.
_LABEL = re.compile(
    rf"(?im)(?:^|(?<=[.!?:]\s)|(?<=[\s*✅])){_NOUN}\b[ \t]*[*_`]*[ \t]*"
    r"(?:[:：=]|\bis[ \t]*[:：])[*_`]*"
)
_HEADING = re.compile(
    rf"(?im)^[ \t]*(?:\#+[ \t]*|\*\*|(?=final))(?:the[ \t]+)?{_NOUN}[ \t]*[*_:：]*[ \t]*$"
)
# "The answer is 5.", "the final answer to the problem is therefore 5"
_SENTENCE = re.compile(
    rf"(?i)\b(?:the|my|our|a|final|correct)\s+{_NOUN}\b(?P<between>[^.\n:=]{{0,120}}?)"
    r"\b(?:is|would be|should be|must be|equals)\b"
)
_CHINESE = re.compile(r"(?:最终|正确)?答案(?:是|为)?[：:]?")
_FILLERS = (
    r"(?:therefore|thus|hence|then|simply|just|indeed|now|clearly|equal to|given by|as follows|"
    r"the following|exactly)\b|[:=：]"
)
# What may stand between an announcement and the answer below it, or in the same line.
_BELOW = re.compile(rf"(?i)(?:[\s*_,]|-{{3,}}(?!-)|{_FILLERS})*\n\s*")
_BESIDE = re.compile(r"[ \t]*(?:[*_#]+[ \t]+)*")
_BULLET = re.compile(r"(?:[-*+•>]|\#{1,6})[ \t]+(?=\S)")  # "- 18" in a line of its own
_NUMBERED = re.compile(r"\d{1,2}[.)][ \t]+(?=\S)")
_ONLY_ITEM = re.compile(rf"{_BULLET.pattern}|1[.)][ \t]+(?=\S*\d)")
# Displayed formulas, of which several may follow each other.
_DISPLAY = re.compile(
    r"\s*(?:(?:\b(?P<join>and|or)\b|,)\s*)?"
    r"(?:\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$[ \t]*\n(.+?)\n[ \t]*\$|\\\([ \t]*\n(.+?)\n[ \t]*\\\)|"
    r"\\begin\{(?:equation|displaymath|align|gather)\*?\}(.+?)\\end\{\w+\*?\})",
    re.IGNORECASE | re.DOTALL,
)
_FENCE = re.compile(
    r"```(?:(?:text|txt|plain|plaintext|output|math|latex|tex|markdown|md)?[ \t]*\n|(?=[^\n]*```))"
    r"(?P<inside>.*?)\s*```",
    re.DOTALL,
)
# Right before "the answer is 5", these make it no statement of the writer's.
_HYPOTHESIS = re.compile(
    r"(?i)\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|says?|said|claims?|"
    r"claimed|check(?:ing)?|maybe|perhaps|(?:might|may|could) be)\s*,?\s*(?:that\s+)?$"
)
_UNTRUE = re.compile(r"(?i)(?:\bnot|n't)\s+(?:true|the case|correct|right)\s+(?:that\s+)?$")
_DENIED = re.compile(
    r"(?i)(?:\b(?:not|never|neither|nor|cannot|hardly|nowhere)\b|n't\b|≠|\\neq?\b)"
    r"(?:\s+(?:equal|be|to|simply|just|necessarily))*[\s:*_$\\(\[{]*$"
)
_DENIAL = re.compile(
    r"(?i)[\s,*_]*(?:not|never|neither|nor|no longer|unlikely|n't|cannot)\b|\s*(?:不|并非|並非)"
)
# Behind a denial: "not 5", "cannot be x", "not B", and no "not enough information".
_DENIED_VALUE = re.compile(
    r"(?i)(?:\s+(?:be|equal|to))*[\s(\[*]*(?:[$\\{∞]|[a-z]\b(?!['\s]*\w))|[^\n]*\d"
)
_RETRACTION = re.compile(
    r"(?i)\b(?:no,? wait\b|wait\b|that(?:'s| is| was) (?:wrong|incorrect|not right|a mistake)|"
    r"i made a mistake|scratch that|let me (?:re|double))"
)
# The same behind a box or a mark, where "wait, let me check" often ends in agreement.
_TAKEN_BACK = re.compile(
    r"(?i)\b(?:no,? wait\b|(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right|a mistake)|"
    r"i made a mistake|my mistake|scratch that)"
)
_LETTER = re.compile(r"[\s(\[*$]*[A-J][\s)\].:*$]*")  # an option, and nothing else
_FILLER = re.compile(rf"(?i)(?:\s|[*_`])*(?:(?:{_FILLERS})[\s,:]*)+")
# Where a sentence leaves its answer and goes on.
_CLAUSE = re.compile(
    r"(?i)(?:,\s+|(?<!\s)\s+)(?:(?:because|since|which|so|as|where|after|when|given|that is|"
    r"in\s+total|altogether|in\s+all|for\s+(?:a|the|this|all)|i\s+hope|hence|therefore|"
    r"and\s+(?:therefore|so|we|this|it|the|that))\b|i\.e\.)|(?<!\s)\s+[—–]\s+"
)
_SENTENCE_END = re.compile(r"(?<![\d\s].)(?<!\b[a-zA-Z])[.!?](?=\s|$|[*_\"'”])|(?<=\d)\.(?=\s|$)")


class Stated(NamedTuple):
    """The final answer that a text states."""

    answer: str | None
    reason: str  # where it stands, or why there is none
    boxed: bool = False
    other: str = ""  # another answer that the text announces behind its box or mark
    retracted: bool = False  # the text takes the answer back

    def behind(self) -> Stated:
        """The other answer, alone."""
        return Stated(self.other, self.reason)


def stated_answer(text: str) -> Stated:
    """The final answer of `text`, as written. Linear in the length of `text`."""
    spoken = without_thoughts(text)
    if not spoken.strip():
        return Stated(None, "the text ends inside its think tags" if text.strip() else "no text")
    found = boxes(spoken)
    if found.cut_off:
        return Stated(None, "the last box is cut off")
    other = _unboxed(spoken, found)
    if found.last is None:
        return other
    if _DENIED.search(spoken[max(0, found.start - 80) : found.start]):
        return Stated(None, "the last box says what the answer is not")
    taken_back = other.retracted or _is_taken_back(spoken[found.end :])
    return Stated(found.last, "the last box", True, _other(found.last, other.answer), taken_back)


def without_thoughts(text: str) -> str:
    """`text` without what stands inside think tags.

    A closing tag alone closes what the prompt opened; an opening tag alone was never closed.
    """
    if "<" not in text and "[" not in text and "◁" not in text:
        return text
    kept, start, depth = [], 0, 0
    marks = [(m.start(), m.end(), True) for m in _OPEN.finditer(text)]
    marks += [(m.start(), m.end(), False) for m in _CLOSE.finditer(text)]
    for begin, end, opens in sorted(marks):
        if opens:
            if depth == 0:
                kept.append(text[start:begin])
            depth += 1
        elif depth:
            depth -= 1
            start = end
        else:
            kept, start = [], end
    if depth == 0:
        kept.append(text[start:])
    return "".join(kept)


def _unboxed(text: str, found: Boxes) -> Stated:
    """The last answer that is stated without a box, behind the last box if there is one."""
    text = _END_OF_TURN.sub("", text)
    tail = text[max(found.end, len(text) - _TAIL) :]
    prose = _CODE.sub(lambda code: "\n" * len(code[0]), tail)
    marks = [mark for mark in hashes(prose) if not _HEADING_WORD.match(mark[1])]
    values = [mark for mark in marks if not _may_be_heading(mark[1])]
    if values:
        return _marked(values[-1][1], tail, prose, values[-1].end(), "behind ####")
    tagged = deque(_TAGGED.finditer(prose), maxlen=1)
    if tagged:
        inside = tail[tagged[0].start(1) : tagged[0].end(1)]
        fence = _FENCE.fullmatch(inside.strip())
        answer = fence["inside"] if fence else tagged[0][1]
        return _marked(answer, tail, prose, tagged[0].end(), "in answer tags")
    announced = _announced(tail, prose)
    if announced is not None:
        return announced
    if marks and not prose[marks[-1].end() :].strip():
        return _marked(marks[-1][1], tail, prose, marks[-1].end(), "behind ####")
    return Stated(None, "no boxed or final answer was given")


def _may_be_heading(text: str) -> bool:
    """Whether what stands behind #### reads as a heading: "Add both of them up"."""
    return bool(_HEADING_TEXT.match(text)) and not _is_number_in_words(text)


def _marked(answer: str, tail: str, prose: str, end: int, reason: str) -> Stated:
    """The answer of a mark that ends at `end`, with what the text says behind it."""
    answer = _trimmed(answer)
    later = _announced(tail[end:], prose[end:])
    other = _other(answer, later.answer if later else None)
    return Stated(answer, reason, other=other, retracted=_is_taken_back(prose[end:]))


def _is_taken_back(rest: str) -> bool:
    """Whether what stands behind a box or a mark takes it back."""
    return bool(_TAKEN_BACK.search(rest[:_TAIL]))


def _other(answer: str, later: str | None) -> str:
    """`later` if it may contradict `answer`; else empty."""
    if later is None or later.strip() == answer.strip():
        return ""
    both_options = _LETTER.fullmatch(answer) and _LETTER.fullmatch(later)
    return later if both_options or _names_a_value(later) else ""


def _announced(text: str, prose: str) -> Stated | None:
    """The last answer that a text announces; None: it announces none.

    Args:
        prose: `text`, with newlines in place of code.
    """
    lower = prose.lower()
    if not any(word in lower for word in ("answer", "option", "choice", "答案")):
        return None
    matches = [
        match
        for pattern in (_LABEL, _HEADING, _SENTENCE, _CHINESE)
        for match in pattern.finditer(prose)
    ]
    best: _Content | None = None
    denied = False
    for match in sorted(matches, key=lambda one: one.end()):
        line_start = max(prose.rfind("\n", 0, match.start()) + 1, match.start() - 200)
        before = prose[line_start : match.start()]
        content = _content(text, prose, match.end())
        in_sentence = match.re is _SENTENCE
        between = match["between"] if in_sentence else ""
        if _HYPOTHESIS.search(before) or re.search(r"(?i)\b(?:if|whether|when)\b", between):
            continue
        if _UNTRUE.search(before) or re.search(r"(?i)\bnot\b|n't", between):
            denied = True
            continue
        denial = _DENIAL.match(content.text)
        if denial and (_DENIED_VALUE.match(content.text, denial.end()) or (in_sentence and best)):
            denied = True
            continue
        if content.text.rstrip().endswith("?") or not (content.text or in_sentence):
            continue
        best = content
        denied = False
    if best is None:
        return Stated(None, "the text says what the answer is not") if denied else None
    # "A. No wait, B." is one piece: a letter and a point may begin an option's text.
    cut = best.text if best.fenced else _cut(best.text)
    answer = _trimmed(cut)
    if not re.search(r"\w|∅|∞", answer):
        return None  # the text ends before its answer
    end = best.end or best.start + len(re.split(r"[.!?;]", cut, maxsplit=1)[0])
    return Stated(answer, "announced", retracted=bool(_RETRACTION.search(prose[end:])))


class _Content(NamedTuple):
    """What is announced, and perhaps what its line goes on to say."""

    text: str
    start: int
    end: int = 0  # of a block; 0: it is a line
    fenced: bool = False


def _content(text: str, prose: str, start: int) -> _Content:
    """What an announcement that ends at `start` announces: beside it or, if its line ends, below.

    A block is a formula on lines of its own, several of them, a list, or a fence.
    """
    place, _ = _first_content(text, start)
    fence = _FENCE.match(text, place)
    if fence:
        return _Content(fence["inside"].strip(), place, fence.end(), fenced=True)
    place, below = _first_content(prose, start)
    if below:
        items = _items(prose, place)
        if len(items) > 1:
            return _Content(", ".join(items), place, place + 1)
        marker = _ONLY_ITEM.match(prose, place)
        place = marker.end() if marker else place
    shown, end = _displayed(prose, place)
    if shown:
        return _Content(shown + _line(prose, end), place, end)
    return _Content(_line(prose, place), place)


def _first_content(text: str, start: int) -> tuple[int, bool]:
    """Where the text behind an announcement goes on, and whether that is below its line."""
    below = _BELOW.match(text, start)
    skipped = below or _BESIDE.match(text, start)
    return skipped.end() if skipped else start, below is not None


def _line(text: str, start: int) -> str:
    return re.split(r"[\n。]", text[start : start + _TAIL], maxsplit=1)[0]


def _displayed(text: str, place: int) -> tuple[str, int]:
    """The formulas that are displayed at `place`, between single dollars, and where they end."""
    shown = ""
    while formula := _DISPLAY.match(text, place):
        inside = next(group for group in formula.groups()[1:] if group)
        if shown:
            shown += f" {formula['join']} " if formula["join"] else ", "
        shown += f"${' '.join(inside.split()).rstrip('.,; ')}$"
        place = formula.end()
    return shown, place


def _items(text: str, place: int) -> list[str]:
    """The short answers of the list that begins at `place`, up to a sentence that explains them."""
    marker = _BULLET if _BULLET.match(text, place) else _NUMBERED
    items: list[str] = []
    while mark := marker.match(text, place):
        item = _line(text, mark.end())
        if items and len(re.findall("[A-Za-z]{2,}", item)) > _PROSE:
            break
        items.append(_trimmed(item))
        place = mark.end() + len(item)
        place += len(text[place:]) - len(text[place:].lstrip())
    return items


def _cut(content: str) -> str:
    """`content` up to where the sentence or the clause that holds the answer ends."""
    filler = _FILLER.match(content)
    start = filler.end() if filler else 0
    ends = [
        match.start()
        for pattern in (_SENTENCE_END, _CLAUSE)
        if (match := _outside_math(pattern, content, start))
    ]
    return content[start : min(ends, default=len(content))]


def _outside_math(pattern: re.Pattern[str], text: str, start: int) -> re.Match[str] | None:
    """The first match from `start` on that is not between dollar signs."""
    for match in pattern.finditer(text, start):
        if text.count("$", start, match.start()) % 2 == 0 or text.count("$", start) % 2:
            return match
    return None


def _trimmed(answer: str) -> str:
    """`answer` without Markdown emphasis and closing punctuation around it."""
    answer = answer.strip()
    for mark in ("**", "__", "*", "_", "`", '"', "'"):
        if answer.startswith(mark) and answer.endswith(mark) and len(answer) > 2 * len(mark):
            answer = answer[len(mark) : -len(mark)].strip()
    answer = re.sub(r"^\*\*\s*|\s*\*\*\.?$", "", answer) if answer.count("**") == 1 else answer
    return answer.strip().rstrip(".,;").strip()


def _names_a_value(answer: str) -> bool:
    """Whether an announced answer is one that could contradict a box: it has a digit, no box."""
    has_digit = bool(re.search(r"\d", answer)) and len(answer) < 60 and "boxed" not in answer
    return has_digit or _is_number_in_words(answer)


def _is_number_in_words(text: str) -> bool:
    r"""Whether the whole `text` is a number in words: "one hundred and five", "two thirds"."""
    read = in_digits(text)
    return read != text and bool(re.fullmatch(r"-?(?:\d+|\\frac\{\d+\}\{\d+\})", read))
