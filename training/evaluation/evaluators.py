"""Ask a model all problems and grade its answers: in process, or over an OpenAI-compatible server.

Answers are kept in a folder whose name holds the digest of everything that they depend on. After a
kill, only what is missing there is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adapters.adapter import WEIGHTS
from adapters.files import sha256_file
from adapters.manifest import Mode
from adapters.prompt import PromptRenderer
from training.evaluation.openai_client import Endpoint, ask_all
from training.evaluation.recorder import Recorder
from training.evaluation.result import Reply, Result
from training.generation import Applied, Generator, SamplingOptions
from training.generation.answer_problems import answer_problems
from training.grading.verifier import Verifier
from training.problems import Problem
from training.run_folder import Stage


def evaluate_generator(
    generator: Generator,
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    options: SamplingOptions,
    verifier: Verifier,
    applied: Applied | None = None,
    *,
    source: str = "problems",
    label: str | None = None,
    output: Path | None = None,
    identity: str = "",
) -> Result:
    """Ask `generator` every problem `options.n` times and grade the answers.

    Args:
        applied: an adapter and where it runs; None: the base.
        source: the problems' name in the result.
        label: the result's name; by default its mode.
        output: where answers are kept, and found again after a kill; None: nowhere.
        identity: what else the answers depend on: the base, say.
    """
    mode: Mode = applied.mode if applied else "base"
    label = label or mode
    options = replace(options, stop=renderer.stop)
    settings = {
        "identity": identity,
        "applied": applied and (sha256_file(applied.adapter / WEIGHTS), *applied[1:]),
        "template": renderer.template,
        "options": asdict(options),
    }
    folder = _answers_folder(output, label, settings)
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
            recorder.add(answered.index, replies)
        return recorder.result(label, mode, source, options.temperature)


def evaluate_url(
    endpoint: Endpoint,
    problems: Sequence[Problem],
    options: SamplingOptions,
    verifier: Verifier,
    *,
    mode: Mode = "base",
    source: str = "problems",
    label: str | None = None,
    output: Path | None = None,
    identity: str = "",
) -> Result:
    """Ask a server every problem `options.n` times and grade the answers.

    Args:
        mode: what the server runs under that model name, for the record.
        label: the result's name; by default the model's.
        identity: what else the answers depend on. The server does not say which weights it runs:
            give their hash here, or another `output`, when they change under one name.

    The other arguments are those of `evaluate_generator`.

    Raises:
        ServerError: a request failed after all retries. What was answered is kept in `output`.
    """
    label = label or endpoint.model
    settings = {
        "identity": identity,
        "model": endpoint.model,
        "extra_body": endpoint.extra_body,
        "options": asdict(options),
    }
    folder = _answers_folder(output, label, settings)
    with Recorder(problems, options.n, verifier, folder, label) as recorder:
        if recorder.missing:
            ask_all(endpoint, problems, recorder.missing, options, recorder.add)
        return recorder.result(label, mode, source, options.temperature)


def _answers_folder(output: Path | None, label: str, settings: dict[str, Any]) -> Path | None:
    if output is None:
        return None
    name = re.sub(r"[^\w.-]+", "-", label)
    return Stage.first(output, f"answers-{name}", settings | {"format": 2}).path()
