"""Ask an OpenAI-compatible server all problems, many at a time, and grade its answers.

Chat completions: the server renders the prompt with the family's template, which is the string that
rollouts were sampled on. Each request carries a seed of its own, derived from the run's seed, the
problem's id and the sample's number, so that an answer does not depend on what else is asked.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.manifest import Mode
from training.evaluation.recorder import Recorder, answers_folder
from training.evaluation.result import Reply, Result
from training.generation import SamplingOptions, derive_seed
from training.grading import Verifier
from training.problems import Problem

if TYPE_CHECKING:
    from openai import AsyncOpenAI


class ServerError(RuntimeError):
    """The server refused a request, or could not be reached, after all retries."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and a model on it."""

    url: str = field(metadata={"example": "http://127.0.0.1:8000/v1"})
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 64  # requests in flight
    retries: int = 5  # of connection errors, 408, 409, 429 and 5xx, with growing pauses
    timeout: float = 600.0  # seconds for one answer
    extra_body: dict[str, Any] = field(default_factory=dict)  # added to every request


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

    The other arguments are those of `Evaluation`.

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
    folder = answers_folder(output, label, settings)
    with Recorder(problems, options.n, verifier, folder, label) as recorder:
        if recorder.missing:
            asyncio.run(ask_all(endpoint, problems, recorder.missing, options, recorder.add))
        return recorder.result(label, mode, source, options.temperature)


async def ask_all(
    endpoint: Endpoint,
    problems: Sequence[Problem],
    missing: Sequence[int],
    options: SamplingOptions,
    add: Callable[[int, Sequence[Reply]], None],
) -> None:
    """Ask each problem of `missing` `options.n` times; call `add(index, replies)` as they finish.

    Raises:
        ServerError: a request failed for good; it names the problem and gives the server's words.
    """
    from openai import AsyncOpenAI

    todo = ((index, sample) for index in missing for sample in range(options.n))
    replies: dict[int, dict[int, Reply]] = defaultdict(dict)

    async def worker(client: AsyncOpenAI) -> None:
        for index, sample in todo:  # shared: each worker takes the next one
            reply = await _ask(client, endpoint, problems[index], sample, options)
            replies[index][sample] = reply
            if len(replies[index]) == options.n:
                mine = replies.pop(index)
                # Verifying must not stop the requests in flight.
                await asyncio.to_thread(add, index, [mine[number] for number in range(options.n)])

    async with AsyncOpenAI(
        base_url=endpoint.url,
        api_key=endpoint.api_key or "none",  # the client insists on one
        max_retries=endpoint.retries,
        timeout=endpoint.timeout,
    ) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(endpoint.concurrency, len(missing) * options.n)):
                    group.create_task(worker(client))
        except* ServerError as errors:
            failure = errors.exceptions[0]
        else:
            return
    raise failure


async def _ask(
    client: AsyncOpenAI,
    endpoint: Endpoint,
    problem: Problem,
    sample: int,
    options: SamplingOptions,
) -> Reply:
    import openai

    try:
        response = await client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": problem.problem}],
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            seed=derive_seed(options.seed, problem.id, sample),
            stop=list(options.stop) or openai.omit,
            extra_body=endpoint.extra_body or None,
        )
    except openai.APIStatusError as error:
        raise ServerError(
            f"{endpoint.url}: problem {problem.id}, model {endpoint.model}: "
            f"{error.status_code}: {error.message}"
        ) from error
    except openai.APIConnectionError as error:
        raise ServerError(f"{endpoint.url}: {error} ({error.__cause__!r})") from error
    # A page of HTML, with status 200, is a text here.
    if not getattr(response, "choices", None):
        raise ServerError(f"{endpoint.url}: problem {problem.id}: an answer without choices")
    choice = response.choices[0]
    usage = response.usage
    details = usage.completion_tokens_details if usage else None
    return Reply(
        text=choice.message.content or "",
        tokens=usage.completion_tokens if usage else 0,
        finish_reason=choice.finish_reason,
        gated=getattr(details, "gated_tokens", None) or 0,
    )
