r"""How often a model is right: pass@1, avg@k, pass@k with standard errors, \boxed{} rate, length.

In process, the base and an adapter of it, at every step and at decision points only, on the same
problems, with the paired differences:

    python -m training.evaluate --model models/tiny-qwen2 --adapter tiny-math \
        --problems problems.jsonl --samples 4 --output runs/evaluate

Over any OpenAI-compatible server, one model or several (the first is the one compared against):

    python -m training.evaluate --url http://127.0.0.1:8000/v1 --models tiny-qwen2,tiny-math \
        --problems problems.jsonl --output runs/evaluate

Answers lie in OUTPUT/answers-LABEL-DIGEST/*.parquet, the digest being that of everything that they
depend on: the same command after a kill asks only what is missing. The figures are in
OUTPUT/report.json.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from tqdm.contrib.logging import logging_redirect_tqdm

from adapters.base import BaseModel
from adapters.files import sha256_file, write_json
from adapters.manifest import Mode
from adapters.places import default_store
from adapters.program import program
from adapters.prompt import PromptRenderer
from adapters.recipe import Recipe, get_recipe, recipe_for
from adapters.store import Store
from adapters.version import WEIGHTS, AdapterVersion
from training.ask import Endpoint, ServerError, ask_all
from training.generate import (
    Applied,
    Engine,
    Generator,
    SamplingOptions,
    derive_seed,
    open_generator,
)
from training.model import open_base
from training.problems import (
    Problem,
    benchmark_of,
    load_problems,
    source_name,
    write_problems,
)
from training.problems.settings import ProblemsConfig
from training.results import Recorder, Reply, Result, compare, table
from training.run import Stage
from training.verify import Verifier

logger = logging.getLogger("training.evaluate")


# ------------------------------------------------------------------------------- as a library


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
        missing = recorder.missing
        if missing:
            prompts = [renderer.token_ids(problems[index].problem) for index in missing]
            # Seeds follow the problem, not the place in the queue: a resumed run draws the same.
            seeds = [derive_seed(options.seed, problems[index].id) for index in missing]
            for place, completions in generator.stream(
                prompts, options, applied, seeds, recorder.sampled
            ):
                replies = [
                    Reply(one.text, len(one.token_ids), one.finish_reason, one.gated)
                    for one in completions
                ]
                recorder.add(missing[place], replies)
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


# ------------------------------------------------------------------------------- as a command


class EvaluateConfig(ProblemsConfig):
    """Settings of an evaluation."""

    program: ClassVar[str] = "python -m training.evaluate"

    model: str | None = Field(
        None, description="Base model: a folder or a hub id; with --url: its name there."
    )
    models: list[str] = Field([], description="With --url: several names, the first the baseline.")
    adapter: str | None = Field(None, description="A PEFT folder, or a name in --store.")
    store: Path | None = Field(
        None, description="Folder of adapters; `reasonmaxxer doctor` prints the default."
    )
    mode: list[Mode] = Field(
        [], description="In process: base, always, gated. With --url: what the models are."
    )
    tau: float | None = Field(None, ge=0, description="Of gated, nats; default: the manifest's.")
    gate: Literal["entropy", "random"] = Field(
        "entropy", description="random: a control, the manifest's gate rate drawn by lot."
    )
    family: str = Field(
        "",
        description="Recipe, by name or as a YAML file; default: the adapter's, else found for "
        "the model.",
    )
    engine: Engine = Field("auto", description="What samples: auto, vllm or transformers.")

    url: str | None = Field(None, description="An OpenAI-compatible server, with its /v1.")
    api_key_env: str | None = Field(None, description="Environment variable with the key.")
    concurrency: int = Field(64, ge=1, description="Requests in flight.")
    retries: int = Field(5, ge=0, description="Of connection errors, 429 and 5xx.")
    timeout: float = Field(600.0, gt=0, description="Seconds for one answer.")
    extra_body: dict[str, Any] = Field({}, description="JSON added to every request.")

    problems: str = Field(
        description="File, benchmark[:FILE], hub dataset, reasoning_gym:NAME, or a mixture with +."
    )
    problem_field: str = Field("problem", description="Column, for files and hub datasets.")
    answer_field: str = Field("answer", description="Column, for files and hub datasets.")
    dataset_config: str | None = Field(None, description="Configuration of a hub dataset.")
    split: str | None = Field(None, description="Split of a hub dataset.")
    limit: int | None = Field(None, ge=1, description="The first so many problems.")

    samples: int | None = Field(
        None, ge=1, description="Answers per problem; default 1, for aime24 and amc23 8."
    )
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int | None = Field(
        None, ge=1, description="Longest answer; default: the family's, with --url 2048."
    )
    seed: int = Field(0, ge=0, lt=2**31)
    k: list[int] = Field([], description="pass@k for these k; default 1 and the samples.")
    deadline: float = Field(5.0, gt=0, description="Seconds for verifying one answer.")
    output: Path | None = Field(None, description="Folder for answers and report.json.")

    @classmethod
    def load(cls, argv: Sequence[str] | None = None) -> Self:
        """Parse flags and YAML. Bad input ends the process with exit code 2."""
        # pydantic-settings gives a field of one letter the flag -k only.
        args = sys.argv[1:] if argv is None else argv
        return super().load([re.sub(r"^--k(?==|$)", "-k", arg) for arg in args])

    @property
    def answers_each(self) -> int:
        """Answers per problem."""
        benchmark = benchmark_of(self.problems)
        return self.samples or (benchmark.samples if benchmark else 1)

    @property
    def ks(self) -> list[int]:
        return self.k or sorted({1, self.answers_each})

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        names = self.models or [name for name in [self.model] if name]
        problem = None
        if not names:
            problem = "--model: is missing"
        elif self.url is None:
            problem = self._in_process_problem()
        elif not re.match(r"https?://\S+$", self.url):
            problem = f"--url: '{self.url}' is not http://... or https://..."
        elif self.adapter:
            problem = "--adapter: with --url, name the adapter with --models BASE,ADAPTER"
        elif self.mode and len(self.mode) != len(names):
            problem = f"--mode: {len(self.mode)} modes for {len(names)} models"
        elif len(set(names)) < len(names):
            problem = "--models: a name occurs twice"
        elif self.api_key_env and not os.environ.get(self.api_key_env):
            problem = f"--api-key-env: the environment has no {self.api_key_env}"
        if problem is None and not all(1 <= k <= self.answers_each for k in self.k):
            problem = f"--k: each must lie between 1 and --samples ({self.answers_each})"
        if problem:
            raise ValueError(problem)
        return self

    def _in_process_problem(self) -> str | None:
        if self.models:
            return "--models: needs --url; in process, give --model and --adapter"
        if set(self.mode) - {"base"} and not self.adapter:
            return f"--adapter: is missing for --mode {','.join(self.mode)}"
        if self.gate == "random" and (self.engine != "transformers" or self.tau is not None):
            return "--gate: random goes with --engine transformers and without --tau"
        if len(set(self.mode)) < len(self.mode):
            return "--mode: one occurs twice"
        return None


def evaluate(config: EvaluateConfig) -> list[Result]:
    """Run the evaluation that `config` describes, write its report, return the results.

    Raises:
        ValueError: a setting that only its files could prove wrong.
        ServerError: the server refused.
    """
    problems = load_problems(
        config.problems,
        limit=config.limit,
        problem_field=config.problem_field,
        answer_field=config.answer_field,
        config=config.dataset_config,
        split=config.split,
        data_dir=config.data_dir,
    )
    logger.info("%d problems, %d answers each", len(problems), config.answers_each)
    if config.output:
        config.save(config.output / "evaluate.yaml")
        # Answers can be graded again from these and the parts.
        write_problems(config.output / "problems.jsonl", problems)
    with Verifier(config.deadline) as verifier:
        ways = _over_url if config.url else _in_process
        results = ways(config, problems, verifier)
    if config.output:
        report = {
            "problems": source_name(config.problems),
            "results": {result.label: result.report(config.ks) for result in results},
            "differences": compare(results),
        }
        write_json(config.output / "report.json", report)
    return results


def _options(config: EvaluateConfig, max_tokens: int) -> SamplingOptions:
    return SamplingOptions(
        n=config.answers_each,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens or max_tokens,
        seed=config.seed,
    )


def _over_url(
    config: EvaluateConfig, problems: Sequence[Problem], verifier: Verifier
) -> list[Result]:
    names = config.models or [str(config.model)]
    # The first is the baseline, unless said otherwise.
    default: list[Mode] = ["base" if place == 0 else "always" for place in range(len(names))]
    return [
        evaluate_url(
            Endpoint(
                url=str(config.url),
                model=name,
                api_key=os.environ[config.api_key_env] if config.api_key_env else None,
                concurrency=config.concurrency,
                retries=config.retries,
                timeout=config.timeout,
                extra_body=config.extra_body,
            ),
            problems,
            _options(config, 2048),
            verifier,
            mode=mode,
            source=source_name(config.problems),
            output=config.output,
        )
        for name, mode in zip(names, config.mode or default, strict=True)
    ]


def _in_process(
    config: EvaluateConfig, problems: Sequence[Problem], verifier: Verifier
) -> list[Result]:
    base = open_base(str(config.model))
    version = find_adapter(config.adapter, config.store, base) if config.adapter else None
    recipe = _recipe(config, base, version)
    options = _options(config, recipe.sampling.max_tokens)
    renderer = PromptRenderer.load(base.folder, recipe.prompt)
    longest = max(len(renderer.token_ids(problem.problem)) for problem in problems)
    ways = {mode: _applied(config, mode, version) for mode in _modes(config, version)}
    with open_generator(
        str(base.folder),
        engine=config.engine,
        max_rank=version.rank if version and any(ways.values()) else None,
        gated="gated" in ways,
        max_model_len=longest + options.max_tokens,
        seed=config.seed,
    ) as generator:
        return [
            evaluate_generator(
                generator,
                renderer,
                problems,
                options,
                verifier,
                applied,
                source=source_name(config.problems),
                label=f"{mode} (random gate)" if applied and applied.random_rate else mode,
                output=config.output,
                identity=base.fingerprint,
            )
            for mode, applied in ways.items()
        ]


def _modes(config: EvaluateConfig, version: AdapterVersion | None) -> list[Mode]:
    """Those asked for; by default all that the adapter can do."""
    if config.mode or version is None:
        return config.mode or ["base"]
    return ["base", "always", "gated"] if version.gate else ["base", "always"]


def _applied(config: EvaluateConfig, mode: Mode, version: AdapterVersion | None) -> Applied | None:
    """How the adapter runs in `mode`."""
    if mode == "base" or version is None:
        return None
    if mode == "always":
        return Applied(version.path)
    gate = version.gate
    if gate is None and config.tau is None:
        raise ValueError("--adapter: it has no threshold; give --tau")
    if gate is not None and config.gate == "random":
        return Applied.by_lot(version.path, gate)
    return Applied.behind(version.path, gate, config.tau)


def find_adapter(name: str, store: Path | None, base: BaseModel) -> AdapterVersion:
    """The adapter that `name` means, a folder or a name in `store`, checked against `base`.

    Args:
        store: None: the default store.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    if (Path(name) / WEIGHTS).is_file():
        version = AdapterVersion.read(Path(name))
        version.check_fits(base)
        return version
    adapters = Store(store or default_store())
    try:
        return adapters.get(name, base)
    except KeyError:
        known = ", ".join(adapters.names()) or "none"
        raise ValueError(
            f"--adapter: '{name}' is neither an adapter folder nor in {adapters.root} ({known})"
        ) from None


def _recipe(config: EvaluateConfig, base: BaseModel, version: AdapterVersion | None) -> Recipe:
    if config.family or version is None or version.manifest is None:
        return recipe_for(base, config.family)
    return get_recipe(version.manifest.family)


def main(argv: list[str] | None = None) -> None:
    """Command line: exit code 2 and a line naming the field on bad input, 1 if the run fails."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    # Every request is logged at INFO.
    for client in ("httpx", "httpx2"):  # whichever of the two the openai client uses
        logging.getLogger(client).setLevel(logging.WARNING)
    config = EvaluateConfig.load(argv)
    logger.info("settings:\n%s", config.to_yaml())
    try:
        with config.usage_errors(), logging_redirect_tqdm():
            results = evaluate(config)
    except ServerError as error:
        print(f"{program(config.program)}: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(table(results, config.ks))


if __name__ == "__main__":
    main()
