r"""The verifier: computer algebra in watched processes, and most answers without any."""

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import python

from training.grading import Verdict, Verifier
from training.grading.math import math_equal
from training.grading.verdict import Decision


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    with Verifier(deadline=20) as verifier:
        yield verifier


def hang(text: str, reference: str) -> Decision:
    """Misbehaves as `text` says; otherwise compares as ever."""
    if "sleep" in text:
        time.sleep(60)
    if "spin" in text:
        return Decision(bool(9 ** (9**9)), "")  # one call into C, deaf to Python's signals
    if "die" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return math_equal(text, reference)


@pytest.mark.parametrize(
    ("text", "reference", "correct"),
    [
        ("#### 18", "18", True),
        (r"#### 18 \boxed{19}", "18", False),
        ("The answer is 18.", "18", True),
        ("Answer: $\\frac{1}{2}$", "0.5", True),
        ("cut off at 18", "18", False),
        ("the answer must be found first: 3 + 15 = 18, but", "19", False),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}", True),
        (r"\boxed{33\frac13}", r"\frac{100}{3}", True),
        (r"\boxed{10\%}", "10", True),
        (r"\boxed{0.1}", r"10\%", True),
        (r"\boxed{11\%}", "10", False),
        (r"\boxed{(1, 2]}", "(1,2]", True),
        (r"\boxed{[1,2]}", "(1,2]", False),
        (r"\boxed{x \in [1,3)}", "[1,3)", True),
        (r"\boxed{\{2,1\}}", r"\{1,2\}", True),
        (r"\boxed{3, -3}", "-3, 3", True),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", True),
        (r"\boxed{x=2}", "2", True),
        (r"\boxed{5\text{ cm}}", "5", True),
        (r"\boxed{4.5 \times 10^{33} \text{ erg}}", "4.5e33", True),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (
            r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}",
            r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
            True,
        ),
        (r"\boxed{}", "18", False),
        (r"answer 12 \boxed{}", "12", False),
        (r"\boxed{1234}", "1, 234", False),
        ("", "18", False),
    ],
)
def test_answers(verifier: Verifier, text: str, reference: str, correct: bool) -> None:
    [verdict] = verifier.check([text], [reference])
    assert verdict.correct is correct
    assert not verdict.timed_out


def test_boxed_is_reported(verifier: Verifier) -> None:
    texts = [r"\boxed{1}", "#### 1", r"\boxed{}", r"\boxed{1"]
    assert [v.boxed for v in verifier.check(texts, ["1"] * 4)] == [True, False, False, False]


def test_no_texts_and_unequal_lengths(verifier: Verifier) -> None:
    assert verifier.check([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        verifier.check(["a"], [])
    with pytest.raises(ValueError, match="deadline"):
        Verifier(deadline=0)


def test_off_the_main_thread(verifier: Verifier) -> None:
    """Several threads at once, each with questions that need computer algebra."""
    verdicts: dict[int, list[Verdict]] = {}

    def check(number: int) -> None:
        texts = [rf"\boxed{{x + \frac{{{number}}}{{{d}}}}}" for d in (1, 2)]
        verdicts[number] = verifier.check(texts, [rf"\frac{{{number}}}{{2}} + x"] * 2)

    threads = [threading.Thread(target=check, args=(number,)) for number in (3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: [v.correct for v in found] for n, found in verdicts.items()} == {
        n: [False, True] for n in (3, 5, 7)
    }


def test_a_hanging_answer_is_left_out_and_the_rest_go_on(caplog: pytest.LogCaptureFixture) -> None:
    texts = [
        r"\boxed{\sqrt{4x^2}}", r"\boxed{x + sleep}", r"\boxed{x + spin}", r"\boxed{x + die}",
        r"\boxed{2\sqrt{x^2}}",
    ]  # fmt: skip
    with Verifier(deadline=1, workers=2, compare=hang) as verifier:
        reference = r"2|x|"
        assert verifier.check(texts[:1], [reference])[0].correct  # the workers have started
        with caplog.at_level(logging.WARNING):
            verdicts = verifier.check(texts, [reference] * 5)
        assert [v.correct for v in verdicts] == [True, None, None, None, True]
        assert verdicts[1].reason == "the grader came to no decision within 1 s"
        assert [v.timed_out for v in verdicts] == [False, True, True, True, False]
        assert "3 of 5 answers" in caplog.text
        # The replaced workers work.
        assert [v.correct for v in verifier.check(texts[::4], [reference] * 2)] == [True, True]


@pytest.mark.timeout(120)  # a grader that hangs would take hours
def test_adversarial_inputs_come_to_an_end() -> None:
    texts = [
        r"\boxed{" + "{" * 10_000 + "}" * 10_000 + "}",
        r"\boxed{10**10**10}",
        r"\boxed{10^{10^{10}}}",
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{1000000!!!}",
        r"\boxed{" + "(" * 450 + "1" + ")" * 450 + "}",
        "x" * 2**20,
        r"\boxed{" * 150_000,
        "{" * 2**20 + r"\boxed{3}",
        "}" * 2**20,
        "answer " * 150_000,
        "answer: " + "$" * 1900,
    ]
    with Verifier(deadline=1) as verifier:
        verifier.check([r"\boxed{1/2}"], ["0.5"])
        verdicts = verifier.check(texts, ["7"] * len(texts))
    assert not any(verdict.correct for verdict in verdicts)


def test_rollouts_of_a_fit_need_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """6,400 miniature rollouts, right and wrong. `python -m benchmarks.grading` has the seconds."""
    monkeypatch.setattr(Verifier, "_start", lambda _: pytest.fail("a worker starts"))
    draw = random.Random(0)
    steps = "First 9 - 11 * 7 + 12 = 9 - 77 + 12. So 9 - 77 + 12 = -68 + 12. " * 3
    answers = [draw.randrange(-999, 999) for _ in range(6400)]
    given = [answer + draw.choice([0, 0, 1, -7]) for answer in answers]
    texts = [rf"{steps}So the result is \boxed{{{value}}}." for value in given]
    with Verifier() as verifier:
        verdicts = verifier.check(texts, list(map(str, answers)))
    assert [v.correct for v in verdicts] == [a == b for a, b in zip(answers, given, strict=True)]


def test_an_interrupt_leaves_no_late_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import training.grading.verifier

    with Verifier(workers=1) as verifier:
        wait = training.grading.verifier.wait

        def interrupted(*_: object) -> object:
            raise KeyboardInterrupt

        monkeypatch.setattr(training.grading.verifier, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            verifier.check([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])
        monkeypatch.setattr(training.grading.verifier, "wait", wait)
        assert not verifier.check([r"\boxed{\sqrt{6}}"], [r"2\sqrt{2}"])[0].correct


@pytest.mark.parametrize("own", [False, True])
def test_the_workers_do_not_import_the_command(tmp_path: Path, own: bool) -> None:
    """Unless what they are to call lies there."""
    script = tmp_path / "command.py"
    script.write_text(
        "from training.grading.verifier import Verifier, math_equal\n"
        "print('imported', flush=True)\n"
        "def equal(*question): return math_equal(*question)\n"
        "if __name__ == '__main__':\n"
        f"    with Verifier(workers=1, compare={'equal' if own else None}) as verifier:\n"
        "        print(verifier.check([r'\\boxed{x+1}'], ['1+x'])[0].correct)\n"
    )
    assert python(script).stdout.split() == ["imported"] * (1 + own) + ["True"]
