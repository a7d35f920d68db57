r"""The final answer that a text states, and nothing that it merely mentions.

    \boxed{18}                        the last complete box
    #### 18                           GSM8K's way of writing it
    <answer>18</answer>               the way of many RL prompts
    **Final Answer:** 18              announced, in Markdown or plain: "The answer is 18."

They count in that order. What the text states or takes back behind its answer is kept beside it.
What stands inside think tags is no answer. A box that was cut off hides every earlier answer: the
model had not finished. "The answer is not 18" states nothing, and neither does a number that merely
comes last.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from training.grading.final_answer import Boxes, boxes, last_hashes

_TAIL = 4000  # characters in which an unboxed answer is looked for

_NAMES = r"think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis"
_OPEN = re.compile(
    rf"<(?:seed:)?(?:{_NAMES})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>", re.IGNORECASE
)
_CLOSE = re.compile(
    rf"</(?:seed:)?(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>", re.IGNORECASE
)
_END_OF_TURN = re.compile(r"(?:<\|(?:im_end|eot_id|endoftext|end_of_text|return)\|>|</s>)\s*$")

# "#### Step 3" and "#### Final Answer" are headings, not answers.
_TITLE = re.compile(
    r"(?i)[*_\s]*(?:step|final|answer|conclusion|solution|part|therefore|summary|\w+:|[a-z]+\s+[a-z]+\s+[a-z]+\s)"
)
_CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)  # code states nothing
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_MARKS = r"[*_`#>\s]*"
_NOUN = r"(?:(?:final|correct|right)\s+)*(?:answer|option|choice)"
# "Final Answer: 73", "**Answer:** 5", "**Answer**: 5", and a heading with the answer below it.
_LABEL = re.compile(
    rf"(?im)(?:^|(?<=[.!?:]\s)|(?<=[\s*✅]))(?P<noun>{_NOUN})\b[ \t]*{r'[*_`]*'}[ \t]*"
    rf"(?:[:：=]|\bis[ \t]*[:：]){_MARKS}(?=(?P<content>[^\n]+))"
)
_HEADING = re.compile(
    rf"(?im)^[ \t]*(?:\#+[ \t]*|\*\*)(?:the[ \t]+)?{_NOUN}[ \t]*[*_:：]*[ \t]*\n\s*"
    rf"(?P<content>[^\n]+)"
)
# "The answer is 5.", "the final answer to the problem is therefore 5"
_SENTENCE = re.compile(
    rf"(?i)\b(?:the|my|our|a|final|correct)\s+{_NOUN}\b(?P<between>[^.\n:=]{{0,120}}?)"
    r"\b(?:is|would be|should be|must be|equals)\b(?=(?P<content>[^\n]*))"
)
_CHINESE = re.compile(r"(?:最终|正确)?答案(?:是|为)?[：:]?[ \t]*(?P<content>[^\n。]+)")
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
    r"(?i)^[\s,*_]*(?:not|never|neither|nor|no longer|unlikely|n't|cannot)\b|^\s*(?:不|并非|並非)"
)
_RETRACTION = re.compile(
    r"(?i)\b(?:no,? wait|wait|that(?:'s| is| was) (?:wrong|incorrect|not right|a mistake)|"
    r"i made a mistake|scratch that|let me (?:re|double))"
)
# The same behind a box or a mark, where "wait, let me check" often ends in agreement.
_TAKEN_BACK = re.compile(
    r"(?i)\b(?:no,? wait|(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not right|a mistake)|"
    r"i made a mistake|my mistake|scratch that)"
)
_LETTER = re.compile(r"[\s(\[*$]*[A-J][\s)\].:*$]*")  # an option, and nothing else
_FILLER = re.compile(
    r"(?i)^(?:\s|[*_`])*(?:(?:therefore|thus|hence|then|simply|just|indeed|now|clearly|equal to|"
    r"given by|as follows|exactly|:|=|：)[\s,:]*)+"
)
# Where a sentence leaves its answer and goes on.
_CLAUSE = re.compile(
    r"(?i)(?:,\s+|\s+)(?:because|since|which|so|as\s|where|after|when|given|that is|i\.e\.|"
    r"in\s+total|altogether|in\s+all|for\s+(?:a|the|this|all)\b|i\s+hope|hence|therefore|and\s+(?:"
    r"therefore|so|we|this|it|the|that)\b)|\s+[—–]\s+"
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
    tail_start = max(found.end, len(text) - _TAIL)
    tail = _CODE.sub("\n", text[tail_start:])
    hashed = last_hashes(tail)
    if hashed is not None and not _TITLE.match(hashed[1]):
        return _marked(hashed, "behind ####")
    tagged = deque(_TAGGED.finditer(tail), maxlen=1)
    if tagged:
        return _marked(tagged[0], "in answer tags")
    announced = _announced(tail)
    if announced is not None:
        return announced
    return Stated(None, "no boxed or final answer was given")


def _marked(mark: re.Match[str], reason: str) -> Stated:
    """The answer of a mark, with what the text says behind it."""
    answer, rest = _trimmed(mark[1]), mark.string[mark.end() :]
    later = _announced(rest)
    other = _other(answer, later.answer if later else None)
    return Stated(answer, reason, other=other, retracted=_is_taken_back(rest))


def _is_taken_back(rest: str) -> bool:
    """Whether what stands behind a box or a mark takes it back."""
    return bool(_TAKEN_BACK.search(rest[:_TAIL]))


def _other(answer: str, later: str | None) -> str:
    """`later` if it may contradict `answer`; else empty."""
    if later is None or later.strip() == answer.strip():
        return ""
    both_options = _LETTER.fullmatch(answer) and _LETTER.fullmatch(later)
    return later if both_options or _names_a_value(later) else ""


def _announced(text: str) -> Stated | None:
    """The last answer that `text` announces; None: it announces none."""
    lower = text.lower()
    if not any(word in lower for word in ("answer", "option", "choice", "答案")):
        return None
    matches = [
        match
        for pattern in (_LABEL, _HEADING, _SENTENCE, _CHINESE)
        for match in pattern.finditer(text)
    ]
    best: tuple[str, int] | None = None
    denied = False
    for match in sorted(matches, key=lambda one: (one.start("content"), one.end())):
        line_start = max(text.rfind("\n", 0, match.start()) + 1, match.start() - 200)
        before = text[line_start : match.start()]
        content = match["content"]
        between = match.groupdict().get("between") or ""
        if _HYPOTHESIS.search(before) or re.search(r"(?i)\b(?:if|whether|when)\b", between):
            continue
        if (
            _UNTRUE.search(before)
            or _DENIAL.match(content)
            or re.search(r"(?i)\bnot\b|n't", between)
        ):
            denied = True
            continue
        if content.rstrip().endswith("?"):
            continue
        best = (content, match.start("content"))
        denied = False
    if best is None:
        return Stated(None, "the text says what the answer is not") if denied else None
    content, start = best
    answer = _trimmed(_cut(content))
    if not re.search(r"\w|∅|∞", answer):
        return None  # the text ends before its answer
    # "A. No wait, B." is one piece: a letter and a point may begin an option's text.
    rest = text[start + len(re.split(r"[.!?;]", _cut(content), maxsplit=1)[0]) :]
    return Stated(answer, "announced", retracted=bool(_RETRACTION.search(rest)))


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
    return bool(re.search(r"\d", answer)) and len(answer) < 60 and "boxed" not in answer
