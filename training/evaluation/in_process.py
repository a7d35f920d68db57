"""Ask a model in this process all problems, and grade its answers.

Answers are kept in a folder whose name holds the digest of everything that they depend on. After a
kill, only what is missing there is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from adapters.adapter import WEIGHTS
from adapters.files import sha256_file
from adapters.manifest import Mode
from adapters.prompt import PromptRenderer
from training.evaluation.recorder import Recorder, answers_folder
from training.evaluation.result import Reply, Result
from training.generation import Applied, Generator, SamplingOptions
from training.generation.answer_problems import answer_problems
from training.grading import Verifier
from training.problems import Problem


class Evaluation(NamedTuple):
    """What is asked, how, and who grades it; the same for a base and its adapters."""

    problems: Sequence[Problem]
    renderer: PromptRenderer
    options: SamplingOptions
    verifier: Verifier
    source: str = "problems"  # their name in results
    output: Path | None = None  # where answers are kept, and found after a kill; None: nowhere
    identity: str = ""  # what else the answers depend on: the base, say


def evaluate_generator(
    generator: Generator,
    evaluation: Evaluation,
    applied: Applied | None = None,
    label: str | None = None,
) -> Result:
    """Ask `generator` every problem `options.n` times and grade the answers.

    Args:
        applied: an adapter and where it runs; None: the base.
        label: the result's name; by default its mode.
    """
    problems, renderer, options, verifier, source, output, identity = evaluation
    mode: Mode = applied.mode if applied else "base"
    label = label or mode
    options = replace(options, stop=renderer.stop)
    settings = {
        "identity": identity,
        "applied": applied and (sha256_file(applied.adapter / WEIGHTS), *applied.settings),
        "template": renderer.template,
        "options": asdict(options),
    }
    folder = answers_folder(output, label, settings)
    with Recorder(problems, options.n, verifier, folder, label) as recorder:
        for answered in answer_problems(
            generator,
            renderer,
            problems,
            recorder.missing,
            options,
            applied,
            on_tokens=recorder.sampled,
        ):
            replies = [
                Reply(one.text, len(one.token_ids), one.finish_reason, one.gated)
                for one in answered.completions
            ]
            recorder.add(answered.problem, replies)
        return recorder.result(label, mode, source, options.temperature)
